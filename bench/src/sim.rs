//! The deterministic simulator: whole meshes in one process and one thread, with virtual time, from a seed.
//!
//! The servers are the production ones ([`meridian_node::mesh_server::MeshServer`]): log, consensus,
//! sessions, bridges and QUIC included. Only what [`meridian_seam::Environment`] stands for is simulated:
//! network, disks, clocks, randomness, threads. The same seed gives the same run, event by event.
//!
//! The network is our own (module `net`): a map of events by time is all it takes, it knows cuts in one
//! direction and streams that survive them, and each host has a clock that may be wrong, which
//! ready-made simulators have not.

mod certificates;
mod client;
mod faults;
mod history;
mod host;
mod log;
mod mutant;
mod net;
mod run;
mod server;
mod trace;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use mutant::Mutant;
use run::{Outcome, Scenario};
use trace::Trace;

const EXAMPLES: &str = "\
Examples:
  meridian-bench sim --seeds 100
  meridian-bench sim --seed 42 --trace
  RUST_LOG=meridian_bridge=debug meridian-bench sim --seed 42 --trace
  meridian-bench sim meta --seeds 5
  meridian-bench sim mutants --seeds 80";

/// Simulates meshes under faults, and checks what clients are promised
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct SimArgs {
    #[command(subcommand)]
    check: Option<Check>,
    #[command(flatten)]
    seeds: Seeds,
    /// Run one seed only
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Show what happens
    #[arg(long)]
    trace: bool,
}

#[derive(Debug, Args)]
struct Seeds {
    /// How many seeds to run
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// What to simulate; drawn from the seed unless given
    #[arg(long, value_enum)]
    scenario: Option<Scenario>,
    /// Virtual seconds during which faults strike
    #[arg(long, default_value_t = 40)]
    fault_seconds: u64,
    /// Break this
    #[arg(long, value_enum)]
    mutant: Option<Mutant>,
}

#[derive(Debug, Subcommand)]
enum Check {
    /// Runs each seed twice and compares all events: the simulator's own test
    Meta(Seeds),
    /// Runs worlds that are broken until a check finds it, within so many seeds each
    Mutants(Seeds),
}

/// Runs the command.
///
/// # Errors
/// If a simulation can't be set up.
pub fn run(args: &SimArgs) -> anyhow::Result<ExitCode> {
    log::start();
    match &args.check {
        Some(Check::Meta(seeds)) => meta(seeds),
        Some(Check::Mutants(seeds)) => mutants(seeds),
        None => match args.seed {
            Some(seed) => simulate(&args.seeds, seed, 1, args.trace),
            None => simulate(&args.seeds, args.seeds.first, args.seeds.seeds, args.trace),
        },
    }
}

