//! What runs beside the tasks: work that blocks, and the log's writer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

/// Where blocking work runs.
pub trait Background: Send + Sync + 'static {
    /// Runs work that blocks, such as the writing of a snapshot; done when the work is.
    fn run(&self, work: Work) -> BoxFuture<'static, io::Result<()>>;

    /// Blocks the work for a time, so that what clients wait for has the processors and the disk meanwhile.
    fn pause(&self, time: Duration);

    /// How the writer of a log runs.
    fn log_writer(&self) -> LogWriter;
}

/// Work that blocks.
pub type Work = Box<dyn FnOnce() + Send>;

/// How the writer of a log runs.
pub enum LogWriter {
    /// As a thread of its own.
    Thread,
    /// As a task that waits between a write and its sync.
    Task(SyncTime),
}

/// The time that the sync of so many bytes takes.
pub type SyncTime = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// Threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads;

impl Background for Threads {
    fn run(&self, work: Work) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(async move { tokio::task::spawn_blocking(work).await.map_err(io::Error::other) })
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn log_writer(&self) -> LogWriter {
        LogWriter::Thread
    }
}
