//! Four-letter words: what operators' scripts ask on the client port, answered in ZooKeeper's formats.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_bridge::mesh::LOCAL;
use meridian_seam::clock::millis;

use super::client::Statistics;
use super::connection::Service;
use super::monitor;
use crate::region::{LastSnapshot, SNAPSHOT_TIMEOUT};
use crate::txn::ensemble::{Member, Role, port_of};

/// The version told to those who parse it: the ZooKeeper release whose protocol is spoken, and what speaks.
///
/// Parsers expect a date behind it: that of the version, since a build can be repeated at any time.
pub(super) const VERSION: &str =
    concat!("3.9.0-meridian-", env!("CARGO_PKG_VERSION"), ", built on 2026-11-20 00:00 UTC");

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

/// The trace mask of a server that nobody has told another one: requests, sessions, warnings.
pub(super) const TRACE_MASK: i64 = 306;

/// Whether the first bytes of a connection are a word. None of them could be the length of a frame.
pub(super) fn is_word(bytes: &[u8; 4]) -> bool {
    WORDS.contains(&bytes)
}

/// What a word is answered with.
/// `mask` is what follows the word.
pub(super) fn answer(service: &Service, word: [u8; 4], mask: Option<i64>) -> String {
    let word = String::from_utf8_lossy(&word);
    let listed = |word: &str| service.options.words.contains(word);
    if !listed(&word) && !listed("*") {
        return format!("{word} is not executed because it is not in the whitelist.\n");
    }
    if !has_found_a_leader(service) || service.is_cut_off() && !service.is_read_only() {
        match &*word {
            "isro" => return "null".into(),
            "srvr" | "stat" | "mntr" => {
                return "This ZooKeeper instance is not currently serving requests\n".into();
            }
            _ => {}
        }
    }
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = match &*word {
        "ruok" => out.write_str("imok"),
        "isro" => out.write_str(if service.is_read_only() { "ro" } else { "rw" }),
        "gtmk" => write!(out, "{}", service.trace_mask.load(Ordering::Relaxed)),
        "stmk" => {
            let mask = mask.unwrap_or(TRACE_MASK);
            service.trace_mask.store(mask, Ordering::Relaxed);
            write!(out, "{mask}")
        }
        "hash" => {
            let (zxid, digest) = digest(service);
            writeln!(out, "{zxid:#x}: {digest}")
        }
        "srvr" => write_server(service, &mut out),
        "stat" => write_stat(service, &mut out),
        "mntr" => write_monitor(service, &mut out),
        "conf" => write_configuration(service, &mut out),
        "cons" => write_connections(service, &mut out).and_then(|()| out.write_char('\n')),
        "envi" => write_environment(&mut out),
        "dump" => write_dump(service, &mut out),
        "dirs" => {
            let (data, log) = directory_sizes(service);
            write!(out, "datadir_size: {data}\nlogdir_size: {log}\n")
        }
        "wchs" => write_watch_summary(service, &mut out),
        "wchc" => write_watches_by_session(service, &mut out),
        "wchp" => write_watches_by_path(service, &mut out),
        "srst" => {
            monitor::reset(service);
            out.write_str("Server stats reset.\n")
        }
        "crst" => {
            service.hub.clients().iter().for_each(|client| client.reset_statistics());
            out.write_str("Connection stats reset.\n")
        }
        _ => writeln!(out, "{word} is not supported."),
    };
    out
}

/// False from the start of the server until it hears of a leader and its majority; a pause between two leaders does not
/// count.
fn has_found_a_leader(service: &Service) -> bool {
    service.hub.has_had_contact() || service.is_read_only()
}

/// `leader`, `follower`, `observer`, `standalone` or `read-only`.
pub(super) fn mode(service: &Service) -> &'static str {
    if service.is_read_only() {
        return "read-only";
    }
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
    write_version(service, out)?;
    write_counters(service, out)
}

/// Who waits for a server to serve looks for the second line.
fn write_version(service: &Service, out: &mut String) -> std::fmt::Result {
    writeln!(out, "Zookeeper version: {VERSION}")?;
    if service.is_read_only() {
        writeln!(out, "READ-ONLY mode; serving only read-only clients")?;
    }
    Ok(())
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
    write_version(service, out)?;
    writeln!(out, "Clients:")?;
    for client in service.hub.clients() {
        let (received, sent) = client.packets();
        let (peer, queued) = (client.peer, client.outstanding());
        writeln!(out, " /{peer}[1](queued={queued},recved={received},sent={sent})")?;
    }
    out.write_char('\n')?;
    write_counters(service, out)
}

