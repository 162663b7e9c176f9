//! A region of one voter in a temporary directory.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_bench::client::Client;
use meridian_node::region::{RegionConfig, Timing};
use meridian_node::server::{Server, ServerOptions};
use meridian_node::txn::ensemble::members_at;
use meridian_seam::Environment;

pub(crate) struct Region {
    pub(crate) server: Server,
    _directory: tempfile::TempDir,
}

impl Region {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let region = RegionConfig {
            region: 1,
            region_name: "a".into(),
            server: 1,
            members: members_at(&BTreeMap::from([(1, peer.clone())]), &BTreeMap::new()),
            listen: peer,
            data_dir: directory.path().into(),
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_timeout: (Duration::from_millis(200), Duration::from_millis(400)),
            },
            tls: None,
            storage: Default::default(),
        };
        let options = ServerOptions::new(region, "127.0.0.1:0");
        let server = Server::start(Environment::production(), options).await.unwrap();
        Self { server, _directory: directory }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(&self.server.client_address().to_string()).await.unwrap()
    }
}
