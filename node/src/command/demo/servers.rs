//! The server processes of a demo.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::process::{Child, ChildStdin, Command};

use super::layout::{DemoServer, Layout};
use super::{LOOK_INTERVAL, Ready, ReadyRegion, ReadyServer, ReadySubtree};
use crate::command::ask_admin;
use crate::config::{Role, SubtreeMode};

/// A mesh that is not ready by then is not going to be.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// A server that does not end by itself in this time is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The processes, in the order of the layout.
pub(super) struct Servers {
    children: Vec<Child>,
    /// The other ends of their standard inputs: a server stops when its own ends.
    inputs: Vec<ChildStdin>,
}

impl Servers {
    /// Starts a process for every server. A server ends when its standard input does, which is when this
    /// process ends, however it ends.
    pub(super) fn start(layout: &Layout) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program to start servers with")?;
        let start = |server: &DemoServer| -> anyhow::Result<Child> {
            let log = std::fs::OpenOptions::new().create(true).append(true).open(&server.log)?;
            let child = Command::new(&program)
                .args(["server", "--until-stdin-closes", "--config"])
                .arg(&server.config)
                .stdin(Stdio::piped())
                .stdout(log.try_clone()?)
                .stderr(log)
                // Ctrl-C is for the demo, which stops its servers in order.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start server {}", server.name))?;
            Ok(child)
        };
        let mut children = layout.servers().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        // Waiting for a child would close its input.
        let inputs = children.iter_mut().filter_map(|child| child.stdin.take()).collect();
        Ok(Self { children, inputs })
    }

    /// Waits until every server serves, every region has a leader and the regions know each other.
    pub(super) async fn wait_until_ready(
        &mut self,
        layout: &Layout,
        control: SocketAddr,
        quiet: bool,
    ) -> anyhow::Result<Ready> {
        let started = std::time::Instant::now();
        let mut serving: BTreeSet<String> = BTreeSet::new();
        loop {
            let look = look(layout).await;
            for server in layout.servers() {
                if look.contains_key(&server.name) && serving.insert(server.name.clone()) && !quiet {
                    let (count, all) = (serving.len(), layout.servers().count());
                    eprintln!(
                        "  [{count:>2}/{all}] {} serves after {:.1} s",
                        server.name,
                        started.elapsed().as_secs_f64()
                    );
                }
            }
            if is_ready(layout, &look) {
                if !quiet {
                    eprintln!(
                        "  the regions have found each other after {:.1} s",
                        started.elapsed().as_secs_f64()
                    );
                }
                return Ok(self.ready(layout, control, &look));
            }
            self.expect_all_running(layout)?;
            if started.elapsed() > READY_TIMEOUT {
                let missing: Vec<&str> =
                    layout.servers().map(|s| &*s.name).filter(|name| !serving.contains(*name)).collect();
                anyhow::bail!(
                    "the mesh is not ready after {} s; not serving: {:?}; see the logs in {}",
                    READY_TIMEOUT.as_secs(),
                    missing,
                    layout.directory.display()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn ready(&self, layout: &Layout, control: SocketAddr, look: &Look) -> Ready {
        let mut pids = self.children.iter().map(|c| c.id().unwrap_or_default());
        let mut server = |server: &DemoServer| ReadyServer {
            name: server.name.clone(),
            role: if server.role == Role::Voter { "voter" } else { "observer" },
            pid: pids.next().unwrap_or_default(),
            client: server.client.to_string(),
            admin: server.admin.to_string(),
            leader: look.get(&server.name).is_some_and(|status| status.leads_region),
            config: server.config.clone(),
        };
        let regions = layout.regions.iter().map(|region| ReadyRegion {
            name: region.name.clone(),
            servers: region.servers.iter().map(&mut server).collect(),
        });
        let regions = regions.collect();
        let subtrees = layout.subtrees.iter().map(|subtree| ReadySubtree {
            path: subtree.path.clone(),
            mode: if subtree.mode == SubtreeMode::Global { "global" } else { "homed" },
            home: subtree.home.clone(),
        });
        Ready { control, regions, subtrees: subtrees.collect() }
    }

    fn expect_all_running(&mut self, layout: &Layout) -> anyhow::Result<()> {
        for (server, child) in layout.servers().zip(&mut self.children) {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(&server.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
                anyhow::bail!("server {} ended with {status}; the end of its log:\n  {tail}", server.name);
            }
        }
        Ok(())
    }

    /// Says when a server ends, and how to start it again; runs until it is dropped.
    pub(super) async fn watch(&mut self, layout: &Layout, quiet: bool) -> anyhow::Result<()> {
        let mut running: FuturesUnordered<_> = layout
            .servers()
            .zip(&mut self.children)
            .map(|(server, child)| async move { (server, child.wait().await) })
            .collect();
        let program = std::env::current_exe()?;
        while let Some((server, status)) = running.next().await {
            if !quiet {
                let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
                eprintln!("server {} ended: {status}. Start it again with", server.name);
                eprintln!("  {} server --config {}", program.display(), server.config.display());
            }
        }
        // All have ended, but may be started again by hand.
        std::future::pending().await
    }

    /// Stops all servers: gently, then not.
    pub(super) async fn stop(&mut self) {
        self.inputs.clear();
        let ending: FuturesUnordered<_> = self
            .children
            .iter_mut()
            .map(|child| async move {
                if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            })
            .collect();
        ending.collect::<Vec<()>>().await;
    }
}

/// What a server says of itself.
#[derive(Debug, serde::Deserialize)]
struct Status {
    leads_region: bool,
    region_leader: Option<u64>,
    #[serde(default)]
    global_leader: Option<String>,
    #[serde(default)]
    lease_holds: bool,
}

type Look = BTreeMap<String, Status>;

/// Asks all servers at once.
async fn look(layout: &Layout) -> Look {
    let asking: FuturesUnordered<_> = layout
        .servers()
        .map(|server| {
            let (name, address) = (server.name.clone(), server.admin.to_string());
            async move {
                let asked = tokio::task::spawn_blocking(move || ask_admin(&address, "/mesh")).await;
                let status = serde_json::from_str(&asked.ok()?.ok()?).ok()?;
                Some((name, status))
            }
        })
        .collect();
    asking.collect::<Vec<_>>().await.into_iter().flatten().collect()
}

/// Whether every server serves, every region has a leader, and every region knows the global group's leader,
/// holds its lease and has measured the way to the others.
fn is_ready(layout: &Layout, look: &Look) -> bool {
    let regions = layout.regions.len();
    let region_ready = |region: &super::layout::DemoRegion| {
        let servers = || region.servers.iter().filter_map(|s| look.get(&s.name));
        servers().count() == region.servers.len()
            && servers().all(|s| s.region_leader.is_some())
            && (regions == 1
                || servers().any(|s| s.leads_region && s.global_leader.is_some())
                    && servers().all(|s| s.lease_holds))
    };
    let all_measured = || {
        let server = layout.servers().next().map(|s| s.admin.to_string()).unwrap_or_default();
        round_trips(&server).is_ok_and(|known| known.len() >= regions * (regions - 1))
    };
    layout.regions.iter().all(region_ready) && (regions == 1 || all_measured())
}

/// The median round trips that a server knows, in ms, by the names of both regions.
pub(super) fn round_trips(admin: &str) -> anyhow::Result<BTreeMap<(String, String), f64>> {
    let answer: serde_json::Value = serde_json::from_str(&ask_admin(admin, "/rtt")?)?;
    let rows = answer["rtt"].as_array().context("no round trips in the answer")?;
    let row = |row: &serde_json::Value| {
        let pair = (row["from"].as_str()?.to_string(), row["to"].as_str()?.to_string());
        Some((pair, row["p50_ms"].as_f64()?))
    };
    Ok(rows.iter().filter_map(row).collect())
}
