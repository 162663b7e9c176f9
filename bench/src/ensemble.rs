//! Server processes of one kind: three voters, and observers if wanted.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::{Client, ClientError};
use crate::load::{Load, LoadReport};
use crate::mesh::meridian_program;
use crate::process::resident_bytes;

/// Voters of each ensemble.
const VOTERS: usize = 3;
/// An ensemble that does not serve by then is not going to.
const SERVING_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two attempts to reach a server.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// What ZooKeeper's own scripts give it.
const JAVA_HEAP: &str = "-Xmx1000m";
/// How often a sync is timed, and of how much.
const SYNCS: usize = 100;
const SYNC_BYTES: [u8; 200] = [b'm'; 200];

/// The systems that are measured, and where they keep their data.
#[derive(Debug, Args)]
pub(crate) struct Systems {
    /// ZooKeeper: its jar, its zkServer.sh, or the directory of a distribution
    #[arg(long, value_name = "PATH", default_value = "/usr/share/java/zookeeper.jar")]
    zookeeper: PathBuf,
    /// The `meridian` program, if not the one next to this one
    #[arg(long, value_name = "PATH")]
    meridian: Option<PathBuf>,
    /// Where the data is kept, in a directory of its own that is removed at the end
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    ZooKeeper,
    Meridian,
}

/// How an ensemble is set up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) observers: usize,
    pub(crate) snapshots: Snapshots,
}

impl Setup {
    fn servers(self) -> usize {
        VOTERS + self.observers
    }
}

/// When an ensemble writes snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Snapshots {
    #[default]
    AsByDefault,
    /// Not while it is measured.
    Never,
}

impl System {
    /// Those to measure, in this order.
    pub(crate) fn measured(only_meridian: bool) -> &'static [Self] {
        if only_meridian { &[Self::Meridian] } else { &[Self::ZooKeeper, Self::Meridian] }
    }
}

impl Systems {
    /// Where data is kept if nothing else is said.
    pub(crate) fn parent(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// A new directory for data, by its absolute path: servers are started in directories of their own.
    pub(crate) fn directory(&self) -> anyhow::Result<TempDir> {
        let parent = std::path::absolute(self.parent())?;
        let directory = tempfile::Builder::new().prefix("meridian-bench-").tempdir_in(&parent);
        directory.with_context(|| format!("cannot keep data in {}", parent.display()))
    }

    /// Starts an ensemble.
    pub(crate) fn start(&self, system: System, directory: &Path, setup: Setup) -> anyhow::Result<Ensemble> {
        match system {
            System::ZooKeeper => Ensemble::zookeeper(&self.zookeeper, directory, setup),
            System::Meridian => {
                Ensemble::meridian(&meridian_program(self.meridian.as_deref())?, directory, setup)
            }
        }
    }
}

/// Makes the command that starts a server, by its place and directory.
type StartCommand = dyn Fn(usize, &Path) -> anyhow::Result<Command>;

/// An ensemble of server processes.
pub(crate) struct Ensemble {
    name: &'static str,
    command: Box<StartCommand>,
    servers: Vec<Child>,
    clients: Vec<String>,
    directory: PathBuf,
}

impl Ensemble {
    /// Starts Apache ZooKeeper, with its defaults: it syncs every write.
    fn zookeeper(path: &Path, directory: &Path, setup: Setup) -> anyhow::Result<Self> {
        let class_path = class_path(path)?;
        let directory = directory.join("zookeeper");
        let ports = free_ports(3 * setup.servers())?;
        let (clients, peers) = ports.split_at(setup.servers());
        let clients = clients.to_vec();
        let mut settings = match setup.snapshots {
            Snapshots::AsByDefault => String::new(),
            Snapshots::Never => "snapCount=2000000000\n".into(),
        };
        for (number, ports) in (1..).zip(peers.chunks(2)) {
            let [peer, election] = ports else { continue };
            let role = if number > VOTERS { "observer" } else { "participant" };
            writeln!(settings, "server.{number}=127.0.0.1:{peer}:{election}:{role}")?;
        }
        let client_ports = clients.clone();
        let start = move |number: usize, own: &Path| {
            let role = if number < VOTERS { "participant" } else { "observer" };
            let config = format!(
                "peerType={role}\ntickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n\
                 clientPortAddress=127.0.0.1\nclientPort={}\ndataDir={}\n{settings}",
                client_ports[number],
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
        Self::start("ZooKeeper", directory, &clients, Box::new(start))
    }

    /// Starts a Meridian region on its own.
    fn meridian(program: &Path, directory: &Path, setup: Setup) -> anyhow::Result<Self> {
        let directory = directory.join("meridian");
        let ports = free_ports(3 * setup.servers())?;
        let (clients, others) = ports.split_at(setup.servers());
        let (peers, admins) = others.split_at(setup.servers());
        let (clients, admins, program) = (clients.to_vec(), admins.to_vec(), program.to_path_buf());
        let mut settings = match setup.snapshots {
            Snapshots::AsByDefault => String::new(),
            Snapshots::Never => {
                "storage = { entries_per_snapshot = 2000000000, log_kb_per_snapshot = 2000000000 }\n".into()
            }
        };
        for (number, peer) in (1..).zip(peers) {
            let role = if number > VOTERS { "observer" } else { "voter" };
            write!(
                settings,
                "\n[[servers]]\nnumber = {number}\naddress = \"127.0.0.1:{peer}\"\nrole = \"{role}\"\n"
            )?;
        }
        let client_ports = clients.clone();
        let start = move |number: usize, own: &Path| {
            let config = format!(
                "region = \"compare\"\nserver = {}\ndata_dir = {:?}\n\
                 client = {{ listen = \"127.0.0.1:{}\", connections_per_address_max = 0 }}\n\
                 admin = {{ listen = \"127.0.0.1:{}\" }}\n{settings}",
                number + 1,
                own.to_str().context("the path of the data is not UTF-8")?,
                client_ports[number],
                admins[number]
            );
            let file = own.join("region.toml");
            std::fs::write(&file, config)?;
            let mut meridian = Command::new(&program);
            meridian.arg("server").arg("--config").arg(file);
            Ok(meridian)
        };
        Self::start("Meridian", directory, &clients, Box::new(start))
    }

    fn start(
        name: &'static str,
        directory: PathBuf,
        clients: &[u16],
        command: Box<StartCommand>,
    ) -> anyhow::Result<Self> {
        let clients = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut ensemble = Self { name, command, servers: Vec::new(), clients, directory };
        for server in 0..ensemble.clients.len() {
            let started = ensemble.spawn(server)?;
            ensemble.servers.push(started);
        }
        Ok(ensemble)
    }

    fn spawn(&self, server: usize) -> anyhow::Result<Child> {
        let own = self.directory.join((server + 1).to_string());
        std::fs::create_dir_all(&own)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("{}.log", server + 1)))?;
        let mut command = (self.command)(server, &own)?;
        command.current_dir(&own).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let program = command.as_std().get_program().to_os_string();
        let started = command.kill_on_drop(true).spawn();
        started.with_context(|| format!("cannot start {} with {}", self.name, program.display()))
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Where clients reach the servers, `host:port`.
    pub(crate) fn clients(&self) -> &[String] {
        &self.clients
    }

    /// The server that leads, by its place; none if nobody says that it does.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (server, address) in self.clients.iter().enumerate() {
            if four_letter_word(address, "srvr").await.is_ok_and(|text| text.contains("Mode: leader")) {
                return Some(server);
            }
        }
        None
    }

