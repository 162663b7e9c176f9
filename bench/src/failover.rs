//! `meridian-bench failover`: how long writes stop when a server of an ensemble dies, stops or hangs.
//!
//! Clients of all servers write all the time, one request outstanding each; whoever loses its server goes to
//! the next one. What counts is the longest time in which nobody's write is acknowledged.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use meridian_wire::{ErrorCode, Request};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, ClientError, create};
use crate::ensemble::{Ensemble, Setup, System, Systems};
use crate::table::Table;

/// Writers per server.
const WRITERS: usize = 4;
/// Before a fault, so that everybody writes.
const STEADY: Duration = Duration::from_secs(2);
/// A fault is over when writes have gone on for so long.
const RECOVERED: Duration = Duration::from_secs(3);
/// An ensemble that does not write again by then is not going to.
const PATIENCE: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  meridian-bench failover
      All faults, five times each, for ZooKeeper (Debian's package) and Meridian.
  meridian-bench failover --fault kill,term --rounds 20 --only-meridian --json";

/// Measures how long writes stop when a server dies, stops or hangs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct FailoverArgs {
    #[command(flatten)]
    systems: Systems,
    /// Leave ZooKeeper out
    #[arg(long)]
    only_meridian: bool,
    /// What happens
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kill,term,hang,follower")]
    fault: Vec<Fault>,
    /// How often each happens
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What happens to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Fault {
    /// The leader is killed (SIGKILL)
    Kill,
    /// The leader is told to stop (SIGTERM)
    Term,
    /// The leader hangs (SIGSTOP)
    Hang,
    /// A follower is killed
    Follower,
}

/// The longest times without an acknowledged write, in ms, sorted.
#[derive(Debug, Serialize)]
struct Gaps {
    system: &'static str,
    fault: Fault,
    gaps_ms: Vec<f64>,
}

/// Runs the command.
///
/// # Errors
/// If an ensemble can't be started, or does not recover from a fault.
pub async fn run(args: &FailoverArgs) -> anyhow::Result<ExitCode> {
    let directory = args.systems.directory()?;
    let mut results = Vec::new();
    for system in System::measured(args.only_meridian) {
        let mut ensemble = args.systems.start(*system, directory.path(), Setup::default())?;
        let measured = measure(args, &mut ensemble, &mut results).await;
        ensemble.stop().await;
        measured?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&results)?)
    } else {
        print(&results)
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    args: &FailoverArgs,
    ensemble: &mut Ensemble,
    results: &mut Vec<Gaps>,
) -> anyhow::Result<()> {
    ensemble.wait_until_serving().await?;
    for fault in &args.fault {
        let mut gaps_ms = Vec::new();
        for round in 1..=args.rounds {
            gaps_ms.push(one_round(ensemble, *fault).await?.as_secs_f64() * 1e3);
            eprintln!(
                "{} {fault:?} {round}/{}: {:.0} ms",
                ensemble.name(),
                args.rounds,
                gaps_ms[gaps_ms.len() - 1]
            );
        }
        gaps_ms.sort_by(f64::total_cmp);
        results.push(Gaps { system: ensemble.name(), fault: *fault, gaps_ms });
    }
    Ok(())
}

async fn one_round(ensemble: &mut Ensemble, fault: Fault) -> anyhow::Result<Duration> {
    let leader = ensemble.leader().await.context("no server says that it leads")?;
    let victim = if fault == Fault::Follower { (leader + 1) % ensemble.clients().len() } else { leader };
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS * ensemble.clients().len() {
        writers.spawn(write(ensemble.clients().to_vec(), writer, acknowledged.clone()));
    }
    sleep(STEADY).await;
    let struck = Instant::now();
    ensemble.signal(
        victim,
        match fault {
            Fault::Kill | Fault::Follower => Signal::KILL,
            Fault::Term => Signal::TERM,
            Fault::Hang => Signal::STOP,
        },
    )?;
    let gap = loop {
        sleep(Duration::from_millis(200)).await;
        if let Some(gap) = longest_gap(&acknowledged.lock(), struck) {
            break gap;
        }
        ensure!(struck.elapsed() < PATIENCE, "{} does not write again after {fault:?}", ensemble.name());
    };
    writers.shutdown().await;
    if fault == Fault::Hang {
        ensemble.signal(victim, Signal::CONT)?;
    } else {
        ensemble.restart(victim).await?;
    }
    ensemble.wait_until_serving().await?;
    Ok(gap)
}

/// The longest time between two acknowledged writes from shortly before a fault on, once they have gone on for
/// long enough after the longest.
fn longest_gap(acknowledged: &[Instant], struck: Instant) -> Option<Duration> {
    let mut times: Vec<Instant> = acknowledged.to_vec();
    times.sort_unstable();
    let first = times.iter().rposition(|time| *time <= struck)?;
    let times = &times[first..];
    let (gap, end) = times.windows(2).map(|pair| (pair[1] - pair[0], pair[1])).max()?;
    (*times.last()? > end + RECOVERED && *times.last()? > struck + RECOVERED).then_some(gap)
}

/// Writes all the time, at one server after the other.
async fn write(servers: Vec<String>, writer: usize, acknowledged: Arc<Mutex<Vec<Instant>>>) {
    let path = format!("/failover-{writer}");
    for server in servers.iter().cycle().skip(writer) {
        // A server that hangs takes connections but says nothing.
        let Ok(Ok(mut client)) = timeout(Duration::from_secs(1), Client::connect(server)).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let data = [b'x'; 100];
        match client.call(&create(&path, &data)).await {
            Ok(_) | Err(ClientError::Server { error: ErrorCode::NodeExists, .. }) => {}
            Err(_) => continue,
        }
        while client.submit(&Request::SetData { path: &path, data: Some(&data), version: -1 }).is_ok() {
            match timeout(Duration::from_secs(5), client.next_reply()).await {
                Ok(Ok(reply)) if reply.header.error == ErrorCode::Ok => {
                    acknowledged.lock().push(Instant::now())
                }
                _ => break,
            }
        }
    }
}

fn print(results: &[Gaps]) {
    let mut table = Table::new(["fault", "system", "median, ms", "worst, ms"], 0);
    for Gaps { system, fault, gaps_ms } in results {
        let fault = match fault {
            Fault::Kill => "leader killed",
            Fault::Term => "leader told to stop",
            Fault::Hang => "leader hangs",
            Fault::Follower => "follower killed",
        };
        let cell = |gap: Option<&f64>| gap.map_or("-".into(), |gap| format!("{gap:.0}"));
        let median = gaps_ms.get((gaps_ms.len() - 1) / 2);
        table.row([fault.into(), (*system).into(), cell(median), cell(gaps_ms.last())]);
    }
    println!("The longest time without an acknowledged write.\n\n{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_once_writes_go_on() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut times: Vec<Instant> = (0..10).map(|i| at(i * 10)).collect();
        times.extend((0..20).map(|i| at(600 + i * 10)));
        assert_eq!(longest_gap(&times, at(100)), None, "it may stop again");
        times.extend((0..400).map(|i| at(800 + i * 10)));
        assert_eq!(longest_gap(&times, at(100)), Some(Duration::from_millis(510)));
    }
}
