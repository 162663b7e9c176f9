//! `meridian server`: one server of a region, in the foreground.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use meridian_bridge::certificates::{Identity, IdentityPaths, PeerName};
use meridian_bridge::mesh::{Mesh, RegionId};
use meridian_seam::clock::millis;
use meridian_seam::{Environment, limits, open_files};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::start_log;
use crate::config::{Overrides, Role, ServerConfig, TlsConfig};
use crate::mesh_server::{MeshPart, MeshServer};
use crate::peer_tls::PeerIdentity;
use crate::region::{PeerTls, RegionConfig};
use crate::server::{Server, ServerOptions};
use crate::txn::Policy;

const EXAMPLES: &str = "\
Examples:
  meridian server --config /etc/meridian/region.toml
  meridian server --config /etc/zookeeper/conf/zoo.cfg
  MERIDIAN_CLIENT__LISTEN=0.0.0.0:2182 meridian server --config region.toml --server 2 --data-dir /data/2

It runs until SIGTERM or Ctrl-C. SIGHUP reloads the certificates.
deploy/region.toml is a commented example of a configuration.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServerArgs {
    /// The configuration: TOML, or ZooKeeper's zoo.cfg if the name does not end in .toml
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
    #[cfg(feature = "kerberos")]
    take_keytab(&config)?;
    start_log(&config.log)?;
    config.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
    warn_of_even_voters(&config);
    let runtime = tokio::runtime::Runtime::new()?;
    let engine = EngineThread::start()?;
    let result = runtime.block_on(serve(config, args.until_stdin_closes, engine.handle.clone()));
    engine.stop();
    // The thread that waits for the end of standard input may never end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result.map(|()| ExitCode::SUCCESS)
}

/// The Kerberos library is told the keytab by the environment alone, which no process should change once it runs: this
/// program starts anew with it, as the same process.
#[cfg(feature = "kerberos")]
fn take_keytab(config: &ServerConfig) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    const VARIABLE: &str = "KRB5_KTNAME";
    let Some(keytab) = config.client.authentication.keytab()? else { return Ok(()) };
    let mut wanted = std::ffi::OsString::from("FILE:");
    wanted.push(keytab);
    if std::env::var_os(VARIABLE).as_ref() == Some(&wanted) {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut anew = std::process::Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    // It returns only if it fails.
    let error = anew.args(arguments).env(VARIABLE, wanted).exec();
    Err(error).context("can't start again with the keytab")
}

fn warn_of_even_voters(config: &ServerConfig) {
    let voters = config.members().values().filter(|member| member.role == Role::Voter).count();
    if voters.is_multiple_of(2) {
        tracing::warn!(voters, "an even number of voters survives no more failures than one fewer");
    }
}

/// The thread that the region's part of a server runs on.
struct EngineThread {
    handle: tokio::runtime::Handle,
    stop: oneshot::Sender<()>,
}

impl EngineThread {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("region".into()).spawn(move || {
            // Whoever started it may also be gone without a word.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop })
    }

    fn stop(self) {
        // The thread waits for nothing else.
        let _ = self.stop.send(());
    }
}

async fn serve(
    config: ServerConfig,
    until_stdin_closes: bool,
    engine: tokio::runtime::Handle,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let environment = Environment::production();
    let identity = load_identity(&config, &environment)?;
    let part = mesh_part(&config, identity.clone())?;
    let mut options = options(&config, identity.clone())?;
    options.engine = Some(engine);
    options.connections_max = connections_max(options.connections_max);
    let running = MeshServer::start(environment.clone(), options, part).await?;
    add_routes(&config, &environment, running.server());
    add_actions(&running);
    let mut failure = running.server().region().failure();
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
    running.shutdown().await;
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
        members: config.members(),
        listen: config.peer_listen(),
        data_dir: config.data_dir.clone(),
        timing: config.region_timing(),
        storage: config.region_storage(),
        tls: identity.map(|identity| PeerIdentity::new(identity) as Arc<dyn PeerTls>),
    };
    let ms = |ms: u32| Duration::from_millis(u64::from(ms));
    let words = &config.client.four_letter_words;
    let mut options = ServerOptions::new(region, config.client.listen.clone());
    options.admin_listen = config.admin.listen.clone();
    options.admin_optional = config.admin.optional;
    options.metrics_listen = config.admin.metrics_listen.clone();
    options.reconfig_enabled = config.client.reconfig;
    options.connections_max = match config.client.connections_max {
        0 => usize::MAX,
        max => max,
    };
    options.tick = Duration::from_millis(config.tick_ms);
    options.session_timeout_min = Some(ms(config.session_timeout_min_ms()));
    options.session_timeout_max = Some(ms(config.session_timeout_max_ms()));
    options.frame_bytes_max = config.client.frame_bytes_max;
    options.connections_per_address_max = config.client.connections_per_address_max;
    options.words = words.iter().cloned().collect();
    options.reaping = config.client.containers.reaping();
    let (extended_types, enforce_quota) = (config.client.extended_types, config.client.enforce_quota);
    options.policy = Policy { extended_types, enforce_quota };
    if config.client.listen.is_empty() {
        options.client_listen = None;
    }
    options.read_only_mode = config.client.read_only_mode;
    options.local_sessions = config.client.local_sessions;
    options.outstanding_max = config.client.outstanding_max;
    let throttled_wait = Duration::from_millis(config.client.throttled_wait_ms);
    options.throttled_wait = Some(throttled_wait).filter(|wait| !wait.is_zero());
    options.throttle = config.client.throttle.options();
    options.authentication = config.client.authentication.authentication()?;
    options.tls = config.client.tls.as_ref().map(TlsConfig::options);
    Ok(options)
}

