//! Failovers and fencing as text: commands, each with what happens in the whole mesh until it is done. A script is
//! both a test and its own documentation; when behaviour changes on purpose, a flag rewrites what is expected.
//!
//! ```text
//! # What a line says after a # is for the reader.
//! connect anna a
//! ----
//! anna: connected
//!
//! anna create /global/lock ephemeral
//! ----
//! anna: created /global/lock, token 1
//! ```
//!
//! Commands about the mesh: `mesh VOTERS` (three regions, with `/global`, and `/homed` whose home is a), `leaders`,
//! `home`, `move-home REGION`, `agree`, `crash SERVER`, `start SERVER`, `cut REGION` (from all others), `heal`, `wait SECONDS`. A server is named
//! `a-1`, or `leader-of-a`. `connect NAME REGION` makes a client; its commands begin with its name: `create PATH
//! [ephemeral]`, `get PATH`, `set PATH DATA`, `delete PATH`, `lock PATH` (waits until it has it), `watch PATH`.
//!
//! Tokens are czxids, numbered as they are first seen; one that is not higher than all before is said to be stale.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use meridian_bridge::mesh::Orderer;
use meridian_wire::{CreateMode, ErrorCode};
use parking_lot::Mutex;

use super::checks;
use super::client::{Client, Connected, Disconnected};
use super::faults::Fault;
use super::run::{Scenario, Simulation};
use super::trace::Trace;

/// All scripts play out in the same seed.
const SEED: u64 = 1;
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// A client's command that takes longer goes on while the next ones run.
const COMMAND_MS_MAX: u64 = 8_000;
/// How often a client looks for its next command.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A command, and the comments above it.
struct Step {
    comments: Vec<String>,
    command: String,
}

/// Plays a script and returns its text with what happened in place of what was expected.
///
/// # Errors
/// If a command is unknown, or something happens that must not.
pub(super) fn play(text: &str) -> anyhow::Result<String> {
    let mut stage = Stage::default();
    let mut played = String::new();
    for step in parse(text)? {
        let said = stage.command(&step.command).with_context(|| format!("command: {}", step.command))?;
        for comment in &step.comments {
            played += &format!("{comment}\n");
        }
        played += &format!("{}\n----\n", step.command);
        said.iter().for_each(|line| played += &format!("{line}\n"));
        played += "\n";
    }
    stage.end();
    Ok(format!("{}\n", played.trim_end()))
}

/// Plays all scripts of a directory; returns the differences from what they expect, or rewrites them.
///
/// # Errors
/// If a script can't be read, played or written.
pub(super) fn play_all(directory: &Path, update: bool) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let mut differences = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "txt")) {
        let text = std::fs::read_to_string(path)?;
        let played = play(&text).with_context(|| format!("{}", path.display()))?;
        if played == text {
            continue;
        }
        if update {
            std::fs::write(path, &played)?;
        }
        let at = played.lines().zip(text.lines()).take_while(|(played, text)| played == text).count();
        let line = |text: &str| text.lines().nth(at).unwrap_or("(the end)").to_string();
        differences.push(format!(
            "{}:{}: expected '{}', but: '{}'",
            path.display(),
            at + 1,
            line(&text),
            line(&played)
        ));
    }
    Ok(differences)
}

fn parse(text: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut lines = text.lines().peekable();
    let mut comments = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with('#') || line.is_empty() {
            comments.push(line.to_string());
            continue;
        }
        if lines.next() != Some("----") {
            bail!("a line of ---- is missing after '{line}'");
        }
        // What is expected goes up to an empty line.
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        steps.push(Step { comments: std::mem::take(&mut comments), command: line.to_string() });
    }
    Ok(steps)
}

#[derive(Default)]
struct Stage {
    simulation: Option<Simulation>,
    actors: BTreeMap<String, Arc<Actor>>,
    transcript: Transcript,
}

/// What is said, and the tokens seen so far. Clones share it.
#[derive(Clone, Default)]
struct Transcript(Arc<Mutex<Spoken>>);

#[derive(Default)]
struct Spoken {
    lines: Vec<String>,
    tokens: Vec<i64>,
}

