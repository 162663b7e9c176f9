//! The figures with axes: the Pareto front, writes before and after losses, the unavailability.

use super::svg::{Scale, Svg};
use crate::layout::Design;
use crate::plan::{Assessment, Forecast, Plan, Situation};
use crate::report::text::per_year;

const WIDTH: f64 = 960.0;
const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// Layouts in the drawing: the first ones and the whole front.
const POINTS_MAX: usize = 150;

/// Client regions and situations that get bars.
const CLIENTS_MAX: usize = 8;
const SITUATIONS_MAX: usize = 9;

/// Every layout that meets the requirements: mean write across, time without a quorum up.
pub(super) fn front(plan: &Plan) -> String {
    let fitting: Vec<(usize, &Assessment)> = plan
        .layouts
        .iter()
        .enumerate()
        .filter(|(i, layout)| layout.violations.is_empty() && (*i < POINTS_MAX || layout.on_front))
        .collect();
    let (left, right, top, bottom) = (110.0, WIDTH - 30.0, 24.0, 380.0);
    let mut svg = Svg::new(WIDTH, 440.0);
    let decades = |layout: &Assessment| (layout.unavailability * SECONDS_PER_YEAR).max(1e-4).log10();
    let span = |of: &dyn Fn(&Assessment) -> f64, pad: f64| {
        let low = fitting.iter().map(|(_, layout)| of(layout)).fold(f64::INFINITY, f64::min);
        let high = fitting.iter().map(|(_, layout)| of(layout)).fold(f64::NEG_INFINITY, f64::max);
        (low - (high - low) * pad, high + (high - low) * pad)
    };
    let (low_ms, high_ms) = span(&|layout| layout.mean_write_ms, 0.06);
    let across = Scale { from: (low_ms - 1.0, high_ms + 1.0), to: (left, right) };
    // A whole decade at least.
    let (low, high) = span(&decades, 0.08);
    let up = Scale { from: (low.min(low.round() - 0.2), high.max(low.round() + 1.1)), to: (bottom, top) };
    for tick in across.ticks(8) {
        svg.line((across.at(tick), top), (across.at(tick), bottom), "grid");
        svg.text((across.at(tick), bottom + 20.0), "small middle", &format!("{tick:.0}"));
    }
    let (low, high) = up.from;
    for decade in low.ceil() as i64..=high.floor() as i64 {
        let y = up.at(decade as f64);
        svg.line((left, y), (right, y), "grid");
        svg.text((left - 8.0, y + 4.0), "small end", &per_year(10f64.powi(decade as i32) / SECONDS_PER_YEAR));
    }
    svg.line((left, bottom), (right, bottom), "axis");
    svg.line((left, top), (left, bottom), "axis");
    svg.text(((left + right) / 2.0, bottom + 46.0), "label middle", "mean write, ms");
    svg.text((left, top - 9.0), "label", "without a quorum, per year (logarithmic)");
    let place = |layout: &Assessment| (across.at(layout.mean_write_ms), up.at(decades(layout)));
    // The front on top of the others, the best on top of all.
    for on_front in [false, true] {
        for (_, layout) in fitting.iter().filter(|(_, layout)| layout.on_front == on_front) {
            mark(&mut svg, place(layout), layout, if on_front { "front" } else { "beaten" });
        }
    }
    labels(&mut svg, &fitting, &place, plan.recommended);
    svg.finish("Mean write and time without a quorum of the layouts compared")
}

/// Circle, square and triangle for flat, hierarchical and two-level layouts.
fn mark(svg: &mut Svg, (x, y): (f64, f64), layout: &Assessment, class: &str) {
    match layout.layout.design {
        Design::Flat => svg.circle((x, y), 6.0, class),
        Design::Hier => svg.rect((x - 5.5, y - 5.5), (11.0, 11.0), class),
        Design::Two => svg.polygon(&[(x, y - 7.5), (x + 7.0, y + 5.0), (x - 7.0, y + 5.0)], class),
    }
}

