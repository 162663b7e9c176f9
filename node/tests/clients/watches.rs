//! Watches: fired once, before the change can be read, and set again elsewhere without a gap.

use meridian_wire::{CreateMode, ErrorCode, EventType, Request, SetWatches};

use crate::raw::{RawClient, data};
use crate::region::TestRegion;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_comes_before_the_new_state_can_be_read() {
    let region = TestRegion::start(3, 0).await;
    let mut writer = RawClient::connect(region.address(1)).await;
    writer.create("/w", CreateMode::Persistent).await.unwrap();
    writer.set("/w", b"0").await;
    let mut reader = RawClient::connect(region.address(2)).await;
    reader.call(&Request::Sync { path: "/" }).await;
    for round in 1..=100 {
        let before = (round - 1).to_string().into_bytes();
        let after = round.to_string().into_bytes();
        assert_eq!(reader.get("/w", true).await.unwrap(), before);
        reader.events.clear();
        let set = Request::SetData { path: "/w", data: Some(&after), version: -1 };
        writer.send(&set).await;
        // Reads race the change; none may overtake its event.
        loop {
            for _ in 0..5 {
                reader.send(&Request::GetData { path: "/w", watch: false }).await;
            }
            let mut seen = false;
            for _ in 0..5 {
                let (header, body) = reader.reply().await.unwrap();
                if data(&body) == after {
                    assert_eq!(reader.events.len(), 1, "round {round}");
                    seen = true;
                } else {
                    assert!(reader.events.is_empty(), "an event that comes before its change");
                }
                assert!(reader.events.iter().all(|(zxid, ..)| *zxid <= header.zxid));
            }
            if seen {
                break;
            }
        }
        assert_eq!(writer.reply().await.unwrap().0.error, ErrorCode::Ok);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_carries_its_zxid_and_comes_before_the_reply_to_its_change() {
    let region = TestRegion::start(1, 0).await;
    let mut client = RawClient::connect(region.address(1)).await;
    let exists = Request::Exists { path: "/a", watch: true };
    assert_eq!(client.call(&exists).await.0.error, ErrorCode::NoNode);
    client.call(&Request::GetChildren { path: "/", watch: true }).await;
    client.send(&crate::raw::create("/a", b"", CreateMode::Persistent)).await;
    let (reply, _) = client.reply().await.unwrap();
    let expected = [
        (reply.zxid, EventType::NodeCreated, "/a".to_string()),
        (reply.zxid, EventType::NodeChildrenChanged, "/".to_string()),
    ];
    assert_eq!(client.events, expected);
    client.events.clear();
    assert_eq!(client.set("/a", b"again").await, ErrorCode::Ok);
    assert_eq!(client.events, [], "watches fire once");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_set_again_fire_what_was_missed_and_keep_the_rest() {
    let region = TestRegion::start(3, 0).await;
    let mut writer = RawClient::connect(region.address(1)).await;
    for path in ["/same", "/changed", "/gone", "/parent"] {
        writer.create(path, CreateMode::Persistent).await.unwrap();
    }
    let mut watcher = RawClient::connect(region.address(1)).await;
    let seen = watcher.call(&Request::Exists { path: "/", watch: false }).await.0.zxid;
    writer.set("/changed", b"x").await;
    writer.call(&Request::Delete { path: "/gone", version: -1 }).await;
    writer.create("/parent/child", CreateMode::Persistent).await.unwrap();
    writer.create("/new", CreateMode::Persistent).await.unwrap();

    let mut again = RawClient::try_connect(region.address(2), &watcher.hello()).await.unwrap();
    again.call(&Request::Sync { path: "/" }).await;
    let watches = SetWatches {
        relative_zxid: seen,
        data: vec!["/same", "/changed", "/gone"],
        exist: vec!["/new", "/absent"],
        child: vec!["/parent", "/same"],
        ..SetWatches::default()
    };
    assert_eq!(again.call(&Request::SetWatches(watches)).await.0.error, ErrorCode::Ok);
    let fired: Vec<_> = again.events.drain(..).map(|(_, kind, path)| (kind, path)).collect();
    let expected = [
        (EventType::NodeDataChanged, "/changed"),
        (EventType::NodeDeleted, "/gone"),
        (EventType::NodeCreated, "/new"),
        (EventType::NodeChildrenChanged, "/parent"),
    ];
    assert_eq!(fired, expected.map(|(kind, path)| (kind, path.to_string())));

    for (path, kind) in [("/same", EventType::NodeDataChanged), ("/absent", EventType::NodeCreated)] {
        if kind == EventType::NodeCreated {
            writer.create(path, CreateMode::Persistent).await.unwrap();
        } else {
            writer.set(path, b"x").await;
        }
        again.call(&Request::Sync { path: "/" }).await;
        let (_, fired, at) = again.events.pop().unwrap();
        assert_eq!((fired, at.as_str()), (kind, path));
        assert_eq!(again.events, []);
    }
    assert_eq!(region.server(2).hub().watch_count(), 1, "the child watch of /same is left");
    again.call(&Request::CloseSession).await;
    again.closed().await;
    crate::region::eventually("watches go with their connection", async || {
        region.server(2).hub().watch_count() == 0
    })
    .await;
}
