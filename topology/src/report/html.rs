//! The plan as a page: pictures and tables, readable on screen and on paper, without scripts, fonts
//! or anything else from elsewhere.

mod chart;
mod map;
mod svg;

use std::fmt::Write as _;

use svg::Escaped;

use super::text::{findings, per_year, sentence};
use crate::layout::Design;
use crate::plan::{Assessment, Forecast, Infeasible, Latency, Plan, Situation};
use crate::timing::Timing;

/// Rows of the table of layouts beside those of the front.
const ROWS_BEST: usize = 8;
const ROWS_MAX: usize = 24;

const STYLE: &str = include_str!("html/style.css");

/// The whole page.
pub fn html(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = page(&mut out, plan);
    out
}

fn page(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let name = if plan.name.is_empty() { "Topology plan" } else { &plan.name };
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{0} - topology plan</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"kind\">Meridian topology plan</p>\n<h1>{0}</h1>\n</header>\n",
        Escaped(name)
    )?;
    match (plan.best(), &plan.infeasible) {
        (Some(best), _) => feasible(out, plan, best)?,
        (None, Some(infeasible)) => refusal(out, infeasible)?,
        (None, None) => {}
    }
    layouts(out, plan)?;
    if let Some(timing) = &plan.timing {
        timing_table(out, timing)?;
    }
    if !plan.diagnostics.is_empty() {
        writeln!(
            out,
            "<h2>What is doubtful or assumed</h2>\n<pre>{}</pre>",
            Escaped(&findings(&plan.diagnostics))
        )?;
    }
    writeln!(
        out,
        "<footer>{} layouts compared by the objective <q>{}</q>. Times are milliseconds unless they say otherwise; \
         p99 in parentheses.</footer>\n</main>\n</body>\n</html>",
        plan.considered, plan.objective
    )
}

fn feasible(out: &mut String, plan: &Plan, best: &Assessment) -> std::fmt::Result {
    recommendation(out, plan, best)?;
    if plan.change.is_some() {
        let text = super::running(plan);
        writeln!(out, "<h2>What runs now</h2>\n<pre>{}</pre>", Escaped(&text))?;
    }
    let (drawing, is_map) = map::draw(plan, best);
    let kind = if is_map { "Map" } else { "Schematic, distances are round-trip times" };
    figure(
        out,
        "Regions and quorum",
        &drawing,
        &format!(
            "{kind}. A filled dot is a voter, an empty one an observer; the ring marks the leader's region. Heavy \
             lines lead to the regions whose answers a write waits for; times are round trips."
        ),
    )?;
    if let Some(forecast) = &plan.forecast {
        figure(
            out,
            "Writes, before and after each loss",
            &chart::writes(plan, forecast),
            "Median by the formula (solid) and reach of the p99 (pale), per client region; the leader moves only \
             when its own region is lost.",
        )?;
        situations(out, plan, forecast)?;
        operations(out, plan, forecast)?;
    }
    figure(
        out,
        "Time without a quorum",
        &chart::budget(plan, best),
        "Per year, each kind of cause alone and all together (logarithmic). Arithmetic with independent servers \
         leaves out what takes several down at once.",
    )?;
    figure(
        out,
        "Latency against availability",
        &chart::front(plan),
        "Layouts that meet the requirements. Circles are flat, squares hierarchical, triangles two-level; dark ones \
         are beaten by none on every count and carry their number in the table below; the ring marks the \
         recommended one.",
    )
}

