//! The plan for programs. Times are milliseconds, rounded to microseconds; shares of time are
//! exact. Per-region figures are objects keyed by the region's name.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::availability::BudgetItem;
use crate::diagnostic::Diagnostic;
use crate::latency::Pipeline;
use crate::plan::{
    Action, Assessment, Change, ClientLatency, Forecast, Homes, Infeasible, Latency, Objective, Plan,
    Situation, Step,
};
use crate::quorum::QuorumFigures;
use crate::survival::AfterLoss;
use crate::timing::{Assumptions, Misfit, Setting, Timing};

/// The plan as JSON: every layout listed, the index of the recommended one (null if none fits),
/// its timing, and the findings.
pub fn json(plan: &Plan) -> String {
    let names = &plan.world.model.regions;
    let clients: Vec<usize> = plan.world.model.client_regions().collect();
    let view = PlanView {
        name: &plan.name,
        objective: plan.objective,
        regions: names,
        client_write_share: Named(
            clients.iter().map(|c| (names[*c].as_str(), plan.world.model.shares[*c])).collect(),
        ),
        pipeline: PipelineView::from(plan.world.model.pipeline),
        layouts_considered: plan.considered,
        optimality_gap_ms: rounded(plan.gap_ms),
        layouts: plan.layouts.iter().map(|assessment| LayoutView::new(plan, assessment, &clients)).collect(),
        recommended: plan.recommended,
        infeasible: plan.infeasible.as_ref(),
        hand_off_ms: plan.best().map(|best| hand_off(plan, best, &clients)),
        one_home_per_region: plan.homes.as_ref().map(|homes| HomesView::new(homes, names, &clients)),
        forecast: plan.forecast.as_ref().map(|forecast| ForecastView::new(forecast, names)),
        unavailability_budget: &plan.budget,
        running: plan.change.as_ref().map(|change| ChangeView::new(plan, change, &clients)),
        timing: plan.timing.as_ref().map(TimingView::new),
        diagnostics: &plan.diagnostics,
    };
    print(&view)
}

/// What is printed instead of a plan when the input is refused.
pub fn refusal_json(diagnostics: &[Diagnostic]) -> String {
    print(&Refusal { layouts: [], recommended: None, diagnostics })
}

fn print(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("views have string keys and no failing parts")
}

#[derive(Serialize)]
struct Refusal<'p> {
    layouts: [LayoutView<'p>; 0],
    recommended: Option<usize>,
    diagnostics: &'p [Diagnostic],
}

#[derive(Serialize)]
struct PlanView<'p> {
    name: &'p str,
    objective: Objective,
    regions: &'p [String],
    client_write_share: Named<'p, f64>,
    pipeline: PipelineView,
    layouts_considered: u64,
    optimality_gap_ms: f64,
    layouts: Vec<LayoutView<'p>>,
    recommended: Option<usize>,
    infeasible: Option<&'p Infeasible>,
    hand_off_ms: Option<Named<'p, Named<'p, f64>>>,
    one_home_per_region: Option<HomesView<'p>>,
    forecast: Option<ForecastView<'p>>,
    unavailability_budget: &'p [BudgetItem],
    running: Option<ChangeView<'p>>,
    timing: Option<TimingView<'p>>,
    diagnostics: &'p [Diagnostic],
}

#[derive(Serialize)]
struct PipelineView {
    request_commits: u8,
    apply_commits: u8,
    ordered_sync: bool,
}

impl From<Pipeline> for PipelineView {
    fn from(pipeline: Pipeline) -> Self {
        PipelineView {
            request_commits: pipeline.request_commits,
            apply_commits: pipeline.apply_commits,
            ordered_sync: pipeline.ordered_sync,
        }
    }
}

#[derive(Serialize)]
struct LayoutView<'p> {
    layout: String,
    design: &'static str,
    leader: &'p str,
    voters: Named<'p, u8>,
    observers: Named<'p, u8>,
    voters_by_zone: Named<'p, BTreeMap<String, u8>>,
    commit_ms: f64,
    write_ms: Named<'p, WriteView>,
    mean_write_ms: f64,
    worst_write_ms: f64,
    p99_write_ms: f64,
    lock_ms: Named<'p, f64>,
    sync_read_ms: Named<'p, f64>,
    survives_regions: usize,
    unavailability: f64,
    unavailability_independent: f64,
    wan_copies_per_write: usize,
    wan_kb_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_per_month: Option<f64>,
    quorum: QuorumFigures,
    after_loss: Named<'p, Option<AfterLossView<'p>>>,
    on_front: bool,
    feasible: bool,
    violations: &'p [String],
}

