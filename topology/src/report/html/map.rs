//! Where the regions are, who votes, and the way of a write: a map if all coordinates are known, else
//! a schematic in which distance is round-trip time.

use super::svg::Svg;
use crate::layout::Layout;
use crate::plan::{Assessment, Plan};

const WIDTH: f64 = 960.0;
const HEIGHT_MAX_FEW: f64 = 480.0;
const HEIGHT_MAX_MANY: f64 = 680.0;
const MARGIN_X: f64 = 100.0;
const MARGIN_TOP: f64 = 50.0;
const MARGIN_BOTTOM: f64 = 85.0;

/// How much a map may be stretched from south to north: most regions lie in a narrow band.
const STRETCH_MAX: f64 = 2.0;

/// Regions nearer than this are drawn apart, for their labels; many regions have less room.
const APART_FEW: f64 = 165.0;
const APART_MANY: f64 = 115.0;
const FEW: usize = 8;

/// Up to so many regions the round trips of all pairs are written, of more those to the leader; of many
/// below their names, which then say nothing else.
const ALL_PAIRS_MAX: usize = 4;

fn height_max(regions: usize) -> f64 {
    if regions <= FEW { HEIGHT_MAX_FEW } else { HEIGHT_MAX_MANY }
}

/// The drawing, and whether it is a map.
pub(super) fn draw(plan: &Plan, best: &Assessment) -> (String, bool) {
    let world = &plan.world;
    let shown = shown_regions(plan, &best.layout);
    let coordinates: Option<Vec<[f64; 2]>> = shown.iter().map(|region| world.coordinates[*region]).collect();
    let is_map = coordinates.is_some() && shown.len() > 1;
    let round_trips = || -> Vec<Vec<f64>> {
        shown.iter().map(|a| shown.iter().map(|b| world.model.rtt_ms[*a][*b]).collect()).collect()
    };
    let places = match &coordinates {
        Some(coordinates) => fitted(&projected(coordinates), STRETCH_MAX),
        None => fitted(&lying(&embedded(&round_trips())), 1.0),
    };
    let places = apart(places);
    let lowest = places.iter().map(|(_, y)| *y).fold(0.0, f64::max);
    let height = lowest + MARGIN_BOTTOM;
    let mut svg = Svg::new(WIDTH, height);
    svg.rect((0.5, 0.5), (WIDTH - 1.0, height - 1.0), "sea");
    ways(&mut svg, plan, &best.layout, &shown, &places);
    for (region, place) in shown.iter().zip(&places) {
        node(&mut svg, &best.layout, *region, *place);
        names(&mut svg, plan, &best.layout, *region, *place, shown.len() > FEW);
    }
    let label = format!(
        "Regions with their voters; {} leads; lines are round-trip times",
        world.model.regions[best.layout.leader]
    );
    (svg.finish(&label), is_map)
}

/// Regions with servers or clients.
fn shown_regions(plan: &Plan, layout: &Layout) -> Vec<usize> {
    let served = &plan.world.space.served;
    (0..served.len()).filter(|region| layout.servers(*region) > 0 || served[*region]).collect()
}

/// Regions whose answer a commit waits for, as far as medians go: the nearest quorum.
fn quorum(plan: &Plan, layout: &Layout) -> Vec<usize> {
    let model = &plan.world.model;
    let commit_ms = model.commit_ms(layout);
    let answers_by = |region: &usize| {
        *region == layout.leader || model.rtt_ms[layout.leader][*region] + model.fsync_ms <= commit_ms + 1e-9
    };
    layout.voting_regions().filter(answers_by).collect()
}

fn ways(svg: &mut Svg, plan: &Plan, layout: &Layout, shown: &[usize], places: &[(f64, f64)]) {
    let model = &plan.world.model;
    let quorum = quorum(plan, layout);
    let mut labels = Vec::new();
    for (i, a) in shown.iter().enumerate() {
        for (j, b) in shown.iter().enumerate().skip(i + 1) {
            let to_leader = *a == layout.leader || *b == layout.leader;
            if !to_leader && shown.len() > ALL_PAIRS_MAX {
                continue;
            }
            let of_quorum = to_leader && quorum.contains(a) && quorum.contains(b);
            svg.line(places[i], places[j], if of_quorum { "way quorum" } else { "way" });
            if shown.len() <= FEW {
                labels.push((places[i], places[j], model.rtt_ms[*a][*b]));
            }
        }
    }
    let mut taken: Vec<Space> = places.iter().flat_map(|place| Space::of_region(*place)).collect();
    for (from, to, ms) in labels {
        let text = format!("{ms:.0} ms");
        let label = Space::of_label(from, to, &text, &taken);
        svg.rect(label.corner, label.size, "plate");
        let ((x, y), (width, _)) = (label.corner, label.size);
        svg.text((x + width / 2.0, y + 16.0), "rtt middle", &text);
        taken.push(label);
    }
}

/// What a label or a region covers.
#[derive(Clone, Copy)]
struct Space {
    corner: (f64, f64),
    size: (f64, f64),
}

