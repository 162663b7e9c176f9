//! What the operators' HTTP has in common: how it answers, and what it takes.

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

/// Answers with JSON.
pub(super) fn respond(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Answers with a reason.
pub(super) fn refuse(status: StatusCode, reason: &str) -> Response {
    respond(status, &json!({ "error": reason }))
}

/// Checks that a request says what it brings: a page in a browser can't send these types without asking first.
pub(super) fn expect_type(
    headers: &HeaderMap,
    is_expected: impl FnOnce(&str) -> bool,
    advice: &str,
) -> Result<(), Box<Response>> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(is_expected) {
        return Ok(());
    }
    Err(Box::new(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, advice)))
}

/// Reads JSON.
pub(super) fn read_json<T: for<'a> Deserialize<'a>>(
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<T, Box<Response>> {
    // It may be followed by what is said about the text.
    let is_json = |kind: &str| kind.starts_with("application/json");
    expect_type(headers, is_json, "send JSON with content-type: application/json")?;
    serde_json::from_slice(body)
        .map_err(|error| Box::new(refuse(StatusCode::BAD_REQUEST, &error.to_string())))
}
