//! Scenarios: where the regions, clients and limits are. Read from JSON or TOML, checked, and
//! turned into the model and the space of layouts that a plan is made from.

mod check;
mod place;
mod read;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

pub(crate) use check::about;
pub use place::Source;
pub use read::{parse, parse_json, parse_toml};
pub use world::{Ceilings, Running, World};

use crate::availability::{FailureModel, Failures, ZONES_PER_REGION};
use crate::cost::{Prices, Traffic};
use crate::diagnostic::{Code, Diagnostic, Level, has_errors};
use crate::latency::{Distribution, Measured, Model, Pipeline};
use crate::layout::{Design, Space};
use crate::matrix::{Matrix, RoundTrip};
use crate::survival::Succession;
use crate::timing::Assumptions;

/// Most layouts that are searched whole: about half a minute's work. Of more, the search looks at a
/// part, and says how far from the best its answer may be.
pub const LAYOUTS_MAX: u64 = 3_000_000_000;

/// What to plan for. Times are milliseconds; everything but the regions and their round trips has
/// a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// A name for the report.
    pub name: String,
    /// The regions, at most [`crate::layout::PLANNED_REGIONS_MAX`].
    pub regions: Vec<String>,
    /// Latitude and longitude in degrees, to check round trips against the speed of light.
    pub coordinates: BTreeMap<String, [f64; 2]>,
    /// Round trips: from, to, time. One direction holds for both.
    pub rtt: BTreeMap<String, BTreeMap<String, Time>>,
    /// Share of the writes from each region; equal shares if none is given.
    pub client_write_share: BTreeMap<String, f64>,
    /// Share of the reads from each region; that of the writes if none is given.
    pub client_read_share: BTreeMap<String, f64>,
    /// Zones that the voters of a region are spread over; three where nothing is said.
    pub zones: BTreeMap<String, Zones>,
    /// Whose each region is; all are one provider's where nothing is said.
    pub providers: BTreeMap<String, String>,
    /// Round trip between a client and its server.
    pub client_rtt: f64,
    /// A flush of the log to disk.
    pub fsync: Time,
    /// Round trip between two zones of one region.
    pub zone_rtt: Time,
    /// Shapes of the distributions.
    pub dist: Shifts,
    /// How often servers, zones and regions are down.
    pub failure: FailureModel,
    /// The designs to compare.
    pub designs: Vec<Design>,
    /// Most voters in all.
    pub max_voters: usize,
    /// Most voters of single regions.
    pub max_per_region: BTreeMap<String, usize>,
    /// Most voters of every other region.
    pub max_per_region_default: usize,
    /// Regions that hold one voter at most and never lead. Where clients write from one, its server
    /// serves them, too.
    pub witness: Vec<String>,
    /// Regions that must not lead.
    pub never_leader: Vec<String>,
    /// Regions that should lead, best first: decides between layouts that are equal otherwise, and
    /// who takes over when the leader's region is lost.
    pub preferred_leaders: Vec<String>,
    /// Regions that must hold a voter.
    pub must_vote: Vec<String>,
    /// Regions that must not hold one.
    pub never_vote: Vec<String>,
    /// Weights of the regions' servers in a hierarchical quorum, one where nothing is said. A region of
    /// weight zero has no vote.
    pub weights: BTreeMap<String, f64>,
    /// What a layout must survive and must not exceed.
    pub require: Requirements,
    /// What servers and copies of writes cost.
    pub cost: Prices,
    /// How much is written.
    pub traffic: Traffic,
    /// The session timeout that clients ask for, ms.
    pub session_timeout_ms: Option<f64>,
    /// What timeouts are derived from where nothing is measured.
    pub timing: Assumptions,
    /// What runs now.
    pub current: Option<Current>,
    /// Round trips of the pairs that the scenario leaves out.
    #[serde(skip)]
    pub matrix: Matrix,
    /// Round trips that win over the scenario's: a newer measurement.
    #[serde(skip)]
    pub measured: Matrix,
    /// Local commits beside the formulas: see [`Pipeline`].
    #[serde(skip)]
    pub pipeline: Pipeline,
}

