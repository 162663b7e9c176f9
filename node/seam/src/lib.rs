//! The seams to the outside world: everything that a server needs and that is not a function of its
//! inputs comes in through an [`Environment`]: time, randomness, network, disk, threads.
//!
//! Production hands in [`Environment::production`]; a simulation hands in its own implementations and
//! runs the same code. The crate also holds what both sides of every seam must agree on: the codec of
//! our own records ([`codec`]) and the bounds of queues, frames and tables ([`limits`]).

pub mod background;
pub mod clock;
pub mod codec;
pub mod disk;
pub mod entropy;
pub mod limits;
pub mod mutant;
pub mod net;
pub mod open_files;
pub mod resend;
pub mod rpc;
pub mod watch;

use std::sync::Arc;

/// What a server may touch of the outside world.
#[derive(Clone)]
pub struct Environment {
    /// Wall-clock and monotonic time.
    pub clock: Arc<dyn clock::Clock>,
    /// Randomness.
    pub entropy: Arc<dyn entropy::Entropy>,
    /// Sockets.
    pub net: Arc<dyn net::Net>,
    /// Files.
    pub disk: Arc<dyn disk::Disk>,
    /// What runs beside the tasks.
    pub background: Arc<dyn background::Background>,
}

impl Environment {
    /// The real clock, the operating system's randomness and real sockets.
    pub fn production() -> Self {
        Self {
            clock: Arc::new(clock::SystemClock::new()),
            entropy: Arc::new(entropy::SystemEntropy),
            net: Arc::new(net::SystemNet),
            disk: Arc::new(disk::RealDisk),
            background: Arc::new(background::Threads),
        }
    }
}
