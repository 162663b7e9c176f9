//! Who is where in a demo: ports, certificates, relays and the configuration file of every server.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use meridian_bridge::certificates::{Authority, IdentityPaths, PeerName, SERVER_VALID_DAYS};
use meridian_seam::clock::SystemClock;
use meridian_topology::matrix::Matrix;
use meridian_wan::{Wan, WanDelays};

use crate::config::{
    AdminConfig, ClientConfig, LogConfig, MeshConfig, MeshRegion, Role, SecurityConfig, ServerConfig,
    ServerEntry, SubtreeConfig, SubtreeMode, server_name,
};

/// More regions, or servers of one, would not fit the scheme of ports.
pub(super) const REGIONS_MAX: usize = 9;

/// How many servers of which kind.
pub(super) struct Shape {
    pub(super) regions: Vec<String>,
    pub(super) voters: u8,
    pub(super) observers: u8,
}

/// A demo laid out on this machine.
pub(super) struct Layout {
    pub(super) regions: Vec<DemoRegion>,
    pub(super) subtrees: Vec<SubtreeConfig>,
    pub(super) directory: PathBuf,
}

pub(super) struct DemoRegion {
    pub(super) name: String,
    pub(super) servers: Vec<DemoServer>,
}

pub(super) struct DemoServer {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) client: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Its configuration file.
    pub(super) config: PathBuf,
    /// Where its log for people goes.
    pub(super) log: PathBuf,
}

/// The delays between the regions of a matrix, or none.
pub(super) fn delays(matrix: &Matrix, none: bool) -> anyhow::Result<WanDelays> {
    let regions = matrix.regions();
    let mut delays = WanDelays::new(regions.iter().cloned())?;
    if none {
        return Ok(delays);
    }
    for (i, a) in regions.iter().enumerate() {
        for b in &regions[..i] {
            let rtt = matrix.round_trip(a, b).with_context(|| {
                format!("there is no round trip between {a} and {b}; add the pair to the file")
            })?;
            delays = delays.round_trip(a, b, Duration::from_secs_f64(rtt.p50_ms / 1_000.0))?;
        }
    }
    Ok(delays)
}

/// Ports of one server.
struct Ports {
    client: u16,
    admin: u16,
    peer: u16,
    bridge: u16,
}

impl Ports {
    fn of(base: u16, region: usize, server: u8) -> Self {
        // Both indices have one digit.
        let client = base + 10 * region as u16 + u16::from(server) - 1;
        Self { client, admin: client + 100, peer: client + 200, bridge: client + 300 }
    }

