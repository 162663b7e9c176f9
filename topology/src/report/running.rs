//! What runs now, beside the best layout: what a change would gain, and its steps.

use std::fmt::Write as _;

use super::text::per_year;
use crate::layout::Layout;
use crate::plan::{Action, Assessment, Change, Plan, Step};

/// One step of a change, as whoever carries it out needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// What to do.
    pub action: Action,
    /// The region where it is done; of a leader that moves, the one that it leaves.
    pub region: String,
    /// Where a leader moves to.
    pub to: Option<String>,
    /// The step in words.
    pub text: String,
}

/// The steps from what runs to the best layout; none if a change is not worth it, or is none of steps.
pub fn orders(plan: &Plan) -> Vec<Order> {
    let names = &plan.world.model.regions;
    let change = plan.change.as_ref().filter(|change| change.worth_it);
    let steps = change.and_then(|change| change.steps.as_ref());
    let order = |step: &Step| {
        let (region, to) = match step.action {
            Action::MoveLeader { from, to } => (from, Some(names[to].clone())),
            Action::AddVoter { region }
            | Action::AddObserver { region }
            | Action::Promote { region }
            | Action::GiveVote { region }
            | Action::TakeVote { region }
            | Action::Demote { region }
            | Action::RemoveVoter { region }
            | Action::RemoveObserver { region } => (region, None),
        };
        let text = step.action.display(names).to_string();
        Order { action: step.action, region: names[region].clone(), to, text }
    };
    steps.map_or(Vec::new(), |steps| steps.iter().map(order).collect())
}

/// What runs and what a change would gain, then the steps; empty if nothing is known to run.
pub fn running(plan: &Plan) -> String {
    let mut out = String::new();
    if let (Some(best), Some(change)) = (plan.best(), &plan.change) {
        // Writing to a string can't fail.
        let _ = gain(&mut out, plan, best, change);
        let _ = steps(&mut out, plan, change);
        let _ = misfits(&mut out, change);
    }
    out
}

fn gain(out: &mut String, plan: &Plan, best: &Assessment, change: &Change) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    let running = &change.running;
    writeln!(out, "Runs now: {}", running.layout.display(names))?;
    let same = |a: &Layout, b: &Layout| (a.design, a.leader, &a.voters) == (b.design, b.leader, &b.voters);
    if same(&running.layout, &best.layout) {
        return writeln!(out, "  It is the best layout.");
    }
    let ms = |ms: f64| if ms.is_finite() { format!("{ms:.1} ms") } else { "writes stop".to_owned() };
    let pairs = [
        ("mean write", ms(running.mean_write_ms), ms(best.mean_write_ms)),
        ("longest write", ms(running.worst_write_ms), ms(best.worst_write_ms)),
        ("mean p99", ms(running.p99_write_ms), ms(best.p99_write_ms)),
        ("after the worst loss", ms(running.worst_after_loss_ms()), ms(best.worst_after_loss_ms())),
        ("without a quorum, a year", per_year(running.unavailability), per_year(best.unavailability)),
    ];
    for (what, now, then) in pairs {
        writeln!(out, "  {what}: {now} now, {then} with the best layout")?;
    }
    for violation in &running.violations {
        writeln!(out, "  not met now: {violation}")?;
    }
    let verdict = if change.worth_it { "worth a change" } else { "not worth a change" };
    match change.gain_ms {
        gain_ms if !running.violations.is_empty() && gain_ms < 0.05 => {
            writeln!(
                out,
                "  {:.1} ms more by `{}`, for the requirements: {verdict}",
                gain_ms.abs(),
                plan.objective
            )
        }
        gain_ms if gain_ms.is_finite() => {
            let share = 100.0 * gain_ms / running.objective_ms(plan.objective);
            writeln!(out, "  {gain_ms:.1} ms less by `{}` ({share:.0} %): {verdict}", plan.objective)
        }
        _ => writeln!(out, "  {verdict}"),
    }
}

fn steps(out: &mut String, plan: &Plan, change: &Change) -> std::fmt::Result {
    let names = &plan.world.model.regions;
    let Some(steps) = &change.steps else {
        return writeln!(
            out,
            "  The designs differ: set the new one up beside the old one and move the clients."
        );
    };
    if !steps.is_empty() {
        writeln!(out, "Steps to the best layout, each done before the next begins:")?;
    }
    for (i, step) in steps.iter().enumerate() {
        let survives = step.after.survives_regions();
        let survives = if survives == 1 { "1 region".to_owned() } else { format!("{survives} regions") };
        writeln!(out, "  {:>2}. {} (then survives {survives})", i + 1, step.action.display(names))?;
    }
    Ok(())
}

fn misfits(out: &mut String, change: &Change) -> std::fmt::Result {
    if !change.misfits.is_empty() {
        writeln!(out, "Timeouts in use that are too short for the round trips:")?;
    }
    for misfit in &change.misfits {
        let (value, least, unit) = (misfit.value, misfit.least, misfit.unit);
        writeln!(out, "  {}: {value:.0} {unit}, at least {least:.0}: {}", misfit.name, misfit.reason)?;
    }
    Ok(())
}
