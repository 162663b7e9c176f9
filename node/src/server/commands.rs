//! The commands of ZooKeeper's AdminServer: JSON with its names of commands and fields.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use meridian_seam::clock::millis;
use serde_json::{Map, Value, json};

use super::client::{Client, Statistics};
use super::connection::Service;
use super::{monitor, words};
use crate::region::Sizes;
use crate::txn::ensemble::{Member, Role, port_of};

/// Why a command is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such command.
    Unknown,
    /// It changes something, and this is not the place.
    ForChanges,
    /// An argument is missing or makes no sense.
    Argument(&'static str),
}

type Answer = fn(&Service, &BTreeMap<String, String>) -> Result<Value, Refusal>;

/// A command by its names, the first of which is told in its answer.
struct Command {
    names: &'static [&'static str],
    changes: bool,
    answer: Answer,
}

const fn look(names: &'static [&'static str], answer: Answer) -> Command {
    Command { names, changes: false, answer }
}

const fn change(names: &'static [&'static str], answer: Answer) -> Command {
    Command { names, changes: true, answer }
}

const COMMANDS: &[Command] = &[
    look(&["configuration", "conf", "config"], |service, _| Ok(configuration(service))),
    change(&["connection_stat_reset", "crst"], |service, _| {
        service.hub.clients().iter().for_each(|client| client.reset_statistics());
        Ok(json!({}))
    }),
    look(&["connections", "cons"], |service, _| {
        Ok(
            json!({ "connections": connections(service, false), "secure_connections": connections(service, true) }),
        )
    }),
    look(&["digest"], |service, _| Ok(json!({ "subtrees": digests(service) }))),
    look(&["dirs"], |service, _| {
        let (data, log) = words::directory_sizes(service);
        Ok(json!({ "datadir_size": data, "logdir_size": log }))
    }),
    look(&["dump"], |service, _| Ok(dump(service))),
    look(&["environment", "env", "envi"], |_, _| {
        Ok(words::environment().into_iter().map(|(key, value)| (key, Value::from(value))).collect())
    }),
    look(&["get_trace_mask", "gtmk"], |service, _| {
        Ok(json!({ "tracemask": service.trace_mask.load(Ordering::Relaxed) }))
    }),
    look(&["hash"], |service, _| {
        let (zxid, digest) = words::digest(service);
        Ok(json!({ "digests": [{ "zxid": zxid, "digest_version": 1, "digest": digest }] }))
    }),
    look(&["initial_configuration", "icfg"], |service, _| {
        let lines = words::configuration(service).into_iter().map(|(key, value)| format!("{key}={value}\n"));
        Ok(json!({ "initial_configuration": lines.collect::<String>() }))
    }),
    look(&["is_read_only", "isro"], |service, _| Ok(json!({ "read_only": service.is_read_only() }))),
    look(&["last_snapshot", "lsnp"], |service, _| {
        let (zxid, timestamp) = words::last_snapshot(service).unwrap_or((-1, -1));
        Ok(json!({ "zxid": format!("{zxid:x}"), "timestamp": timestamp }))
    }),
    look(&["leader", "lead"], |service, _| Ok(leader(service))),
    look(&["monitor", "mntr"], |service, _| Ok(monitor(service))),
    change(&["observer_connection_stat_reset", "orst"], |_, _| Ok(json!({}))),
    look(&["observers", "obsr"], |service, _| Ok(observers(service))),
    look(&["ruok"], |_, _| Ok(json!({}))),
    look(&["server_stats", "srvr"], |service, _| Ok(server_stats(service))),
    change(&["set_trace_mask", "stmk"], |service, arguments| {
        let mask = arguments.get("traceMask").and_then(|mask| mask.parse().ok());
        let mask: i64 = mask.ok_or(Refusal::Argument("setTraceMask requires long traceMask argument"))?;
        service.trace_mask.store(mask, Ordering::Relaxed);
        Ok(json!({ "tracemask": mask }))
    }),
    change(&["stat_reset", "srst"], |service, _| {
        monitor::reset(service);
        Ok(json!({}))
    }),
    look(&["stats", "stat"], |service, _| {
        let mut stats = server_stats(service);
        stats["connections"] = connections(service, false);
        stats["secure_connections"] = connections(service, true);
        Ok(stats)
    }),
    look(&["system_properties", "sysp"], |_, _| Ok(json!({}))),
    look(&["voting_view"], |service, _| Ok(voting_view(service))),
    look(&["watch_summary", "wchs"], |service, _| {
        let (connections, paths, watches) = words::watch_summary(service);
        Ok(json!({ "num_connections": connections, "num_paths": paths, "num_total_watches": watches }))
    }),
    look(&["watches", "wchc"], |service, _| {
        let by_session = words::watches_by_session(service);
        let by_session: Map<String, Value> =
            by_session.into_iter().map(|(session, paths)| (session.to_string(), paths.into())).collect();
        Ok(json!({ "session_id_to_watched_paths": by_session }))
    }),
    look(&["watches_by_path", "wchp"], |service, _| {
        let by_path: Map<String, Value> =
            service.hub.watches().into_iter().map(|(path, sessions)| (path, sessions.into())).collect();
        Ok(json!({ "path_to_session_ids": by_path }))
    }),
    look(&["zabstate"], |service, _| {
        let me = service.region.config().server;
        let leadership = *service.region.leadership().borrow();
        let zxid = service.hub.view().state.zxid;
        let member = words::member(service);
        Ok(json!({
            "myid": me,
            "is_leader": leadership.is_me,
            "quorum_address": member.as_ref().map(|member| &member.address),
            "election_address": member.as_ref().map(Member::election_address),
            "client_address": service.client_address().to_string(),
            "voting": service.region.roster().voters.contains(&me),
            "last_zxid": format!("{zxid:#x}"),
            "zab_epoch": zxid >> 32,
            "zab_counter": zxid & i64::from(u32::MAX),
            "zabstate": if leadership.leader.is_some() { "broadcast" } else { "election" },
        }))
    }),
];

