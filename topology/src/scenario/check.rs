//! What is wrong or doubtful about a scenario.

mod design;
mod limits;

use std::collections::BTreeMap;

pub(crate) use design::about;

use super::{Scenario, Time};
use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::latency::TIME_MAX_MS;
use crate::layout::{PLANNED_REGIONS_MAX, VOTERS_MAX};
use crate::matrix::{ASSUMED_P99_OVER_P50, Matrix};

/// Light in vacuum, km per ms; in fibre it is slower by the refractive index.
const LIGHT_KM_PER_MS: f64 = 299.792_458;
const FIBRE_KM_PER_MS: f64 = LIGHT_KM_PER_MS / 1.468;

/// Mean radius of the Earth, km.
const EARTH_KM: f64 = 6371.0;

/// How far the shares may be off one without a word.
const SHARE_TOLERANCE: f64 = 1e-6;

impl Scenario {
    /// Findings about the scenario and about `matrix`, the round trips it would use.
    pub(super) fn check(&self, matrix: &Matrix) -> Vec<Diagnostic> {
        let mut diagnostics = self.check_regions();
        if !diagnostics.is_empty() {
            return diagnostics;
        }
        diagnostics.extend(matrix.check(&self.regions));
        diagnostics.extend(self.check_names());
        diagnostics.extend(self.check_times());
        diagnostics.extend(self.check_shares());
        diagnostics.extend(self.check_limits());
        diagnostics.extend(self.check_failures());
        diagnostics.extend(self.check_designs());
        diagnostics.extend(self.check_current());
        diagnostics.extend(self.check_distances(matrix));
        diagnostics.extend(self.check_assumptions(matrix));
        diagnostics
    }

