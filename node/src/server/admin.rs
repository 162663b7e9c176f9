//! HTTP for operators and scrapers: health, ZooKeeper's admin commands as JSON, metrics as text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use meridian_seam::limits;
use meridian_seam::net::{Acceptor, BoxStream, Listener};
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::commands::{self, Refusal};
use super::connection::Service;
use super::http::{read_json, refuse, respond};
use super::{backup, import, members, monitor};

/// JSON answers by path (`/rtt`), which other parts of a server add as they start. Clones share them.
#[derive(Clone, Default)]
pub struct Routes {
    answers: Arc<RwLock<BTreeMap<String, Answer>>>,
    actions: Arc<RwLock<BTreeMap<String, Action>>>,
}

type Answer = Arc<dyn Fn() -> Value + Send + Sync>;
type Action = Arc<dyn Fn(Value) -> BoxFuture<'static, Result<Value, String>> + Send + Sync>;

impl Routes {
    /// Answers requests for a path, from now on. `answer` must not block.
    pub fn add(&self, path: &str, answer: impl Fn() -> Value + Send + Sync + 'static) {
        self.answers.write().insert(path.to_string(), Arc::new(answer));
    }

    /// Carries out what is posted to a path, from now on; an error is told to whoever asked.
    pub fn add_action(
        &self,
        path: &str,
        action: impl Fn(Value) -> BoxFuture<'static, Result<Value, String>> + Send + Sync + 'static,
    ) {
        self.actions.write().insert(path.to_string(), Arc::new(action));
    }

    fn action(&self, path: &str) -> Option<Action> {
        self.actions.read().get(path).cloned()
    }

    fn get(&self, path: &str) -> Option<Answer> {
        self.answers.read().get(path).cloned()
    }
}

#[derive(Clone)]
struct Admin {
    service: Arc<Service>,
    routes: Routes,
    for_changes: bool,
}

/// Serves HTTP until the task is dropped; whether something can be changed there is the caller's choice.
pub(super) async fn serve(
    service: Arc<Service>,
    routes: Routes,
    listener: Box<dyn Listener>,
    for_changes: bool,
) {
    let mut router = Router::new()
        .route("/health", get(ready))
        .route("/readyz", get(ready))
        .route("/livez", get(live))
        .route("/metrics", get(metrics))
        .route("/digest", get(digest))
        .route("/commands", get(index))
        .route("/commands/{command}", get(command))
        .fallback(other)
        .with_state(Admin { service: service.clone(), routes, for_changes });
    if for_changes {
        router = router
            .merge(members::routes(service.clone()))
            .merge(backup::routes(service.clone()))
            .merge(import::routes(service));
    }
    if let Err(error) = axum::serve(Accept::new(listener), router).await {
        tracing::error!(%error, "the operators' HTTP has stopped");
    }
}

/// Accepts operators, as many as there is room for.
struct Accept {
    acceptor: Acceptor,
    room: Arc<Semaphore>,
}

impl Accept {
    fn new(listener: Box<dyn Listener>) -> Self {
        let room = Arc::new(Semaphore::new(limits::OPERATOR_CONNECTIONS_MAX));
        Self { acceptor: Acceptor::new(listener, "operators"), room }
    }
}

impl axum::serve::Listener for Accept {
    type Io = Counted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counted, SocketAddr) {
        loop {
            let (stream, address) = self.acceptor.accept().await;
            match self.room.clone().try_acquire_owned() {
                Ok(place) => return (Counted { stream, _place: place }, address),
                Err(_) => self.acceptor.refused(address, limits::OPERATOR_CONNECTIONS_MAX),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.acceptor.local_addr()
    }
}

/// A connection with its place, which is free again when it ends.
struct Counted {
    stream: BoxStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Whether clients should come here: a probe of readiness.
async fn ready(State(admin): State<Admin>) -> Response {
    match admin.service.unreadiness() {
        Some(reason) => {
            respond(StatusCode::SERVICE_UNAVAILABLE, &json!({ "healthy": false, "reason": reason }))
        }
        None => {
            let leader = admin.service.region.leadership().borrow().leader;
            respond(StatusCode::OK, &json!({ "healthy": true, "leader": leader }))
        }
    }
}

/// Whether the process should go on: a probe of liveness. Without a majority of its region a server has nothing to
/// gain from a new start.
async fn live(State(admin): State<Admin>) -> Response {
    match admin.service.region.failure().borrow().clone() {
        Some(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, &json!({ "live": false, "reason": reason })),
        None => respond(StatusCode::OK, &json!({ "live": true })),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let text = monitor::exposition(&admin.service);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn digest(State(admin): State<Admin>) -> Response {
    respond(StatusCode::OK, &commands::digests(&admin.service))
}

/// A list of links, as ZooKeeper's.
async fn index() -> Response {
    let links = commands::names().map(|name| format!("<a href=\"/commands/{name}\">{name}</a>\n<br/>\n"));
    ([(header::CONTENT_TYPE, "text/html")], links.collect::<String>()).into_response()
}

async fn command(
    State(admin): State<Admin>,
    Path(command): Path<String>,
    Query(arguments): Query<BTreeMap<String, String>>,
) -> Response {
    let (status, answer) = match commands::answer(&admin.service, &command, &arguments, admin.for_changes) {
        Ok(answer) => (StatusCode::OK, answer),
        Err(Refusal::Unknown) => {
            let error = format!("Unknown command: {command}");
            (StatusCode::NOT_FOUND, json!({ "command": command, "error": error }))
        }
        Err(Refusal::ForChanges) => {
            let error = "this address does not take commands that change something";
            (StatusCode::FORBIDDEN, json!({ "command": command, "error": error }))
        }
        Err(Refusal::Argument(error)) => {
            (StatusCode::BAD_REQUEST, json!({ "command": command, "error": error }))
        }
    };
    respond(status, &answer)
}

async fn other(
    State(admin): State<Admin>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if method == Method::POST
        && admin.for_changes
        && let Some(action) = admin.routes.action(uri.path())
    {
        let asked = match read_json(&headers, &body) {
            Ok(asked) => asked,
            Err(response) => return *response,
        };
        return match action(asked).await {
            Ok(answer) => respond(StatusCode::OK, &answer),
            Err(error) => refuse(StatusCode::CONFLICT, &error),
        };
    }
    match admin.routes.get(uri.path()) {
        Some(answer) => respond(StatusCode::OK, &answer()),
        None => refuse(StatusCode::NOT_FOUND, &format!("there is no {}", uri.path())),
    }
}
