//! The files that the servers of a plan's best layout start with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::layout::{Design, Layout};
use crate::plan::Plan;
use crate::timing::Timing;

/// One file to write, below a directory of the caller's choice.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// `SERVER/zoo.cfg` or `SERVER/myid`.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// `zoo.cfg` and `myid` of every server of the best layout; none if no layout fits.
///
/// A server is called `REGION.NUMBER`, as a host name too: hosts, ports and directories are to be
/// adapted, the rest is the plan. At two levels every region has an ensemble of its own; the global
/// group, which a `zoo.cfg` has no keys for, is told in comments.
pub fn configuration(plan: &Plan) -> Vec<File> {
    let (Some(best), Some(timing)) = (plan.best(), &plan.timing) else {
        return Vec::new();
    };
    let names = &plan.world.model.regions;
    let servers = servers(&best.layout, names);
    servers
        .iter()
        .flat_map(|server| {
            let together =
                |other: &&Server| best.layout.design != Design::Two || other.region == server.region;
            let ensemble: Vec<&Server> = servers.iter().filter(together).collect();
            let text = zoo_cfg(server, &ensemble, &best.layout, timing, names);
            let directory = Path::new(&server.name);
            [
                File { path: directory.join("zoo.cfg"), text },
                File { path: directory.join("myid"), text: format!("{}\n", server.id) },
            ]
        })
        .collect()
}

struct Server {
    /// Unique in its ensemble.
    id: usize,
    region: usize,
    name: String,
    observer: bool,
}

/// All servers; at two levels those of each region count from one, and a region without a global
/// vote still has voters of its own ensemble.
fn servers(layout: &Layout, names: &[String]) -> Vec<Server> {
    let two_level = layout.design == Design::Two;
    let mut servers = Vec::new();
    for (region, name) in names.iter().enumerate() {
        for number in 1..=usize::from(layout.servers(region)) {
            let observer = !two_level && number > usize::from(layout.voters[region]);
            let id = if two_level { number } else { servers.len() + 1 };
            servers.push(Server { id, region, name: format!("{name}.{number}"), observer });
        }
    }
    servers
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
    let mut text = format!("# {} of {}\n", server.name, layout.display(names));
    // Writing to a string can't fail.
    for setting in &timing.settings {
        let _ = if ZOO_CFG_KEYS.contains(&setting.name) {
            writeln!(text, "{}={:.0}", setting.name, setting.value)
        } else {
            writeln!(text, "# {}: {:.0} {}", setting.name, setting.value, setting.unit)
        };
    }
    text.push_str("dataDir=/var/lib/meridian\nclientPort=2181\n");
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