impl Transcript {
    fn say(&self, text: String) {
        self.0.lock().lines.push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().lines)
    }

    /// `, token N` for znodes that all regions have.
    fn token(&self, path: &str, czxid: i64) -> String {
        if !path.starts_with("/global/") && !path.starts_with("/homed/") {
            return String::new();
        }
        let tokens = &mut self.0.lock().tokens;
        if let Some(at) = tokens.iter().position(|token| *token == czxid) {
            return format!(", token {}", at + 1);
        }
        let stale = tokens.iter().any(|token| *token > czxid);
        tokens.push(czxid);
        format!(", token {}{}", tokens.len(), if stale { " (stale)" } else { "" })
    }
}

impl Stage {
    fn command(&mut self, command: &str) -> anyhow::Result<Vec<String>> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["mesh", voters] => self.mesh(voters.parse()?)?,
            ["connect", name, region] => self.connect(name, region)?,
            ["wait", seconds] => self.wait(seconds.parse::<u64>()? * 1_000)?,
            ["leaders"] => self.leaders()?,
            ["agree"] => self.agree()?,
            ["crash", server] => {
                let server = self.server(server)?;
                self.simulation()?.strike(Fault::Crash { server, power: true, restart_after_ms: 1 << 40 });
            }
            ["start", server] => {
                let server = self.server(server)?;
                self.simulation()?.start(server)?;
            }
            ["cut", region] => self.cut(region)?,
            ["home"] => self.home()?,
            ["move-home", region] => {
                let to = self.region(region)?;
                self.simulation()?.strike(Fault::MoveHome { to });
                self.wait(1_000)?;
            }
            ["heal"] => self.simulation()?.heal()?,
            [name, ref rest @ ..] if self.actors.contains_key(name) => self.ask(name, rest)?,
            _ => bail!("unknown"),
        }
        let violations = self.simulation()?.history.violations();
        if !violations.is_empty() {
            bail!("{violations:?}");
        }
        Ok(self.transcript.take())
    }

    fn simulation(&mut self) -> anyhow::Result<&mut Simulation> {
        self.simulation.as_mut().context("a script starts with mesh")
    }

    fn mesh(&mut self, voters: usize) -> anyhow::Result<()> {
        let mut layout = Scenario::Mesh.layout();
        layout.voters = voters;
        let mut simulation = Simulation::new(SEED, layout, None, Trace::default())?;
        simulation.start_all()?;
        if !simulation.form() {
            bail!("{:?}", simulation.history.violations());
        }
        self.simulation = Some(simulation);
        Ok(())
    }

    fn connect(&mut self, name: &str, region: &str) -> anyhow::Result<()> {
        let region = self.region(region)?;
        let transcript = self.transcript.clone();
        let simulation = self.simulation()?;
        let client = simulation.client(name.into(), region, 0, SESSION_TIMEOUT);
        let actor = Arc::new(Actor::default());
        simulation.spawn(region, act(client, actor.clone(), transcript));
        self.actors.insert(name.into(), actor.clone());
        self.until_idle(&actor)
    }

    fn ask(&mut self, name: &str, words: &[&str]) -> anyhow::Result<()> {
        let actor = self.actors.get(name).context("no such client")?.clone();
        actor.0.lock().commands.push_back(words.iter().map(ToString::to_string).collect());
        self.until_idle(&actor)
    }

    fn until_idle(&mut self, actor: &Actor) -> anyhow::Result<()> {
        let simulation = self.simulation()?;
        let until_ms = simulation.wires.now_ms() + COMMAND_MS_MAX;
        simulation.pass(until_ms, |_| actor.is_idle())?;
        Ok(())
    }

    fn wait(&mut self, duration_ms: u64) -> anyhow::Result<()> {
        let simulation = self.simulation()?;
        let until_ms = simulation.wires.now_ms() + duration_ms;
        simulation.pass(until_ms, |_| false)?;
        Ok(())
    }

    fn region(&mut self, name: &str) -> anyhow::Result<usize> {
        let regions = self.simulation()?.layout.mesh.regions.clone();
        regions.iter().position(|region| region == name).context("no such region")
    }

    /// The number of a server: `a-1`, or `leader-of-a`.
    fn server(&mut self, name: &str) -> anyhow::Result<usize> {
        let name = match name.strip_prefix("leader-of-") {
            Some(region) => {
                let region = self.region(region)?;
                let (leader, _) = self.leaders_of(region)?;
                leader.context("the region has no leader")?
            }
            None => name.to_string(),
        };
        let servers = &self.simulation()?.servers;
        servers.iter().position(|server| server.name == name).context("no such server")
    }

    /// The server that leads a region, and the region that it takes for the leader of the global group.
    fn leaders_of(&mut self, region: usize) -> anyhow::Result<(Option<String>, Option<String>)> {
        let of_region = self.simulation()?.servers.iter().filter(|server| server.region == region);
        let leading = of_region.filter_map(|server| {
            server.with_server(|running| {
                let global = running.bridge().and_then(|bridge| bridge.status().global_leader);
                let leads = running.server().region().leadership().borrow().is_me;
                let quorum_age = running.server().region().quorum_age();
                leads.then(|| (quorum_age, server.name.clone(), global))
            })?
        });
        // One that was cut off may not know yet that another has taken over.
        let newest = leading.min_by_key(|(age, ..)| age.unwrap_or(Duration::MAX));
        Ok(newest.map_or((None, None), |(_, name, global)| (Some(name), global)))
    }

    fn leaders(&mut self) -> anyhow::Result<()> {
        let regions = self.simulation()?.layout.mesh.regions.clone();
        for (number, region) in regions.iter().enumerate() {
            let (leader, global) = self.leaders_of(number)?;
            let leader = leader.map_or("nobody leads".into(), |leader| format!("{leader} leads"));
            let global = global.map_or("knows of no leader of the global group".into(), |global| {
                format!("takes {global} for the leader of the global group")
            });
            self.transcript.say(format!("{region}: {leader}, {global}"));
        }
        Ok(())
    }

    /// Which region each takes for the home of the homed subtree.
    fn home(&mut self) -> anyhow::Result<()> {
        let simulation = self.simulation()?;
        let regions = simulation.layout.mesh.regions.clone();
        let mut lines = Vec::new();
        for server in simulation.servers.iter().filter(|server| server.index == 0) {
            let Some(view) = server.view() else { continue };
            for (orderer, order) in &view.state.federation.orders {
                let home = usize::from(order.home).checked_sub(1).and_then(|home| regions.get(home));
                if let (Orderer::Home(_), Some(home)) = (orderer, home) {
                    lines.push(format!(
                        "{}: the home is {home}, in epoch {}",
                        regions[server.region], order.epoch
                    ));
                }
            }
        }
        lines.into_iter().for_each(|line| self.transcript.say(line));
        Ok(())
    }

    /// Whether all servers of all regions have the same in the shared subtrees, soon.
    fn agree(&mut self) -> anyhow::Result<()> {
        let simulation = self.simulation()?;
        let until_ms = simulation.wires.now_ms() + COMMAND_MS_MAX;
        simulation.pass(until_ms, |s| checks::shared_difference(&s.servers, false).is_none())?;
        let difference = checks::shared_difference(&simulation.servers, false);
        self.transcript.say(difference.unwrap_or_else(|| "all regions have the same".into()));
        Ok(())
    }

    fn cut(&mut self, region: &str) -> anyhow::Result<()> {
        let region = self.region(region)?;
        let simulation = self.simulation()?;
        let (inside, outside): (Vec<usize>, Vec<usize>) =
            (0..simulation.servers.len()).partition(|server| simulation.servers[*server].region == region);
        for (from, to) in [(inside.clone(), outside.clone()), (outside, inside)] {
            simulation.strike(Fault::Cut { from, to, cut: true });
        }
        Ok(())
    }

    fn end(self) {
        if let Some(simulation) = self.simulation {
            simulation.end();
        }
    }
}