    /// Sends a signal to a server.
    pub(crate) fn signal(&self, server: usize, signal: Signal) -> anyhow::Result<()> {
        let pid = self.servers[server].id().context("the server has ended")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no such process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Starts a server again that has ended, or ends it first.
    pub(crate) async fn restart(&mut self, server: usize) -> anyhow::Result<()> {
        // One that has ended by itself is as good.
        let _ = self.servers[server].kill().await;
        self.servers[server] = self.spawn(server)?;
        Ok(())
    }

    /// Ends all servers and starts them again.
    pub(crate) async fn restart_all(&mut self) -> anyhow::Result<()> {
        for server in &mut self.servers {
            let _ = server.kill().await;
        }
        for server in 0..self.servers.len() {
            self.servers[server] = self.spawn(server)?;
        }
        Ok(())
    }

    /// The memory that a server has resident, in bytes.
    pub(crate) fn resident_bytes(&self, server: usize) -> anyhow::Result<u64> {
        resident_bytes(self.servers[server].id().context("the server has ended")?)
    }

    /// Waits until every server gives sessions.
    pub(crate) async fn wait_until_serving(&self) -> anyhow::Result<()> {
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

    /// Waits until a server gives sessions.
    pub(crate) async fn wait_for(&self, server: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + SERVING_TIMEOUT;
        while let Err(error) = self.try_session(&self.clients[server]).await {
            ensure!(Instant::now() < deadline, "{} does not serve again: {error}", self.name);
            sleep(Duration::from_millis(5)).await;
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
    pub(crate) async fn load(&self, load: &Load) -> anyhow::Result<LoadReport> {
        let pids: Vec<u32> = self.servers.iter().filter_map(Child::id).collect();
        load.run(&self.clients, &pids)
            .await
            .with_context(|| format!("{} under {}", self.name, load.operation))
    }

    /// Ends the servers; their data goes with its directory.
    pub(crate) async fn stop(mut self) {
        for server in &mut self.servers {
            // One that has ended by itself is as good.
            let _ = server.kill().await;
        }
    }
}

/// What a server answers to one of ZooKeeper's four-letter words.
async fn four_letter_word(address: &str, word: &str) -> std::io::Result<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(word.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    };
    tokio::time::timeout(Duration::from_secs(2), asking)
        .await
        .unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
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
pub(crate) fn sync_time(directory: &Path) -> anyhow::Result<Duration> {
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
    fn data_may_be_kept_in_a_directory_named_from_here() {
        let systems = Systems { zookeeper: PathBuf::new(), meridian: None, data: Some(".".into()) };
        let directory = systems.directory().unwrap();
        assert!(directory.path().starts_with(std::env::current_dir().unwrap()), "{directory:?}");
    }

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
