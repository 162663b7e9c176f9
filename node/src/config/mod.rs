//! Configuration: a TOML file, then environment variables, then the command line, each over the one before.
//!
//! A variable is named `MERIDIAN_` and the key in capitals, with two underscores between the parts:
//! `MERIDIAN_CLIENT__LISTEN=0.0.0.0:2181`. Unknown keys are refused. `deploy/region.toml` is a commented
//! example. A file whose name does not end in `.toml` is read as ZooKeeper's `zoo.cfg`.

mod security;
mod throttle;
mod zoo_cfg;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use meridian_bridge::bridge::BridgeConfig;
use meridian_bridge::engine::LogBounds;
use meridian_bridge::global::GlobalTiming;
use meridian_bridge::lease::LeaseTerms;
use meridian_bridge::mesh::{Mesh, Mode, Subtree};
use meridian_bridge::transport::{PeerAddress, Settings};
use meridian_seam::clock::millis;
use meridian_seam::limits;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::region::{Storage, Timing};
use crate::server::{LocalSessionMode, Reaping, SESSION_TICKS_MAX, SESSION_TICKS_MIN};
pub use security::{AuthenticationConfig, KerberosConfig, TlsConfig};
pub use throttle::ThrottleConfig;

pub use crate::txn::ensemble::Role;
use crate::txn::ensemble::{Member, Members};

/// Prefix of the environment variables.
const ENVIRONMENT_PREFIX: &str = "MERIDIAN_";

/// The configuration of one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Name of the region.
    pub region: String,
    /// This server's number in the region, 0 to 255.
    pub server: u8,
    /// Where the log and the snapshots live. Must be on a disk of its own kind: every write waits for it.
    pub data_dir: PathBuf,
    /// ZooKeeper's tick in ms: session timeouts are bounded by it.
    #[serde(default = "default_tick_ms")]
    pub tick_ms: u64,
    /// Where this server listens for the others, if not at its address under `servers`.
    #[serde(default)]
    pub listen: Option<String>,
    /// Clients.
    #[serde(default)]
    pub client: ClientConfig,
    /// Operators.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The servers of this region.
    pub servers: Vec<ServerEntry>,
    /// Certificates; required for a mesh.
    #[serde(default)]
    pub security: Option<SecurityConfig>,
    /// The other regions.
    #[serde(default)]
    pub mesh: Option<MeshConfig>,
    /// Timeouts within the region.
    #[serde(default)]
    pub timing: TimingConfig,
    /// What is kept on disk.
    #[serde(default)]
    pub storage: StorageConfig,
    /// The log for people.
    #[serde(default)]
    pub log: LogConfig,
    /// What the log should tell about how the configuration was understood.
    #[serde(skip)]
    pub notices: Vec<String>,
}

fn default_tick_ms() -> u64 {
    2_000
}

/// How clients are served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// The address to listen on; an empty one if only TLS is spoken.
    pub listen: String,
    /// Whether a server that is cut off serves reads to clients that ask for no more (`readonlymode.enabled`).
    pub read_only_mode: bool,
    /// Sessions that only their server knows: `off`, `only` or `upgrading` (`localSessionsEnabled`,
    /// `localSessionsUpgradingEnabled`).
    pub local_sessions: LocalSessionMode,
    /// Writes of this server's clients under way at a time; beyond it clients wait (`globalOutstandingLimit`).
    pub outstanding_max: usize,
    /// How long a write waits for its turn before it is refused (`throttledOpWaitTime`); 0 is for ever.
    pub throttled_wait_ms: u64,
    /// How many sessions may be opened at a time.
    pub throttle: ThrottleConfig,
    /// How clients prove who they are.
    pub authentication: AuthenticationConfig,
    /// TLS for clients.
    pub tls: Option<TlsConfig>,
    /// Bounds of session timeouts; 2 and 20 ticks unless given.
    pub session_timeout_min_ms: Option<u32>,
    /// See `session_timeout_min_ms`.
    pub session_timeout_max_ms: Option<u32>,
    /// Connections in all, and never more than the limit of open files has room for; 0 is without another bound.
    pub connections_max: usize,
    /// Connections from one address; 0 is without bound.
    pub connections_per_address_max: usize,
    /// The largest request in bytes (`jute.maxbuffer`).
    pub frame_bytes_max: usize,
    /// Four-letter words that are answered; `*` for all.
    pub four_letter_words: Vec<String>,
    /// Whether clients that may write `/zookeeper/config` can change the members.
    pub reconfig: bool,
    /// Whether znodes may have a time to live (`extendedTypesEnabled`). The leader's value counts.
    pub extended_types: bool,
    /// Whether hard limits of quotas refuse writes (`enforceQuota`). The leader's value counts.
    pub enforce_quota: bool,
    /// Containers and znodes with a time to live.
    pub containers: ContainersConfig,
}

