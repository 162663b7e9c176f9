//! `meridian-bench load`: throughput, latency and the servers' processor time under a load.
//!
//! Closed loop: every connection keeps a number of requests outstanding. Open loop: requests are due at a
//! given rate whatever the servers do, and their latency counts from when they were due, so that a
//! stall is felt by all the requests that it delays (no coordinated omission).

mod worker;

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::process::{cpu_time, cpu_time_of_all};
use crate::table::Table;
use worker::{Outcome, Worker, clean_up, prepare};

/// Latencies are kept in µs, up to this, with three digits.
const LATENCY_US_MAX: u64 = 600_000_000;

const EXAMPLES: &str = "\
Examples:
  meridian-bench load --servers 127.0.0.1:2181 --op get
  meridian-bench load --servers a:2181,b:2181,c:2181 --op mixed:90 --connections 200 --outstanding 4
      Nine reads to one write.
  meridian-bench load --servers 127.0.0.1:2181 --op set --rate 5000 --seconds 60
      Open loop: 5,000 writes are due every second.
  meridian-bench load --servers 127.0.0.1:2181 --op create --pids $(pgrep -d, -x meridian) --json
      With the processor time of the servers per operation; for programs.

The znodes lie under /meridian-bench-PID and are deleted at the end.";

/// Loads servers and measures throughput, latency and processor time
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoadArgs {
    /// The servers, `host:port`; connections are spread over them
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', required = true)]
    servers: Vec<String>,
    /// get, set, create, or mixed:PERCENT with that many reads in a hundred operations
    #[arg(long, value_name = "OPERATION")]
    op: Operation,
    #[command(flatten)]
    shape: Shape,
    /// Open loop: this many requests are due per second, over all connections
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    /// Processes of the servers, whose processor time is measured
    #[arg(long, value_name = "P,Q,...", value_delimiter = ',')]
    pids: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How much load there is, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args, Serialize)]
pub struct Shape {
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Requests outstanding on each connection, at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub outstanding: u32,
    /// Data of a znode
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub size: u32,
    /// Znodes that are read and written
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub znodes: u32,
    /// Time measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Time under load before that
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub warm_up: u32,
    /// Threads of the load generator; it takes processors from servers on the same machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
}

/// What the requests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `getData` and `setData`, this many percent of them reads.
    Mixed {
        /// 100 for reads only, 0 for writes only.
        reads_percent: u8,
    },
    /// `create` of new znodes.
    Create,
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "get" => Ok(Self::Mixed { reads_percent: 100 }),
            None if text == "set" => Ok(Self::Mixed { reads_percent: 0 }),
            None if text == "create" => Ok(Self::Create),
            Some(("mixed", percent)) => match percent.parse() {
                Ok(reads_percent @ 0..=100) => Ok(Self::Mixed { reads_percent }),
                _ => Err(format!("'{percent}' is no percentage: mixed:90 is nine reads to one write")),
            },
            _ => Err("choose get, set, create or mixed:PERCENT".into()),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed { reads_percent: 100 } => out.write_str("get"),
            Self::Mixed { reads_percent: 0 } => out.write_str("set"),
            Self::Mixed { reads_percent } => write!(out, "mixed:{reads_percent}"),
            Self::Create => out.write_str("create"),
        }
    }
}

impl Serialize for Operation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A load.
#[derive(Debug, Clone, Serialize)]
pub struct Load {
    /// What the requests do.
    pub operation: Operation,
    /// How much of it.
    #[serde(flatten)]
    pub shape: Shape,
    /// Requests due per second; none for a closed loop.
    pub rate: Option<u32>,
}

/// What servers did under a load.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// The load.
    #[serde(flatten)]
    pub load: Load,
    /// Operations completed per second.
    pub throughput: f64,
    /// The time from when a request was due (open loop) or submitted to its reply.
    pub latency_us: Percentiles,
    /// Replies with an error.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
    /// Requests that were due but had no room before the end; their latency counts up to the end.
    pub unsent: u64,
    /// Processor time of the servers' processes per operation, if they were named.
    pub server_cpu_us_per_operation: Option<f64>,
    /// Processors that the load generator kept busy.
    pub client_cpu_cores: f64,
}

