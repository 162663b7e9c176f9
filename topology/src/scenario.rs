//! Scenarios: where the regions, clients and limits are. Read from JSON or TOML, checked, and
//! turned into the model and the space of layouts that a plan is made from.

mod check;
mod read;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use read::{parse, parse_json, parse_toml};

use crate::availability::FailureModel;
use crate::diagnostic::{Code, Diagnostic, Level, has_errors};
use crate::latency::{Distribution, Model, Pipeline};
use crate::layout::{Design, Layout, Space};
use crate::matrix::{Matrix, RoundTrip};
use crate::survival::Succession;

/// Most layouts that are searched: about half a minute's work.
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
    /// What a layout must survive.
    pub require: Requirements,
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
            client_rtt: 0.5,
            fsync: Time { p50: 1.0, p99: Some(8.0) },
            zone_rtt: Time { p50: 1.0, p99: Some(3.0) },
            dist: Shifts::default(),
            failure: FailureModel::default(),
            designs: Design::ALL.to_vec(),
            max_voters: 9,
            max_per_region: BTreeMap::new(),
            max_per_region_default: 3,
            witness: Vec::new(),
            never_leader: Vec::new(),
            preferred_leaders: Vec::new(),
            require: Requirements::default(),
            matrix: Matrix::default(),
            measured: Matrix::default(),
            pipeline: Pipeline::default(),
        }
    }
}

/// A time: its median, and its 99th percentile where that is known. Reads from a number, too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Time {
    /// The median, ms.
    pub p50: f64,
    /// The 99th percentile, ms.
    pub p99: Option<f64>,
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

/// What a layout must survive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requirements {
    /// Any so many regions lost. Without it: one, where three regions may vote, else none.
    pub survive_regions: Option<usize>,
    /// So many further voters lost beside any one region.
    pub region_loss_plus_voters: usize,
    /// Least voters in the leader's region.
    pub leader_region_min_voters: usize,
}

/// A checked scenario, ready to be searched.
#[derive(Clone, Debug)]
pub struct World {
    /// Times.
    pub model: Model,
    /// The layouts allowed.
    pub space: Space,
    /// Who leads after a loss.
    pub succession: Succession,
    /// Failures.
    pub failure: FailureModel,
    /// Regions that must be survivable.
    pub survive_regions: usize,
    /// Further voters beside one region; zero asks for nothing.
    pub region_loss_plus_voters: usize,
}

impl World {
    /// The requirements that `layout` does not meet, in words.
    pub fn violations(&self, layout: &Layout) -> Vec<String> {
        let mut violations = Vec::new();
        let survived = layout.survives_regions();
        if survived < self.survive_regions {
            violations.push(format!("survives the loss of {survived} regions, not {}", self.survive_regions));
        }
        let more = self.region_loss_plus_voters;
        if more > 0 && !layout.survives_region_and_voters(more) {
            violations.push(format!("does not survive a region and {more} more voters"));
        }
        if layout.voters[layout.leader] < self.space.leader_voters_min {
            violations.push(format!(
                "{} voters in the leader's region, not {}",
                layout.voters[layout.leader], self.space.leader_voters_min
            ));
        }
        violations
    }

    /// Place of a leader's region in the preference; the others share the last.
    pub fn preference(&self, leader: usize) -> usize {
        let preferred = &self.succession.preferred;
        preferred.iter().position(|region| *region == leader).unwrap_or(preferred.len())
    }

    /// Whether there are no [`World::violations`].
    pub fn allows(&self, layout: &Layout) -> bool {
        let more = self.region_loss_plus_voters;
        layout.survives_regions() >= self.survive_regions
            && (more == 0 || layout.survives_region_and_voters(more))
            && layout.voters[layout.leader] >= self.space.leader_voters_min
    }
}

impl Scenario {
    /// All round trips, and findings about the scenario's own.
    pub fn round_trips(&self) -> (Matrix, Vec<Diagnostic>) {
        let (mut own, mut diagnostics) = (Matrix::default(), Vec::new());
        for (from, row) in &self.rtt {
            for (to, time) in row {
                let round_trip = RoundTrip { p50_ms: time.p50, p99_ms: time.p99, measured: None };
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
        if space.count() > LAYOUTS_MAX {
            diagnostics.retain(|finding| finding.level > Level::Note);
            diagnostics.push(too_many_layouts(space.count()));
            return Err(diagnostics);
        }
        let world = World {
            survive_regions: self.survive_regions(),
            region_loss_plus_voters: self.require.region_loss_plus_voters,
            failure: self.failure,
            succession: Succession {
                preferred: self.preferred_leaders.iter().filter_map(|name| self.region(name)).collect(),
                avoided: self.regions.iter().map(|name| self.never_leader.contains(name)).collect(),
            },
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
        self.max_per_region.retain(|name, _| kept(name));
        self.rtt.retain(|name, _| kept(name));
        self.rtt.values_mut().for_each(|row| row.retain(|name, _| kept(name)));
        for names in [&mut self.witness, &mut self.never_leader, &mut self.preferred_leaders] {
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
        if self.witness.iter().any(|witness| witness == name) { most.min(1) } else { most }
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
            served: self.shares().into_iter().map(|share| share > 0.0).collect(),
        }
    }

    /// The writes' shares per region, scaled to a sum of one.
    fn shares(&self) -> Vec<f64> {
        let given: Vec<f64> = self
            .regions
            .iter()
            .map(|name| self.client_write_share.get(name).copied().unwrap_or(0.0))
            .collect();
        let sum: f64 = given.iter().sum();
        if sum > 0.0 {
            given.iter().map(|share| share / sum).collect()
        } else {
            vec![1.0 / self.regions.len() as f64; self.regions.len()]
        }
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

fn too_many_layouts(count: u64) -> Diagnostic {
    Diagnostic::new(Code::TooLarge, "max_voters", format!("{count} layouts; the search takes {LAYOUTS_MAX}"))
        .suggest("lower max_voters or max_per_region_default, or set max_per_region to 0 where no voter should stand")
}

impl Time {
    fn distribution(&self, shift: f64) -> Distribution {
        Distribution::from_percentiles(self.p50, self.p99.unwrap_or(self.p50), shift)
    }
}
