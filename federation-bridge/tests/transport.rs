//! Regions that talk over real loopback sockets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_bridge::certificates::{Authority, Identity, PROTOCOL, PeerName, SERVER_VALID_DAYS, peer_name};
use meridian_bridge::probe::{self, Probes};
use meridian_bridge::transport::{Connection, PeerAddress, Settings, Transport};
use meridian_seam::Environment;
use meridian_seam::limits;
use meridian_seam::rpc::{self, Client, Handler};
use meridian_wan::{Wan, WanDelays};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Long enough for whatever happens at all, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it should have happened by now")
}

/// The machine of an operator: an authority and a directory of certificates.
struct Mesh {
    env: Environment,
    authority: Authority,
    directory: TempDir,
}

impl Mesh {
    fn new() -> Self {
        let env = Environment::production();
        let authority = Authority::create(env.clock.as_ref(), 10).unwrap();
        Self { env, authority, directory: TempDir::new().unwrap() }
    }

    fn identity(&self, name: &PeerName) -> Arc<Identity> {
        let issued = self.authority.issue(name, self.env.clock.as_ref(), SERVER_VALID_DAYS).unwrap();
        let paths = issued.save(self.directory.path()).unwrap();
        Arc::new(Identity::load(paths, Arc::clone(&self.env.clock)).unwrap())
    }

    /// A transport of a new server, whose name is its region's with `-1` behind it.
    fn server(&self, region: &str) -> Arc<Transport> {
        self.server_with(region, Settings::default())
    }

