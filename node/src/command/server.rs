//! `meridian server`: one server of a region, in the foreground.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use meridian_bridge::bridge::Bridge;
use meridian_bridge::certificates::{Identity, IdentityPaths, PeerName};
use meridian_seam::Environment;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::start_log;
use crate::config::{Overrides, ServerConfig};
use crate::federation::{FederatedRegion, speak_while_leading};
use crate::peer_tls::PeerIdentity;
use crate::region::{PeerTls, RegionConfig};
use crate::server::{Server, ServerOptions};

/// How often the leader tells the other servers what it knows of the mesh.
const MESH_REPORT_INTERVAL: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  meridian server --config /etc/meridian/region.toml
  MERIDIAN_CLIENT__LISTEN=0.0.0.0:2182 meridian server --config region.toml --server 2 --data-dir /data/2

It runs until SIGTERM or Ctrl-C. SIGHUP reloads the certificates.
deploy/region.toml is a commented example of a configuration.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServerArgs {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// This server's number, instead of the one in the file
    #[arg(long, value_name = "N")]
    server: Option<u8>,
    /// Where the data lives, instead of what the file says
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Stop when standard input ends, so that no server outlives the program that started it
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

pub(super) fn run(args: &ServerArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides { server: args.server, data_dir: args.data_dir.clone() };
    let config = ServerConfig::load(&args.config, &overrides)
        .with_context(|| format!("the configuration {} can't be used", args.config.display()))?;
    start_log(&config.log)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(serve(config, args.until_stdin_closes));
    // The thread that waits for the end of standard input may never end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: ServerConfig, until_stdin_closes: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let environment = Environment::production();
    let identity = load_identity(&config, &environment)?;
    let server = Server::start(environment.clone(), options(&config, identity.clone())?).await?;
    let mut duties = JoinSet::new();
    let bridge = start_bridge(&config, &environment, &server, identity.clone(), &mut duties)?;
    add_routes(&config, &environment, &server);
    let mut failure = server.region().failure();
    let stdin_closed = stdin_closed(until_stdin_closes);
    tokio::pin!(stdin_closed);
    let reason = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok("SIGTERM"),
            _ = interrupt.recv() => break Ok("Ctrl-C"),
            () = &mut stdin_closed => break Ok("standard input ended"),
            _ = hangup.recv() => reload(identity.as_deref()),
            failed = failure.wait_for(Option::is_some) => {
                let reason = failed.ok().and_then(|f| f.clone()).unwrap_or_default();
                break Err(anyhow::anyhow!("this server can take no further part in its region: {reason}"));
            }
        }
    };
    match &reason {
        Ok(reason) => tracing::info!(reason, "stopping"),
        Err(error) => tracing::error!(%error, "stopping"),
    }
    duties.abort_all();
    if let Some(bridge) = bridge {
        bridge.shutdown().await;
    }
    server.shutdown().await;
    reason.map(drop)
}

fn load_identity(config: &ServerConfig, environment: &Environment) -> anyhow::Result<Option<Arc<Identity>>> {
    let Some(security) = &config.security else {
        tracing::warn!("no certificates are configured: the servers of this region talk without TLS");
        return Ok(None);
    };
    let paths = IdentityPaths {
        certificate: security.certificate.clone(),
        key: security.key.clone(),
        authority: security.authority.clone(),
    };
    let identity = Identity::load(paths, environment.clock.clone())?;
    identity.expect_name(&PeerName::new(config.region.as_str(), config.server_name()))?;
    Ok(Some(Arc::new(identity)))
}

fn reload(identity: Option<&Identity>) {
    match identity.map(Identity::reload) {
        None => tracing::info!("SIGHUP: there is nothing to reload"),
        Some(Ok(())) => tracing::info!("certificates reloaded; new connections use them"),
        Some(Err(error)) => tracing::error!(%error, "certificates not reloaded; the old ones stay in use"),
    }
}

