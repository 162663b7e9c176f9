//! The engine's state machine: applies committed entries to the region's state, publishes a view of it
//! after each, and keeps snapshots.

use std::io::{self, BufReader, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{Stream, StreamExt};
use meridian_bridge::engine::{
    LogId, Members, Payload, StoredLogId, StoredMembers, TypeConfig, invalid_data,
};
use meridian_seam::Environment;
use meridian_seam::clock::millis;
use meridian_seam::codec;
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{RegionMetrics, Sink};
use crate::snapshot::{SnapshotId, SnapshotStore};
use crate::txn::{self, Effects, Me, Position, State};

/// Snapshots kept on disk: the newest, and one to fall back on if it turns out damaged.
const SNAPSHOTS_KEPT: usize = 2;

/// The writing of a snapshot rests so many times as long as it works: clients' writes need the processors and the disk
/// too. With a million znodes and all the writes that two cores bear, the 99th percentile is 20 ms so and 26 ms
/// without rest.
const PAUSE_SHARE: u32 = 3;

/// A consistent view of a region's state, as of one entry of its log.
#[derive(Clone, Debug)]
pub struct View {
    /// The state.
    pub state: State,
    /// The entry applied last.
    pub position: Position,
}

/// The newest snapshot of a server that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) id: SnapshotId,
    /// The zxid that its state has reached.
    pub(super) zxid: i64,
}

/// The newest snapshot, shared between those that save them and those that ask. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LastSaved(Arc<Mutex<Option<Saved>>>);

impl LastSaved {
    pub(super) fn get(&self) -> Option<Saved> {
        *self.0.lock()
    }

    /// One may be written while a newer one comes from another server.
    fn note(&self, saved: Saved) {
        let mut last = self.0.lock();
        if last.is_none_or(|last| last.id <= saved.id) {
            *last = Some(saved);
        }
    }
}

pub(super) struct Machine {
    view: View,
    applied: Option<LogId>,
    members: Members,
    me: Me,
    sink: Arc<dyn Sink>,
    snapshots: SnapshotStore,
    last_saved: LastSaved,
    metrics: Arc<RegionMetrics>,
    environment: Environment,
}

/// What a snapshot file says about itself in the engine's terms.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredMeta {
    pub(super) last: Option<StoredLogId>,
    pub(super) members: StoredMembers,
}

impl StoredMeta {
    pub(super) fn new(meta: &SnapshotMetaOf<TypeConfig>) -> Self {
        Self {
            last: meta.last_log_id.as_ref().map(StoredLogId::from),
            members: (&meta.last_membership).into(),
        }
    }

    pub(super) fn into_meta(self) -> io::Result<SnapshotMetaOf<TypeConfig>> {
        Ok(SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.last.map(LogId::from),
            last_membership: self.members.into_members()?,
        })
    }

    pub(super) fn id(&self) -> SnapshotId {
        let last = self.last.unwrap_or(StoredLogId { term: 0, index: 0 });
        SnapshotId { index: last.index, term: last.term }
    }
}

impl Machine {
    /// A machine that stands at the newest usable snapshot. An older one than the newest is usable only if
    /// the log still has every entry after it.
    pub(super) fn open(
        state: State,
        me: Me,
        snapshots: SnapshotStore,
        purged: Option<LogId>,
        sink: Arc<dyn Sink>,
        metrics: Arc<RegionMetrics>,
        environment: Environment,
    ) -> io::Result<Self> {
        let view = View { state, position: Position::default() };
        let mut machine = Self {
            view,
            applied: None,
            members: Members::default(),
            me,
            sink,
            snapshots,
            last_saved: LastSaved::default(),
            metrics,
            environment,
        };
        let needed = purged.map_or(0, |id| id.index());
        for id in machine.snapshots.candidates().map_err(io::Error::other)? {
            if id.index < needed {
                break;
            }
            match machine.load(id.index) {
                Ok(()) => {
                    machine.sink.reset(Arc::new(machine.view.clone()));
                    return Ok(machine);
                }
                Err(error) => {
                    tracing::error!(%error, index = id.index, "snapshot is unusable, trying an older one")
                }
            }
        }
        if let Some(purged) = purged {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the log starts after entry {purged}, and no usable snapshot reaches that far; restore this server \
                     from the other members: stop it, move its data directory away and start it again"
                ),
            ));
        }
        machine.sink.reset(Arc::new(machine.view.clone()));
        Ok(machine)
    }

    /// The newest snapshot, now and later.
    pub(super) fn last_saved(&self) -> LastSaved {
        self.last_saved.clone()
    }

    fn load(&mut self, index: u64) -> io::Result<()> {
        let reader = self.snapshots.read(index).map_err(io::Error::other)?;
        let id = reader.id();
        let stored: StoredMeta = codec::decode(reader.meta()).map_err(invalid_data)?;
        let meta = stored.into_meta()?;
        let mut body = BufReader::new(reader);
        let state = txn::snapshot::read_region(&mut body).map_err(io::Error::other)?;
        body.into_inner().check_rest().map_err(io::Error::other)?;
        let position = meta.last_log_id.map_or_else(Position::default, position_of);
        self.last_saved.note(Saved { id, zxid: state.zxid });
        self.view = View { state, position };
        self.applied = meta.last_log_id;
        self.members = meta.last_membership;
        Ok(())
    }
}