/// What a member of an ensemble does, in ZooKeeper's words; nothing for a server on its own.
fn peer_state(service: &Service) -> Option<&'static str> {
    match mode(service) {
        "leader" => Some("leading - broadcast"),
        "follower" => Some("following - broadcast"),
        "observer" => Some("observing - broadcast"),
        _ => None,
    }
}

fn write_monitor(service: &Service, out: &mut String) -> std::fmt::Result {
    writeln!(out, "zk_version\t{VERSION}")?;
    writeln!(out, "zk_server_state\t{}", mode(service))?;
    if let Some(state) = peer_state(service) {
        writeln!(out, "zk_peer_state\t{state}")?;
    }
    monitor::lines(service, out)
}

fn write_configuration(service: &Service, out: &mut String) -> std::fmt::Result {
    configuration(service).into_iter().try_for_each(|(name, value)| writeln!(out, "{name}={value}"))?;
    let ensemble = service.hub.view().state.ensemble.clone();
    if ensemble.members.len() > 1 {
        writeln!(out, "membership: \n{}", ensemble.text())?;
    }
    Ok(())
}

/// The configuration by ZooKeeper's names.
pub(super) fn configuration(service: &Service) -> Vec<(&'static str, String)> {
    let options = &service.options;
    let (session_min, session_max) = options.session_timeout_bounds_ms();
    let (data_size, log_size) = directory_sizes(service);
    let listening = service.client_address();
    let mut configuration = vec![
        ("clientPort", listening.port().to_string()),
        ("clientPortAddress", listening.ip().to_string()),
        ("secureClientPort", service.listening_secure.map_or("-1".into(), |a| a.port().to_string())),
        ("dataDir", options.region.data_dir.display().to_string()),
        ("dataDirSize", data_size.to_string()),
        ("dataLogDir", log_directory(service).display().to_string()),
        ("dataLogSize", log_size.to_string()),
        ("tickTime", options.tick.as_millis().to_string()),
        ("maxClientCnxns", options.connections_per_address_max.to_string()),
        ("maxCnxns", options.connections_max.to_string()),
        ("minSessionTimeout", session_min.to_string()),
        ("maxSessionTimeout", session_max.to_string()),
        ("clientPortListenBacklog", "-1".into()),
        ("jute.maxbuffer", options.frame_bytes_max.to_string()),
        ("serverId", options.region.server.to_string()),
    ];
    if let Some(member) = member(service) {
        let (init_limit, sync_limit) = limits_in_ticks(service);
        configuration.extend([
            ("initLimit", init_limit.to_string()),
            ("syncLimit", sync_limit.to_string()),
            ("electionPort", member.election_port.to_string()),
            ("quorumPort", port_of(&member.address).unwrap_or_default().to_string()),
            ("peerType", u8::from(member.role == Role::Observer).to_string()),
        ]);
    }
    configuration
}

/// This server as a member of an ensemble; nothing for a server on its own.
pub(super) fn member(service: &Service) -> Option<Member> {
    let members = service.hub.view().state.ensemble.members.clone();
    let own = u8::try_from(service.region.config().server).ok()?;
    members.get(&own).filter(|_| members.len() > 1).cloned()
}

/// What comes nearest to ZooKeeper's initLimit and syncLimit: for how long a server may take up a snapshot, and for how
/// long one may be silent, in ticks.
pub(super) fn limits_in_ticks(service: &Service) -> (u64, u64) {
    let in_ticks = |time: Duration| millis(time).div_ceil(millis(service.options.tick).max(1));
    let (_, silence) = service.region.config().timing.election_timeout;
    (in_ticks(SNAPSHOT_TIMEOUT), in_ticks(silence))
}

fn write_connections(service: &Service, out: &mut String) -> std::fmt::Result {
    for client in service.hub.clients() {
        let Statistics { received, sent, last, .. } = client.statistics();
        write!(out, " /{}[1](queued={},recved={received},sent={sent}", client.peer, client.outstanding())?;
        if client.session() != 0 {
            let latency = client.latency();
            write!(out, ",sid={:#x},lop={}", client.session(), last.operation_name())?;
            write!(out, ",est={},to={}", client.established_unix_ms, client.timeout().as_millis())?;
            write!(out, ",lcxid={:#x},lzxid={:#x}", last.xid, last.zxid)?;
            write!(out, ",lresp={},llat={}", last.at_ms, last.latency_ms)?;
            let (min, avg, max) = (latency.min_ms, latency.avg_ms as u64, latency.max_ms);
            write!(out, ",minlat={min},avglat={avg},maxlat={max}")?;
        }
        out.write_str(")\n")?;
    }
    Ok(())
}

