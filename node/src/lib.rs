//! The Meridian region server.

pub mod tree;
pub mod txn;
