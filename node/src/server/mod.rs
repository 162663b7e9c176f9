//! The region server: what clients connect to.
//!
//! [`Server::start`] runs this server's part of its region ([`crate::region`]), the [`Hub`] between the
//! region's log and the clients, the listener for clients and, if wanted, the one for operators.

mod admin;
mod authentication;
mod backup;
mod client;
mod commands;
mod connection;
mod http;
mod hub;
mod import;
mod lease;
mod listener;
mod liveness;
mod local_sessions;
mod members;
mod metrics;
mod monitor;
mod read;
mod reaper;
mod sasl;
mod throttle;
mod tls;
mod words;

pub use admin::Routes;
pub use authentication::Authentication;
pub use client::Client;
pub use hub::Hub;
pub use import::IMPORT_TYPE;
pub use lease::LeaseGate;
pub use metrics::{Latency, Metrics};
pub use reaper::Reaping;
pub use sasl::Kerberos;
pub use throttle::{ThrottleOptions, Weights};
pub use tls::{ClientCertificates, TlsOptions};
pub use words::READ_ONLY_WORDS;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use meridian_seam::net::{self, Listener, Mover};
use meridian_seam::{Environment, limits};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::region::{Region, RegionConfig};
use crate::txn::Policy;
use connection::Service;
use listener::{Door, Port, accept_clients};
use local_sessions::LocalSessions;
use throttle::Throttle;
use tls::Tls;

/// The shortest session timeout in ticks, unless configured: as in ZooKeeper.
pub const SESSION_TICKS_MIN: u32 = 2;
/// The longest session timeout in ticks, unless configured: as in ZooKeeper.
pub const SESSION_TICKS_MAX: u32 = 20;

/// What a region server is started with.
#[derive(Clone)]
pub struct ServerOptions {
    /// The part of the region's group.
    pub region: RegionConfig,
    /// The address for clients, `host:port`; none if only TLS is spoken.
    pub client_listen: Option<String>,
    /// The address for operators' HTTP, `host:port`, if wanted. Not to be open to the world.
    pub admin_listen: Option<String>,
    /// Whether to go on without the admin address if it is taken.
    pub admin_optional: bool,
    /// Another address where operators can look but change nothing.
    pub metrics_listen: Option<String>,
    /// ZooKeeper's tickTime: the unit of session timeouts.
    pub tick: Duration,
    /// The shortest session timeout; two ticks unless set.
    pub session_timeout_min: Option<Duration>,
    /// The longest session timeout; twenty ticks unless set.
    pub session_timeout_max: Option<Duration>,
    /// The four-letter words that are answered; `*` stands for all.
    pub words: BTreeSet<String>,
    /// `jute.maxbuffer`, at most [`limits::CLIENT_FRAME_BYTES_CEILING`].
    pub frame_bytes_max: usize,
    /// Client connections in all.
    pub connections_max: usize,
    /// Client connections from one address; 0 for no such limit.
    pub connections_per_address_max: usize,
    /// Where the region's part runs, if not among the connections: a write passes many of its tasks, and to wake
    /// one on another thread takes longer than what most of them do.
    pub engine: Option<tokio::runtime::Handle>,
    /// Whether clients may ask for other members (`reconfigEnabled`).
    pub reconfig_enabled: bool,
    /// How znodes that go by themselves are deleted.
    pub reaping: Reaping,
    /// What clients may ask for; the leader's counts.
    pub policy: Policy,
    /// How clients prove who they are.
    pub authentication: Authentication,
    /// TLS for clients.
    pub tls: Option<TlsOptions>,
    /// Whether a server that is cut off from the others serves reads to clients that ask for no more
    /// (`readonlymode.enabled`).
    pub read_only_mode: bool,
    /// Sessions that only their server knows.
    pub local_sessions: LocalSessionMode,
    /// How many sessions may be opened at a time.
    pub throttle: ThrottleOptions,
    /// Writes of this server's clients under way at a time (`globalOutstandingLimit`): beyond it clients wait.
    pub outstanding_max: usize,
    /// A write that has waited so long for its turn is refused with throttledOp (`throttledOpWaitTime`); without
    /// it writes wait.
    pub throttled_wait: Option<Duration>,
}