#[derive(Serialize)]
struct WriteView {
    typical: f64,
    p50: f64,
    p99: f64,
    with_local_commits: f64,
}

#[derive(Serialize)]
struct AfterLossView<'p> {
    leader: &'p str,
    commit_ms: f64,
    mean_write_ms: f64,
    worst_write_ms: f64,
}

impl<'p> LayoutView<'p> {
    fn new(plan: &'p Plan, assessment: &'p Assessment, clients: &[usize]) -> Self {
        let names = &plan.world.model.regions;
        let layout = &assessment.layout;
        let of_clients = |figures: &[f64]| Named::of(names, clients, |client| rounded(figures[client]));
        let all: Vec<usize> = (0..names.len()).collect();
        let voting: Vec<usize> = layout.voting_regions().collect();
        LayoutView {
            layout: layout.display(names).to_string(),
            design: layout.design.name(),
            leader: &names[layout.leader],
            voters: Named::of(names, &all, |region| layout.voters[region]),
            observers: Named::of(names, &all, |region| layout.observers[region]),
            voters_by_zone: Named::of(names, &voting, |region| {
                plan.world.voters_by_zone(region, layout.voters[region]).into_iter().collect()
            }),
            commit_ms: rounded(assessment.commit_ms),
            write_ms: Named::of(names, clients, |client| {
                let write = &assessment.write[client];
                WriteView {
                    typical: rounded(write.typical),
                    p50: rounded(write.percentiles.p50),
                    p99: rounded(write.percentiles.p99),
                    with_local_commits: rounded(write.with_local_commits),
                }
            }),
            mean_write_ms: rounded(assessment.mean_write_ms),
            worst_write_ms: rounded(assessment.worst_write_ms),
            p99_write_ms: rounded(assessment.p99_write_ms),
            lock_ms: of_clients(&assessment.lock_ms),
            sync_read_ms: of_clients(&assessment.sync_read_ms),
            survives_regions: assessment.survives_regions,
            unavailability: assessment.unavailability,
            unavailability_independent: assessment.independent_unavailability,
            wan_copies_per_write: assessment.wan_copies_per_write,
            wan_kb_per_s: rounded(assessment.wan_kb_per_s),
            cost_per_month: assessment.cost_per_month.map(rounded),
            quorum: assessment.quorum,
            after_loss: Named::of(names, &all, |lost| {
                assessment.after_loss[lost].map(|after| AfterLossView::new(names, &after))
            }),
            on_front: assessment.on_front,
            feasible: assessment.violations.is_empty(),
            violations: &assessment.violations,
        }
    }
}

impl<'p> AfterLossView<'p> {
    fn new(names: &'p [String], after: &AfterLoss) -> Self {
        AfterLossView {
            leader: &names[after.leader],
            commit_ms: rounded(after.commit_ms),
            mean_write_ms: rounded(after.mean_write_ms),
            worst_write_ms: rounded(after.worst_write_ms),
        }
    }
}

fn hand_off<'p>(plan: &'p Plan, best: &Assessment, clients: &[usize]) -> Named<'p, Named<'p, f64>> {
    let model = &plan.world.model;
    Named::of(&model.regions, clients, |from| {
        Named::of(&model.regions, clients, |to| rounded(model.hand_off_ms(&best.layout, from, to)))
    })
}

/// What runs, and the way to the recommended layout.
#[derive(Serialize)]
struct ChangeView<'p> {
    layout: LayoutView<'p>,
    gain_ms: Option<f64>,
    worth_it: bool,
    steps: Option<Vec<StepView<'p>>>,
    misfits: &'p [Misfit],
}

#[derive(Serialize)]
struct StepView<'p> {
    #[serde(flatten)]
    action: Action,
    text: String,
    voters: Named<'p, u8>,
    survives_regions: usize,
}

impl<'p> ChangeView<'p> {
    fn new(plan: &'p Plan, change: &'p Change, clients: &[usize]) -> Self {
        let names = &plan.world.model.regions;
        let all: Vec<usize> = (0..names.len()).collect();
        let step = |step: &Step| StepView {
            action: step.action,
            text: step.action.display(names).to_string(),
            voters: Named::of(names, &all, |region| step.after.voters[region]),
            survives_regions: step.after.survives_regions(),
        };
        ChangeView {
            layout: LayoutView::new(plan, &change.running, clients),
            gain_ms: change.gain_ms.is_finite().then(|| rounded(change.gain_ms)),
            worth_it: change.worth_it,
            steps: change.steps.as_ref().map(|steps| steps.iter().map(step).collect()),
            misfits: &change.misfits,
        }
    }
}

