//! `meridian demo`: a mesh of several regions on this machine, each server a process of its own, with the
//! delays of a wide-area network between the regions.

mod layout;
mod servers;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use meridian_seam::open_files;
use meridian_topology::matrix::{self, Matrix};
use meridian_wan::{Wan, control};
use serde::Serialize;

use layout::{Layout, Shape};
use servers::Servers;

/// Where a running demo takes commands about its links, unless told otherwise.
const CONTROL_PORT: u16 = 21_800;
/// First port of the first region's clients; further regions follow at steps of ten, other kinds of ports
/// at steps of a hundred.
const CLIENT_PORT: u16 = 21_811;

const EXAMPLES: &str = "\
Examples:
  meridian demo
      us-east, us-west and eu with the round trips of AWS, three voters and an observer each.
  meridian demo --rtt my.csv --regions tokyo,sydney,mumbai
      Your own round trips: a CSV with the columns from,to,rtt_ms.
  meridian demo --delay none --data /tmp/mesh
      No delays; data is kept in /tmp/mesh.
  meridian demo --json > mesh.json
      One line for scripts once all is ready.
In another terminal:
  meridian demo cut us-east eu      cuts the link between two regions
  meridian demo cut us-east         cuts a region off from all others
  meridian demo heal                heals all links
  meridian demo status              shows which links are cut";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct DemoArgs {
    #[command(subcommand)]
    link: Option<LinkCommand>,
    /// Round trips between the regions: a CSV (from,to,rtt_ms) or JSON matrix
    #[arg(long, value_name = "FILE")]
    rtt: Option<PathBuf>,
    /// Regions to take from it, or from the AWS matrix; name=region calls one otherwise
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    regions: Vec<String>,
    /// `wan` for the round trips of the matrix, `none` for no delays
    #[arg(long, value_enum, default_value = "wan")]
    delay: Delay,
    /// Voters per region: 1, 3 or 5
    #[arg(long, default_value_t = 3, value_parser = parse_voters)]
    voters: u8,
    /// Observers per region
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=4))]
    observers: u8,
    /// Keep data, configurations and logs here; without it they are temporary
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print one line of JSON once all is ready, and nothing else, on standard output
    #[arg(long)]
    json: bool,
    /// Where this demo takes commands about its links
    #[arg(long, value_name = "PORT", default_value_t = CONTROL_PORT, global = true, env = "MERIDIAN_DEMO_CONTROL")]
    control: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Delay {
    /// The round trips of the matrix
    Wan,
    /// None
    None,
}

#[derive(Debug, Subcommand)]
enum LinkCommand {
    /// Cut the link between two regions, or a region off from all others
    Cut {
        /// A region
        region: String,
        /// Another region; without it, all others
        other: Option<String>,
    },
    /// Heal the link between two regions, those of one region, or all
    Heal {
        /// A region
        region: Option<String>,
        /// Another region
        other: Option<String>,
    },
    /// Show the links
    Status,
}

fn parse_voters(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(voters @ (1 | 3 | 5)) => Ok(voters),
        _ => Err("must be 1, 3 or 5".into()),
    }
}

pub(super) fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    // All that the servers say to each other from afar passes through this process.
    open_files::raise_limit();
    let runtime = tokio::runtime::Runtime::new()?;
    match &args.link {
        Some(command) => runtime.block_on(control_links(command, args.control)),
        None => runtime.block_on(run_mesh(args)),
    }
}

async fn control_links(command: &LinkCommand, port: u16) -> anyhow::Result<ExitCode> {
    let words = match command {
        LinkCommand::Cut { region, other } => ["cut", region, other.as_deref().unwrap_or("")].join(" "),
        LinkCommand::Heal { region, other } => {
            ["heal", region.as_deref().unwrap_or(""), other.as_deref().unwrap_or("")].join(" ")
        }
        LinkCommand::Status => "status".into(),
    };
    let command: control::Command = words.trim().parse()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = control::send(address, &command).await.with_context(|| {
        format!(
            "no running demo answered on port {port}; start `meridian demo`, or name its port with --control"
        )
    })?;
    println!("{answer}");
    Ok(ExitCode::SUCCESS)
}

