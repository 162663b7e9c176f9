//! Order, framing, limits, and what is served besides the protocol.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use meridian_wire::{
    Acl, AuthPacket, CreateMode, ErrorCode, OpCode, Request, Response, begin_frame, finish_frame, perms, xid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::{RawClient, data};
use crate::region::{TestRegion, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order_and_see_what_came_before_them() {
    let region = TestRegion::start(3, 1).await;
    let mut client = RawClient::connect(region.address(4)).await;
    client.create("/a", CreateMode::Persistent).await.unwrap();
    let mut sent = Vec::new();
    for i in 0..300 {
        let value = i.to_string();
        let set = Request::SetData { path: "/a", data: Some(value.as_bytes()), version: -1 };
        sent.push((client.send(&set).await, None));
        if i % 3 == 0 {
            let get = client.send(&Request::GetData { path: "/a", watch: false }).await;
            sent.push((get, Some(value)));
        }
        if i % 50 == 0 {
            client.send(&Request::Ping).await;
        }
    }
    let (mut newest, mut pings) = (0, 0);
    for (xid, expected) in sent {
        let (mut header, mut body) = client.reply().await.unwrap();
        while header.xid == xid::PING {
            // A ping may be answered ahead of the writes before it.
            pings += 1;
            (header, body) = client.reply().await.unwrap();
        }
        assert_eq!((header.xid, header.error), (xid, ErrorCode::Ok));
        assert!(header.zxid >= newest, "zxids of replies never fall");
        newest = header.zxid;
        if let Some(expected) = expected {
            assert_eq!(data(&body), expected.as_bytes());
        }
    }
    assert_eq!(pings, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bytes_close_their_connection_alone() {
    let region = TestRegion::start(1, 0).await;
    let mut bystander = RawClient::connect(region.address(1)).await;
    let mut cut_short = BytesMut::new();
    let start = begin_frame(&mut cut_short);
    cut_short.put_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 99, b'/']);
    finish_frame(start, &mut cut_short).unwrap();
    let hostile: [&[u8]; 5] =
        [&[0xff; 8], &[0x7f, 0xff, 0xff, 0xff], &[0, 0, 0, 1, 7], &[0, 0, 0, 0], &cut_short];
    for bytes in hostile {
        let mut fresh = TcpStream::connect(region.address(1)).await.unwrap();
        fresh.write_all(bytes).await.unwrap();
        // An incomplete handshake is closed only when the client gives up.
        fresh.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = fresh.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{bytes:?}");

        let mut connected = RawClient::connect(region.address(1)).await;
        connected.stream.write_all(bytes).await.unwrap();
        connected.closed().await;
    }
    assert_eq!(bystander.create("/fine", CreateMode::Persistent).await.unwrap(), "/fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_operations_are_unimplemented_and_close() {
    let region = TestRegion::start(1, 0).await;
    for op in [10, 13, 999] {
        let mut client = RawClient::connect(region.address(1)).await;
        let mut out = BytesMut::new();
        let start = begin_frame(&mut out);
        out.put_i32(1);
        out.put_i32(op);
        finish_frame(start, &mut out).unwrap();
        client.stream.write_all(&out).await.unwrap();
        let (header, _) = client.reply().await.unwrap();
        assert_eq!((header.xid, header.error), (1, ErrorCode::Unimplemented), "operation {op}");
        client.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acls_are_checked_and_digests_masked() {
    let region = TestRegion::start(1, 0).await;
    let mut owner = RawClient::connect(region.address(1)).await;
    let auth = Request::Auth(AuthPacket { kind: 0, scheme: "digest", auth: b"bob:secret" });
    assert_eq!(owner.call(&auth).await.0.error, ErrorCode::Ok);
    owner.create("/secret", CreateMode::Persistent).await.unwrap();
    owner.create("/shown", CreateMode::Persistent).await.unwrap();
    let mine = Acl { perms: perms::ALL, scheme: "auth", id: "" };
    let set = |path, acl| Request::SetAcl { path, acl, version: -1 };
    assert_eq!(owner.call(&set("/secret", vec![mine])).await.0.error, ErrorCode::Ok);
    let readable = Acl { perms: perms::READ, ..Acl::OPEN };
    assert_eq!(owner.call(&set("/shown", vec![mine, readable])).await.0.error, ErrorCode::Ok);

    let mut stranger = RawClient::connect(region.address(1)).await;
    assert_eq!(stranger.get("/secret", true).await, Err(ErrorCode::NoAuth));
    let exists = Request::Exists { path: "/secret", watch: true };
    assert_eq!(stranger.call(&exists).await.0.error, ErrorCode::NoAuth);
    assert_eq!(stranger.set("/shown", b"").await, ErrorCode::NoAuth);
    let (header, body) = stranger.call(&Request::GetAcl { path: "/shown" }).await;
    assert_eq!(header.error, ErrorCode::Ok);
    let Response::Acl { acl, .. } = Response::decode(OpCode::GetAcl, &body).unwrap() else { panic!() };
    assert_eq!(acl[0].id, "bob:x");
    assert_eq!(owner.get("/secret", false).await, Ok(Vec::new()));
    assert_eq!(region.server(1).hub().watch_count(), 0, "what may not be read can't be watched");

    let unknown = Request::Auth(AuthPacket { kind: 0, scheme: "nonsense", auth: b"" });
    assert_eq!(stranger.call(&unknown).await.0.error, ErrorCode::AuthFailed);
    stranger.closed().await;
}

async fn ask(address: std::net::SocketAddr, question: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_are_answered_in_words_and_over_http() {
    let region = TestRegion::start(3, 1).await;
    let leader = region.leader().await;
    let modes = (1..=4).map(|server| ask(region.address(server), "srvr"));
    for (server, answer) in (1..).zip(futures::future::join_all(modes).await) {
        let mode = match server {
            4 => "observer",
            _ if server == leader => "leader",
            _ => "follower",
        };
        assert!(answer.starts_with("Zookeeper version: 3.9.0-meridian"), "{answer}");
        assert!(answer.contains(&format!("\nMode: {mode}\n")), "server {server}: {answer}");
    }
    let address = region.address(leader);
    assert_eq!(ask(address, "ruok").await, "imok");
    assert_eq!(ask(address, "isro").await, "rw");
    let monitored = ask(address, "mntr").await;
    for line in ["zk_server_state\tleader\n", "zk_peer_state\tleading - broadcast\n"] {
        assert!(monitored.contains(line), "{monitored}");
    }
    assert!(ask(address, "conf").await.contains("tickTime=2000\n"));
    assert_eq!(ask(address, "gtmk").await, "306");
    assert!(ask(address, "conf").await.contains("membership: \nserver.1="));
    assert!(ask(address, "conf").await.contains("\nsyncLimit=1\n"));
    assert!(ask(address, "envi").await.starts_with("Environment:\nzookeeper.version=3.9.0-meridian"));
    assert_eq!(ask(address, "srst").await, "srst is not executed because it is not in the whitelist.\n");

    region.server(leader).routes().add("/extra", || serde_json::json!({ "added": true }));
    let admin = region.server(leader).admin_address().unwrap();
    for (path, status, content) in [
        ("/health", "200", "\"healthy\":true"),
        ("/readyz", "200", "\"healthy\":true"),
        ("/livez", "200", "\"live\":true"),
        ("/commands/ruok", "200", "\"error\":null"),
        ("/commands/leader", "200", "\"is_leader\":true"),
        ("/commands/set_trace_mask?traceMask=7", "200", "\"tracemask\":7"),
        ("/commands/gtmk", "200", "\"tracemask\":7"),
        ("/commands/stmk", "400", "requires long traceMask"),
        ("/commands/observers", "200", "\"sid\":4"),
        ("/commands/zabstate", "200", "\"quorum_address\":\"127.0.0.1:"),
        ("/commands/server_stats", "200", "\"proposal_stats\":{\"last_buffer_size\":"),
        ("/commands/conf", "200", "\"sync_limit\":1"),
        ("/commands/voting_view", "200", "\"learner_type\":\"participant\""),
        ("/commands/isro", "200", "\"read_only\":false"),
        ("/commands/connections", "200", "\"secure_connections\":[]"),
        ("/commands/watch_summary", "200", "\"num_total_watches\":0"),
        ("/commands", "200", "<a href=\"/commands/server_stats\">"),
        ("/commands/nonsense", "404", "Unknown command: nonsense"),
        ("/digest", "200", "[]"),
        ("/metrics", "200", "\nznode_count 4\n"),
        ("/extra", "200", "\"added\":true"),
        ("/other", "404", "there is no /other"),
    ] {
        let answer = ask(admin, &get(path)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(answer.contains(content), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_leader_says_that_it_does_not_serve() {
    let mut region = TestRegion::prepare(3, 0, |_| {});
    region.start_server(1).await;
    let answer = ask(region.address(1), "srvr").await;
    assert_eq!(answer, "This ZooKeeper instance is not currently serving requests\n");
    let admin = region.server(1).admin_address().unwrap();
    let ready = ask(admin, &get("/readyz")).await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("no leader is known"), "{ready}");
    assert!(ask(admin, &get("/livez")).await.starts_with("HTTP/1.1 200"), "a new start would help nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_measure_is_told_by_zookeepers_names() {
    let mut region = TestRegion::start(3, 1).await;
    let leader = region.leader().await;
    let mut watcher = RawClient::connect(region.address(leader)).await;
    watcher.create("/a", CreateMode::Persistent).await.unwrap();
    watcher.get("/a", true).await.unwrap();
    let mut writer = RawClient::connect(region.address(leader)).await;
    assert_eq!(writer.set("/a", b"new").await, ErrorCode::Ok);
    assert_eq!(watcher.packet().await.unwrap().0.xid, xid::NOTIFICATION);

    let monitored = monitor(region.address(leader)).await;
    for (name, at_least) in [
        ("cnt_readlatency", 1.0),
        ("cnt_updatelatency", 2.0),
        ("max_updatelatency", 0.001),
        ("cnt_fsynctime", 2.0),
        ("max_fsynctime", 0.001),
        ("p99_fsynctime", 0.001),
        ("cnt_quorum_ack_latency", 2.0),
        ("cnt_propagation_latency", 2.0),
        ("sum_node_changed_watch_count", 1.0),
        ("watch_bytes", 20.0),
        ("proposal_count", 4.0),
        ("commit_count", 4.0),
        ("last_proposal_size", 20.0),
        ("max_client_response_size", 20.0),
        ("cnt_election_time", 1.0),
        ("looking_count", 1.0),
        ("meridian_term", 1.0),
        ("meridian_applied_index", 4.0),
        ("process_cpu_seconds_total", 0.001),
    ] {
        assert!(monitored[name] >= at_least, "{name}: {}", monitored[name]);
    }
    let in_touch = async |region: &TestRegion| {
        let monitored = monitor(region.address(leader)).await;
        ["learners", "synced_followers", "synced_observers"].map(|name| monitored[name])
    };
    eventually("all are in touch", async || in_touch(&region).await == [3.0, 2.0, 1.0]).await;
    assert!(monitored.contains_key("leader_uptime"));
    let follower = (1..=3).find(|server| *server != leader).unwrap();
    assert!(!monitor(region.address(follower)).await.contains_key("synced_followers"));

    region.stop(follower).await;
    region.stop(4).await;
    eventually("they are missed", async || in_touch(&region).await == [1.0, 1.0, 0.0]).await;
    let admin = region.server(leader).admin_address().unwrap();
    let members = ask(admin, &get("/members")).await;
    assert!(members.contains("\"silent_ms\":"), "{members}");
    let exposed = ask(admin, &get("/metrics")).await;
    for line in [
        "# TYPE fsynctime summary\nfsynctime{quantile=\"0.5\"} ",
        "\nfsynctime_count ",
        "\n# TYPE proposal_count counter\nproposal_count ",
        &format!("\nmeridian_lag_entries{{server=\"{follower}\"}} "),
    ] {
        assert!(exposed.contains(line), "{line}: {exposed}");
    }
    assert_eq!(exposed.matches("# TYPE meridian_lag_entries gauge").count(), 1);
}

/// The figures of `mntr`, without their prefix.
async fn monitor(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = ask(address, "mntr").await;
    let figures = answer.lines().filter_map(|line| {
        let (name, figure) = line.strip_prefix("zk_")?.split_once('\t')?;
        Some((name.to_string(), figure.parse().ok()?))
    });
    figures.collect()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_come_by_both_families_of_addresses() {
    let region = TestRegion::with(1, 0, |o| o.client_listen = Some("[::]:0".into())).await;
    let port = region.address(1).port();
    let mut v4 = RawClient::connect((std::net::Ipv4Addr::LOCALHOST, port).into()).await;
    v4.create("/mine", CreateMode::Persistent).await.unwrap();
    let acl = vec![Acl { perms: perms::ALL, scheme: "ip", id: "127.0.0.1" }];
    assert_eq!(v4.call(&Request::SetAcl { path: "/mine", acl, version: -1 }).await.0.error, ErrorCode::Ok);
    assert_eq!(v4.get("/mine", false).await, Ok(Vec::new()));
    let mut v6 = RawClient::connect((std::net::Ipv6Addr::LOCALHOST, port).into()).await;
    assert_eq!(v6.get("/mine", false).await, Err(ErrorCode::NoAuth));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_words_are_answered_where_all_are_listed() {
    let region = TestRegion::with(1, 0, |o| o.words = ["*".to_string()].into()).await;
    let mut client = RawClient::connect(region.address(1)).await;
    client.create("/e", CreateMode::Ephemeral).await.unwrap();
    client.get("/e", true).await.unwrap();
    let session = format!("{:#x}", client.session);
    let address = region.address(1);
    for (word, expected) in [
        ("ruok", "imok".to_string()),
        ("gtmk", "306".into()),
        ("stmk\0\0\0\0\0\0\0\x05", "5".into()),
        ("isro", "rw".into()),
        ("wchs", "1 connections watching 1 paths\nTotal watches:1\n".into()),
        ("wchp", format!("/e\n\t{session}\n")),
        ("wchc", format!("{session}\n\t/e\n")),
        ("srst", "Server stats reset.\n".into()),
    ] {
        assert_eq!(ask(address, word).await, expected, "{word}");
    }
    for (word, part) in [
        ("cons", format!(",sid={session},lop=GETD,est=")),
        ("stat", "[1](queued=0,recved=2,sent=2)".into()),
        ("dump", format!("Sessions with Ephemerals (1):\n{session}:\n\t/e\n")),
        ("dirs", "datadir_size: ".into()),
        ("conf", "secureClientPort=-1\n".into()),
        ("mntr", "zk_ephemerals_count\t1\n".into()),
        #[cfg(target_os = "linux")]
        ("mntr", "zk_max_file_descriptor_count\t".into()),
        #[cfg(target_os = "linux")]
        ("mntr", "zk_open_file_descriptor_count\t".into()),
        ("srvr", "Mode: standalone\n".into()),
        ("hash", "0x1".into()),
        ("crst", "Connection stats reset.\n".into()),
    ] {
        let answer = ask(address, word).await;
        assert!(answer.contains(&part), "{word}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_operators_only_look_nothing_is_changed() {
    let region = TestRegion::with(1, 0, |o| o.metrics_listen = Some("127.0.0.1:0".into())).await;
    let address = region.server(1).metrics_address().unwrap();
    assert!(ask(address, &get("/commands/srst")).await.starts_with("HTTP/1.1 403"));
    assert!(ask(address, &get("/commands/srvr")).await.starts_with("HTTP/1.1 200"));
}
