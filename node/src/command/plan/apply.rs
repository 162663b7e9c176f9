//! `meridian plan --live ... --apply`: carries a change out, step by step, after showing the steps.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use meridian_topology::plan::Action;
use meridian_topology::report::Order;
use serde_json::{Value, json};

/// A step that has not taken effect by then has failed.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// How the mesh is asked: a seam for tests.
pub(super) struct Endpoint<'e> {
    /// The answer to a GET of a path at an address.
    pub(super) ask: &'e dyn Fn(&str, &str) -> anyhow::Result<String>,
    /// The answer to a POST of a value.
    pub(super) post: &'e dyn Fn(&str, &str, &Value) -> anyhow::Result<String>,
}

/// Carries out orders at the admin addresses of the regions.
pub(super) struct Executor<'e> {
    endpoint: Endpoint<'e>,
    /// The address that the plan came from.
    live: &'e str,
    addresses: BTreeMap<String, String>,
}

impl<'e> Executor<'e> {
    /// `given` are `REGION=HOST:PORT`; the region of `live` is known without.
    pub(super) fn new(endpoint: Endpoint<'e>, live: &'e str, given: &[String]) -> anyhow::Result<Self> {
        let mut addresses = BTreeMap::new();
        let mesh: Value = serde_json::from_str(&(endpoint.ask)(live, "/mesh")?)?;
        if let Some(region) = mesh["region"].as_str() {
            addresses.insert(region.to_string(), live.to_string());
        }
        for entry in given {
            let (region, address) = entry.split_once('=').context("write --admin as REGION=HOST:PORT")?;
            addresses.insert(region.to_string(), address.to_string());
        }
        Ok(Self { endpoint, live, addresses })
    }

    /// Whether every order can be carried out from here; else what is missing.
    pub(super) fn check(&self, orders: &[Order]) -> anyhow::Result<()> {
        for order in orders {
            match order.action {
                Action::AddVoter { .. } | Action::AddObserver { .. } => bail!(
                    "'{}' needs a new server: configure and start it, let `meridian members add` make it a member, then \
                     run this again",
                    order.text
                ),
                Action::GiveVote { .. } | Action::TakeVote { .. } => bail!(
                    "'{}' changes [mesh] in the configuration of every server: `meridian plan --config` writes it; \
                     restart the servers with it one after the other",
                    order.text
                ),
                _ => self.address(&order.region)?,
            };
        }
        Ok(())
    }

    /// Carries out one order, and returns when it has taken effect.
    pub(super) fn carry_out(&self, order: &Order) -> anyhow::Result<()> {
        match order.action {
            Action::MoveLeader { .. } => self.move_leader(order),
            Action::Promote { .. } => self.change_role(order, "observer", "participant"),
            Action::Demote { .. } => self.change_role(order, "voter", "observer"),
            Action::RemoveVoter { .. } => self.remove(order, "voter"),
            Action::RemoveObserver { .. } => self.remove(order, "observer"),
            _ => self.check(std::slice::from_ref(order)),
        }
    }

    fn address(&self, region: &str) -> anyhow::Result<&str> {
        let known = self.addresses.get(region).map(String::as_str);
        known.with_context(|| {
            format!("no admin address in {region} is known: give the one of its leader, --admin {region}=HOST:PORT")
        })
    }

    fn move_leader(&self, order: &Order) -> anyhow::Result<()> {
        let address = self.address(&order.region)?;
        let to = order.to.as_deref().context("a leader moves to a region")?;
        let mesh = self.ask(address, "/mesh")?;
        ensure!(
            mesh["leads_region"] == true,
            "{address} does not lead {region}: give the admin address of server {leader}, --admin {region}=HOST:PORT",
            region = order.region,
            leader = mesh["region_leader"]
        );
        (self.endpoint.post)(address, "/mesh/leader", &json!({ "region": to }))?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        while self.ask(self.live, "/mesh")?["global_leader"] != to {
            ensure!(Instant::now() < deadline, "{to} has not taken the lead");
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Changes the role of one server, and leaves the others as they are.
    fn change_role(&self, order: &Order, from: &str, to: &str) -> anyhow::Result<()> {
        let address = self.address(&order.region)?;
        let members = self.ask(address, "/members")?;
        let server = pick(&members, from, &order.region)?;
        let mut lines = Vec::new();
        for member in members["members"].as_array().into_iter().flatten() {
            let mut specification = member["specification"].as_str().unwrap_or_default().to_string();
            if member["server"] == server {
                let role = if from == "voter" { ":participant" } else { ":observer" };
                specification = specification.replace(role, &format!(":{to}"));
            }
            lines.push(format!("server.{}={specification}", member["server"]));
        }
        let change = json!({ "new_members": lines.join("\n"), "version": members["version"] });
        (self.endpoint.post)(address, "/members", &change)?;
        Ok(())
    }

    fn remove(&self, order: &Order, role: &str) -> anyhow::Result<()> {
        let address = self.address(&order.region)?;
        let members = self.ask(address, "/members")?;
        let server = pick(&members, role, &order.region)?;
        let change = json!({ "leaving": server.to_string(), "version": members["version"] });
        (self.endpoint.post)(address, "/members", &change)?;
        Ok(())
    }

    fn ask(&self, address: &str, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&(self.endpoint.ask)(address, path)?)?)
    }
}