impl Default for Scenario {
    fn default() -> Self {
        Scenario {
            name: String::new(),
            regions: Vec::new(),
            coordinates: BTreeMap::new(),
            rtt: BTreeMap::new(),
            client_write_share: BTreeMap::new(),
            client_read_share: BTreeMap::new(),
            zones: BTreeMap::new(),
            providers: BTreeMap::new(),
            client_rtt: 0.5,
            fsync: Time::new(1.0, Some(8.0)),
            zone_rtt: Time::new(1.0, Some(3.0)),
            dist: Shifts::default(),
            failure: FailureModel::default(),
            designs: Design::ALL.to_vec(),
            max_voters: 9,
            max_per_region: BTreeMap::new(),
            max_per_region_default: 3,
            witness: Vec::new(),
            never_leader: Vec::new(),
            preferred_leaders: Vec::new(),
            must_vote: Vec::new(),
            never_vote: Vec::new(),
            weights: BTreeMap::new(),
            require: Requirements::default(),
            cost: Prices::default(),
            traffic: Traffic::default(),
            session_timeout_ms: None,
            timing: Assumptions::default(),
            current: None,
            matrix: Matrix::default(),
            measured: Matrix::default(),
            pipeline: Pipeline::default(),
        }
    }
}

/// A time: its median, its 99th percentile where that is known, the whole distribution where that
/// was measured. Reads from a number, from percentiles, or from a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Time {
    /// The median, ms.
    pub p50: f64,
    /// The 99th percentile, ms.
    pub p99: Option<f64>,
    /// The measured distribution.
    pub measured: Option<Arc<Measured>>,
}

/// The zones of a region: their number, or their names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Zones {
    /// So many, called a, b, c and so on.
    Count(u8),
    /// Each by its name.
    Named(Vec<String>),
}

impl Zones {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Zones::Count(count) => usize::from(*count),
            Zones::Named(names) => names.len(),
        }
    }

    /// The name of the `i`-th, from 0.
    pub fn name(&self, i: usize) -> String {
        match self {
            Zones::Named(names) => names.get(i).cloned().unwrap_or_default(),
            Zones::Count(_) => {
                let letter = u8::try_from(i).ok().and_then(|i| b'a'.checked_add(i)).unwrap_or(b'z');
                char::from(letter).to_string()
            }
        }
    }
}

impl Default for Zones {
    fn default() -> Self {
        Zones::Count(ZONES_PER_REGION)
    }
}

/// A layout that runs, and its timeouts: for findings about it and for comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Current {
    /// How a write is agreed on.
    pub design: Design,
    /// The region that leads.
    pub leader: String,
    /// Voters per region.
    pub voters: BTreeMap<String, u8>,
    /// Observers per region; where nothing is said, those that the planner would place.
    #[serde(default)]
    pub observers: BTreeMap<String, u8>,
    /// Timeouts by the names that the plan gives them, in its units.
    #[serde(default)]
    pub timing: BTreeMap<String, f64>,
}

/// Floors of the distributions, as shares of the median (0 to below 1).
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shifts {
    /// Of round trips between regions.
    pub rtt_shift: f64,
    /// Of round trips between zones.
    pub zone_shift: f64,
}

impl Default for Shifts {
    fn default() -> Self {
        Shifts { rtt_shift: 0.98, zone_shift: 0.5 }
    }
}

/// What a layout must survive, and the figures that it must not exceed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requirements {
    /// Any so many regions lost. Without it: one, where three regions may vote, else none.
    pub survive_regions: Option<usize>,
    /// So many further voters lost beside any one region.
    pub region_loss_plus_voters: usize,
    /// Least voters in the leader's region.
    pub leader_region_min_voters: usize,
    /// Most ms of the mean write (medians, by the clients' shares).
    pub max_mean_write_ms: Option<f64>,
    /// Most ms of the longest median write.
    pub max_worst_write_ms: Option<f64>,
    /// Most ms of the mean write after the worst loss of one region.
    pub max_after_loss_ms: Option<f64>,
    /// Most ms of the median write from single regions.
    pub max_write_ms: BTreeMap<String, f64>,
    /// Most that servers and copies may cost a month.
    pub max_cost: Option<f64>,
}

impl Scenario {
    /// All round trips, and findings about the scenario's own.
    pub fn round_trips(&self) -> (Matrix, Vec<Diagnostic>) {
        let (mut own, mut diagnostics) = (Matrix::default(), Vec::new());
        for (from, row) in &self.rtt {
            for (to, time) in row {
                let measured = time.measured.clone();
                let round_trip = RoundTrip { p50_ms: time.p50, p99_ms: time.p99, measured };
                own.set(from, to, round_trip, &format!("rtt.{from}.{to}"), &mut diagnostics);
            }
        }
        let mut all = self.matrix.clone();
        all.overlay(&own);
        all.overlay(&self.measured);
        (all, diagnostics)
    }

