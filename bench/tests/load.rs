//! Loads against a real server.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod region;

use meridian_bench::load::{Load, LoadReport, Operation, Shape};
use meridian_wire::{Request, Response};
use region::Region;

/// A load of one second, after which there must be no znode that was not there before.
async fn run(region: &Region, operation: Operation, connections: u32, rate: Option<u32>) -> LoadReport {
    let shape =
        Shape { connections, outstanding: 1, size: 10, znodes: 5, seconds: 1, warm_up: 0, threads: 1 };
    let servers = [region.server.client_address().to_string()];
    let report = Load { operation, shape, rate }.run(&servers, &[std::process::id()]).await.unwrap();
    let mut client = region.connect().await;
    let left = client.call(&Request::GetChildren { path: "/", watch: false }).await.unwrap();
    assert_eq!(left.response().unwrap(), Response::Names(vec!["zookeeper"]), "{operation}");
    client.close().await.unwrap();
    report
}

#[tokio::test]
async fn every_operation_is_measured_and_leaves_nothing_behind() {
    let region = Region::start().await;
    for operation in ["get", "set", "create", "mixed:50"] {
        let report = run(&region, operation.parse().unwrap(), 1, None).await;
        assert_eq!((report.errors, report.unsent), (0, 0));
        assert!(report.throughput > 0.0 && report.server_cpu_us_per_operation.is_some());
    }
    region.server.shutdown().await;
}

/// What was due and had no room is told, and counts as slow.
#[tokio::test]
async fn an_open_loop_that_falls_behind_says_so() {
    let region = Region::start().await;
    let report = run(&region, "set".parse().unwrap(), 2, Some(10_000_000)).await;
    assert!(report.unsent > 0 && report.latency_us.p50 > 100_000, "{report:?}");
    region.server.shutdown().await;
}