impl Space {
    /// The circle and the two lines below it.
    fn of_region((x, y): (f64, f64)) -> [Space; 2] {
        [
            Space { corner: (x - 34.0, y - 34.0), size: (68.0, 68.0) },
            Space { corner: (x - 75.0, y + 34.0), size: (150.0, 34.0) },
        ]
    }

    /// A place on the line that covers as little as can be, the middle first.
    fn of_label(from: (f64, f64), to: (f64, f64), text: &str, taken: &[Space]) -> Space {
        let size = (7.5 * text.len() as f64 + 10.0, 22.0);
        let at = |along: f64| {
            let (x, y) = (from.0 + along * (to.0 - from.0), from.1 + along * (to.1 - from.1));
            Space { corner: (x - size.0 / 2.0, y - size.1 / 2.0), size }
        };
        let candidates = [0.5, 0.44, 0.56, 0.38, 0.62, 0.32, 0.68, 0.26, 0.74].map(at);
        let covered = |space: &Space| taken.iter().map(|other| space.overlap(other)).sum::<f64>();
        let least = candidates.into_iter().min_by(|a, b| covered(a).total_cmp(&covered(b)));
        least.unwrap_or_else(|| at(0.5))
    }

    fn overlap(&self, other: &Space) -> f64 {
        let along = |(a, width): (f64, f64), (b, other_width): (f64, f64)| {
            ((a + width).min(b + other_width) - a.max(b)).max(0.0)
        };
        along((self.corner.0, self.size.0), (other.corner.0, other.size.0))
            * along((self.corner.1, self.size.1), (other.corner.1, other.size.1))
    }
}

/// A region: one dot per voter, an empty one per observer, a ring for the leader.
fn node(svg: &mut Svg, layout: &Layout, region: usize, (x, y): (f64, f64)) {
    let leads = region == layout.leader;
    let voters = usize::from(layout.voters[region]);
    let servers = usize::from(layout.servers(region));
    let class = match (leads, voters > 0) {
        (true, _) => "region leader",
        (false, true) => "region voting",
        (false, false) => "region",
    };
    let radius = match servers {
        0 | 1 if voters == 0 => 14.0,
        _ if leads => 31.0,
        _ => 27.0,
    };
    svg.circle((x, y), radius, class);
    for i in 0..servers.min(12) {
        let (dot_x, dot_y) = dot(i, servers.min(12));
        svg.circle((x + dot_x, y + dot_y), 4.6, if i < voters { "voter" } else { "observer" });
    }
}

/// The region's name, and its part; of many regions the round trip to the leader instead.
fn names(svg: &mut Svg, plan: &Plan, layout: &Layout, region: usize, (x, y): (f64, f64), many: bool) {
    let model = &plan.world.model;
    let (leads, voters) = (region == layout.leader, layout.voters[region]);
    let servers = layout.servers(region);
    let below = if servers > 1 || voters > 0 { y + 48.0 } else { y + 32.0 };
    svg.text((x, below), if many { "place middle" } else { "name middle" }, &model.regions[region]);
    if many {
        let text =
            if leads { "leads".to_owned() } else { format!("{:.0} ms", model.rtt_ms[layout.leader][region]) };
        return svg.text((x, below + 15.0), "small middle", &text);
    }
    let role = match (leads, model.witness[region], voters) {
        (true, _, _) => "leads",
        (_, true, 1..) => "witness",
        (_, _, 1..) => "votes",
        _ if servers > 0 => "observes",
        _ => "clients only",
    };
    let share = model.shares[region];
    let writes =
        if share > 0.0 { format!("{role}, {:.0} % of writes", 100.0 * share) } else { role.to_owned() };
    svg.text((x, below + 16.0), "small middle", &writes);
}

/// The `i`-th of `count` dots in a region: one in the middle, or a ring, or two rings.
fn dot(i: usize, count: usize) -> (f64, f64) {
    if count == 1 {
        return (0.0, 0.0);
    }
    let (in_ring, of, radius) =
        if count <= 6 || i < 6 { (i, count.min(6), 13.0) } else { (i - 6, count - 6, 5.0) };
    let angle = std::f64::consts::TAU * in_ring as f64 / of as f64 - std::f64::consts::FRAC_PI_2;
    (radius * angle.cos(), radius * angle.sin())
}

/// Longitude and latitude on a plane, cut where the largest part of the earth is empty.
fn projected(coordinates: &[[f64; 2]]) -> Vec<(f64, f64)> {
    let mut longitudes: Vec<f64> = coordinates.iter().map(|place| place[1]).collect();
    longitudes.sort_by(f64::total_cmp);
    let gap = |i: usize| {
        let next = longitudes.get(i + 1).copied().unwrap_or(longitudes[0] + 360.0);
        next - longitudes[i]
    };
    let widest = (0..longitudes.len()).max_by(|a, b| gap(*a).total_cmp(&gap(*b))).unwrap_or(0);
    let first = longitudes[(widest + 1) % longitudes.len()];
    let middle = coordinates.iter().map(|place| place[0]).sum::<f64>() / coordinates.len() as f64;
    let narrow = middle.to_radians().cos().max(0.3);
    coordinates.iter().map(|[lat, lon]| (narrow * (lon - first).rem_euclid(360.0), -lat)).collect()
}

