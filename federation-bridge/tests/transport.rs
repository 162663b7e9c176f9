//! Regions that talk over real loopback sockets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_bridge::certificates::{Authority, Identity, PeerName, SERVER_VALID_DAYS};
use meridian_bridge::probe::{self, Probes};
use meridian_bridge::transport::{Connection, PeerAddress, Settings, Transport};
use meridian_seam::Environment;
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
