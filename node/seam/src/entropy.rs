//! Randomness: session passwords, jitter of retries.

use std::cell::RefCell;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// A source of random bytes.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes` with random bytes.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// The operating system's generator (through a per-thread cryptographic one).
#[derive(Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}

/// The same bytes for the same seed.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<StdRng>);

impl SeededEntropy {
    /// A generator that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill_bytes(bytes);
    }
}

thread_local! {
    static OF_THREAD: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// A random number for whom no [`Entropy`] reaches, such as the consensus engine's timeouts: the system's, or
/// one that follows from the seed given to this thread.
pub fn thread_u64() -> u64 {
    OF_THREAD
        .with_borrow_mut(|seeded| seeded.as_mut().map_or_else(|| rand::rng().next_u64(), StdRng::next_u64))
}

/// From now on [`thread_u64`] on this thread follows from `seed`: for simulations, which have one thread.
pub fn seed_thread(seed: u64) {
    OF_THREAD.with_borrow_mut(|seeded| *seeded = Some(StdRng::seed_from_u64(seed)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_repeats_itself() {
        let draw = |seed| {
            std::thread::spawn(move || {
                seed_thread(seed);
                (thread_u64(), thread_u64())
            })
        };
        let drawn = draw(7).join().unwrap();
        assert_eq!(drawn, draw(7).join().unwrap());
        assert_ne!(drawn, draw(8).join().unwrap());
        assert_ne!(thread_u64(), thread_u64());
    }

    #[test]
    fn a_seed_repeats_itself_and_another_does_not() {
        let first = SeededEntropy::new(7);
        let again = SeededEntropy::new(7);
        let other = SeededEntropy::new(8);
        let draw = |e: &SeededEntropy| (e.next_u64(), e.next_u64());
        let drawn = draw(&first);
        assert_eq!(drawn, draw(&again));
        assert_ne!(drawn, draw(&other));
    }
}
