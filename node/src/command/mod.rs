//! The `meridian` command: one server, a whole mesh to try, plans, certificates.

mod certs;
mod demo;
mod import;
mod members;
mod mesh;
mod plan;
mod server;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::config::{LogConfig, LogFormat};

const EXAMPLES: &str = "\
Examples:
  meridian demo
      Three regions on this machine, with the delays of a wide-area network, ready for any ZooKeeper client.
  meridian demo cut us-east eu
      In another terminal: cuts a link of the running demo; `meridian demo heal` mends all.
  meridian server --config /etc/meridian/region.toml
      One server of a region, in the foreground until SIGTERM.
  meridian plan --matrix aws --regions us-east-1,us-west-2,eu-west-1
      Where voters and leaders should stand, and which timeouts follow.
  meridian certs authority --directory certs && meridian certs issue us-east 1 --directory certs
      The certificates of a mesh.";

/// The version, and what is not in every build.
const VERSION: &str = if cfg!(feature = "kerberos") {
    concat!(env!("CARGO_PKG_VERSION"), " with kerberos")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Meridian: a coordination mesh over regions that ZooKeeper clients talk to.
#[derive(Debug, Parser)]
#[command(name = "meridian", version = VERSION, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one server of a region
    Server(server::ServerArgs),
    /// Run a mesh of several regions on this machine, or cut and heal its links
    Demo(demo::DemoArgs),
    /// Show or change the servers of a region while it runs
    Members(members::MembersArgs),
    /// Show who leads the mesh and who is home of what, or move it
    Mesh(mesh::MeshArgs),
    /// Take over the znodes of an Apache ZooKeeper ensemble
    Import(import::ImportArgs),
    /// Plan a topology from round-trip times
    Plan(Box<meridian_topology::command::PlanArgs>),
    /// Make the certificates of a mesh
    Certs(certs::CertsArgs),
}

/// Runs the command that the command line names.
pub fn run() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Server(args) => server::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Members(args) => members::run(&args),
        Command::Mesh(args) => mesh::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Certs(args) => certs::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("meridian: {error:#}");
        ExitCode::FAILURE
    })
}

/// Starts the log for people, on standard error.
fn start_log(config: &LogConfig) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.filter)
        .map_err(|e| anyhow::anyhow!("log.filter '{}': {e}", config.filter))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Which server is asked, and how its answer is printed.
#[derive(Debug, Args)]
struct AdminArgs {
    /// The admin address of a server of the region
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:8080",
        env = "MERIDIAN_ADMIN"
    )]
    admin: String,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

impl AdminArgs {
    /// Prints an answer, as it is or as text.
    fn print(&self, answer: &str, text: impl Fn(&serde_json::Value) -> String) -> anyhow::Result<()> {
        match self.json {
            true => println!("{answer}"),
            false => print!("{}", text(&serde_json::from_str(answer)?)),
        }
        Ok(())
    }
}

/// The answer of a server's HTTP endpoint.
fn ask_admin(address: &str, path: &str) -> anyhow::Result<String> {
    let response = admin_agent(Duration::from_secs(3)).get(format!("http://{address}{path}")).call();
    admin_answer(address, path, response)
}

/// Asks a server's HTTP endpoint for a change, which may take as long as servers need to catch up.
fn post_admin(address: &str, path: &str, body: &serde_json::Value) -> anyhow::Result<String> {
    send_admin(address, path, "application/json", body.to_string().as_bytes())
}

fn send_admin(address: &str, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<String> {
    let agent = admin_agent(Duration::from_secs(150));
    let request = agent.post(format!("http://{address}{path}")).header("content-type", kind);
    admin_answer(address, path, request.send(body))
}

fn admin_agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build().into()
}

fn admin_answer(
    address: &str,
    path: &str,
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> anyhow::Result<String> {
    let mut response = response.with_context(|| {
        format!("no answer from the admin address {address}; is the server running, and is this its [admin] listen?")
    })?;
    let body = response.body_mut().read_to_string()?;
    if response.status().is_success() {
        return Ok(body);
    }
    let error = serde_json::from_str::<serde_json::Value>(&body).ok();
    match error.as_ref().and_then(|error| error["error"].as_str()) {
        Some(reason) => anyhow::bail!("{reason}"),
        None => anyhow::bail!("{address}{path} answered {}: {}", response.status(), body.trim()),
    }
}
