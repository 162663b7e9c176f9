use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use meridian_seam::disk::testing::MemoryDisk;
use meridian_seam::disk::{Disk, RealDisk};
use parking_lot::Mutex;

use super::{Record, entries, entry, indices, on_both_disks, small};
use crate::log::{Done, Log, LogError, LogHandle, LogOptions, RejectedReason};

type Answers = Arc<Mutex<Vec<(u64, Result<(), Arc<LogError>>)>>>;

/// A call-back that notes its number and what it was told.
fn note(answers: &Answers, number: u64) -> Done {
    let answers = Arc::clone(answers);
    Box::new(move |result| answers.lock().push((number, result)))
}

fn numbers(answers: &Answers) -> Vec<u64> {
    answers.lock().iter().map(|(number, _)| *number).collect()
}

fn memory_log() -> (MemoryDisk, Arc<dyn Disk>, Log) {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let (log, _) = Log::open(Arc::clone(&disk), Path::new("/log"), small()).unwrap();
    (memory, disk, log)
}

#[test]
fn the_thread_answers_in_order_and_drains_when_dropped() {
    on_both_disks(|disk, dir| {
        let (log, _) =
            Log::open(Arc::clone(&disk), dir, LogOptions { queue_records: 1000, ..small() }).unwrap();
        let handle = LogHandle::spawn_thread(log).unwrap();
        let (sender, answers) = mpsc::channel();
        for index in 1..=200 {
            let sender = sender.clone();
            let mut submission = Some((
                entries(index..=index),
                Box::new(move |result: Result<_, _>| {
                    sender.send((index, result.is_ok())).unwrap();
                }) as Done,
            ));
            while let Some((records, done)) = submission.take() {
                if let Err(rejected) = handle.submit(records, done) {
                    assert_eq!(rejected.reason, RejectedReason::Overloaded);
                    submission = Some((rejected.records, rejected.done));
                    std::thread::yield_now();
                }
            }
        }
        drop((handle, sender));
        assert!(answers.iter().eq((1..=200).map(|index| (index, true))));
        // The writer lets go of the directory a moment after its last answer.
        let recovered = loop {
            match Log::open(Arc::clone(&disk), dir, small()) {
                Ok((_, recovered)) => break recovered,
                Err(LogError::Locked { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(indices(&recovered), (1..=200).collect::<Vec<_>>());
    });
}

#[tokio::test(start_paused = true)]
async fn what_arrives_during_a_sync_is_the_next_group() {
    let (_, _, log) = memory_log();
    let handle = LogHandle::spawn_task(log, |_| tokio::time::sleep(Duration::from_millis(5)));
    let answers = Answers::default();
    handle.submit(entries(1..=1), note(&answers, 1)).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    for index in 2..=7 {
        handle.submit(entries(index..=index), note(&answers, index)).unwrap();
    }
    assert_eq!(numbers(&answers), [0; 0]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(numbers(&answers), [1]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(numbers(&answers), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(handle.metrics().syncs.load(Ordering::Relaxed), 2);
    assert_eq!(handle.metrics().sync_us.distribution().max, 5000);
    assert_eq!(handle.metrics().group_records.distribution().max, 6);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_gives_the_submission_back() {
    let (_, _, log) = memory_log();
    let handle = LogHandle::spawn_task(log, |_| tokio::time::sleep(Duration::from_millis(5)));
    let answers = Answers::default();
    for index in 1..=8 {
        handle.submit(entries(index..=index), note(&answers, index)).unwrap();
    }
    let rejected = handle.submit(entries(9..=9), note(&answers, 9)).unwrap_err();
    assert_eq!(rejected.reason, RejectedReason::Overloaded);
    assert_eq!(rejected.records, entries(9..=9));
    handle.ready().await;
    handle.submit(rejected.records, rejected.done).unwrap();
    // Alone, even what is longer than the queue is taken.
    handle.ready().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    handle.submit(vec![entry(10, vec![1; 10_000])], note(&answers, 10)).unwrap();
    assert!(handle.submit(vec![Record::Vote("v".into())], note(&answers, 11)).is_err());
    handle.close().await;
    assert_eq!(numbers(&answers), (1..=10).collect::<Vec<_>>());
    let rejected = handle.submit(vec![], note(&answers, 12)).unwrap_err();
    assert_eq!(rejected.reason, RejectedReason::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_committed_position_rides_along() {
    let (_, disk, log) = memory_log();
    let handle = LogHandle::spawn_task(log, |_| std::future::ready(()));
    let answers = Answers::default();
    handle.note_committed("1".into());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(handle.metrics().syncs.load(Ordering::Relaxed), 0);
    handle.submit(entries(1..=1), note(&answers, 2)).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(handle.metrics().syncs.load(Ordering::Relaxed), 1);
    assert_eq!(handle.metrics().records.load(Ordering::Relaxed), 2);
    handle.note_committed("2".into());
    handle.close().await;
    let (_, recovered) = Log::open(disk, Path::new("/log"), small()).unwrap();
    assert_eq!(recovered.committed, Some("2".into()));
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_sync_every_submission_gets_the_same_error() {
    let (memory, _, log) = memory_log();
    let handle = LogHandle::spawn_task(log, |_| std::future::ready(()));
    let answers = Answers::default();
    memory.fail_next_sync();
    handle.submit(entries(1..=1), note(&answers, 1)).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    handle.submit(entries(2..=2), note(&answers, 2)).unwrap();
    handle.submit(vec![Record::Vote("v".into())], note(&answers, 3)).unwrap();
    handle.close().await;
    let answers = answers.lock();
    let errors: Vec<_> = answers.iter().map(|(_, result)| result.as_ref().unwrap_err()).collect();
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|error| error.is_final() && Arc::ptr_eq(error, errors[0])));
}

#[tokio::test(start_paused = true)]
async fn room_is_noticed_without_writes() {
    let (memory, _, log) = memory_log();
    let handle = LogHandle::spawn_task(log, |_| std::future::ready(()));
    assert!(handle.has_room());
    memory.set_capacity_bytes(Some(3000));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!handle.has_room());
    memory.set_capacity_bytes(None);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(handle.has_room());
}

/// Prints how many records a second go through. `cargo test --release -- --ignored throughput --nocapture`
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let directory = tempfile::tempdir_in(".").unwrap();
    for clients in [1, 16, 64, 256, 4096] {
        let dir = directory.path().join(clients.to_string());
        let (log, _) = Log::open(Arc::new(RealDisk), &dir, LogOptions::default()).unwrap();
        let handle = LogHandle::spawn_thread(log).unwrap();
        let (sender, answers) = mpsc::channel();
        let submit = |index| {
            let sender = sender.clone();
            let done = Box::new(move |result: Result<(), _>| {
                result.unwrap();
                sender.send(()).unwrap_or_default();
            });
            handle.submit(vec![entry(index, vec![7; 200])], done).unwrap();
        };
        (1..=clients).for_each(submit);
        let started = std::time::Instant::now();
        let mut index = clients;
        while started.elapsed() < Duration::from_secs(3) {
            answers.recv().unwrap();
            index += 1;
            submit(index);
        }
        let seconds = started.elapsed().as_secs_f64();
        let syncs = handle.metrics().syncs.load(Ordering::Relaxed);
        let rates = ((index - clients) as f64 / seconds, syncs as f64 / seconds);
        println!("{clients} clients: {:.0} records/s, {:.0} syncs/s", rates.0, rates.1);
    }
}