    fn server_with(&self, region: &str, settings: Settings) -> Arc<Transport> {
        let name = first_of(region);
        let transport = Transport::bind(&self.env, loopback(0), self.identity(&name), &name, settings);
        Arc::new(transport.unwrap())
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn first_of(region: &str) -> PeerName {
    PeerName::new(region, format!("{region}-1"))
}

fn at(region: &str, address: SocketAddr) -> PeerAddress {
    let name = first_of(region);
    PeerAddress { region: name.region, server: name.server, address: address.to_string() }
}

fn address_of(region: &str, transport: &Transport) -> PeerAddress {
    at(region, transport.local_addr().unwrap())
}

/// Answers requests on lane 7 with who asked; drops the streams of other lanes.
fn answer_all(transport: Arc<Transport>) {
    struct WhoAsked(PeerName);
    impl Handler for WhoAsked {
        fn handle(&self, _kind: u8, _body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
            let answer = self.0.to_string();
            Box::pin(async move { Ok(answer.into()) })
        }
    }
    tokio::spawn(async move {
        while let Some(incoming) = transport.accept().await {
            if incoming.lane == 7 {
                tokio::spawn(async move { rpc::serve(incoming.stream, &WhoAsked(incoming.peer)).await });
            }
        }
    });
}

async fn ask(connection: &Connection) -> io::Result<String> {
    let client = Client::new(soon(connection.open(7)).await?);
    let answer = soon(client.call(0, Bytes::new())).await?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

#[tokio::test]
async fn both_sides_know_each_other_and_streams_carry_requests() {
    let mesh = Mesh::new();
    let (us, eu) = (mesh.server("us"), mesh.server("eu"));
    answer_all(Arc::clone(&eu));
    answer_all(Arc::clone(&us));
    let to_eu = soon(us.connect(&address_of("eu", &eu))).await.unwrap();
    assert_eq!(to_eu.peer(), &first_of("eu"));
    assert_eq!(ask(&to_eu).await.unwrap(), "server us-1 of region us");
    let to_us = soon(eu.connect(&address_of("us", &us))).await.unwrap();
    assert_eq!(ask(&to_us).await.unwrap(), "server eu-1 of region eu");
}

#[tokio::test]
async fn a_standing_connection_is_used_again_and_a_closed_one_is_not() {
    let mesh = Mesh::new();
    let (us, eu) = (mesh.server("us"), mesh.server("eu"));
    answer_all(Arc::clone(&eu));
    let address = address_of("eu", &eu);
    let (first, second) = tokio::join!(us.connect(&address), us.connect(&address));
    let (first, second) = (first.unwrap(), second.unwrap());
    first.close();
    assert!(second.is_closed(), "two callers at once share one connection");
    let third = soon(us.connect(&address)).await.unwrap();
    assert!(ask(&third).await.is_ok());
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (mesh, foreign) = (Mesh::new(), Mesh::new());
    let (us, eu) = (mesh.server("us"), mesh.server("eu"));
    let strange_eu = foreign.server("eu");
    let error = soon(us.connect(&address_of("eu", &strange_eu))).await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");

    // It trusts both authorities, and is still not trusted itself.
    let ap = foreign.identity(&first_of("ap"));
    let authorities = foreign.directory.path().join("authority.pem");
    let ours = std::fs::read_to_string(mesh.directory.path().join("authority.pem")).unwrap();
    let theirs = std::fs::read_to_string(&authorities).unwrap();
    std::fs::write(&authorities, theirs + &ours).unwrap();
    ap.reload().unwrap();
    let ap = Transport::bind(&foreign.env, loopback(0), ap, &first_of("ap"), Settings::default()).unwrap();
    let error = soon(ap.connect(&address_of("eu", &eu))).await.err().unwrap();
    assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
}

#[tokio::test]
async fn a_peer_of_another_name_than_expected_is_refused() {
    let mesh = Mesh::new();
    let (us, eu) = (mesh.server("us"), mesh.server("eu"));
    let here = eu.local_addr().unwrap();
    let other_region = at("ap", here);
    let other_server = PeerAddress { server: "eu-2".into(), ..at("eu", here) };
    for expected in [other_region, other_server] {
        let error = soon(us.connect(&expected)).await.err().unwrap();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    assert!(soon(us.connect(&at("eu", here))).await.is_ok());

    let wrong = Transport::bind(
        &mesh.env,
        loopback(0),
        mesh.identity(&first_of("ap")),
        &first_of("us"),
        Settings::default(),
    );
    let error = wrong.err().unwrap().to_string();
    assert!(error.contains("is for server ap-1 of region ap, not for server us-1 of region us"), "{error}");
}

#[tokio::test]
async fn reloaded_certificates_hold_for_new_connections() {
    let (mesh, successor) = (Mesh::new(), Mesh::new());
    let (us, eu) = (mesh.identity(&first_of("us")), mesh.identity(&first_of("eu")));
    let bind = |identity: &Arc<Identity>, region| {
        Transport::bind(&mesh.env, loopback(0), Arc::clone(identity), &first_of(region), Settings::default())
    };
    let us_transport = bind(&us, "us").unwrap();
    let eu_transport = Arc::new(bind(&eu, "eu").unwrap());
    answer_all(Arc::clone(&eu_transport));
    let address = address_of("eu", &eu_transport);
    let standing = soon(us_transport.connect(&address)).await.unwrap();

    // The server in eu gets a certificate of the next authority, which us does not trust yet.
    let authorities = mesh.directory.path().join("authority.pem");
    let old_authority = std::fs::read_to_string(&authorities).unwrap();
    let issued = successor.authority.issue(&first_of("eu"), mesh.env.clock.as_ref(), 10).unwrap();
    issued.save(mesh.directory.path()).unwrap();
    assert!(eu.reload().is_err(), "peers would refuse it");
    std::fs::write(&authorities, old_authority + &issued.authority_pem).unwrap();
    eu.reload().unwrap();
    assert!(ask(&standing).await.is_ok(), "a standing connection goes on");
    standing.close();
    assert!(soon(us_transport.connect(&address)).await.is_err());

    us.reload().unwrap();
    let renewed = soon(us_transport.connect(&address)).await.unwrap();
    assert!(ask(&renewed).await.is_ok());
}

/// A server on a runtime of its own, which can be killed without a word to its peers.
struct Mortal {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Mortal {
    async fn start(
        mesh: &Mesh,
        identity: &Arc<Identity>,
        region: &str,
        port: u16,
        settings: Settings,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().unwrap();
        let (env, identity, name) = (mesh.env.clone(), Arc::clone(identity), first_of(region));
        let bound = runtime.spawn(async move {
            // The port may be in use for a moment yet.
            loop {
                match Transport::bind(&env, loopback(port), Arc::clone(&identity), &name, settings.clone()) {
                    Ok(transport) => {
                        let transport = Arc::new(transport);
                        answer_all(Arc::clone(&transport));
                        return transport.local_addr().unwrap();
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        Self { address: soon(bound).await.unwrap(), runtime: Some(runtime) }
    }
}

/// Opens a stream that stays open, and returns it once the other side has answered on it.
async fn busy_stream(connection: &Connection) -> Client {
    let client = Client::new(soon(connection.open(7)).await.unwrap());
    soon(client.call(0, Bytes::new())).await.unwrap();
    client
}

#[tokio::test]
async fn a_killed_peer_shows_within_the_idle_timeout() {
    let mesh = Mesh::new();
    let settings = Settings {
        keep_alive: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(1),
        ..Settings::default()
    };
    let eu = Mortal::start(&mesh, &mesh.identity(&first_of("eu")), "eu", 0, settings.clone()).await;
    let us = mesh.server_with("us", settings);
    let connection = soon(us.connect(&at("eu", eu.address))).await.unwrap();
    let client = busy_stream(&connection).await;
    drop(eu);
    soon(client.closed()).await;
    assert_eq!(soon(connection.closed()).await.kind(), io::ErrorKind::TimedOut);
    assert!(connection.open(7).await.is_err());
}

#[tokio::test]
async fn a_restarted_peer_disowns_the_old_connection() {
    let mesh = Mesh::new();
    let settings = Settings {
        keep_alive: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(600),
        ..Settings::default()
    };
    let identity = mesh.identity(&first_of("eu"));
    let eu = Mortal::start(&mesh, &identity, "eu", 0, settings.clone()).await;
    let us = mesh.server_with("us", settings.clone());
    let address = eu.address;
    let connection = soon(us.connect(&at("eu", address))).await.unwrap();
    let client = busy_stream(&connection).await;
    drop(eu);
    let _eu = Mortal::start(&mesh, &identity, "eu", address.port(), settings).await;
    soon(client.closed()).await;
    assert_eq!(soon(connection.closed()).await.kind(), io::ErrorKind::ConnectionReset);
    let again = soon(us.connect(&at("eu", address))).await.unwrap();
    assert!(ask(&again).await.is_ok());
}

#[tokio::test]
async fn a_closing_server_tells_its_peers() {
    let mesh = Mesh::new();
    let (us, eu) = (mesh.server("us"), mesh.server("eu"));
    let connection = soon(us.connect(&address_of("eu", &eu))).await.unwrap();
    soon(eu.close()).await;
    assert!(soon(eu.accept()).await.is_none());
    let error = soon(connection.closed()).await;
    assert!(error.to_string().contains("the server is stopping"), "{error}");
}

#[tokio::test]
async fn probes_measure_the_path() {
    let mesh = Mesh::new();
    let (us, eu) = (mesh.server("us"), mesh.server("eu"));
    let delays = WanDelays::new(["us", "eu"]).unwrap();
    let wan = Wan::new(delays.round_trip("us", "eu", Duration::from_millis(40)).unwrap()).unwrap();
    let relay = wan.relay("us", "eu", eu.local_addr().unwrap()).await.unwrap();
    let connection = soon(us.connect(&at("eu", relay))).await.unwrap();

    let probes = Arc::new(Probes::default());
    let (measured, clock) = (Arc::clone(&probes), Arc::clone(&mesh.env.clock));
    let probing = connection.clone();
    let measuring = tokio::spawn(async move {
        probe::measure(&probing, &measured, clock.as_ref(), Duration::from_millis(10)).await
    });
    let summary = soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match probes.summary("eu", mesh.env.clock.monotonic()) {
                Some(summary) if summary.count >= 50 => return summary,
                _ => {}
            }
        }
    })
    .await;
    // A histogram keeps three digits.
    assert!(summary.min_ms > 39.9, "{summary:?}");
    assert!(summary.min_ms < 400.0, "{summary:?}");
    assert!(summary.min_ms <= summary.p50_ms && summary.p50_ms <= summary.max_ms, "{summary:?}");
    assert_eq!(summary.lost, 0);
    connection.close();
    soon(measuring).await.unwrap();
}

#[tokio::test]
async fn hostile_peers_and_strangers_disturb_nobody_else() {
    let mesh = Mesh::new();
    let (us, eu, ap) = (mesh.server("us"), mesh.server("eu"), mesh.server("ap"));
    answer_all(Arc::clone(&eu));
    let address = address_of("eu", &eu);
    let honest = soon(us.connect(&address)).await.unwrap();
    let hostile = soon(ap.connect(&address)).await.unwrap();

    let stranger = tokio::net::UdpSocket::bind(loopback(0)).await.unwrap();
    for number in 0..2_000_usize {
        let garbage: Vec<u8> = (0..number % 1_300).map(|i| (i * 31 + number * 17) as u8).collect();
        stranger.send_to(&garbage, eu.local_addr().unwrap()).await.unwrap();
    }
    let mut garbage = Vec::new();
    for lane in [0, 7, 255] {
        let mut stream = soon(hostile.open(lane)).await.unwrap();
        // It is closed under way.
        let _ = stream.write_all(&[0xff; 100_000]).await;
        garbage.push(stream);
    }
    assert_eq!(ask(&honest).await.unwrap(), "server us-1 of region us");
    for mut stream in garbage {
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
    }
    assert_eq!(ask(&hostile).await.unwrap(), "server ap-1 of region ap");
}

#[tokio::test]
async fn streams_beyond_the_bound_wait() {
    let mesh = Mesh::new();
    let eu = mesh.server("eu");
    let us = mesh
        .server_with("us", Settings { handshake_timeout: Duration::from_millis(500), ..Settings::default() });
    let connection = soon(us.connect(&address_of("eu", &eu))).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..limits::BRIDGE_STREAMS_MAX {
        open.push(soon(connection.open(1)).await.unwrap());
    }
    assert_eq!(soon(connection.open(1)).await.err().unwrap().kind(), io::ErrorKind::TimedOut);
    drop(open);
    soon(async {
        for _ in 0..limits::BRIDGE_STREAMS_MAX {
            drop(eu.accept().await.unwrap());
        }
    })
    .await;
    assert!(soon(connection.open(1)).await.is_ok());
}

#[tokio::test]
async fn a_peer_that_connects_again_and_again_loses_its_oldest_connection() {
    let mesh = Mesh::new();
    let eu = mesh.server("eu");
    answer_all(Arc::clone(&eu));
    let address = address_of("eu", &eu);
    let mut lives = Vec::new();
    for _ in 0..=limits::BRIDGE_CONNECTIONS_PER_PEER_MAX {
        let us = mesh.server("us");
        let connection = soon(us.connect(&address)).await.unwrap();
        assert!(ask(&connection).await.is_ok());
        lives.push((us, connection));
    }
    soon(lives[0].1.closed()).await;
    for (_, connection) in &lives[1..] {
        assert!(ask(connection).await.is_ok());
    }
}

/// The same certificates serve TCP between the servers of a region.
#[tokio::test]
async fn tls_over_tcp_knows_the_peer() {
    let mesh = Mesh::new();
    let (first, second) = (PeerName::new("us", "us-1"), PeerName::new("us", "us-2"));
    let (here, there) = (mesh.identity(&first), mesh.identity(&second));
    let (near, far) = tokio::io::duplex(1 << 16);
    let expected = second.dns_name().unwrap().try_into().unwrap();
    let connecting = tokio_rustls::TlsConnector::from(here.client_config()).connect(expected, near);
    let accepting = tokio_rustls::TlsAcceptor::from(there.server_config()).accept(far);
    let (mut connected, accepted) = tokio::try_join!(connecting, accepting).unwrap();
    let shown = accepted.get_ref().1.peer_certificates().unwrap();
    assert_eq!(peer_name(&shown[0]).unwrap(), first);
    assert_eq!(connected.get_ref().1.alpn_protocol(), Some(PROTOCOL));
    drop(accepted);
    assert!(connected.read_u8().await.is_err());
}
