//! The text of a scenario. Unknown keys are refused, naming the nearest known one.

use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Scenario, Time};
use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::latency::Measured;
use crate::timing::TIMEOUTS_IN_USE;

/// The keys of a scenario.
const KEYS: [&str; 29] = [
    "name",
    "regions",
    "coordinates",
    "zones",
    "providers",
    "rtt",
    "client_write_share",
    "client_read_share",
    "client_rtt",
    "fsync",
    "zone_rtt",
    "dist",
    "failure",
    "designs",
    "max_voters",
    "max_per_region",
    "max_per_region_default",
    "witness",
    "never_leader",
    "preferred_leaders",
    "must_vote",
    "never_vote",
    "weights",
    "require",
    "cost",
    "traffic",
    "session_timeout_ms",
    "timing",
    "current",
];

/// The tables with keys of their own.
const TABLES: [(&str, &[&str]); 9] = [
    ("fsync", TIME_KEYS),
    ("zone_rtt", TIME_KEYS),
    ("dist", &["rtt_shift", "zone_shift"]),
    (
        "failure",
        &["node_unavail", "zone_unavail", "region_unavail", "provider_unavail", "regions", "common_causes"],
    ),
    (
        "require",
        &[
            "survive_regions",
            "region_loss_plus_voters",
            "leader_region_min_voters",
            "max_mean_write_ms",
            "max_worst_write_ms",
            "max_after_loss_ms",
            "max_write_ms",
            "max_cost",
        ],
    ),
    ("cost", &["voter", "observer", "wan_copy", "wan_gb"]),
    ("traffic", &["writes_per_s", "write_bytes"]),
    (
        "timing",
        &[
            "heartbeat_ms",
            "loss",
            "loss_again",
            "stall_ms",
            "false_elections_per_s",
            "clock_drift",
            "snapshot_mb",
            "backlog_mb",
            "link_mb_per_s",
            "window_mb",
            "load_mb_per_s",
            "blips_per_day",
            "blip_p50_ms",
            "blip_p99_ms",
            "silent_failures_per_year",
        ],
    ),
    ("current", &["design", "leader", "voters", "observers", "timing"]),
];

/// Keys of a time that is more than a number.
const TIME_KEYS: &[&str] = &["p50", "p99", "histogram", "samples"];

/// Keys of one region's failures, and of one common cause.
const REGION_FAILURE_KEYS: &[&str] = &["node_unavail", "zone_unavail", "region_unavail"];
const CAUSE_KEYS: &[&str] = &["name", "unavail", "regions"];

/// Reads a scenario: JSON if the text starts with `{`, else TOML.
pub fn parse(text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    if text.trim_start().starts_with('{') { parse_json(text) } else { parse_toml(text) }
}

/// Reads a scenario from JSON.
pub fn parse_json(text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    let value = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let message = message.split_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        vec![syntax(error.line(), error.column(), message)]
    })?;
    from_value(value)
}

/// Reads a scenario from TOML.
pub fn parse_toml(text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    let value = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[line_start..].chars().count() + 1;
        vec![syntax(before.matches('\n').count() + 1, column, &error.message().replace('\n', "; "))]
    })?;
    from_value(value)
}

fn syntax(line: usize, column: usize, message: &str) -> Diagnostic {
    Diagnostic::new(Code::Syntax, format!("line {line}, column {column}"), message)
}

fn from_value(value: Value) -> Result<Scenario, Vec<Diagnostic>> {
    let diagnostics = unknown_keys(&value);
    if !diagnostics.is_empty() {
        return Err(diagnostics);
    }
    // One key at a time, so that a wrong value is reported under its key.
    let Value::Object(entries) = value else {
        return Err(vec![Diagnostic::new(Code::Syntax, "scenario", "a scenario is a table of keys")]);
    };
    let mut diagnostics = Vec::new();
    for (key, entry) in &entries {
        let alone = Value::Object([(key.clone(), entry.clone())].into_iter().collect());
        if let Err(error) = Scenario::deserialize(alone) {
            diagnostics.push(Diagnostic::new(Code::BadValue, key, error.to_string()));
        }
    }
    if !diagnostics.is_empty() {
        return Err(diagnostics);
    }
    Scenario::deserialize(Value::Object(entries))
        .map_err(|error| vec![Diagnostic::new(Code::BadValue, "scenario", error.to_string())])
}

