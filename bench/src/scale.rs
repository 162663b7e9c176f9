//! `meridian-bench scale`: what many znodes, sessions and watches cost an ensemble.

pub(crate) mod sessions;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use meridian_wire::{ErrorCode, Request};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, create};
use crate::ensemble::{Ensemble, Setup, Snapshots, System, Systems};
use crate::load::{Load, Operation, Shape};
use crate::table::Table;
use sessions::Holders;

/// Requests under way on a connection while much is written.
const OUTSTANDING: usize = 256;
/// Connections that write znodes or hold watches.
const CONNECTIONS: usize = 30;
/// Memory is read when it has come to rest.
const REST: Duration = Duration::from_secs(5);
/// All the writes that an ensemble bears.
const WRITES: Load = Load {
    operation: Operation::Mixed { reads_percent: 0 },
    shape: Shape {
        connections: 64,
        outstanding: 16,
        size: 100,
        znodes: 1_000,
        seconds: 12,
        warm_up: 3,
        threads: 1,
    },
    rate: None,
};
/// Nothing takes so long on a machine that can do it at all.
const PATIENCE: Duration = Duration::from_secs(900);

const EXAMPLES: &str = "\
Examples:
  meridian-bench scale
      A million znodes, 100,000 sessions that all watch one znode, ten million watches; for both systems.
  meridian-bench scale --what snapshots
      How much longer writes take while a million znodes are written to snapshots.
  meridian-bench scale --what znodes --znodes 100000 --only-meridian --json
  meridian-bench scale --what sessions --observers 3
      The sessions over six servers: each needs a file descriptor for each of its sessions.

Needs memory for both sides of each connection.";

/// Measures memory and restarts with many znodes, sessions and watches
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ScaleArgs {
    #[command(flatten)]
    systems: Systems,
    /// Leave ZooKeeper out
    #[arg(long)]
    only_meridian: bool,
    /// What there is much of
    #[arg(long, value_enum, value_delimiter = ',', default_value = "znodes,sessions,watches")]
    what: Vec<What>,
    /// Znodes of 100 bytes
    #[arg(long, default_value_t = 1_000_000)]
    znodes: usize,
    /// Observers beside the three voters
    #[arg(long, default_value_t = 0)]
    observers: usize,
    /// Sessions, over all servers; each watches the same znode
    #[arg(long, default_value_t = 100_000)]
    sessions: usize,
    /// Watches of as many paths, over a few connections
    #[arg(long, default_value_t = 10_000_000)]
    watches: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What there is much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Znodes: memory, restarts
    Znodes,
    /// Sessions that watch one znode: memory, time to tell all
    Sessions,
    /// Watches: memory
    Watches,
    /// Znodes, of which snapshots are written while clients write, and then are not: the writes' latency
    Snapshots,
}

impl What {
    /// Each is measured with an ensemble of its own.
    fn snapshots(self) -> &'static [Snapshots] {
        match self {
            Self::Snapshots => &[Snapshots::AsByDefault, Snapshots::Never],
            _ => &[Snapshots::AsByDefault],
        }
    }
}

/// One figure.
#[derive(Debug, Serialize)]
struct Figure {
    system: &'static str,
    figure: String,
    value: f64,
}

/// Runs the command.
///
/// # Errors
/// If an ensemble can't be started, or does not bear what is asked of it.
pub async fn run(args: &ScaleArgs) -> anyhow::Result<ExitCode> {
    let mut figures = Vec::new();
    for what in &args.what {
        for system in System::measured(args.only_meridian) {
            for snapshots in what.snapshots() {
                let directory = args.systems.directory()?;
                let setup = Setup { observers: args.observers, snapshots: *snapshots };
                let ensemble = args.systems.start(*system, directory.path(), setup)?;
                let mut scale = Scale { ensemble, figures: &mut figures };
                let measured = timeout(PATIENCE, scale.measure(*what, *snapshots, args)).await;
                scale.ensemble.stop().await;
                measured.context("it took too long")??;
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&figures)?)
    } else {
        print(&figures)
    }
    Ok(ExitCode::SUCCESS)
}

struct Scale<'f> {
    ensemble: Ensemble,
    figures: &'f mut Vec<Figure>,
}

