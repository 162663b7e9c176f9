//! The worked examples: each scenario beside its report as text and as a page. `UPDATE_EXPECT=1 cargo
//! test -p meridian-topology --test examples` writes the reports anew.

use std::path::PathBuf;

use clap::Parser;
use expect_test::expect_file;
use meridian_topology::command::{Inputs, PlanArgs};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    plan: PlanArgs,
}

fn check(name: &str, arguments: &[&str]) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let scenario = std::fs::read_to_string(directory.join("scenario.toml")).expect("a scenario");
    let words =
        ["plan", "scenario.toml", "--html", "report.html"].into_iter().chain(arguments.iter().copied());
    let plan = Cli::try_parse_from(words).expect("arguments that parse").plan;
    let answer = plan.run(&Inputs { scenario: Some(scenario), ..Inputs::default() });
    assert_eq!((answer.status, answer.complaint.as_str()), (0, ""));
    expect_file![directory.join("report.txt")].assert_eq(&answer.output);
    expect_file![directory.join("report.html")].assert_eq(&answer.html.expect("a page"));
}

#[test]
fn three_regions() {
    check("three-regions", &[]);
}

#[test]
fn two_sites_and_a_witness() {
    check("two-sites-and-a-witness", &[]);
}

#[test]
fn five_regions_with_most_clients_in_europe() {
    check("five-regions", &["--explain"]);
}
