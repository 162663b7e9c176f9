//! `meridian-bench latency`: what every kind of operation takes in every region of a mesh.
//!
//! One client at a time with one request outstanding (`sync` and the read behind it go out together):
//! unloaded latencies, in which nothing but the way of a request shows.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use meridian_wire::Request;
use serde::Serialize;
use tokio::time::Instant;

use crate::client::Client;
use crate::expectation::{Action, Claim, Expectation, Measured, Verdict};
use crate::mesh::{Demo, Mesh, Mode, Region, RoundTrips, Subtree, meridian_program};
use crate::table::Table;

/// Samples that are not counted, before each series.
const WARM_UP_REQUESTS: u32 = 5;
/// Latencies are kept in µs, up to this, with three digits.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Between two attempts to create the znodes, in a mesh that is still starting.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Attempts to create the znodes of a region.
const PREPARE_ATTEMPTS: u32 = 20;
/// What is written.
const DATA: &[u8] = &[b'm'; 100];

const EXAMPLES: &str = "\
Examples:
  meridian-bench latency --start
      Starts a demo mesh, measures it and stops it.
  meridian demo --json > mesh.json &
  meridian-bench latency --mesh mesh.json --requests 200
      Measures a mesh that is running.
  meridian-bench latency --start --demo-arg=--delay --demo-arg=none --json
      Without delays; for programs.

Every operation on a shared subtree stands beside what the planner predicts from the round trips and
the regions' own commits: the formulas of `meridian plan --local-commits` for two levels.
Ends with exit code 1 if one of them is off by more than 10 % and 1 ms, if the global group's leader
changed meanwhile, or if a claim about the design is violated by a wide margin.";

/// Measures the latency of every kind of operation in every region of a mesh
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LatencyArgs {
    /// The mesh: the line that `meridian demo --json` prints; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "start")]
    mesh: Option<PathBuf>,
    /// Start a demo mesh, measure it and stop it
    #[arg(long, conflicts_with = "mesh")]
    start: bool,
    /// The program to start it with, if not the `meridian` next to this one
    #[arg(long, value_name = "PATH", requires = "start")]
    meridian: Option<PathBuf>,
    /// A further argument of `meridian demo`
    #[arg(long, value_name = "ARG", requires = "start", allow_hyphen_values = true)]
    demo_arg: Vec<String>,
    /// Samples of each kind of operation in each region
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the mesh can't be measured.
pub async fn run(args: &LatencyArgs) -> anyhow::Result<ExitCode> {
    let report = if args.start {
        let program = meridian_program(args.meridian.as_deref())?;
        let (demo, mesh) = Demo::start(&program, &args.demo_arg).await?;
        let report = measure(&mesh, args.requests).await;
        demo.stop().await?;
        report?
    } else {
        let file = args.mesh.as_deref().context("name the mesh with --mesh, or start one with --start")?;
        measure(&Mesh::read(file)?, args.requests).await?
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    /// The region that led the global group; none if there is none, or if it changed meanwhile.
    global_leader: Option<String>,
    samples_per_operation: u32,
    round_trips: Vec<RoundTrip>,
    regions: Vec<RegionReport>,
    claims: Vec<Claim>,
}

impl Report {
    /// Whether the predictions are met, and no claim is violated.
    fn holds(&self) -> bool {
        let operations = || self.regions.iter().flat_map(|region| &region.operations);
        let leader_known = self.global_leader.is_some() || self.regions.len() == 1;
        leader_known
            && operations().all(|operation| operation.predicted.as_ref().is_none_or(|p| p.met))
            && self.claims.iter().all(|claim| claim.verdict != Verdict::Violated)
    }
}

#[derive(Debug, Serialize)]
struct RoundTrip {
    from: String,
    to: String,
    p50_ms: f64,
}

#[derive(Debug, Serialize)]
struct RegionReport {
    region: String,
    server: String,
    operations: Vec<OperationReport>,
}

#[derive(Debug, Serialize)]
struct OperationReport {
    operation: String,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// None where nothing but the region itself takes part.
    predicted: Option<Prediction>,
}

/// What the planner says, beside what was measured.
#[derive(Debug, Serialize)]
struct Prediction {
    #[serde(flatten)]
    expectation: Expectation,
    /// Measured median less the predicted one, ms.
    difference_ms: f64,
    /// How large the difference may be either way, ms.
    tolerance_ms: f64,
    met: bool,
}

impl Prediction {
    fn new(expectation: Expectation, p50_ms: f64) -> Self {
        let (difference_ms, tolerance_ms) = (p50_ms - expectation.ms, expectation.tolerance_ms());
        Prediction { expectation, difference_ms, tolerance_ms, met: difference_ms.abs() <= tolerance_ms }
    }
}

/// A series of samples: an action on a znode of a subtree, or on a local one.
struct Series<'a> {
    action: Action,
    subtree: Option<&'a Subtree>,
    latency_us: Histogram<u64>,
}

impl Series<'_> {
    fn operation(&self) -> String {
        let (kind, path) = match self.subtree {
            None => ("local", String::new()),
            Some(subtree) => match subtree.mode {
                Mode::Global => ("global", format!(" ({})", subtree.path)),
                Mode::Homed { .. } => ("homed", format!(" ({})", subtree.path)),
            },
        };
        match self.action {
            Action::Read => format!("{kind} read{path}"),
            Action::Write => format!("{kind} write{path}"),
            Action::SyncRead => format!("{kind} sync+read{path}"),
        }
    }

    fn percentile_ms(&self, percent: f64) -> f64 {
        milliseconds(self.latency_us.value_at_percentile(percent))
    }

    fn p50_ms(&self) -> f64 {
        self.percentile_ms(50.0)
    }
}

