//! A log behind a queue: one writer, group commit.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use meridian_seam::background::{Background, LogWriter};
use meridian_seam::clock::micros;
use meridian_seam::mutant::{self, Mutant};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Log, LogError, LogMetrics, Record, Status};

/// Called once with the fate of a submission, from the writer: it must not block.
pub type Done = Box<dyn FnOnce(Result<(), Arc<LogError>>) + Send>;

/// How often the writer asks for the free space of the disk, so that [`LogHandle::has_room`] turns true again when
/// nothing is written any more. One system call.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Submits records to a log's writer, which takes all that wait, writes them at once, syncs once, and then calls
/// their [`Done`]s in the order of submission. Clones share the log.
///
/// The writer ends, and the log is closed, when all that was submitted is written after [`LogHandle::close`] or the
/// drop of the last handle.
#[derive(Clone)]
pub struct LogHandle {
    owner: Arc<Owner>,
}

/// A submission that was not taken, with what was submitted.
pub struct Rejected {
    /// Why.
    pub reason: RejectedReason,
    /// The records as submitted.
    pub records: Vec<Record>,
    /// The call-back, not called.
    pub done: Done,
}

/// Why a submission was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RejectedReason {
    /// As much as may wait is waiting: try again after [`LogHandle::ready`].
    #[error("the log's queue is full")]
    Overloaded,
    /// The log is closed.
    #[error("the log is closed")]
    Closed,
}

impl LogHandle {
    /// Starts the writer as `background` wants it.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn spawn(log: Log, background: &dyn Background) -> io::Result<LogHandle> {
        match background.log_writer() {
            LogWriter::Thread => Self::spawn_thread(log),
            LogWriter::Task(sync_time) => Ok(Self::spawn_task(log, move |bytes| sync_time(bytes))),
        }
    }

    /// Starts the writer as a thread of its own, which allocates segments ahead of need in short-lived threads.
    pub fn spawn_thread(mut log: Log) -> io::Result<LogHandle> {
        log.allocate_segments_ahead();
        let shared = Shared::new(&log);
        let handle = LogHandle::new(&shared);
        std::thread::Builder::new().name("log-writer".into()).spawn(move || {
            let finished = Finished(shared);
            Writer::new(log).run_blocking(&finished.0);
        })?;
        Ok(handle)
    }

    /// Starts the writer as a task on the current runtime, for simulations: no threads, and between each write and
    /// its sync it awaits `latency` of the number of bytes written. Its calls to the disk block.
    pub fn spawn_task<F, L>(log: Log, latency: L) -> LogHandle
    where
        L: FnMut(u64) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = Shared::new(&log);
        let handle = LogHandle::new(&shared);
        tokio::spawn(async move {
            let finished = Finished(shared);
            Writer::new(log).run(&finished.0, latency).await;
        });
        handle
    }

    /// Queues the records, which are written in the order of submission and as a whole; `done` learns when they are
    /// durable, or the error. Never blocks.
    ///
    /// # Errors
    /// [`Rejected`] gives everything back when the queue is full or the log closed. A submission larger than the
    /// queue is taken when nothing else waits.
    pub fn submit(&self, records: Vec<Record>, done: Done) -> Result<(), Rejected> {
        self.owner.0.submit(records, done)
    }

    /// Keeps the committed position, which nobody waits for: it is written with the next group of records, after them,
    /// or when the log is closed. The writer is not woken.
    pub fn note_committed(&self, committed: Bytes) {
        self.owner.0.queue.lock().committed = Some(committed);
    }

    /// Waits until the queue has room, or the log is closed.
    pub async fn ready(&self) {
        self.owner.0.until(|queue| queue.closed || !queue.is_full()).await;
    }

    /// Takes no more submissions, waits until all earlier ones are done and the log is closed. Dropping the future
    /// stops the waiting, not the closing.
    pub async fn close(&self) {
        self.owner.0.close();
        self.owner.0.until(|queue| queue.finished).await;
    }

    /// Whether the disk has more room than [`super::LogOptions::reserve_bytes`], as of about a second ago at most.
    /// While it has not, the writes of clients should be refused.
    pub fn has_room(&self) -> bool {
        self.owner.0.status.has_room()
    }

    /// The counters since the log was opened.
    pub fn metrics(&self) -> &LogMetrics {
        &self.owner.0.status.metrics
    }

    fn new(shared: &Arc<Shared>) -> LogHandle {
        LogHandle { owner: Arc::new(Owner(Arc::clone(shared))) }
    }
}