/// How containers and znodes with a time to live are deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainersConfig {
    /// How often the leader looks for them (`znode.container.checkIntervalMs`).
    pub check_interval_ms: u64,
    /// How many it deletes at most (`znode.container.maxPerMinute`).
    pub per_minute_max: u32,
    /// How long a container stays that never had children; 0 is for ever (`znode.container.maxNeverUsedIntervalMs`).
    pub never_used_ms: u64,
}

impl Default for ContainersConfig {
    fn default() -> Self {
        let Reaping { interval, per_minute_max, never_used } = Reaping::default();
        Self { check_interval_ms: millis(interval), per_minute_max, never_used_ms: millis(never_used) }
    }
}

impl ContainersConfig {
    /// The same for the server.
    pub fn reaping(&self) -> Reaping {
        Reaping {
            interval: Duration::from_millis(self.check_interval_ms),
            per_minute_max: self.per_minute_max,
            never_used: Duration::from_millis(self.never_used_ms),
        }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:2181".into(),
            read_only_mode: false,
            local_sessions: LocalSessionMode::Off,
            outstanding_max: limits::SERVER_WRITES_MAX,
            throttled_wait_ms: 0,
            throttle: ThrottleConfig::default(),
            authentication: AuthenticationConfig::default(),
            tls: None,
            session_timeout_min_ms: None,
            session_timeout_max_ms: None,
            connections_max: limits::CONNECTIONS_MAX,
            connections_per_address_max: 60,
            frame_bytes_max: limits::CLIENT_FRAME_BYTES_MAX,
            four_letter_words: vec!["*".into()],
            reconfig: false,
            extended_types: true,
            enforce_quota: false,
            containers: ContainersConfig::default(),
        }
    }
}

/// The HTTP endpoint for operators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// The address to listen on; none turns it off. Whoever reaches it can change the region's members.
    pub listen: Option<String>,
    /// Go on without it if the address is taken.
    pub optional: bool,
    /// Another address for `/metrics`, `/health` and the other reports: nothing can be changed there.
    pub metrics_listen: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: Some("127.0.0.1:8080".into()), optional: false, metrics_listen: None }
    }
}

/// A server of the region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerEntry {
    /// Its number, 0 to 255.
    pub number: u8,
    /// Where the other servers of the region reach it: `host:port`.
    pub address: String,
    /// Whether it votes.
    #[serde(default)]
    pub role: Role,
    /// Where clients reach it, for those who read it in `/zookeeper/config`: `host:port`.
    #[serde(default)]
    pub client: Option<String>,
    /// The election port that ZooKeeper's format has room for; nothing listens there.
    #[serde(default)]
    pub election_port: Option<u16>,
}

/// Files of this server's certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityConfig {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The certificate of the mesh's authority, PEM.
    pub authority: PathBuf,
}

/// The mesh. The regions' names and the subtrees must be equal in all regions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshConfig {
    /// The address to bind for the bridge (QUIC, UDP).
    #[serde(default = "default_bridge_listen")]
    pub listen: SocketAddr,
    /// All regions, this one included, in the same order everywhere.
    pub regions: Vec<MeshRegion>,
    /// What is shared.
    #[serde(default)]
    pub subtrees: Vec<SubtreeConfig>,
    /// Region leases.
    #[serde(default)]
    pub lease: LeaseConfig,
    /// Timeouts between regions.
    #[serde(default)]
    pub timing: MeshTimingConfig,
}