async fn run_mesh(args: DemoArgs) -> anyhow::Result<ExitCode> {
    // Before anything is started: what is started must end with Ctrl-C at any moment.
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let matrix = read_matrix(&args)?;
    let temporary = match &args.data {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("meridian-demo-").tempdir()?),
    };
    let directory = match (&args.data, &temporary) {
        (Some(directory), _) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
            std::path::absolute(directory)?
        }
        (None, Some(temporary)) => temporary.path().to_path_buf(),
        (None, None) => unreachable!("one of the two is chosen above"),
    };
    let shape = Shape { regions: matrix.regions().to_vec(), voters: args.voters, observers: args.observers };
    let wan = Wan::new(layout::delays(&matrix, args.delay == Delay::None)?)?;
    let control = match control::serve(wan.clone(), args.control).await {
        Ok(control) => control,
        Err(_) => control::serve(wan.clone(), 0).await?,
    };
    let layout = Layout::make(shape, &directory, &wan, CLIENT_PORT).await?;
    let mut servers = Servers::start(&layout)?;
    let outcome = tokio::select! {
        outcome = serve(&args, &layout, &matrix, &mut servers, control.address()) => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    if !args.json {
        eprintln!("\nstopping {} servers ...", layout.servers().count());
    }
    servers.stop().await;
    drop(temporary);
    outcome.map(|()| ExitCode::SUCCESS)
}

fn read_matrix(args: &DemoArgs) -> anyhow::Result<Matrix> {
    let mut matrix = match &args.rtt {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let (matrix, findings) = matrix::parse(&text);
            if meridian_topology::diagnostic::has_errors(&findings) {
                anyhow::bail!("{}: {}", file.display(), meridian_topology::report::findings(&findings));
            }
            matrix
        }
        None if args.regions.is_empty() => matrix::default_regions(),
        None => matrix::builtin("aws").context("there is no built-in matrix")?,
    };
    if !args.regions.is_empty() {
        matrix = matrix
            .select(&args.regions)
            .map_err(|findings| anyhow::anyhow!("{}", meridian_topology::report::findings(&findings)))?;
    }
    let count = matrix.regions().len();
    anyhow::ensure!(
        (1..=layout::REGIONS_MAX).contains(&count),
        "{count} regions: choose 1 to {} of them with --regions A,B,C",
        layout::REGIONS_MAX
    );
    Ok(matrix)
}

/// Waits until the mesh is ready, says so, and then watches over its servers.
async fn serve(
    args: &DemoArgs,
    layout: &Layout,
    matrix: &Matrix,
    servers: &mut Servers,
    control: SocketAddr,
) -> anyhow::Result<()> {
    let quiet = args.json;
    if !quiet {
        let (regions, count) = (layout.regions.len(), layout.servers().count());
        eprintln!("starting {count} servers in {regions} regions, data in {}", layout.directory.display());
    }
    let ready = servers.wait_until_ready(layout, control, quiet).await?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&ready)?)?;
    } else {
        print_ready(&mut out, layout, matrix, &ready, args.delay)?;
    }
    out.flush()?;
    servers.watch(layout, quiet).await
}

/// What a script learns of a mesh that is ready.
#[derive(Debug, Serialize)]
struct Ready {
    /// Where `meridian demo cut` reaches this demo: its port goes after `--control`.
    control: SocketAddr,
    regions: Vec<ReadyRegion>,
    subtrees: Vec<ReadySubtree>,
}

#[derive(Debug, Serialize)]
struct ReadyRegion {
    name: String,
    servers: Vec<ReadyServer>,
}

