//! The files that servers start with: for Meridian, and for those who run ZooKeeper.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::layout::{Design, Layout};
use crate::plan::{Assessment, Plan};
use crate::scenario::World;
use crate::timing::Timing;

/// One file to write, below a directory of the caller's choice.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// `meridian/SERVER/region.toml`, `zookeeper/SERVER/zoo.cfg` or `zookeeper/SERVER/myid`.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// The configuration of every server: `zoo.cfg` and `myid` for the best layout, `region.toml` for the
/// best layout of two levels, which is how Meridian is built; none of a kind that no layout fits.
///
/// A server is called `REGION-NUMBER`, as a host name too: hosts, directories and certificates are to
/// be adapted, the rest is the plan.
pub fn configuration(plan: &Plan) -> Vec<File> {
    let zookeeper = plan.best().zip(plan.timing.as_ref());
    let mut files = zookeeper.map_or(Vec::new(), |(best, timing)| zookeeper_files(plan, best, timing));
    let two_levels = |assessment: &&Assessment| {
        assessment.layout.design == Design::Two && assessment.violations.is_empty()
    };
    if let Some(best) = plan.layouts.iter().find(two_levels) {
        files.extend(meridian_files(&plan.world, &best.layout));
    }
    files
}

struct Server {
    /// Unique in its ensemble.
    id: usize,
    region: usize,
    name: String,
    zone: Option<String>,
    observer: bool,
}

/// All servers; at two levels those of each region count from one, and a region without a global
/// vote still has voters of its own ensemble.
fn servers(world: &World, layout: &Layout) -> Vec<Server> {
    let two_level = layout.design == Design::Two;
    let mut servers = Vec::new();
    for (region, name) in world.model.regions.iter().enumerate() {
        let count = layout.servers(region);
        let voters = if two_level && layout.voters[region] == 0 { count } else { layout.voters[region] };
        let mut zones: Vec<(String, u8)> = world.voters_by_zone(region, voters);
        for number in 1..=count {
            let observer = number > voters;
            let id = if two_level { usize::from(number) } else { servers.len() + 1 };
            // The first of every zone, then the second, so that the lowest numbers stand apart.
            let zone = (!observer && !zones.is_empty()).then(|| {
                let (zone, left) = zones.remove(0);
                if left > 1 {
                    zones.push((zone.clone(), left - 1));
                }
                zone
            });
            servers.push(Server { id, region, name: format!("{name}-{number}"), zone, observer });
        }
    }
    servers
}

fn zookeeper_files(plan: &Plan, best: &Assessment, timing: &Timing) -> Vec<File> {
    let names = &plan.world.model.regions;
    let servers = servers(&plan.world, &best.layout);
    servers
        .iter()
        .flat_map(|server| {
            let together =
                |other: &&Server| best.layout.design != Design::Two || other.region == server.region;
            let ensemble: Vec<&Server> = servers.iter().filter(together).collect();
            let text = zoo_cfg(server, &ensemble, &best.layout, timing, names);
            let directory = Path::new("zookeeper").join(&server.name);
            [
                File { path: directory.join("zoo.cfg"), text },
                File { path: directory.join("myid"), text: format!("{}\n", server.id) },
            ]
        })
        .collect()
}

/// Settings that a `zoo.cfg` has keys for.
const ZOO_CFG_KEYS: [&str; 6] = [
    "tickTime",
    "initLimit",
    "syncLimit",
    "connectToLearnerMasterLimit",
    "minSessionTimeout",
    "maxSessionTimeout",
];

fn zoo_cfg(
    server: &Server,
    ensemble: &[&Server],
    layout: &Layout,
    timing: &Timing,
    names: &[String],
) -> String {
    let mut text = format!("# {} of {}{}\n", server.name, layout.display(names), in_zone(server));
    // Writing to a string can't fail.
    for setting in &timing.settings {
        let _ = if ZOO_CFG_KEYS.contains(&setting.name) {
            writeln!(text, "{}={:.0}", setting.name, setting.value)
        } else {
            writeln!(text, "# {}: {:.0} {}", setting.name, setting.value, setting.unit)
        };
    }
    text.push_str("dataDir=/var/lib/zookeeper\nclientPort=2181\n");
    if server.observer {
        text.push_str("peerType=observer\n");
    }
    for other in ensemble {
        let role = if other.observer { ":observer" } else { "" };
        let _ = writeln!(text, "server.{}={}:2888:3888{role}", other.id, other.name);
    }
    match layout.design {
        Design::Flat => {}
        Design::Hier => groups(&mut text, ensemble, layout),
        Design::Two => {
            let voting: Vec<&str> = layout.voting_regions().map(|region| names[region].as_str()).collect();
            let _ = writeln!(
                text,
                "# global group: led from {}; voters {}",
                names[layout.leader],
                voting.join(", ")
            );
        }
    }
    text
}

fn in_zone(server: &Server) -> String {
    server.zone.as_ref().map(|zone| format!(", in zone {zone}")).unwrap_or_default()
}

fn groups(text: &mut String, ensemble: &[&Server], layout: &Layout) {
    for (group, region) in layout.voting_regions().enumerate() {
        let members = ensemble.iter().filter(|server| server.region == region && !server.observer);
        let ids: Vec<String> = members.map(|server| server.id.to_string()).collect();
        let _ = writeln!(text, "group.{}={}", group + 1, ids.join(":"));
        for id in ids {
            let _ = writeln!(text, "weight.{id}=1");
        }
    }
}