/// All latencies of the recommended layout.
#[derive(Serialize)]
struct ForecastView<'p> {
    now: SituationView<'p>,
    hand_off_ms: Named<'p, Named<'p, Latency>>,
    after_loss: Named<'p, Option<SituationView<'p>>>,
    after_leader_move: Named<'p, SituationView<'p>>,
}

#[derive(Serialize)]
struct SituationView<'p> {
    leader: &'p str,
    commit_ms: Latency,
    mean_write_ms: Latency,
    mean_sync_read_ms: Latency,
    clients: Named<'p, ClientLatency>,
}

impl<'p> ForecastView<'p> {
    fn new(forecast: &Forecast, names: &'p [String]) -> Self {
        let view = |situation: &Situation| SituationView::new(situation, names);
        let hand_off = |row: &Vec<Option<Latency>>| {
            Named::some(names, row.iter().map(|latency| latency.map(Latency::rounded)))
        };
        let from_clients =
            |row: &Vec<Option<Latency>>| row.iter().any(Option::is_some).then(|| hand_off(row));
        ForecastView {
            now: view(&forecast.now),
            hand_off_ms: Named::some(names, forecast.hand_off.iter().map(from_clients)),
            after_loss: Named::some(
                names,
                forecast.after_loss.iter().map(|after| Some(after.as_ref().map(view))),
            ),
            after_leader_move: Named::some(
                names,
                forecast.after_move.iter().map(|after| after.as_ref().map(view)),
            ),
        }
    }
}

impl<'p> SituationView<'p> {
    fn new(situation: &Situation, names: &'p [String]) -> Self {
        let rounded = |client: &ClientLatency| ClientLatency {
            write: client.write.rounded(),
            read: client.read.rounded(),
            sync_read: client.sync_read.rounded(),
            lock: client.lock.rounded(),
            hand_off: client.hand_off.rounded(),
        };
        SituationView {
            leader: &names[situation.leader],
            commit_ms: situation.commit.rounded(),
            mean_write_ms: situation.mean_write.rounded(),
            mean_sync_read_ms: situation.mean_sync_read.rounded(),
            clients: Named::some(names, situation.clients.iter().map(|client| client.as_ref().map(rounded))),
        }
    }
}

impl Latency {
    fn rounded(self) -> Self {
        Latency { typical: rounded(self.typical), p50: rounded(self.p50), p99: rounded(self.p99) }
    }
}

#[derive(Serialize)]
struct HomesView<'p> {
    home: Named<'p, &'p str>,
    write_ms: Named<'p, f64>,
    mean_write_ms: f64,
}

impl<'p> HomesView<'p> {
    fn new(homes: &Homes, names: &'p [String], clients: &[usize]) -> Self {
        HomesView {
            home: Named::of(names, clients, |client| names[homes.home[client]].as_str()),
            write_ms: Named::of(names, clients, |client| rounded(homes.write_ms[client])),
            mean_write_ms: rounded(homes.mean_write_ms),
        }
    }
}

/// The timeouts keyed by name, beside what was assumed.
#[derive(Serialize)]
struct TimingView<'p> {
    #[serde(flatten)]
    settings: Named<'p, &'p Setting>,
    assumptions: &'p Assumptions,
}

impl<'p> TimingView<'p> {
    fn new(timing: &'p Timing) -> Self {
        TimingView {
            settings: Named(timing.settings.iter().map(|setting| (setting.name, setting)).collect()),
            assumptions: &timing.assumptions,
        }
    }
}

/// An object with its keys in the given order.
struct Named<'p, T>(Vec<(&'p str, T)>);

impl<'p, T> Named<'p, T> {
    fn of(names: &'p [String], regions: &[usize], value: impl Fn(usize) -> T) -> Self {
        Named(regions.iter().map(|region| (names[*region].as_str(), value(*region))).collect())
    }

    /// The regions that have a value.
    fn some(names: &'p [String], values: impl Iterator<Item = Option<T>>) -> Self {
        Named(names.iter().zip(values).filter_map(|(name, value)| Some((name.as_str(), value?))).collect())
    }
}

impl<T: Serialize> Serialize for Named<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// To microseconds.
fn rounded(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}
