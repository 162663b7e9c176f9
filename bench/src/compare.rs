//! `meridian-bench compare`: Apache ZooKeeper and Meridian side by side.
//!
//! Three voters each, on this machine, with their data in one directory, and the same loads in turn. Both
//! ensembles run all the time; the one that is not under load does next to nothing.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::ensemble::{Ensemble, Setup, System, Systems, sync_time};
use crate::load::{Load, LoadReport, Operation, Shape};
use crate::table::Table;

/// Nothing that deserves the name of a disk syncs faster than in this many µs.
const SYNC_US_MIN: f64 = 20.0;
/// Half of all writes can't be quicker than this part of the quickest sync.
const SYNC_PART_MIN: f64 = 0.5;

const EXAMPLES: &str = "\
Examples:
  meridian-bench compare
      ZooKeeper as Debian's package `zookeeper` installs it, and the `meridian` next to this program.
  meridian-bench compare --zookeeper /opt/apache-zookeeper-3.9.5-bin --seconds 30 --rounds 3
      An unpacked distribution; of three rounds the one with the middle throughput.
  meridian-bench compare --op set,mixed:90 --connections 200 --outstanding 4 --data /mnt/nvme --json

Needs a Java runtime. The fewer processors, the more the load generator takes from both.";

/// Compares Apache ZooKeeper and Meridian under the same loads
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    #[command(flatten)]
    systems: Systems,
    /// The loads: get, set, create, mixed:PERCENT. One more, set with one request outstanding on one
    /// connection, always comes first
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', default_value = "set,create,get,mixed:90")]
    op: Vec<Operation>,
    #[command(flatten)]
    shape: Shape,
    /// How often each load runs; the run with the middle throughput counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl CompareArgs {
    /// Threads that the load generator asks for.
    pub fn threads(&self) -> u32 {
        self.shape.threads
    }
}

/// Runs the command.
///
/// # Errors
/// If an ensemble can't be started or loaded, or does not sync its writes to disk.
pub async fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let directory = args.systems.directory()?;
    let sync_us = sync_time(directory.path())?.as_secs_f64() * 1e6;
    ensure!(
        sync_us >= SYNC_US_MIN,
        "syncing a file in {} takes {sync_us:.1} µs: there is no disk behind it; name another place with --data",
        args.systems.parent().display()
    );
    let start = |system| args.systems.start(system, directory.path(), Setup::default());
    let ensembles = [start(System::ZooKeeper)?, start(System::Meridian)?];
    let outcome = async {
        for ensemble in &ensembles {
            ensemble.wait_until_serving().await?;
        }
        compare(args, &ensembles).await
    };
    let outcome = outcome.await;
    for ensemble in ensembles {
        ensemble.stop().await;
    }
    let comparison = Comparison { sync_us, loads: outcome? };
    if args.json {
        println!("{}", serde_json::to_string(&comparison)?);
    } else {
        print(&comparison);
    }
    comparison.expect_synced()?;
    Ok(ExitCode::SUCCESS)
}

/// Both under all loads.
#[derive(Debug, Serialize)]
struct Comparison {
    /// The shortest time of a sync of 200 bytes to the file system with the data.
    sync_us: f64,
    loads: Vec<Pair>,
}

/// Both under one load.
#[derive(Debug, Serialize)]
struct Pair {
    zookeeper: LoadReport,
    meridian: LoadReport,
}

impl Comparison {
    /// Refuses figures of servers that acknowledge before they have synced: the first load waits for
    /// every write alone.
    fn expect_synced(&self) -> anyhow::Result<()> {
        let Some(Pair { zookeeper, meridian }) = self.loads.first() else { return Ok(()) };
        for (name, report) in [("ZooKeeper", zookeeper), ("Meridian", meridian)] {
            let write_us = report.latency_us.p50 as f64;
            ensure!(
                write_us >= SYNC_PART_MIN * self.sync_us,
                "a write takes {name} {write_us:.0} µs, but no sync takes less than {:.0} µs: it does not sync",
                self.sync_us
            );
        }
        Ok(())
    }
}

