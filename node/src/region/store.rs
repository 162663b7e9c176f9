//! The engine's log storage: the write-ahead log for keeping and for reading what is older, memory for reading what
//! is new.

use std::fmt;
use std::io;
use std::ops::{RangeBounds, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use meridian_bridge::engine::{
    Entry, Found, LogId, LogMemory, StoredEntry, StoredLogId, StoredVote, TypeConfig, Vote, invalid_data,
};
use meridian_seam::background::Background;
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::{codec, limits};
use openraft::RaftLogReader;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::log::{LogError, LogHandle, LogReader, Record, Recovered, RejectedReason};

/// The durable log of a server, shared by the engine and its replication tasks.
#[derive(Clone)]
pub(super) struct Store {
    log: LogHandle,
    reader: Reader,
    /// Bytes of the newest entries that are kept in memory.
    bytes_in_memory: usize,
}

impl Store {
    /// Takes over what the write-ahead log held when it was opened.
    pub(super) fn new(
        log: LogHandle,
        files: LogReader,
        recovered: Recovered,
        bytes_in_memory: usize,
        background: Arc<dyn Background>,
    ) -> io::Result<Self> {
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
        let reader = Reader { memory: Arc::new(Mutex::new(memory)), files, background };
        Ok(Self { log, reader, bytes_in_memory })
    }

    /// Whether nothing was ever stored: the server has not been part of a group yet.
    pub(super) fn is_pristine(&self) -> bool {
        self.reader.memory.lock().is_pristine()
    }

    /// The entry up to which the log has been purged.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.reader.memory.lock().purged
    }

    /// The part that is in memory.
    pub(super) fn memory(&self) -> Arc<Mutex<LogMemory>> {
        self.reader.memory.clone()
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
        let call = Box::new(move |result: Result<(), Arc<LogError>>| {
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

/// Reads entries for the engine and its replication tasks: from memory, or from the disk.
#[derive(Clone)]
pub(super) struct Reader {
    memory: Arc<Mutex<LogMemory>>,
    files: LogReader,
    background: Arc<dyn Background>,
}

impl Reader {
    /// The entries of a range of indices, at most `bytes_max` of them but at least one if there is one.
    async fn entries(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let Found { forgotten, entries: newest } = self.memory.lock().range(&range, bytes_max);
            let Some(forgotten) = forgotten else { return Ok(newest) };
            if let Some(mut entries) = self.read(forgotten).await? {
                entries.extend(newest);
                return Ok(entries);
            }
            // Purged meanwhile, which memory knew first.
        }
    }

    async fn read(&self, indices: RangeInclusive<u64>) -> io::Result<Option<Vec<Entry>>> {
        let (done, read) = oneshot::channel();
        let files = self.files.clone();
        let work = Box::new(move || {
            // Whoever wanted them may be gone when the server stops.
            let _ = done.send(files.read(indices));
        });
        self.background.run(work).await?;
        let Some(entries) = read.await.map_err(io::Error::other)?.map_err(io::Error::other)? else {
            return Ok(None);
        };
        let decoded = entries.iter().map(|(_, bytes)| decode::<StoredEntry>(bytes)?.into_entry());
        decoded.collect::<io::Result<_>>().map(Some)
    }
}

impl RaftLogReader<TypeConfig> for Reader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.entries(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start..end, limits::BATCH_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory.lock().vote)
    }
}

fn decode<T: for<'a> serde::Deserialize<'a>>(bytes: &[u8]) -> io::Result<T> {
    codec::decode(bytes).map_err(invalid_data)
}

fn encode(value: &impl serde::Serialize) -> io::Result<Bytes> {
    Ok(codec::encode(value).map_err(invalid_data)?.into())
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.reader.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Reader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        if !mutant::is(Mutant::UnsavedVote) {
            self.submit_and_wait(Record::Vote(encode(&StoredVote::from(vote))?)).await?;
        }
        self.reader.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.log.note_committed(encode(&StoredLogId::from(&committed))?);
        self.reader.memory.lock().committed = Some(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.reader.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let (mut records, mut last) = (Vec::new(), 0);
        {
            let mut memory = self.reader.memory.lock();
            for entry in entries {
                let payload = encode(&StoredEntry::from(&entry))?;
                last = entry.log_id.index();
                records.push(Record::Entry { index: last, payload });
                memory.push(entry);
            }
        }
        let (memory, bytes_in_memory) = (self.reader.memory.clone(), self.bytes_in_memory);
        let done = Box::new(move |result: Result<(), Arc<LogError>>| {
            if result.is_ok() {
                memory.lock().forget(last, bytes_in_memory);
            }
            callback.io_completed(result.map_err(io::Error::other));
        });
        self.submit(records, done).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let index = last.map_or(0, |id| id.index() + 1);
        self.reader.memory.lock().truncate_from(index);
        self.submit_and_wait(Record::TruncateFrom { index }).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.reader.memory.lock().purge(id);
        let record = Record::Purged { index: id.index(), payload: encode(&StoredLogId::from(&id))? };
        // A purge that is lost is made again: nobody need wait for the disk.
        self.submit(vec![record], Box::new(|_| {})).await
    }
}
