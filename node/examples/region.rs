//! Runs a whole region in one process, for trying clients on it:
//! `cargo run -p meridian-node --example region -- <directory> <first client port> [voters] [observers]`.

use std::collections::BTreeMap;

use anyhow::Context;
use meridian_node::region::{RegionConfig, Timing};
use meridian_node::server::{Server, ServerOptions};
use meridian_node::txn::ensemble::members_at;
use meridian_seam::Environment;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u16| {
        arguments.get(index).map_or(Ok(default), |a| a.parse()).context("ports and counts are numbers")
    };
    let directory = arguments.first().context("the first argument is a directory")?;
    let (port, voters, observers) = (number(1, 2181)?, number(2, 1)?, number(3, 0)?);
    let peer = |i: u16| (u64::from(i) + 1, format!("127.0.0.1:{}", port + 1000 + i));
    let voter_addresses: BTreeMap<u64, String> = (0..voters).map(peer).collect();
    let observer_addresses: BTreeMap<u64, String> = (voters..voters + observers).map(peer).collect();
    let mut servers = Vec::new();
    for i in 0..voters + observers {
        let (server, listen) = peer(i);
        let region = RegionConfig {
            region: 1,
            region_name: "example".into(),
            server,
            members: members_at(&voter_addresses, &observer_addresses),
            listen,
            data_dir: format!("{directory}/{server}").into(),
            timing: Timing::default(),
            storage: Default::default(),
            tls: None,
        };
        std::fs::create_dir_all(&region.data_dir)?;
        let options = ServerOptions {
            admin_listen: Some(format!("127.0.0.1:{}", port + 2000 + i)),
            ..ServerOptions::new(region, format!("127.0.0.1:{}", port + i))
        };
        servers.push(Server::start(Environment::production(), options).await?);
    }
    tokio::signal::ctrl_c().await?;
    for server in servers {
        server.shutdown().await;
    }
    Ok(())
}