    fn check_regions(&self) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        if self.regions.is_empty() {
            diagnostics.push(
                Diagnostic::new(Code::NoRegions, "regions", "no regions to plan for")
                    .suggest("name them in `regions`, or with --regions a,b,c"),
            );
        }
        if self.regions.len() > PLANNED_REGIONS_MAX {
            diagnostics.push(
                Diagnostic::new(
                    Code::TooLarge,
                    "regions",
                    format!("{} regions; the search takes {PLANNED_REGIONS_MAX}", self.regions.len()),
                )
                .suggest("leave out regions that hold neither voters nor clients"),
            );
        }
        for (i, region) in self.regions.iter().enumerate() {
            if !is_name(region) {
                let message = format!("{region:?} is no name for a region");
                diagnostics.push(
                    Diagnostic::new(Code::BadValue, format!("regions[{i}]"), message)
                        .suggest("take letters, digits, and - _ . : between them; up to 64"),
                );
            }
            if self.regions[..i].contains(region) {
                diagnostics.push(Diagnostic::new(
                    Code::DuplicateRegion,
                    "regions",
                    format!("{region} is named twice"),
                ));
            }
        }
        diagnostics
    }

    /// Every region named elsewhere must be one of the regions.
    fn check_names(&self) -> Vec<Diagnostic> {
        let lists = [
            ("witness", &self.witness),
            ("never_leader", &self.never_leader),
            ("preferred_leaders", &self.preferred_leaders),
            ("must_vote", &self.must_vote),
            ("never_vote", &self.never_vote),
        ];
        let mut named: Vec<(String, &String)> = lists
            .iter()
            .flat_map(|(key, names)| names.iter().map(|name| ((*key).to_owned(), name)))
            .collect();
        fn keys<'k, T>(
            table: &str,
            map: &'k BTreeMap<String, T>,
        ) -> impl Iterator<Item = (String, &'k String)> {
            map.keys().map(move |name| (table.to_owned(), name))
        }
        named.extend(keys("coordinates", &self.coordinates));
        named.extend(keys("zones", &self.zones));
        named.extend(keys("providers", &self.providers));
        named.extend(keys("client_write_share", &self.client_write_share));
        named.extend(keys("client_read_share", &self.client_read_share));
        named.extend(keys("max_per_region", &self.max_per_region));
        named.extend(keys("weights", &self.weights));
        named.extend(keys("require.max_write_ms", &self.require.max_write_ms));
        named.extend(keys("failure.regions", &self.failure.regions));
        for (i, cause) in self.failure.common_causes.iter().enumerate() {
            let place = format!("failure.common_causes[{i}].regions");
            named.extend(cause.regions.iter().map(|name| (place.clone(), name)));
        }
        if let Some(current) = &self.current {
            named.push(("current.leader".to_owned(), &current.leader));
            named.extend(keys("current.voters", &current.voters));
            named.extend(keys("current.observers", &current.observers));
        }
        for (from, row) in &self.rtt {
            named.push(("rtt".to_owned(), from));
            named.extend(row.keys().map(|to| (format!("rtt.{from}"), to)));
        }
        let mut diagnostics: Vec<Diagnostic> = Vec::new();
        for (place, name) in named.into_iter().filter(|(_, name)| self.region(name).is_none()) {
            let finding =
                Diagnostic::new(Code::UnknownRegion, place, format!("{name} is not one of the regions"));
            let finding = match nearest(name, self.regions.iter().map(String::as_str)) {
                Some(known) => finding.suggest(format!("did you mean {known}?")),
                None => finding,
            };
            if !diagnostics.contains(&finding) {
                diagnostics.push(finding);
            }
        }
        diagnostics
    }

    fn check_times(&self) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        let client = Time::new(self.client_rtt, None);
        for (place, time) in [("client_rtt", &client), ("fsync", &self.fsync), ("zone_rtt", &self.zone_rtt)] {
            diagnostics.extend(check_time(place, time));
        }
        for (from, row) in &self.rtt {
            for (to, time) in row.iter().filter(|(_, time)| time.contradicts_itself()) {
                diagnostics.push(contradiction(&format!("rtt.{from}.{to}"), time));
            }
        }
        let shares = [("dist.rtt_shift", self.dist.rtt_shift), ("dist.zone_shift", self.dist.zone_shift)];
        diagnostics.extend(shares.into_iter().filter_map(|(place, share)| check_share(place, share)));
        diagnostics
    }

    fn check_shares(&self) -> Vec<Diagnostic> {
        let tables = [
            ("client_write_share", "writes", &self.client_write_share),
            ("client_read_share", "reads", &self.client_read_share),
        ];
        let mut diagnostics: Vec<Diagnostic> =
            tables.into_iter().flat_map(|(key, what, shares)| check_share_table(key, what, shares)).collect();
        if self.client_write_share.is_empty() {
            let message =
                format!("every region is assumed to write as much as any other, 1/{}", self.regions.len());
            diagnostics.push(
                Diagnostic::new(Code::Assumed, "client_write_share", message)
                    .suggest("say where the writes come from: it decides who should lead"),
            );
        }
        diagnostics
    }

    fn check_limits(&self) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        if self.max_voters == 0 || self.max_voters > VOTERS_MAX {
            diagnostics.push(Diagnostic::new(
                Code::BadValue,
                "max_voters",
                format!("{} is not in 1 to {VOTERS_MAX}", self.max_voters),
            ));
        }
        if self.designs.is_empty() {
            diagnostics.push(
                Diagnostic::new(Code::BadValue, "designs", "no design to consider")
                    .suggest("leave the key out to compare flat, hier and two"),
            );
        }
        diagnostics.extend(self.check_leaders());
        diagnostics.extend(self.check_amounts());
        for name in
            self.witness.iter().filter(|name| self.client_write_share.get(*name).is_some_and(|s| *s > 0.0))
        {
            diagnostics.push(
                Diagnostic::new(
                    Code::Assumed,
                    "witness",
                    format!(
                        "{:.0} % of the writes come from {name}: its one server is taken to serve them, too",
                        100.0 * self.client_write_share[name]
                    ),
                )
                .suggest("set its share to 0 if it only votes"),
            );
        }
        if self.require.survive_regions.is_none() {
            diagnostics.push(
                Diagnostic::new(
                    Code::Assumed,
                    "require.survive_regions",
                    format!("{} is assumed: so many regions may be lost, whichever", self.survive_regions()),
                )
                .suggest("set it to say what you need: 0 allows one region only"),
            );
        }
        diagnostics
    }

    fn check_distances(&self, matrix: &Matrix) -> Vec<Diagnostic> {
        let mut diagnostics: Vec<Diagnostic> = self
            .coordinates
            .iter()
            .filter(|(_, [lat, lon])| !(-90.0..=90.0).contains(lat) || !(-180.0..=180.0).contains(lon))
            .map(|(name, [lat, lon])| {
                Diagnostic::new(
                    Code::BadValue,
                    format!("coordinates.{name}"),
                    format!("{lat}, {lon} is not a latitude and a longitude in degrees"),
                )
            })
            .collect();
        if !diagnostics.is_empty() {
            return diagnostics;
        }
        for (a, from) in &self.coordinates {
            for (b, to) in self
                .coordinates
                .range::<String, _>((std::ops::Bound::Excluded(a), std::ops::Bound::Unbounded))
            {
                if let Some(round_trip) = matrix.round_trip(a, b) {
                    diagnostics.extend(check_distance(a, b, distance_km(*from, *to), round_trip.p50_ms));
                }
            }
        }
        diagnostics
    }

    fn check_assumptions(&self, matrix: &Matrix) -> Vec<Diagnostic> {
        let (mut pairs, mut assumed) = (0, 0);
        for (i, a) in self.regions.iter().enumerate() {
            for round_trip in self.regions[i + 1..].iter().filter_map(|b| matrix.round_trip(a, b)) {
                pairs += 1;
                assumed += usize::from(round_trip.p99_ms.is_none() && round_trip.measured.is_none());
            }
        }
        let tail = (assumed > 0).then(|| {
            Diagnostic::new(
                Code::AssumedTail,
                "rtt",
                format!(
                    "{assumed} of {pairs} pairs have a median only; their p99 is assumed to be {ASSUMED_P99_OVER_P50} times it"
                ),
            )
            .suggest("give {p50, p99}, or plan from a live mesh")
        });
        let flat_tails = [("fsync", &self.fsync), ("zone_rtt", &self.zone_rtt)]
            .into_iter()
            .filter(|(_, t)| t.p99.is_none());
        let flat_tails = flat_tails.map(|(place, time)| {
            Diagnostic::new(
                Code::AssumedTail,
                place,
                format!("no p99 is given: every one is taken to last {} ms", time.p50),
            )
            .suggest("give {p50, p99}: the tail of a write comes from here")
        });
        tail.into_iter().chain(flat_tails).collect()
    }
}

