//! The bridge between regions.
//!
//! Each region orders its own writes with its own ensemble. This crate makes chosen subtrees common to
//! several regions:
//!
//! * [`state`] is the part of a region's replicated state that belongs to the federation: the stored
//!   log of the global group, the outboxes of requests that another region must order, the retained
//!   records of subtrees that this region is home of. It is pure: a deterministic function of commands.
//! * [`mesh`] names the regions and the shared subtrees.
//! * [`certificates`] makes and reads the certificates that say which server of which region a peer is.
//! * [`transport`] connects the regions: QUIC with mutual TLS 1.3.
//! * [`probe`] measures the round-trip times between them.
//!
//! The crate knows nothing of znodes, sessions or clients. It orders opaque requests for numbered
//! subtrees and sees its region through one trait that the region server implements.

pub mod bridge;
pub mod certificates;
pub mod engine;
pub mod global;
pub mod lease;
mod links;
pub mod mesh;
pub mod probe;
pub mod region;
pub mod state;
pub mod transport;
