//! The configuration that `meridian plan --config` writes is one that servers start with.

use std::path::Path;

use meridian_node::config::{Overrides, ServerConfig};
use meridian_topology::plan::{Objective, plan};
use meridian_topology::{report, scenario};

fn configuration(text: &str) -> Vec<(String, ServerConfig)> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let plan = plan(&scenario::parse(text).expect("a scenario"), Objective::Mean).expect("a plan");
    let files = report::configuration(&plan);
    let region_files = files.iter().filter(|file| file.path.ends_with("region.toml"));
    region_files
        .map(|file| {
            let path = directory.path().join("region.toml");
            std::fs::write(&path, &file.text).expect("a file");
            let config = ServerConfig::load(&path, &Overrides::default())
                .unwrap_or_else(|error| panic!("{}: {error}\n{}", file.path.display(), file.text));
            let server = file.path.parent().and_then(Path::file_name).expect("a directory per server");
            (server.to_string_lossy().into_owned(), config)
        })
        .collect()
}

#[test]
fn every_server_of_a_planned_mesh_has_a_valid_configuration() {
    let servers = configuration(
        r#"
        regions = ["us-east", "us-west", "eu"]
        client_write_share = { us-east = 0.5, us-west = 0.25, eu = 0.25 }
        require = { survive_regions = 1, region_loss_plus_voters = 1 }
        session_timeout_ms = 90000
        rtt.us-east = { us-west = { p50 = 62, p99 = 66 }, eu = { p50 = 75, p99 = 80 } }
        rtt.us-west = { eu = { p50 = 130, p99 = 138 } }
        "#,
    );
    assert_eq!(servers.len(), 9);
    for (name, config) in &servers {
        assert_eq!(*name, config.server_name());
        let bridge = config.bridge().expect("bridges that make sense").expect("a bridge of every voter");
        assert_eq!(bridge.peers.len(), 6);
        assert_eq!(bridge.mesh.subtrees.len(), 4);
        assert_eq!(config.client.session_timeout_max_ms, Some(90_000));
        assert!(config.client.session_timeout_min_ms.is_some_and(|ms| ms > 1_000));
    }
}

#[test]
fn a_slow_world_gets_a_lease_that_the_server_accepts() {
    let servers = configuration(
        r#"
        regions = ["a", "b", "c"]
        witness = ["c"]
        designs = ["two"]
        client_write_share = { a = 0.5, b = 0.5 }
        rtt.a = { b = { p50 = 600, p99 = 2000 }, c = { p50 = 700, p99 = 2500 } }
        rtt.b = { c = { p50 = 700, p99 = 2500 } }
        timing = { heartbeat_ms = 500, stall_ms = 1000 }
        "#,
    );
    assert!(servers.iter().any(|(name, _)| name == "c-1"));
    for (_, config) in &servers {
        assert!(config.bridge().expect("bridges that make sense").is_some());
    }
}
