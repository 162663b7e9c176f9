//! Configurations: `zoo.cfg` and TOML, by the first byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_node::config::{Overrides, ServerConfig};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let name = if choice % 2 == 0 { "zoo.cfg" } else { "region.toml" };
    let file = directory.path().join(name);
    let text = String::from_utf8_lossy(data).replace("DIR", &directory.path().display().to_string());
    std::fs::write(&file, text).unwrap();
    std::fs::write(directory.path().join("myid"), "1").unwrap();
    if let Ok(config) = ServerConfig::load(&file, &Overrides::default()) {
        let _ = (config.members(), config.peer_listen(), config.bridge());
    }
});