fn default_bridge_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 2890))
}

/// A region of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshRegion {
    /// Its name.
    pub name: String,
    /// Addresses of its voters' bridges (`host:port`) by server number; for this region only observers that may
    /// become voters need to be there.
    #[serde(default)]
    pub bridges: BTreeMap<String, String>,
}

/// A shared subtree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubtreeConfig {
    /// The path of its root.
    pub path: String,
    /// How it is shared.
    pub mode: SubtreeMode,
    /// The region that orders its writes, for `homed`.
    #[serde(default)]
    pub home: Option<String>,
}

/// How a subtree is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubtreeMode {
    /// A majority of regions agrees on every write.
    Global,
    /// One region orders the writes, the others mirror it.
    Homed,
}

/// How long a region's lease lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// From the sending of a renewal, in ms. Must exceed a failover of a region and of the global group.
    pub duration_ms: u64,
    /// By how much the rate of a clock may be off.
    pub drift_max: f64,
    /// Time for a region to tell its holders, in ms.
    pub margin_ms: u64,
    /// The longest session timeout in the mesh, in ms. A client whose server falls silent believes in its session for
    /// two thirds of it, and for so long the other regions wait before they take over what it held. To raise it in a
    /// running mesh, keep `client.session_timeout_max_ms` as it was until all regions have the new value.
    pub session_timeout_max_ms: u32,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        let LeaseTerms { duration, drift_max, margin, session_timeout_max } = LeaseTerms::default();
        let session_timeout_max_ms = u32::try_from(millis(session_timeout_max)).unwrap_or(u32::MAX);
        Self { duration_ms: millis(duration), drift_max, margin_ms: millis(margin), session_timeout_max_ms }
    }
}

/// Timeouts between regions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeshTimingConfig {
    /// How often the region that leads the global group is heard of, in ms.
    pub heartbeat_ms: u64,
    /// After a time in this range without it another is elected, in ms.
    pub election_timeout_ms: (u64, u64),
}

impl Default for MeshTimingConfig {
    fn default() -> Self {
        let GlobalTiming { heartbeat, election_timeout } = GlobalTiming::default();
        Self {
            heartbeat_ms: millis(heartbeat),
            election_timeout_ms: (millis(election_timeout.0), millis(election_timeout.1)),
        }
    }
}

/// Timeouts within a region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimingConfig {
    /// How often the leader is heard of, in ms.
    pub heartbeat_ms: u64,
    /// After how long without it another is elected, in ms: at least and at most.
    pub election_timeout_ms: (u64, u64),
}

impl Default for TimingConfig {
    fn default() -> Self {
        let Timing { heartbeat, election_timeout } = Timing::default();
        Self {
            heartbeat_ms: millis(heartbeat),
            election_timeout_ms: (millis(election_timeout.0), millis(election_timeout.1)),
        }
    }
}

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// A directory for the log, on a disk of its own; `log` in `data_dir` unless given.
    pub log_dir: Option<PathBuf>,
    /// Batches of writes after which a snapshot is written, if the log has not grown enough for one before.
    pub entries_per_snapshot: u64,
    /// Kilobytes (of 1,024 bytes) of log after which a snapshot is written, or a quarter of what the region holds if
    /// that is more, up to eight times as much. A restart reads so much log; snapshots cost processor time.
    pub log_kb_per_snapshot: usize,
}

impl Default for StorageConfig {
    fn default() -> Self {
        let Storage { entries_per_snapshot, log_bounds, .. } = Storage::default();
        Self { log_dir: None, entries_per_snapshot, log_kb_per_snapshot: log_bounds.bytes_per_snapshot / KB }
    }
}

