//! One connection under load, and the znodes that it works on.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use meridian_wire::{ErrorCode, Request};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep_until};

use super::{LATENCY_US_MAX, Load, Operation, Window};
use crate::client::{Client, ClientError, Reply, create};

/// Requests outstanding while znodes are created and deleted.
const PREPARE_OUTSTANDING: usize = 256;
/// A timer of the load generator may be this late; that is not the servers' time.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// The znodes of a load.
pub(super) struct Znodes {
    root: String,
    /// Read and written; or the parents of those that are created, one per connection.
    paths: Vec<String>,
}

/// Creates the znodes.
pub(super) async fn prepare(client: &mut Client, load: &Load) -> Result<Znodes, ClientError> {
    let root = format!("/meridian-bench-{}", std::process::id());
    let count = match load.operation {
        Operation::Mixed { .. } => load.shape.znodes,
        Operation::Create => load.shape.connections,
    };
    let paths: Vec<String> = (0..count).map(|number| format!("{root}/{number}")).collect();
    client.ensure_path(&root).await?;
    let data = data(load);
    for path in &paths {
        submit_in_turn(client, &create(path, &data), ErrorCode::NodeExists).await?;
    }
    finish(client, ErrorCode::NodeExists).await?;
    Ok(Znodes { root, paths })
}

/// Deletes the znodes; `created` says how many were created by each connection.
pub(super) async fn clean_up(
    client: &mut Client,
    znodes: &Znodes,
    created: &[(u32, u64)],
) -> Result<(), ClientError> {
    let mut path = String::new();
    for (connection, count) in created {
        let Some(parent) = znodes.paths.get(*connection as usize) else { continue };
        for number in 0..*count {
            child(parent, number, &mut path);
            submit_in_turn(client, &Request::Delete { path: &path, version: -1 }, ErrorCode::NoNode).await?;
        }
    }
    for path in znodes.paths.iter().chain([&znodes.root]) {
        submit_in_turn(client, &Request::Delete { path, version: -1 }, ErrorCode::NoNode).await?;
    }
    finish(client, ErrorCode::NoNode).await
}

async fn submit_in_turn(
    client: &mut Client,
    request: &Request<'_>,
    tolerated: ErrorCode,
) -> Result<(), ClientError> {
    if client.outstanding() >= PREPARE_OUTSTANDING {
        tolerate(client.next_reply().await?, tolerated)?;
    }
    client.submit(request)
}

async fn finish(client: &mut Client, tolerated: ErrorCode) -> Result<(), ClientError> {
    while client.outstanding() > 0 {
        tolerate(client.next_reply().await?, tolerated)?;
    }
    Ok(())
}

fn tolerate(reply: Reply, tolerated: ErrorCode) -> Result<(), ClientError> {
    if reply.header.error == tolerated { Ok(()) } else { reply.succeeded().map(drop) }
}

fn data(load: &Load) -> Vec<u8> {
    vec![b'm'; load.shape.size as usize]
}

fn child(parent: &str, number: u64, path: &mut String) {
    path.clear();
    // Writing to a string does not fail.
    let _ = write!(path, "{parent}/{number}");
}

/// What connections did.
pub(super) struct Outcome {
    /// Requests answered within the window.
    pub(super) completed: u64,
    /// Latencies of the requests that were due within it.
    pub(super) latency_us: Histogram<u64>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) unsent: u64,
    /// Znodes created, by connection.
    pub(super) created: Vec<(u32, u64)>,
}

impl Default for Outcome {
    fn default() -> Self {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are in order");
        Self { completed: 0, latency_us, errors: 0, first_error: None, unsent: 0, created: Vec::new() }
    }
}

impl Outcome {
    /// Adds those of another connection.
    pub(super) fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.completed += other.completed;
        self.latency_us.add(other.latency_us)?;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.unsent += other.unsent;
        self.created.extend(other.created);
        Ok(())
    }

    fn record(&mut self, latency: Duration) {
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn count(&mut self, reply: &Reply, due: Instant, window: Window) {
        let now = Instant::now();
        if reply.header.error != ErrorCode::Ok {
            self.errors += 1;
            let error = || format!("{:?} answered {:?}", reply.op, reply.header.error);
            self.first_error.get_or_insert_with(error);
        } else if window.contains(now) {
            self.completed += 1;
        }
        if window.contains(due) {
            self.record(now.saturating_duration_since(due));
        }
    }
}

/// When requests are due.
#[derive(Debug)]
enum Schedule {
    /// As soon as there is room.
    Closed,
    /// At fixed intervals.
    Open { next: Instant, interval: Duration },
}

impl Schedule {
    /// The connections of a load take turns, so that the load as a whole is even.
    fn new(load: &Load, connection: u32, start: Instant) -> Self {
        match load.rate {
            None => Self::Closed,
            Some(rate) => {
                let apart = Duration::from_secs(1) / rate;
                Self::Open { next: start + apart * connection, interval: apart * load.shape.connections }
            }
        }
    }

    /// When the request to be sent at `now`, if any, was due.
    fn take(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::Closed => Some(now),
            Self::Open { next, interval } => {
                let due = *next;
                (due <= now).then(|| {
                    *next += *interval;
                    due
                })
            }
        }
    }

    /// When to look again, if that does not depend on replies.
    fn next(&self) -> Option<Instant> {
        match self {
            Self::Closed => None,
            Self::Open { next, .. } => Some(*next),
        }
    }
}

