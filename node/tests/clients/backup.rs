//! Snapshots and restores while a region runs.

use std::net::SocketAddr;

use meridian_wire::{CreateMode, ErrorCode, EventType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::RawClient;
use crate::region::{TestRegion, eventually};

/// The status and the body of an answer.
async fn http(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    let kind = "content-type: application/octet-stream";
    let head = format!("{method} {path} HTTP/1.0\r\nhost: x\r\n{kind}\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_goes_back_to_a_snapshot_while_it_serves() {
    let region = TestRegion::start(3, 1).await;
    let follower = region.leader().await % 3 + 1;
    let admin = region.server(follower).admin_address().unwrap();
    let mut client = RawClient::connect(region.address(follower)).await;
    for i in 0..200 {
        client.create(&format!("/n{i}"), CreateMode::Persistent).await.unwrap();
    }
    client.create("/mine", CreateMode::Ephemeral).await.unwrap();
    let (status, taken) = http(admin, "GET", "/commands/snapshot?streaming=true", b"").await;
    assert_eq!(status, 200);
    assert_eq!(client.set("/n7", b"changed").await, ErrorCode::Ok);
    client.create("/new", CreateMode::Persistent).await.unwrap();
    client.get("/new", true).await.unwrap();
    client.get("/n7", true).await.unwrap();

    for damaged in [&taken[..taken.len() / 2], &[], b"nonsense"] {
        let (status, answer) = http(admin, "POST", "/commands/restore", damaged).await;
        assert_eq!(status, 400, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(client.get("/new", false).await.is_ok(), "what is not whole changes nothing");

    let (status, answer) = http(admin, "POST", "/commands/restore", &taken).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    for server in 1..=4 {
        let mut reader = RawClient::connect(region.address(server)).await;
        eventually("every server has it", async || {
            reader.get("/new", false).await == Err(ErrorCode::NoNode)
                && reader.get("/n7", false).await == Ok(Vec::new())
        })
        .await;
        assert!(reader.get("/mine", false).await.is_ok(), "a live session keeps what it owns");
    }
    client.create("/after", CreateMode::Persistent).await.unwrap();
    let told: Vec<_> = client.events.iter().map(|(_, kind, path)| (*kind, path.as_str())).collect();
    assert_eq!(told, [(EventType::NodeDataChanged, "/n7"), (EventType::NodeDeleted, "/new")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_snapshot_is_told_also_after_a_restart() {
    let mut region = TestRegion::with(1, 0, |o| o.region.storage.entries_per_snapshot = 20).await;
    let last = async |region: &TestRegion| {
        let admin = region.server(1).admin_address().unwrap();
        let (status, answer) = http(admin, "GET", "/commands/lsnp", b"").await;
        assert_eq!(status, 200);
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["command"], "last_snapshot");
        (answer["zxid"].as_str().unwrap().to_string(), answer["timestamp"].as_i64().unwrap())
    };
    assert_eq!(last(&region).await, ("ffffffffffffffff".to_string(), -1), "there is none yet");
    let mut client = RawClient::connect(region.address(1)).await;
    for i in 0..30 {
        client.create(&format!("/n{i}"), CreateMode::Persistent).await.unwrap();
    }
    eventually("a snapshot is saved", async || last(&region).await.1 > 0).await;
    region.stop(1).await;
    region.start_server(1).await;
    let (zxid, timestamp) = last(&region).await;
    assert!(timestamp > 0);
    let (zxid, reached) =
        (i64::from_str_radix(&zxid, 16).unwrap(), region.server(1).region().view().state.zxid);
    assert!(0 < zxid && zxid <= reached, "{zxid:x} {reached:x}");
}
