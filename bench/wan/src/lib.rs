//! An emulated wide-area network: UDP relays on loopback with delay, jitter, loss and cuts.
//!
//! [`WanDelays`] describes the links between named regions, [`Wan`] runs them. A relay is a loopback
//! port: what a client of one region sends there reaches a server of another region after the link's
//! one-way delay, and the answers take the way back. Links are cut and healed while they carry
//! traffic, from the program or, through [`control`], from another one. Nothing of it needs root.
//!
//! **Accuracy.** A datagram is never early. One thread of its own waits for all of them with the
//! system's timers, not with those of the async runtime, which tick in milliseconds. How late it is
//! depends on the machine; `cargo run --release -p meridian-wan --example accuracy` measures it. On two
//! cores, at 40 ms one way and with 1,200-byte datagrams, the median is 0.1 to 0.3 ms late and the 99th
//! percentile below 1 ms, from 100 datagrams a second up to 50,000 (60 MB/s); single ones are up to 4 ms
//! late. One QUIC stream of 200 MB with CUBIC ran at 26 MB/s with 20 ms of round trip and at 28 MB/s with
//! 80 ms; the link itself dropped nothing (one percent was lost behind it).
//!
//! **Order.** Each direction of a link is one line: datagrams leave it in the order they entered, also
//! with jitter (a datagram that would overtake waits).
//!
//! **Cuts.** A cut link loses everything in both directions, the datagrams under way included, even if it
//! is healed before they would have arrived. Only what a receiver's socket already holds is beyond it.
//!
//! **Bounds.** A relay serves [`CLIENTS_MAX`] clients; one more displaces the one idle longest. Each
//! direction of a link holds [`QUEUED_BYTES_MAX`]; what exceeds it is dropped and counted, as a router
//! would.

pub mod control;
mod delays;
mod link;
mod relay;
mod transit;
mod wan;

pub use delays::{Conditions, DELAY_MAX, WanDelays, WanError};
pub use link::{LinkStatus, QUEUED_BYTES_MAX};
pub use relay::CLIENTS_MAX;
pub use wan::{Wan, WanStatus};
