//! The members of a region as its servers agree on them, and how they are written down for clients.
//!
//! A change is asked for in the region's log, carried out by the leader (who brings new voters up to date
//! and then changes the consensus group), and takes effect with a second entry. What is in force stands in
//! `/zookeeper/config` in ZooKeeper's format: one `server.N=host:port:port:role;client` a line, then the
//! version.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::sync::Arc;

use meridian_bridge::state::Caller;
use meridian_wire::ErrorCode;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The znode that tells clients who the members are.
pub const CONFIG_PATH: &str = "/zookeeper/config";

/// Members by server number.
pub type Members = BTreeMap<u8, Member>;

/// The members of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ensemble {
    /// Those in force; empty until the region is formed.
    pub members: Arc<Members>,
    /// The zxid at which they came into force.
    pub version: i64,
    /// A change that is being carried out.
    pub change: Option<Change>,
    /// What became of the change before, for operators.
    pub last_failure: Option<(i64, i32)>,
}

/// A change of members that is being carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The zxid after which it was asked for. None before has the same: its end has a zxid of its own.
    pub id: i64,
    /// Whom to answer; server 0 is nobody.
    pub caller: Caller,
    /// The members that there are to be.
    pub members: Arc<Members>,
}

/// A server of a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Whether it votes.
    pub role: Role,
    /// Where the other servers reach it: `host:port`.
    pub address: String,
    /// The election port that ZooKeeper's format has room for; this implementation has no use for it.
    pub election_port: u16,
    /// Where clients reach it, if that is told.
    pub client: Option<String>,
}

/// Whether a server votes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It votes and may lead.
    #[default]
    Voter,
    /// It learns and serves clients; no write waits for it.
    Observer,
}

/// Why a change can't be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReconfigError {
    /// Another is being carried out.
    #[error("another change of members is being carried out; wait for it to end")]
    InProgress,
    /// The members are not those that the change was made for.
    #[error("the members have changed meanwhile: the version is {0:x}")]
    Version(i64),
    /// It makes no sense.
    #[error("{0}")]
    BadArguments(String),
    /// It would make sense to ZooKeeper, whose servers may have larger numbers.
    #[error("'{0}' is no number from 0 to 255, which servers have here")]
    Number(String),
}

impl ReconfigError {
    /// What a client is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InProgress => ErrorCode::ReconfigInProgress,
            Self::Version(_) => ErrorCode::BadVersion,
            Self::BadArguments(_) | Self::Number(_) => ErrorCode::BadArguments,
        }
    }
}

/// What a client asks for: either servers to add and to remove, or all members at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Servers to add or to change, `server.N=...` separated by commas.
    pub joining: Option<&'a str>,
    /// Numbers of servers to remove, separated by commas.
    pub leaving: Option<&'a str>,
    /// All members, separated by commas or line ends.
    pub new_members: Option<&'a str>,
    /// The version that it was made for, or -1.
    pub version: i64,
}

impl Ensemble {
    /// The members that a request asks for.
    ///
    /// # Errors
    /// See [`ReconfigError`].
    pub fn plan(&self, request: &Request<'_>) -> Result<Members, ReconfigError> {
        // Before the first members are agreed on there is nothing to change.
        if self.change.is_some() || self.members.is_empty() {
            return Err(ReconfigError::InProgress);
        }
        if request.version != -1 && request.version != self.version {
            return Err(ReconfigError::Version(self.version));
        }
        fn list(text: Option<&str>) -> impl Iterator<Item = &str> {
            text.unwrap_or_default().split([',', '\n']).map(str::trim)
        }
        let members = match request.new_members.filter(|text| !text.trim().is_empty()) {
            Some(all) => {
                let lines = all.split([',', '\n']).map(str::trim);
                let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("version="));
                parse_members(lines)?
            }
            None => {
                let mut members = Members::clone(&self.members);
                for number in list(request.leaving).filter(|number| !number.is_empty()) {
                    let number: u8 = parse(number, || format!("'{number}' is no server number"))?;
                    members.remove(&number);
                }
                members.extend(parse_members(list(request.joining).filter(|line| !line.is_empty()))?);
                members
            }
        };
        check(&members)?;
        Ok(members)
    }

    /// How the members are written in [`CONFIG_PATH`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, member) in self.members.iter() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "server.{number}={member}");
        }
        let _ = write!(text, "version={:x}", self.version);
        text
    }

    /// The members to be: those of the change that is being carried out, else those in force.
    pub fn target(&self) -> &Arc<Members> {
        self.change.as_ref().map_or(&self.members, |change| &change.members)
    }
}