impl Scale<'_> {
    async fn measure(&mut self, what: What, snapshots: Snapshots, args: &ScaleArgs) -> anyhow::Result<()> {
        self.ensemble.wait_until_serving().await?;
        match what {
            What::Znodes => self.znodes(args.znodes).await,
            What::Sessions => self.sessions(args.sessions).await,
            What::Watches => self.watches(args.watches).await,
            What::Snapshots => self.writes(args.znodes, snapshots).await,
        }
    }

    fn note(&mut self, figure: impl Into<String>, value: f64) {
        let figure = figure.into();
        eprintln!("{}: {figure}: {value:.1}", self.ensemble.name());
        self.figures.push(Figure { system: self.ensemble.name(), figure, value });
    }

    /// The mean over the servers.
    fn resident_bytes(&self) -> anyhow::Result<f64> {
        let servers = self.ensemble.clients().len();
        let all: anyhow::Result<Vec<u64>> = (0..servers).map(|s| self.ensemble.resident_bytes(s)).collect();
        Ok(all?.iter().sum::<u64>() as f64 / servers as f64)
    }

    async fn create(&self, count: usize) -> anyhow::Result<()> {
        let mut writers = JoinSet::new();
        for writer in 0..CONNECTIONS {
            let server = self.ensemble.clients()[writer % self.ensemble.clients().len()].clone();
            writers.spawn(create_many(server, writer, count / CONNECTIONS));
        }
        while let Some(written) = writers.join_next().await {
            written??;
        }
        sleep(REST).await;
        Ok(())
    }

    async fn writes(&mut self, count: usize, snapshots: Snapshots) -> anyhow::Result<()> {
        self.create(count).await?;
        let report = self.ensemble.load(&WRITES).await?;
        let with = if snapshots == Snapshots::Never { "without" } else { "with" };
        let what = format!("writes beside {count} znodes, {with} snapshots");
        self.note(format!("{what}: a second"), report.throughput);
        self.note(format!("{what}: p99, ms"), report.latency_us.p99 as f64 / 1e3);
        Ok(())
    }

    async fn znodes(&mut self, count: usize) -> anyhow::Result<()> {
        self.create(count).await?;
        let bytes = self.resident_bytes()?;
        self.note(format!("{count} znodes of 100 bytes: resident, MB a server"), bytes / 1e6);
        let leader = self.ensemble.leader().await.context("nobody leads")?;
        let follower = (leader + 1) % self.ensemble.clients().len();
        let started = Instant::now();
        self.ensemble.restart(follower).await?;
        self.ensemble.wait_for(follower).await?;
        self.note("one server ready again, s", started.elapsed().as_secs_f64());
        let started = Instant::now();
        self.ensemble.restart_all().await?;
        self.ensemble.wait_until_serving().await?;
        self.note("all servers ready again, s", started.elapsed().as_secs_f64());
        Ok(())
    }

    async fn sessions(&mut self, count: usize) -> anyhow::Result<()> {
        let servers = self.ensemble.clients().to_vec();
        let mut writer = Client::connect(&servers[0]).await?;
        writer.call(&create("/watched", b"1")).await?.succeeded()?;
        writer.close().await?;
        let before = self.resident_bytes()?;
        let started = Instant::now();
        let mut holders = Holders::start(&servers, count)?;
        holders.opened().await?;
        self.note(
            format!("{count} sessions opened a second"),
            count as f64 / started.elapsed().as_secs_f64(),
        );
        sleep(REST).await;
        let bytes = (self.resident_bytes()? - before) / (count as f64 / servers.len() as f64);
        self.note("a connected session that watches: bytes at its server", bytes);
        let mut writer = Client::connect(&servers[0]).await?;
        let started = Instant::now();
        writer
            .call(&Request::SetData { path: "/watched", data: Some(b"2"), version: -1 })
            .await?
            .succeeded()?;
        holders.told().await?;
        self.note("all watchers told, s", started.elapsed().as_secs_f64());
        Ok(())
    }

    async fn watches(&mut self, count: usize) -> anyhow::Result<()> {
        let before = self.resident_bytes()?;
        let mut watchers = JoinSet::new();
        for watcher in 0..CONNECTIONS {
            let server = self.ensemble.clients()[watcher % self.ensemble.clients().len()].clone();
            watchers.spawn(watch_many(server, watcher, count / CONNECTIONS));
        }
        let mut clients = Vec::new();
        while let Some(watching) = watchers.join_next().await {
            clients.push(watching??);
        }
        sleep(REST).await;
        let per_server = count as f64 / self.ensemble.clients().len() as f64;
        let bytes = (self.resident_bytes()? - before) / per_server;
        self.note(format!("{count} watches of as many paths: bytes each"), bytes);
        Ok(())
    }
}

async fn create_many(server: String, writer: usize, count: usize) -> anyhow::Result<()> {
    let mut client = Client::connect(&server).await?;
    let parent = format!("/scale-{writer}");
    client.call(&create(&parent, b"")).await?.succeeded()?;
    for i in 0..count {
        client.submit(&create(&format!("{parent}/{i:09}"), &[b'z'; 100]))?;
        while client.outstanding() >= OUTSTANDING {
            client.next_reply().await?.succeeded()?;
        }
    }
    while client.outstanding() > 0 {
        client.next_reply().await?.succeeded()?;
    }
    client.close().await?;
    Ok(())
}

async fn watch_many(server: String, watcher: usize, count: usize) -> anyhow::Result<Client> {
    let mut client = Client::connect(&server).await?;
    for i in 0..count {
        client.submit(&Request::Exists { path: &format!("/watched-{watcher}/{i:09}"), watch: true })?;
        while client.outstanding() >= OUTSTANDING {
            let reply = client.next_reply().await?;
            ensure!(reply.header.error == ErrorCode::NoNode, "exists answered {:?}", reply.header.error);
        }
    }
    while client.outstanding() > 0 {
        client.next_reply().await?;
    }
    Ok(client)
}

fn print(figures: &[Figure]) {
    let mut table = Table::new(["figure", "ZooKeeper", "Meridian", "Meridian / ZooKeeper"], 0);
    let mut names: Vec<&str> = Vec::new();
    figures.iter().for_each(|figure| {
        if !names.contains(&figure.figure.as_str()) {
            names.push(&figure.figure);
        }
    });
    for name in names {
        let of = |system| figures.iter().find(|f| f.figure == name && f.system == system).map(|f| f.value);
        let (zookeeper, meridian) = (of("ZooKeeper"), of("Meridian"));
        let cell = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
        let ratio = zookeeper.zip(meridian).map_or("-".into(), |(z, m)| format!("{:.2}", m / z));
        table.row([name.into(), cell(zookeeper), cell(meridian), ratio]);
    }
    println!("{table}");
}
