//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::latency::{self, LatencyArgs};

const EXAMPLES: &str = "\
Examples:
  meridian-bench latency --start
      Latencies in every region of a demo mesh, beside what its round trips allow.";

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
}

/// Runs the command that the command line names.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| match &arguments.command {
            Command::Latency(args) => runtime.block_on(latency::run(args)),
        });
    result.unwrap_or_else(|error| {
        eprintln!("meridian-bench: {error:#}");
        ExitCode::FAILURE
    })
}
