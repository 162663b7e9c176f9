//! Three server processes of one kind.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::{Client, ClientError};
use crate::load::{Load, LoadReport};

/// Servers of each ensemble, all voters.
const SERVERS: usize = 3;
/// An ensemble that does not serve by then is not going to.
const SERVING_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two attempts to reach a server.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// What ZooKeeper's own scripts give it.
const JAVA_HEAP: &str = "-Xmx1000m";
/// How often a sync is timed, and of how much.
const SYNCS: usize = 100;
const SYNC_BYTES: [u8; 200] = [b'm'; 200];

/// An ensemble of server processes.
pub(super) struct Ensemble {
    name: &'static str,
    servers: Vec<Child>,
    clients: Vec<String>,
    directory: PathBuf,
}

impl Ensemble {
    /// Starts Apache ZooKeeper, with its defaults: it syncs every write.
    pub(super) fn zookeeper(path: &Path, directory: &Path) -> anyhow::Result<Self> {
        let class_path = class_path(path)?;
        let directory = directory.join("zookeeper");
        let ports = free_ports(3 * SERVERS)?;
        let (clients, peers) = ports.split_at(SERVERS);
        let mut members = String::new();
        for (number, ports) in (1..).zip(peers.chunks(2)) {
            let [peer, election] = ports else { continue };
            writeln!(members, "server.{number}=127.0.0.1:{peer}:{election}")?;
        }
        let start = |number: usize, own: &Path| {
            let config = format!(
                "tickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n\
                 clientPortAddress=127.0.0.1\nclientPort={}\ndataDir={}\n{members}",
                clients[number],
                own.display()
            );
            std::fs::write(own.join("myid"), (number + 1).to_string())?;
            std::fs::write(own.join("zoo.cfg"), config)?;
            let mut java = Command::new("java");
            java.arg("-cp").arg(&class_path).arg(JAVA_HEAP);
            java.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(own.join("zoo.cfg"));
            // Whatever it says about syncing or memory does not belong to the comparison.
            java.env_remove("JAVA_TOOL_OPTIONS").env_remove("JDK_JAVA_OPTIONS");
            Ok(java)
        };
        Self::start("ZooKeeper", directory.clone(), clients, start)
    }

    /// Starts a Meridian region on its own.
    pub(super) fn meridian(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let directory = directory.join("meridian");
        let ports = free_ports(3 * SERVERS)?;
        let (clients, others) = ports.split_at(SERVERS);
        let (peers, admins) = others.split_at(SERVERS);
        let mut members = String::new();
        for (number, peer) in (1..).zip(peers) {
            write!(members, "\n[[servers]]\nnumber = {number}\naddress = \"127.0.0.1:{peer}\"\n")?;
        }
        let start = |number: usize, own: &Path| {
            let config = format!(
                "region = \"compare\"\nserver = {}\ndata_dir = {:?}\n\
                 client = {{ listen = \"127.0.0.1:{}\", connections_per_address_max = 0 }}\n\
                 admin = {{ listen = \"127.0.0.1:{}\" }}\n{members}",
                number + 1,
                own.to_str().context("the path of the data is not UTF-8")?,
                clients[number],
                admins[number]
            );
            let file = own.join("region.toml");
            std::fs::write(&file, config)?;
            let mut meridian = Command::new(program);
            meridian.arg("server").arg("--config").arg(file);
            Ok(meridian)
        };
        Self::start("Meridian", directory.clone(), clients, start)
    }

    fn start(
        name: &'static str,
        directory: PathBuf,
        clients: &[u16],
        command: impl Fn(usize, &Path) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let mut servers = Vec::new();
        for number in 0..SERVERS {
            let own = directory.join((number + 1).to_string());
            std::fs::create_dir_all(&own)?;
            let log = File::create(directory.join(format!("{}.log", number + 1)))?;
            let mut command = command(number, &own)?;
            command.current_dir(&own).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let started = command.kill_on_drop(true).spawn();
            servers.push(started.with_context(|| format!("cannot start {name}"))?);
        }
        let clients = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Ok(Self { name, servers, clients, directory })
    }