fn recommendation(out: &mut String, plan: &Plan, best: &Assessment) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    let text = sentence(&best.layout, names);
    let mut letters = text.chars();
    let capital: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    writeln!(
        out,
        "<section class=\"answer\">\n<p class=\"lead\">{}{}.</p>\n<div class=\"tiles\">",
        Escaped(&capital),
        Escaped(letters.as_str())
    )?;
    let after_loss = best.worst_after_loss_ms();
    let ms = |ms: f64| if ms.is_finite() { format!("{ms:.1} ms") } else { "writes stop".to_owned() };
    let survives = match best.survives_regions {
        0 => "no region may be lost".to_owned(),
        1 => "any one region may be lost".to_owned(),
        more => format!("any {more} regions may be lost"),
    };
    let mut tiles = vec![
        (ms(best.mean_write_ms), format!("mean write; p99 {:.1} ms", best.p99_write_ms)),
        (ms(best.worst_write_ms), "write of the farthest clients".to_owned()),
        (ms(after_loss), format!("mean write after the worst loss; {survives}")),
        (per_year(best.unavailability), "a year without a quorum".to_owned()),
        (
            format!("{:.0} kB/s", best.wan_kb_per_s),
            format!(
                "between regions: {} copies of {:.0} writes/s",
                best.wan_copies_per_write, plan.world.traffic.writes_per_s
            ),
        ),
    ];
    if let Some(homes) = &plan.homes {
        tiles.push((ms(homes.mean_write_ms), "mean write with one home per client region".to_owned()));
    }
    if let Some(cost) = best.cost_per_month {
        tiles.push((format!("{cost:.2}"), "cost a month".to_owned()));
    }
    for (figure, what) in tiles {
        writeln!(
            out,
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>",
            Escaped(&figure),
            Escaped(&what)
        )?;
    }
    writeln!(out, "</div>\n</section>")
}

fn refusal(out: &mut String, infeasible: &Infeasible) -> std::fmt::Result {
    writeln!(
        out,
        "<section class=\"answer none\">\n<p class=\"lead\">Infeasible because {}.</p>\n<p>Relaxations, the least first:</p>\n<ul>",
        Escaped(&infeasible.reason)
    )?;
    for relaxation in &infeasible.relaxations {
        writeln!(out, "<li>{}</li>", Escaped(&relaxation.to_string()))?;
    }
    writeln!(out, "</ul>\n</section>")
}

fn figure(out: &mut String, title: &str, drawing: &str, caption: &str) -> std::fmt::Result {
    writeln!(
        out,
        "<figure>\n<h2>{}</h2>\n{drawing}<figcaption>{}</figcaption>\n</figure>",
        Escaped(title),
        Escaped(caption)
    )
}

/// The figures behind the bars, and those after the leader has moved.
fn situations(out: &mut String, plan: &Plan, forecast: &Forecast) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    let clients = chart::largest_clients(plan);
    let mut header = vec!["Writes".to_owned(), "leader".to_owned()];
    header.extend(clients.iter().map(|client| names[*client].clone()));
    header.push("mean".to_owned());
    let mut rows = Vec::new();
    let mut row = |what: String, situation: Option<&Situation>| {
        let mut row = vec![what];
        match situation {
            Some(situation) => {
                row.push(names[situation.leader].clone());
                let write =
                    |client: &usize| situation.clients[*client].map_or("-".to_owned(), |c| both(c.write));
                row.extend(clients.iter().map(write));
                row.push(both(situation.mean_write));
            }
            None => row.extend(std::iter::repeat_n("stop".to_owned(), clients.len() + 2)),
        }
        rows.push(row);
    };
    row("now".to_owned(), Some(&forecast.now));
    let shown: Vec<usize> = plan.best().map_or(Vec::new(), |best| best.layout.voting_regions().collect());
    for lost in shown {
        row(format!("{} lost", names[lost]), forecast.after_loss[lost].as_ref());
    }
    for situation in forecast.after_move.iter().flatten() {
        row("leader moved".to_owned(), Some(situation));
    }
    table(out, &header, &rows, 2)
}

fn operations(out: &mut String, plan: &Plan, forecast: &Forecast) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    let header =
        ["Operations now", "read", "write", "sync + read", "lock", "hand-off, at most"].map(str::to_owned);
    let mut rows = Vec::new();
    for (region, client) in forecast.now.clients.iter().enumerate() {
        let Some(client) = client else { continue };
        let mut row = vec![names[region].clone()];
        row.extend([client.read, client.write, client.sync_read, client.lock, client.hand_off].map(both));
        rows.push(row);
    }
    table(out, &header, &rows, 1)
}

