//! Measures ZooKeeper-protocol servers from outside, as their clients see them.
//!
//! [`latency`] measures every kind of operation in every region of a running mesh and compares it with
//! what the round trips allow; [`load`] measures throughput, latency and processor time under load, and
//! [`compare`] does so for Apache ZooKeeper and Meridian side by side. Everything talks through
//! [`client`], and nothing of it shares code with the servers but the wire format. [`sim`] is another world: it
//! runs the servers themselves, many of them, under virtual time.

pub mod client;
pub mod command;
pub mod compare;
mod ensemble;
pub mod expectation;
pub mod failover;
pub mod latency;
pub mod load;
pub mod mesh;
pub mod process;
pub mod scale;
pub mod sim;
pub mod table;
