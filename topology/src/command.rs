//! The `meridian plan` command, but for reading files and asking a mesh: whoever mounts it does
//! that and hands the texts in.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::diagnostic::{Code, Diagnostic, has_errors, nearest};
use crate::latency::Pipeline;
use crate::layout::{Design, Layout, PLANNED_REGIONS_MAX, VOTERS_MAX};
use crate::live;
use crate::matrix::{self, BUILTIN_NAMES, Matrix, name_and_source};
use crate::plan::{Assessment, Assessor, Objective, Plan, Progress, plan_and_report};
use crate::report::{self, File, Order};
use crate::scenario::{self, Scenario, Source};

/// Exit codes beside 0.
const STATUS_REFUSED: u8 = 1;
const STATUS_INFEASIBLE: u8 = 2;
const STATUS_TIMING_UNFIT: u8 = 3;
const STATUS_LAYOUT_UNFIT: u8 = 4;
const STATUS_BOTH_UNFIT: u8 = 5;

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
  meridian plan scenario.toml --config servers --html plan.html
      The plan, the configuration of every server in servers/, and a report to print.
  meridian plan --live 127.0.0.1:8080
      What a running mesh has measured; what runs beside what would be best, and the steps there.
  meridian plan --live 127.0.0.1:8080 --check
      For cron: prints reasons and fails if layout or timeouts no longer fit the round trips.
  meridian plan --live 127.0.0.1:8080 --apply
      Shows the steps to the best layout, asks, and carries them out.
  meridian plan scenario.toml --explain flat:us-east=2,us-west=2,eu=1
      Where the milliseconds of one layout come from.
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
  eu = 130
Further keys: zones, providers, client_read_share, client_rtt, fsync, zone_rtt, dist, failure, designs, max_voters, \
max_per_region, max_per_region_default, witness, never_leader, preferred_leaders, must_vote, never_vote, weights, \
cost, traffic, session_timeout_ms, timing, current. A time is a number of ms, {p50, p99}, {histogram = base64 of \
an HdrHistogram V2 in us, or [[ms, count], ..]} or {samples = [ms, ..]}.

Exit codes: 0 a plan, or all fits; 1 the input is refused; 2 no layout meets the requirements.
With --check also: 3 a timeout in use is too short for the round trips; 4 another layout lowers the objective by \
more than 10 % and 1 ms, or what runs misses a requirement; 5 both.";

/// What `--explain` without a layout explains.
const BEST: &str = "best";

/// Says where voters, observers and leaders should stand, and which timeouts follow.
#[derive(Args, Clone, Debug, Default)]
#[command(after_long_help = EXAMPLES)]
pub struct PlanArgs {
    /// A scenario, TOML or JSON: regions, round trips, shares of the writes, limits, requirements
    pub scenario: Option<PathBuf>,

    /// Round trips for the pairs that the scenario leaves out: aws, aws-all, aws-2021, azure, gcp, ibm,
    /// or a CSV or JSON file
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

    /// Predict two levels as Meridian's servers do it: two further commits in the client's region, and a
    /// sync that is ordered like a write
    #[arg(long)]
    pub local_commits: bool,

    /// Compare two layouts instead of planning: DESIGN:LEADER=VOTERS,REGION=VOTERS
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub compare: Vec<String>,

    /// Add where the milliseconds of a layout come from (of the best one, if none is named), and what
    /// other designs and leaders would cost
    #[arg(long, value_name = "LAYOUT", num_args = 0..=1, default_missing_value = BEST, conflicts_with_all = ["json", "compare"])]
    pub explain: Option<String>,

    /// Say whether what runs still fits the round trips; for cron. Needs --live, or `current` in the
    /// scenario
    #[arg(long, conflicts_with_all = ["json", "compare", "explain", "html", "config"])]
    pub check: bool,

    /// After showing the steps and asking, carry them out on the mesh of --live, one after the other
    #[arg(long, requires = "live", conflicts_with_all = ["json", "compare", "explain", "check", "html", "config"])]
    pub apply: bool,

    /// Do not ask before --apply
    #[arg(long, requires = "apply")]
    pub yes: bool,

    /// Where the leader of another region is reached: its members are counted there instead of in the
    /// configuration, and --apply changes them there
    #[arg(long, value_name = "REGION=HOST:PORT", requires = "live")]
    pub admin: Vec<String>,

    /// Write the plan with pictures to a file that needs nothing else to be read or printed
    #[arg(long, value_name = "FILE.html", conflicts_with = "compare")]
    pub html: Option<PathBuf>,

    /// Write region.toml (Meridian), zoo.cfg and myid (ZooKeeper) of every server below this directory
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
    /// What the mesh at `PlanArgs::live` answered to `/rtt`: `{"rtt": [{"from", "to", ..}]}`.
    pub live: Option<String>,
    /// What it answered to `/mesh`.
    pub mesh: Option<String>,
}