/// Places whose distances are the round trips, as well as a plane allows: majorization of the stress
/// (de Leeuw 1977) from a circle.
fn embedded(rtt_ms: &[Vec<f64>]) -> Vec<(f64, f64)> {
    let count = rtt_ms.len();
    let mut places: Vec<(f64, f64)> = (0..count)
        .map(|i| {
            let angle = std::f64::consts::TAU * i as f64 / count as f64;
            (100.0 * angle.cos(), 60.0 * angle.sin())
        })
        .collect();
    for _ in 0..300 {
        let moved = (0..count).map(|i| {
            let (mut x, mut y) = (0.0, 0.0);
            for j in (0..count).filter(|j| *j != i) {
                let (dx, dy) = (places[i].0 - places[j].0, places[i].1 - places[j].1);
                let distance = dx.hypot(dy).max(1e-6);
                x += places[j].0 + rtt_ms[i][j] * dx / distance;
                y += places[j].1 + rtt_ms[i][j] * dy / distance;
            }
            let others = (count - 1).max(1) as f64;
            (x / others, y / others)
        });
        places = moved.collect();
    }
    places
}

/// Turned so that the longer side lies across.
fn lying(places: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if extent(places, |p| p.1).1 > extent(places, |p| p.0).1 {
        places.iter().map(|(x, y)| (*y, -*x)).collect()
    } else {
        places.to_vec()
    }
}

/// Where the places begin in one direction, and how far they reach.
fn extent(places: &[(f64, f64)], of: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let low = places.iter().map(of).fold(f64::INFINITY, f64::min);
    let high = places.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    (low, (high - low).max(1e-6))
}

/// Scaled into the drawing, stretched in height by `stretch_max` at most.
fn fitted(places: &[(f64, f64)], stretch_max: f64) -> Vec<(f64, f64)> {
    let ((left, wide), (top, high)) = (extent(places, |p| p.0), extent(places, |p| p.1));
    let (room_x, room_y) = (WIDTH - 2.0 * MARGIN_X, height_max(places.len()) - MARGIN_TOP - MARGIN_BOTTOM);
    let scale_x = (room_x / wide).min(room_y / high * stretch_max);
    let scale_y = (room_y / high).min(scale_x * stretch_max);
    let pad_x = (room_x - scale_x * wide) / 2.0;
    let place =
        |(x, y): &(f64, f64)| (MARGIN_X + pad_x + scale_x * (x - left), MARGIN_TOP + scale_y * (y - top));
    places.iter().map(place).collect()
}

/// Moves regions apart that would cover each other.
fn apart(mut places: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let highest = height_max(places.len()) - MARGIN_BOTTOM;
    let least = if places.len() <= FEW { APART_FEW } else { APART_MANY };
    for _ in 0..200 {
        for i in 0..places.len() {
            for j in i + 1..places.len() {
                let (dx, dy) = (places[j].0 - places[i].0, places[j].1 - places[i].1);
                let distance = dx.hypot(dy);
                if distance >= least {
                    continue;
                }
                // Regions in one place part sideways.
                let (ux, uy) = if distance < 1e-3 { (1.0, 0.1) } else { (dx / distance, dy / distance) };
                let push = (least - distance) / 2.0;
                places[i] = (places[i].0 - push * ux, places[i].1 - push * uy);
                places[j] = (places[j].0 + push * ux, places[j].1 + push * uy);
            }
        }
        for (x, y) in &mut places {
            *x = x.clamp(MARGIN_X * 0.8, WIDTH - MARGIN_X * 0.8);
            *y = y.clamp(MARGIN_TOP * 0.8, highest);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schematic_keeps_the_round_trips_in_proportion() {
        let rtt_ms = vec![vec![0.0, 30.0, 40.0], vec![30.0, 0.0, 50.0], vec![40.0, 50.0, 0.0]];
        let places = embedded(&rtt_ms);
        let distance = |a: usize, b: usize| (places[a].0 - places[b].0).hypot(places[a].1 - places[b].1);
        for (a, b, ms) in [(0, 1, 30.0), (0, 2, 40.0), (1, 2, 50.0)] {
            assert!((distance(a, b) - ms).abs() < 0.5, "{} for {ms}", distance(a, b));
        }
    }

    #[test]
    fn regions_do_not_cover_each_other() {
        let places = apart(vec![(300.0, 200.0), (300.0, 200.0), (310.0, 205.0), (800.0, 200.0)]);
        for i in 0..places.len() {
            for j in i + 1..places.len() {
                let distance = (places[i].0 - places[j].0).hypot(places[i].1 - places[j].1);
                assert!(distance > 0.9 * APART_FEW, "{i} {j}: {distance}");
            }
        }
    }

    #[test]
    fn a_map_is_cut_where_nobody_is() {
        let tokyo_and_oregon = projected(&[[35.7, 139.7], [45.8, -119.7]]);
        let wide = tokyo_and_oregon[1].0 - tokyo_and_oregon[0].0;
        assert!(wide > 0.0 && wide < 110.0, "{wide}: over the Pacific, not round the world");
    }
}