    /// Waits until every server gives sessions.
    pub(super) async fn wait_until_serving(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SERVING_TIMEOUT;
        for address in &self.clients {
            loop {
                match self.try_session(address).await {
                    Ok(()) => break,
                    Err(error) if Instant::now() > deadline => bail!(
                        "{} at {address} does not serve after {} s: {error}\n{}",
                        self.name,
                        SERVING_TIMEOUT.as_secs(),
                        self.end_of_log()
                    ),
                    Err(_) => sleep(RETRY_PAUSE).await,
                }
            }
        }
        Ok(())
    }

    async fn try_session(&self, address: &str) -> Result<(), ClientError> {
        Client::connect(address).await?.close().await
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join("1.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// What the ensemble does under a load.
    pub(super) async fn load(&self, load: &Load) -> anyhow::Result<LoadReport> {
        let pids: Vec<u32> = self.servers.iter().filter_map(Child::id).collect();
        load.run(&self.clients, &pids)
            .await
            .with_context(|| format!("{} under {}", self.name, load.operation))
    }

    /// Ends the servers; their data goes with its directory.
    pub(super) async fn stop(mut self) {
        for server in &mut self.servers {
            // One that has ended by itself is as good.
            let _ = server.kill().await;
        }
    }
}

/// What `java -cp` needs for a jar, a `zkServer.sh` or the directory of a distribution.
fn class_path(path: &Path) -> anyhow::Result<String> {
    ensure!(
        path.exists(),
        "there is no {}: install Debian's package `zookeeper`, or name a distribution with --zookeeper",
        path.display()
    );
    let absolute = std::fs::canonicalize(path)?;
    let path = absolute.to_str().context("the path of ZooKeeper is not UTF-8")?;
    if absolute.extension().is_some_and(|extension| extension == "jar") {
        return Ok(path.to_string());
    }
    let home = match absolute.is_dir() {
        true => Some(absolute.as_path()),
        false => absolute.parent().and_then(Path::parent),
    };
    let libraries = home.map(|home| home.join("lib")).filter(|lib| lib.is_dir());
    match (&libraries, home) {
        (Some(libraries), Some(home)) => {
            Ok(format!("{}/*:{}", libraries.display(), home.join("conf").display()))
        }
        // Debian's script stands alone.
        _ if path.starts_with("/usr/share/zookeeper") => Ok("/usr/share/java/zookeeper.jar".into()),
        _ => bail!("{path} is no jar, and there is no lib directory beside it"),
    }
}

/// Ports that nobody listens on just now.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held until all are known, so that none comes twice.
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<std::io::Result<_>>()?)
}

/// The shortest time in which a little is appended to a file in a directory and synced. The shortest,
/// since others may use the disk too.
pub(super) fn sync_time(directory: &Path) -> anyhow::Result<Duration> {
    let mut file = tempfile::tempfile_in(directory)?;
    let mut shortest = Duration::MAX;
    for _ in 0..SYNCS {
        let started = std::time::Instant::now();
        file.write_all(&SYNC_BYTES)?;
        file.sync_data()?;
        shortest = shortest.min(started.elapsed());
    }
    Ok(shortest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zookeeper_is_found_by_any_of_its_parts() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().canonicalize().unwrap();
        let script = home.join("bin/zkServer.sh");
        for part in ["bin", "lib"] {
            std::fs::create_dir(home.join(part)).unwrap();
        }
        File::create(&script).unwrap();
        File::create(home.join("zookeeper.jar")).unwrap();
        let expected = format!("{0}/lib/*:{0}/conf", home.display());
        assert_eq!(class_path(&home).unwrap(), expected);
        assert_eq!(class_path(&script).unwrap(), expected);
        assert!(class_path(&home.join("zookeeper.jar")).unwrap().ends_with("zookeeper.jar"));
        assert!(class_path(&home.join("none")).unwrap_err().to_string().contains("--zookeeper"));
        std::fs::remove_dir(home.join("lib")).unwrap();
        assert!(class_path(&script).unwrap_err().to_string().contains("no lib"));
    }
}