fn position_of(id: LogId) -> Position {
    Position { term: id.committed_leader_id().term, index: id.index() }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotId;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Members), io::Error> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let id = entry.log_id;
            let mut effects = Effects::default();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(members) => self.members = Members::new(Some(id), members),
                EntryPayload::Normal(Payload(batch)) => {
                    self.view.state.apply(id.committed_leader_id().term, &batch, self.me, &mut effects);
                    let age_ms = self.environment.clock.unix_ms().saturating_sub(self.view.state.time_ms);
                    self.metrics.applied(age_ms);
                }
            }
            self.applied = Some(id);
            self.view.position = position_of(id);
            let outcomes = std::mem::take(&mut effects.outcomes);
            self.sink.applied(Arc::new(self.view.clone()), effects);
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            environment: self.environment.clone(),
            state: self.view.state.clone(),
            meta: SnapshotMetaOf::<TypeConfig> {
                last_log_id: self.applied,
                last_membership: self.members.clone(),
            },
            snapshots: self.snapshots.clone(),
            last_saved: self.last_saved.clone(),
            metrics: self.metrics.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotId,
    ) -> Result<(), io::Error> {
        tracing::info!(index = snapshot.index, "installing a snapshot");
        self.load(snapshot.index)?;
        self.metrics.snapshots_installed.fetch_add(1, Ordering::Relaxed);
        self.members = meta.last_membership.clone();
        self.sink.reset(Arc::new(self.view.clone()));
        self.snapshots.retain(SNAPSHOTS_KEPT).map_err(io::Error::other)?;
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotId>>, io::Error> {
        let Some(Saved { id, .. }) = self.last_saved.get() else { return Ok(None) };
        let reader = self.snapshots.read(id.index).map_err(io::Error::other)?;
        let meta = codec::decode::<StoredMeta>(reader.meta()).map_err(invalid_data)?.into_meta()?;
        Ok(Some(SnapshotOf::<TypeConfig, SnapshotId> { meta, snapshot: reader.id() }))
    }
}

/// Writes a snapshot of a view while the machine goes on.
pub(super) struct Builder {
    environment: Environment,
    state: State,
    meta: SnapshotMetaOf<TypeConfig>,
    snapshots: SnapshotStore,
    last_saved: LastSaved,
    metrics: Arc<RegionMetrics>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotId;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotId>, io::Error> {
        let clock = self.environment.clock.clone();
        let started = clock.monotonic();
        let written = self.write().await;
        if written.is_ok() {
            self.metrics.snapshot_ms.record(millis(clock.monotonic().saturating_sub(started)));
        } else {
            self.metrics.snapshots_failed.fetch_add(1, Ordering::Relaxed);
        }
        written
    }
}

impl Builder {
    async fn write(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotId>, io::Error> {
        let (state, snapshots, stored) =
            (self.state.clone(), self.snapshots.clone(), StoredMeta::new(&self.meta));
        let id = stored.id();
        let Environment { background, clock, .. } = self.environment.clone();
        let pause = {
            let (background, mut resumed) = (background.clone(), clock.monotonic());
            Box::new(move || {
                background.pause((clock.monotonic() - resumed) * PAUSE_SHARE);
                resumed = clock.monotonic();
            })
        };
        let writing = move || -> io::Result<SnapshotId> {
            let meta = codec::encode(&stored).map_err(invalid_data)?.into();
            let mut writer = snapshots.create(id.index, id.term, meta).map_err(io::Error::other)?;
            writer.throttle(pause);
            let mut out = BufWriter::with_capacity(1 << 18, writer);
            txn::snapshot::write_region(&state, &mut out).map_err(io::Error::other)?;
            out.flush()?;
            let writer = out.into_inner().map_err(|e| e.into_error())?;
            let id = writer.finish().map_err(io::Error::other)?;
            snapshots.retain(SNAPSHOTS_KEPT).map_err(io::Error::other)?;
            Ok(id)
        };
        let (done, written) = oneshot::channel();
        let work = Box::new(move || {
            // Whoever wanted the snapshot may be gone when the server stops.
            let _ = done.send(writing());
        });
        background.run(work).await?;
        let id = written.await.map_err(io::Error::other)??;
        self.last_saved.note(Saved { id, zxid: self.state.zxid });
        tracing::info!(index = id.index, "snapshot written");
        Ok(SnapshotOf::<TypeConfig, SnapshotId> { meta: self.meta.clone(), snapshot: id })
    }
}
