//! Random histories, with a crash after any number of changes to the disk.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use meridian_seam::disk::Disk;
use meridian_seam::disk::testing::MemoryDisk;
use proptest::prelude::*;

use super::{Model, small};
use crate::log::{Log, Record};

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, bytes: usize },
    TruncateLast(u64),
    Vote,
    Committed,
    PurgeAllBut(u64),
    PurgeBeyond(u64),
    Sync,
    Close,
}

/// A life of the server: what it does, and how it ends.
#[derive(Debug, Clone)]
struct Life {
    steps: Vec<Step>,
    /// Records per write.
    group: usize,
    /// Changes to the disk after which the power fails in recovery, and later.
    changes: (Option<u64>, u64),
    /// The sync that fails, counted in steps.
    failed_sync: Option<usize>,
    /// Whether the kernel dies too, not just the server.
    power_loss: bool,
    /// What of the unsynced survives.
    seed: u64,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..5_u64, 0..400_usize).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => (1..6_u64).prop_map(Step::TruncateLast),
        1 => Just(Step::Vote),
        1 => Just(Step::Committed),
        1 => (0..8_u64).prop_map(Step::PurgeAllBut),
        1 => (1..5_u64).prop_map(Step::PurgeBeyond),
        5 => Just(Step::Sync),
        1 => Just(Step::Close),
    ]
}

fn life() -> impl Strategy<Value = Life> {
    (
        prop::collection::vec(step(), 1..40),
        1..6_usize,
        (prop::option::of(0..6_u64), 0..120_u64),
        prop::option::weighted(0.2, 0..40_usize),
        prop::bool::weighted(0.8),
        any::<u64>(),
    )
        .prop_map(|(steps, group, changes, failed_sync, power_loss, seed)| Life {
            steps,
            group,
            changes,
            failed_sync,
            power_loss,
            seed,
        })
}

/// The log's possible states since the last sync, newest last, and names for payloads.
struct History {
    states: Vec<Model>,
    written: u64,
}

impl History {
    fn newest(&self) -> &Model {
        self.states.last().unwrap()
    }

    fn payload(&mut self, bytes: usize) -> Bytes {
        self.written += 1;
        let mut payload = format!("{:08}", self.written).into_bytes();
        payload.resize(bytes.max(8), b'.');
        payload.into()
    }

    fn next_index(&self) -> u64 {
        let model = self.newest();
        let last =
            model.entries.back().map(|(index, _)| *index).or(model.purged.as_ref().map(|(index, _)| *index));
        last.map_or(1, |last| last + 1)
    }

    /// The records of a step, taken into account.
    fn records(&mut self, step: &Step) -> Vec<Record> {
        let next = self.next_index();
        let records = match step {
            Step::Append { count, bytes } => (next..next + count)
                .map(|index| Record::Entry { index, payload: self.payload(*bytes) })
                .collect(),
            Step::TruncateLast(count) => {
                let purged = self.newest().purged.as_ref().map_or(0, |(index, _)| index + 1);
                vec![Record::TruncateFrom { index: next.saturating_sub(*count).max(purged) }]
            }
            Step::Vote => vec![Record::Vote(self.payload(20))],
            Step::Committed => vec![Record::Committed(self.payload(20))],
            Step::PurgeAllBut(count) => {
                let purged = self.newest().purged.as_ref().map_or(0, |(index, _)| *index);
                vec![self.purge((next - 1).saturating_sub(*count).max(purged))]
            }
            Step::PurgeBeyond(count) => vec![self.purge(next + count)],
            Step::Sync | Step::Close => vec![],
        };
        for record in &records {
            let mut model = self.newest().clone();
            model.apply(record);
            self.states.push(model);
        }
        records
    }

    fn purge(&mut self, index: u64) -> Record {
        Record::Purged { index, payload: self.payload(10) }
    }

    fn synced(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }
}

/// A stream of numbers out of a seed.
fn chooser(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    }
}

/// Runs the steps until they are done or the disk fails.
fn live(disk: &MemoryDisk, mut log: Log, life: &Life, history: &mut History) {
    let mut run = || {
        for (number, step) in life.steps.iter().enumerate() {
            for group in history.records(step).chunks(life.group) {
                log.write(group)?;
            }
            if life.failed_sync == Some(number) {
                disk.fail_next_sync();
            }
            if matches!(step, Step::Sync | Step::Close) {
                log.sync()?;
                history.synced();
            }
            if matches!(step, Step::Close) {
                break;
            }
        }
        Ok(())
    };
    match run() {
        Ok(()) if matches!(life.steps.last(), Some(Step::Close)) => drop(log.close()),
        Ok(()) => {}
        Err(error) => {
            let again = log.sync().unwrap_err();
            assert!(Arc::ptr_eq(&error, &again), "{again} after {error}");
        }
    }
}

fn end(disk: &MemoryDisk, life: &Life) {
    if life.power_loss {
        disk.crash(chooser(life.seed));
    } else {
        disk.restore_power();
    }
}

fn run(lives: &[Life]) {
    let disk = MemoryDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let open = || Log::open(Arc::clone(&shared), Path::new("/log"), small());
    let mut history = History { states: vec![Model::default()], written: 0 };
    for life in lives {
        if let Some(changes) = life.changes.0 {
            disk.cut_power_after(changes);
            drop(open());
            end(&disk, life);
        }
        let (log, recovered) = open().unwrap_or_else(|error| panic!("{error}"));
        let recovered = Model::from(recovered);
        assert!(
            history.states.contains(&recovered),
            "recovered {recovered:#?}\nout of {:#?}",
            history.states
        );
        history.states = vec![recovered];
        disk.cut_power_after(life.changes.1);
        live(&disk, log, life, &mut history);
        end(&disk, life);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// What was synced is there, in order, and what was not synced is there up to some record and no further; also
    /// after several crashes, in recovery too, after failed syncs, and with later writes over torn ones.
    #[test]
    fn a_crash_leaves_a_prefix_that_holds_all_that_was_synced(lives in prop::collection::vec(life(), 2..6)) {
        run(&lives);
    }
}