/// Whether clients get sessions that only their server knows (`localSessionsEnabled`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalSessionMode {
    /// The region knows every session.
    #[default]
    Off,
    /// They do, and can't make ephemerals.
    Only,
    /// They do until they make an ephemeral: then the region gets to know the session
    /// (`localSessionsUpgradingEnabled`).
    Upgrading,
}

/// A running region server.
pub struct Server {
    service: Arc<Service>,
    routes: Routes,
    admin_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

impl ServerOptions {
    /// The defaults for everything besides the region and the address for clients.
    pub fn new(region: RegionConfig, client_listen: impl Into<String>) -> Self {
        Self {
            region,
            client_listen: Some(client_listen.into()),
            admin_listen: None,
            admin_optional: false,
            metrics_listen: None,
            tick: Duration::from_secs(2),
            session_timeout_min: None,
            session_timeout_max: None,
            words: READ_ONLY_WORDS.iter().map(|word| (*word).to_string()).collect(),
            frame_bytes_max: limits::CLIENT_FRAME_BYTES_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            connections_per_address_max: limits::CONNECTIONS_PER_ADDRESS_MAX,
            engine: None,
            reconfig_enabled: false,
            reaping: Reaping::default(),
            policy: Policy::default(),
            authentication: Authentication::default(),
            tls: None,
            read_only_mode: false,
            local_sessions: LocalSessionMode::Off,
            throttle: ThrottleOptions::default(),
            outstanding_max: limits::SERVER_WRITES_MAX,
            throttled_wait: None,
        }
    }

    /// The shortest and the longest session timeout in ms.
    pub fn session_timeout_bounds_ms(&self) -> (u32, u32) {
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1);
        let min = ms(self.session_timeout_min.unwrap_or(self.tick * SESSION_TICKS_MIN));
        (min, ms(self.session_timeout_max.unwrap_or(self.tick * SESSION_TICKS_MAX)).max(min))
    }

    /// How often servers report to the leader whom they have heard of.
    fn report_interval(&self) -> Duration {
        const LONGEST: Duration = Duration::from_millis(500);
        (self.tick / 4).clamp(Duration::from_millis(1), LONGEST)
    }