    fn are_free(&self) -> bool {
        let tcp = [self.client, self.admin, self.peer];
        tcp.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            && UdpSocket::bind(("127.0.0.1", self.bridge)).is_ok()
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Layout {
    /// Lays a demo out: finds free ports, makes certificates, opens relays and writes configurations.
    pub(super) async fn make(
        shape: Shape,
        directory: &Path,
        wan: &Wan,
        first_port: u16,
    ) -> anyhow::Result<Self> {
        let servers = shape.voters + shape.observers;
        let bases = (0..20).map(|i| first_port + 1_000 * i);
        let free = |base: &u16| {
            let all = (0..shape.regions.len()).flat_map(|r| (1..=servers).map(move |s| (r, s)));
            all.into_iter().all(|(region, server)| Ports::of(*base, region, server).are_free())
        };
        let base = bases.into_iter().find(free).context("no free ports; is another demo running?")?;
        let certificates = directory.join("certificates");
        issue_certificates(&shape, &certificates)?;
        let subtrees = vec![
            SubtreeConfig { path: "/global".into(), mode: SubtreeMode::Global, home: None },
            SubtreeConfig {
                path: "/shared".into(),
                mode: SubtreeMode::Homed,
                home: Some(shape.regions[0].clone()),
            },
        ];
        let mut layout = Self { regions: Vec::new(), subtrees, directory: directory.to_path_buf() };
        for region in 0..shape.regions.len() {
            let region = layout.lay_region(&shape, region, base, wan, &certificates).await?;
            layout.regions.push(region);
        }
        Ok(layout)
    }

    async fn lay_region(
        &self,
        shape: &Shape,
        index: usize,
        base: u16,
        wan: &Wan,
        certificates: &Path,
    ) -> anyhow::Result<DemoRegion> {
        let name = shape.regions[index].clone();
        let mut mesh_regions = Vec::new();
        for (other, other_name) in shape.regions.iter().enumerate() {
            let mut bridges = BTreeMap::new();
            for server in (1..=shape.voters).filter(|_| other != index) {
                let target = loopback(Ports::of(base, other, server).bridge);
                let relay = wan.relay(&name, other_name, target).await?;
                bridges.insert(server.to_string(), relay.to_string());
            }
            mesh_regions.push(MeshRegion { name: other_name.clone(), bridges });
        }
        let numbers = 1..=shape.voters + shape.observers;
        let role = |number| if number <= shape.voters { Role::Voter } else { Role::Observer };
        let entries: Vec<ServerEntry> = numbers
            .clone()
            .map(|number| ServerEntry {
                number,
                address: loopback(Ports::of(base, index, number).peer).to_string(),
                role: role(number),
                client: Some(loopback(Ports::of(base, index, number).client).to_string()),
                election_port: None,
            })
            .collect();
        let mut servers = Vec::new();
        for number in numbers {
            let ports = Ports::of(base, index, number);
            let server = server_name(&name, number);
            let directory = self.directory.join(&server);
            std::fs::create_dir_all(&directory)?;
            let paths = IdentityPaths::in_directory(certificates, &server);
            let config = ServerConfig {
                region: name.clone(),
                server: number,
                data_dir: directory.clone(),
                tick_ms: 2_000,
                client: ClientConfig {
                    listen: loopback(ports.client).to_string(),
                    // Everything comes from one address here.
                    connections_per_address_max: 0,
                    ..ClientConfig::default()
                },
                listen: None,
                admin: AdminConfig {
                    listen: Some(loopback(ports.admin).to_string()),
                    ..AdminConfig::default()
                },
                servers: entries.clone(),
                security: Some(SecurityConfig {
                    certificate: paths.certificate,
                    key: paths.key,
                    authority: paths.authority,
                }),
                mesh: Some(MeshConfig {
                    listen: loopback(ports.bridge),
                    regions: mesh_regions.clone(),
                    subtrees: self.subtrees.clone(),
                    lease: Default::default(),
                    timing: Default::default(),
                }),
                timing: Default::default(),
                storage: Default::default(),
                log: LogConfig::default(),
                notices: Vec::new(),
            };
            let file = self.directory.join(format!("{server}.toml"));
            std::fs::write(&file, toml::to_string(&config)?)?;
            servers.push(DemoServer {
                name: server,
                role: role(number),
                client: loopback(ports.client),
                admin: loopback(ports.admin),
                config: file,
                log: directory.join("server.log"),
            });
        }
        Ok(DemoRegion { name, servers })
    }

    /// All servers of all regions.
    pub(super) fn servers(&self) -> impl Iterator<Item = &DemoServer> {
        self.regions.iter().flat_map(|r| &r.servers)
    }

    /// Whether the data goes when the demo ends.
    pub(super) fn is_temporary(&self) -> bool {
        self.directory.starts_with(std::env::temp_dir())
            && self.directory.file_name().is_some_and(|n| n.to_string_lossy().starts_with("meridian-demo-"))
    }
}

fn issue_certificates(shape: &Shape, directory: &Path) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    std::fs::create_dir_all(directory)?;
    let authority = if directory.join("authority.key").exists() {
        Authority::load(directory)?
    } else {
        let authority = Authority::create(&clock, 30)?;
        authority.save(directory)?;
        authority
    };
    for region in &shape.regions {
        for number in 1..=shape.voters + shape.observers {
            let server = server_name(region, number);
            if !IdentityPaths::in_directory(directory, &server).certificate.exists() {
                let name = PeerName::new(region.clone(), server);
                authority.issue(&name, &clock, SERVER_VALID_DAYS.min(30))?.save(directory)?;
            }
        }
    }
    Ok(())
}
