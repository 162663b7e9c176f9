//! A value that one side changes and the others wait for.
//!
//! As tokio's channel of the same name, but for one thing: who waits is woken in the order in which the
//! waiting began. tokio draws that order at random, which no simulation could replay.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::Notify;

/// A new value, and the two sides of it. The receiver has seen the first value.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        value: RwLock::new(value),
        version: AtomicU64::new(0),
        senders: AtomicUsize::new(1),
        changed: Notify::new(),
    });
    (Sender { shared: shared.clone() }, Receiver { shared, seen: 0 })
}

/// All senders are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody changes the value any more")]
pub struct Closed;

/// The side that changes the value.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// A side that reads the value and waits for changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The version seen last.
    seen: u64,
}

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// Counts the changes; raised while the value is locked.
    version: AtomicU64,
    senders: AtomicUsize,
    changed: Notify,
}

/// The value, locked: to be dropped soon, and before anything is awaited.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Sender<T> {
    /// Sets the value.
    pub fn send_replace(&self, value: T) {
        self.send_if_modified(|current| {
            *current = value;
            true
        });
    }

    /// Changes the value in place. Receivers learn of it if `modify` returns true, which is passed on.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.shared.value.write();
        let modified = modify(&mut value);
        if modified {
            self.shared.version.fetch_add(1, Ordering::Release);
        }
        drop(value);
        if modified {
            self.shared.changed.notify_waiters();
        }
        modified
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.value.read())
    }

    /// Whether anybody could see a change.
    pub fn has_receivers(&self) -> bool {
        Arc::strong_count(&self.shared) > self.shared.senders.load(Ordering::Acquire)
    }

    /// One more receiver, which has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        let shared = self.shared.clone();
        let seen = shared.version.load(Ordering::Acquire);
        Receiver { shared, seen }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// The value; whether it has been seen does not change.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.value.read())
    }

    /// The value, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.version.load(Ordering::Acquire);
        Ref(value)
    }

    /// The present value counts as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.version.load(Ordering::Acquire);
    }

    /// Waits for a value that has not been seen, and counts it as seen.
    ///
    /// # Errors
    /// [`Closed`] if there is none and will be none.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let notified = self.shared.changed.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            let is_closed = self.shared.senders.load(Ordering::Acquire) == 0;
            let version = self.shared.version.load(Ordering::Acquire);
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if is_closed {
                return Err(Closed);
            }
            notified.await;
        }
    }

    /// Waits until the value is as wanted, which counts as seen.
    ///
    /// # Errors
    /// [`Closed`] if it is not and will not be.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            if wanted(&self.borrow_and_update()) {
                return Ok(Ref(self.shared.value.read()));
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_once_by_every_receiver() {
        let (sender, mut first) = channel(1);
        let mut second = first.clone();
        sender.send_replace(2);
        sender.send_replace(3);
        assert_eq!(first.changed().await, Ok(()));
        assert_eq!(*first.borrow(), 3);
        assert!(futures::FutureExt::now_or_never(first.changed()).is_none());
        assert_eq!(*second.borrow_and_update(), 3);
        assert!(futures::FutureExt::now_or_never(second.changed()).is_none());
        assert!(!sender.send_if_modified(|_| false));
        assert!(futures::FutureExt::now_or_never(second.changed()).is_none());
    }

    #[tokio::test]
    async fn the_last_value_is_seen_before_the_end() {
        let (sender, mut receiver) = channel(1);
        let other = sender.clone();
        drop(sender);
        other.send_replace(2);
        drop(other);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(receiver.changed().await, Err(Closed));
        assert!(receiver.wait_for(|value| *value == 1).await.is_err());
        assert!(receiver.wait_for(|value| *value == 2).await.is_ok());
    }

    #[tokio::test]
    async fn who_waits_is_woken_in_the_order_of_waiting() {
        let (sender, receiver) = channel(());
        let turn = Arc::new(AtomicU32::new(0));
        let mut waiting = Vec::new();
        for place in 0..20 {
            let (mut receiver, turn) = (receiver.clone(), turn.clone());
            waiting.push(tokio::spawn(async move {
                receiver.changed().await.unwrap();
                (place, turn.fetch_add(1, Ordering::Relaxed))
            }));
        }
        tokio::task::yield_now().await;
        sender.send_replace(());
        for task in waiting {
            let (place, woken) = task.await.unwrap();
            assert_eq!(place, woken);
        }
    }
}
