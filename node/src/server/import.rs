//! HTTP for operators: takes znodes of another ensemble over, and compares.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use meridian_seam::{codec, limits};
use serde_json::json;

use super::connection::Service;
use super::http::{expect_type, refuse, respond};
use crate::txn::Command;
use crate::txn::import::{Import, ImportedZnode};

/// The content type of an encoded [`Import`].
pub const IMPORT_TYPE: &str = "application/vnd.meridian.import";

/// `POST /import` and `POST /import/compare`, each with an encoded [`Import`].
pub(super) fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/import", post(import))
        .route("/import/compare", post(compare))
        .layer(DefaultBodyLimit::max(limits::PEER_FRAME_BYTES_MAX / 2))
        .with_state(service)
}

async fn import(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let import = match read(&headers, &body) {
        Ok(import) => import,
        Err(response) => return *response,
    };
    let (taken, refused) = {
        let view = service.hub.view();
        let mut before = BTreeSet::new();
        let mut refused = Vec::new();
        let mut taken: Vec<ImportedZnode> = Vec::new();
        for znode in import.znodes {
            let known = |path: &str| before.contains(path) || view.state.tree.get(path).is_some();
            match znode.refusal(&view.state.mesh, known) {
                None => {
                    before.insert(znode.path.clone());
                    taken.push(znode);
                }
                Some(reason) => refused.push(reason),
            }
        }
        (taken, refused)
    };
    let imported = taken.len();
    let command = Command::Import(Import { zxid: import.zxid, znodes: taken });
    match service.region.propose_anywhere(&command).await {
        Ok(()) => respond(StatusCode::OK, &json!({ "imported": imported, "refused": refused })),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

async fn compare(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let import = match read(&headers, &body) {
        Ok(import) => import,
        Err(response) => return *response,
    };
    let view = service.hub.view();
    let differing = import.znodes.iter().filter(|znode| !znode.is_in(&view.state.tree));
    let paths: Vec<&str> = differing.map(|znode| &*znode.path).collect();
    respond(StatusCode::OK, &json!({ "differing": paths }))
}

fn read(headers: &HeaderMap, body: &Bytes) -> Result<Import, Box<Response>> {
    expect_type(headers, |kind| kind == IMPORT_TYPE, "znodes are imported with `meridian import`")?;
    codec::decode(body).map_err(|error| Box::new(refuse(StatusCode::BAD_REQUEST, &error.to_string())))
}
