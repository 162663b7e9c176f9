//! The Meridian region server.

pub mod tree;