const KB: usize = 1 << 10;
/// With less, snapshots would be all that a server does.
const LOG_KB_PER_SNAPSHOT_MIN: usize = 1 << 10;

/// The log for people, on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged: `info`, or by module as `meridian_node=debug,info`.
    pub filter: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        // The engine reports every heartbeat that is not answered; what matters of it is reported here.
        Self { filter: "info,openraft=off".into(), format: LogFormat::Text }
    }
}

/// Lines for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration can't be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that can't be read, a key that is unknown, a value of the wrong type.
    #[error("{}", without_profile(.0))]
    Read(#[from] Box<figment::Error>),
    /// Values that do not fit together.
    #[error("{key}: {reason}")]
    Invalid {
        /// The key.
        key: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// The error without the name of figment's profile before the key: nobody has written it.
fn without_profile(error: &figment::Error) -> String {
    error.to_string().replace("for key \"default.", "for key \"")
}

fn invalid<T>(key: &str, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { key: key.into(), reason: reason.into() })
}

/// What the command line says over file and environment; only what is given counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overrides {
    /// `server`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<u8>,
    /// `data_dir`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
}

impl ServerConfig {
    /// Reads a file, the environment and the command line, and checks that it all fits together.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        if !file.is_file() {
            return invalid(
                "--config",
                format!("there is no file {}; see deploy/region.toml for an example", file.display()),
            );
        }
        let mut figment = Figment::new();
        let mut notices = Vec::new();
        if zoo_cfg::is_zoo_cfg(file) {
            let mut translated = zoo_cfg::read(file)?;
            notices = std::mem::take(&mut translated.notices);
            figment = figment.merge(translated);
        } else {
            figment = figment.merge(Toml::file_exact(file));
        }
        let figment = figment
            .merge(Env::prefixed(ENVIRONMENT_PREFIX).split("__").filter(|key| !key.starts_with("demo")))
            .merge(Serialized::defaults(overrides));
        if zoo_cfg::is_zoo_cfg(file) && !figment.contains("data_dir") {
            return zoo_cfg::without_data_dir();
        }
        let mut config: Self = figment.extract().map_err(Box::new)?;
        config.notices = notices;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if !self.servers.iter().any(|s| s.number == self.server) {
            return invalid("server", format!("{} is not among the numbers under [[servers]]", self.server));
        }
        for (i, entry) in self.servers.iter().enumerate() {
            if self.servers[..i].iter().any(|s| s.number == entry.number) {
                return invalid("servers", format!("number {} appears twice", entry.number));
            }
        }
        let voters = self.servers.iter().filter(|s| s.role == Role::Voter).count();
        if voters == 0 {
            return invalid("servers", "none of them votes: one, three or five must");
        }
        let TimingConfig { heartbeat_ms, election_timeout_ms } = self.timing;
        validate_elections("timing", heartbeat_ms, election_timeout_ms)?;
        if self.tick_ms == 0 {
            return invalid("tick_ms", "must be positive");
        }
        if self.storage.log_kb_per_snapshot < LOG_KB_PER_SNAPSHOT_MIN {
            let reason = format!("must be at least {LOG_KB_PER_SNAPSHOT_MIN}; without it the default holds");
            return invalid("storage.log_kb_per_snapshot", reason);
        }
        let Some(mesh) = &self.mesh else { return Ok(()) };
        if self.security.is_none() {
            return invalid("security", "a mesh needs certificates: make them with `meridian certs`");
        }
        if !(0.0..=0.5).contains(&mesh.lease.drift_max) {
            return invalid("mesh.lease.drift_max", "must lie between 0 and 0.5");
        }
        let MeshTimingConfig { heartbeat_ms, election_timeout_ms } = mesh.timing;
        validate_elections("mesh.timing", heartbeat_ms, election_timeout_ms)?;
        let election_timeouts_ms =
            mesh.timing.election_timeout_ms.1.saturating_add(self.timing.election_timeout_ms.1);
        if mesh.lease.duration_ms <= election_timeouts_ms {
            let reason = "must exceed the election timeouts of the region and of the mesh together, or a lost server \
                          ends the sessions that hold global znodes";
            return invalid("mesh.lease.duration_ms", reason);
        }
        self.validate_session_timeouts(mesh)?;
        self.mesh_table()?;
        Ok(())
    }

    fn validate_session_timeouts(&self, mesh: &MeshConfig) -> Result<(), ConfigError> {
        let longest_ms = mesh.lease.session_timeout_max_ms;
        let given = |key, ms: Option<u32>| ms.filter(|ms| *ms > longest_ms).map(|ms| (key, ms));
        let shortest_ms = self.session_timeout_min_ms();
        let too_long = given("client.session_timeout_max_ms", self.client.session_timeout_max_ms)
            .or_else(|| given("client.session_timeout_min_ms", Some(shortest_ms)));
        let Some((key, ms)) = too_long else { return Ok(()) };
        let reason = format!(
            "{ms} is more than mesh.lease.session_timeout_max_ms, {longest_ms}, for which the other regions wait when \
             they take over from this one; lower it, or raise that in all regions first"
        );
        invalid(key, reason)
    }

    /// The shortest session timeout: two ticks unless configured.
    pub fn session_timeout_min_ms(&self) -> u32 {
        self.client.session_timeout_min_ms.unwrap_or_else(|| self.ticks_ms(SESSION_TICKS_MIN))
    }

    /// The longest session timeout: twenty ticks unless configured, but no longer than the mesh allows.
    pub fn session_timeout_max_ms(&self) -> u32 {
        let wanted_ms =
            self.client.session_timeout_max_ms.unwrap_or_else(|| self.ticks_ms(SESSION_TICKS_MAX));
        match &self.mesh {
            Some(mesh) if mesh.regions.len() > 1 => wanted_ms.min(mesh.lease.session_timeout_max_ms),
            _ => wanted_ms,
        }
    }

    fn ticks_ms(&self, ticks: u32) -> u32 {
        u32::try_from(self.tick_ms.saturating_mul(ticks.into())).unwrap_or(u32::MAX)
    }

    /// This server's name, as its certificate has it: `us-east-1`.
    pub fn server_name(&self) -> String {
        server_name(&self.region, self.server)
    }

    /// Whether this server votes.
    pub fn role(&self) -> Role {
        self.servers.iter().find(|s| s.number == self.server).map_or(Role::Observer, |s| s.role)
    }

    /// The servers of the region, as they are to be when it is formed.
    pub fn members(&self) -> Members {
        let member = |entry: &ServerEntry| {
            let mut member = Member::new(entry.role, entry.address.clone(), entry.client.clone());
            member.election_port = entry.election_port.unwrap_or(member.election_port);
            (entry.number, member)
        };
        self.servers.iter().map(member).collect()
    }

    /// Where this server listens for the others.
    pub fn peer_listen(&self) -> String {
        let own = self.servers.iter().find(|s| s.number == self.server).map(|s| s.address.clone());
        self.listen.clone().or(own).unwrap_or_default()
    }

    /// What is kept on disk.
    pub fn region_storage(&self) -> Storage {
        let StorageConfig { log_dir, entries_per_snapshot, log_kb_per_snapshot } = self.storage.clone();
        let default = Storage::default();
        let bytes_per_snapshot = log_kb_per_snapshot.saturating_mul(KB);
        let log_bounds = LogBounds { bytes_per_snapshot, ..default.log_bounds };
        Storage { log_dir, entries_per_snapshot, log_bounds, ..default }
    }

    /// The timeouts within the region.
    pub fn region_timing(&self) -> Timing {
        let (min, max) = self.timing.election_timeout_ms;
        Timing {
            heartbeat: Duration::from_millis(self.timing.heartbeat_ms),
            election_timeout: (Duration::from_millis(min), Duration::from_millis(max)),
        }
    }

    /// The mesh's table; a region on its own has one of its own.
    ///
    /// # Errors
    /// If the table makes no sense.
    pub fn mesh_table(&self) -> Result<Option<Mesh>, ConfigError> {
        let Some(config) = &self.mesh else { return Ok(None) };
        let regions: Vec<String> = config.regions.iter().map(|r| r.name.clone()).collect();
        let mut mesh = Mesh { regions, subtrees: Vec::new() };
        if mesh.region_id(&self.region).is_none() {
            return invalid("mesh.regions", format!("this server's region '{}' is missing", self.region));
        }
        for subtree in &config.subtrees {
            let mode = match (subtree.mode, &subtree.home) {
                (SubtreeMode::Global, None) => Mode::Global,
                (SubtreeMode::Global, Some(_)) => {
                    return invalid(
                        "mesh.subtrees",
                        format!("{}: a global subtree has no home", subtree.path),
                    );
                }
                (SubtreeMode::Homed, None) => {
                    return invalid(
                        "mesh.subtrees",
                        format!("{}: a homed subtree needs `home`", subtree.path),
                    );
                }
                (SubtreeMode::Homed, Some(home)) => match mesh.region_id(home) {
                    Some(home) => Mode::Homed { home },
                    None => {
                        let reason =
                            format!("{}: '{home}' is not among {}", subtree.path, mesh.regions.join(", "));
                        return invalid("mesh.subtrees", reason);
                    }
                },
            };
            mesh.subtrees.push(Subtree { path: subtree.path.clone(), mode });
        }
        match mesh.validate() {
            Ok(()) => Ok(Some(mesh)),
            Err(error) => invalid("mesh", error.to_string()),
        }
    }

    /// What the bridge must know; none for a region on its own, or for an observer that is not among its region's
    /// bridges and so is never to lead.
    ///
    /// # Errors
    /// If the table makes no sense.
    pub fn bridge(&self) -> Result<Option<BridgeConfig>, ConfigError> {
        let (Some(config), Some(mesh)) = (&self.mesh, self.mesh_table()?) else { return Ok(None) };
        let own = config.regions.iter().find(|r| r.name == self.region);
        let listed = own.is_some_and(|r| r.bridges.contains_key(&self.server.to_string()));
        if self.role() == Role::Observer && !listed {
            return Ok(None);
        }
        let mut peers = Vec::new();
        for region in config.regions.iter().filter(|r| r.name != self.region) {
            if region.bridges.is_empty() {
                return invalid(
                    "mesh.regions",
                    format!("region '{}' has no bridges to reach it", region.name),
                );
            }
            for (number, address) in &region.bridges {
                let Ok(number) = number.parse() else {
                    return invalid(
                        "mesh.regions",
                        format!("'{number}' is no server number of region '{}'", region.name),
                    );
                };
                let server = server_name(&region.name, number);
                peers.push(PeerAddress { region: region.name.clone(), server, address: address.clone() });
            }
        }
        let region = mesh.region_id(&self.region).unwrap_or_default();
        let (min, max) = config.timing.election_timeout_ms;
        Ok(Some(BridgeConfig {
            mesh,
            region,
            server: self.server_name(),
            listen: config.listen,
            peers,
            timing: GlobalTiming {
                heartbeat: Duration::from_millis(config.timing.heartbeat_ms),
                election_timeout: (Duration::from_millis(min), Duration::from_millis(max)),
            },
            log_bounds: meridian_bridge::global::LOG_BOUNDS,
            lease: LeaseTerms {
                duration: Duration::from_millis(config.lease.duration_ms),
                drift_max: config.lease.drift_max,
                margin: Duration::from_millis(config.lease.margin_ms),
                session_timeout_max: Duration::from_millis(config.lease.session_timeout_max_ms.into()),
            },
            transport: Settings::default(),
        }))
    }
}

