//! Shares, prices and bounds out of range, and lists that contradict each other.

use super::check_share;
use crate::availability::{CAUSES_MAX, Failures};
use crate::diagnostic::{Code, Diagnostic};
use crate::scenario::Scenario;

impl Scenario {
    pub(super) fn check_failures(&self) -> Vec<Diagnostic> {
        let failure = &self.failure;
        let mut shares = vec![
            ("failure.node_unavail".to_owned(), failure.node_unavail),
            ("failure.zone_unavail".to_owned(), failure.zone_unavail),
            ("failure.region_unavail".to_owned(), failure.region_unavail),
            ("failure.provider_unavail".to_owned(), failure.provider_unavail),
        ];
        for (name, own) in &failure.regions {
            let own = [
                ("node_unavail", own.node_unavail),
                ("zone_unavail", own.zone_unavail),
                ("region_unavail", own.region_unavail),
            ];
            let given = own.into_iter().filter_map(|(key, share)| Some((key, share?)));
            shares.extend(given.map(|(key, share)| (format!("failure.regions.{name}.{key}"), share)));
        }
        let causes = failure.common_causes.iter().enumerate();
        shares
            .extend(causes.map(|(i, cause)| (format!("failure.common_causes[{i}].unavail"), cause.unavail)));
        let mut diagnostics: Vec<Diagnostic> =
            shares.iter().filter_map(|(place, share)| check_share(place, *share)).collect();
        let zones = vec![1; self.regions.len()];
        let causes = Failures::new(failure, &self.regions, &zones, &self.providers).cause_count();
        if causes > CAUSES_MAX {
            diagnostics.push(
                Diagnostic::new(
                    Code::TooLarge,
                    "failure.common_causes",
                    format!("{causes} causes with those of the providers; {CAUSES_MAX} are the most"),
                )
                .suggest("keep those that strike most often"),
            );
        }
        for (name, zones) in self.zones.iter().filter(|(_, zones)| !(1..=26).contains(&zones.count())) {
            let message = format!("{} zones; a region has 1 to 26", zones.count());
            diagnostics.push(Diagnostic::new(Code::BadValue, format!("zones.{name}"), message));
        }
        diagnostics
    }

    /// Regions that the lists make both lead and not lead, vote and not vote.
    pub(super) fn check_leaders(&self) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        for name in &self.preferred_leaders {
            let (code, why) = if self.witness.contains(name) {
                (Code::WitnessLeader, "a witness never leads")
            } else if self.never_leader.contains(name) {
                (Code::Ignored, "it is in never_leader, too")
            } else if self.voters_max_in(name) == 0 {
                (Code::Ignored, "it may hold no voter")
            } else {
                continue;
            };
            diagnostics.push(
                Diagnostic::new(code, "preferred_leaders", format!("{name} can't be preferred: {why}"))
                    .suggest("name it in one of the lists only"),
            );
        }
        for name in self.must_vote.iter().filter(|name| self.voters_max_in(name) == 0) {
            diagnostics.push(
                Diagnostic::new(
                    Code::BadValue,
                    "must_vote",
                    format!(
                        "{name} must hold a voter, and must not: see never_vote, weights and max_per_region"
                    ),
                )
                .suggest("take it out of one of them"),
            );
        }
        diagnostics
    }

    /// Prices, traffic, ceilings and assumptions are numbers of their kind.
    pub(super) fn check_amounts(&self) -> Vec<Diagnostic> {
        let (cost, traffic, require, timing) = (&self.cost, &self.traffic, &self.require, &self.timing);
        let mut amounts = vec![
            ("cost.voter".to_owned(), cost.voter),
            ("cost.observer".to_owned(), cost.observer.unwrap_or(0.0)),
            ("cost.wan_copy".to_owned(), cost.wan_copy),
            ("cost.wan_gb".to_owned(), cost.wan_gb),
            ("traffic.writes_per_s".to_owned(), traffic.writes_per_s),
            ("traffic.write_bytes".to_owned(), traffic.write_bytes),
            ("timing.stall_ms".to_owned(), timing.stall_ms),
            ("timing.snapshot_mb".to_owned(), timing.snapshot_mb),
            ("timing.backlog_mb".to_owned(), timing.backlog_mb),
            ("timing.blips_per_day".to_owned(), timing.blips_per_day),
            ("timing.silent_failures_per_year".to_owned(), timing.silent_failures_per_year),
        ];
        let ceilings = [
            ("max_mean_write_ms", require.max_mean_write_ms),
            ("max_worst_write_ms", require.max_worst_write_ms),
            ("max_after_loss_ms", require.max_after_loss_ms),
            ("max_cost", require.max_cost),
        ];
        let given = ceilings.into_iter().filter_map(|(key, most)| Some((format!("require.{key}"), most?)));
        amounts.extend(given);
        amounts.extend(require.max_write_ms.iter().map(|(r, ms)| (format!("require.max_write_ms.{r}"), *ms)));
        amounts.extend(self.weights.iter().map(|(r, weight)| (format!("weights.{r}"), *weight)));
        amounts.extend(self.session_timeout_ms.map(|ms| ("session_timeout_ms".to_owned(), ms)));
        let bad = |amount: f64| !amount.is_finite() || amount < 0.0;
        let mut diagnostics: Vec<Diagnostic> = amounts
            .into_iter()
            .filter(|(_, amount)| bad(*amount))
            .map(|(place, amount)| {
                Diagnostic::new(Code::BadValue, place, format!("{amount} is less than nothing"))
            })
            .collect();
        let positive = [
            ("timing.heartbeat_ms", timing.heartbeat_ms),
            ("timing.false_elections_per_s", timing.false_elections_per_s),
            ("timing.link_mb_per_s", timing.link_mb_per_s),
            ("timing.window_mb", timing.window_mb),
            ("timing.load_mb_per_s", timing.load_mb_per_s),
            ("timing.blip_p50_ms", timing.blip_p50_ms),
            ("timing.blip_p99_ms", timing.blip_p99_ms),
        ];
        for (place, amount) in positive.into_iter().filter(|(_, amount)| bad(*amount) || *amount == 0.0) {
            diagnostics.push(Diagnostic::new(Code::BadValue, place, format!("{amount} is not above zero")));
        }
        let shares = [
            ("timing.loss", timing.loss),
            ("timing.loss_again", timing.loss_again),
            ("timing.clock_drift", timing.clock_drift),
        ];
        diagnostics.extend(shares.into_iter().filter_map(|(place, share)| check_share(place, share)));
        diagnostics
    }
}
