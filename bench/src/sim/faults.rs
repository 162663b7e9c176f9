//! What goes wrong in a run, and when: drawn from the seed before it starts.
//!
//! Every seed draws the kinds of faults that it knows: few kinds often find more than all of them at once, because they
//! leave time for what follows from each.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::server::Layout;

/// What goes wrong, or ends to.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// A server's process ends, or its machine loses its power, and it starts again some time later.
    Crash {
        server: usize,
        power: bool,
        restart_after_ms: u64,
    },
    /// The same of the server that leads a region then.
    CrashLeader {
        region: usize,
        power: bool,
        restart_after_ms: u64,
    },
    /// The server that leads a region then is cut off from the others of the region, or no longer is.
    IsolateLeader {
        region: usize,
        cut: bool,
    },
    /// A server is told to stop, and starts again.
    Restart {
        server: usize,
    },
    /// The power goes again after so many changes of the disk, once the server has started again.
    PowerCut {
        server: usize,
        changes: u64,
    },
    /// A server's process gets no time.
    Pause {
        server: usize,
    },
    Resume {
        server: usize,
    },
    /// No server of a region gets any time.
    PauseRegion {
        region: usize,
    },
    ResumeRegion {
        region: usize,
    },
    /// A server gets time only so often.
    Slow {
        server: usize,
        period_ms: u64,
    },
    /// Packets from these servers to those get lost, or no longer do.
    Cut {
        from: Vec<usize>,
        to: Vec<usize>,
        cut: bool,
    },
    /// A share of all packets gets lost.
    Loss {
        share: f64,
    },
    /// A share of all datagrams comes twice.
    Duplication {
        share: f64,
    },
    /// Packets from these servers to those take longer, each by something up to this.
    Delay {
        from: Vec<usize>,
        to: Vec<usize>,
        up_to_ms: u64,
    },
    /// A server's disk takes up to so long for a sync.
    Disk {
        server: usize,
        sync_ms: u64,
    },
    /// A server's next sync fails.
    FailSync {
        server: usize,
    },
    /// A server's disk has this much room left, or all it wants.
    Fill {
        server: usize,
        left_bytes: Option<u64>,
    },
    /// One bit of what a server has written long ago is inverted, and the server starts again.
    Rot {
        server: usize,
    },
    /// A server's wall clock jumps.
    Wall {
        server: usize,
        by_ms: i64,
    },
    /// A region is lost for good, with its clients.
    LoseRegion {
        region: usize,
    },
    /// A server starts again as another build.
    Upgrade {
        server: usize,
        build: Build,
    },
    /// The servers of a region get other roles: who votes, who observes, and who is no member for a while.
    Roles {
        region: usize,
        voters: Vec<usize>,
        gone: Option<usize>,
    },
    /// The home of the homed subtree moves.
    MoveHome {
        to: usize,
    },
    /// Another region is to lead the global group.
    MoveLead {
        to: usize,
    },
}

impl Fault {
    /// For counting.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Fault::Crash { power: true, .. } | Fault::CrashLeader { power: true, .. } => "losses of power",
            Fault::Crash { .. } | Fault::CrashLeader { .. } => "crashes",
            Fault::IsolateLeader { cut: true, .. } => "isolated leaders",
            Fault::Restart { .. } => "restarts",
            Fault::PowerCut { .. } => "losses of power while recovering",
            Fault::Pause { .. } => "pauses",
            Fault::PauseRegion { .. } => "pauses of regions",
            Fault::Slow { period_ms: 2.., .. } => "slow servers",
            Fault::Cut { cut: true, .. } => "cuts",
            Fault::Loss { .. } => "changes of packet loss",
            Fault::Duplication { .. } => "changes of duplication",
            Fault::Delay { up_to_ms: 1.., .. } => "delays",
            Fault::Disk { sync_ms, .. } if *sync_ms > HEALTHY_SYNC_MS => "slow disks",
            Fault::FailSync { .. } => "failed syncs",
            Fault::Fill { left_bytes: Some(_), .. } => "full disks",
            Fault::Rot { .. } => "damaged files",
            Fault::Wall { .. } => "jumps of clocks",
            Fault::LoseRegion { .. } => "lost regions",
            Fault::Upgrade { .. } => "upgrades",
            Fault::Roles { gone: Some(_), .. } => "removals of members",
            Fault::Roles { .. } => "changes of roles",
            Fault::MoveHome { .. } => "moves of the home",
            Fault::MoveLead { .. } => "moves of the global lead",
            _ => "ends of faults",
        }
    }
}

/// Which versions of records a server knows and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Build {
    /// Knows the newer version and does not write it yet.
    New,
    /// Writes it.
    NewWriting,
}