impl std::fmt::Debug for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rejected")
            .field("reason", &self.reason)
            .field("records", &self.records.len())
            .finish()
    }
}

/// Closes the log when the last handle is gone.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Says that the writer is gone, however it ended.
struct Finished(Arc<Shared>);

impl Drop for Finished {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.0.queue.lock();
            queue.closed = true;
            queue.finished = true;
            std::mem::take(&mut queue.waiting)
        };
        drop(waiting);
        self.0.changed.notify_waiters();
    }
}

/// What handles and writer share.
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes a writer that is a thread.
    work_thread: Condvar,
    /// Wakes a writer that is a task.
    work_task: Notify,
    /// Wakes those who wait for the writer.
    changed: Notify,
    status: Arc<Status>,
}

struct Queue {
    waiting: VecDeque<Submission>,
    /// The last committed position that is not written yet.
    committed: Option<Bytes>,
    records: usize,
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
    closed: bool,
    finished: bool,
}

struct Submission {
    records: Vec<Record>,
    done: Done,
}

/// What the writer should do next.
enum Next {
    /// Submissions, and the committed position if there is a newer one.
    Write(VecDeque<Submission>, Option<Bytes>),
    Wait,
    End(Option<Bytes>),
}

impl Queue {
    fn is_full(&self) -> bool {
        self.records >= self.records_max || self.bytes >= self.bytes_max
    }

    fn fits(&self, records: usize, bytes: usize) -> bool {
        let (records, bytes) = (self.records.saturating_add(records), self.bytes.saturating_add(bytes));
        self.waiting.is_empty() || (records <= self.records_max && bytes <= self.bytes_max)
    }

    fn next(&mut self) -> Next {
        if !self.waiting.is_empty() {
            (self.records, self.bytes) = (0, 0);
            Next::Write(std::mem::take(&mut self.waiting), self.committed.take())
        } else if self.closed {
            Next::End(self.committed.take())
        } else {
            Next::Wait
        }
    }
}

impl Shared {
    fn new(log: &Log) -> Arc<Shared> {
        let queue = Queue {
            waiting: VecDeque::new(),
            committed: None,
            records: 0,
            bytes: 0,
            records_max: log.options.queue_records,
            bytes_max: log.options.queue_bytes,
            closed: false,
            finished: false,
        };
        Arc::new(Shared {
            queue: Mutex::new(queue),
            work_thread: Condvar::new(),
            work_task: Notify::new(),
            changed: Notify::new(),
            status: Arc::clone(&log.status),
        })
    }