/// Members of whom only the addresses for each other are known.
pub fn members_at(voters: &BTreeMap<u64, String>, observers: &BTreeMap<u64, String>) -> Members {
    let of_role = |servers: &BTreeMap<u64, String>, role: Role| -> Vec<(u8, Member)> {
        let member = |address: &String| Member::new(role, address.clone(), None);
        servers.iter().filter_map(|(id, a)| Some((u8::try_from(*id).ok()?, member(a)))).collect()
    };
    of_role(voters, Role::Voter).into_iter().chain(of_role(observers, Role::Observer)).collect()
}

impl Member {
    /// A member without an election port of its own.
    pub fn new(role: Role, address: String, client: Option<String>) -> Self {
        let election_port = port_of(&address).unwrap_or(0);
        Self { role, address, election_port, client }
    }

    /// Where ZooKeeper's servers would elect their leader.
    pub fn election_address(&self) -> String {
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        format!("{host}:{}", self.election_port)
    }
}

/// The port of a `host:port`.
pub(crate) fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

fn parse<T: FromStr>(text: &str, reason: impl FnOnce() -> String) -> Result<T, ReconfigError> {
    text.parse().map_err(|_| ReconfigError::BadArguments(reason()))
}

fn parse_members<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Members, ReconfigError> {
    let mut members = Members::new();
    for line in lines {
        let (name, member) = line.split_once('=').ok_or_else(|| {
            ReconfigError::BadArguments(format!("'{line}' is not server.N=host:port:port;port"))
        })?;
        let number = name.trim().rsplit('.').next().unwrap_or_default();
        let known: u64 = parse(number, || format!("'{name}' names no server"))?;
        let number = u8::try_from(known).map_err(|_| ReconfigError::Number(number.into()))?;
        let member: Member = member.parse().map_err(ReconfigError::BadArguments)?;
        if member.client.is_none() {
            return Err(ReconfigError::BadArguments(format!("'{line}' has no client port: append ;PORT")));
        }
        if members.insert(number, member).is_some() {
            return Err(ReconfigError::BadArguments(format!("server {number} is there twice")));
        }
    }
    Ok(members)
}

fn check(members: &Members) -> Result<(), ReconfigError> {
    let bad = |reason: String| Err(ReconfigError::BadArguments(reason));
    if !members.values().any(|member| member.role == Role::Voter) {
        return bad("there must be at least one voter".into());
    }
    let mut seen = BTreeMap::new();
    for (number, member) in members {
        if let Some(other) = seen.insert(&member.address, number) {
            return bad(format!("servers {other} and {number} have the same address {}", member.address));
        }
    }
    Ok(())
}

