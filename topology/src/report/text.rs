//! The plan for people: what to do first, then what it was chosen from, then the timeouts and
//! their reasons, then what is doubtful about the input.

use std::fmt::Write as _;

use crate::diagnostic::{Diagnostic, Level};
use crate::layout::{Design, Layout};
use crate::plan::{Assessment, Forecast, Homes, Infeasible, Latency, Objective, Plan, Situation};
use crate::timing::Timing;

/// Rows of the table beside those of the Pareto front.
const ROWS_BEST: usize = 8;
const ROWS_MAX: usize = 20;

/// Client regions that get a column each.
const CLIENT_COLUMNS_MAX: usize = 6;

/// Regions that get a row each.
const REGION_ROWS_MAX: usize = 12;

/// Findings printed of each level.
const FINDINGS_MAX: usize = 12;

const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// The whole report.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    match (plan.best(), &plan.infeasible) {
        (Some(best), _) => recommendation(&mut out, plan, best),
        (None, Some(infeasible)) => refusal(&mut out, infeasible),
        (None, None) => {}
    }
    if plan.change.is_some() {
        line(&mut out, "");
        out.push_str(&super::running(plan));
    }
    line(&mut out, "");
    table(&mut out, plan);
    if let Some(forecast) = &plan.forecast {
        line(&mut out, "");
        operations(&mut out, plan, forecast);
        line(&mut out, "");
        situations(&mut out, plan, forecast);
    }
    if plan.recommended.is_some() {
        line(&mut out, "");
        budget(&mut out, plan);
    }
    if let Some(timing) = &plan.timing {
        line(&mut out, "");
        timing_table(&mut out, timing);
    }
    if !plan.diagnostics.is_empty() {
        line(&mut out, "");
        out.push_str(&findings(&plan.diagnostics));
    }
    out
}

/// Findings, worst first; of many equal ones the first few.
pub fn findings(diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for level in [Level::Error, Level::Warning, Level::Note] {
        let of_level: Vec<&Diagnostic> =
            diagnostics.iter().filter(|finding| finding.level == level).collect();
        for finding in of_level.iter().take(FINDINGS_MAX) {
            line(&mut out, finding);
        }
        if of_level.len() > FINDINGS_MAX {
            line(
                &mut out,
                format_args!("... and {} more findings of level {level}", of_level.len() - FINDINGS_MAX),
            );
        }
    }
    out
}

/// Two layouts beside each other, figure by figure.
pub fn comparison(plan: &Plan, a: &Assessment, b: &Assessment) -> String {
    let model = &plan.world.model;
    let mut rows = vec![["", "A", "B", "B - A"].map(str::to_owned).to_vec()];
    let mut figure = |name: String, x: f64, y: f64| {
        rows.push(vec![name, format!("{x:.1}"), format!("{y:.1}"), format!("{:+.1}", y - x)]);
    };
    figure("commit ms".to_owned(), a.commit_ms, b.commit_ms);
    for client in model.client_regions() {
        let name = &model.regions[client];
        figure(format!("write {name} ms"), a.write[client].typical, b.write[client].typical);
        figure(
            format!("write {name} p99 ms"),
            a.write[client].percentiles.p99,
            b.write[client].percentiles.p99,
        );
    }
    figure("mean write ms".to_owned(), a.mean_write_ms, b.mean_write_ms);
    figure("worst write ms".to_owned(), a.worst_write_ms, b.worst_write_ms);
    for lost in 0..model.regions.len() {
        let after = |assessment: &Assessment| assessment.after_loss[lost].map(|after| after.mean_write_ms);
        let show = |ms: Option<f64>| ms.map_or("stops".to_owned(), |ms| format!("{ms:.1}"));
        let (x, y) = (after(a), after(b));
        let difference = x.zip(y).map_or("-".to_owned(), |(x, y)| format!("{:+.1}", y - x));
        rows.push(vec![
            format!("mean write without {} ms", model.regions[lost]),
            show(x),
            show(y),
            difference,
        ]);
    }
    let counts = |name: &str, x: usize, y: usize| {
        vec![name.to_owned(), x.to_string(), y.to_string(), format!("{:+}", y as i64 - x as i64)]
    };
    rows.push(counts("regions survived", a.survives_regions, b.survives_regions));
    rows.push(counts("WAN copies per write", a.wan_copies_per_write, b.wan_copies_per_write));
    rows.push(counts("any voters that may fail", a.quorum.resilience, b.quorum.resilience));
    if let Some((x, y)) = a.cost_per_month.zip(b.cost_per_month) {
        rows.push(vec![
            "cost a month".to_owned(),
            format!("{x:.2}"),
            format!("{y:.2}"),
            format!("{:+.2}", y - x),
        ]);
    }
    rows.push(counts("voters", a.layout.voter_count(), b.layout.voter_count()));
    rows.push(vec![
        "unavailable per year".to_owned(),
        per_year(a.unavailability),
        per_year(b.unavailability),
        format!("x {:.2}", b.unavailability / a.unavailability),
    ]);
    let mut out = String::new();
    line(&mut out, format_args!("A: {}", a.layout.display(&model.regions)));
    line(&mut out, format_args!("B: {}", b.layout.display(&model.regions)));
    line(&mut out, "");
    aligned(&mut out, &rows);
    out
}

