//! HTTP for operators: a region's state as a stream, and a region's own znodes replaced by those of such a stream.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use meridian_seam::limits;
use serde_json::json;
use tokio::sync::mpsc;

use super::connection::Service;
use super::http::{expect_type, refuse, respond};
use crate::txn::import::ImportedZnode;
use crate::txn::restore::{Restore, restorable};
use crate::txn::{Command, State as RegionState, snapshot};

/// `GET /commands/snapshot`, `POST /commands/restore`.
pub(super) fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/commands/snapshot", get(take))
        .route("/commands/snap", get(take))
        .route("/commands/restore", post(restore))
        .route("/commands/rest", post(restore))
        // It goes to a file, and is read in bounded records.
        .layer(DefaultBodyLimit::disable())
        .with_state(service)
}

/// The content type of a snapshot.
const SNAPSHOT_TYPE: &str = "application/octet-stream";

/// Chunks of a stream that wait to be sent.
const STREAM_CHUNKS_MAX: usize = 4;

/// The state as of now; `streaming=false` only says what it would be.
async fn take(
    State(service): State<Arc<Service>>,
    Query(arguments): Query<BTreeMap<String, String>>,
) -> Response {
    let state = service.hub.view().state.clone();
    let zxid = format!("{:#x}", state.zxid);
    if arguments.get("streaming").is_some_and(|streaming| streaming == "false") {
        let answer = json!({ "command": "snapshot", "error": null, "last_zxid": zxid });
        return respond(StatusCode::OK, &answer);
    }
    let (chunks, stream) = mpsc::channel(STREAM_CHUNKS_MAX);
    // Whoever reads may go away: the writing ends with it.
    tokio::task::spawn_blocking(move || {
        let failure = chunks.clone();
        let mut out = BufWriter::with_capacity(1 << 18, Chunks(chunks));
        let written = snapshot::write_region(&state, &mut out).map_err(io::Error::other);
        if let Err(error) = written.and_then(|()| out.flush()) {
            let _ = failure.blocking_send(Err(error));
        }
    });
    let stream = futures::stream::unfold(stream, |mut stream| async { Some((stream.recv().await?, stream)) });
    let headers = [(header::CONTENT_TYPE.as_str(), SNAPSHOT_TYPE), ("last_zxid", &zxid)];
    (headers, Body::from_stream(stream)).into_response()
}

/// Writes into a stream.
struct Chunks(mpsc::Sender<io::Result<Bytes>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what [`take`] gave, checks that it is whole, and puts it in the place of what is here.
async fn restore(State(service): State<Arc<Service>>, headers: HeaderMap, body: Body) -> Response {
    let advice = "send a snapshot with content-type: application/octet-stream";
    if let Err(refusal) = expect_type(&headers, |kind| kind == SNAPSHOT_TYPE, advice) {
        return *refusal;
    }
    let state = match receive(body).await {
        Ok(state) => state,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match put_back(&service, &state).await {
        Ok(znodes) => {
            tracing::info!(znodes, zxid = state.zxid, "znodes restored from a snapshot");
            let zxid = format!("{:#x}", service.hub.view().state.zxid);
            let answer = json!({ "command": "restore", "error": null, "last_zxid": zxid, "znodes": znodes });
            respond(StatusCode::OK, &answer)
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

async fn receive(body: Body) -> io::Result<RegionState> {
    let mut file = tempfile::tempfile()?;
    let (mut stream, mut received) = (body.into_data_stream(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(io::Error::other)?;
        received += chunk.len() as u64;
        if received > limits::RESTORE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is too large"));
        }
        file.write_all(&chunk)?;
    }
    file.rewind()?;
    let read = move || snapshot::read_region(&mut BufReader::new(file)).map_err(io::Error::other);
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Sends the znodes through the region's log and returns how many there are.
async fn put_back(service: &Service, state: &RegionState) -> io::Result<u64> {
    let mut random = [0; 8];
    service.entropy.fill(&mut random);
    let transfer = u64::from_be_bytes(random);
    let propose = |step| async { service.region.propose_anywhere(&Command::Restore(step)).await };
    propose(Restore::Begin { transfer }).await?;
    let mut count = 0;
    for znodes in snapshot::batches(restorable(state), ImportedZnode::weight) {
        count += znodes.len() as u64;
        propose(Restore::Put { transfer, znodes }).await?;
    }
    propose(Restore::Finish { transfer, znodes: count, zxid: state.zxid }).await?;
    Ok(count)
}