fn unknown_keys(value: &Value) -> Vec<Diagnostic> {
    let mut diagnostics = unknown_in(value, "", &KEYS);
    for (table, keys) in TABLES {
        if let Some(inner) = value.get(table) {
            diagnostics.extend(unknown_in(inner, table, keys));
        }
    }
    for (from, row) in tables(value.get("rtt")) {
        for (to, time) in tables(Some(row)) {
            diagnostics.extend(unknown_in(time, &format!("rtt.{from}.{to}"), TIME_KEYS));
        }
    }
    let failure = value.get("failure");
    let current = value.get("current").and_then(|current| current.get("timing"));
    diagnostics.extend(
        current.into_iter().flat_map(|in_use| unknown_in(in_use, "current.timing", &TIMEOUTS_IN_USE)),
    );
    for (region, own) in tables(failure.and_then(|failure| failure.get("regions"))) {
        diagnostics.extend(unknown_in(own, &format!("failure.regions.{region}"), REGION_FAILURE_KEYS));
    }
    let causes = failure.and_then(|failure| failure.get("common_causes")).and_then(Value::as_array);
    for (i, cause) in causes.into_iter().flatten().enumerate() {
        diagnostics.extend(unknown_in(cause, &format!("failure.common_causes[{i}]"), CAUSE_KEYS));
    }
    diagnostics
}

fn tables(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

fn unknown_in(value: &Value, table: &str, known: &[&str]) -> Vec<Diagnostic> {
    let keys = value.as_object().into_iter().flat_map(|object| object.keys());
    keys.filter(|key| !known.contains(&key.as_str()))
        .map(|key| {
            let place = if table.is_empty() { key.clone() } else { format!("{table}.{key}") };
            let finding = Diagnostic::new(Code::UnknownKey, place, format!("no such key: {key}"));
            match nearest(key, known.iter().copied()) {
                Some(meant) => finding.suggest(format!("did you mean {meant}?")),
                None => finding.suggest(format!("known here: {}", known.join(", "))),
            }
        })
        .collect()
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "expected a number of milliseconds, {p50, p99}, {histogram} or {samples}";
        match Value::deserialize(deserializer)? {
            Value::Number(ms) => Ok(Time::new(ms.as_f64().unwrap_or(f64::NAN), None)),
            // What TOML's `nan` turns into: checked, and refused, with the other times.
            Value::Null => Ok(Time::new(f64::NAN, None)),
            Value::Object(keys) => {
                let number = |key: &str| match keys.get(key) {
                    None => Ok(None),
                    Some(value) => {
                        let wrong = || D::Error::custom(format!("{key} is {value}; {expected}"));
                        value.as_f64().map(Some).ok_or_else(wrong)
                    }
                };
                let (p50, p99) = (number("p50")?, number("p99")?);
                let measured = measured(&keys).transpose().map_err(D::Error::custom)?;
                let quantile = |p: f64| measured.as_ref().map(|measured| measured.quantile(p));
                let p50 = p50.or(quantile(0.5)).ok_or_else(|| D::Error::missing_field("p50"))?;
                Ok(Time { p50, p99: p99.or(quantile(0.99)), measured: measured.map(Arc::new) })
            }
            other => Err(D::Error::custom(format!("{other} is not a time; {expected}"))),
        }
    }
}

/// The distribution behind `histogram` (V2 in base64 counting microseconds, or `[[ms, count], ..]`) or
/// `samples` (`[ms, ..]`).
fn measured(keys: &serde_json::Map<String, Value>) -> Option<Result<Measured, String>> {
    match (keys.get("histogram"), keys.get("samples")) {
        (Some(Value::String(text)), _) => Some(Measured::from_histogram(text)),
        (Some(counts), _) => Some(
            Vec::<(f64, u64)>::deserialize(counts)
                .map_err(|_| "a histogram is base64, or a list of [ms, count]".to_owned())
                .and_then(|counts| Measured::from_counts(&counts)),
        ),
        (None, Some(samples)) => Some(
            Vec::<f64>::deserialize(samples)
                .map_err(|_| "samples are a list of numbers of milliseconds".to_owned())
                .and_then(|samples| Measured::from_samples(&samples)),
        ),
        (None, None) => None,
    }
}