/// Names become host names, directories and keys.
fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || "-_.:".contains(c);
    (1..=64).contains(&name.chars().count())
        && name.starts_with(char::is_alphanumeric)
        && name.chars().all(inner)
}

fn check_time(place: &str, time: &Time) -> Option<Diagnostic> {
    let given = [Some(time.p50), time.p99];
    if let Some(bad) = given.into_iter().flatten().find(|ms| !(0.0..=TIME_MAX_MS).contains(ms)) {
        let message = format!("{bad} is not a time of 0 to 60000 ms");
        return Some(Diagnostic::new(Code::BadLatency, place, message));
    }
    if let Some(p99) = time.p99.filter(|p99| *p99 < time.p50) {
        let message = format!("p99 {p99} ms lies below p50 {} ms", time.p50);
        return Some(
            Diagnostic::new(Code::TailBelowMedian, place, message)
                .suggest("swap the two, or leave the p99 out"),
        );
    }
    time.contradicts_itself().then(|| contradiction(place, time))
}

impl Time {
    /// Whether the median given is not the histogram's, by more than its resolution.
    fn contradicts_itself(&self) -> bool {
        let differs = |measured: f64| (measured - self.p50).abs() > 0.05 * self.p50 + 0.05;
        self.measured.as_ref().is_some_and(|measured| differs(measured.quantile(0.5)))
    }
}