fn recommendation(out: &mut String, plan: &Plan, best: &Assessment) {
    let model = &plan.world.model;
    let names = &model.regions;
    let title = if plan.name.is_empty() { "Plan".to_owned() } else { format!("Plan {}", plan.name) };
    line(out, format_args!("{title}: {}", sentence(&best.layout, names)));
    let clients: Vec<usize> = model.client_regions().collect();
    let mut writes: Vec<String> = clients
        .iter()
        .take(CLIENT_COLUMNS_MAX)
        .map(|client| {
            let write = &best.write[*client];
            format!("{:.1} ms in {} (p99 {:.1})", write.typical, names[*client], write.percentiles.p99)
        })
        .collect();
    if clients.len() > CLIENT_COLUMNS_MAX {
        writes.push(format!("at most {:.1} ms elsewhere", best.worst_write_ms));
    }
    line(out, format_args!("  A write takes {}.", writes.join(", ")));
    let least = match plan.objective {
        Objective::Mean => String::new(),
        other => format!(" {:.1} ms by `{other}`,", best.objective_ms(other)),
    };
    let considered = plan.considered;
    let rest = match plan.gap_ms {
        gap_ms if gap_ms > 0.0 => format!("no other of {considered} layouts has {gap_ms:.1} ms less"),
        _ => format!("the least of {considered} layouts"),
    };
    line(out, format_args!("  {:.1} ms on average;{least} {rest}.", best.mean_write_ms));
    local_commits(out, plan, best);
    after_loss(out, plan, best);
    line(
        out,
        format_args!(
            "  Without a quorum for {} a year (servers failing independently: {}).",
            per_year(best.unavailability),
            per_year(best.independent_unavailability)
        ),
    );
    traffic(out, plan, best);
    let room: Vec<String> =
        plan.world.room(&best.layout).iter().map(|(what, room)| format!("{what}: {room:.1}")).collect();
    if !room.is_empty() {
        line(out, format_args!("  Room below the bounds, as the quorum may move away: {}.", room.join("; ")));
    }
    if let Some(homes) = &plan.homes {
        line(
            out,
            format_args!(
                "  One home per client region instead of one leader: {:.1} ms on average, {:.1} less{}.",
                homes.mean_write_ms,
                best.mean_write_ms - homes.mean_write_ms,
                elsewhere(homes, &model.shares, names)
            ),
        );
    }
}

