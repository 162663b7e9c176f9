//! The Meridian region server.

pub mod command;
pub mod config;
pub mod federation;
pub mod import;
pub mod log;
pub mod mesh_server;
pub mod peer_tls;
pub mod region;
pub mod server;
pub mod session;
pub mod snapshot;
pub mod summary;
pub mod tree;
pub mod txn;