/// What to print and how to exit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// For standard output.
    pub output: String,
    /// For standard error.
    pub complaint: String,
    /// Files to write below [`PlanArgs::config`]; none unless that is given.
    pub files: Vec<File>,
    /// The report for [`PlanArgs::html`]; none unless that is given.
    pub html: Option<String>,
    /// What [`PlanArgs::apply`] is to do; none unless that is given.
    pub orders: Vec<Order>,
    /// The exit code, as `--help` explains it.
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
        self.run_and_report(inputs, &mut |_| {})
    }

    /// [`PlanArgs::run`] that tells how far it has come, from time to time.
    pub fn run_and_report(&self, inputs: &Inputs, progress: &mut dyn FnMut(Progress)) -> Answer {
        let answer = self
            .scenario(inputs)
            .and_then(|(scenario, findings)| self.answer(&scenario, findings, inputs, progress));
        match answer {
            Ok(answer) => answer,
            Err(mut diagnostics) => {
                self.locate(inputs, &mut diagnostics);
                Answer {
                    output: if self.json { report::refusal_json(&diagnostics) + "\n" } else { String::new() },
                    complaint: report::findings(&diagnostics),
                    status: STATUS_REFUSED,
                    ..Answer::default()
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
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Answer, Vec<Diagnostic>> {
        let mut plan = plan_and_report(scenario, self.objective, progress)?;
        plan.diagnostics.splice(0..0, findings);
        self.locate(inputs, &mut plan.diagnostics);
        if let [a, b] = self.compare.as_slice() {
            return compare(&plan, a, b);
        }
        if self.check {
            return check(&plan);
        }
        if self.apply {
            let status = if plan.recommended.is_some() { 0 } else { STATUS_INFEASIBLE };
            let (output, orders) = (report::running(&plan), report::orders(&plan));
            return Ok(Answer { output, orders, status, ..Answer::default() });
        }
        let mut output = if self.json { report::json(&plan) + "\n" } else { report::text(&plan) };
        if let Some(explained) = self.explained(&plan)? {
            output = format!("{output}\n{}", report::explanation(&plan, &explained));
        }
        let files = if self.config.is_some() { report::configuration(&plan) } else { Vec::new() };
        let html = self.html.is_some().then(|| report::html(&plan));
        let status = if plan.recommended.is_some() { 0 } else { STATUS_INFEASIBLE };
        Ok(Answer { output, files, html, status, ..Answer::default() })
    }

    fn explained(&self, plan: &Plan) -> Result<Option<Assessment>, Vec<Diagnostic>> {
        match self.explain.as_deref() {
            None => Ok(None),
            Some(BEST) => Ok(plan.best().cloned()),
            Some(notation) => Ok(Some(Assessor::new(&plan.world).assess(&layout(plan, notation)?))),
        }
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
        if let Some(mesh) = &inputs.mesh {
            self.take_over_mesh(mesh, inputs, &mut scenario)?;
        }
        let nothing_given =
            inputs.scenario.is_none() && self.matrix.is_none() && self.rtt.is_none() && self.live.is_none();
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

    /// What runs on a live mesh is the current layout. Without a scenario, the best layout is one of two
    /// levels, with the servers' own way of committing and the losses measured, and it must survive
    /// what the running one survives.
    fn take_over_mesh(
        &self,
        mesh: &str,
        inputs: &Inputs,
        scenario: &mut Scenario,
    ) -> Result<(), Vec<Diagnostic>> {
        let current = live::running(mesh).map_err(|finding| vec![finding])?;
        if inputs.scenario.is_none() {
            scenario.designs = vec![Design::Two];
            scenario.pipeline = Pipeline::MERIDIAN;
            let running = Layout {
                design: current.design,
                leader: 0,
                voters: current.voters.values().copied().collect(),
                observers: current.observers.values().copied().collect(),
            };
            scenario.max_voters = scenario.max_voters.max(running.voter_count()).min(VOTERS_MAX);
            let largest = running.voters.iter().max().copied().map_or(0, usize::from);
            scenario.max_per_region_default = scenario.max_per_region_default.max(largest);
            scenario.require.survive_regions = Some(running.survives_regions());
            scenario.require.region_loss_plus_voters =
                (1..=largest).take_while(|more| running.survives_region_and_voters(*more)).count();
            if let Some(loss) = inputs.live.as_deref().and_then(live::loss) {
                scenario.timing.loss = loss;
            }
        }
        scenario.current.get_or_insert(current);
        Ok(())
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
        // Round trips that a scenario lacks are found missing pair by pair, later.
        if !self.regions.is_empty() || !base.is_empty() {
            all.select(&items)?;
        }
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

fn layout(plan: &Plan, notation: &str) -> Result<Layout, Vec<Diagnostic>> {
    Layout::parse(notation, &plan.world.model.regions, &plan.world.space).map_err(|finding| vec![finding])
}

fn compare(plan: &Plan, a: &str, b: &str) -> Result<Answer, Vec<Diagnostic>> {
    let mut assessor = Assessor::new(&plan.world);
    let (a, b) = (assessor.assess(&layout(plan, a)?), assessor.assess(&layout(plan, b)?));
    let names = &plan.world.model.regions;
    let doubts: Vec<Diagnostic> =
        [&a, &b].into_iter().flat_map(|compared| scenario::about(&compared.layout, names)).collect();
    let output = format!("{}{}", report::comparison(plan, &a, &b), report::findings(&doubts));
    Ok(Answer { output, ..Answer::default() })
}

/// Whether what runs still fits.
fn check(plan: &Plan) -> Result<Answer, Vec<Diagnostic>> {
    if plan.recommended.is_none() {
        return Ok(Answer { output: report::text(plan), status: STATUS_INFEASIBLE, ..Answer::default() });
    }
    let Some(change) = &plan.change else {
        let finding = Diagnostic::new(Code::Syntax, "--check", "nothing is known to run");
        return Err(vec![finding.suggest("give --live ADDRESS, or `current` in the scenario")]);
    };
    let status = match (change.misfits.is_empty(), change.worth_it) {
        (true, false) => 0,
        (false, false) => STATUS_TIMING_UNFIT,
        (true, true) => STATUS_LAYOUT_UNFIT,
        (false, true) => STATUS_BOTH_UNFIT,
    };
    let verdict = if status == 0 { "What runs fits the round trips.\n" } else { "" };
    Ok(Answer { output: format!("{}{verdict}", report::running(plan)), status, ..Answer::default() })
}
