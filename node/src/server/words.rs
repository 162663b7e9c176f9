//! Four-letter words: what operators' scripts ask on the client port, answered in ZooKeeper's formats.

use std::fmt::Write as _;

use super::connection::Service;

/// The version told to those who parse it: the ZooKeeper release whose protocol is spoken, and what speaks.
///
/// Parsers expect a date behind it, which a reproducible build does not have.
pub(super) const VERSION: &str =
    concat!("3.9.0-meridian-", env!("CARGO_PKG_VERSION"), ", built on an unknown date");

/// The words that change nothing.
pub const READ_ONLY_WORDS: &[&str] = &[
    "conf", "cons", "dirs", "dump", "envi", "gtmk", "isro", "mntr", "ruok", "srvr", "stat", "wchc", "wchp",
    "wchs",
];

/// All words there are.
const WORDS: &[&[u8; 4]] = &[
    b"conf", b"cons", b"crst", b"dirs", b"dump", b"envi", b"gtmk", b"hash", b"isro", b"mntr", b"ruok",
    b"srst", b"srvr", b"stat", b"stmk", b"wchc", b"wchp", b"wchs",
];

/// Whether the first bytes of a connection are a word. None of them could be the length of a frame.
pub(super) fn is_word(bytes: &[u8; 4]) -> bool {
    WORDS.contains(&bytes)
}

/// What a word is answered with.
pub(super) fn answer(service: &Service, word: [u8; 4]) -> String {
    let word = String::from_utf8_lossy(&word);
    let listed = |word: &str| service.options.words.contains(word);
    if !listed(&word) && !listed("*") {
        return format!("{word} is not executed because it is not in the whitelist.\n");
    }
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = match &*word {
        "ruok" => out.write_str("imok"),
        "isro" => out.write_str("rw"),
        "gtmk" => out.write_str("306"),
        "srvr" => write_server(service, &mut out),
        "stat" => write_stat(service, &mut out),
        "mntr" => write_monitor(service, &mut out),
        "conf" => write_configuration(service, &mut out),
        "cons" => write_connections(service, &mut out).and_then(|()| out.write_char('\n')),
        "envi" => write_environment(&mut out),
        "dump" => write_dump(service, &mut out),
        "dirs" => {
            write!(out, "datadir_size: {}\nlogdir_size: 0\n", service.hub.view().state.tree.data_bytes())
        }
        "wchs" => write_watch_summary(service, &mut out),
        "wchc" => write_watches_by_session(service, &mut out),
        "wchp" => write_watches_by_path(service, &mut out),
        "srst" => {
            service.hub.metrics.reset();
            out.write_str("Server stats reset.\n")
        }
        "crst" => {
            service.hub.clients().iter().for_each(|client| client.reset_packets());
            out.write_str("Connection stats reset.\n")
        }
        _ => writeln!(out, "{word} is not supported."),
    };
    out
}

/// `leader`, `follower`, `observer` or `standalone`.
pub(super) fn mode(service: &Service) -> &'static str {
    let leadership = *service.region.leadership().borrow();
    let roster = service.region.roster();
    if roster.voters.len() + roster.learners.len() == 1 && leadership.is_me {
        "standalone"
    } else if leadership.is_me {
        "leader"
    } else if roster.voters.contains(&service.region.config().server) {
        "follower"
    } else {
        "observer"
    }
}

fn write_server(service: &Service, out: &mut String) -> std::fmt::Result {
    writeln!(out, "Zookeeper version: {VERSION}")?;
    write_counters(service, out)
}

fn write_counters(service: &Service, out: &mut String) -> std::fmt::Result {
    let (hub, latency) = (&service.hub, service.hub.metrics.latency());
    let (received, sent) = hub.metrics.packets();
    let view = hub.view();
    writeln!(out, "Latency min/avg/max: {}/{:.4}/{}", latency.min_ms, latency.avg_ms, latency.max_ms)?;
    writeln!(out, "Received: {received}")?;
    writeln!(out, "Sent: {sent}")?;
    writeln!(out, "Connections: {}", hub.metrics.connections())?;
    writeln!(out, "Outstanding: {}", hub.metrics.outstanding())?;
    writeln!(out, "Zxid: {:#x}", view.state.zxid)?;
    writeln!(out, "Mode: {}", mode(service))?;
    writeln!(out, "Node count: {}", view.state.tree.len())
}

fn write_stat(service: &Service, out: &mut String) -> std::fmt::Result {
    writeln!(out, "Zookeeper version: {VERSION}")?;
    writeln!(out, "Clients:")?;
    for client in service.hub.clients() {
        let (received, sent) = client.packets();
        let (peer, queued) = (client.peer, client.outstanding());
        writeln!(out, " /{peer}[1](queued={queued},recved={received},sent={sent})")?;
    }
    out.write_char('\n')?;
    write_counters(service, out)
}