/// Latencies in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: u64,
    /// One in ten is above.
    pub p90: u64,
    /// One in a hundred is above.
    pub p99: u64,
    /// One in a thousand is above.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// The mean.
    pub mean: f64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |percent| histogram.value_at_percentile(percent);
        let (p50, p90, p99, p999) = (at(50.0), at(90.0), at(99.0), at(99.9));
        Self { p50, p90, p99, p999, max: histogram.max(), mean: histogram.mean() }
    }
}

/// When samples count.
#[derive(Debug, Clone, Copy)]
struct Window {
    begin: Instant,
    end: Instant,
}

impl Window {
    fn contains(&self, time: Instant) -> bool {
        self.begin <= time && time < self.end
    }
}

impl LoadArgs {
    /// Threads that the load generator asks for.
    pub fn threads(&self) -> u32 {
        self.shape.threads
    }
}

/// Runs the command.
///
/// # Errors
/// If the servers can't be loaded.
pub async fn run(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let load = Load { operation: args.op, shape: args.shape, rate: args.rate };
    let report = load.run(&args.servers, &args.pids).await?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Load {
    /// Loads the servers and measures; `pids` are their processes.
    ///
    /// # Errors
    /// If a connection fails or breaks, nothing was answered, or a process is not there.
    pub async fn run(&self, servers: &[String], pids: &[u32]) -> anyhow::Result<LoadReport> {
        let first = servers.first().context("name at least one server")?;
        cpu_time_of_all(pids)?;
        let mut client = Client::connect(first).await.with_context(|| first.clone())?;
        let znodes = Arc::new(prepare(&mut client, self).await.context("cannot create the znodes")?);
        client.close().await?;
        let mut workers = Vec::new();
        for (number, server) in (0..self.shape.connections).zip(servers.iter().cycle()) {
            let worker = Worker::connect(server, number, self, znodes.clone());
            workers.push(worker.await.with_context(|| server.clone())?);
        }
        let begin = Instant::now() + Duration::from_secs(self.shape.warm_up.into());
        let window = Window { begin, end: begin + Duration::from_secs(self.shape.seconds.into()) };
        let mut working: JoinSet<_> = workers.into_iter().map(|worker| worker.work(window)).collect();
        let (outcome, cpu) = gather(&mut working, cpu_within(window, pids)).await?;
        // A session that is idle during a long load would expire.
        let mut client = Client::connect(first).await.with_context(|| first.clone())?;
        clean_up(&mut client, &znodes, &outcome.created).await.context("cannot delete the znodes")?;
        client.close().await?;
        self.report(&outcome, cpu)
    }

    fn report(&self, outcome: &Outcome, cpu: CpuTime) -> anyhow::Result<LoadReport> {
        ensure!(
            outcome.completed > 0,
            "no request succeeded in {} s; the first error: {}",
            self.shape.seconds,
            outcome
                .first_error
                .as_deref()
                .unwrap_or("none, for none was answered: the servers or their disk hung")
        );
        let operations = outcome.completed as f64;
        let seconds = f64::from(self.shape.seconds);
        let per_operation = |time: Duration| time.as_secs_f64() * 1e6 / operations;
        Ok(LoadReport {
            load: self.clone(),
            throughput: operations / seconds,
            latency_us: Percentiles::of(&outcome.latency_us),
            errors: outcome.errors,
            first_error: outcome.first_error.clone(),
            unsent: outcome.unsent,
            server_cpu_us_per_operation: cpu.servers.map(per_operation),
            client_cpu_cores: cpu.client.as_secs_f64() / seconds,
        })
    }
}

/// Processor time within the window.
struct CpuTime {
    servers: Option<Duration>,
    client: Duration,
}

async fn cpu_within(window: Window, pids: &[u32]) -> anyhow::Result<CpuTime> {
    let used = || anyhow::Ok((cpu_time_of_all(pids)?, cpu_time(std::process::id())?));
    sleep_until(window.begin).await;
    let before = used()?;
    sleep_until(window.end).await;
    let after = used()?;
    let servers = after.0.saturating_sub(before.0);
    let client = after.1.saturating_sub(before.1);
    Ok(CpuTime { servers: (!pids.is_empty()).then_some(servers), client })
}

/// What all connections did, and what was sampled meanwhile. A connection that fails ends the load at
/// once; one that is done before the sampling counts like any other.
async fn gather<T>(
    working: &mut JoinSet<anyhow::Result<Outcome>>,
    sampling: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Outcome, T)> {
    let mut outcome = Outcome::default();
    tokio::pin!(sampling);
    let sampled = loop {
        tokio::select! {
            sampled = &mut sampling => break sampled?,
            Some(finished) = working.join_next() => outcome.add(finished??)?,
        }
    };
    while let Some(finished) = working.join_next().await {
        outcome.add(finished??)?;
    }
    Ok((outcome, sampled))
}

fn print(report: &LoadReport) {
    let Load { operation, shape, rate } = &report.load;
    let way = match rate {
        Some(rate) => format!("{rate} due per second"),
        None => format!("{} outstanding each", shape.outstanding),
    };
    println!(
        "{operation}: {} connections, {way}, {} bytes, {} s\n",
        shape.connections, shape.size, shape.seconds
    );
    let mut table = Table::new(["figure", "value"], 0);
    table.row(["operations per second".into(), format!("{:.0}", report.throughput)]);
    let Percentiles { p50, p90, p99, p999, max, mean } = report.latency_us;
    let ms = |us: f64| format!("{:.3}", us / 1e3);
    table.row(["latency, mean, ms".into(), ms(mean)]);
    for (name, us) in [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)] {
        table.row([format!("latency, {name}, ms"), ms(us as f64)]);
    }
    if let Some(us) = report.server_cpu_us_per_operation {
        table.row(["processor time of the servers per operation, µs".into(), format!("{us:.1}")]);
    }
    table.row(["processors busy with the load generator".into(), format!("{:.2}", report.client_cpu_cores)]);
    table.row(["errors".into(), report.errors.to_string()]);
    println!("{table}");
    if let Some(error) = &report.first_error {
        println!("The first error: {error}");
    }
    if report.unsent > 0 {
        println!("The servers do not keep up: {} requests that were due could not be sent.", report.unsent);
    }
    if report.client_cpu_cores > 0.9 * f64::from(shape.threads) {
        println!("The load generator was at its limit: give it more --threads.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_named_as_they_are_read() {
        for text in ["get", "set", "create", "mixed:90"] {
            assert_eq!(text.parse::<Operation>().unwrap().to_string(), text);
        }
        assert_eq!("mixed:100".parse::<Operation>().unwrap().to_string(), "get");
        for text in ["", "read", "mixed", "mixed:101", "mixed:-1", "set:5"] {
            assert!(text.parse::<Operation>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn connections_count_whether_they_end_before_the_sampling_or_after_it() {
        let (sampled, wait) = tokio::sync::oneshot::channel();
        let done = |completed| anyhow::Ok(Outcome { completed, ..Outcome::default() });
        let mut working = JoinSet::new();
        working.spawn(async move { done(1) });
        working.spawn(async move { done(10) });
        working.spawn(async move {
            wait.await?;
            done(100)
        });
        let sampling = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            sampled.send(()).map_err(|()| anyhow::anyhow!("nobody waits"))?;
            Ok("sampled")
        };
        let (outcome, sample) = gather(&mut working, sampling).await.unwrap();
        assert_eq!((outcome.completed, sample), (111, "sampled"));
    }

    #[tokio::test]
    async fn a_connection_that_fails_ends_the_load() {
        let mut working = JoinSet::new();
        working.spawn(async { Err(anyhow::anyhow!("lost")) });
        let failed = gather(&mut working, std::future::pending::<anyhow::Result<()>>()).await;
        assert_eq!(failed.err().unwrap().to_string(), "lost");
    }
}