fn validate_elections(
    key: &'static str,
    heartbeat_ms: u64,
    (shortest_ms, longest_ms): (u64, u64),
) -> Result<(), ConfigError> {
    if heartbeat_ms == 0 || shortest_ms <= heartbeat_ms.saturating_mul(3) || longest_ms <= shortest_ms {
        return invalid(key, "the election timeout must be a range that starts above three heartbeats");
    }
    Ok(())
}

/// The name of a server of a region.
pub fn server_name(region: &str, number: u8) -> String {
    format!("{region}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        region = "eu"
        server = 1
        data_dir = "/tmp/x"
        servers = [{ number = 1, address = "127.0.0.1:2888" }]
    "#;

    fn load(text: &str) -> Result<ServerConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("region.toml");
        std::fs::write(&file, text).unwrap();
        ServerConfig::load(&file, &Overrides::default())
    }

    #[test]
    fn a_small_file_is_enough_for_a_region_on_its_own() {
        let config = load(SMALL).unwrap();
        assert_eq!(config.client.listen, "0.0.0.0:2181");
        assert_eq!(config.server_name(), "eu-1");
        assert!(config.bridge().unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let unknown = load(&format!("{SMALL}\nclient.listenn = \"x\"")).unwrap_err().to_string();
        assert!(unknown.contains("client.listenn") && !unknown.contains("default"), "{unknown}");
        let voteless = SMALL.replace("}]", ", role = \"observer\" }]");
        let voteless = load(&voteless).unwrap_err().to_string();
        assert!(voteless.contains("none of them votes"), "{voteless}");
        let mesh = format!("{SMALL}\n[mesh]\nregions = [{{ name = \"us\" }}]");
        assert!(load(&mesh).unwrap_err().to_string().contains("certs"));
        let hasty = format!("{SMALL}\n[timing]\nheartbeat_ms = 300\nelection_timeout_ms = [900, 1200]");
        assert!(load(&hasty).unwrap_err().to_string().contains("above three heartbeats"));
    }

    #[test]
    fn numbers_without_measure_are_refused() {
        let refused = |text: &str| load(text).unwrap_err().to_string();
        let heartbeat = i64::MAX;
        let timing = format!("{SMALL}\n[timing]\nheartbeat_ms = {heartbeat}\nelection_timeout_ms = [1, 2]");
        assert!(refused(&timing).contains("three heartbeats"));
        assert!(load(&format!("{SMALL}\n{}b = 1", "a.".repeat(100_000))).is_err());
        let timing = |limit: u64| format!("election_timeout_ms = [3000, {limit}]");
        let mesh = |drift: &str| {
            format!(
                "{SMALL}\ntiming.{}\n[mesh]\nregions = [{{ name = \"eu\" }}]\ntiming.{}\n\
                 lease.drift_max = {drift}\n[security]\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\"",
                timing(i64::MAX as u64),
                timing(i64::MAX as u64),
            )
        };
        assert!(refused(&mesh("nan")).contains("drift_max"));
        assert!(refused(&mesh("0.1")).contains("must exceed the election timeouts"));
    }

    #[test]
    fn sessions_of_a_mesh_are_no_longer_than_others_wait_for_them() {
        let mesh = |more: &str| {
            load(&format!(
                "{more}\n{SMALL}\n[mesh]\nregions = [{{ name = \"eu\" }}, {{ name = \"us\" }}]\n\
                 [security]\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\""
            ))
        };
        assert_eq!(load(SMALL).unwrap().session_timeout_max_ms(), 40_000);
        assert_eq!(mesh("").unwrap().session_timeout_max_ms(), 15_000);
        let short = mesh("client.session_timeout_max_ms = 9000").unwrap();
        assert_eq!(short.session_timeout_max_ms(), 9_000);
        let long = mesh("client.session_timeout_max_ms = 20000").unwrap_err().to_string();
        assert!(long.contains("client.session_timeout_max_ms") && long.contains("15000"), "{long}");
        let long = mesh("tick_ms = 8000").unwrap_err().to_string();
        assert!(long.contains("client.session_timeout_min_ms: 16000 is more"), "{long}");
    }

    #[test]
    fn the_example_is_valid() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/region.toml");
        let config = ServerConfig::load(&example, &Overrides::default()).unwrap();
        assert!(config.bridge().unwrap().is_some());
    }
}