/// A client as the stage sees it.
#[derive(Default)]
struct Actor(Mutex<Part>);

#[derive(Default)]
struct Part {
    commands: VecDeque<Vec<String>>,
    /// It has connected, and nothing that it was asked for is under way.
    idle: bool,
}

impl Actor {
    fn is_idle(&self) -> bool {
        let part = self.0.lock();
        part.idle && part.commands.is_empty()
    }

    fn is_asked(&self) -> bool {
        !self.0.lock().idle
    }

    fn next(&self) -> Option<Vec<String>> {
        let mut part = self.0.lock();
        let next = part.commands.pop_front();
        part.idle = next.is_none();
        next
    }
}

/// Does what a client is asked, and says what it is told.
async fn act(mut client: Client, actor: Arc<Actor>, transcript: Transcript) {
    let name = client.name().to_string();
    let say = |text: String| transcript.say(format!("{name}: {text}"));
    loop {
        match client.connect().await {
            Connected::New => say("connected".into()),
            Connected::Same => say("reconnected, the session goes on".into()),
            Connected::Expired => say("connected again, the session has expired".into()),
        }
        loop {
            let done = match actor.next() {
                Some(words) => perform(&mut client, &words, &transcript).await.map(say),
                None => listen(&mut client, LOOK_INTERVAL, &transcript).await,
            };
            match done {
                Ok(()) => {}
                Err(Disconnected) if actor.is_asked() => {
                    say("disconnected, what was asked for may have happened or not".into());
                    break;
                }
                Err(Disconnected) => {
                    say("disconnected".into());
                    break;
                }
            }
        }
    }
}

