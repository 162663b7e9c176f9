//! Measures ZooKeeper-protocol servers from outside, as their clients see them.
//!
//! [`latency`] measures every kind of operation in every region of a running mesh and compares it with
//! what the round trips allow. Everything talks through [`client`], and nothing here shares code with
//! the servers but the wire format.

pub mod client;
pub mod command;
pub mod expectation;
pub mod latency;
pub mod mesh;
pub mod table;