#[derive(Debug, Serialize)]
struct ReadyServer {
    name: String,
    role: &'static str,
    pid: u32,
    client: String,
    admin: String,
    leader: bool,
    config: PathBuf,
}

#[derive(Debug, Serialize)]
struct ReadySubtree {
    path: String,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    home: Option<String>,
}

fn print_ready(
    out: &mut impl Write,
    layout: &Layout,
    matrix: &Matrix,
    ready: &Ready,
    delay: Delay,
) -> anyhow::Result<()> {
    writeln!(out, "\nThe mesh is ready.\n")?;
    for region in &ready.regions {
        writeln!(out, "  {}", region.name)?;
        for server in &region.servers {
            let leads = if server.leader { "leads the region" } else { "" };
            writeln!(
                out,
                "    {:<14} {:<9} client {:<16} admin {:<16} {leads}",
                server.name, server.role, server.client, server.admin
            )?;
        }
    }
    writeln!(
        out,
        "\nRound trips, ms (measured p50{}):",
        if delay == Delay::Wan { " / asked for" } else { "" }
    )?;
    print_round_trips(out, layout, matrix, ready, delay)?;
    writeln!(out, "\nShared subtrees:")?;
    for subtree in &ready.subtrees {
        match &subtree.home {
            None => writeln!(
                out,
                "  {:<10} global: a majority of the regions agrees on every write",
                subtree.path
            )?,
            Some(home) => {
                writeln!(out, "  {:<10} homed in {home}: written there, read everywhere", subtree.path)?
            }
        }
    }
    writeln!(out, "  everything else is local to its region")?;
    let client = |region: usize| &ready.regions[region].servers[0].client;
    writeln!(out, "\nTry it (pip install kazoo):")?;
    writeln!(
        out,
        "  python3 -c \"from kazoo.client import KazooClient as K; k = K('{}'); k.start(); \\",
        client(0)
    )?;
    writeln!(out, "    k.ensure_path('/global/demo'); print(k.create('/global/demo/n-', sequence=True))\"")?;
    let last = ready.regions.len() - 1;
    writeln!(out, "  zkCli.sh -server {} ls /global/demo", client(last))?;
    if ready.regions.len() > 1 {
        let program = std::env::current_exe()?;
        let port = if ready.control.port() == CONTROL_PORT {
            String::new()
        } else {
            format!(" --control {}", ready.control.port())
        };
        let (first, last) = (&ready.regions[0].name, &ready.regions[last].name);
        writeln!(out, "  {} demo cut {first} {last}{port}      # and: demo heal{port}", program.display())?;
    }
    writeln!(out, "\nLogs and configurations: {}", layout.directory.display())?;
    writeln!(
        out,
        "Ctrl-C stops everything{}.",
        if layout.is_temporary() { " and leaves nothing behind" } else { "" }
    )?;
    Ok(())
}

fn print_round_trips(
    out: &mut impl Write,
    layout: &Layout,
    matrix: &Matrix,
    ready: &Ready,
    delay: Delay,
) -> anyhow::Result<()> {
    let admin = &ready.regions[0].servers[0].admin;
    let measured = servers::round_trips(admin).unwrap_or_default();
    let names: Vec<&String> = layout.regions.iter().map(|r| &r.name).collect();
    write!(out, "  {:<12}", "")?;
    for to in &names {
        write!(out, "{to:>16}")?;
    }
    writeln!(out)?;
    for from in &names {
        write!(out, "  {from:<12}")?;
        for to in &names {
            let cell = match measured.get(&((*from).clone(), (*to).clone())) {
                _ if from == to => "-".to_string(),
                None => "not yet".to_string(),
                Some(ms) => match matrix.round_trip(from, to).filter(|_| delay == Delay::Wan) {
                    Some(asked) => format!("{ms:.1} / {:.1}", asked.p50_ms),
                    None => format!("{ms:.1}"),
                },
            };
            write!(out, "{cell:>16}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The pause between two looks at servers that are starting.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
