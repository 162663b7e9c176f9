//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use meridian_seam::open_files;

use crate::compare::{self, CompareArgs};
use crate::failover::{self, FailoverArgs};
use crate::latency::{self, LatencyArgs};
use crate::load::{self, LoadArgs};
use crate::scale::sessions::{self, HoldArgs};
use crate::scale::{self, ScaleArgs};
use crate::sim::{self, SimArgs};

const EXAMPLES: &str = "\
Examples:
  meridian-bench latency --start
      Latencies in every region of a demo mesh, beside what its round trips allow.
  meridian-bench load --servers 127.0.0.1:2181 --op set
      Throughput and latency of any ZooKeeper-protocol server.
  meridian-bench compare --seconds 30
      Apache ZooKeeper and Meridian under the same loads.
  meridian-bench failover
      How long writes stop when a leader dies, stops or hangs.
  meridian-bench scale
      What a million znodes, 100,000 sessions and ten million watches cost.";

/// Measures ZooKeeper-protocol servers from outside, as their clients see them.
#[derive(Debug, Parser)]
#[command(name = "meridian-bench", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Latency(LatencyArgs),
    Load(LoadArgs),
    Compare(CompareArgs),
    Failover(FailoverArgs),
    Scale(ScaleArgs),
    /// A part of `scale`.
    #[command(hide = true)]
    HoldSessions(HoldArgs),
    Sim(SimArgs),
}

/// Runs the command that the command line names.
pub fn run() -> ExitCode {
    // For loads of thousands of connections; where it is too low even so, they fail to connect and say why.
    open_files::raise_limit();
    let result = match Arguments::parse().command {
        Command::Latency(args) => block_on(1, latency::run(&args)),
        Command::Load(args) => block_on(args.threads(), load::run(&args)),
        Command::Compare(args) => block_on(args.threads(), compare::run(&args)),
        Command::Failover(args) => block_on(1, failover::run(&args)),
        Command::Scale(args) => block_on(1, scale::run(&args)),
        Command::HoldSessions(args) => block_on(1, sessions::hold(&args)),
        Command::Sim(args) => sim::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("meridian-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn block_on(
    threads: u32,
    command: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    let mut builder = match threads {
        // No request need wake another thread on its way.
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(threads as usize).enable_all().build()?;
    runtime.block_on(command)
}
