//! `meridian plan`: reads what the planner needs, from files or a live mesh, and prints its answer.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use meridian_topology::command::{Inputs, PlanArgs};

use super::ask_admin;

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let inputs = Inputs {
        scenario: args.scenario.as_deref().map(read).transpose()?,
        matrix: args.matrix_file().map(read).transpose()?,
        rtt: args.rtt.as_deref().map(read).transpose()?,
        live: args.live.as_deref().map(ask_for_round_trips).transpose()?,
    };
    let answer = args.run(&inputs);
    for file in &answer.files {
        let path = args.config.as_deref().unwrap_or(Path::new(".")).join(&file.path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        written
            .and_then(|()| std::fs::write(&path, &file.text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    eprint!("{}", answer.complaint);
    print!("{}", answer.output);
    Ok(ExitCode::from(answer.status))
}

fn ask_for_round_trips(address: &str) -> anyhow::Result<String> {
    ask_admin(address, "/rtt").with_context(|| {
        format!("no round-trip times from {address}; give the admin address of a server, as `meridian demo` shows it")
    })
}
