//! Datagrams over real loopback sockets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use meridian_wan::{CLIENTS_MAX, Conditions, Wan, WanDelays};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Long enough for a datagram that comes at all, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Three regions; round trips of 40 ms between us and eu, none elsewhere.
fn wan() -> Wan {
    let delays = WanDelays::new(["us", "eu", "ap"]).unwrap();
    Wan::new(delays.round_trip("us", "eu", Duration::from_millis(40)).unwrap()).unwrap()
}

async fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 2_048];
    let (length, sender) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(length);
    (buffer, sender)
}

/// A client in one region, a server in another, and the relay between them.
struct Pair {
    client: UdpSocket,
    server: UdpSocket,
    relay: SocketAddr,
    /// Relays end with their network.
    _wan: Wan,
}

impl Pair {
    async fn open(wan: &Wan, from: &str, to: &str) -> Self {
        let (client, server) = (socket().await, socket().await);
        let relay = wan.relay(from, to, server.local_addr().unwrap()).await.unwrap();
        Self { client, server, relay, _wan: wan.clone() }
    }

    async fn send(&self, payload: &[u8]) {
        self.client.send_to(payload, self.relay).await.unwrap();
    }

    /// One datagram there and its answer back.
    async fn exchange(&self, payload: &[u8]) {
        self.send(payload).await;
        let (received, client) = receive(&self.server).await;
        assert_eq!(received, payload);
        self.server.send_to(b"answer", client).await.unwrap();
        assert_eq!(receive(&self.client).await, (b"answer".to_vec(), self.relay));
    }
}

