//! Whatever the text, it is read or refused.

use meridian_topology::command::{Inputs, PlanArgs};
use meridian_topology::plan::{Objective, plan};
use meridian_topology::scenario::{self, Scenario, Time};
use meridian_topology::{matrix, report};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "(from,to,rtt_ms\n|\\{\"rtt\":|\\{\"data\":)?[ -~\n]{0,200}") {
        let (read, _) = matrix::parse(&text);
        read.check(read.regions());
        let _ = scenario::parse(&text);
        let inputs = Inputs { scenario: Some(text.clone()), rtt: Some(text), ..Inputs::default() };
        PlanArgs::default().run(&inputs);
    }

    #[test]
    fn any_numbers_are_planned_or_refused(
        times in prop::collection::vec(prop::num::f64::ANY, 6),
        small in prop::collection::vec(0.1f64..200.0, 6),
        mixed in prop::collection::vec(prop::bool::weighted(0.05), 6),
        limits in (0u8..=9, 0u8..=4, 0u8..=3, 0u8..=3),
        odd in any::<u8>(),
    ) {
        let pick = |i: usize| if mixed[i] { times[i] } else { small[i] };
        let mut scenario = Scenario { regions: ["a", "b", "c"].map(str::to_owned).to_vec(), ..Scenario::default() };
        for (i, (from, to)) in [("a", "b"), ("a", "c"), ("b", "c")].into_iter().enumerate() {
            let time = Time::new(pick(i), Some(pick(i) + small[i + 3]));
            scenario.rtt.entry(from.to_owned()).or_default().insert(to.to_owned(), time);
        }
        scenario.fsync = Time::new(pick(3), Some(pick(3) + pick(4)));
        scenario.client_rtt = pick(5);
        scenario.max_voters = limits.0.into();
        scenario.max_per_region_default = limits.1.into();
        scenario.require.leader_region_min_voters = limits.2.into();
        scenario.require.region_loss_plus_voters = limits.3.into();
        if odd < 8 {
            scenario.max_voters = usize::from(odd) * 40;
        }
        if let Ok(plan) = plan(&scenario, Objective::P99) {
            report::json(&plan);
            report::text(&plan);
            report::html(&plan);
            report::configuration(&plan);
        }
    }
}