/// The client regions whose subtrees are homed in another region.
fn elsewhere(homes: &Homes, shares: &[f64], names: &[String]) -> String {
    let away =
        homes.home.iter().enumerate().filter(|(client, home)| shares[*client] > 0.0 && client != *home);
    let away: Vec<String> =
        away.map(|(client, home)| format!("{} in {}", names[client], names[*home])).collect();
    if away.is_empty() { String::new() } else { format!(" ({})", away.join(", ")) }
}

fn traffic(out: &mut String, plan: &Plan, best: &Assessment) {
    let traffic = &plan.world.traffic;
    let cost = best.cost_per_month.map(|cost| format!("; {cost:.2} a month")).unwrap_or_default();
    line(
        out,
        format_args!(
            "  {} copies of a write between regions: {:.0} kB/s at {} writes/s of {} bytes{cost}.",
            best.wan_copies_per_write, best.wan_kb_per_s, traffic.writes_per_s, traffic.write_bytes
        ),
    );
}

pub(super) fn sentence(layout: &Layout, names: &[String]) -> String {
    let design = match layout.design {
        Design::Flat => "one flat ensemble",
        Design::Hier => "one ensemble with a group per region",
        Design::Two => "an ensemble per region under a global group",
    };
    let list = |counts: &[u8]| {
        let some: Vec<String> = counts
            .iter()
            .zip(names)
            .filter(|(count, _)| **count > 0)
            .map(|(count, name)| format!("{name} {count}"))
            .collect();
        some.join(", ")
    };
    let mut text = format!("{design}, led from {}; voters: {}", names[layout.leader], list(&layout.voters));
    let mut observers: Vec<u8> = layout.observers.iter().copied().filter(|count| *count > 0).collect();
    let regions = observers.len();
    observers.dedup();
    match observers.as_slice() {
        [] => {}
        [each] if regions > CLIENT_COLUMNS_MAX => {
            let _ = write!(text, "; observers: {each} in each of {regions} other regions");
        }
        _ => {
            let _ = write!(text, "; observers: {}", list(&layout.observers));
        }
    }
    text
}

fn local_commits(out: &mut String, plan: &Plan, best: &Assessment) {
    let model = &plan.world.model;
    let with = model.mean_over_clients(|client| best.write[client].with_local_commits);
    if with > best.mean_write_ms + 0.05 {
        line(
            out,
            format_args!(
                "  Meridian commits a global write twice more in the client's region: {with:.1} ms on average with these."
            ),
        );
    }
}

fn after_loss(out: &mut String, plan: &Plan, best: &Assessment) {
    let names = &plan.world.model.regions;
    let voting: Vec<usize> = best.layout.voting_regions().collect();
    let fatal: Vec<&str> = voting
        .iter()
        .filter(|lost| best.after_loss[**lost].is_none())
        .map(|lost| names[*lost].as_str())
        .collect();
    if !fatal.is_empty() {
        return line(out, format_args!("  Writes stop when {} is lost.", fatal.join(" or ")));
    }
    let worst = voting
        .iter()
        .filter_map(|lost| best.after_loss[*lost].map(|after| (*lost, after)))
        .max_by(|a, b| a.1.mean_write_ms.total_cmp(&b.1.mean_write_ms));
    if let Some((lost, after)) = worst {
        line(
            out,
            format_args!(
                "  Survives the loss of any {}; at worst {:.1} ms on average ({} lost, {} leads).",
                regions(best.survives_regions),
                after.mean_write_ms,
                names[lost],
                names[after.leader]
            ),
        );
    }
}

fn regions(count: usize) -> String {
    if count == 1 { "region".to_owned() } else { format!("{count} regions") }
}

fn refusal(out: &mut String, infeasible: &Infeasible) {
    let Some((least, others)) = infeasible.relaxations.split_first() else {
        let none = if infeasible.relaxations_searched {
            "no change of one key helps, nor of two: add regions"
        } else {
            "there are too many layouts to search for the least relaxation: name fewer regions"
        };
        return line(out, format_args!("Infeasible because {}; {none}.", infeasible.reason));
    };
    line(out, format_args!("Infeasible because {}; the least relaxation is {least}.", infeasible.reason));
    for other in others {
        line(out, format_args!("  or {other}"));
    }
}

