//! Disks that are full, fail to sync, or give back something else than was written: the server concerned says
//! so and does no harm, and the region goes on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meridian_node::server::{Server, ServerOptions};
use meridian_seam::Environment;
use meridian_seam::disk::Disk;
use meridian_seam::disk::testing::MemoryDisk;
use meridian_wire::{CreateMode, ErrorCode};

use crate::raw::RawClient;
use crate::region::{TestRegion, eventually};

/// Small segments and a small reserve, so that little is much.
fn small(options: &mut ServerOptions) {
    options.region.storage.log.segment_bytes = 256 << 10;
    options.region.storage.log.reserve_bytes = 1 << 20;
}

/// Three voters, each on a disk of its own in memory.
async fn three() -> (TestRegion, Vec<MemoryDisk>) {
    let mut region = TestRegion::prepare(3, 0, small);
    let disks: Vec<MemoryDisk> = (0..3).map(|_| MemoryDisk::new()).collect();
    for (server, disk) in (1..).zip(&disks) {
        start_on(&mut region, server, disk).await.unwrap();
    }
    region.leader().await;
    (region, disks)
}

async fn start_on(region: &mut TestRegion, server: u64, disk: &MemoryDisk) -> std::io::Result<()> {
    let environment = Environment { disk: Arc::new(disk.clone()), ..Environment::production() };
    let started = Server::start(environment, region.options(server)).await?;
    region.insert(server, started);
    Ok(())
}

fn index(server: u64) -> usize {
    usize::try_from(server).unwrap() - 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_nothing_else_until_there_is_room() {
    let (region, disks) = three().await;
    let leader = region.leader().await;
    let mut client = RawClient::connect(region.address(leader)).await;
    client.create("/before", CreateMode::Persistent).await.unwrap();
    for disk in &disks {
        disk.set_capacity_bytes(Some(2 << 20));
    }
    // The room is asked for now and then.
    let mut refused = 0;
    eventually("writes are refused", async || {
        refused = if client.set("/before", &[b'x'; 10_000]).await == ErrorCode::SystemError {
            refused + 1
        } else {
            0
        };
        refused > 3
    })
    .await;
    assert_eq!(client.get("/before", false).await.unwrap().len(), 10_000);
    for disk in &disks {
        disk.set_capacity_bytes(None);
    }
    eventually("writes are taken again", async || client.set("/before", b"after").await == ErrorCode::Ok)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_can_t_sync_steps_aside_and_nothing_acknowledged_is_lost() {
    let (mut region, disks) = three().await;
    let leader = region.leader().await;
    let other = (1..=3).find(|server| *server != leader).unwrap();
    let mut client = RawClient::connect(region.address(other)).await;
    client.create("/counter", CreateMode::Persistent).await.unwrap();
    disks[index(leader)].fail_next_sync();
    for _ in 0..20 {
        assert_eq!(client.set("/counter", b"x").await, ErrorCode::Ok);
    }
    let mut failure = region.server(leader).region().failure();
    let failed = tokio::time::timeout(Duration::from_secs(20), failure.wait_for(Option::is_some)).await;
    assert!(failed.unwrap().unwrap().is_some(), "it knows that it can take no further part");
    // It comes back as after a crash, with what was durable.
    region.stop(leader).await;
    disks[index(leader)].crash(|_| 0);
    start_on(&mut region, leader, &disks[index(leader)]).await.unwrap();
    eventually("it has what was acknowledged", async || {
        let view = region.server(leader).region().view();
        view.state.tree.get("/counter").is_some_and(|znode| znode.times.version == 20)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_damaged_log_does_not_start_and_says_what_to_do() {
    let (mut region, mut disks) = three().await;
    let leader = region.leader().await;
    let damaged = (1..=3).find(|server| *server != leader).unwrap();
    let mut client = RawClient::connect(region.address(leader)).await;
    for i in 0..50 {
        client.create(&format!("/znode-{i}"), CreateMode::Persistent).await.unwrap();
    }
    eventually("everything is there", async || {
        region.server(damaged).region().view().state.tree.get("/znode-49").is_some()
    })
    .await;
    let log = region.options(damaged).region.data_dir.join("log");
    region.stop(damaged).await;
    let segment = log.join("0000000000000001.log");
    // In the middle of what was acknowledged, with more behind it.
    assert!(disks[index(damaged)].flip_bit(&segment, 2_000, 3));
    let error = start_on(&mut region, damaged, &disks[index(damaged)]).await.unwrap_err().to_string();
    assert!(error.contains("0000000000000001.log") && error.contains("Restore it"), "{error}");
    assert_eq!(client.set("/znode-0", b"goes on").await, ErrorCode::Ok);
    // With an empty disk it comes back by itself.
    disks[index(damaged)] = MemoryDisk::new();
    start_on(&mut region, damaged, &disks[index(damaged)]).await.unwrap();
    eventually("it is up to date and votes", async || {
        let roster = region.server(leader).region().roster();
        let state = &region.server(damaged).region().view().state;
        state.tree.get("/znode-49").is_some() && roster.settled && roster.voters.contains(&damaged)
    })
    .await;
    assert!(disks[index(damaged)].read(Path::new(&segment)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_damaged_snapshot_starts_from_an_older_one_and_the_log() {
    let often = |options: &mut ServerOptions| options.region.storage.entries_per_snapshot = 10;
    let mut region = TestRegion::prepare(1, 0, often);
    let disk = MemoryDisk::new();
    start_on(&mut region, 1, &disk).await.unwrap();
    region.leader().await;
    let mut client = RawClient::connect(region.address(1)).await;
    for i in 0..50 {
        client.create(&format!("/znode-{i}"), CreateMode::Persistent).await.unwrap();
    }
    let dir = region.options(1).region.data_dir.join("snapshots");
    eventually("there are two snapshots", async || disk.list(&dir).unwrap().len() == 2).await;
    region.stop(1).await;
    let newest =
        disk.list(&dir).unwrap().into_iter().filter(|name| name.ends_with(".snapshot")).max().unwrap();
    // In its body, behind what is looked at first.
    assert!(disk.flip_bit(&dir.join(newest), 300, 3));
    start_on(&mut region, 1, &disk).await.unwrap();
    eventually("everything is there", async || {
        let view = region.server(1).region().view();
        (0..50).all(|i| view.state.tree.get(&format!("/znode-{i}")).is_some())
    })
    .await;
    let mut client = RawClient::connect(region.address(1)).await;
    client.create("/after", CreateMode::Persistent).await.unwrap();
}
