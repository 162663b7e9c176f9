//! What a server says of the layout that runs: for `meridian plan --live`.

use anyhow::Context;
use serde_json::{Value, json};

use crate::config::{Role, ServerConfig};
use crate::txn::ensemble::Members;

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

/// The answer of `/mesh` with the members counted in the regions at `given`, each `REGION=HOST:PORT`: of
/// these the server that was asked knows the configuration only.
pub(super) fn with_members(
    mesh: &str,
    given: &[String],
    ask: impl Fn(&str, &str) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let mut mesh: Value = serde_json::from_str(mesh)?;
    for entry in given {
        let (region, address) = entry.split_once('=').context("write --admin as REGION=HOST:PORT")?;
        let members: Value = serde_json::from_str(&ask(address, "/members")?)?;
        let count = |role: &str| {
            let members = members["members"].as_array().into_iter().flatten();
            members.filter(|member| member["role"] == role).count()
        };
        let regions = mesh["layout"]["regions"].as_array_mut().into_iter().flatten();
        for known in regions.filter(|known| known["name"] == region) {
            (known["voters"], known["observers"]) = (count("voter").into(), count("observer").into());
        }
    }
    Ok(mesh.to_string())
}

fn timing(config: &ServerConfig) -> Value {
    let mut timing = json!({
        "tickTime": config.tick_ms,
        "minSessionTimeout": config.session_timeout_min_ms(),
        "maxSessionTimeout": config.session_timeout_max_ms(),
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
    fn members_are_counted_where_they_are() {
        let mesh = r#"{"layout": {"regions": [{"name": "eu", "voters": 3}, {"name": "us", "voters": 3}]}}"#;
        let members = r#"{"members": [{"role": "voter"}, {"role": "observer"}]}"#;
        let ask = |address: &str, path: &str| {
            assert_eq!((address, path), ("a:1", "/members"));
            Ok(members.to_string())
        };
        let counted = with_members(mesh, &["us=a:1".to_string()], ask).unwrap();
        let counted: Value = serde_json::from_str(&counted).unwrap();
        assert_eq!(counted["layout"]["regions"][0], json!({ "name": "eu", "voters": 3 }));
        assert_eq!(counted["layout"]["regions"][1], json!({ "name": "us", "voters": 1, "observers": 1 }));
        assert!(with_members(mesh, &["us".to_string()], ask).is_err());
    }

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
        assert_eq!(current.timing["maxSessionTimeout"], 15_000.0);
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
