//! The `meridian plan` command, but for reading files and asking a mesh: whoever mounts it does
//! that and hands the texts in.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::diagnostic::{Code, Diagnostic, has_errors, nearest};
use crate::latency::Pipeline;
use crate::layout::{Layout, PLANNED_REGIONS_MAX};
use crate::matrix::{self, BUILTIN_NAMES, Matrix, name_and_source};
use crate::plan::{Assessor, Objective, Plan, plan};
use crate::report::{self, File};
use crate::scenario::{self, Scenario, Source};

const EXAMPLES: &str = "\
Examples:
  meridian plan
      Plans for the three regions of the demo.
  meridian plan --matrix aws --regions us-east-1,us-west-2,eu-west-1
      Three AWS regions with equal shares of the writes.
  meridian plan --matrix aws --regions us-east=us-east-1,eu=eu-west-1,asia=ap-southeast-1
      The same under names of your own.
  meridian plan scenario.toml --objective after-loss
      Your scenario; least latency after the worst loss of a region.
  meridian plan scenario.json --rtt measured.csv --json
      Round trips from your own measurement (from,to,rtt_ms,p50,p99); for programs.
  meridian plan scenario.toml --config servers
      The plan, and zoo.cfg and myid of every server in servers/.
  meridian plan --live 127.0.0.1:8080
      Round trips and their tails from a running mesh.
  meridian plan scenario.toml --compare two:us-east=3,us-west=3,eu=3 flat:us-east=2,us-west=2,eu=1
      Two layouts, figure by figure.

A scenario in TOML (the same keys in JSON; all but regions and rtt have defaults):
  regions = [\"us-east\", \"us-west\", \"eu\"]
  client_write_share = { us-east = 0.5, us-west = 0.25, eu = 0.25 }
  require = { survive_regions = 1, leader_region_min_voters = 2 }
  [rtt.us-east]
  us-west = { p50 = 62, p99 = 66 }
  eu = 75
  [rtt.us-west]
  eu = 130";

/// Says where voters, observers and leaders should stand, and which timeouts follow.
#[derive(Args, Clone, Debug, Default)]
#[command(after_long_help = EXAMPLES)]
pub struct PlanArgs {
    /// A scenario, TOML or JSON: regions, round trips, shares of the writes, limits, requirements
    pub scenario: Option<PathBuf>,

    /// Round trips for the pairs that the scenario leaves out: aws, aws-all, aws-2021, ibm, or a
    /// CSV or JSON file
    #[arg(long, value_name = "NAME|FILE")]
    pub matrix: Option<String>,

    /// The regions to plan for; `name=region` renames a region of the matrix
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    pub regions: Vec<String>,

    /// Measured round trips that win over the scenario's: columns from, to, rtt_ms and,
    /// if known, p50 and p99
    #[arg(long, value_name = "FILE.csv")]
    pub rtt: Option<PathBuf>,

    /// Round trips measured by the mesh that this admin address belongs to
    #[arg(long, value_name = "ADDRESS")]
    pub live: Option<String>,

    /// What the best layout has the least of
    #[arg(long, value_enum, default_value_t = Objective::Mean)]
    pub objective: Objective,

    /// Add Meridian's two commits in the client's region to every two-level write
    #[arg(long)]
    pub local_commits: bool,

    /// Compare two layouts instead of planning: DESIGN:LEADER=VOTERS,REGION=VOTERS
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub compare: Vec<String>,

    /// Add where the milliseconds come from, and what other designs and leaders would cost
    #[arg(long, conflicts_with_all = ["json", "compare"])]
    pub explain: bool,

    /// Write zoo.cfg and myid of every server of the best layout below this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "compare")]
    pub config: Option<PathBuf>,

    /// Print JSON: every layout with all its figures
    #[arg(long, conflicts_with = "compare")]
    pub json: bool,
}

/// The texts that the arguments name, as read by the caller.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// What is in the file `PlanArgs::scenario`.
    pub scenario: Option<String>,
    /// What is in [`PlanArgs::matrix_file`].
    pub matrix: Option<String>,
    /// What is in the file `PlanArgs::rtt`.
    pub rtt: Option<String>,
    /// What the mesh at `PlanArgs::live` answered: `{"rtt": [{"from", "to", ..}]}`.
    pub live: Option<String>,
}

/// What to print and how to exit.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For standard output.
    pub output: String,
    /// For standard error.
    pub complaint: String,
    /// Files to write below [`PlanArgs::config`]; none unless that is given.
    pub files: Vec<File>,
    /// 0 for a plan, 1 when the input is refused, 2 when no layout meets the requirements.
    pub status: u8,
}

impl PlanArgs {
    /// The file to read for [`Inputs::matrix`]; `None` if the matrix is a built-in one.
    pub fn matrix_file(&self) -> Option<&Path> {
        let name = self.matrix.as_deref()?;
        (!BUILTIN_NAMES.contains(&name)).then(|| Path::new(name))
    }

    /// Plans, and says what to print.
    pub fn run(&self, inputs: &Inputs) -> Answer {
        match self.scenario(inputs).and_then(|(scenario, findings)| self.answer(&scenario, findings, inputs))
        {
            Ok(answer) => answer,
            Err(mut diagnostics) => {
                self.locate(inputs, &mut diagnostics);
                Answer {
                    output: if self.json { report::refusal_json(&diagnostics) + "\n" } else { String::new() },
                    complaint: report::findings(&diagnostics),
                    files: Vec::new(),
                    status: 1,
                }
            }
        }
    }