fn options(config: &ServerConfig, identity: Option<Arc<Identity>>) -> anyhow::Result<ServerOptions> {
    let mesh = config.mesh_table()?;
    let region = RegionConfig {
        // A region on its own is the first of its mesh of one.
        region: mesh.and_then(|mesh| mesh.region_id(&config.region)).unwrap_or(1),
        region_name: config.region.clone(),
        server: u64::from(config.server),
        voters: config.voters(),
        observers: config.observers(),
        listen: config
            .servers
            .iter()
            .find(|s| s.number == config.server)
            .map(|s| s.address.clone())
            .unwrap_or_default(),
        data_dir: config.data_dir.clone(),
        timing: config.region_timing(),
        tls: identity.map(|identity| PeerIdentity::new(identity) as Arc<dyn PeerTls>),
    };
    let ms = |ms: u32| Duration::from_millis(u64::from(ms));
    let words = &config.client.four_letter_words;
    let mut options = ServerOptions::new(region, config.client.listen.clone());
    options.admin_listen = config.admin.listen.clone();
    options.tick = Duration::from_millis(config.tick_ms);
    options.session_timeout_min = config.client.session_timeout_min_ms.map(ms);
    options.session_timeout_max = config.client.session_timeout_max_ms.map(ms);
    options.frame_bytes_max = config.client.frame_bytes_max;
    options.connections_per_address_max = config.client.connections_per_address_max;
    options.words = words.iter().cloned().collect();
    Ok(options)
}

/// Starts the bridge of a server that may lead; every server of a mesh needs a lease from then on.
fn start_bridge(
    config: &ServerConfig,
    environment: &Environment,
    server: &Server,
    identity: Option<Arc<Identity>>,
    duties: &mut JoinSet<()>,
) -> anyhow::Result<Option<Arc<Bridge>>> {
    if config.mesh.as_ref().is_some_and(|mesh| mesh.regions.len() > 1) {
        server.lease().set(Some(Duration::ZERO));
    }
    let (Some(bridge_config), Some(identity)) = (config.bridge()?, identity) else { return Ok(None) };
    let mesh = bridge_config.mesh.clone();
    let gate = server.lease().clone();
    let federated =
        FederatedRegion::new(server.region().clone(), Box::new(move |deadline| gate.extend(deadline)));
    let bridge = Bridge::start(environment.clone(), bridge_config, identity, federated)?;
    duties.spawn(speak_while_leading(server.region().clone(), bridge.clone(), mesh));
    let (hub, reporting) = (server.hub().clone(), bridge.clone());
    let leadership = server.region().leadership();
    duties.spawn(async move {
        let mut ticks = tokio::time::interval(MESH_REPORT_INTERVAL);
        loop {
            ticks.tick().await;
            if leadership.borrow().is_me {
                hub.set_mesh_report(Some(mesh_report(&reporting).to_string()));
            }
        }
    });
    Ok(Some(bridge))
}

/// What a leading server tells the others of its region about the mesh.
fn mesh_report(bridge: &Bridge) -> serde_json::Value {
    let row = |row: meridian_bridge::bridge::RttRow| {
        let mut value = serde_json::to_value(&row.rtt).unwrap_or_default();
        value["from"] = row.from.into();
        value["to"] = row.to.into();
        value
    };
    let status = bridge.status();
    json!({
        "rtt": bridge.rtt().into_iter().map(row).collect::<Vec<_>>(),
        "global_leader": status.global_leader,
        "global_term": status.global_term,
        "outbox_requests": status.outbox_requests,
    })
}

/// JSON for operators: `/mesh` and `/rtt`.
fn add_routes(config: &ServerConfig, environment: &Environment, server: &Server) {
    let report = |hub: &crate::server::Hub| -> serde_json::Value {
        hub.mesh_report().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    };
    let hub = server.hub().clone();
    server
        .routes()
        .add("/rtt", move || json!({ "rtt": report(&hub)["rtt"].as_array().cloned().unwrap_or_default() }));
    let (hub, gate, clock) = (server.hub().clone(), server.lease().clone(), environment.clock.clone());
    let leadership = server.region().leadership();
    let (region, name, role) = (config.region.clone(), config.server_name(), config.role());
    server.routes().add("/mesh", move || {
        let known = report(&hub);
        let leads = *leadership.borrow();
        let lease_left = gate.deadline().map(|deadline| deadline.saturating_sub(clock.monotonic()));
        json!({
            "region": region,
            "server": name,
            "role": role,
            "leads_region": leads.is_me,
            "region_leader": leads.leader,
            "region_term": leads.term,
            "global_leader": known["global_leader"],
            "global_term": known["global_term"],
            "outbox_requests": known["outbox_requests"],
            "lease_holds": lease_left.is_none_or(|left| !left.is_zero()),
            "lease_left_ms": lease_left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        })
    });
}

/// Done when standard input ends, if that is to be waited for.
async fn stdin_closed(wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let (ended, closed) = oneshot::channel();
    // A plain thread: a read of standard input can't be cancelled.
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        let mut stdin = std::io::stdin();
        while stdin.read(&mut bytes).is_ok_and(|read| read > 0) {}
        // The server may have stopped for another reason.
        let _ = ended.send(());
    });
    // The thread always sends before it ends.
    let _ = closed.await;
}