/// Waits until a count of the link from one region to another has got so far.
async fn counted(
    wan: &Wan,
    from: &str,
    to: &str,
    count: impl Fn(&meridian_wan::LinkStatus) -> u64,
    least: u64,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let links = wan.links();
        let link = links.iter().find(|link| link.from == from && link.to == to).unwrap();
        if count(link) >= least {
            return;
        }
        assert!(Instant::now() < deadline, "{link:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_datagram_takes_the_delay_there_and_the_delay_back() {
    let delays = WanDelays::new(["us", "eu"]).unwrap();
    let way = |one_way_ms| Conditions { one_way: Duration::from_millis(one_way_ms), ..Conditions::default() };
    let delays = delays.direction("us", "eu", way(30)).unwrap().direction("eu", "us", way(10)).unwrap();
    let pair = Pair::open(&Wan::new(delays).unwrap(), "us", "eu").await;

    let sent = Instant::now();
    pair.send(b"there").await;
    let (payload, client) = receive(&pair.server).await;
    assert_eq!(payload, b"there");
    assert!(sent.elapsed() >= Duration::from_millis(30));

    let answered = Instant::now();
    pair.server.send_to(b"back", client).await.unwrap();
    assert_eq!(receive(&pair.client).await, (b"back".to_vec(), pair.relay));
    assert!(answered.elapsed() >= Duration::from_millis(10));
}

#[tokio::test]
async fn order_is_kept_under_jitter() {
    let jittery =
        Conditions { one_way: Duration::from_millis(2), jitter: Duration::from_millis(20), loss: 0.0 };
    let delays = WanDelays::new(["us", "eu"]).unwrap().direction("us", "eu", jittery).unwrap();
    let pair = Pair::open(&Wan::new(delays).unwrap(), "us", "eu").await;
    for number in 0..200_u32 {
        pair.send(&number.to_be_bytes()).await;
    }
    for number in 0..200_u32 {
        assert_eq!(receive(&pair.server).await.0, number.to_be_bytes());
    }
}

#[tokio::test]
async fn clients_are_told_apart_and_get_their_own_answers() {
    let wan = wan();
    let pair = Pair::open(&wan, "us", "ap").await;
    let second = socket().await;
    pair.send(b"first").await;
    second.send_to(b"second", pair.relay).await.unwrap();
    for _ in 0..2 {
        let (payload, client) = receive(&pair.server).await;
        pair.server.send_to(&payload, client).await.unwrap();
    }
    assert_eq!(receive(&pair.client).await.0, b"first");
    assert_eq!(receive(&second).await.0, b"second");
}

#[tokio::test]
async fn only_the_server_can_answer() {
    let pair = Pair::open(&wan(), "us", "ap").await;
    pair.send(b"hello").await;
    let (_, client) = receive(&pair.server).await;
    socket().await.send_to(b"forged", client).await.unwrap();
    pair.server.send_to(b"genuine", client).await.unwrap();
    assert_eq!(receive(&pair.client).await.0, b"genuine");
}

#[tokio::test]
async fn a_cut_link_loses_both_directions_until_healed() {
    let wan = wan();
    let there = Pair::open(&wan, "us", "eu").await;
    let back = Pair::open(&wan, "eu", "us").await;
    let elsewhere = Pair::open(&wan, "us", "ap").await;

    wan.cut("eu", "us").unwrap();
    there.send(b"lost").await;
    back.send(b"lost").await;
    counted(&wan, "us", "eu", |link| link.cut_off, 1).await;
    counted(&wan, "eu", "us", |link| link.cut_off, 1).await;
    elsewhere.exchange(b"elsewhere").await;

    wan.heal("us", "eu").unwrap();
    there.exchange(b"after").await;
    back.exchange(b"after").await;
}

#[tokio::test]
async fn a_cut_loses_what_is_under_way() {
    let long = Duration::from_secs(2);
    let delays = WanDelays::new(["us", "eu"]).unwrap().round_trip("us", "eu", 2 * long).unwrap();
    let wan = Wan::new(delays).unwrap();
    let pair = Pair::open(&wan, "us", "eu").await;
    pair.send(b"lost").await;
    counted(&wan, "us", "eu", |link| u64::from(link.queued_bytes > 0), 1).await;
    wan.cut("us", "eu").unwrap();
    wan.heal("us", "eu").unwrap();
    pair.send(b"after").await;
    assert_eq!(receive(&pair.server).await.0, b"after");
}

#[tokio::test]
async fn an_isolated_region_reaches_itself_alone() {
    let wan = wan();
    let (out, into) = (Pair::open(&wan, "us", "eu").await, Pair::open(&wan, "ap", "us").await);
    let others = Pair::open(&wan, "eu", "ap").await;
    let within = Pair::open(&wan, "us", "us").await;

    wan.isolate("us").unwrap();
    let cut: Vec<_> =
        wan.links().into_iter().filter(|link| link.cut).map(|link| (link.from, link.to)).collect();
    assert_eq!(cut.len(), 4);
    assert!(cut.iter().all(|(from, to)| from == "us" || to == "us"));
    out.send(b"lost").await;
    into.send(b"lost").await;
    counted(&wan, "us", "eu", |link| link.cut_off, 1).await;
    counted(&wan, "ap", "us", |link| link.cut_off, 1).await;
    others.exchange(b"others").await;
    within.exchange(b"within").await;

    wan.heal_all();
    out.exchange(b"after").await;
    into.exchange(b"after").await;
    wan.isolate("eu").unwrap();
    wan.heal_region("eu").unwrap();
    assert!(wan.links().iter().all(|link| !link.cut));
}

#[tokio::test]
async fn a_relay_outlives_its_server() {
    let wan = wan();
    let server = socket().await;
    let target = server.local_addr().unwrap();
    let relay = wan.relay("us", "ap", target).await.unwrap();
    let client = socket().await;
    drop(server);
    client.send_to(b"nobody there", relay).await.unwrap();
    counted(&wan, "us", "ap", |link| link.delivered, 1).await;

    let server = UdpSocket::bind(target).await.unwrap();
    Pair { client, server, relay, _wan: wan }.exchange(b"after the restart").await;
}

#[tokio::test]
async fn the_client_idle_longest_gives_way_and_may_come_back() {
    let pair = Pair::open(&wan(), "us", "ap").await;
    pair.send(b"first").await;
    let (_, displaced) = receive(&pair.server).await;
    // Kept open: a port that is free again could be given to the next client, which would not be another.
    let mut others = Vec::new();
    for _ in 0..CLIENTS_MAX {
        let client = socket().await;
        client.send_to(b"another", pair.relay).await.unwrap();
        assert_eq!(receive(&pair.server).await.0, b"another");
        others.push(client);
    }
    pair.send(b"back").await;
    let (payload, client) = receive(&pair.server).await;
    assert_eq!(payload, b"back");
    pair.server.send_to(b"to the socket that is closed", displaced).await.unwrap();
    pair.server.send_to(b"to the new one", client).await.unwrap();
    assert_eq!(receive(&pair.client).await.0, b"to the new one");
}

#[tokio::test]
async fn names_and_numbers_are_checked() {
    let wan = wan();
    let unknown = r#"unknown region "mars"; the regions are: us, eu, ap"#;
    let target = "127.0.0.1:1".parse().unwrap();
    for error in [
        wan.cut("us", "mars").unwrap_err(),
        wan.heal("mars", "us").unwrap_err(),
        wan.isolate("mars").unwrap_err(),
        wan.relay("us", "mars", target).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), unknown);
    }
    assert!(wan.cut("us", "us").is_err());
    assert!(WanDelays::new(["us", "us"]).is_err());
    assert!(WanDelays::new(["us east"]).is_err());
    for conditions in [
        Conditions { loss: 1.5, ..Conditions::default() },
        Conditions { loss: f64::NAN, ..Conditions::default() },
        Conditions { one_way: Duration::MAX, ..Conditions::default() },
        Conditions { jitter: Duration::MAX, ..Conditions::default() },
    ] {
        assert!(WanDelays::new(["us", "eu"]).unwrap().direction("us", "eu", conditions).is_err());
    }
}
