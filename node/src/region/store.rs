//! The engine's log storage: entries in memory for reading, the write-ahead log for keeping.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use meridian_bridge::engine::{
    Entry, LogId, LogMemory, LogReader, StoredEntry, StoredLogId, StoredVote, TypeConfig, Vote, invalid_data,
};
use meridian_seam::codec;
use meridian_seam::mutant::{self, Mutant};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::log::{LogHandle, Record, Recovered, RejectedReason};

/// The durable log of a server, shared by the engine and its replication tasks.
#[derive(Clone)]
pub(super) struct Store {
    log: LogHandle,
    memory: Arc<Mutex<LogMemory>>,
}

impl Store {
    /// Takes over what the write-ahead log held when it was opened.
    pub(super) fn new(log: LogHandle, recovered: Recovered) -> io::Result<Self> {
        let mut memory = LogMemory::default();
        memory.vote = recovered.vote.as_deref().map(decode::<StoredVote>).transpose()?.map(Vote::from);
        memory.committed =
            recovered.committed.as_deref().map(decode::<StoredLogId>).transpose()?.map(LogId::from);
        if let Some((_, bytes)) = &recovered.purged {
            memory.purge(decode::<StoredLogId>(bytes)?.into());
        }
        for (_, bytes) in &recovered.entries {
            // Decoding copies the payload, so that the recovered file image can go.
            memory.push(decode::<StoredEntry>(bytes)?.into_entry()?);
        }
        Ok(Self { log, memory: Arc::new(Mutex::new(memory)) })
    }

    /// Whether nothing was ever stored: the server has not been part of a group yet.
    pub(super) fn is_pristine(&self) -> bool {
        let memory = self.memory.lock();
        memory.is_pristine()
    }

    /// The entry up to which the log has been purged.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.memory.lock().purged
    }

    /// The part that is in memory.
    pub(super) fn memory(&self) -> Arc<Mutex<LogMemory>> {
        self.memory.clone()
    }

    /// The write-ahead log.
    pub(super) fn log(&self) -> &LogHandle {
        &self.log
    }

    /// Queues records; a full queue is waited for.
    async fn submit(&self, records: Vec<Record>, done: crate::log::Done) -> io::Result<()> {
        let (mut records, mut done) = (records, done);
        loop {
            match self.log.submit(records, done) {
                Ok(()) => return Ok(()),
                Err(rejected) if rejected.reason == RejectedReason::Overloaded => {
                    (records, done) = (rejected.records, rejected.done);
                    self.log.ready().await;
                }
                Err(rejected) => return Err(io::Error::other(rejected.reason)),
            }
        }
    }

    /// Queues a record and waits until it is durable.
    async fn submit_and_wait(&self, record: Record) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        let call = Box::new(move |result: Result<(), Arc<crate::log::LogError>>| {
            // Whoever waited may be gone when the server stops.
            let _ = done.send(result);
        });
        self.submit(vec![record], call).await?;
        match durable.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::other("the log is closed")),
        }
    }
}

fn decode<T: for<'a> serde::Deserialize<'a>>(bytes: &[u8]) -> io::Result<T> {
    codec::decode(bytes).map_err(invalid_data)
}

fn encode(value: &impl serde::Serialize) -> io::Result<Bytes> {
    Ok(codec::encode(value).map_err(invalid_data)?.into())
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.memory.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        if !mutant::is(Mutant::UnsavedVote) {
            self.submit_and_wait(Record::Vote(encode(&StoredVote::from(vote))?)).await?;
        }
        self.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        let record = Record::Committed(encode(&StoredLogId::from(&committed))?);
        self.submit(vec![record], Box::new(|_| {})).await?;
        self.memory.lock().committed = Some(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut records = Vec::new();
        {
            let mut memory = self.memory.lock();
            for entry in entries {
                let payload = encode(&StoredEntry::from(&entry))?;
                records.push(Record::Entry { index: entry.log_id.index(), payload });
                memory.push(entry);
            }
        }
        let done = Box::new(move |result: Result<(), Arc<crate::log::LogError>>| {
            callback.io_completed(result.map_err(io::Error::other));
        });
        self.submit(records, done).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let index = last.map_or(0, |id| id.index() + 1);
        self.memory.lock().truncate_from(index);
        self.submit_and_wait(Record::TruncateFrom { index }).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.memory.lock().purge(id);
        let record = Record::Purged { index: id.index(), payload: encode(&StoredLogId::from(&id))? };
        // A purge that is lost is made again: nobody need wait for the disk.
        self.submit(vec![record], Box::new(|_| {})).await
    }
}
