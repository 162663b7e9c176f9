//! `meridian import`: takes over the znodes of an Apache ZooKeeper ensemble.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use meridian_seam::codec;
use serde_json::{Value, json};

use super::{AdminArgs, send_admin};
use crate::import::{Found, files, live};
use crate::txn::import::Import;
use crate::txn::snapshot::batches;

const EXAMPLES: &str = "\
Examples:
  meridian import --files /var/lib/zookeeper/version-2
      From the files of a stopped server: the newest snapshot and the logs after it. Take the server that
      led, or whichever has the newest log.
  meridian import --live zk1:2181 --auth digest:super:secret
      From a running ensemble, through its client port. Stop its writers first, or import again after.
  meridian import --live zk1:2181 --dry-run --json

Znodes keep their data, ACLs, versions, times and zxids; the region's own zxids go on above the old ones, so
that clients may move with their sessions' state. Ephemerals are not taken, nor is /zookeeper. Importing
again overwrites what was imported before and removes nothing. At the end everything is compared.";

/// Take over the znodes of an Apache ZooKeeper ensemble
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImportArgs {
    /// The directory `version-2` of a stopped server's dataDir
    #[arg(long, value_name = "DIR", required_unless_present = "live", conflicts_with = "live")]
    files: Option<PathBuf>,
    /// The directory of the logs, if the server had a dataLogDir
    #[arg(long, value_name = "DIR", requires = "files")]
    log_files: Option<PathBuf>,
    /// A server of a running ensemble
    #[arg(long, value_name = "HOST:PORT")]
    live: Option<String>,
    /// What the importing client proves to be, as with addauth: `digest:user:password`
    #[arg(long, value_name = "SCHEME:CREDENTIALS", requires = "live")]
    auth: Vec<String>,
    #[command(flatten)]
    server: AdminArgs,
    /// Only read and report
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let found = find(args)?;
    let mut report = Report {
        znodes: found.znodes.len(),
        found: &found,
        imported: 0,
        refused: Vec::new(),
        differing: Vec::new(),
    };
    if !args.dry_run {
        report.import(&args.server.admin)?;
        report.verify(&args.server.admin)?;
    }
    if args.server.json {
        println!("{}", report.json())
    } else {
        print!("{}", report.text(args.dry_run))
    }
    let whole = report.refused.is_empty() && report.differing.is_empty();
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn find(args: &ImportArgs) -> anyhow::Result<Found> {
    if let Some(directory) = &args.files {
        let logs = args.log_files.as_ref().unwrap_or(directory);
        eprintln!("reading {} ...", directory.display());
        return Ok(files::read(directory, logs)?);
    }
    let address = args.live.as_deref().unwrap_or_default();
    let auth = args.auth.iter().map(|auth| {
        let (scheme, credentials) = auth.split_once(':').context("write --auth as SCHEME:CREDENTIALS")?;
        Ok((scheme.to_string(), credentials.to_string()))
    });
    let auth: Vec<_> = auth.collect::<anyhow::Result<_>>()?;
    let mut ticker = Ticker::new("read");
    let found = live::read(address, &auth, |done, known| ticker.tell(done, known));
    found.with_context(|| format!("cannot read {address}"))
}

struct Report<'f> {
    found: &'f Found,
    znodes: usize,
    imported: u64,
    refused: Vec<String>,
    differing: Vec<String>,
}

impl Report<'_> {
    fn import(&mut self, admin: &str) -> anyhow::Result<()> {
        let mut ticker = Ticker::new("imported");
        for chunk in chunks(self.found) {
            let answer = post_chunk(admin, "/import", &chunk)?;
            self.imported += answer["imported"].as_u64().unwrap_or(0);
            self.refused.extend(strings(&answer["refused"]));
            ticker.tell(self.imported as usize + self.refused.len(), self.znodes);
        }
        Ok(())
    }

    fn verify(&mut self, admin: &str) -> anyhow::Result<()> {
        let mut ticker = Ticker::new("compared");
        let mut compared = 0;
        for chunk in chunks(self.found) {
            let answer = post_chunk(admin, "/import/compare", &chunk)?;
            self.differing.extend(strings(&answer["differing"]));
            compared += chunk.znodes.len();
            ticker.tell(compared, self.znodes);
        }
        // What was refused is told as such.
        self.differing.retain(|path| !self.refused.iter().any(|r| r.split(' ').next() == Some(path)));
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "found": self.znodes,
            "zxid": format!("{:#x}", self.found.zxid),
            "ephemerals_left_out": self.found.ephemerals,
            "imported": self.imported,
            "refused": self.refused,
            "differing": self.differing,
            "notes": self.found.notes,
        })
    }

    fn text(&self, dry_run: bool) -> String {
        let mut text = format!(
            "found      {} znodes up to zxid {:#x}; {} ephemerals are left out\n",
            self.znodes, self.found.zxid, self.found.ephemerals
        );
        if !dry_run {
            text.push_str(&format!("imported   {}\n", self.imported));
            let same = self.znodes - self.refused.len() - self.differing.len();
            text.push_str(&format!("compared   {same} are as they were\n"));
        }
        for (title, list) in
            [("refused", &self.refused), ("differs", &self.differing), ("note", &self.found.notes)]
        {
            const SHOWN: usize = 20;
            list.iter().take(SHOWN).for_each(|line| text.push_str(&format!("{title:<10} {line}\n")));
            if list.len() > SHOWN {
                text.push_str(&format!("{title:<10} and {} more; --json shows all\n", list.len() - SHOWN));
            }
        }
        text
    }
}

/// The znodes in pieces of a bounded size.
fn chunks(found: &Found) -> impl Iterator<Item = Import> {
    let pieces = batches(found.znodes.values(), |znode| znode.weight());
    pieces.map(|znodes| Import { zxid: found.zxid, znodes: znodes.into_iter().cloned().collect() })
}

fn post_chunk(admin: &str, path: &str, chunk: &Import) -> anyhow::Result<Value> {
    let body = codec::encode(chunk)?;
    Ok(serde_json::from_str(&send_admin(admin, path, crate::server::IMPORT_TYPE, &body)?)?)
}

fn strings(value: &Value) -> impl Iterator<Item = String> {
    value.as_array().into_iter().flatten().filter_map(|line| line.as_str().map(String::from))
}

/// Tells on standard error how far something is, once a second.
struct Ticker {
    what: &'static str,
    told: Instant,
}

impl Ticker {
    fn new(what: &'static str) -> Self {
        Self { what, told: Instant::now() }
    }

    fn tell(&mut self, done: usize, of: usize) {
        if self.told.elapsed() > Duration::from_secs(1) {
            self.told = Instant::now();
            eprintln!("{} {done} of {of} znodes", self.what);
        }
    }
}