impl fmt::Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Voter => "participant",
            Role::Observer => "observer",
        };
        write!(out, "{}:{}:{role}", self.address, self.election_port)?;
        match &self.client {
            Some(client) => write!(out, ";{client}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Member {
    type Err = String;

    /// `host:port:election[:participant|:observer][;[address:]port]`; of several addresses (`|`) the first
    /// counts.
    fn from_str(text: &str) -> Result<Self, String> {
        let (servers, client) = match text.trim().split_once(';') {
            Some((servers, client)) => (servers, Some(client_address(client)?)),
            None => (text.trim(), None),
        };
        let first = servers.split('|').next().unwrap_or_default();
        // The role stands behind the last address.
        let role = match servers.rsplit(':').next() {
            Some(role) if role.eq_ignore_ascii_case("observer") => Role::Observer,
            _ => Role::Voter,
        };
        let first = ["observer", "participant"]
            .iter()
            .find_map(|role| strip_suffix_ignoring_case(first, role)?.strip_suffix(':'))
            .unwrap_or(first);
        let malformed = || format!("'{text}' is not host:port:port[:role][;[address:]port]");
        let (rest, election) = first.rsplit_once(':').ok_or_else(malformed)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(malformed)?;
        let election_port: u16 = election.parse().map_err(|_| malformed())?;
        let port: u16 = port.parse().map_err(|_| malformed())?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.is_empty() || (bare.contains(':') && bare.len() == host.len()) {
            return Err(malformed());
        }
        Ok(Self { role, address: format!("{host}:{port}"), election_port, client })
    }
}

fn strip_suffix_ignoring_case<'t>(text: &'t str, suffix: &str) -> Option<&'t str> {
    let at = text.len().checked_sub(suffix.len())?;
    let (head, tail) = text.split_at_checked(at)?;
    tail.eq_ignore_ascii_case(suffix).then_some(head)
}

/// `2181` is every address's port 2181.
fn client_address(text: &str) -> Result<String, String> {
    let (host, port) = text.trim().rsplit_once(':').unwrap_or(("0.0.0.0", text.trim()));
    match port.parse::<u16>() {
        Ok(port) if !host.is_empty() => Ok(format!("{host}:{port}")),
        _ => Err(format!("'{text}' is no client address: [address:]port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ensemble(text: &str) -> Ensemble {
        let members = parse_members(text.split(',')).unwrap();
        Ensemble { members: Arc::new(members), version: 0x1_0000_0000, ..Ensemble::default() }
    }

    #[test]
    fn members_are_written_as_zookeeper_writes_them() {
        let text = "server.1=h1:2888:3888;2181,server.2=[::1]:2889:3889:observer;[::1]:2182";
        assert_eq!(
            ensemble(text).text(),
            "server.1=h1:2888:3888:participant;0.0.0.0:2181\nserver.2=[::1]:2889:3889:observer;[::1]:2182\n\
             version=100000000"
        );
        let several: Member = "a:1:2|b:3:4:observer;5".parse().unwrap();
        assert_eq!((several.address.as_str(), several.role), ("a:1", Role::Observer));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for bad in [
            "",
            "h",
            "h:1",
            "h:1:x",
            ":1:2",
            "h:1:2;x",
            "h:1:2:boss;3",
            "a:b:1:2;3",
            "h:99999:1;2",
            "h:1:2;:3",
        ] {
            assert!(bad.parse::<Member>().is_err(), "{bad}");
        }
        for bad in ["server.1", "server.-1=h:1:2;3", "server.300=h:1:2;3", "server.1=h:1:2"] {
            let ensemble = ensemble("server.1=h1:2888:3888;2181");
            let request = Request { joining: Some(bad), version: -1, ..Request::default() };
            assert_eq!(ensemble.plan(&request).unwrap_err().code(), ErrorCode::BadArguments, "{bad}");
        }
    }

    #[test]
    fn servers_are_added_changed_and_removed() {
        let before = ensemble("server.1=h1:1:2;3,server.2=h2:1:2;3,server.3=h3:1:2;3");
        let plan =
            |joining, leaving| before.plan(&Request { joining, leaving, new_members: None, version: -1 });
        assert_eq!(
            plan(Some("server.4=h4:1:2;3"), Some("1")).unwrap().keys().collect::<Vec<_>>(),
            [&2, &3, &4]
        );
        assert_eq!(plan(Some("2=h2:1:2:observer;3"), None).unwrap()[&2].role, Role::Observer);
        assert!(plan(Some("server.4=h1:1:2;3"), None).is_err(), "an address of another");
        assert!(plan(None, Some("1,2,3")).is_err(), "nobody left");
        let all =
            Request { new_members: Some("server.9=h9:1:2;3"), version: 0x1_0000_0000, ..Request::default() };
        assert_eq!(before.plan(&all).unwrap().len(), 1);
        let stale = Request { version: 7, ..all };
        assert_eq!(before.plan(&stale).unwrap_err(), ReconfigError::Version(0x1_0000_0000));
    }
}
