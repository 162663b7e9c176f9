//! HTTP for operators and scrapers: health, ZooKeeper's admin commands as JSON, metrics as text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use meridian_seam::net::{BoxStream, Listener};
use parking_lot::RwLock;
use serde_json::{Value, json};

use super::connection::Service;
use super::{import, members, words};

/// JSON answers by path (`/rtt`), which other parts of a server add as they start. Clones share them.
#[derive(Clone, Default)]
pub struct Routes {
    answers: Arc<RwLock<BTreeMap<String, Answer>>>,
}

type Answer = Arc<dyn Fn() -> Value + Send + Sync>;

impl Routes {
    /// Answers requests for a path, from now on. `answer` must not block.
    pub fn add(&self, path: &str, answer: impl Fn() -> Value + Send + Sync + 'static) {
        self.answers.write().insert(path.to_string(), Arc::new(answer));
    }

    fn get(&self, path: &str) -> Option<Answer> {
        self.answers.read().get(path).cloned()
    }
}

#[derive(Clone)]
struct Admin {
    service: Arc<Service>,
    routes: Routes,
}

/// Serves HTTP until the task is dropped; whether something can be changed there is the caller's choice.
pub(super) async fn serve(
    service: Arc<Service>,
    routes: Routes,
    listener: Box<dyn Listener>,
    for_changes: bool,
) {
    let mut router = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/digest", get(digest))
        .route("/commands/{command}", get(command))
        .fallback(other)
        .with_state(Admin { service: service.clone(), routes });
    if for_changes {
        router = router.merge(members::routes(service.clone())).merge(import::routes(service));
    }
    if let Err(error) = axum::serve(Accept(listener), router).await {
        tracing::error!(%error, "the operators' HTTP has stopped");
    }
}

struct Accept(Box<dyn Listener>);

impl axum::serve::Listener for Accept {
    type Io = BoxStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoxStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an operator's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn health(State(admin): State<Admin>) -> Response {
    let failure = admin.service.region.failure().borrow().clone();
    let leader = admin.service.region.leadership().borrow().leader;
    let (status, value) = match (failure, leader) {
        (Some(reason), _) => (StatusCode::SERVICE_UNAVAILABLE, json!({"healthy": false, "reason": reason})),
        (None, None) => {
            let reason = "no leader is known";
            (StatusCode::SERVICE_UNAVAILABLE, json!({"healthy": false, "reason": reason}))
        }
        (None, Some(leader)) => (StatusCode::OK, json!({"healthy": true, "leader": leader})),
    };
    json_response(status, &value)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut text = String::new();
    for (name, value) in words::gauges(&admin.service) {
        text.push_str(&format!("# TYPE {name} gauge\n{name} {value}\n"));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn digest(State(admin): State<Admin>) -> Response {
    json_response(StatusCode::OK, &digests(&admin.service))
}

/// The state of every shared subtree: equal in every region at the same position.
fn digests(service: &Service) -> Value {
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

async fn command(State(admin): State<Admin>, Path(command): Path<String>) -> Response {
    let service = &admin.service;
    let answer = match command.as_str() {
        "ruok" => json!({}),
        "srvr" | "server_stats" => server_stats(service),
        "stat" | "stats" => {
            let mut stats = server_stats(service);
            stats["connections"] = connections(service);
            stats
        }
        "monitor" | "mntr" => monitor(service),
        "leader" => leader(service),
        "conf" | "configuration" => words::configuration(service)
            .into_iter()
            .map(|(name, value)| (name, Value::from(value)))
            .collect(),
        "cons" | "connections" => json!({ "connections": connections(service) }),
        "digest" => json!({ "subtrees": digests(service) }),
        _ => {
            let error = format!("there is no command {command}");
            return json_response(StatusCode::NOT_FOUND, &json!({"command": command, "error": error}));
        }
    };
    let mut answer = answer;
    answer["command"] = command.into();
    answer["error"] = Value::Null;
    json_response(StatusCode::OK, &answer)
}

async fn other(State(admin): State<Admin>, uri: Uri) -> Response {
    match admin.routes.get(uri.path()) {
        Some(answer) => json_response(StatusCode::OK, &answer()),
        None => {
            json_response(StatusCode::NOT_FOUND, &json!({"error": format!("there is no {}", uri.path())}))
        }
    }
}

fn server_stats(service: &Service) -> Value {
    let (received, sent) = service.hub.metrics.packets();
    let latency = service.hub.metrics.latency();
    let view = service.hub.view();
    json!({
        "version": words::VERSION,
        "read_only": false,
        "server_stats": {
            "packets_sent": sent,
            "packets_received": received,
            "num_alive_client_connections": service.hub.metrics.connections(),
            "outstanding_requests": service.hub.metrics.outstanding(),
            "server_state": words::mode(service),
            "min_latency": latency.min_ms,
            "avg_latency": latency.avg_ms,
            "max_latency": latency.max_ms,
            "last_processed_zxid": view.state.zxid,
        },
        "node_count": view.state.tree.len(),
    })
}

fn monitor(service: &Service) -> Value {
    let mut answer: Value =
        words::gauges(service).into_iter().map(|(name, value)| (name, Value::from(value))).collect();
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

fn connections(service: &Service) -> Value {
    let one = |client: &super::Client| {
        let (received, sent) = client.packets();
        json!({
            "remote_socket_address": client.peer.to_string(),
            "session_id": format!("{:#x}", client.session()),
            "session_timeout": u64::try_from(client.timeout().as_millis()).unwrap_or(u64::MAX),
            "packets_received": received,
            "packets_sent": sent,
            "outstanding_requests": client.outstanding(),
        })
    };
    service.hub.clients().iter().map(|client| one(client)).collect()
}