/// A member of a role: not the leader, and the one with the highest number.
fn pick(members: &Value, role: &str, region: &str) -> anyhow::Result<u64> {
    let of_role = members["members"].as_array().into_iter().flatten();
    let able = of_role.filter(|member| member["role"] == role && member["leads"] != true);
    let picked = able.filter_map(|member| member["server"].as_u64()).max();
    picked.with_context(|| format!("{region} has no {role} that could be changed"))
}

/// Asks whether to go on; without a terminal there is nobody to ask.
pub(super) fn confirmed(yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    ensure!(std::io::stdin().is_terminal(), "nobody can be asked here: say --yes to apply the steps");
    print!("Carry out these steps? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const MEMBERS: &str = r#"{"version": "a", "members": [
        {"server": 1, "role": "voter", "leads": true, "specification": "h:1:1:participant;h:2"},
        {"server": 2, "role": "voter", "leads": false, "specification": "h:3:3:participant;h:4"},
        {"server": 3, "role": "observer", "leads": false, "specification": "h:5:5:observer;h:6"}]}"#;

    fn order(action: Action, to: Option<&str>) -> Order {
        Order { action, region: "eu".into(), to: to.map(str::to_string), text: "a step".into() }
    }

    /// Carries out an order against a mesh of one server, and returns what was posted.
    fn posted(order: &Order) -> anyhow::Result<Vec<(String, Value)>> {
        let posts = RefCell::new(Vec::new());
        let ask = |_: &str, path: &str| {
            let moved = !posts.borrow().is_empty();
            let leader = if moved { "us" } else { "eu" };
            Ok(match path {
                "/mesh" => {
                    json!({ "region": "eu", "leads_region": true, "global_leader": leader }).to_string()
                }
                _ => MEMBERS.to_string(),
            })
        };
        let post = |_: &str, path: &str, value: &Value| {
            posts.borrow_mut().push((path.to_string(), value.clone()));
            Ok("{}".to_string())
        };
        let executor = Executor::new(Endpoint { ask: &ask, post: &post }, "a:1", &[])?;
        executor.check(std::slice::from_ref(order))?;
        executor.carry_out(order)?;
        Ok(posts.take())
    }

    #[test]
    fn the_lead_is_handed_over_by_the_region_that_has_it() {
        let posts = posted(&order(Action::MoveLeader { from: 0, to: 1 }, Some("us"))).unwrap();
        assert_eq!(posts, [("/mesh/leader".to_string(), json!({ "region": "us" }))]);
    }

    #[test]
    fn members_change_one_at_a_time_and_never_the_leader() {
        let removed = posted(&order(Action::RemoveVoter { region: 0 }, None)).unwrap();
        assert_eq!(removed, [("/members".to_string(), json!({ "leaving": "2", "version": "a" }))]);
        let promoted = posted(&order(Action::Promote { region: 0 }, None)).unwrap();
        let lines = promoted[0].1["new_members"].as_str().unwrap();
        assert!(
            lines.contains("server.3=h:5:5:participant;h:6") && lines.contains("server.2=h:3"),
            "{lines}"
        );
        let demoted = posted(&order(Action::Demote { region: 0 }, None)).unwrap();
        assert!(demoted[0].1["new_members"].as_str().unwrap().contains("server.2=h:3:3:observer;h:4"));
    }

    #[test]
    fn what_can_not_be_done_from_here_is_said_before_anything_happens() {
        let refused = |action| posted(&order(action, None)).unwrap_err().to_string();
        assert!(refused(Action::AddVoter { region: 0 }).contains("meridian members add"));
        assert!(refused(Action::GiveVote { region: 0 }).contains("--config"));
        let elsewhere = Order { region: "us".into(), ..order(Action::RemoveVoter { region: 1 }, None) };
        assert!(posted(&elsewhere).unwrap_err().to_string().contains("--admin us=HOST:PORT"));
    }
}
