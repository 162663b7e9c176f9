//! What a server says of the layout that runs: for `meridian plan --live`.

use serde_json::{Value, json};

use crate::config::{Role, ServerConfig};
use crate::txn::ensemble::Members;

/// ZooKeeper's bounds of session timeouts, in ticks.
const SESSION_TICKS_MIN: u64 = 2;
const SESSION_TICKS_MAX: u64 = 20;

/// Voters and observers of every region, and the timeouts in use by the planner's names. Of this
/// region the `members` in force are told, or those configured until it is formed; observers of other
/// regions are known to these alone.
pub(in crate::command) fn layout(config: &ServerConfig, members: &Members) -> Value {
    let own = |role: Role| match members.len() {
        0 => config.servers.iter().filter(|server| server.role == role).count(),
        _ => members.values().filter(|member| member.role == role).count(),
    };
    let own = json!({ "name": config.region, "voters": own(Role::Voter), "observers": own(Role::Observer) });
    let regions: Vec<Value> = match &config.mesh {
        None => vec![own],
        Some(mesh) => mesh
            .regions
            .iter()
            .map(|region| {
                let elsewhere = || json!({ "name": region.name, "voters": region.bridges.len() });
                if region.name == config.region { own.clone() } else { elsewhere() }
            })
            .collect(),
    };
    json!({ "regions": regions, "timing": timing(config) })
}

fn timing(config: &ServerConfig) -> Value {
    let session = |given: Option<u32>, ticks: u64| given.map_or(ticks * config.tick_ms, u64::from);
    let mut timing = json!({
        "tickTime": config.tick_ms,
        "minSessionTimeout": session(config.client.session_timeout_min_ms, SESSION_TICKS_MIN),
        "maxSessionTimeout": session(config.client.session_timeout_max_ms, SESSION_TICKS_MAX),
        "heartbeat": config.timing.heartbeat_ms,
        "electionTimeout": config.timing.election_timeout_ms.0,
    });
    if let Some(mesh) = &config.mesh {
        timing["globalHeartbeat"] = mesh.timing.heartbeat_ms.into();
        timing["globalElectionTimeout"] = mesh.timing.election_timeout_ms.0.into();
        timing["regionLease"] = mesh.lease.duration_ms.into();
    }
    timing
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use meridian_topology::live;

    use super::*;
    use crate::config::Overrides;

    #[test]
    fn the_planner_understands_what_a_server_says() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/region.toml");
        let config = ServerConfig::load(&example, &Overrides::default()).unwrap();
        let answer = json!({ "global_leader": "us-west", "layout": layout(&config, &Members::new()) });
        let current = live::running(&answer.to_string()).unwrap();
        assert_eq!(current.leader, "us-west");
        assert_eq!(
            (current.voters["us-east"], current.voters["eu"], current.observers["us-east"]),
            (3, 3, 1)
        );
        assert_eq!(current.timing["maxSessionTimeout"], 40_000.0);
        assert_eq!(current.timing["regionLease"], 10_000.0);
        let mut members = config.members();
        members.remove(&3);
        let changed = layout(&config, &members);
        assert_eq!(
            (&changed["regions"][0]["voters"], &changed["regions"][1]["voters"]),
            (&json!(2), &json!(3))
        );
    }
}
