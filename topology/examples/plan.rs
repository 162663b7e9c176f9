//! The `plan` command by itself: `cargo run -p meridian-topology --example plan -- --help`.

use std::fs::{create_dir_all, read_to_string, write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use meridian_topology::command::{Inputs, PlanArgs};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    plan: PlanArgs,
}

fn main() -> std::io::Result<ExitCode> {
    let arguments = Cli::parse().plan;
    let inputs = Inputs {
        scenario: arguments.scenario.as_deref().map(read_to_string).transpose()?,
        matrix: arguments.matrix_file().map(read_to_string).transpose()?,
        rtt: arguments.rtt.as_deref().map(read_to_string).transpose()?,
        live: None,
    };
    let answer = arguments.run(&inputs);
    for file in &answer.files {
        let path = arguments.config.as_deref().unwrap_or(Path::new(".")).join(&file.path);
        create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        write(&path, &file.text)?;
    }
    print!("{}", answer.output);
    eprint!("{}", answer.complaint);
    Ok(ExitCode::from(answer.status))
}
