//! The `plan` command from arguments to output.

use clap::Parser;
use expect_test::expect_file;
use meridian_topology::command::{Answer, Inputs, PlanArgs};
use serde_json::Value;

const EXAMPLE: &str = include_str!("../data/three-regions.json");

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    plan: PlanArgs,
}

fn run(arguments: &str, inputs: Inputs) -> Answer {
    let words = std::iter::once("plan").chain(arguments.split_whitespace());
    Cli::try_parse_from(words).expect("arguments that parse").plan.run(&inputs)
}

fn example() -> Inputs {
    Inputs { scenario: Some(EXAMPLE.to_owned()), ..Inputs::default() }
}

fn json(arguments: &str, inputs: Inputs) -> Value {
    serde_json::from_str(&run(&format!("{arguments} --json"), inputs).output).expect("output that is JSON")
}

fn check(arguments: &str, inputs: Inputs, status: u8, expected: expect_test::ExpectFile) {
    let answer = run(arguments, inputs);
    assert_eq!((answer.status, answer.complaint.as_str()), (status, ""));
    expected.assert_eq(&answer.output);
}

#[test]
fn the_example_reads_well() {
    check("s.json", example(), 0, expect_file!["expected/three-regions.txt"]);
    check("s.json --json", example(), 0, expect_file!["expected/three-regions.json"]);
}

#[test]
fn without_arguments_the_default_regions_are_planned() {
    check("", Inputs::default(), 0, expect_file!["expected/default-regions.txt"]);
}

#[test]
fn the_explanation_adds_up() {
    let answer = run("s.json --explain", example());
    let (_, explanation) = answer.output.split_once("A commit takes").unwrap();
    expect_file!["expected/explanation.txt"].assert_eq(&format!("A commit takes{explanation}"));
}

#[test]
fn every_server_gets_its_configuration() {
    let with_designs = |designs: &str| {
        let text =
            EXAMPLE.replace(r#"["flat", "hier", "two"]"#, designs).replace(r#""witness": ["eu"], "#, "");
        let answer = run("s.json --config out", Inputs { scenario: Some(text), ..Inputs::default() });
        let all = answer.files.iter().map(|file| format!("== {}\n{}", file.path.display(), file.text));
        all.collect::<String>()
    };
    expect_file!["expected/configuration-hier.txt"].assert_eq(&with_designs(r#"["hier"]"#));
    expect_file!["expected/configuration-two.txt"].assert_eq(&with_designs(r#"["two"]"#));
    assert!(run("s.json", example()).files.is_empty());
}

#[test]
fn two_layouts_are_compared() {
    let arguments = "s.json --compare two:us-east=3,us-west=3,eu=1 flat:us-east=3,us-west=1,eu=1";
    check(arguments, example(), 0, expect_file!["expected/comparison.txt"]);
    let doubtful =
        run("s.json --compare flat:us-east=2,us-west=2 hier:us-east=3,us-west=3", example()).output;
    assert!(doubtful.contains("[even-voters]") && doubtful.contains("[two-groups]"), "{doubtful}");
    let refused = run("s.json --compare two:us-eats=3 flat:us-east=1", example());
    assert_eq!(refused.status, 1);
    assert!(refused.complaint.contains("did you mean us-east?"), "{}", refused.complaint);
}

#[test]
fn an_infeasible_scenario_exits_with_two() {
    let text = EXAMPLE.replace("\"survive_regions\": 1", "\"survive_regions\": 2");
    let inputs = || Inputs { scenario: Some(text.clone()), ..Inputs::default() };
    check("s.json", inputs(), 2, expect_file!["expected/infeasible.txt"]);
    let plan = json("s.json", inputs());
    assert_eq!(plan["recommended"], Value::Null);
    assert_eq!(plan["diagnostics"].as_array().unwrap().last().unwrap()["code"], "infeasible");
}

#[test]
fn regions_of_a_builtin_matrix_may_be_renamed() {
    let plan = json("--matrix aws --regions us=us-east-1,eu=eu-west-1,asia=ap-south-1", Inputs::default());
    assert_eq!(plan["regions"], serde_json::json!(["us", "eu", "asia"]));
    assert_eq!(plan["layouts"][0]["leader"], "eu");
}

#[test]
fn unknown_names_are_refused_with_a_proposal() {
    let refused = run("--matrix aws --regions us-east-1,eu-wset-1", Inputs::default());
    assert_eq!((refused.status, refused.output.as_str()), (1, ""));
    assert!(refused.complaint.contains("did you mean eu-west-1?"), "{}", refused.complaint);
    let refused = run("--matrix asw", Inputs::default());
    assert!(refused.complaint.contains("built in: aws"), "{}", refused.complaint);
    let refused = json("--matrix asw", Inputs::default());
    assert_eq!(refused["diagnostics"][0]["level"], "error");
}

#[test]
fn measured_round_trips_win_over_the_scenario() {
    let rtt = Some("from,to,rtt_ms,p99\nus-east,us-west,80,81\n".to_owned());
    let plan = json("s.json --rtt m.csv", Inputs { rtt, ..example() });
    assert_eq!(plan["layouts"][0]["commit_ms"], 76.0);
    let live = Some(
        r#"{"rtt":[{"from":"us-east","to":"us-west","count":9999,"p50_ms":40,"p99_ms":41}]}"#.to_owned(),
    );
    let plan = json("s.json --live a:1", Inputs { live, ..example() });
    assert_eq!(plan["layouts"][0]["commit_ms"], 41.0);
}

#[test]
fn a_mesh_that_has_measured_nothing_is_not_planned_for() {
    let mesh = live("us-east", "{}").mesh;
    let answer =
        run("--live a:1", Inputs { live: Some("{\"rtt\": []}".to_owned()), mesh, ..Inputs::default() });
    assert_eq!(answer.status, 1, "{}", answer.output);
    assert!(answer.complaint.contains("no-regions"), "{}", answer.complaint);
    let part = run("--live a:1 --regions us-east,us-west --check", live("us-east", "{}"));
    assert_eq!(part.complaint, "");
}

#[test]
fn local_commits_are_added_on_request() {
    let two = |arguments: &str| {
        let plan = json(arguments, example());
        let layouts = plan["layouts"].as_array().unwrap();
        let two = layouts.iter().find(|l| l["layout"] == "two:us-east=3,us-west=3,eu=1").unwrap();
        let write = &two["write_ms"]["us-west"];
        (write["typical"].as_f64().unwrap(), write["with_local_commits"].as_f64().unwrap())
    };
    assert_eq!(two("s.json"), (126.5, 130.5));
    assert_eq!(two("s.json --local-commits"), (130.5, 130.5));
}

#[test]
fn help_shows_examples_and_a_scenario() {
    let help = Cli::try_parse_from(["plan", "--help"]).err().unwrap().to_string();
    for text in ["Examples:", "--matrix aws --regions", "client_write_share", "--objective"] {
        assert!(help.contains(text), "{text}");
    }
}

const RTT: &str = r#"{"rtt":[
    {"from":"us-east","to":"us-west","count":9999,"min_ms":63,"p50_ms":64,"p90_ms":65,"p99_ms":66,"p999_ms":67,"max_ms":70},
    {"from":"us-east","to":"eu","count":9999,"min_ms":69,"p50_ms":70,"p90_ms":71,"p99_ms":72,"p999_ms":74,"max_ms":80},
    {"from":"us-west","to":"eu","count":9999,"min_ms":117,"p50_ms":118,"p90_ms":119,"p99_ms":121,"p999_ms":124,"max_ms":130}]}"#;

fn live(leader: &str, timing: &str) -> Inputs {
    let mesh = format!(
        r#"{{"region": "eu", "global_leader": "{leader}", "layout": {{"regions": [
            {{"name": "us-east", "voters": 3, "observers": 1}}, {{"name": "us-west", "voters": 3, "observers": 1}},
            {{"name": "eu", "voters": 3, "observers": 1}}], "timing": {timing}}}}}"#
    );
    Inputs { live: Some(RTT.to_owned()), mesh: Some(mesh), ..Inputs::default() }
}