    /// Adds line and column to what is said about the scenario.
    fn locate(&self, inputs: &Inputs, diagnostics: &mut [Diagnostic]) {
        if let (Some(file), Some(text)) = (&self.scenario, &inputs.scenario) {
            Source::scenario(&file.display().to_string(), text).locate(diagnostics);
        }
    }

    fn answer(
        &self,
        scenario: &Scenario,
        findings: Vec<Diagnostic>,
        inputs: &Inputs,
    ) -> Result<Answer, Vec<Diagnostic>> {
        let mut plan = plan(scenario, self.objective)?;
        plan.diagnostics.splice(0..0, findings);
        self.locate(inputs, &mut plan.diagnostics);
        if let [a, b] = self.compare.as_slice() {
            return compare(&plan, a, b);
        }
        let mut output = if self.json { report::json(&plan) + "\n" } else { report::text(&plan) };
        if self.explain && plan.recommended.is_some() {
            output = format!("{output}\n{}", report::explanation(&plan));
        }
        let files = if self.config.is_some() { report::configuration(&plan) } else { Vec::new() };
        let status = if plan.recommended.is_some() { 0 } else { 2 };
        Ok(Answer { output, complaint: String::new(), files, status })
    }

    /// The scenario with everything that the arguments add to it, and findings about those.
    fn scenario(&self, inputs: &Inputs) -> Result<(Scenario, Vec<Diagnostic>), Vec<Diagnostic>> {
        let mut scenario = match &inputs.scenario {
            Some(text) => scenario::parse(text)?,
            None => Scenario::default(),
        };
        let mut findings = Vec::new();
        if scenario.name.is_empty() {
            let file = self.scenario.as_deref().and_then(Path::file_stem);
            scenario.name = file.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        }
        let base = self.base_matrix(inputs, &mut findings)?;
        let mut measured = Matrix::default();
        let rtt_file = self.rtt.as_deref().map(|file| file.display().to_string()).unwrap_or_default();
        let live_address = self.live.clone().unwrap_or_default();
        for (name, text) in [(&rtt_file, &inputs.rtt), (&live_address, &inputs.live)] {
            let Some(text) = text else { continue };
            measured.overlay(&parse_matrix(name, text, &mut findings));
        }
        if has_errors(&findings) {
            return Err(findings);
        }
        let nothing_given = inputs.scenario.is_none() && base.is_empty() && measured.is_empty();
        if nothing_given {
            let matrix = matrix::default_regions();
            scenario.restrict(matrix.regions());
            scenario.matrix = matrix;
            scenario.name = "default regions".to_owned();
        } else {
            self.choose_regions(&mut scenario, base, measured)?;
        }
        if self.local_commits {
            scenario.pipeline = Pipeline::MERIDIAN;
        }
        Ok((scenario, findings))
    }

    fn base_matrix(
        &self,
        inputs: &Inputs,
        findings: &mut Vec<Diagnostic>,
    ) -> Result<Matrix, Vec<Diagnostic>> {
        let Some(name) = &self.matrix else {
            return Ok(Matrix::default());
        };
        if let Some(builtin) = matrix::builtin(name) {
            return Ok(builtin);
        }
        let Some(text) = &inputs.matrix else {
            let finding =
                Diagnostic::new(Code::Syntax, "--matrix", format!("{name} is neither a file nor built in"));
            let meant = nearest(name, BUILTIN_NAMES).map_or_else(|| BUILTIN_NAMES.join(", "), str::to_owned);
            return Err(vec![finding.suggest(format!("built in: {meant}"))]);
        };
        Ok(parse_matrix(name, text, findings))
    }

    /// The regions are those of --regions, else of the scenario, else all that the matrices have.
    fn choose_regions(
        &self,
        scenario: &mut Scenario,
        base: Matrix,
        measured: Matrix,
    ) -> Result<(), Vec<Diagnostic>> {
        let mut all = base.clone();
        all.overlay(&scenario.round_trips().0);
        all.overlay(&measured);
        let items: Vec<String> = if !self.regions.is_empty() {
            self.regions.clone()
        } else if !scenario.regions.is_empty() {
            scenario.regions.clone()
        } else if all.regions().len() <= PLANNED_REGIONS_MAX {
            all.regions().to_vec()
        } else {
            Vec::new()
        };
        all.select(&items)?;
        (scenario.matrix, scenario.measured) = (base.restrict(&items), measured.restrict(&items));
        if !self.regions.is_empty() || scenario.regions.is_empty() {
            let names: Vec<String> = items.iter().map(|item| name_and_source(item).0.to_owned()).collect();
            scenario.restrict(&names);
        }
        Ok(())
    }
}

/// The matrix in a text called `name`; findings about it tell their lines.
fn parse_matrix(name: &str, text: &str, findings: &mut Vec<Diagnostic>) -> Matrix {
    let (matrix, mut about) = matrix::parse(text);
    Source::table(name, text).locate(&mut about);
    findings.extend(about);
    matrix
}

fn compare(plan: &Plan, a: &str, b: &str) -> Result<Answer, Vec<Diagnostic>> {
    let names = &plan.world.model.regions;
    let layout = |text: &str| Layout::parse(text, names, &plan.world.space).map_err(|finding| vec![finding]);
    let mut assessor = Assessor::new(&plan.world);
    let (a, b) = (assessor.assess(&layout(a)?), assessor.assess(&layout(b)?));
    Ok(Answer {
        output: report::comparison(plan, &a, &b),
        complaint: String::new(),
        files: Vec::new(),
        status: 0,
    })
}
