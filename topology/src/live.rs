//! What a running mesh says of itself.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::diagnostic::{Code, Diagnostic};
use crate::layout::Design;
use crate::scenario::Current;

/// Most regions that are read from an answer.
const REGIONS_MAX: usize = 512;

/// What the admin endpoint's `/mesh` answers, as far as it matters here.
#[derive(Deserialize)]
struct MeshAnswer {
    global_leader: Option<String>,
    layout: Option<LayoutAnswer>,
}

#[derive(Deserialize)]
struct LayoutAnswer {
    regions: Vec<RegionAnswer>,
    #[serde(default)]
    timing: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct RegionAnswer {
    name: String,
    voters: u8,
    #[serde(default)]
    observers: u8,
}

/// The layout that the mesh runs, from the answer of `/mesh`.
///
/// # Errors
/// If the answer is none, or the mesh has no leader at the moment.
pub fn running(text: &str) -> Result<Current, Diagnostic> {
    let refuse = |message: String| Diagnostic::new(Code::Syntax, "mesh", message);
    let answer: MeshAnswer = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
    let layout = answer.layout.ok_or_else(|| {
        refuse("the server does not say which layout runs".to_owned()).suggest("ask a newer server")
    })?;
    if layout.regions.len() > REGIONS_MAX {
        return Err(refuse(format!("more than {REGIONS_MAX} regions")));
    }
    let only = (layout.regions.len() == 1).then(|| layout.regions[0].name.clone());
    let leader = answer.global_leader.or(only).ok_or_else(|| {
        refuse("no region leads the mesh at the moment".to_owned()).suggest("ask again in a few seconds")
    })?;
    let of = |count: fn(&RegionAnswer) -> u8| -> BTreeMap<String, u8> {
        layout.regions.iter().map(|region| (region.name.clone(), count(region))).collect()
    };
    Ok(Current {
        design: Design::Two,
        leader,
        voters: of(|region| region.voters),
        observers: of(|region| region.observers),
        timing: layout.timing.clone(),
    })
}

/// What `/rtt` answers, as far as losses go.
#[derive(Deserialize)]
struct RttAnswer {
    rtt: Vec<LossAnswer>,
}

#[derive(Deserialize)]
struct LossAnswer {
    count: u64,
    #[serde(default)]
    lost: u64,
}

/// Probes below which a share of losses is mostly luck.
const PROBES_MIN: u64 = 10_000;

/// The largest share of lost probes of any pair, from the answer of `/rtt`, if enough were sent.
pub fn loss(text: &str) -> Option<f64> {
    let answer: RttAnswer = serde_json::from_str(text).ok()?;
    let shares = answer.rtt.iter().filter_map(|pair| {
        let sent = pair.count.saturating_add(pair.lost);
        // Half a probe more than was lost: none lost does not mean that none ever is.
        (sent >= PROBES_MIN).then(|| (pair.lost as f64 + 0.5) / sent as f64)
    });
    shares.max_by(f64::total_cmp).filter(|share| *share < 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_says_which_layout_runs() {
        let text = r#"{"region": "eu", "global_leader": "us", "lease_holds": true, "layout": {
            "regions": [{"name": "us", "voters": 3, "observers": 1}, {"name": "eu", "voters": 3}],
            "timing": {"tickTime": 2000}}}"#;
        let current = running(text).unwrap();
        assert_eq!((current.design, current.leader.as_str()), (Design::Two, "us"));
        assert_eq!((current.voters["eu"], current.observers["us"]), (3, 1));
        assert_eq!(current.timing["tickTime"], 2000.0);
    }

    #[test]
    fn the_worst_pair_says_how_much_is_lost() {
        let text = r#"{"rtt": [{"count": 9, "lost": 9}, {"count": 19990, "lost": 10}, {"count": 20000}]}"#;
        assert_eq!(loss(text), Some(10.5 / 20_000.0));
        assert_eq!(loss(r#"{"rtt": [{"count": 9, "lost": 9}]}"#), None);
        assert_eq!(loss("?"), None);
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for text in ["", "{}", "[]", r#"{"layout": {"regions": []}}"#, r#"{"layout": {"regions": [{}]}}"#] {
            assert!(running(text).is_err(), "{text}");
        }
    }
}