fn simulate(options: &Seeds, first: u64, count: u64, trace: bool) -> anyhow::Result<ExitCode> {
    let (mut failed, mut simulated, mut real) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    for seed in first..first + count {
        let scenario = options.scenario.unwrap_or_else(|| Scenario::of_seed(seed));
        let record = if trace { Trace::printing() } else { Trace::default() };
        let outcome = run::run(seed, scenario, options.fault_seconds * 1_000, options.mutant, record)?;
        print_outcome(seed, scenario, &outcome);
        simulated += Duration::from_millis(outcome.simulated_ms);
        real += outcome.real;
        if !outcome.violations.is_empty() {
            println!("  again: {}", replay_command(options, seed, scenario));
            failed.push(seed);
        }
    }
    println!(
        "{count} seeds, {} failed {failed:?}; {:.0} s simulated in {:.1} s",
        failed.len(),
        simulated.as_secs_f64(),
        real.as_secs_f64()
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn replay_command(options: &Seeds, seed: u64, scenario: Scenario) -> String {
    let mutant = options.mutant.and_then(|mutant| mutant.to_possible_value());
    let mutant = mutant.map(|m| format!(" --mutant {}", m.get_name())).unwrap_or_default();
    format!(
        "cargo run --release -p meridian-bench -- sim --seed {seed} --scenario {} --fault-seconds {}{mutant} --trace",
        scenario.name(),
        options.fault_seconds
    )
}

fn print_outcome(seed: u64, scenario: Scenario, outcome: &Outcome) {
    let (digest, events) = outcome.digest;
    let (operations, unknown) = outcome.operations;
    let simulated_s = outcome.simulated_ms as f64 / 1_000.0;
    println!(
        "seed {seed} {}: {} in {simulated_s:.0} s ({:.0} times real), {operations} operations, {unknown} of unknown \
         fate, {events} events, digest {digest:016x}",
        scenario.name(),
        if outcome.violations.is_empty() { "ok" } else { "FAILED" },
        simulated_s / outcome.real.as_secs_f64(),
    );
    for violation in &outcome.violations {
        println!("  {violation}");
    }
}

/// Runs each seed twice.
fn meta(options: &Seeds) -> anyhow::Result<ExitCode> {
    let mut differ = 0;
    for seed in options.first..options.first + options.seeds {
        let scenario = options.scenario.unwrap_or_else(|| Scenario::of_seed(seed));
        match first_difference(seed, scenario, options.fault_seconds * 1_000)? {
            None => println!("seed {seed} {}: twice the same", scenario.name()),
            Some(difference) => {
                differ += 1;
                println!("seed {seed} {}: DIFFERS {difference}", scenario.name());
            }
        }
    }
    println!("{} seeds, {differ} differ", options.seeds);
    Ok(if differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks for every mutant, seed after seed.
fn mutants(options: &Seeds) -> anyhow::Result<ExitCode> {
    let mut missed = 0;
    for mutant in Mutant::value_variants() {
        let name = mutant.to_possible_value().map(|m| m.get_name().to_string()).unwrap_or_default();
        let mut found = None;
        for seed in options.first..options.first + options.seeds {
            let scenario = options.scenario.unwrap_or_else(|| Scenario::of_seed(seed));
            let outcome =
                run::run(seed, scenario, options.fault_seconds * 1_000, Some(*mutant), Trace::default())?;
            if let Some(violation) = outcome.violations.into_iter().next() {
                found = Some((seed, violation));
                break;
            }
        }
        match found {
            Some((seed, violation)) => println!("{name:<18} found by seed {seed:>3}: {violation:.120}"),
            None => {
                missed += 1;
                println!("{name:<18} NOT FOUND in {} seeds", options.seeds);
            }
        }
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where two runs of a seed part, if they do.
fn first_difference(seed: u64, scenario: Scenario, fault_ms: u64) -> anyhow::Result<Option<String>> {
    let traced = || -> anyhow::Result<_> {
        let trace = Trace::keeping();
        run::run(seed, scenario, fault_ms, None, trace.clone())?;
        Ok(trace.take())
    };
    let (first, second) = (traced()?, traced()?);
    let at = first.iter().zip(&second).position(|(a, b)| a != b);
    Ok(match at {
        Some(at) => Some(format!("at event {at}: {} / {}", first[at], second[at])),
        None if first.len() != second.len() => {
            Some(format!("in length: {} and {} events", first.len(), second.len()))
        }
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself() {
        for scenario in [Scenario::Region, Scenario::Mesh] {
            assert_eq!(first_difference(1, scenario, 10_000).unwrap(), None, "{scenario:?}");
        }
    }

    /// The first: a lock and the loss of its holder's lease applied in one entry. The others: the late
    /// deletion of a lock.
    #[test]
    fn seeds_that_found_something_find_nothing_any_more() {
        for (seed, scenario) in [(29, Scenario::Mesh), (47, Scenario::LargeMesh), (51, Scenario::LargeMesh)] {
            let outcome = run::run(seed, scenario, 40_000, None, Trace::default()).unwrap();
            assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed} {scenario:?}");
        }
    }

    #[test]
    fn a_handful_of_seeds_keeps_the_promises() {
        for (seed, scenario) in [(1, Scenario::Region), (2, Scenario::Region), (3, Scenario::Mesh)] {
            let outcome = run::run(seed, scenario, 15_000, None, Trace::default()).unwrap();
            assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed} {scenario:?}");
        }
    }
}