/// Syncs of a healthy disk take up to this.
pub(super) const HEALTHY_SYNC_MS: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Crash,
    IsolateLeader,
    CrashAgain,
    Restart,
    RollingRestart,
    RollingUpgrade,
    Pause,
    PauseRegion,
    Slow,
    CutServers,
    CutRegions,
    RegionInTrouble,
    Loss,
    Duplication,
    Delay,
    SlowDisk,
    FailSync,
    FullDisk,
    Rot,
    Wall,
    Roles,
    MoveHome,
    MoveLead,
    LoseRegion,
    Unheard,
    Blackout,
    Silence,
    RemoveMember,
}

/// Kinds with their weights. The others strike once in a run, if at all.
const KINDS: [(Kind, f64); 22] = [
    (Kind::Crash, 6.0),
    (Kind::IsolateLeader, 3.0),
    (Kind::CrashAgain, 3.0),
    (Kind::Restart, 1.5),
    (Kind::RollingRestart, 0.6),
    (Kind::Pause, 2.0),
    (Kind::PauseRegion, 2.0),
    (Kind::Slow, 1.0),
    (Kind::CutServers, 4.0),
    (Kind::CutRegions, 5.0),
    (Kind::RegionInTrouble, 1.5),
    (Kind::Loss, 1.5),
    (Kind::Duplication, 1.0),
    (Kind::Delay, 2.5),
    (Kind::SlowDisk, 2.0),
    (Kind::FailSync, 1.0),
    (Kind::FullDisk, 1.0),
    (Kind::Rot, 1.0),
    (Kind::Wall, 1.0),
    (Kind::Roles, 1.0),
    (Kind::MoveHome, 1.0),
    (Kind::MoveLead, 0.7),
];

/// The faults of a time, in order. Only those of some kinds, if any are named.
pub(super) fn plan(
    layout: &Layout,
    random: &mut StdRng,
    from_ms: u64,
    to_ms: u64,
    only: &[Kind],
) -> Vec<(u64, Fault)> {
    let mut plan =
        Plan { layout, random, only, faults: Vec::new(), weakened: BTreeMap::new(), pause_from_ms: 0 };
    plan.draw_all(from_ms, to_ms);
    let mut faults = plan.faults;
    faults.sort_by_key(|(at_ms, _)| *at_ms);
    faults
}

struct Plan<'a> {
    layout: &'a Layout,
    random: &'a mut StdRng,
    only: &'a [Kind],
    faults: Vec<(u64, Fault)>,
    /// Regions that may lose a server for good, or may have fewer voters: one of it is all that a majority survives.
    weakened: BTreeMap<usize, Kind>,
    /// No region is paused again before: several pauses in a row may end sessions, one may not.
    pause_from_ms: u64,
}

/// Sessions have so long to be heard of again after a pause of their servers.
const BETWEEN_PAUSES_MS: u64 = 9_000;