/// The first names of all commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().filter_map(|command| command.names.first().copied())
}

/// What a command is answered with.
pub(super) fn answer(
    service: &Service,
    name: &str,
    arguments: &BTreeMap<String, String>,
    for_changes: bool,
) -> Result<Value, Refusal> {
    let command = COMMANDS.iter().find(|command| command.names.contains(&name)).ok_or(Refusal::Unknown)?;
    if command.changes && !for_changes {
        return Err(Refusal::ForChanges);
    }
    let mut answer = (command.answer)(service, arguments)?;
    answer["command"] = command.names[0].into();
    answer["error"] = Value::Null;
    Ok(answer)
}

/// The state of every shared subtree: equal in every region at the same position.
pub(super) fn digests(service: &Service) -> Value {
    let view = service.hub.view();
    let state = &view.state;
    let subtrees = state.mesh.subtrees().map(|(id, subtree)| {
        let order = state.mesh.orderer_of(id).and_then(|orderer| state.federation.orders.get(&orderer));
        json!({
            "path": subtree.path,
            "zxid": format!("{:#x}", order.map_or(0, |o| o.zxid())),
            "position": order.map_or(0, |o| o.position),
            "digest": format!("{:032x}", state.tree.digest(id)),
        })
    });
    Value::Array(subtrees.collect())
}

fn configuration(service: &Service) -> Value {
    let options = &service.options;
    let (session_min, session_max) = options.session_timeout_bounds_ms();
    let port = |address: Option<SocketAddr>| address.map_or(-1, |address| i32::from(address.port()));
    let mut answer = json!({
        "client_port": service.client_address().port(),
        "secure_client_port": port(service.listening_secure),
        "data_dir": options.region.data_dir.display().to_string(),
        "data_log_dir": words::log_directory(service).display().to_string(),
        "tick_time": millis(options.tick),
        "max_client_cnxns": options.connections_per_address_max,
        "min_session_timeout": session_min,
        "max_session_timeout": session_max,
        "server_id": options.region.server,
        "client_port_listen_backlog": -1,
    });
    if let Some(member) = words::member(service) {
        let (init_limit, sync_limit) = words::limits_in_ticks(service);
        answer["init_limit"] = init_limit.into();
        answer["sync_limit"] = sync_limit.into();
        answer["election_port"] = member.election_port.into();
        answer["quorum_port"] = port_of(&member.address).into();
        answer["peer_type"] = u8::from(member.role == Role::Observer).into();
    }
    let members = service.hub.view().state.ensemble.members.clone();
    if members.len() > 1 {
        let lines: Vec<String> =
            members.iter().map(|(number, member)| format!("server.{number}={member}")).collect();
        answer["membership"] = lines.join("\n").into();
    }
    answer
}

fn dump(service: &Service) -> Value {
    let view = service.hub.view();
    let sessions =
        view.state.sessions.iter().map(|(id, session)| (id.to_string(), session.timeout_ms.into()));
    let sessions: Map<String, Value> = sessions.collect();
    let tree = &view.state.tree;
    let ephemerals = tree.ephemeral_owners(i64::MIN..=i64::MAX).map(|owner| {
        let paths: Vec<&str> = tree.ephemerals_of(owner).map(|path| &**path).collect();
        (owner.to_string(), paths.into())
    });
    let ephemerals: Map<String, Value> = ephemerals.collect();
    json!({ "session_id_to_timeout_ms": sessions, "session_id_to_ephemeral_paths": ephemerals })
}

