//! `meridian plan`: reads what the planner needs, from files or a live mesh, and prints its answer.

mod apply;
mod running;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use meridian_topology::command::{Answer, Inputs, PlanArgs};
use meridian_topology::plan::Progress;

pub(super) use running::layout;

use super::{ask_admin, post_admin};
use apply::{Endpoint, Executor};

/// A search that takes longer says how far it has come, at this interval.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let answer = plan(args)?;
    for file in &answer.files {
        write(&args.config.as_deref().unwrap_or(Path::new(".")).join(&file.path), &file.text)?;
    }
    if let (Some(path), Some(page)) = (&args.html, &answer.html) {
        write(path, page)?;
    }
    eprint!("{}", answer.complaint);
    // A reader that has seen enough, as `head` has, is no failure.
    let _ = std::io::stdout().write_all(answer.output.as_bytes());
    if args.apply && answer.status == 0 {
        return carry_out(args, &answer);
    }
    Ok(ExitCode::from(answer.status))
}

fn plan(args: &PlanArgs) -> anyhow::Result<Answer> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let ask = |path: &str| args.live.as_deref().map(|address| ask_mesh(address, path)).transpose();
    let inputs = Inputs {
        scenario: args.scenario.as_deref().map(read).transpose()?,
        matrix: args.matrix_file().map(read).transpose()?,
        rtt: args.rtt.as_deref().map(read).transpose()?,
        live: ask("/rtt")?,
        mesh: ask("/mesh")?.map(|mesh| running::with_members(&mesh, &args.admin, ask_mesh)).transpose()?,
    };
    let mut reporter = Reporter::new();
    let answer = args.run_and_report(&inputs, &mut |progress| reporter.report(progress));
    reporter.finish();
    Ok(answer)
}

/// Carries the steps out after asking, and says what runs then.
fn carry_out(args: &PlanArgs, answer: &Answer) -> anyhow::Result<ExitCode> {
    if answer.orders.is_empty() {
        println!("There is nothing to carry out.");
        return Ok(ExitCode::SUCCESS);
    }
    let live = args.live.as_deref().context("--apply needs --live")?;
    let endpoint = Endpoint { ask: &ask_mesh, post: &post_admin };
    let executor = Executor::new(endpoint, live, &args.admin)?;
    executor.check(&answer.orders)?;
    if !apply::confirmed(args.yes)? {
        println!("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    for (i, order) in answer.orders.iter().enumerate() {
        println!("{}. {} ...", i + 1, order.text);
        executor.carry_out(order).with_context(|| {
            format!("step {} was not carried out, nor was any after it; run this again to go on", i + 1)
        })?;
    }
    print!("Done.\n\n{}", plan(args)?.output);
    Ok(ExitCode::SUCCESS)
}

/// Writes a whole file or none: Ctrl-C leaves no half of it.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let created = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    created
        .and_then(|()| std::fs::write(&part, text))
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn ask_mesh(address: &str, path: &str) -> anyhow::Result<String> {
    ask_admin(address, path).with_context(|| {
        format!("no answer to {path} from {address}; give the admin address of a server, as `meridian demo` shows it")
    })
}

/// Tells on a terminal how far a long search has come.
struct Reporter {
    reported: Instant,
    shown: bool,
}

impl Reporter {
    fn new() -> Self {
        Self { reported: Instant::now(), shown: false }
    }

    fn report(&mut self, progress: Progress) {
        if self.reported.elapsed() < REPORT_INTERVAL || !std::io::stderr().is_terminal() {
            return;
        }
        (self.reported, self.shown) = (Instant::now(), true);
        let best = progress.best_ms.map(|ms| format!("; the best so far has {ms:.1} ms")).unwrap_or_default();
        let millions = progress.examined as f64 / 1e6;
        eprint!("\r\x1b[Ksearching: {millions:.1} million partial layouts{best}");
    }

    fn finish(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
