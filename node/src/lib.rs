//! The Meridian region server.

pub mod log;
pub mod region;
pub mod server;
pub mod session;
pub mod snapshot;
pub mod tree;
pub mod txn;