/// Microseconds as milliseconds.
fn milliseconds(us: u64) -> f64 {
    us as f64 / 1e3
}

async fn measure(mesh: &Mesh, requests: u32) -> anyhow::Result<Report> {
    let leader_before = global_leader(mesh).await?;
    let mut measured_regions = Vec::new();
    for region in &mesh.regions {
        let series = measure_region(mesh, region, requests)
            .await
            .with_context(|| format!("region {} at {}", region.name, region.contact().client))?;
        measured_regions.push((region, series));
    }
    let leader_after = global_leader(mesh).await?;
    let asked = mesh.clone();
    let measured = Measured {
        regions: mesh.regions.iter().map(|region| region.name.clone()).collect(),
        round_trips: tokio::task::spawn_blocking(move || asked.round_trips()).await??,
        global_leader: leader_after.filter(|after| leader_before.as_ref() == Some(after)),
        local_commit_ms: measured_regions
            .iter()
            .filter_map(|(region, series)| Some((region.name.clone(), local_write(series)?.p50_ms())))
            .collect(),
    };
    Ok(report(measured, &measured_regions, requests))
}

async fn global_leader(mesh: &Mesh) -> anyhow::Result<Option<String>> {
    let asked = mesh.clone();
    tokio::task::spawn_blocking(move || asked.global_leader()).await?
}

fn local_write<'a, 's>(series: &'a [Series<'s>]) -> Option<&'a Series<'s>> {
    series.iter().find(|series| series.subtree.is_none() && series.action == Action::Write)
}

async fn measure_region<'a>(
    mesh: &'a Mesh,
    region: &Region,
    requests: u32,
) -> anyhow::Result<Vec<Series<'a>>> {
    let mut client = Client::connect(&region.contact().client).await?;
    let path = |subtree: Option<&Subtree>| {
        let root = subtree.map_or("", |subtree| subtree.path.trim_end_matches('/'));
        format!("{root}/meridian-bench-{}-{}", region.name, std::process::id())
    };
    let mut planned = vec![(Action::Read, None), (Action::Write, None), (Action::SyncRead, None)];
    for subtree in &mesh.subtrees {
        planned.extend([(Action::Write, Some(subtree)), (Action::SyncRead, Some(subtree))]);
    }
    let subtrees = || std::iter::once(None).chain(mesh.subtrees.iter().map(Some));
    for subtree in subtrees() {
        prepare(&mut client, &path(subtree)).await?;
    }
    let mut measured = Vec::new();
    for (action, subtree) in planned {
        let latency_us = sample(&mut client, action, &path(subtree), requests).await?;
        measured.push(Series { action, subtree, latency_us });
    }
    for subtree in subtrees() {
        client.call(&Request::Delete { path: &path(subtree), version: -1 }).await?;
    }
    client.close().await?;
    Ok(measured)
}