fn table(out: &mut String, plan: &Plan) {
    let model = &plan.world.model;
    let clients: Vec<usize> = model.client_regions().take(CLIENT_COLUMNS_MAX + 1).collect();
    let shown_clients: &[usize] = if clients.len() > CLIENT_COLUMNS_MAX { &[] } else { &clients };
    let mut header: Vec<String> = ["#", "design", "leader", "voters"].map(str::to_owned).to_vec();
    header.extend(shown_clients.iter().map(|client| format!("in {}", model.regions[*client])));
    header
        .extend(["mean", "worst", "p99", "survives", "after loss", "down/year", "copies"].map(str::to_owned));
    let mut rows = vec![header];
    let chosen = plan.layouts.iter().enumerate().filter(|(i, a)| *i < ROWS_BEST || a.on_front).take(ROWS_MAX);
    for (i, assessment) in chosen {
        rows.push(row(plan, i, assessment, shown_clients));
    }
    line(
        out,
        format_args!(
            "Layouts by `{}`; write latencies in ms; * no layout beats it on every count, ! requirements not met:",
            plan.objective
        ),
    );
    aligned(out, &rows);
    let more = plan.layouts.len().saturating_sub(rows.len() - 1);
    if more > 0 {
        line(out, format_args!("... and {more} more with --json"));
    }
}

fn row(plan: &Plan, index: usize, assessment: &Assessment, clients: &[usize]) -> Vec<String> {
    let names = &plan.world.model.regions;
    let layout = &assessment.layout;
    let mark = match (assessment.violations.is_empty(), assessment.on_front) {
        (false, _) => "!",
        (true, true) => "*",
        (true, false) => "",
    };
    let voters: Vec<String> = layout
        .voting_regions()
        .map(|region| format!("{} {}", names[region], layout.voters[region]))
        .collect();
    let mut row = vec![
        format!("{index}{mark}"),
        layout.design.name().to_owned(),
        names[layout.leader].clone(),
        voters.join(" "),
    ];
    row.extend(clients.iter().map(|client| format!("{:.1}", assessment.write[*client].typical)));
    let after_loss = assessment.worst_after_loss_ms();
    row.extend([
        format!("{:.1}", assessment.mean_write_ms),
        format!("{:.1}", assessment.worst_write_ms),
        format!("{:.1}", assessment.p99_write_ms),
        assessment.survives_regions.to_string(),
        if after_loss.is_finite() { format!("{after_loss:.1}") } else { "stops".to_owned() },
        per_year(assessment.unavailability),
        assessment.wan_copies_per_write.to_string(),
    ]);
    row
}

/// Every operation in every region.
fn operations(out: &mut String, plan: &Plan, forecast: &Forecast) {
    let names = &plan.world.model.regions;
    let titles = ["", "read", "write", "sync + read", "lock", "hand-off at most"].map(str::to_owned);
    let mut rows = vec![titles.to_vec()];
    for (region, client) in forecast.now.clients.iter().enumerate().take(REGION_ROWS_MAX) {
        let Some(client) = client else { continue };
        let mut row = vec![names[region].clone()];
        row.extend([client.read, client.write, client.sync_read, client.lock, client.hand_off].map(both));
        rows.push(row);
    }
    let now = &forecast.now;
    rows.push(
        [
            "mean".to_owned(),
            "-".to_owned(),
            both(now.mean_write),
            both(now.mean_sync_read),
            "-".to_owned(),
            "-".to_owned(),
        ]
        .to_vec(),
    );
    line(out, "The recommended layout, ms: by the formula (p99); means by the clients' writes and reads:");
    aligned(out, &rows);
}