impl Plan<'_> {
    fn draw_all(&mut self, from_ms: u64, to_ms: u64) {
        let kinds = self.kinds();
        // Some runs are calmer than others: bugs may need two faults close together, or time between them.
        let pause_max_ms = *[800, 4_000, 12_000].choose(self.random).unwrap_or(&4_000);
        let mut at_ms = from_ms + self.random.random_range(0..1_000);
        while at_ms < to_ms {
            if let Ok((kind, _)) = kinds.choose_weighted(self.random, |(_, weight)| *weight) {
                self.draw(*kind, at_ms);
            }
            at_ms += self.random.random_range(pause_max_ms / 10..pause_max_ms);
        }
        let middle_ms = from_ms + (to_ms - from_ms) / 2;
        match self.random.random_range(0..20) {
            0 => self.draw(Kind::RollingUpgrade, from_ms),
            // A region that is lost while the home moves takes it along or not.
            1..3 if self.layout.regions > 1 && kinds.iter().all(|(kind, _)| *kind != Kind::MoveHome) => {
                self.draw(Kind::LoseRegion, middle_ms);
            }
            3..6 if self.layout.regions > 1 => self.draw(Kind::Unheard, middle_ms),
            6..9 if self.layout.voters > 2 => self.draw(Kind::RemoveMember, middle_ms),
            9..12 if self.layout.regions > 1 => self.draw(Kind::Blackout, middle_ms),
            12..15 => self.draw(Kind::Silence, middle_ms),
            _ => {}
        }
    }

    /// The kinds of faults that this run knows.
    fn kinds(&mut self) -> Vec<(Kind, f64)> {
        let possible = |kind: Kind| match kind {
            Kind::CutRegions | Kind::RegionInTrouble | Kind::MoveHome | Kind::MoveLead => {
                self.layout.regions > 1
            }
            Kind::Rot | Kind::Roles | Kind::IsolateLeader => self.layout.voters > 2,
            _ => true,
        };
        let mut kinds: Vec<(Kind, f64)> = KINDS.into_iter().filter(|(kind, _)| possible(*kind)).collect();
        if !self.only.is_empty() {
            kinds.extend([(Kind::Unheard, 1.5), (Kind::Blackout, 0.3)]);
            kinds.retain(|(kind, _)| self.only.contains(kind));
            return kinds;
        }
        let count = *[1, 2, 3, 5, 20].choose(self.random).unwrap_or(&3);
        kinds.shuffle(self.random);
        kinds.truncate(count);
        kinds
    }

    fn server(&mut self) -> usize {
        self.random.random_range(0..self.layout.servers())
    }

    fn region(&mut self) -> usize {
        self.random.random_range(0..self.layout.regions)
    }

    fn put(&mut self, at_ms: u64, fault: Fault) {
        self.faults.push((at_ms, fault));
    }

    fn draw(&mut self, kind: Kind, at_ms: u64) {
        let server = self.server();
        let until_ms = at_ms + self.random.random_range(100..15_000);
        match kind {
            Kind::Crash => {
                let power = self.random.random_bool(0.6);
                let restart_after_ms = self.restart_after_ms();
                let region = server / self.layout.servers_per_region();
                let fault = if self.random.random_bool(0.5) {
                    Fault::CrashLeader { region, power, restart_after_ms }
                } else {
                    Fault::Crash { server, power, restart_after_ms }
                };
                self.put(at_ms, fault);
            }
            Kind::IsolateLeader => {
                let region = server / self.layout.servers_per_region();
                let until_ms = at_ms + self.random.random_range(300..6_000);
                self.put(at_ms, Fault::IsolateLeader { region, cut: true });
                self.put(until_ms, Fault::IsolateLeader { region, cut: false });
            }
            Kind::CrashAgain => self.crash_again(server, at_ms),
            Kind::Restart => self.put(at_ms, Fault::Restart { server }),
            Kind::RollingRestart => {
                self.rolling(at_ms, |server| Fault::Restart { server });
            }
            Kind::RollingUpgrade => {
                let end_ms = self.rolling(at_ms, |server| Fault::Upgrade { server, build: Build::New });
                self.rolling(end_ms, |server| Fault::Upgrade { server, build: Build::NewWriting });
            }
            Kind::Pause | Kind::PauseRegion => self.pause(kind, server, at_ms),
            Kind::Slow => {
                let period_ms = self.random.random_range(5..150);
                self.put(at_ms, Fault::Slow { server, period_ms });
                self.put(until_ms, Fault::Slow { server, period_ms: 1 });
            }
            Kind::CutServers | Kind::CutRegions => self.cut(kind, server, at_ms, until_ms),
            Kind::RegionInTrouble => self.trouble_region(server, at_ms),
            Kind::Loss => {
                let share = self.random.random_range(0.01..0.2);
                self.put(at_ms, Fault::Loss { share });
                self.put(until_ms, Fault::Loss { share: 0.0 });
            }
            Kind::Duplication => {
                let share = self.random.random_range(0.01..0.5);
                self.put(at_ms, Fault::Duplication { share });
                self.put(until_ms, Fault::Duplication { share: 0.0 });
            }
            Kind::Delay => self.delay(server, at_ms, until_ms),
            Kind::SlowDisk => {
                let sync_ms = self.random.random_range(50..4_000);
                self.put(at_ms, Fault::Disk { server, sync_ms });
                if self.random.random_bool(0.5) {
                    let restart_after_ms = self.restart_after_ms();
                    let crash_ms = self.random.random_range(at_ms..until_ms);
                    self.put(crash_ms, Fault::Crash { server, power: true, restart_after_ms });
                }
                self.put(until_ms, Fault::Disk { server, sync_ms: HEALTHY_SYNC_MS });
            }
            Kind::FailSync => self.put(at_ms, Fault::FailSync { server }),
            Kind::FullDisk => {
                let left_bytes = Some(self.random.random_range(50_000..700_000));
                self.put(at_ms, Fault::Fill { server, left_bytes });
                self.put(until_ms, Fault::Fill { server, left_bytes: None });
            }
            Kind::Rot => {
                let region = server / self.layout.servers_per_region();
                if let Entry::Vacant(weakened) = self.weakened.entry(region) {
                    weakened.insert(kind);
                    self.put(at_ms, Fault::Rot { server });
                }
            }
            Kind::Wall => {
                let by_ms = self.random.random_range(-3_600_000..3_600_000);
                self.put(at_ms, Fault::Wall { server, by_ms });
            }
            Kind::Roles => self.change_roles(server / self.layout.servers_per_region(), None, at_ms),
            Kind::RemoveMember => {
                let per_region = self.layout.servers_per_region();
                self.change_roles(server / per_region, Some(server % per_region), at_ms);
            }
            Kind::MoveHome => {
                let to = self.region();
                self.put(at_ms, Fault::MoveHome { to });
            }
            Kind::MoveLead => {
                let to = self.region();
                self.put(at_ms, Fault::MoveLead { to });
            }
            Kind::LoseRegion => {
                let region = self.region();
                self.put(at_ms, Fault::LoseRegion { region });
            }
            Kind::Unheard => self.unheard(server, at_ms),
            Kind::Blackout => self.black_out(server, at_ms),
            Kind::Silence => self.silence(server, at_ms),
        }
    }

    /// Often at once, as supervisors do, so that an election that is under way is not over yet.
    fn restart_after_ms(&mut self) -> u64 {
        if self.random.random_bool(0.5) {
            self.random.random_range(1..400)
        } else {
            self.random.random_range(400..8_000)
        }
    }

    /// A crash, and others while the server recovers from it.
    fn crash_again(&mut self, server: usize, at_ms: u64) {
        let mut at_ms = at_ms;
        for _ in 0..self.random.random_range(2..5) {
            let restart_after_ms = self.random.random_range(1..300);
            let power = self.random.random_bool(0.8);
            self.put(at_ms, Fault::Crash { server, power, restart_after_ms });
            if self.random.random_bool(0.5) {
                let changes = self.random.random_range(0..40);
                self.put(at_ms, Fault::PowerCut { server, changes });
            }
            at_ms += restart_after_ms + self.random.random_range(1..1_500);
        }
    }

    fn rolling(&mut self, at_ms: u64, fault: impl Fn(usize) -> Fault) -> u64 {
        let mut at_ms = at_ms;
        for server in 0..self.layout.servers() {
            self.put(at_ms, fault(server));
            at_ms += self.random.random_range(1_500..2_500);
        }
        at_ms
    }

    fn change_roles(&mut self, region: usize, gone: Option<usize>, at_ms: u64) {
        if *self.weakened.entry(region).or_insert(Kind::Roles) != Kind::Roles {
            return;
        }
        let servers = 0..self.layout.servers_per_region();
        let mut voters: Vec<usize> = servers.filter(|server| Some(*server) != gone).collect();
        voters.shuffle(self.random);
        voters.truncate(self.random.random_range(2..=voters.len()));
        voters.sort_unstable();
        self.put(at_ms, Fault::Roles { region, voters, gone });
    }

    fn pause(&mut self, kind: Kind, server: usize, at_ms: u64) {
        let region = server / self.layout.servers_per_region();
        if kind == Kind::PauseRegion || self.layout.servers_per_region() == 1 {
            let until_ms = at_ms + self.random.random_range(1_000..7_000);
            if at_ms >= self.pause_from_ms {
                self.pause_from_ms = until_ms + BETWEEN_PAUSES_MS;
                self.put(at_ms, Fault::PauseRegion { region });
                self.put(until_ms, Fault::ResumeRegion { region });
            }
        } else {
            let until_ms = at_ms + self.random.random_range(50..6_000);
            self.put(at_ms, Fault::Pause { server });
            self.put(until_ms, Fault::Resume { server });
        }
    }

    /// The servers of a server's region, and all others.
    fn region_and_others(&self, server: usize) -> (Vec<usize>, Vec<usize>) {
        let region_of = |server: &usize| server / self.layout.servers_per_region();
        (0..self.layout.servers()).partition(|other| region_of(other) == region_of(&server))
    }

    /// Whom a fault of the network concerns: servers, or whole regions.
    fn sides(&mut self, kind: Kind, server: usize) -> (Vec<usize>, Vec<usize>) {
        let (all, per_region) = (self.layout.servers(), self.layout.servers_per_region());
        if kind == Kind::CutServers {
            let others: Vec<usize> = (0..all).filter(|other| *other != server).collect();
            let count = self.random.random_range(1..=others.len());
            return (vec![server], others.choose_multiple(self.random, count).copied().collect());
        }
        let (own, others) = self.region_and_others(server);
        if self.random.random_bool(0.6) {
            return (own, others);
        }
        let other = others.choose(self.random).copied().unwrap_or(server) / per_region;
        (own, (other * per_region..(other + 1) * per_region).collect())
    }

    fn cut(&mut self, kind: Kind, server: usize, at_ms: u64, until_ms: u64) {
        let (from, to) = self.sides(kind, server);
        // Between regions long enough, now and then, for leases to end.
        let until_ms =
            if kind == Kind::CutRegions { at_ms + self.random.random_range(500..30_000) } else { until_ms };
        let mut one_way = |from: &[usize], to: &[usize]| {
            for (at_ms, cut) in [(at_ms, true), (until_ms, false)] {
                let (from, to) = (from.to_vec(), to.to_vec());
                self.faults.push((at_ms, Fault::Cut { from, to, cut }));
            }
        };
        let ways = self.random.random_range(0..4);
        if ways != 0 {
            one_way(&from, &to);
        }
        if ways != 1 {
            one_way(&to, &from);
        }
    }

    /// Nothing gets through between the two for a time.
    fn cut_off(&mut self, own: &[usize], others: &[usize], at_ms: u64, until_ms: u64) {
        for (at_ms, cut) in [(at_ms, true), (until_ms, false)] {
            for (from, to) in [(own, others), (others, own)] {
                self.put(at_ms, Fault::Cut { from: from.to_vec(), to: to.to_vec(), cut });
            }
        }
    }

    /// A region is cut off for longer than a lease, and its disks are slow: what it must write down about that takes
    /// its time.
    fn trouble_region(&mut self, server: usize, at_ms: u64) {
        let (own, others) = self.region_and_others(server);
        let until_ms = at_ms + self.random.random_range(12_000..25_000);
        self.cut_off(&own, &others, at_ms, until_ms);
        for (at_ms, cut) in [(at_ms, true), (until_ms, false)] {
            for server in own.clone() {
                let sync_ms = if cut { self.random.random_range(2_000..6_000) } else { HEALTHY_SYNC_MS };
                self.put(at_ms, Fault::Disk { server, sync_ms });
            }
        }
    }

    /// A region hears the others late, and is then not heard itself for longer than a lease: the last answers to it
    /// come after all that it asked.
    fn unheard(&mut self, server: usize, at_ms: u64) {
        let (own, others) = self.region_and_others(server);
        let up_to_ms = self.random.random_range(1_000..4_000);
        let cut_ms = at_ms + self.random.random_range(2_000..8_000);
        let until_ms = cut_ms + self.random.random_range(12_000..20_000);
        self.put(at_ms, Fault::Delay { from: others.clone(), to: own.clone(), up_to_ms });
        self.put(cut_ms, Fault::Cut { from: own.clone(), to: others.clone(), cut: true });
        self.put(until_ms, Fault::Cut { from: own.clone(), to: others.clone(), cut: false });
        self.put(until_ms, Fault::Delay { from: others, to: own, up_to_ms: 0 });
    }

    /// A region is cut off, and before its lease has run out its servers lose their power: they tell their clients
    /// nothing.
    fn black_out(&mut self, server: usize, at_ms: u64) {
        let (own, others) = self.region_and_others(server);
        let off_ms = at_ms + self.random.random_range(3_000..6_000);
        let restart_after_ms = self.random.random_range(10_000..20_000);
        self.cut_off(&own, &others, at_ms, off_ms + restart_after_ms);
        for server in own {
            self.put(off_ms, Fault::Crash { server, power: true, restart_after_ms });
        }
    }

    /// A server is cut off, and loses its power about when it notices: it tells its clients nothing of either.
    fn silence(&mut self, server: usize, at_ms: u64) {
        let others: Vec<usize> = (0..self.layout.servers()).filter(|other| *other != server).collect();
        let off_ms = at_ms + self.random.random_range(200..1_200);
        let restart_after_ms = self.random.random_range(8_000..16_000);
        self.cut_off(&[server], &others, at_ms, off_ms + restart_after_ms);
        self.put(off_ms, Fault::Crash { server, power: true, restart_after_ms });
    }

    fn delay(&mut self, server: usize, at_ms: u64, until_ms: u64) {
        let kind = if self.layout.regions > 1 { Kind::CutRegions } else { Kind::CutServers };
        let (mut from, mut to) = self.sides(kind, server);
        if self.random.random_bool(0.5) {
            std::mem::swap(&mut from, &mut to);
        }
        let longest_ms = *[20, 300, 3_000].choose(self.random).unwrap_or(&300);
        let up_to_ms = self.random.random_range(10..longest_ms);
        self.put(at_ms, Fault::Delay { from: from.clone(), to: to.clone(), up_to_ms });
        self.put(until_ms, Fault::Delay { from, to, up_to_ms: 0 });
    }
}