async fn compare(args: &CompareArgs, ensembles: &[Ensemble; 2]) -> anyhow::Result<Vec<Pair>> {
    let alone = Shape { connections: 1, outstanding: 1, ..args.shape };
    let alone = Load { operation: Operation::Mixed { reads_percent: 0 }, shape: alone, rate: None };
    let asked = args.op.iter().map(|operation| Load { operation: *operation, shape: args.shape, rate: None });
    let mut pairs = Vec::new();
    for load in std::iter::once(alone).chain(asked) {
        let (mut zookeeper, mut meridian) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            zookeeper.push(ensembles[0].load(&load).await?);
            meridian.push(ensembles[1].load(&load).await?);
        }
        let nothing = "there is at least one round";
        pairs.push(Pair {
            zookeeper: middle(zookeeper).context(nothing)?,
            meridian: middle(meridian).context(nothing)?,
        });
    }
    Ok(pairs)
}

/// The run with the middle throughput.
fn middle(mut runs: Vec<LoadReport>) -> Option<LoadReport> {
    runs.sort_by(|a, b| a.throughput.total_cmp(&b.throughput));
    let middle = runs.len() / 2;
    runs.into_iter().nth(middle)
}

/// A figure by its name, from a report.
type Figure = (&'static str, fn(&LoadReport) -> Option<f64>);

const FIGURES: [Figure; 5] = [
    ("operations per second", |report| Some(report.throughput)),
    ("servers' CPU, µs per operation", |report| report.server_cpu_us_per_operation),
    ("p50, ms", |report| Some(report.latency_us.p50 as f64 / 1e3)),
    ("p99, ms", |report| Some(report.latency_us.p99 as f64 / 1e3)),
    ("errors", |report| (report.errors > 0).then_some(report.errors as f64)),
];

fn print(comparison: &Comparison) {
    println!(
        "Three voters each on one machine; a sync to their disk takes {:.0} µs or more.\n",
        comparison.sync_us
    );
    let headings = ["load", "figure", "ZooKeeper", "Meridian", "Meridian / ZooKeeper"];
    let mut table = Table::new(headings, 0);
    for pair in &comparison.loads {
        let Load { operation, shape, .. } = &pair.zookeeper.load;
        let mut load = format!("{operation}, {} x {}", shape.connections, shape.outstanding);
        for (name, figure) in FIGURES {
            let (zookeeper, meridian) = (figure(&pair.zookeeper), figure(&pair.meridian));
            if zookeeper.is_none() && meridian.is_none() {
                continue;
            }
            let ratio = zookeeper.zip(meridian).map(|(zookeeper, meridian)| meridian / zookeeper);
            let cell = |value: Option<f64>| value.map_or("-".into(), significant);
            table.row([std::mem::take(&mut load), name.into(), cell(zookeeper), cell(meridian), cell(ratio)]);
        }
    }
    println!(
        "{table}\nload: connections x requests outstanding on each; {} bytes",
        comparison.loads.first().map_or(0, |pair| pair.zookeeper.load.shape.size)
    );
}

/// Three digits or so.
fn significant(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Percentiles;

    fn report(throughput: f64, p50: u64) -> LoadReport {
        let shape =
            Shape { connections: 1, outstanding: 1, size: 0, znodes: 1, seconds: 1, warm_up: 0, threads: 1 };
        LoadReport {
            load: Load { operation: Operation::Create, shape, rate: None },
            throughput,
            latency_us: Percentiles { p50, p90: p50, p99: p50, p999: p50, max: p50, mean: p50 as f64 },
            errors: 0,
            first_error: None,
            unsent: 0,
            server_cpu_us_per_operation: None,
            client_cpu_cores: 0.0,
        }
    }

    #[test]
    fn the_middle_run_counts() {
        let runs = [3.0, 1.0, 2.0].map(|throughput| report(throughput, 1)).to_vec();
        assert_eq!(middle(runs).unwrap().throughput, 2.0);
        assert!(middle(Vec::new()).is_none());
    }

    #[test]
    fn a_write_quicker_than_a_sync_is_not_believed() {
        let compared = |zookeeper, meridian| Comparison {
            sync_us: 400.0,
            loads: vec![Pair { zookeeper: report(1.0, zookeeper), meridian: report(1.0, meridian) }],
        };
        assert!(compared(900, 500).expect_synced().is_ok());
        let refused = compared(900, 90).expect_synced().unwrap_err().to_string();
        assert!(refused.contains("Meridian"), "{refused}");
    }
}