/// The numbers of the table, on the front: layouts in one place share a label.
fn labels(
    svg: &mut Svg,
    fitting: &[(usize, &Assessment)],
    place: &dyn Fn(&Assessment) -> (f64, f64),
    recommended: Option<usize>,
) {
    let mut groups: Vec<((f64, f64), Vec<usize>)> = Vec::new();
    let named = |(i, layout): &&(usize, &Assessment)| layout.on_front || recommended == Some(*i);
    for (i, layout) in fitting.iter().filter(named) {
        let (x, y) = place(layout);
        let near = |(other, _): &&mut ((f64, f64), Vec<usize>)| {
            (other.0 - x).abs() < 45.0 && (other.1 - y).abs() < 13.0
        };
        match groups.iter_mut().find(near) {
            Some((at, numbers)) => {
                at.0 = at.0.max(x);
                numbers.push(*i);
            }
            None => groups.push(((x, y), vec![*i])),
        }
    }
    for ((x, y), numbers) in groups {
        let best = recommended.is_some_and(|best| numbers.contains(&best));
        if let Some((_, layout)) = fitting.iter().find(|(i, _)| best && recommended == Some(*i)) {
            svg.circle(place(layout), 13.0, "ring");
        }
        let shown: Vec<String> = numbers.iter().take(4).map(|number| format!("#{number}")).collect();
        let more = if numbers.len() > 4 { ", ..." } else { "" };
        let text = format!("{}{more}", shown.join(", "));
        let right = x < WIDTH - 150.0;
        let at = if right { (x + 17.0, y + 4.0) } else { (x - 17.0, y + 4.0) };
        let class = match (best, right) {
            (true, true) => "strong",
            (true, false) => "strong end",
            (false, true) => "small",
            (false, false) => "small end",
        };
        svg.text(at, class, &text);
    }
}

/// Writes of each client region, now and after every loss: the formula's median, and how far the p99
/// reaches.
pub(super) fn writes(plan: &Plan, forecast: &Forecast) -> String {
    let names = &plan.world.model.regions;
    let clients = largest_clients(plan);
    let mut situations: Vec<(String, Option<usize>, Option<&Situation>)> =
        vec![("now".to_owned(), None, Some(&forecast.now))];
    let voting = plan.best().map_or(Vec::new(), |best| best.layout.voting_regions().collect::<Vec<_>>());
    for lost in voting {
        let after = forecast.after_loss[lost].as_ref();
        let text = match after {
            Some(after) if after.leader != forecast.now.leader => {
                format!("{} lost, {} leads", names[lost], names[after.leader])
            }
            _ => format!("{} lost", names[lost]),
        };
        situations.push((text, Some(lost), after));
    }
    situations.truncate(SITUATIONS_MAX);
    let longest = situations.iter().filter_map(|(_, _, situation)| *situation);
    let longest = longest.flat_map(|situation| situation.clients.iter().flatten());
    let longest_ms = longest.map(|client| client.write.p99.max(client.write.typical)).fold(1.0, f64::max);
    let (row, head) = (21.0, 30.0);
    let block = head + row * situations.len() as f64 + 16.0;
    let mut svg = Svg::new(WIDTH, block * clients.len() as f64 + 30.0);
    let across = Scale { from: (0.0, longest_ms), to: (250.0, WIDTH - 125.0) };
    for (i, client) in clients.iter().enumerate() {
        let top = block * i as f64;
        let share = 100.0 * plan.world.model.shares[*client];
        svg.text((0.0, top + 18.0), "name", &names[*client]);
        svg.text((244.0, top + 18.0), "small end", &format!("{share:.0} % of the writes"));
        for tick in across.ticks(6) {
            let bottom = top + head + row * situations.len() as f64;
            svg.line((across.at(tick), top + head - 6.0), (across.at(tick), bottom), "grid");
        }
        for (j, (what, lost, situation)) in situations.iter().enumerate() {
            let y = top + head + row * j as f64;
            svg.text((244.0, y + 12.0), "small end", what);
            bar(&mut svg, &across, y, *client, *lost, *situation);
        }
    }
    let bottom = block * clients.len() as f64;
    for tick in across.ticks(6) {
        svg.text((across.at(tick), bottom + 8.0), "small middle", &format!("{tick:.0}"));
    }
    svg.text((WIDTH - 118.0, bottom + 8.0), "small", "ms");
    svg.finish("Write latency of every client region now and after the loss of each region")
}

