//! What the servers run on comes through the seams, or a simulated run could not be replayed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// What would bring in time, threads or chance past [`meridian_seam::Environment`], and what to use.
const PAST_THE_SEAMS: [(&str, &str); 8] = [
    ("SystemTime", "Environment::clock"),
    ("std::time::Instant", "Environment::clock or tokio's Instant"),
    ("rand::rng()", "Environment::entropy"),
    ("spawn_blocking", "Environment::background"),
    ("tokio::sync::watch", "meridian_seam::watch, which wakes in order"),
    ("tokio::net", "Environment::net"),
    ("tokio::fs", "Environment::disk"),
    ("RandomState", "a map with a fixed order"),
];

/// Where the seams themselves are, and what no simulated server runs.
const ALLOWED: [&str; 11] = [
    "node/src/server/backup.rs",
    "node/src/server/sasl/gssapi.rs",
    "node/src/server/tls.rs",
    "node/seam/src/clock.rs",
    "node/seam/src/entropy.rs",
    "node/seam/src/net.rs",
    "node/seam/src/background.rs",
    "node/seam/src/watch.rs",
    "node/src/command",
    "node/src/main.rs",
    "tests",
];

fn sources(root: &Path, found: &mut Vec<(String, String)>, directory: &str) {
    for entry in fs::read_dir(root.join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
        if ALLOWED.iter().any(|allowed| path.contains(allowed)) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            sources(root, found, &path);
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).unwrap();
            let without_tests = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_string();
            found.push((path, without_tests));
        }
    }
}

fn production_sources() -> Vec<(String, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for directory in ["node/src", "node/seam/src", "federation-bridge/src"] {
        sources(&root, &mut found, directory);
    }
    assert!(found.len() > 40, "the sources are not where they were");
    found
}

#[test]
fn nothing_goes_past_the_seams() {
    for (path, text) in production_sources() {
        for (name, instead) in PAST_THE_SEAMS {
            assert!(!text.contains(name), "{path} uses {name}: use {instead}");
        }
    }
}

/// Without `biased`, tokio draws the branch that is looked at first.
#[test]
fn every_select_has_an_order() {
    for (path, text) in production_sources() {
        for part in text.split("select! {").skip(1) {
            assert!(part.trim_start().starts_with("biased;"), "{path} has a select! that is not biased");
        }
    }
}

/// Code that is broken on purpose is compiled in for the simulator alone, and nobody else turns any of it on.
#[test]
fn only_the_simulator_breaks_code() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for manifest in ["node", "node/wire", "federation-bridge", "topology"] {
        let text = fs::read_to_string(root.join(manifest).join("Cargo.toml")).unwrap();
        assert!(!text.contains("mutants"), "{manifest} turns on broken code");
    }
    for (path, text) in production_sources() {
        assert!(!text.contains("mutant::set"), "{path} breaks code");
    }
}
