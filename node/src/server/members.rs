//! HTTP for operators: who the members of the region are, other members, another leader.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use meridian_seam::clock::millis;
use serde::Deserialize;
use serde_json::{Value, json};

use super::connection::Service;
use super::http::{read_json, refuse, respond};
use crate::txn::ensemble::{self, Role};

/// `GET /members`, `POST /members`, `POST /leader`.
pub(super) fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/members", get(members).post(change_members))
        .route("/leader", post(transfer_leadership))
        .with_state(service)
}

/// What `POST /members` takes; the same as the client's `reconfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Change {
    /// `server.N=host:port:port[:role];client`, separated by commas.
    joining: Option<String>,
    /// Numbers, separated by commas.
    leaving: Option<String>,
    /// All members.
    new_members: Option<String>,
    /// The version it is made for, hexadecimal as [`members`] tells it.
    version: Option<String>,
}

/// What `POST /leader` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    /// The server that is to lead.
    server: u64,
}

async fn members(State(service): State<Arc<Service>>) -> Response {
    respond(StatusCode::OK, &report(&service))
}

fn report(service: &Service) -> Value {
    let view = service.hub.view();
    let (ensemble, roster) = (&view.state.ensemble, service.region.roster());
    let leader = service.region.leadership().borrow().leader;
    let role = |role| if role == Role::Voter { "voter" } else { "observer" };
    let listed = ensemble.members.iter().map(|(number, member)| {
        let server = u64::from(*number);
        json!({
            "server": number,
            "role": role(member.role),
            "address": member.address,
            "client": member.client,
            "specification": member.to_string(),
            "votes": roster.voters.contains(&server),
            "leads": leader == Some(server),
            "lag_entries": roster.lag_entries.get(&server),
            "silent_ms": roster.silence.get(&server).map(|silence| millis(*silence)),
        })
    });
    let known =
        |server: &u64| u8::try_from(*server).is_ok_and(|number| ensemble.members.contains_key(&number));
    let guests: Vec<u64> = roster.learners.iter().filter(|server| !known(server)).copied().collect();
    json!({
        "version": format!("{:x}", ensemble.version),
        "changing": ensemble.change.is_some() || !roster.settled,
        "members": listed.collect::<Vec<_>>(),
        "present_without_membership": guests,
    })
}

async fn change_members(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let change: Change = match read_json(&headers, &body) {
        Ok(change) => change,
        Err(response) => return *response,
    };
    let version = match change.version.as_deref().map(|text| i64::from_str_radix(text, 16)) {
        None => -1,
        Some(Ok(version)) => version,
        Some(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "version: not a hexadecimal number"),
    };
    let request = ensemble::Request {
        joining: change.joining.as_deref(),
        leaving: change.leaving.as_deref(),
        new_members: change.new_members.as_deref(),
        version,
    };
    let planned = service.hub.view().state.ensemble.plan(&request);
    let members = match planned {
        Ok(members) => members,
        Err(error @ ensemble::ReconfigError::BadArguments(_)) => {
            return refuse(StatusCode::BAD_REQUEST, &error.to_string());
        }
        Err(error) => return refuse(StatusCode::CONFLICT, &error.to_string()),
    };
    match service.region.change_members(members).await {
        Ok(()) => respond(StatusCode::OK, &report(&service)),
        Err(error) => refuse(StatusCode::CONFLICT, &error.to_string()),
    }
}

async fn transfer_leadership(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Transfer { server } = match read_json(&headers, &body) {
        Ok(transfer) => transfer,
        Err(response) => return *response,
    };
    match service.region.transfer_leadership(server).await {
        Ok(()) => respond(StatusCode::OK, &report(&service)),
        Err(error) => refuse(StatusCode::CONFLICT, &error.to_string()),
    }
}
