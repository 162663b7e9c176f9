//! The text of a scenario. Unknown keys are refused, naming the nearest known one.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Scenario, Time};
use crate::diagnostic::{Code, Diagnostic, nearest};

/// The keys of a scenario.
const KEYS: [&str; 18] = [
    "name",
    "regions",
    "coordinates",
    "rtt",
    "client_write_share",
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
    "require",
];

/// The tables with keys of their own.
const TABLES: [(&str, &[&str]); 5] = [
    ("fsync", &["p50", "p99"]),
    ("zone_rtt", &["p50", "p99"]),
    ("dist", &["rtt_shift", "zone_shift"]),
    ("failure", &["node_unavail", "zone_unavail", "region_unavail"]),
    ("require", &["survive_regions", "region_loss_plus_voters", "leader_region_min_voters"]),
];

/// Reads a scenario: JSON if the text starts with `{`, else TOML.
pub fn parse(text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    if text.trim_start().starts_with('{') { parse_json(text) } else { parse_toml(text) }
}

/// Reads a scenario from JSON.
pub fn parse_json(text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    let value = serde_json::from_str(text)
        .map_err(|error| vec![Diagnostic::new(Code::Syntax, "scenario", error.to_string())])?;
    from_value(value)
}

/// Reads a scenario from TOML.
pub fn parse_toml(text: &str) -> Result<Scenario, Vec<Diagnostic>> {
    let value = toml::from_str(text)
        .map_err(|error| vec![Diagnostic::new(Code::Syntax, "scenario", error.to_string().trim_end())])?;
    from_value(value)
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
    for (from, row) in value.get("rtt").and_then(Value::as_object).into_iter().flatten() {
        for (to, time) in row.as_object().into_iter().flatten() {
            diagnostics.extend(unknown_in(time, &format!("rtt.{from}.{to}"), &["p50", "p99"]));
        }
    }
    diagnostics
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
        deserializer.deserialize_any(TimeVisitor)
    }
}

struct TimeVisitor;

impl<'de> Visitor<'de> for TimeVisitor {
    type Value = Time;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of milliseconds, or {p50, p99}")
    }

    /// What TOML's `nan` turns into: checked, and refused, with the other times.
    fn visit_unit<E>(self) -> Result<Time, E> {
        Ok(Time { p50: f64::NAN, p99: None })
    }

    fn visit_f64<E>(self, ms: f64) -> Result<Time, E> {
        Ok(Time { p50: ms, p99: None })
    }

    fn visit_u64<E>(self, ms: u64) -> Result<Time, E> {
        Ok(Time { p50: ms as f64, p99: None })
    }

    fn visit_i64<E>(self, ms: i64) -> Result<Time, E> {
        Ok(Time { p50: ms as f64, p99: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Time, A::Error> {
        let (mut p50, mut p99) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "p50" => p50 = Some(map.next_value()?),
                "p99" => p99 = Some(map.next_value()?),
                _ => return Err(A::Error::unknown_field(&key, &["p50", "p99"])),
            }
        }
        Ok(Time { p50: p50.ok_or_else(|| A::Error::missing_field("p50"))?, p99 })
    }
}