#[test]
fn what_runs_stands_beside_the_best_layout() {
    let answer = run("--live a:1", live("us-west", "{\"globalElectionTimeout\": 300}"));
    assert_eq!((answer.status, answer.complaint.as_str()), (0, ""));
    expect_file!["expected/live.txt"].assert_eq(&answer.output);
    let plan = json("--live a:1", live("us-west", "{}"));
    assert_eq!(plan["running"]["worth_it"], true);
    assert_eq!(plan["running"]["layout"]["leader"], "us-west");
    let last = plan["running"]["steps"].as_array().unwrap().last().unwrap().clone();
    assert!(last["text"].as_str().is_some_and(|text| !text.is_empty()), "{last}");
    assert_eq!(plan["pipeline"]["ordered_sync"], true);
}

#[test]
fn a_check_exits_as_the_help_says() {
    let timing = r#"{"globalHeartbeat": 400, "globalElectionTimeout": 2500, "regionLease": 10000}"#;
    let status = |inputs: Inputs| run("--live a:1 --check", inputs).status;
    assert_eq!(status(live("us-east", timing)), 0);
    assert_eq!(status(live("us-east", &timing.replace("2500", "500"))), 3);
    assert_eq!(status(live("us-west", timing)), 4);
    assert_eq!(status(live("us-west", &timing.replace("10000", "1000"))), 5);
    let fits = run("--live a:1 --check", live("us-east", timing)).output;
    assert!(fits.ends_with("What runs fits the round trips.\n"), "{fits}");
    let unfit = run("--live a:1 --check", live("us-west", &timing.replace("10000", "1000"))).output;
    expect_file!["expected/check.txt"].assert_eq(&unfit);
    let refused = run("s.json --check", example());
    assert_eq!(refused.status, 1);
    assert!(refused.complaint.contains("--live ADDRESS"), "{}", refused.complaint);
    let scenario = EXAMPLE.replace(
        "\"require\"",
        r#""current": {"design": "flat", "leader": "us-west", "voters": {"us-east": 2, "us-west": 2, "eu": 1}}, "require""#,
    );
    let answer = run("s.json --check", Inputs { scenario: Some(scenario), ..Inputs::default() });
    assert_eq!(answer.status, 4, "{}", answer.output);
}

#[test]
fn what_runs_against_the_scenarios_limits_is_worth_a_change() {
    let scenario = EXAMPLE.replace(
        "\"require\"",
        r#""current": {"design": "hier", "leader": "eu", "voters": {"us-east": 3, "us-west": 3, "eu": 3}}, "require""#,
    );
    let answer = run("s.json --check", Inputs { scenario: Some(scenario), ..Inputs::default() });
    assert_eq!(answer.status, 4);
    for text in ["3 voters in eu, not 1 or fewer", "eu leads, and must not"] {
        assert!(answer.output.contains(text), "{}", answer.output);
    }
}

#[test]
fn any_layout_can_be_explained() {
    let answer = run("s.json --explain flat:us-west=2,us-east=2,eu=1", example());
    let (_, explanation) = answer.output.split_once("A commit takes").unwrap();
    expect_file!["expected/explanation-flat.txt"].assert_eq(&format!("A commit takes{explanation}"));
    let refused = run("s.json --explain flat:mars=1", example());
    assert_eq!(refused.status, 1);
}