async fn listen(
    client: &mut Client,
    duration: Duration,
    transcript: &Transcript,
) -> Result<(), Disconnected> {
    let name = client.name().to_string();
    let heard = |event, path: &str| {
        transcript.say(format!("{name}: {event:?} {path}"));
        false
    };
    client.wait_for(duration, heard).await.map(drop)
}

async fn perform(
    client: &mut Client,
    words: &[String],
    transcript: &Transcript,
) -> Result<String, Disconnected> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = |error: ErrorCode| format!("refused: {error:?}");
    Ok(match words[..] {
        ["create", path, ref mode @ ..] => {
            let mode = if mode == ["ephemeral"] { CreateMode::Ephemeral } else { CreateMode::Persistent };
            let created = |(path, stat): (String, meridian_wire::Stat)| {
                format!("created {path}{}", transcript.token(&path, stat.czxid))
            };
            client.create(path, client.name().to_string().as_str(), mode).await?.map_or_else(refused, created)
        }
        ["get", path] => {
            if let Err(error) = client.sync(path).await? {
                return Ok(refused(error));
            }
            let read = |(data, stat): (String, meridian_wire::Stat)| {
                format!("{path} is '{data}'{}", transcript.token(path, stat.czxid))
            };
            client.get(path, false).await?.map_or_else(refused, read)
        }
        ["set", path, data] => {
            client.set(path, data, -1).await?.map_or_else(refused, |_| format!("{path} is set to '{data}'"))
        }
        ["delete", path] => {
            client.delete(path).await?.map_or_else(refused, |()| format!("{path} is deleted"))
        }
        ["watch", path] => match client.exists(path, true).await? {
            Ok(_) => format!("watches {path}"),
            Err(error) => refused(error),
        },
        ["lock", path] => lock(client, path, transcript).await?,
        _ => "does not know how".into(),
    })
}

async fn lock(client: &mut Client, path: &str, transcript: &Transcript) -> Result<String, Disconnected> {
    loop {
        let name = client.name().to_string();
        match client.create(path, &name, CreateMode::Ephemeral).await? {
            Ok((_, stat)) => return Ok(format!("has {path}{}", transcript.token(path, stat.czxid))),
            Err(ErrorCode::NodeExists) => {
                if client.exists(path, true).await?.is_ok_and(|stat| stat.is_some()) {
                    let gone = |event, changed: &str| {
                        event == meridian_wire::EventType::NodeDeleted && changed == path
                    };
                    client.wait_for(Duration::from_secs(60), gone).await?;
                }
            }
            Err(error) => return Ok(format!("refused: {error:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_play_as_they_say() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
        let update = std::env::var_os("UPDATE_EXPECT").is_some();
        let differences = play_all(&directory, update).unwrap();
        assert!(update || differences.is_empty(), "{differences:#?}\nUPDATE_EXPECT=1 rewrites them");
    }
}