    /// The checked scenario, with what is doubtful about it; or what is wrong.
    pub fn world(&self) -> Result<(World, Vec<Diagnostic>), Vec<Diagnostic>> {
        let (matrix, mut diagnostics) = self.round_trips();
        if has_errors(&diagnostics) {
            return Err(diagnostics);
        }
        diagnostics.extend(self.check(&matrix));
        if has_errors(&diagnostics) {
            diagnostics.retain(|finding| finding.level > Level::Note);
            return Err(diagnostics);
        }
        let Some(model) = self.model(&matrix) else {
            diagnostics.push(Diagnostic::new(Code::MissingPair, "rtt", "a pair has no round-trip time"));
            return Err(diagnostics);
        };
        let space = self.space();
        let ceiling = |most: Option<f64>| most.unwrap_or(f64::INFINITY);
        let require = &self.require;
        let per_region = |name: &String| ceiling(require.max_write_ms.get(name).copied());
        let zones: Vec<Zones> =
            self.regions.iter().map(|name| self.zones.get(name).cloned().unwrap_or_default()).collect();
        let zone_counts: Vec<u8> =
            zones.iter().map(|zones| u8::try_from(zones.count()).unwrap_or(u8::MAX)).collect();
        let world = World {
            survive_regions: self.survive_regions(),
            region_loss_plus_voters: require.region_loss_plus_voters,
            failures: Failures::new(&self.failure, &self.regions, &zone_counts, &self.providers),
            zones,
            coordinates: self.regions.iter().map(|name| self.coordinates.get(name).copied()).collect(),
            read_shares: self.read_shares(),
            succession: Succession {
                preferred: self.preferred_leaders.iter().filter_map(|name| self.region(name)).collect(),
                avoided: self.regions.iter().map(|name| self.never_leader.contains(name)).collect(),
            },
            ceilings: Ceilings {
                mean_write_ms: ceiling(require.max_mean_write_ms),
                worst_write_ms: ceiling(require.max_worst_write_ms),
                after_loss_ms: ceiling(require.max_after_loss_ms),
                write_ms: self.regions.iter().map(per_region).collect(),
                cost: ceiling(require.max_cost),
            },
            prices: self.cost,
            traffic: self.traffic,
            assumptions: self.timing,
            session_timeout_ms: self.session_timeout_ms,
            current: self.current.as_ref().and_then(|current| self.running(current, &space)),
            model,
            space,
        };
        Ok((world, diagnostics))
    }

    /// Drops what concerns other regions than these, which become the scenario's.
    pub fn restrict(&mut self, regions: &[String]) {
        let kept = |name: &String| regions.contains(name);
        self.regions = regions.to_vec();
        self.coordinates.retain(|name, _| kept(name));
        self.client_write_share.retain(|name, _| kept(name));
        self.client_read_share.retain(|name, _| kept(name));
        self.zones.retain(|name, _| kept(name));
        self.providers.retain(|name, _| kept(name));
        self.weights.retain(|name, _| kept(name));
        self.require.max_write_ms.retain(|name, _| kept(name));
        self.failure.regions.retain(|name, _| kept(name));
        self.failure.common_causes.iter_mut().for_each(|cause| cause.regions.retain(kept));
        self.max_per_region.retain(|name, _| kept(name));
        if let Some(current) = &mut self.current {
            current.voters.retain(|name, _| kept(name));
            current.observers.retain(|name, _| kept(name));
        }
        if self.current.as_ref().is_some_and(|current| !kept(&current.leader)) {
            self.current = None;
        }
        self.rtt.retain(|name, _| kept(name));
        self.rtt.values_mut().for_each(|row| row.retain(|name, _| kept(name)));
        for names in [
            &mut self.witness,
            &mut self.never_leader,
            &mut self.preferred_leaders,
            &mut self.must_vote,
            &mut self.never_vote,
        ] {
            names.retain(kept);
        }
    }

    /// The regions to be survived: as required, or one where three regions may vote.
    pub fn survive_regions(&self) -> usize {
        let voting = self.regions.iter().filter(|name| self.voters_max_in(name) > 0).count();
        self.require.survive_regions.unwrap_or(usize::from(voting >= 3 && self.max_voters >= 3))
    }

    fn region(&self, name: &str) -> Option<usize> {
        self.regions.iter().position(|region| region == name)
    }