fn contradiction(place: &str, time: &Time) -> Diagnostic {
    let measured_ms = time.measured.as_ref().map_or(0.0, |measured| measured.quantile(0.5));
    let message = format!("p50 is {} ms, the histogram's median {measured_ms:.1} ms", time.p50);
    Diagnostic::new(Code::BadHistogram, place, message)
        .suggest("leave p50 out: it follows from the histogram, which counts microseconds")
}

fn check_share(place: &str, share: f64) -> Option<Diagnostic> {
    let inside = (0.0..1.0).contains(&share);
    (!inside).then(|| Diagnostic::new(Code::BadValue, place, format!("{share} is not in 0 to below 1")))
}

fn check_share_table(key: &str, what: &str, shares: &BTreeMap<String, f64>) -> Vec<Diagnostic> {
    let bad = |share: &f64| !share.is_finite() || *share < 0.0;
    let wrong: Vec<Diagnostic> = shares
        .iter()
        .filter(|(_, share)| bad(share))
        .map(|(name, share)| {
            let message = format!("{share} is not a share of the {what}");
            Diagnostic::new(Code::BadValue, format!("{key}.{name}"), message)
        })
        .collect();
    let sum: f64 = shares.values().sum();
    if !wrong.is_empty() || shares.is_empty() || (sum - 1.0).abs() <= SHARE_TOLERANCE {
        return wrong;
    }
    if sum <= 0.0 {
        let verb = if key == "client_write_share" { "writes" } else { "reads" };
        return vec![Diagnostic::new(Code::BadValue, key, format!("no region {verb} anything"))];
    }
    vec![
        Diagnostic::new(Code::ShareSum, key, format!("the shares add up to {sum:.4}, not 1"))
            .suggest("they are scaled to one; correct them if a region is missing"),
    ]
}

fn check_distance(a: &str, b: &str, km: f64, rtt_ms: f64) -> Option<Diagnostic> {
    let (vacuum_ms, fibre_ms) = (2.0 * km / LIGHT_KM_PER_MS, 2.0 * km / FIBRE_KM_PER_MS);
    let place = format!("rtt {a} - {b}");
    if rtt_ms < vacuum_ms {
        let message = format!("{rtt_ms:.1} ms for {km:.0} km: light in vacuum needs {vacuum_ms:.1} ms");
        return Some(
            Diagnostic::new(Code::FasterThanLight, place, message)
                .suggest("check the coordinates, and that the figure is a round trip in milliseconds"),
        );
    }
    (rtt_ms < fibre_ms).then(|| {
        let message =
            format!("{rtt_ms:.1} ms for {km:.0} km: light in a straight fibre needs {fibre_ms:.1} ms");
        Diagnostic::new(Code::FasterThanFibre, place, message).suggest("check the coordinates and the figure")
    })
}

/// Great-circle distance between two points in degrees, km (haversine formula).
fn distance_km([lat_a, lon_a]: [f64; 2], [lat_b, lon_b]: [f64; 2]) -> f64 {
    let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
    let chord =
        half(lat_b - lat_a) + lat_a.to_radians().cos() * lat_b.to_radians().cos() * half(lon_b - lon_a);
    2.0 * EARTH_KM * chord.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_follow_the_great_circle() {
        let (washington, dublin) = ([38.9, -77.4], [53.3, -6.3]);
        let km = distance_km(washington, dublin);
        assert!((5400.0..5600.0).contains(&km), "{km}");
        assert_eq!(distance_km(dublin, dublin), 0.0);
    }
}