fn server_stats(service: &Service) -> Value {
    let (received, sent) = service.hub.metrics.packets();
    let latency = service.hub.metrics.latency();
    let view = service.hub.view();
    let (data, log) = words::directory_sizes(service);
    json!({
        "version": words::VERSION,
        "read_only": service.is_read_only(),
        "server_stats": {
            "packets_sent": sent,
            "packets_received": received,
            "data_dir_size": data,
            "log_dir_size": log,
            "server_state": words::mode(service),
            "last_processed_zxid": view.state.zxid,
            "outstanding_requests": service.hub.metrics.outstanding(),
            "avg_latency": latency.avg_ms,
            "max_latency": latency.max_ms,
            "min_latency": latency.min_ms,
            "num_alive_client_connections": service.hub.metrics.connections(),
            "uptime": millis(service.hub.now()),
            "auth_failed_count": service.hub.metrics.authentications_failed(),
            "client_response_stats": sizes(&service.hub.metrics.response_bytes),
        },
        "client_response": sizes(&service.hub.metrics.response_bytes),
        "proposal_stats": sizes(&service.region.metrics().proposal_bytes),
        "node_count": view.state.tree.len(),
    })
}

fn sizes(sizes: &Sizes) -> Value {
    let [last, min, max] = sizes.get();
    json!({ "last_buffer_size": last, "min_buffer_size": min, "max_buffer_size": max })
}

fn monitor(service: &Service) -> Value {
    let mut answer = Value::from(monitor::json(service));
    answer["version"] = words::VERSION.into();
    answer["server_state"] = words::mode(service).into();
    answer
}

fn leader(service: &Service) -> Value {
    let leadership = *service.region.leadership().borrow();
    let members = service.hub.view().state.ensemble.members.clone();
    let leader = leadership.leader.and_then(|leader| members.get(&u8::try_from(leader).ok()?));
    let address = leader.map(|member| member.address.as_str());
    json!({
        "is_leader": leadership.is_me,
        "leader_id": leadership.leader,
        "leader_ip": address.and_then(|a| a.rsplit_once(':')).map(|(host, _)| host),
        "term": leadership.term,
    })
}

/// The observers that are in touch, as the leader knows them.
fn observers(service: &Service) -> Value {
    let roster = service.region.roster();
    let members = service.hub.view().state.ensemble.members.clone();
    let present = monitor::in_touch(service, &roster);
    let observers: Vec<Value> = roster
        .learners
        .intersection(&present)
        .map(|server| {
            let member = u8::try_from(*server).ok().and_then(|number| members.get(&number));
            json!({
                "sid": server,
                "address": member.map(|member| &member.address),
                "lag_entries": roster.lag_entries.get(server),
                "silent_ms": roster.silence.get(server).map(|silence| millis(*silence)),
            })
        })
        .collect();
    json!({ "synced_observers": observers.len(), "observers": observers })
}

fn voting_view(service: &Service) -> Value {
    let members = service.hub.view().state.ensemble.members.clone();
    let voters = members.iter().filter(|(_, member)| member.role == Role::Voter).map(|(number, member)| {
        let view = json!({
            "server_addresses": [member.address],
            "election_addresses": [member.election_address()],
            "client_address": member.client.clone().unwrap_or_default(),
            "learner_type": "participant",
        });
        (number.to_string(), view)
    });
    json!({ "current_config": voters.collect::<Map<String, Value>>() })
}

fn connections(service: &Service, secure: bool) -> Value {
    let one = |client: &Client| {
        let Statistics { received, sent, last, .. } = client.statistics();
        let latency = client.latency();
        json!({
            "remote_socket_address": client.peer.to_string(),
            "outstanding_requests": client.outstanding(),
            "packets_received": received,
            "packets_sent": sent,
            "session_id": client.session(),
            "session_timeout": millis(client.timeout()),
            "established": client.established_unix_ms,
            "last_operation": last.operation_name(),
            "last_cxid": last.xid,
            "last_zxid": last.zxid,
            "last_response_time": last.at_ms,
            "last_latency": last.latency_ms,
            "min_latency": latency.min_ms,
            "avg_latency": latency.avg_ms,
            "max_latency": latency.max_ms,
        })
    };
    let clients = service.hub.clients();
    clients.iter().filter(|client| client.is_secure == secure).map(|client| one(client)).collect()
}