/// The regions that write most.
pub(super) fn largest_clients(plan: &Plan) -> Vec<usize> {
    let shares = &plan.world.model.shares;
    let mut clients: Vec<usize> = plan.world.model.client_regions().collect();
    clients.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
    clients.truncate(CLIENTS_MAX);
    clients
}

fn bar(
    svg: &mut Svg,
    across: &Scale,
    y: f64,
    client: usize,
    lost: Option<usize>,
    situation: Option<&Situation>,
) {
    let start = across.at(0.0);
    let Some(situation) = situation else {
        return svg.text((start + 6.0, y + 12.0), "alarm", "writes stop");
    };
    let Some(latency) = situation.clients[client].map(|client| client.write) else {
        return svg.text((start + 6.0, y + 12.0), "small", "its clients are lost with it");
    };
    let (typical, tail) = (across.at(latency.typical), across.at(latency.p99.max(latency.typical)));
    svg.rect((start, y + 1.0), (tail - start, 14.0), "tail");
    let class = if lost.is_none() { "bar now" } else { "bar lost" };
    svg.rect((start, y + 1.0), (typical - start, 14.0), class);
    svg.text((tail + 6.0, y + 12.0), "small", &format!("{:.1} ({:.1})", latency.typical, latency.p99));
}

/// What the unavailability is made of, on a logarithmic scale, with the naive figure.
pub(super) fn budget(plan: &Plan, best: &Assessment) -> String {
    let mut rows: Vec<(String, f64, &str)> =
        plan.budget.iter().map(|item| (item.cause.clone(), item.unavailability, "bar lost")).collect();
    rows.push(("all together".to_owned(), best.unavailability, "bar now"));
    rows.push(("if servers failed independently".to_owned(), best.independent_unavailability, "tail"));
    let seconds = |share: f64| share * SECONDS_PER_YEAR;
    let shown = |share: f64| seconds(share) >= 1e-5;
    let values =
        || rows.iter().map(|(_, share, _)| *share).filter(|share| shown(*share)).map(|s| seconds(s).log10());
    let low = values().fold(f64::INFINITY, f64::min).min(0.0).floor() - 0.3;
    let high = values().fold(f64::NEG_INFINITY, f64::max).max(low + 1.0) + 0.1;
    let across = Scale { from: (low, high), to: (250.0, WIDTH - 110.0) };
    let row = 28.0;
    let bottom = row * rows.len() as f64 + 8.0;
    let mut svg = Svg::new(WIDTH, bottom + 28.0);
    for decade in low.ceil() as i64..=high.floor() as i64 {
        let x = across.at(decade as f64);
        svg.line((x, 0.0), (x, bottom), "grid");
        svg.text((x, bottom + 18.0), "small middle", &per_year(10f64.powi(decade as i32) / SECONDS_PER_YEAR));
    }
    for (i, (cause, share, class)) in rows.iter().enumerate() {
        let y = row * i as f64 + 5.0;
        svg.text((244.0, y + 14.0), "small end", cause);
        let end = if shown(*share) { across.at(seconds(*share).log10()) } else { across.to.0 };
        svg.rect((across.to.0, y), (end - across.to.0, 19.0), class);
        svg.text((end + 7.0, y + 14.0), "small", &per_year(*share));
    }
    svg.finish("Time without a quorum per year, by cause")
}
