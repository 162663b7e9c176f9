//! `meridian mesh`: who leads and who is home of what, and moving either to another region.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{AdminArgs, ask_admin, post_admin};

const EXAMPLES: &str = "\
Examples:
  meridian mesh                              what this server knows of the mesh
  meridian mesh home /shared eu              /shared is written in eu from now on
  meridian mesh lead us-west                 us-west leads the global group from now on

A home is moved by the leader of the region that is the home, the lead by the leader of the region that
leads: give its admin address. Nothing acknowledged is lost, and clients notice a pause of about two round
trips. The other region must be reachable.";

/// Who leads the mesh, and who is home of what
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct MeshArgs {
    #[command(flatten)]
    server: AdminArgs,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what the server knows (the default)
    Show,
    /// Move the home of a subtree to another region
    Home {
        /// The root of the subtree
        path: String,
        /// The region that is to be its home
        region: String,
    },
    /// Hand the lead of the global group to another region
    Lead {
        /// The region that is to lead
        region: String,
    },
}

pub(super) fn run(args: &MeshArgs) -> anyhow::Result<ExitCode> {
    let answer = match &args.action {
        None | Some(Action::Show) => ask_admin(&args.server.admin, "/mesh")?,
        Some(Action::Home { path, region }) => {
            post_admin(&args.server.admin, "/mesh/home", &json!({ "path": path, "region": region }))?
        }
        Some(Action::Lead { region }) => {
            post_admin(&args.server.admin, "/mesh/leader", &json!({ "region": region }))?
        }
    };
    args.server.print(&answer, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(mesh: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_string(),
        other => other.to_string(),
    };
    let mut text = String::new();
    for (title, value) in [
        ("server", &mesh["server"]),
        ("region leader", &mesh["region_leader"]),
        ("global leader", &mesh["global_leader"]),
        ("lease left", &mesh["lease_left_ms"]),
        ("in outboxes", &mesh["outbox_requests"]),
    ] {
        let unit = if title == "lease left" && !value.is_null() { " ms" } else { "" };
        text.push_str(&format!("{title:<14} {}{unit}\n", word(value)));
    }
    for subtree in mesh["subtrees"].as_array().into_iter().flatten() {
        let path = word(&subtree["path"]);
        let line = match &subtree["home"] {
            Value::Null => format!("{:<14} {path}, ordered by all regions\n", "subtree"),
            home => format!("{:<14} {path}, home {} (epoch {})\n", "subtree", word(home), subtree["epoch"]),
        };
        text.push_str(&line);
    }
    text
}