/// Where the log lives.
pub(super) fn log_directory(service: &Service) -> PathBuf {
    let region = service.region.config();
    region.storage.log_dir.clone().unwrap_or_else(|| region.data_dir.join("log"))
}

/// Bytes of the snapshots and of the log.
pub(super) fn directory_sizes(service: &Service) -> (u64, u64) {
    let size = |directory: &Path| -> u64 {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    };
    let region = service.region.config();
    (size(&region.data_dir.join("snapshots")), size(&log_directory(service)))
}

/// The zxid that the newest snapshot has reached, and when its file was last changed, in ms since 1970.
pub(super) fn last_snapshot(service: &Service) -> Option<(i64, i64)> {
    let LastSnapshot { zxid, file } = service.region.last_snapshot()?;
    let modified = file.metadata().and_then(|metadata| metadata.modified()).ok()?;
    let age = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((zxid, i64::try_from(age.as_millis()).ok()?))
}

/// The zxid that this server has reached, and a digest of what clients can read there: equal at every server of
/// the region.
pub(super) fn digest(service: &Service) -> (i64, String) {
    let view = service.hub.view();
    let state = &view.state;
    let subtrees = std::iter::once(LOCAL).chain(state.mesh.subtrees().map(|(id, _)| id));
    let digest = subtrees.fold(0_u128, |digest, subtree| digest.wrapping_add(state.tree.digest(subtree)));
    (state.zxid, format!("{digest:032x}"))
}

fn write_environment(out: &mut String) -> std::fmt::Result {
    writeln!(out, "Environment:")?;
    environment().into_iter().try_for_each(|(key, value)| writeln!(out, "{key}={value}"))
}

/// What this server runs on, by ZooKeeper's names.
pub(super) fn environment() -> Vec<(&'static str, String)> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    vec![
        ("zookeeper.version", VERSION.into()),
        ("host.name", variable("HOSTNAME")),
        // Parsed by clients' test harnesses; there is no Java here.
        ("java.version", "none".into()),
        ("os.name", std::env::consts::OS.into()),
        ("os.arch", std::env::consts::ARCH.into()),
        ("user.name", variable("USER")),
    ]
}

fn write_dump(service: &Service, out: &mut String) -> std::fmt::Result {
    let view = service.hub.view();
    let state = &view.state;
    let sessions: BTreeMap<i64, u32> =
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
    let (connections, paths, watches) = watch_summary(service);
    writeln!(out, "{connections} connections watching {paths} paths")?;
    writeln!(out, "Total watches:{watches}")
}

/// Numbers of connections that watch, of paths watched, and of watches.
pub(super) fn watch_summary(service: &Service) -> (usize, usize, usize) {
    let watches = service.hub.watches();
    let connections: BTreeSet<i64> =
        watches.iter().flat_map(|(_, sessions)| sessions.iter().copied()).collect();
    (connections.len(), watches.len(), service.hub.watch_count())
}

fn write_watches_by_path(service: &Service, out: &mut String) -> std::fmt::Result {
    for (path, sessions) in service.hub.watches() {
        writeln!(out, "{path}")?;
        sessions.iter().try_for_each(|session| writeln!(out, "\t{session:#x}"))?;
    }
    Ok(())
}

fn write_watches_by_session(service: &Service, out: &mut String) -> std::fmt::Result {
    for (session, paths) in watches_by_session(service) {
        writeln!(out, "{session:#x}")?;
        paths.iter().try_for_each(|path| writeln!(out, "\t{path}"))?;
    }
    Ok(())
}

/// The paths that each session watches.
pub(super) fn watches_by_session(service: &Service) -> BTreeMap<i64, Vec<String>> {
    let mut by_session = BTreeMap::<i64, Vec<String>>::new();
    for (path, sessions) in service.hub.watches() {
        sessions.iter().for_each(|session| by_session.entry(*session).or_default().push(path.clone()));
    }
    by_session
}