/// Writes after each loss and each move of the leader.
fn situations(out: &mut String, plan: &Plan, forecast: &Forecast) {
    let names = &plan.world.model.regions;
    let clients: Vec<usize> = plan.world.model.client_regions().take(CLIENT_COLUMNS_MAX + 1).collect();
    let shown: &[usize] = if clients.len() > CLIENT_COLUMNS_MAX { &[] } else { &clients };
    let mut header = vec!["its writes".to_owned(), "leader".to_owned()];
    header.extend(shown.iter().map(|client| format!("in {}", names[*client])));
    header.push("mean".to_owned());
    let mut rows = vec![header];
    let mut row = |what: String, situation: Option<&Situation>| {
        let mut row = vec![what];
        match situation {
            Some(situation) => {
                row.push(names[situation.leader].clone());
                let write =
                    |client: &usize| situation.clients[*client].map_or("-".to_owned(), |c| both(c.write));
                row.extend(shown.iter().map(write));
                row.push(both(situation.mean_write));
            }
            None => row.extend(std::iter::repeat_n("stops".to_owned(), shown.len() + 2)),
        }
        rows.push(row);
    };
    row("now".to_owned(), Some(&forecast.now));
    let regions = (0..names.len()).take(REGION_ROWS_MAX);
    let losses: Vec<usize> =
        regions.clone().filter(|region| plan.best().is_some_and(|b| b.layout.servers(*region) > 0)).collect();
    for lost in losses {
        row(format!("{} lost", names[lost]), forecast.after_loss[lost].as_ref());
    }
    for leader in regions {
        if let Some(situation) = &forecast.after_move[leader] {
            row("leader moved".to_owned(), Some(situation));
        }
    }
    aligned(out, &rows);
}

/// What the unavailability is made of.
fn budget(out: &mut String, plan: &Plan) {
    let parts: Vec<String> =
        plan.budget.iter().map(|item| format!("{} {}", item.cause, per_year(item.unavailability))).collect();
    line(out, format_args!("Without a quorum, per year, by what fails: {}.", parts.join(", ")));
}

fn both(latency: Latency) -> String {
    format!("{:.1} ({:.1})", latency.typical, latency.p99)
}

fn timing_table(out: &mut String, timing: &Timing) {
    line(out, "Timing of the recommended layout:");
    let width = timing.settings.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
    for setting in &timing.settings {
        let digits = usize::from(setting.value.fract() != 0.0);
        let value = format!("{:.digits$} {}", setting.value, setting.unit);
        line(out, format_args!("  {:width$}  {value:>12}  {}", setting.name, setting.reason));
        if let Some(rule) = &setting.rule_of_thumb {
            line(out, format_args!("  {:width$}  {:>12}  (rule of thumb: {rule})", "", ""));
        }
    }
}

/// A share of time as a time per year, in the unit that suits it.
pub(super) fn per_year(share: f64) -> String {
    let seconds = share * SECONDS_PER_YEAR;
    match seconds {
        s if s < 0.5e-4 => "< 0.1 ms".to_owned(),
        s if s < 0.0995 => format!("{:.1} ms", s * 1000.0),
        s if s < 99.5 => format!("{s:.1} s"),
        s if s < 5970.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Columns as wide as their widest cell: text to the left, figures to the right.
fn aligned(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let is_figure = |column: usize| {
        rows.iter().skip(1).all(|row| {
            row[column].starts_with(|c: char| c.is_ascii_digit() || "+-<x".contains(c))
                || row[column] == "stops"
        })
    };
    let figures: Vec<bool> = (0..columns).map(|column| column > 0 && is_figure(column)).collect();
    for row in rows {
        let mut text = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if figures[column] {
                write!(text, " {cell:>width$} ")
            } else {
                write!(text, " {cell:<width$} ")
            };
        }
        line(out, text.trim_end());
    }
}

/// Writing to a string can't fail.
fn line(out: &mut String, text: impl std::fmt::Display) {
    let _ = writeln!(out, "{text}");
}
