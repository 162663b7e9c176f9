//! Why the best layout is the best: where each of its milliseconds comes from, and what the
//! alternatives would cost.

use std::fmt::Write as _;

use super::text::per_year;
use crate::layout::{Design, Layout};
use crate::plan::{Assessment, Plan};

/// The sums behind a layout's figures, and what the best layout of every other design and leader
/// among those listed would cost or save.
pub fn explanation(plan: &Plan, explained: &Assessment) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = commit(&mut out, plan, &explained.layout);
    let _ = writes(&mut out, plan, explained);
    let _ = quorums(&mut out, plan, explained);
    let _ = alternatives(&mut out, plan, explained);
    out
}

fn quorums(out: &mut String, plan: &Plan, explained: &Assessment) -> std::fmt::Result {
    let quorum = &explained.quorum;
    writeln!(
        out,
        "Any {} voters may fail, any {} regions; the busiest voter takes part in {:.0} % of the writes at least.",
        quorum.resilience,
        explained.survives_regions,
        100.0 * quorum.load
    )?;
    for violation in &explained.violations {
        writeln!(out, "  not met: {violation}")?;
    }
    let budget = plan.world.failures.budget(&explained.layout);
    for item in budget.iter().filter(|item| item.unavailability > 0.0) {
        writeln!(out, "  {:>10} a year without a quorum: {}", per_year(item.unavailability), item.cause)?;
    }
    Ok(())
}

fn commit(out: &mut String, plan: &Plan, layout: &Layout) -> std::fmt::Result {
    let model = &plan.world.model;
    let leader = layout.leader;
    let mut answers: Vec<(f64, String)> = Vec::new();
    for region in layout.voting_regions() {
        let (size, name) = (layout.voters[region], &model.regions[region]);
        let way_ms = model.rtt_ms[leader][region];
        let own_ms = model.local_commit_ms(size);
        match layout.design {
            Design::Flat if region == leader => {
                answers.push((model.fsync_ms, format!("{name} itself")));
                let others = model.zone_ms + model.fsync_ms;
                answers.extend((1..size).map(|_| (others, format!("{name}, another zone"))));
            }
            Design::Flat => answers.extend((0..size).map(|_| (way_ms + model.fsync_ms, name.clone()))),
            Design::Hier if region == leader => answers.push((own_ms, format!("{name}'s majority"))),
            Design::Hier => answers.push((way_ms + model.fsync_ms, format!("{name}'s majority"))),
            Design::Two if region == leader => answers.push((own_ms, format!("{name}'s own commit"))),
            Design::Two => answers.push((way_ms + own_ms, format!("{name}'s vote"))),
        }
    }
    answers.sort_by(|a, b| a.0.total_cmp(&b.0));
    let quorum = answers.len() / 2 + 1;
    writeln!(
        out,
        "A commit takes {:.1} ms: {quorum} of {} answers are needed.",
        model.commit_ms(layout),
        answers.len()
    )?;
    for (i, (ms, who)) in answers.iter().enumerate() {
        let mark = if i + 1 == quorum { "  <- commits here" } else { "" };
        writeln!(out, "  {ms:>7.1} ms  {who}{mark}")?;
    }
    Ok(())
}

fn writes(out: &mut String, plan: &Plan, best: &Assessment) -> std::fmt::Result {
    let model = &plan.world.model;
    writeln!(out, "A write is the client's round trip, the way to the leader and back, and the commit:")?;
    for client in model.client_regions() {
        let own_ms = best.write[client].typical
            - model.client_rtt_ms
            - model.rtt_ms[client][best.layout.leader]
            - best.commit_ms;
        let own = if own_ms > 1e-9 { format!(" + {own_ms:.1} local commits") } else { String::new() };
        writeln!(
            out,
            "  {:>7.1} ms  {}: {:.1} + {:.1} + {:.1}{own}; {:.0} % of the writes",
            best.write[client].typical,
            model.regions[client],
            model.client_rtt_ms,
            model.rtt_ms[client][best.layout.leader],
            best.commit_ms,
            100.0 * model.shares[client]
        )?;
    }
    Ok(())
}

fn alternatives(out: &mut String, plan: &Plan, best: &Assessment) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    let fitting = || plan.layouts.iter().filter(|assessment| assessment.violations.is_empty());
    let mut others: Vec<(&Assessment, String)> = Vec::new();
    for design in Design::ALL.into_iter().filter(|design| *design != best.layout.design) {
        let other = fitting().find(|assessment| assessment.layout.design == design);
        others.extend(other.map(|other| (other, format!("design {}", design.name()))));
    }
    for leader in (0..names.len()).filter(|leader| *leader != best.layout.leader) {
        let other = fitting().find(|assessment| assessment.layout.leader == leader);
        others.extend(other.map(|other| (other, format!("led from {}", names[leader]))));
    }
    if !others.is_empty() {
        writeln!(out, "What the others cost by `{}`, at their best:", plan.objective)?;
    }
    for (other, what) in others {
        let more_ms = other.objective_ms(plan.objective) - best.objective_ms(plan.objective);
        writeln!(out, "  {more_ms:>+7.1} ms  {what}: {}", other.layout.display(names))?;
    }
    Ok(())
}
