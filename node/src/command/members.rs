//! `meridian members`: who the servers of a region are, and changes of them while it runs.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{AdminArgs, ask_admin, post_admin};
use crate::txn::ensemble::{Member, Role};

const EXAMPLES: &str = "\
Examples:
  meridian members
  meridian members add 4=10.0.0.4:2888 --client 10.0.0.4:2181
      The server must run (with the others and itself in its configuration); it gets its vote once it is
      up to date. `--observer` adds it without a vote.
  meridian members demote 2          a voter becomes an observer
  meridian members promote 4         an observer becomes a voter
  meridian members remove 1
  meridian members lead 3            hands the lead over before the leader's machine is taken down

Every command may ask any server of the region; the admin address is the one of `[admin] listen`.";

/// Who the servers of a region are.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct MembersArgs {
    #[command(flatten)]
    server: AdminArgs,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the members (the default)
    List,
    /// Add a server, or change its addresses
    Add {
        /// Its number and where the others reach it
        #[arg(value_name = "N=HOST:PORT")]
        server: String,
        /// Where clients reach it
        #[arg(long, value_name = "HOST:PORT")]
        client: String,
        /// Without a vote
        #[arg(long)]
        observer: bool,
    },
    /// Remove servers
    Remove {
        /// Their numbers
        #[arg(required = true, value_name = "N")]
        servers: Vec<u8>,
    },
    /// Give an observer a vote
    Promote {
        /// Its number
        #[arg(value_name = "N")]
        server: u8,
    },
    /// Take a voter's vote
    Demote {
        /// Its number
        #[arg(value_name = "N")]
        server: u8,
    },
    /// Hand the lead over to a voter
    Lead {
        /// Its number
        #[arg(value_name = "N")]
        server: u8,
    },
}

pub(super) fn run(args: &MembersArgs) -> anyhow::Result<ExitCode> {
    let answer = match &args.action {
        None | Some(Action::List) => ask_admin(&args.server.admin, "/members")?,
        Some(Action::Lead { server }) => {
            post_admin(&args.server.admin, "/leader", &json!({ "server": server }))?
        }
        Some(Action::Remove { servers }) => {
            let numbers: Vec<String> = servers.iter().map(u8::to_string).collect();
            post_admin(&args.server.admin, "/members", &json!({ "leaving": numbers.join(",") }))?
        }
        Some(Action::Add { server, client, observer }) => {
            let (number, address) = server.split_once('=').context("write the server as N=HOST:PORT")?;
            let port = address.rsplit_once(':').map(|(_, port)| port);
            port.context("the address of the server needs a port: N=HOST:PORT")?;
            let role = if *observer { Role::Observer } else { Role::Voter };
            let joining =
                format!("server.{number}={}", Member::new(role, address.into(), Some(client.clone())));
            post_admin(&args.server.admin, "/members", &json!({ "joining": joining }))?
        }
        Some(Action::Promote { server }) => change_role(&args.server.admin, *server, Role::Voter)?,
        Some(Action::Demote { server }) => change_role(&args.server.admin, *server, Role::Observer)?,
    };
    args.server.print(&answer, table)?;
    Ok(ExitCode::SUCCESS)
}

fn change_role(admin: &str, server: u8, role: Role) -> anyhow::Result<String> {
    let now: Value = serde_json::from_str(&ask_admin(admin, "/members")?)?;
    let mut lines = Vec::new();
    let mut found = false;
    for member in now["members"].as_array().into_iter().flatten() {
        let specification = member["specification"].as_str().unwrap_or_default();
        let mut specified: Member = specification.parse().map_err(anyhow::Error::msg)?;
        anyhow::ensure!(
            member["client"].is_string(),
            "the client address of server {} is not known: `meridian members add` tells it",
            member["server"]
        );
        if member["server"] == server {
            found = true;
            specified.role = role;
        }
        lines.push(format!("server.{}={specified}", member["server"]));
    }
    anyhow::ensure!(found, "server {server} is not a member; `meridian members` shows who is");
    post_admin(admin, "/members", &json!({ "new_members": lines.join("\n"), "version": now["version"] }))
}

/// A server that has been silent for so long is likely to be down or cut off.
const SILENCE_TOLD_MS: u64 = 2_000;

fn table(answer: &Value) -> String {
    let mut text =
        format!("{:>6}  {:<9} {:<7} {:<24} {:<24} {}\n", "server", "role", "", "address", "clients", "lag");
    for member in answer["members"].as_array().into_iter().flatten() {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_string();
        let state = match (member["leads"] == true, member["votes"] == true, member["role"] == "voter") {
            (true, ..) => "leads",
            (_, false, true) => "no vote yet",
            _ => "",
        };
        let mut lag = member["lag_entries"].as_u64().map_or(String::new(), |lag| format!("{lag} entries"));
        if let Some(silent_ms) = member["silent_ms"].as_u64().filter(|ms| *ms > SILENCE_TOLD_MS) {
            lag.push_str(&format!(", silent for {} s", silent_ms / 1000));
        }
        let line = format!(
            "{:>6}  {:<9} {:<7} {:<24} {:<24} {}",
            member["server"],
            word(&member["role"]),
            state,
            word(&member["address"]),
            word(&member["client"]),
            lag
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for guest in answer["present_without_membership"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "{guest:>6}  runs, but is no member: `meridian members add {guest}=...` makes it one\n"
        ));
    }
    text.push_str(&format!("version {}\n", answer["version"].as_str().unwrap_or("-")));
    if answer["changing"] == true {
        text.push_str("a change is being carried out\n");
    }
    text
}