    fn voters_max_in(&self, name: &str) -> usize {
        let most = self.max_per_region.get(name).copied().unwrap_or(self.max_per_region_default);
        let without_vote = self.never_vote.iter().any(|never| never == name)
            || self.weights.get(name).is_some_and(|weight| *weight == 0.0);
        match self.witness.iter().any(|witness| witness == name) {
            _ if without_vote => 0,
            true => most.min(1),
            false => most,
        }
    }

    /// The layout that runs; `None` if it names regions or numbers that no layout has.
    fn running(&self, current: &Current, space: &Space) -> Option<Running> {
        let leader = self.region(&current.leader)?;
        let of = |counts: &BTreeMap<String, u8>| -> Vec<u8> {
            self.regions.iter().map(|name| counts.get(name).copied().unwrap_or(0)).collect()
        };
        let mut layout = space.complete(current.design, leader, of(&current.voters));
        if !current.observers.is_empty() {
            layout.observers = of(&current.observers);
        }
        let fits = layout.voters[leader] > 0 && layout.voter_count() <= crate::layout::VOTERS_MAX;
        fits.then(|| Running { layout, timing: current.timing.clone() })
    }

    fn space(&self) -> Space {
        let small = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
        Space {
            designs: Design::ALL.into_iter().filter(|design| self.designs.contains(design)).collect(),
            voters_max: small(self.max_voters),
            voters_max_per_region: self.regions.iter().map(|name| small(self.voters_max_in(name))).collect(),
            may_lead: self
                .regions
                .iter()
                .map(|name| !self.witness.contains(name) && !self.never_leader.contains(name))
                .collect(),
            leader_voters_min: small(self.require.leader_region_min_voters.max(1)),
            must_vote: self.regions.iter().map(|name| self.must_vote.contains(name)).collect(),
            served: self
                .shares()
                .into_iter()
                .zip(self.read_shares())
                .map(|(writes, reads)| writes > 0.0 || reads > 0.0)
                .collect(),
        }
    }

    /// The writes' shares per region, scaled to a sum of one.
    fn shares(&self) -> Vec<f64> {
        self.scaled(&self.client_write_share)
            .unwrap_or_else(|| vec![1.0 / self.regions.len() as f64; self.regions.len()])
    }

    /// The reads' shares per region, scaled to a sum of one; without any, those of the writes.
    fn read_shares(&self) -> Vec<f64> {
        self.scaled(&self.client_read_share).unwrap_or_else(|| self.shares())
    }

    fn scaled(&self, shares: &BTreeMap<String, f64>) -> Option<Vec<f64>> {
        let given: Vec<f64> =
            self.regions.iter().map(|name| shares.get(name).copied().unwrap_or(0.0)).collect();
        let sum: f64 = given.iter().sum();
        (sum > 0.0).then(|| given.iter().map(|share| share / sum).collect())
    }

    fn model(&self, matrix: &Matrix) -> Option<Model> {
        let round_trips: Option<Vec<Vec<RoundTrip>>> = self
            .regions
            .iter()
            .map(|a| {
                let same = |b: &String| (a == b).then(|| RoundTrip::median(0.0));
                self.regions.iter().map(|b| same(b).or_else(|| matrix.round_trip(a, b))).collect()
            })
            .collect();
        let round_trips = round_trips?;
        let shift = self.dist.rtt_shift;
        Some(Model {
            regions: self.regions.clone(),
            rtt_ms: round_trips.iter().map(|row| row.iter().map(|trip| trip.p50_ms).collect()).collect(),
            rtt: round_trips
                .iter()
                .map(|row| row.iter().map(|trip| trip.distribution(shift)).collect())
                .collect(),
            fsync: self.fsync.distribution(0.0),
            fsync_ms: self.fsync.p50,
            zone: self.zone_rtt.distribution(self.dist.zone_shift),
            zone_ms: self.zone_rtt.p50,
            client_rtt_ms: self.client_rtt,
            shares: self.shares(),
            witness: self.regions.iter().map(|name| self.witness.contains(name)).collect(),
            pipeline: self.pipeline,
        })
    }
}

impl Time {
    /// A time of which percentiles are known.
    pub fn new(p50: f64, p99: Option<f64>) -> Self {
        Time { p50, p99, measured: None }
    }

    fn distribution(&self, shift: f64) -> Distribution {
        match &self.measured {
            Some(measured) => Distribution::Measured(Arc::clone(measured)),
            None => Distribution::from_percentiles(self.p50, self.p99.unwrap_or(self.p50), shift),
        }
    }
}