    fn submit(&self, records: Vec<Record>, done: Done) -> Result<(), Rejected> {
        let bytes = records.iter().map(|record| record.encoded_len_bytes() as usize).sum();
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Rejected { reason: RejectedReason::Closed, records, done });
        }
        // An empty submission counts as a record too: it takes up space.
        let count = records.len().max(1);
        if !queue.fits(count, bytes) {
            return Err(Rejected { reason: RejectedReason::Overloaded, records, done });
        }
        queue.records += count;
        queue.bytes += bytes;
        queue.waiting.push_back(Submission { records, done });
        drop(queue);
        self.wake_writer();
        Ok(())
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.wake_writer();
        self.changed.notify_waiters();
    }

    fn wake_writer(&self) {
        self.work_thread.notify_one();
        self.work_task.notify_one();
    }

    async fn until(&self, condition: impl Fn(&Queue) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(&self.queue.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// What to do next; tells those who wait for room in the queue.
    fn next(&self) -> Next {
        let next = self.queue.lock().next();
        if matches!(next, Next::Write(..)) {
            self.changed.notify_waiters();
        }
        next
    }
}

/// The loop around a log, as a thread or as a task.
struct Writer {
    log: Log,
    room_checked: Instant,
}

/// A group of submissions, written together.
struct Group {
    submissions: VecDeque<Submission>,
    records: u64,
    started: Instant,
}

impl Writer {
    fn new(log: Log) -> Writer {
        Writer { log, room_checked: Instant::now() }
    }

    fn run_blocking(mut self, shared: &Shared) {
        loop {
            match shared.next() {
                Next::Write(submissions, committed) => {
                    if let Some(group) = self.write(submissions, committed) {
                        self.sync(group);
                    }
                }
                Next::Wait => {
                    let mut queue = shared.queue.lock();
                    if queue.waiting.is_empty() && !queue.closed {
                        shared.work_thread.wait_for(&mut queue, ROOM_CHECK_INTERVAL);
                    }
                }
                Next::End(committed) => return self.close(committed),
            }
            self.check_room();
        }
    }

    async fn run<F: Future<Output = ()>>(mut self, shared: &Shared, mut latency: impl FnMut(u64) -> F) {
        loop {
            match shared.next() {
                Next::Write(submissions, committed) => {
                    let before = self.log.metrics().written_bytes.load(Ordering::Relaxed);
                    if let Some(mut group) = self.write(submissions, committed) {
                        if mutant::is(Mutant::AckBeforeFsync) {
                            answer(std::mem::take(&mut group.submissions), &Ok(()));
                        }
                        let after = self.log.metrics().written_bytes.load(Ordering::Relaxed);
                        latency(after - before).await;
                        self.sync(group);
                    }
                }
                Next::Wait => {
                    // Elapsed or notified, it looks again.
                    let _ = tokio::time::timeout(ROOM_CHECK_INTERVAL, shared.work_task.notified()).await;
                }
                Next::End(committed) => return self.close(committed),
            }
            self.check_room();
        }
    }

    /// Writes a group, which is then to be synced; one that can't be written is told so.
    fn write(&mut self, mut submissions: VecDeque<Submission>, committed: Option<Bytes>) -> Option<Group> {
        let started = Instant::now();
        let mut records =
            Vec::with_capacity(submissions.iter().map(|one| one.records.len()).sum::<usize>() + 1);
        for submission in &mut submissions {
            records.append(&mut submission.records);
        }
        // Last, for it may speak of an entry of this group.
        records.extend(committed.map(Record::Committed));
        match self.log.write(&records) {
            Ok(()) => Some(Group { submissions, records: records.len() as u64, started }),
            Err(error) => {
                answer(submissions, &Err(error));
                None
            }
        }
    }

    fn sync(&mut self, group: Group) {
        let result = self.log.sync();
        let metrics = self.log.metrics();
        metrics.sync_us.record(micros(group.started.elapsed()));
        metrics.group_records.record(group.records);
        answer(group.submissions, &result);
    }

    fn check_room(&mut self) {
        if self.room_checked.elapsed() >= ROOM_CHECK_INTERVAL {
            self.log.check_room();
            self.room_checked = Instant::now();
        }
    }

    fn close(mut self, committed: Option<Bytes>) {
        let unwritten: Vec<Record> = committed.map(Record::Committed).into_iter().collect();
        // The committed position is a convenience: without it the log is still whole.
        if let Err(error) = self.log.write(&unwritten).and_then(|()| self.log.close()) {
            tracing::warn!(%error, "the log did not close cleanly");
        }
    }
}

fn answer(submissions: VecDeque<Submission>, result: &Result<(), Arc<LogError>>) {
    for submission in submissions {
        (submission.done)(result.clone());
    }
}
