//! The mesh that is measured: its description, what its servers say of it, and a demo of our own.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A demo that is not ready by then is not going to be.
const DEMO_READY_TIMEOUT: Duration = Duration::from_secs(120);
/// A demo that has not stopped by then is killed.
const DEMO_STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP endpoint that does not answer in this time does not answer.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A mesh, as `meridian demo --json` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Mesh {
    /// The regions.
    pub regions: Vec<Region>,
    /// The shared subtrees; all other paths are local to their region.
    pub subtrees: Vec<Subtree>,
}

/// A region and its servers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Its servers.
    pub servers: Vec<Server>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// `host:port` for clients.
    pub client: String,
    /// `host:port` for operators' HTTP.
    pub admin: String,
    /// Whether it led its region when the description was made.
    #[serde(default)]
    pub leader: bool,
}

/// A shared subtree.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Subtree {
    /// The path of its root.
    pub path: String,
    /// How it is shared.
    #[serde(flatten)]
    pub mode: Mode,
}

/// How a subtree is shared.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Mode {
    /// A majority of the regions agrees on every write.
    Global,
    /// One region orders the writes.
    Homed {
        /// That region.
        home: String,
    },
}

impl Mesh {
    /// Reads a description: a file, or standard input for `-`.
    ///
    /// # Errors
    /// If it can't be read or describes no mesh that can be measured.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let mut text = String::new();
        if file == Path::new("-") {
            std::io::stdin().read_to_string(&mut text)?;
        } else {
            text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        }
        Self::parse(&text)
    }

    /// Reads a description.
    ///
    /// # Errors
    /// If it describes no mesh that can be measured.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mesh: Self =
            serde_json::from_str(text).context("this is not what `meridian demo --json` prints")?;
        ensure!(!mesh.regions.is_empty(), "the mesh has no regions");
        for region in &mesh.regions {
            ensure!(!region.servers.is_empty(), "region '{}' has no servers", region.name);
        }
        for subtree in &mesh.subtrees {
            if let Mode::Homed { home } = &subtree.mode {
                ensure!(
                    mesh.regions.iter().any(|region| region.name == *home),
                    "{}: its home '{home}' is not among the regions",
                    subtree.path
                );
            }
        }
        Ok(mesh)
    }

    /// What every region has measured of its way to the others.
    ///
    /// # Errors
    /// If a region does not answer.
    pub fn round_trips(&self) -> anyhow::Result<RoundTrips> {
        let mut known = RoundTrips::default();
        for region in &self.regions {
            let answer: RttAnswer = serde_json::from_str(&ask(&region.contact().admin, "/rtt")?)?;
            // A region's own measurement wins over what others have heard of it.
            let (own, others): (Vec<_>, Vec<_>) =
                answer.rtt.into_iter().partition(|row| row.from == region.name);
            for row in own {
                known.0.insert((row.from, row.to), row.p50_ms);
            }
            for row in others {
                known.0.entry((row.from, row.to)).or_insert(row.p50_ms);
            }
        }
        Ok(known)
    }

    /// The region that leads the global group, if the regions know one.
    ///
    /// # Errors
    /// If no region answers.
    pub fn global_leader(&self) -> anyhow::Result<Option<String>> {
        let mut failure = None;
        for region in &self.regions {
            match ask(&region.contact().admin, "/mesh") {
                Ok(answer) => {
                    let answer: MeshAnswer = serde_json::from_str(&answer)?;
                    if answer.global_leader.is_some() {
                        return Ok(answer.global_leader);
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl Region {
    /// The server to measure at: the region's leader if known, else its first.
    pub fn contact(&self) -> &Server {
        // `Mesh::parse` refuses regions without servers.
        self.servers.iter().find(|server| server.leader).unwrap_or(&self.servers[0])
    }
}

#[derive(Deserialize)]
struct RttAnswer {
    rtt: Vec<RttRow>,
}

#[derive(Deserialize)]
struct RttRow {
    from: String,
    to: String,
    p50_ms: f64,
}

#[derive(Deserialize)]
struct MeshAnswer {
    global_leader: Option<String>,
}

/// Median round trips between regions in ms.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoundTrips(pub BTreeMap<(String, String), f64>);

impl RoundTrips {
    /// The round trip between two regions, as measured from either; 0 within a region.
    pub fn between(&self, from: &str, to: &str) -> Option<f64> {
        if from == to {
            return Some(0.0);
        }
        let pair = |a: &str, b: &str| self.0.get(&(a.to_string(), b.to_string())).copied();
        pair(from, to).or_else(|| pair(to, from))
    }
}

/// The answer of an HTTP endpoint.
fn ask(address: &str, path: &str) -> anyhow::Result<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(ADMIN_TIMEOUT)).build().into();
    let mut response =
        agent.get(format!("http://{address}{path}")).call().with_context(|| format!("{address}{path}"))?;
    Ok(response.body_mut().read_to_string()?)
}

/// A demo mesh started for this measurement.
pub struct Demo {
    child: Child,
}

impl Demo {
    /// Starts `meridian demo --json` and waits until it is ready.
    ///
    /// # Errors
    /// If the program can't be started or ends before its mesh is ready.
    pub async fn start(meridian: &Path, arguments: &[String]) -> anyhow::Result<(Self, Mesh)> {
        let mut child = Command::new(meridian)
            .args(["demo", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}; name it with --meridian", meridian.display()))?;
        let stdout = child.stdout.take().context("the demo has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line =
            timeout(DEMO_READY_TIMEOUT, lines.next_line()).await.context("the demo is not ready")??;
        let line = line.context("the demo ended before its mesh was ready")?;
        Ok((Self { child }, Mesh::parse(&line)?))
    }

    /// Stops it as Ctrl-C would: its servers end with it.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid =
            self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        if timeout(DEMO_STOP_TIMEOUT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// The absolute path of the `meridian` program: the one named, or the one next to this program.
///
/// # Errors
/// If there is none.
pub fn meridian_program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(path) => path.to_path_buf(),
        None => std::env::current_exe()?.with_file_name("meridian"),
    };
    ensure!(
        program.is_file(),
        "there is no {}: build it with `cargo build --release -p meridian-node`, or name it with --meridian",
        program.display()
    );
    // Servers are started in directories of their own.
    Ok(std::path::absolute(program)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"regions":[{"name":"us-east","servers":[
        {"name":"us-east-1","role":"voter","pid":1,"client":"127.0.0.1:1","admin":"127.0.0.1:2","leader":false},
        {"name":"us-east-2","role":"voter","pid":2,"client":"127.0.0.1:3","admin":"127.0.0.1:4","leader":true}]}],
        "subtrees":[{"path":"/global","mode":"global"},{"path":"/shared","mode":"homed","home":"us-east"}]}"#;

    #[test]
    fn a_program_may_be_named_from_here() {
        let program = meridian_program(Some(Path::new("Cargo.toml"))).unwrap();
        assert_eq!(program, std::env::current_dir().unwrap().join("Cargo.toml"));
        let error = meridian_program(Some(Path::new("no/such/meridian"))).unwrap_err().to_string();
        assert!(error.starts_with("there is no no/such/meridian: "), "{error}");
    }

    #[test]
    fn a_demo_describes_its_mesh() {
        let mesh = Mesh::parse(LINE).unwrap();
        assert_eq!(mesh.regions[0].contact().name, "us-east-2");
        assert_eq!(mesh.subtrees[0].mode, Mode::Global);
        assert_eq!(mesh.subtrees[1].mode, Mode::Homed { home: "us-east".into() });
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let refused = |text: &str| Mesh::parse(text).unwrap_err().to_string();
        assert!(refused("not JSON").contains("meridian demo --json"));
        assert!(refused(r#"{"regions":[],"subtrees":[]}"#).contains("no regions"));
        assert!(refused(r#"{"regions":[{"name":"eu","servers":[]}],"subtrees":[]}"#).contains("eu"));
        assert!(refused(&LINE.replace(r#""home":"us-east""#, r#""home":"mars""#)).contains("mars"));
    }

    #[test]
    fn a_round_trip_is_known_from_either_end() {
        let known = RoundTrips(BTreeMap::from([(("a".into(), "b".into()), 7.0)]));
        assert_eq!(known.between("b", "a"), Some(7.0));
        assert_eq!(known.between("a", "a"), Some(0.0));
        assert_eq!(known.between("a", "c"), None);
    }
}