    fn validate(&self) -> io::Result<()> {
        let reason = if self.frame_bytes_max > limits::CLIENT_FRAME_BYTES_CEILING {
            format!(
                "jute.maxbuffer of {} bytes is above the limit of {}",
                self.frame_bytes_max,
                limits::CLIENT_FRAME_BYTES_CEILING
            )
        } else if self.tick.is_zero() {
            "the tick must be longer than 0".into()
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }
}

impl Server {
    /// Starts a server: recovers, joins the region and listens for clients.
    ///
    /// # Errors
    /// If an option can't be, the disk holds nothing usable, or an address can't be bound.
    pub async fn start(environment: Environment, options: ServerOptions) -> io::Result<Self> {
        options.validate()?;
        let tls = options.tls.clone().map(Tls::load).transpose()?;
        let server =
            u8::try_from(options.region.server).map_err(|_| io::Error::other("server numbers end at 255"))?;
        let hub = Arc::new(Hub::new(
            options.region.region,
            server,
            environment.clock.clone(),
            liveness::expiry(&options),
        ));
        let ports = open_ports(&environment, &options).await?;
        let listening = ports.plain.as_ref().map(|(_, mover)| mover.clone());
        let listening_secure = ports.secure.as_ref().map(|listener| listener.local_addr()).transpose()?;
        let Some(client_address) = listening.as_ref().map(Mover::address).or(listening_secure) else {
            let reason = "there is no address for clients: set client.listen or client.tls.listen";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        let starting =
            Region::start(environment.clone(), options.region.clone(), hub.published(), hub.clone());
        let region = match &options.engine {
            Some(engine) => engine.spawn(starting).await.map_err(io::Error::other)??,
            None => starting.await?,
        };
        hub.follow(region.leadership());
        let service = Arc::new(Service {
            hub,
            region,
            local_sessions: LocalSessions::default(),
            throttle: Mutex::new(Throttle::new(options.throttle)),
            room: Semaphore::new(options.outstanding_max.clamp(1, limits::SERVER_WRITES_MAX)),
            options,
            entropy: environment.entropy.clone(),
            listening,
            listening_secure,
            sessions_opened: AtomicU64::new(0),
            trace_mask: AtomicI64::new(words::TRACE_MASK),
        });
        let routes = Routes::default();
        let mut tasks = JoinSet::new();
        let admin_address = match service.options.admin_listen.clone() {
            Some(address) => match listen_for_operators(&environment, &service.options, &address).await {
                Ok(listener) => {
                    let address = listener.local_addr()?;
                    tasks.spawn(admin::serve(service.clone(), routes.clone(), listener, true));
                    Some(address)
                }
                Err(error) if service.options.admin_optional => {
                    tracing::warn!(%error, "no admin address; set admin.serverPort to have one");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        let mut metrics_address = None;
        if let Some(address) = &service.options.metrics_listen {
            let listener = listen(&environment, "admin.metrics_listen", address).await?;
            metrics_address = Some(listener.local_addr()?);
            tasks.spawn(admin::serve(service.clone(), routes.clone(), listener, false));
        }
        tasks.spawn(liveness::sweep(service.clone()));
        tasks.spawn(liveness::report(service.clone()));
        tasks.spawn(liveness::watch_lease(service.clone()));
        tasks.spawn(reaper::reap(service.clone()));
        if let Some(tls) = tls.clone() {
            tasks.spawn(tls.reload());
        }
        let door = Door::new(tls);
        if let Some((listener, mover)) = ports.plain {
            service.region.follow_client_port(mover);
            tasks.spawn(accept_clients(service.clone(), door.clone(), listener, Port::Plain));
        }
        if let Some(listener) = ports.secure {
            tasks.spawn(accept_clients(service.clone(), door, listener, Port::Secure));
        }
        tracing::info!(
            region = %service.options.region.region_name,
            server,
            %client_address,
            secure_address = listening_secure.map(tracing::field::display),
            admin_address = admin_address.map(tracing::field::display),
            "listening for clients"
        );
        Ok(Self { service, routes, admin_address, metrics_address, tasks })
    }

    /// This server's part of the region.
    pub fn region(&self) -> &Region {
        &self.service.region
    }

    /// What is known of the clients.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.service.hub
    }

    /// The gate of the region's lease.
    pub fn lease(&self) -> &Arc<LeaseGate> {
        self.service.hub.lease()
    }

    /// The JSON routes of the operators' HTTP; more may be added at any time.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The address that clients connect to: that of TLS if it is the only one.
    pub fn client_address(&self) -> SocketAddr {
        self.service.client_address()
    }

    /// The address that speaks TLS alone.
    pub fn secure_address(&self) -> Option<SocketAddr> {
        self.service.listening_secure
    }

    /// The address of the operators' HTTP.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The address where operators can look but change nothing.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Stops accepting, closes the clients' connections and stops taking part in the region. What was
    /// acknowledged is on disk; sessions live on and may be taken up at other servers.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.service.hub.clients().iter().for_each(|client| client.close());
        self.service.region.shutdown().await;
    }
}

/// The ports for clients.
struct Ports {
    /// With what has it go elsewhere.
    plain: Option<(Box<dyn Listener>, Mover)>,
    secure: Option<Box<dyn Listener>>,
}

/// The ports for clients that the options ask for.
async fn open_ports(environment: &Environment, options: &ServerOptions) -> io::Result<Ports> {
    let mut ports = Ports { plain: None, secure: None };
    if let Some(address) = &options.client_listen {
        let listener = listen(environment, "client.listen", address).await?;
        ports.plain = Some(net::movable(environment.net.clone(), address, listener)?);
    }
    if let Some(address) = options.tls.as_ref().and_then(|tls| tls.listen.as_ref()) {
        ports.secure = Some(listen(environment, "client.tls.listen", address).await?);
    }
    Ok(ports)
}

/// Listens on the operators' address; where it is optional, one that is in use is not waited for.
async fn listen_for_operators(
    environment: &Environment,
    options: &ServerOptions,
    address: &str,
) -> io::Result<Box<dyn Listener>> {
    if options.admin_optional {
        return environment.net.listen(address.to_string()).await;
    }
    listen(environment, "admin.listen", address).await
}

/// Listens on the address that a key of the configuration gives.
async fn listen(environment: &Environment, key: &str, address: &str) -> io::Result<Box<dyn Listener>> {
    let listening = net::listen(&*environment.net, address).await;
    listening.map_err(|error| io::Error::new(error.kind(), format!("{key}: {error}")))
}