/// One connection.
pub(super) struct Worker {
    client: Client,
    number: u32,
    load: Load,
    znodes: Arc<Znodes>,
    data: Vec<u8>,
    random: SmallRng,
    path: String,
    created: u64,
    /// When the outstanding requests were due.
    due: VecDeque<Instant>,
    /// Whether requests wait for room, and their lateness is the servers'.
    held_back: bool,
}

impl Worker {
    /// Connects, and makes sure that the server has the znodes.
    pub(super) async fn connect(
        server: &str,
        number: u32,
        load: &Load,
        znodes: Arc<Znodes>,
    ) -> Result<Self, ClientError> {
        let mut client = Client::connect(server).await?;
        client.call(&Request::Sync { path: &znodes.root }).await?;
        Ok(Self {
            client,
            number,
            load: load.clone(),
            znodes,
            data: data(load),
            random: SmallRng::seed_from_u64(number.into()),
            path: String::new(),
            created: 0,
            due: VecDeque::new(),
            held_back: false,
        })
    }

    /// Works until the end of the window, and then until all is answered.
    pub(super) async fn work(mut self, window: Window) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut schedule = Schedule::new(&self.load, self.number, Instant::now());
        loop {
            let now = Instant::now();
            if now >= window.end && self.due.is_empty() {
                break;
            }
            self.submit_due(&mut schedule, now, window)?;
            let wake = schedule.next().filter(|_| !self.held_back && now < window.end);
            let wake = wake.map(|next| next.min(window.end));
            tokio::select! {
                reply = self.client.next_reply(), if !self.due.is_empty() => self.answered(&reply?, window, &mut outcome)?,
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                else => sleep_until(window.end).await,
            }
            while let Some(reply) = self.client.buffered_reply()? {
                self.answered(&reply, window, &mut outcome)?;
            }
        }
        if self.held_back {
            self.count_unsent(&mut schedule, window, &mut outcome);
        }
        outcome.created.push((self.number, self.created));
        self.client.close().await?;
        Ok(outcome)
    }

    /// What waited for room to the end took at least as long as it waited.
    fn count_unsent(&self, schedule: &mut Schedule, window: Window, outcome: &mut Outcome) {
        while let Schedule::Open { .. } = schedule {
            let Some(due) = schedule.take(window.end) else { break };
            outcome.unsent += 1;
            if window.contains(due) {
                outcome.record(window.end - due);
            }
        }
    }

    /// Submits what is due and has room.
    fn submit_due(
        &mut self,
        schedule: &mut Schedule,
        now: Instant,
        window: Window,
    ) -> Result<(), ClientError> {
        if now >= window.end {
            return Ok(());
        }
        while self.due.len() < self.load.shape.outstanding as usize {
            let Some(due) = schedule.take(now) else {
                self.held_back = false;
                return Ok(());
            };
            let late = now.saturating_duration_since(due);
            let own_timer = !self.held_back && late <= TIMER_SLACK;
            self.due.push_back(if own_timer { now } else { due });
            self.submit()?;
        }
        self.held_back = true;
        Ok(())
    }

    fn submit(&mut self) -> Result<(), ClientError> {
        let paths = &self.znodes.paths;
        match self.load.operation {
            Operation::Mixed { reads_percent } => {
                let path = &paths[self.random.random_range(0..paths.len())];
                if self.random.random_range(0..100) < reads_percent {
                    self.client.submit(&Request::GetData { path, watch: false })
                } else {
                    self.client.submit(&Request::SetData { path, data: Some(&self.data), version: -1 })
                }
            }
            Operation::Create => {
                child(&paths[self.number as usize], self.created, &mut self.path);
                self.created += 1;
                self.client.submit(&create(&self.path, &self.data))
            }
        }
    }

    fn answered(&mut self, reply: &Reply, window: Window, outcome: &mut Outcome) -> anyhow::Result<()> {
        let due = self.due.pop_front().context("a reply without a request")?;
        outcome.count(reply, due, window);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Shape;

    fn load(rate: Option<u32>) -> Load {
        let shape =
            Shape { connections: 4, outstanding: 1, size: 0, znodes: 1, seconds: 1, warm_up: 0, threads: 1 };
        Load { operation: Operation::Create, shape, rate }
    }

    #[test]
    fn connections_of_an_open_loop_take_turns() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut second = Schedule::new(&load(Some(1_000)), 1, start);
        assert_eq!(second.take(start), None);
        // After a stall all that was due is made up for, each from its own time on.
        assert_eq!(second.take(at(9)), Some(at(1)));
        assert_eq!(second.take(at(9)), Some(at(5)));
        assert_eq!(second.take(at(9)), Some(at(9)));
        assert_eq!((second.take(at(9)), second.next()), (None, Some(at(13))));
    }

    #[test]
    fn a_closed_loop_is_always_due() {
        let now = Instant::now();
        let mut closed = Schedule::new(&load(None), 0, now);
        assert_eq!((closed.take(now), closed.next()), (Some(now), None));
    }
}
