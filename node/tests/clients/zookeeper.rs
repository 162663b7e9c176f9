//! An existing client library, used as its own documentation says.

use std::time::Duration;

use zookeeper_client::{
    Acls, AddWatchMode, Client, CreateMode, CreateOptions, Error, EventType, SessionState,
};

use crate::region::TestRegion;

fn persistent() -> CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_everyday_operations() {
    let region = TestRegion::start(1, 0).await;
    let client = Client::connect(&region.addresses()).await.unwrap();
    let (_, created) = client.check_and_watch_stat("/a").await.unwrap();
    let (stat, _) = client.create("/a", b"one", &persistent()).await.unwrap();
    assert_eq!(created.changed().await.event_type, EventType::NodeCreated);
    assert_eq!(client.get_data("/a").await.unwrap(), (b"one".to_vec(), stat));
    let stat = client.set_data("/a", b"two", Some(0)).await.unwrap();
    assert_eq!(stat.version, 1);
    assert_eq!(client.set_data("/a", b"no", Some(0)).await, Err(Error::BadVersion));

    let (_, _, children) = client.get_and_watch_children("/a").await.unwrap();
    let sequential = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let (_, sequence) = client.create("/a/s-", b"", &sequential).await.unwrap();
    assert_eq!(sequence.into_i64(), 0);
    assert_eq!(children.changed().await.event_type, EventType::NodeChildrenChanged);
    assert_eq!(client.list_children("/a").await.unwrap(), ["s-0000000000"]);
    assert_eq!(client.list_ephemerals("/").await.unwrap(), ["/a/s-0000000000"]);
    assert_eq!(client.delete("/a", None).await, Err(Error::NotEmpty));

    let mut multi = client.new_multi_writer();
    multi.add_create("/m", b"", &persistent()).unwrap();
    multi.add_set_data("/a", b"three", Some(1)).unwrap();
    multi.add_delete("/a/s-0000000000", None).unwrap();
    assert_eq!(multi.commit().await.unwrap().len(), 3);
    let mut failing = client.new_multi_writer();
    failing.add_create("/n", b"", &persistent()).unwrap();
    failing.add_check_version("/a", 99).unwrap();
    assert!(failing.commit().await.is_err());
    assert_eq!(client.check_stat("/n").await.unwrap(), None);
    let mut reads = client.new_multi_reader();
    reads.add_get_data("/a").unwrap();
    reads.add_get_children("/").unwrap();
    assert_eq!(reads.commit().await.unwrap().len(), 2);

    client.delete("/a", None).await.unwrap();
    assert_eq!(client.get_data("/a").await.unwrap_err(), Error::NoNode);
    client.sync("/").await.unwrap();
    assert_eq!(client.count_descendants_number("/").await.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_watches() {
    let region = TestRegion::start(1, 0).await;
    let client = Client::connect(&region.addresses()).await.unwrap();
    client.create("/a", b"", &persistent()).await.unwrap();
    let mut recursive = client.watch("/a", AddWatchMode::PersistentRecursive).await.unwrap();
    let mut plain = client.watch("/a", AddWatchMode::Persistent).await.unwrap();
    client.create("/a/b", b"", &persistent()).await.unwrap();
    client.set_data("/a/b", b"x", None).await.unwrap();
    client.delete("/a/b", None).await.unwrap();
    for (kind, path) in [
        (EventType::NodeCreated, "/a/b"),
        (EventType::NodeDataChanged, "/a/b"),
        (EventType::NodeDeleted, "/a/b"),
    ] {
        let event = recursive.changed().await;
        assert_eq!((event.event_type, event.path.as_str()), (kind, path));
    }
    for _ in 0..2 {
        assert_eq!(plain.changed().await.event_type, EventType::NodeChildrenChanged);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_on_when_its_server_ends() {
    let mut region = TestRegion::start(3, 1).await;
    let client = Client::connector()
        .with_session_timeout(Duration::from_secs(20))
        .connect(&region.addresses())
        .await
        .unwrap();
    let session = client.session_id();
    client.create("/lock", b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await.unwrap();
    let leader = region.leader().await;
    region.stop(leader).await;
    // A request under way may be lost with the connection; the session is not.
    crate::region::eventually("the client is served again", async || {
        client.check_stat("/lock").await.is_ok()
    })
    .await;
    assert_eq!(client.session_id(), session);
    assert_ne!(client.state(), SessionState::Expired);
    assert!(client.check_stat("/lock").await.unwrap().is_some());
    crate::region::eventually("writes go on", async || client.set_data("/lock", b"held", None).await.is_ok())
        .await;
}