/// Creates a znode; a mesh that has just started may refuse at first.
async fn prepare(client: &mut Client, path: &str) -> anyhow::Result<()> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match client.ensure_path(path).await {
            Ok(()) => return Ok(()),
            Err(error) if attempt == PREPARE_ATTEMPTS => {
                return Err(error).with_context(|| format!("cannot create {path}"));
            }
            Err(crate::client::ClientError::Server { .. }) => tokio::time::sleep(RETRY_PAUSE).await,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn sample(
    client: &mut Client,
    action: Action,
    path: &str,
    requests: u32,
) -> anyhow::Result<Histogram<u64>> {
    let mut latency_us = Histogram::new_with_max(LATENCY_US_MAX, 3)?;
    for number in 0..WARM_UP_REQUESTS + requests {
        let started = Instant::now();
        match action {
            Action::Read => client.submit(&Request::GetData { path, watch: false })?,
            Action::Write => client.submit(&Request::SetData { path, data: Some(DATA), version: -1 })?,
            Action::SyncRead => {
                client.submit(&Request::Sync { path })?;
                client.submit(&Request::GetData { path, watch: false })?;
            }
        }
        while client.outstanding() > 0 {
            client.next_reply().await?.succeeded()?;
        }
        if number >= WARM_UP_REQUESTS {
            latency_us.saturating_record(u64::try_from(started.elapsed().as_micros())?);
        }
    }
    ensure!(latency_us.len() == u64::from(requests), "samples were lost");
    Ok(latency_us)
}

fn report(measured: Measured, regions: &[(&Region, Vec<Series<'_>>)], requests: u32) -> Report {
    let mut claims = Vec::new();
    let mut reports = Vec::new();
    for (region, series) in regions {
        let operation = |series: &Series<'_>| OperationReport {
            operation: series.operation(),
            p50_ms: series.p50_ms(),
            p99_ms: series.percentile_ms(99.0),
            max_ms: milliseconds(series.latency_us.max()),
            predicted: measured
                .expectation(series.action, series.subtree.map(|subtree| &subtree.mode), &region.name)
                .map(|expectation| Prediction::new(expectation, series.p50_ms())),
        };
        claims.extend(series.iter().filter_map(|series| claim(&measured, &region.name, series)));
        reports.push(RegionReport {
            region: region.name.clone(),
            server: region.contact().name.clone(),
            operations: series.iter().map(operation).collect(),
        });
    }
    let RoundTrips(round_trips) = measured.round_trips;
    let round_trip = |((from, to), p50_ms)| RoundTrip { from, to, p50_ms };
    Report {
        global_leader: measured.global_leader,
        samples_per_operation: requests,
        round_trips: round_trips.into_iter().map(round_trip).collect(),
        regions: reports,
        claims,
    }
}

/// The claim, if any, that a series speaks for or against.
fn claim(measured: &Measured, region: &str, series: &Series<'_>) -> Option<Claim> {
    match (series.action, series.subtree.map(|subtree| &subtree.mode)) {
        (Action::Read | Action::Write, None) => measured.local_claim(series.action, region, series.p50_ms()),
        (Action::Write, Some(Mode::Global)) => measured.global_claim(region, series.p50_ms()),
        _ => None,
    }
}

fn print(report: &Report) {
    println!("Round trips between regions, measured, p50 in ms:");
    let mut table = Table::new(["from", "to", "RTT"], 0);
    for RoundTrip { from, to, p50_ms } in &report.round_trips {
        table.row([from.clone(), to.clone(), format!("{p50_ms:.1}")]);
    }
    println!("{table}");
    match &report.global_leader {
        Some(leader) => println!("{leader} leads the global group."),
        None => {
            println!("No region led the global group all the time: measure again.")
        }
    }
    for region in &report.regions {
        println!(
            "\n{}: one client at {}, {} samples each, ms",
            region.region, region.server, report.samples_per_operation
        );
        let headings = ["operation", "p50", "p99", "max", "predicted", "off by", "allowed", "", "because of"];
        let mut table = Table::new(headings, 2);
        for operation in &region.operations {
            let mut row = vec![operation.operation.clone()];
            row.extend([operation.p50_ms, operation.p99_ms, operation.max_ms].map(|ms| format!("{ms:.2}")));
            row.extend(match &operation.predicted {
                Some(predicted) => [
                    format!("{:.2}", predicted.expectation.ms),
                    format!("{:+.2}", predicted.difference_ms),
                    format!("{:.2}", predicted.tolerance_ms),
                    if predicted.met { "met" } else { "MISSED" }.to_owned(),
                    predicted.expectation.terms.clone(),
                ],
                None => ["-", "", "", "", "the region alone"].map(str::to_owned),
            });
            table.row(row);
        }
        print!("{table}");
    }
    println!("\nClaims:");
    let mut table = Table::new(["", "p50", "limit", "verdict"], 1);
    for claim in &report.claims {
        let verdict = match claim.verdict {
            Verdict::Holds => "holds",
            Verdict::Violated => "VIOLATED",
            Verdict::Undecided => "undecided: the round trips are too short to tell",
        };
        table.row([
            claim.claim.clone(),
            format!("{:.1}", claim.measured_ms),
            format!("{:.1}", claim.limit_ms),
            verdict.into(),
        ]);
    }
    println!("{table}");
}