/// What `mntr` and the metrics endpoint tell, by ZooKeeper's names.
pub(super) fn gauges(service: &Service) -> Vec<(&'static str, f64)> {
    let (hub, region) = (&service.hub, &service.region);
    let (received, sent) = hub.metrics.packets();
    let latency = hub.metrics.latency();
    let view = hub.view();
    let leads = region.leadership().borrow().is_me;
    let roster = region.roster();
    let mut gauges = vec![
        ("avg_latency", latency.avg_ms),
        ("max_latency", latency.max_ms as f64),
        ("min_latency", latency.min_ms as f64),
        ("packets_received", received as f64),
        ("packets_sent", sent as f64),
        ("num_alive_connections", hub.metrics.connections() as f64),
        ("connection_rejected", hub.metrics.connections_rejected() as f64),
        ("outstanding_requests", hub.metrics.outstanding() as f64),
        ("znode_count", view.state.tree.len() as f64),
        ("watch_count", hub.watch_count() as f64),
        ("ephemerals_count", view.state.tree.ephemeral_count() as f64),
        ("approximate_data_size", view.state.tree.data_bytes() as f64),
        ("global_sessions", view.state.sessions.len() as f64),
        ("local_sessions", 0.0),
        ("uptime", hub.now().as_millis() as f64),
        ("quorum_size", roster.voters.len() as f64),
    ];
    if leads {
        gauges.push(("learners", (roster.voters.len() + roster.learners.len()) as f64 - 1.0));
    }
    gauges
}

fn write_monitor(service: &Service, out: &mut String) -> std::fmt::Result {
    writeln!(out, "zk_version\t{VERSION}")?;
    writeln!(out, "zk_server_state\t{}", mode(service))?;
    for (name, value) in gauges(service) {
        writeln!(out, "zk_{name}\t{value}")?;
    }
    Ok(())
}

fn write_configuration(service: &Service, out: &mut String) -> std::fmt::Result {
    configuration(service).into_iter().try_for_each(|(name, value)| writeln!(out, "{name}={value}"))
}

/// The configuration by ZooKeeper's names.
pub(super) fn configuration(service: &Service) -> Vec<(&'static str, String)> {
    let options = &service.options;
    let (session_min, session_max) = options.session_timeout_bounds_ms();
    vec![
        ("clientPort", service.listening.port().to_string()),
        ("clientPortAddress", service.listening.ip().to_string()),
        ("dataDir", options.region.data_dir.display().to_string()),
        ("tickTime", options.tick.as_millis().to_string()),
        ("maxClientCnxns", options.connections_per_address_max.to_string()),
        ("maxCnxns", options.connections_max.to_string()),
        ("minSessionTimeout", session_min.to_string()),
        ("maxSessionTimeout", session_max.to_string()),
        ("jute.maxbuffer", options.frame_bytes_max.to_string()),
        ("serverId", options.region.server.to_string()),
    ]
}

fn write_connections(service: &Service, out: &mut String) -> std::fmt::Result {
    for client in service.hub.clients() {
        let (received, sent) = client.packets();
        let (session, timeout_ms) = (client.session(), client.timeout().as_millis());
        writeln!(
            out,
            " /{}[1](queued={},recved={received},sent={sent},sid={session:#x},to={timeout_ms})",
            client.peer,
            client.outstanding()
        )?;
    }
    Ok(())
}

fn write_environment(out: &mut String) -> std::fmt::Result {
    writeln!(out, "Environment:")?;
    writeln!(out, "zookeeper.version={VERSION}")?;
    // Parsed by clients' test harnesses; there is no Java here.
    writeln!(out, "java.version=none")?;
    writeln!(out, "os.name={}", std::env::consts::OS)?;
    writeln!(out, "os.arch={}", std::env::consts::ARCH)
}

fn write_dump(service: &Service, out: &mut String) -> std::fmt::Result {
    let view = service.hub.view();
    let state = &view.state;
    let sessions: std::collections::BTreeMap<i64, u32> =
        state.sessions.iter().map(|(id, session)| (*id, session.timeout_ms)).collect();
    writeln!(out, "SessionTracker dump:\nSession Sets ({}):", sessions.len())?;
    for (session, timeout_ms) in &sessions {
        writeln!(out, "\t{session:#x}\t{timeout_ms}ms")?;
    }
    let owners: Vec<i64> = state.tree.ephemeral_owners(i64::MIN..=i64::MAX).collect();
    writeln!(out, "ephemeral nodes dump:\nSessions with Ephemerals ({}):", owners.len())?;
    for owner in owners {
        writeln!(out, "{owner:#x}:")?;
        state.tree.ephemerals_of(owner).try_for_each(|path| writeln!(out, "\t{path}"))?;
    }
    Ok(())
}

fn write_watch_summary(service: &Service, out: &mut String) -> std::fmt::Result {
    let watches = service.hub.watches();
    let connections: std::collections::BTreeSet<i64> =
        watches.iter().flat_map(|(_, sessions)| sessions.iter().copied()).collect();
    writeln!(out, "{} connections watching {} paths", connections.len(), watches.len())?;
    writeln!(out, "Total watches:{}", service.hub.watch_count())
}

fn write_watches_by_path(service: &Service, out: &mut String) -> std::fmt::Result {
    for (path, sessions) in service.hub.watches() {
        writeln!(out, "{path}")?;
        sessions.iter().try_for_each(|session| writeln!(out, "\t{session:#x}"))?;
    }
    Ok(())
}

fn write_watches_by_session(service: &Service, out: &mut String) -> std::fmt::Result {
    let mut by_session = std::collections::BTreeMap::<i64, Vec<String>>::new();
    for (path, sessions) in service.hub.watches() {
        sessions.iter().for_each(|session| by_session.entry(*session).or_default().push(path.clone()));
    }
    for (session, paths) in by_session {
        writeln!(out, "{session:#x}")?;
        paths.iter().try_for_each(|path| writeln!(out, "\t{path}"))?;
    }
    Ok(())
}
