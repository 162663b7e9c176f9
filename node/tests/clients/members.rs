//! Members that come, go and change their roles while clients are served.

use std::time::Duration;

use meridian_node::txn::ensemble::{Member, Members, Role};
use meridian_wire::{AuthPacket, CreateMode, ErrorCode, OpCode, Request, Response};
use tokio::net::TcpStream;
use zookeeper_client as zk;

use crate::raw::RawClient;
use crate::region::{TestRegion, eventually, free_port};

async fn client(addresses: &str) -> zk::Client {
    zk::Client::connector().with_session_timeout(Duration::from_secs(10)).connect(addresses).await.unwrap()
}

fn open() -> zk::CreateOptions<'static> {
    zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all())
}

fn members(region: &TestRegion, servers: &[(u8, Role)]) -> Members {
    let member = |(server, role): &(u8, Role)| {
        (*server, Member::new(*role, region.peer_address((*server).into()), None))
    };
    servers.iter().map(member).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_is_added_promoted_and_the_leader_removed_without_loss() {
    let mut region = TestRegion::start(3, 1).await;
    // The observer stays in any case.
    let client = client(&region.address(4).to_string()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    let (config, _) = client.get_data("/zookeeper/config").await.unwrap();
    let config = String::from_utf8(config).unwrap();
    assert!(config.contains("server.3=") && config.contains(":observer\nversion="), "{config}");

    // The observer becomes a voter, and the leader goes.
    let leader = region.leader().await;
    let others: Vec<(u8, Role)> =
        (1..=4).filter(|server| u64::from(*server) != leader).map(|server| (server, Role::Voter)).collect();
    let wanted = members(&region, &others);
    region.server(leader).region().change_members(wanted.clone()).await.unwrap();
    client.create("/after", b"2", &open()).await.unwrap();
    for (server, _) in &others {
        let server = region.server((*server).into()).region();
        eventually("all voters know it", async || {
            let roster = server.roster();
            roster.voters.len() == 3 && !roster.voters.contains(&leader)
        })
        .await;
    }
    assert_eq!(*region.server(4).region().view().state.ensemble.members, wanted);

    // Who was removed is needed no more.
    region.stop(leader).await;
    client.create("/alone", b"3", &open()).await.unwrap();
    client.get_data("/before").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_joins_and_its_vote_counts() {
    let mut region = TestRegion::start(1, 0).await;
    let client = client(&region.addresses()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    region.join_server(2).await;
    region.join_server(3).await;
    eventually("it serves what was written before", async || {
        region.server(3).region().view().state.tree.get("/before").is_some()
    })
    .await;
    let wanted = members(&region, &[(1, Role::Voter), (2, Role::Voter), (3, Role::Voter)]);
    region.server(2).region().change_members(wanted).await.unwrap();
    assert_eq!(region.server(1).region().roster().voters.len(), 3);
    // The first server alone was everything once; now the other two go on without it.
    region.server(1).region().transfer_leadership(3).await.unwrap();
    region.stop(1).await;
    let client = self::client(&region.addresses()).await;
    client.create("/after", b"2", &open()).await.unwrap();
    assert_eq!(client.get_data("/before").await.unwrap().0, b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_number_zero_serves_and_takes_changes_of_members() {
    let mut region = TestRegion::with(2, 0, |options| {
        options.reconfig_enabled = true;
        options.authentication.skip_acl = true;
    })
    .await;
    region.join_server(0).await;
    let wanted = members(&region, &[(0, Role::Voter), (1, Role::Voter), (2, Role::Voter)]);
    region.server(1).region().change_members(wanted).await.unwrap();
    region.server(1).region().transfer_leadership(0).await.unwrap();

    let mut client = RawClient::connect(region.address(0)).await;
    client.create("/zero", CreateMode::Persistent).await.unwrap();
    let joining = Some("server.9=127.0.0.1:9999:9998:observer;127.0.0.1:9997");
    let change = Request::Reconfig { joining, leaving: None, new_members: None, config_id: -1 };
    assert_eq!(client.call(&change).await.0.error, ErrorCode::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_goes_to_the_ports_that_a_change_gives_it() {
    let mut region = TestRegion::start(3, 0).await;
    let all: Vec<(u8, Role)> = (1..=3).map(|server| (server, Role::Voter)).collect();
    let mut wanted = members(&region, &all);
    wanted.get_mut(&3).unwrap().client = Some(region.address(3).to_string());
    region.server(1).region().change_members(wanted.clone()).await.unwrap();
    let mut client = RawClient::connect(region.address(3)).await;
    client.create("/before", CreateMode::Ephemeral).await.unwrap();

    let before = region.address(3);
    let [peer_port, client_port] = [free_port(), free_port()];
    let moved = wanted.get_mut(&3).unwrap();
    moved.address = format!("127.0.0.1:{peer_port}");
    moved.client = Some(format!("127.0.0.1:{client_port}"));
    region.server(1).region().change_members(wanted).await.unwrap();
    eventually("clients are served there", async || region.address(3).port() == client_port).await;
    assert!(TcpStream::connect(before).await.is_err(), "nobody listens at the old port");
    client.create("/as before", CreateMode::Persistent).await.unwrap();
    RawClient::connect(region.address(3)).await.get("/before", false).await.unwrap();

    // The others find it: the two have no majority without it.
    region.stop(1).await;
    region.stop(2).await;
    region.start_server(1).await;
    let mut late = RawClient::connect(region.address(1)).await;
    late.create("/after", CreateMode::Persistent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ports_change_and_the_leader_votes_no_longer_in_one_change() {
    let region = TestRegion::start(3, 0).await;
    let leader = region.leader().await;
    let roles: Vec<(u8, Role)> = (1..=3)
        .map(|server| (server, if u64::from(server) == leader { Role::Observer } else { Role::Voter }))
        .collect();
    let mut wanted = members(&region, &roles);
    wanted.values_mut().for_each(|member| member.address = format!("127.0.0.1:{}", free_port()));
    region.server(leader).region().change_members(wanted).await.unwrap();
    let client = client(&region.addresses()).await;
    client.create("/after", b"1", &open()).await.unwrap();
    assert_ne!(region.leader().await, leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_found_at_two_addresses_counts_once() {
    // By a mistake in the configuration, two of five seem to be three.
    let mut region = TestRegion::prepare(5, 0, |_| {});
    region.mistake(3, 2);
    region.start_server(1).await;
    region.start_server(2).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for server in [1, 2] {
        let leadership = *region.server(server).region().leadership().borrow();
        assert_eq!(leadership.leader, None, "server {server}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_is_gone_is_not_called_all_the_time() {
    let mut region = TestRegion::start(3, 0).await;
    let leader = region.leader().await;
    let client = client(&region.address(leader).to_string()).await;
    let gone = (1..=3).find(|server| *server != leader).unwrap();
    region.stop(gone).await;
    let calls = tokio::net::TcpListener::bind(region.peer_address(gone)).await.unwrap();
    client.create("/it lacks", b"this", &open()).await.unwrap();
    let mut called = 0;
    let counting = async {
        loop {
            drop(calls.accept().await.unwrap());
            called += 1;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), counting).await;
    // Heartbeats, attempts to replicate with their growing pauses, and the reports of the others.
    assert!((1..=100).contains(&called), "called {called} times in three seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_disk_votes_again_once_it_is_up_to_date() {
    let mut region = TestRegion::start(3, 0).await;
    let leader = region.leader().await;
    let client = client(&region.address(leader).to_string()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    let lost = (1..=3).find(|server| *server != leader).unwrap();
    region.stop(lost).await;
    region.wipe(lost);
    client.create("/without", b"2", &open()).await.unwrap();
    region.start_server(lost).await;
    eventually("it has everything and votes", async || {
        let roster = region.server(leader).region().roster();
        let caught_up = region.server(lost).region().view().state.tree.get("/without").is_some();
        caught_up && roster.settled && roster.voters.contains(&lost)
    })
    .await;
    // With it there is a majority again when another goes.
    let other = (1..=3).find(|server| *server != leader && *server != lost).unwrap();
    region.stop(other).await;
    client.create("/after", b"3", &open()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_that_are_not_there_are_refused() {
    let region = TestRegion::start(1, 0).await;
    let mut wanted = members(&region, &[(1, Role::Voter)]);
    for server in 7..=8 {
        wanted.insert(server, Member::new(Role::Voter, format!("127.0.0.1:{server}"), None));
    }
    let refused = region.server(1).region().change_members(wanted).await.unwrap_err();
    assert!(refused.to_string().contains("up to date"), "{refused}");
    let client = client(&region.addresses()).await;
    client.create("/goes-on", b"", &open()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_may_change_the_members() {
    let region = TestRegion::start(1, 0).await;
    let change = |joining| Request::Reconfig {
        joining: Some(joining),
        leaving: None,
        new_members: None,
        config_id: -1,
    };
    let joining = "server.9=127.0.0.1:9999:9998:observer;127.0.0.1:9997";

    let mut client = RawClient::connect(region.address(1)).await;
    assert_eq!(client.call(&change(joining)).await.0.error, ErrorCode::ReconfigDisabled);
    let region = TestRegion::with(1, 0, |options| {
        options.reconfig_enabled = true;
        options.authentication.super_digest = Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=".into());
    })
    .await;

    let mut client = RawClient::connect(region.address(1)).await;
    assert_eq!(client.call(&change(joining)).await.0.error, ErrorCode::NoAuth);
    let auth = Request::Auth(AuthPacket { kind: 0, scheme: "digest", auth: b"super:test" });
    assert_eq!(client.call(&auth).await.0.error, ErrorCode::Ok);
    for bad in ["server.9", "server.9=127.0.0.1:1", "server.x=a:1:2;3"] {
        assert_eq!(client.call(&change(bad)).await.0.error, ErrorCode::BadArguments, "{bad}");
    }
    // An observer need not be there yet.
    let (header, body) = client.call(&change(joining)).await;
    assert_eq!(header.error, ErrorCode::Ok);
    let Ok(Response::Data { data: Some(config), stat }) = Response::decode(OpCode::Reconfig, &body) else {
        panic!("no configuration")
    };
    let config = String::from_utf8(config.to_vec()).unwrap();
    assert!(config.contains(joining), "{config}");
    let version = i64::from_str_radix(config.rsplit_once('=').unwrap().1, 16).unwrap();
    assert_eq!(stat.mzxid, version);
    assert_eq!(client.get("/zookeeper/config", false).await.unwrap(), config.as_bytes());

    let stale =
        Request::Reconfig { joining: None, leaving: Some("9"), new_members: None, config_id: version + 1 };
    assert_eq!(client.call(&stale).await.0.error, ErrorCode::BadVersion);
    let removal =
        Request::Reconfig { joining: None, leaving: Some("9"), new_members: None, config_id: version };
    assert_eq!(client.call(&removal).await.0.error, ErrorCode::Ok);
    // A voter that is not there would leave no quorum.
    let absent = "server.7=127.0.0.1:9:9;127.0.0.1:9";
    assert_eq!(client.call(&change(absent)).await.0.error, ErrorCode::NewConfigNoQuorum);
    assert_eq!(client.set("/zookeeper/config", b"").await, ErrorCode::Ok, "a super user may");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_would_need_a_voter_that_has_gone_is_refused_and_writes_go_on() {
    let mut region = TestRegion::start(3, 0).await;
    let leader = region.leader().await;
    let others: Vec<u64> = (1..=3).filter(|server| *server != leader).collect();
    let client = client(&region.address(leader).to_string()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    let number = |server: u64| u8::try_from(server).unwrap();
    let wanted = members(&region, &[(number(leader), Role::Voter), (number(others[1]), Role::Voter)]);
    // Two of three are enough now; of these two one is not.
    region.stop(others[1]).await;
    let changed = region.server(leader).region().change_members(wanted).await;
    assert!(changed.is_err(), "{changed:?}");
    client.create("/after", b"2", &open()).await.unwrap();
    assert_eq!(region.server(leader).region().roster().voters.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_no_write_no_session_and_no_event() {
    let mut region = TestRegion::start(3, 1).await;
    // Clients of the server that stays; the others only carry the writes.
    let writer = client(&region.address(4).to_string()).await;
    let watcher = client(&region.address(4).to_string()).await;
    writer.create("/counter", b"0", &open()).await.unwrap();
    let ephemeral = zk::CreateMode::Ephemeral.with_acls(zk::Acls::anyone_all());
    writer.create("/alive", b"", &ephemeral).await.unwrap();
    let mut events = watcher.watch("/counter", zk::AddWatchMode::Persistent).await.unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut version = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            // Versions are expected, so that a write that is lost or repeated is an error.
            let stat = writer.set_data("/counter", b"n", Some(version)).await.unwrap();
            version = stat.version;
        }
        (writer, version)
    });
    for server in 1..=3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        region.stop(server).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        region.start_server(server).await;
        eventually("it has caught up", async || {
            let newest = region.server(4).region().view().state.zxid;
            region.server(server).region().view().state.zxid >= newest - 1_000
                && region.server(server).region().leadership().borrow().leader.is_some()
        })
        .await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (writer, version) = writing.await.unwrap();
    assert!(version > 10, "{version} writes");
    assert_eq!(writer.get_data("/counter").await.unwrap().1.version, version);
    assert!(writer.check_stat("/alive").await.unwrap().is_some(), "the session went on");
    for expected in 1..=version {
        let event = tokio::time::timeout(Duration::from_secs(10), events.changed()).await;
        assert_eq!(
            event.unwrap().event_type,
            zk::EventType::NodeDataChanged,
            "event {expected} of {version}"
        );
    }
}