fn both(latency: Latency) -> String {
    format!("{:.1} ({:.1})", latency.typical, latency.p99)
}

/// Every region's voters in columns would be wide: the notation says it.
fn layouts(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    writeln!(out, "<h2>Layouts</h2>")?;
    let mut header = [
        "#",
        "layout",
        "mean",
        "longest",
        "p99",
        "survives",
        "after a loss",
        "down a year",
        "copies",
        "load",
    ]
    .map(str::to_owned)
    .to_vec();
    let priced = plan.world.prices.are_given();
    if priced {
        header.push("cost".to_owned());
    }
    let chosen = plan.layouts.iter().enumerate().filter(|(i, a)| *i < ROWS_BEST || a.on_front).take(ROWS_MAX);
    let rows: Vec<Vec<String>> = chosen
        .map(|(i, assessment)| {
            let after_loss = assessment.worst_after_loss_ms();
            let mark = match (assessment.violations.is_empty(), assessment.on_front) {
                (false, _) => " !",
                (true, true) => " *",
                (true, false) => "",
            };
            let mut row = vec![
                format!("{i}{mark}"),
                assessment.layout.display(names).to_string().replace(',', " ").replacen(':', ": ", 1),
                format!("{:.1}", assessment.mean_write_ms),
                format!("{:.1}", assessment.worst_write_ms),
                format!("{:.1}", assessment.p99_write_ms),
                assessment.survives_regions.to_string(),
                if after_loss.is_finite() { format!("{after_loss:.1}") } else { "stops".to_owned() },
                per_year(assessment.unavailability),
                assessment.wan_copies_per_write.to_string(),
                format!("{:.2}", assessment.quorum.load),
            ];
            row.extend(assessment.cost_per_month.filter(|_| priced).map(|cost| format!("{cost:.2}")));
            row
        })
        .collect();
    table(out, &header, &rows, 2)?;
    let has_two = plan.layouts.iter().any(|assessment| assessment.layout.design == Design::Two);
    let two = if has_two { " <b>two</b>: an ensemble per region under a global group." } else { "" };
    writeln!(
        out,
        "<p class=\"note\">The leader's region comes first. * no layout beats it on every count; ! requirements not \
         met. <b>flat</b>: a majority of all voters; <b>hier</b>: a majority of voters in a majority of \
         regions;{two} Load: share of the writes that the busiest voter takes part in at least.</p>"
    )
}

fn timing_table(out: &mut String, timing: &Timing) -> std::fmt::Result {
    writeln!(out, "<h2>Timing</h2>")?;
    let header = ["Setting", "value", "because", "rule of thumb"].map(str::to_owned);
    let rows: Vec<Vec<String>> = timing
        .settings
        .iter()
        .map(|setting| {
            let digits = usize::from(setting.value.fract() != 0.0);
            vec![
                setting.name.to_owned(),
                format!("{:.digits$} {}", setting.value, setting.unit),
                setting.reason.clone(),
                setting.rule_of_thumb.clone().unwrap_or_default(),
            ]
        })
        .collect();
    writeln!(out, "<div class=\"reasons\">")?;
    table(out, &header, &rows, 4)?;
    writeln!(out, "</div>")
}

/// A table whose first `texts` columns are words, the others figures.
fn table(out: &mut String, header: &[String], rows: &[Vec<String>], texts: usize) -> std::fmt::Result {
    let class = |column: usize| if column < texts { "" } else { " class=\"figure\"" };
    writeln!(out, "<div class=\"wide\"><table>\n<thead><tr>")?;
    for (column, title) in header.iter().enumerate() {
        write!(out, "<th{}>{}</th>", class(column), Escaped(title))?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for row in rows {
        write!(out, "<tr>")?;
        for (column, cell) in row.iter().enumerate() {
            write!(out, "<td{}>{}</td>", class(column), Escaped(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table></div>")
}
