//! A simulated machine: one process, with a runtime and a clock of its own.
//!
//! Every host has a single-threaded runtime under paused time. The simulation runs one host after the other,
//! a millisecond at a time, on one thread. A runtime of its own makes a crash what it is (every task is
//! gone at once, wherever it was) and lets a host's clock run fast, slow, or stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use meridian_seam::clock::Clock;
use meridian_seam::codec;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;

/// Virtual time starts at this moment: ms since the Unix epoch, in 2027.
const EPOCH_UNIX_MS: i64 = 1_800_000_000_000;

/// A host that has not run for so long finds its clock jumped.
const PAUSE_MS: u64 = 20;

pub(super) struct Host {
    process: Option<Process>,
    /// Parts per million by which the clock is fast.
    drift_ppm: i64,
    /// By how much the wall clock is wrong.
    wall_offset_ms: Arc<AtomicI64>,
    paused: bool,
    /// The process gets time only at multiples of this.
    period_ms: u64,
    /// Versions of records that the process knows up to, and writes.
    versions: (u8, u8),
    next_versions: (u8, u8),
    /// Says in the log whose it is.
    span: tracing::Span,
}

struct Process {
    runtime: Runtime,
    started: Instant,
    started_ms: u64,
    /// Time since the start, as the host's clock has it.
    local_ms: u64,
}

impl Host {
    pub(super) fn new(name: &str, drift_ppm: i64) -> Self {
        let span = tracing::info_span!("on", name);
        Self {
            process: None,
            drift_ppm,
            wall_offset_ms: Arc::default(),
            paused: false,
            period_ms: 1,
            versions: (codec::VERSION, codec::VERSION),
            next_versions: (codec::VERSION, codec::VERSION),
            span,
        }
    }

    /// Starts the host's process with one task.
    pub(super) fn start(
        &mut self,
        now_ms: u64,
        main: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let started = runtime.block_on(async { Instant::now() });
        runtime.spawn(main);
        self.process = Some(Process { runtime, started, started_ms: now_ms, local_ms: 0 });
        self.versions = self.next_versions;
        self.paused = false;
        Ok(())
    }

    /// Adds a task to the process.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(process) = &self.process {
            process.runtime.spawn(task);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The host's clock for the next process.
    pub(super) fn clock(&self, now_ms: u64) -> Arc<dyn Clock> {
        let wall_offset_ms = self.wall_offset_ms.clone();
        Arc::new(HostClock { started: std::sync::OnceLock::new(), started_ms: now_ms, wall_offset_ms })
    }

    pub(super) fn shift_wall_clock(&self, by_ms: i64) {
        self.wall_offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Stops or continues to give the process time.
    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(super) fn set_period_ms(&mut self, period_ms: u64) {
        self.period_ms = period_ms.max(1);
    }

    /// The versions of records that the next process knows up to, and writes.
    pub(super) fn set_next_versions(&mut self, known: u8, written: u8) {
        self.next_versions = (known, written);
    }

    /// Whether it gets less time than it needs.
    pub(super) fn is_slow(&self) -> bool {
        self.period_ms > 1
    }

    /// Ends the process: all its tasks are dropped where they are. `with` runs first, where tasks run.
    pub(super) fn kill(&mut self, with: impl FnOnce()) {
        let Some(process) = self.process.take() else { return };
        let handle: Handle = process.runtime.handle().clone();
        let _entered = handle.enter();
        with();
        drop(process);
    }

    /// Runs the process up to a point of time.
    pub(super) fn run_to(&mut self, now_ms: u64) {
        if self.paused || !now_ms.is_multiple_of(self.period_ms) {
            return;
        }
        let (known, written) = self.versions;
        codec::simulate_build(known, written);
        let Some(process) = &mut self.process else { return };
        let passed_ms = i64::try_from(now_ms - process.started_ms).unwrap_or(i64::MAX);
        let local_ms = passed_ms + passed_ms * self.drift_ppm / 1_000_000;
        let local_ms = u64::try_from(local_ms).unwrap_or(0);
        if local_ms <= process.local_ms {
            return;
        }
        let _named = self.span.enter();
        let behind_ms = local_ms - process.local_ms;
        let until = process.started + Duration::from_millis(local_ms);
        process.runtime.block_on(async {
            if behind_ms > PAUSE_MS {
                tokio::time::advance(Duration::from_millis(behind_ms - 1)).await;
            }
            tokio::time::sleep_until(until).await;
        });
        process.local_ms = local_ms;
    }
}

/// A clock on the host's own time, from its first use on.
struct HostClock {
    started: std::sync::OnceLock<Instant>,
    started_ms: u64,
    wall_offset_ms: Arc<AtomicI64>,
}

impl Clock for HostClock {
    fn unix_ms(&self) -> i64 {
        let since_ms = i64::try_from(self.monotonic().as_millis()).unwrap_or(i64::MAX);
        let started_ms = i64::try_from(self.started_ms).unwrap_or(i64::MAX);
        EPOCH_UNIX_MS + started_ms + since_ms + self.wall_offset_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.started.get_or_init(Instant::now).elapsed()
    }
}