fn meridian_files(world: &World, layout: &Layout) -> Vec<File> {
    let timing = Timing::derive(world, layout);
    let servers = servers(world, layout);
    servers
        .iter()
        .map(|server| File {
            path: Path::new("meridian").join(&server.name).join("region.toml"),
            text: region_toml(world, layout, &timing, server, &servers),
        })
        .collect()
}

/// The keys of `deploy/region.toml`, as the plan has them.
fn region_toml(
    world: &World,
    layout: &Layout,
    timing: &Timing,
    server: &Server,
    servers: &[Server],
) -> String {
    let names = &world.model.regions;
    let (region, ms) = (&names[server.region], |name: &str| timing.get(name).map_or(0.0, |s| s.value));
    let session_min_ms = ms("minSessionTimeout").max(ms("minGlobalSessionTimeout"));
    let (election_ms, spread_ms) = (ms("electionTimeout"), world.model.zone.quantile(0.99));
    let mut text = format!("# {} of {}{}\n", server.name, layout.display(names), in_zone(server));
    // Writing to a string can't fail.
    let _ = write!(
        text,
        "region = {region:?}\nserver = {id}\ndata_dir = \"/var/lib/meridian\"\ntick_ms = {tick:.0}\n\n\
         [client]\nlisten = \"0.0.0.0:2181\"\nsession_timeout_min_ms = {session_min_ms:.0}\n\
         session_timeout_max_ms = {session_max:.0}\n\n\
         [timing]\nheartbeat_ms = {beat:.0}\nelection_timeout_ms = [{election_ms:.0}, {latest:.0}]\n",
        id = server.id,
        tick = ms("tickTime"),
        session_max = ms("maxSessionTimeout"),
        beat = ms("heartbeat"),
        latest = later(election_ms, spread_ms),
    );
    for other in servers.iter().filter(|other| other.region == server.region) {
        let role = if other.observer { "\nrole = \"observer\"" } else { "" };
        let _ =
            write!(text, "\n[[servers]]\nnumber = {}\naddress = \"{}:2888\"{role}\n", other.id, other.name);
    }
    if names.len() > 1 {
        mesh(&mut text, world, layout, timing, server, servers);
    }
    text
}

/// An election timeout is drawn between the derived one and this: enough apart for one candidate's
/// request to arrive before the next one's.
fn later(election_ms: f64, round_trip_p99_ms: f64) -> f64 {
    (1.5 * election_ms).max(election_ms + 2.0 * round_trip_p99_ms).ceil()
}

fn mesh(
    text: &mut String,
    world: &World,
    layout: &Layout,
    timing: &Timing,
    server: &Server,
    servers: &[Server],
) {
    let names = &world.model.regions;
    let ms = |name: &str| timing.get(name).map_or(0.0, |setting| setting.value);
    let farthest_ms = world.model.rtt[layout.leader].iter().map(|way| way.quantile(0.99)).fold(0.0, f64::max);
    let election_ms = ms("globalElectionTimeout");
    let latest_ms = later(election_ms, farthest_ms);
    // A lost server must not end the sessions that hold global znodes: see the server's own check.
    let lease_ms = ms("regionLease").max(latest_ms + later(ms("electionTimeout"), 0.0) + 1000.0);
    let name = &server.name;
    let _ = write!(
        text,
        "\n[security]\ncertificate = \"/etc/meridian/{name}.pem\"\nkey = \"/etc/meridian/{name}.key\"\n\
         authority = \"/etc/meridian/authority.pem\"\n\n\
         # Leads best from {leader}; votes in the global group: {voting}.\n\
         [mesh]\nlisten = \"0.0.0.0:2890\"\n\n\
         [mesh.timing]\nheartbeat_ms = {beat:.0}\nelection_timeout_ms = [{election_ms:.0}, {latest_ms:.0}]\n\n\
         [mesh.lease]\nduration_ms = {lease_ms:.0}\nsession_timeout_max_ms = {session_max_ms:.0}\n",
        leader = names[layout.leader],
        voting = layout.voting_regions().map(|region| names[region].as_str()).collect::<Vec<_>>().join(", "),
        beat = ms("globalHeartbeat"),
        session_max_ms = ms("maxSessionTimeout"),
    );
    for region in (0..names.len()).filter(|region| layout.servers(*region) > 0) {
        let voters = servers.iter().filter(|other| other.region == region && !other.observer);
        let bridges: Vec<String> =
            voters.map(|voter| format!("{} = \"{}:2890\"", voter.id, voter.name)).collect();
        let _ = write!(
            text,
            "\n[[mesh.regions]]\nname = {:?}\nbridges = {{ {} }}\n",
            names[region],
            bridges.join(", ")
        );
    }
    let _ = write!(text, "\n[[mesh.subtrees]]\npath = \"/global\"\nmode = \"global\"\n");
    for home in layout.voting_regions().filter(|home| !world.model.witness[*home]) {
        let _ = write!(
            text,
            "\n[[mesh.subtrees]]\npath = \"/homed/{0}\"\nmode = \"homed\"\nhome = {0:?}\n",
            names[home]
        );
    }
}