/// How many clients may be connected: as configured, but no more than leaves the log and the other servers the files
/// that they need. The limit of open files is raised first, as Java does for ZooKeeper.
fn connections_max(configured: usize) -> usize {
    const FEWER: &str = "the limit of open files (ulimit -n, systemd's LimitNOFILE) leaves room for fewer clients' \
                         connections than client.connections_max";
    let Some(limit) = open_files::raise_limit() else { return configured };
    let fitting = limit - limits::FILES_RESERVED.min(limit / 2);
    let nobody_asked = [limits::CONNECTIONS_MAX, usize::MAX].contains(&configured);
    if fitting >= configured {
        return configured;
    } else if nobody_asked {
        tracing::info!(open_files_max = limit, connections_max = fitting, "{FEWER}");
    } else {
        tracing::warn!(open_files_max = limit, connections_max = fitting, configured, "{FEWER}");
    }
    fitting
}

/// The server's part in its mesh; only servers that may lead, and have certificates, have a bridge.
fn mesh_part(config: &ServerConfig, identity: Option<Arc<Identity>>) -> anyhow::Result<MeshPart> {
    Ok(match (config.bridge()?, identity) {
        (Some(bridge), Some(identity)) => MeshPart::Bridge { config: Box::new(bridge), identity },
        _ if config.mesh.as_ref().is_some_and(|mesh| mesh.regions.len() > 1) => MeshPart::Follow,
        _ => MeshPart::Alone,
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
    let config = config.clone();
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
            "subtrees": subtrees(&hub),
            "layout": super::plan::layout(&config, &hub.view().state.ensemble.members),
            "lease_holds": lease_left.is_none_or(|left| !left.is_zero()),
            "lease_left_ms": lease_left.map(millis),
        })
    });
}

/// The shared subtrees and their homes, as this server has applied them.
fn subtrees(hub: &crate::server::Hub) -> serde_json::Value {
    let view = hub.view();
    let state = &view.state;
    let subtrees = state.mesh.subtrees().map(|(id, subtree)| {
        let order = state.mesh.orderer_of(id).and_then(|orderer| state.federation.orders.get(&orderer));
        let home = order.and_then(|order| state.mesh.region_name(order.home));
        json!({ "path": subtree.path, "home": home, "epoch": order.map(|order| order.epoch) })
    });
    subtrees.collect()
}

/// What operators can have the mesh do: move a home, move the lead.
fn add_actions(running: &MeshServer) {
    let Some(bridge) = running.bridge() else { return };
    let hub = running.server().hub().clone();
    let (mesh_bridge, mesh_hub) = (bridge.clone(), hub.clone());
    running.server().routes().add_action("/mesh/home", move |asked| {
        let (bridge, hub) = (mesh_bridge.clone(), mesh_hub.clone());
        Box::pin(async move {
            let mesh = hub.view().state.mesh.clone();
            let path = asked["path"].as_str().unwrap_or_default();
            let (subtree, _) = mesh
                .subtrees()
                .find(|(_, subtree)| subtree.path == path)
                .ok_or_else(|| format!("'{path}' is not the root of a shared subtree"))?;
            let to = region_asked(&mesh, &asked)?;
            bridge.move_home(subtree, to).await.map_err(|e| e.to_string())?;
            Ok(json!({ "subtrees": subtrees(&hub) }))
        })
    });
    let bridge = bridge.clone();
    running.server().routes().add_action("/mesh/leader", move |asked| {
        let (bridge, hub) = (bridge.clone(), hub.clone());
        Box::pin(async move {
            let to = region_asked(&hub.view().state.mesh, &asked)?;
            bridge.transfer_global(to).await.map_err(|e| e.to_string())?;
            Ok(json!({ "global_leader": asked["region"] }))
        })
    });
}

fn region_asked(mesh: &Mesh, asked: &serde_json::Value) -> Result<RegionId, String> {
    let name = asked["region"].as_str().unwrap_or_default();
    let known = || mesh.regions.join(", ");
    mesh.region_id(name).ok_or_else(|| format!("there is no region '{name}'; the mesh has {}", known()))
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
