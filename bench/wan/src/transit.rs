//! Datagrams under way: one thread hands each to its socket when it is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::link::{Link, Passage};

/// The datagrams under way on all links. The links bound how many there are.
#[derive(Debug, Default)]
pub(crate) struct Transit {
    queue: Mutex<Queue>,
    earlier: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    departures: BinaryHeap<Reverse<Departure>>,
    next_sequence: u64,
    closed: bool,
}

/// A datagram under way.
#[derive(Debug)]
struct Departure {
    passage: Passage,
    /// Keeps the order of datagrams that are due at the same time.
    sequence: u64,
    link: Arc<Link>,
    egress: Arc<UdpSocket>,
    to: SocketAddr,
    payload: Box<[u8]>,
}

impl Transit {
    /// Starts the thread; it ends after [`Transit::close`].
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let transit = Arc::new(Self::default());
        let thread = Arc::clone(&transit);
        std::thread::Builder::new().name("wan-transit".to_owned()).spawn(move || thread.run())?;
        Ok(transit)
    }

    /// Sends a datagram over a link: it leaves through `egress` to `to`, unless the link drops it.
    pub(crate) fn send(&self, link: &Arc<Link>, egress: &Arc<UdpSocket>, to: SocketAddr, payload: &[u8]) {
        let Some(passage) = link.enter(Instant::now(), payload.len()) else { return };
        let (link, egress, payload) = (Arc::clone(link), Arc::clone(egress), payload.into());
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        let sequence = queue.next_sequence;
        queue.next_sequence += 1;
        queue.departures.push(Reverse(Departure { passage, sequence, link, egress, to, payload }));
        let is_first = queue.departures.peek().is_some_and(|Reverse(first)| first.sequence == sequence);
        drop(queue);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// Drops what is under way and ends the thread.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.departures.clear();
        drop(queue);
        self.earlier.notify_one();
    }

    fn run(&self) {
        let mut due = Vec::new();
        while self.wait(&mut due) {
            due.drain(..).for_each(Departure::leave);
        }
    }

    /// Waits until datagrams are due and takes them in order; false when closed.
    fn wait(&self, due: &mut Vec<Departure>) -> bool {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return false;
            }
            let now = Instant::now();
            while let Some(Reverse(first)) = queue.departures.peek()
                && first.passage.due <= now
            {
                due.extend(queue.departures.pop().map(|Reverse(departure)| departure));
            }
            if !due.is_empty() {
                return true;
            }
            match queue.departures.peek() {
                Some(Reverse(first)) => {
                    let first_due = first.passage.due;
                    self.earlier.wait_until(&mut queue, first_due);
                }
                None => self.earlier.wait(&mut queue),
            }
        }
    }
}

impl Departure {
    fn leave(self) {
        if !self.link.arrive(&self.passage) {
            return;
        }
        if let Err(error) = self.egress.send_to(&self.payload, self.to) {
            // The host beyond the link did not take it: to the peers it is a lost datagram.
            tracing::debug!(to = %self.to, %error, "datagram not delivered");
        }
    }

    fn key(&self) -> (Instant, u64) {
        (self.passage.due, self.sequence)
    }
}

impl Ord for Departure {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Departure {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Departure {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Departure {}
