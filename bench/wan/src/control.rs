//! Cutting and healing links from another program, over a loopback TCP port.
//!
//! A connection carries one command on one line and its answer on one line: the [`WanStatus`] after the
//! command as JSON, or `error: ` and the reason. Commands:
//!
//! | line | effect |
//! | --- | --- |
//! | `cut A B` | cuts the link between two regions |
//! | `cut A` | cuts all links of a region |
//! | `heal A B` | heals the link between two regions |
//! | `heal A` | heals all links of a region |
//! | `heal` | heals all links |
//! | `status` | none |
//!
//! [`WanStatus`]: crate::WanStatus

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::{Wan, WanError};

/// A change to the network, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Cuts the link between two regions.
    Cut(String, String),
    /// Cuts all links of a region.
    Isolate(String),
    /// Heals the link between two regions.
    Heal(String, String),
    /// Heals all links of a region.
    HealRegion(String),
    /// Heals all links.
    HealAll,
    /// Changes nothing.
    Status,
}

impl Command {
    /// Carries it out.
    pub fn apply(&self, wan: &Wan) -> Result<(), WanError> {
        match self {
            Self::Cut(a, b) => wan.cut(a, b),
            Self::Isolate(region) => wan.isolate(region),
            Self::Heal(a, b) => wan.heal(a, b),
            Self::HealRegion(region) => wan.heal_region(region),
            Self::HealAll => {
                wan.heal_all();
                Ok(())
            }
            Self::Status => Ok(()),
        }
    }
}

impl FromStr for Command {
    type Err = ControlError;

    fn from_str(line: &str) -> Result<Self, ControlError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["cut", a, b] => Self::Cut(a.to_owned(), b.to_owned()),
            ["cut", region] => Self::Isolate(region.to_owned()),
            ["heal", a, b] => Self::Heal(a.to_owned(), b.to_owned()),
            ["heal", region] => Self::HealRegion(region.to_owned()),
            ["heal"] => Self::HealAll,
            ["status"] => Self::Status,
            _ => return Err(ControlError::UnknownCommand(line.trim().to_owned())),
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, line: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(a, b) => write!(line, "cut {a} {b}"),
            Self::Isolate(region) => write!(line, "cut {region}"),
            Self::Heal(a, b) => write!(line, "heal {a} {b}"),
            Self::HealRegion(region) => write!(line, "heal {region}"),
            Self::HealAll => write!(line, "heal"),
            Self::Status => write!(line, "status"),
        }
    }
}

/// Why a command had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A line that is no command.
    #[error("unknown command {0:?}; the commands are: cut A B, cut A, heal A B, heal A, heal, status")]
    UnknownCommand(String),
    /// The network refused it.
    #[error(transparent)]
    Wan(#[from] WanError),
    /// The network's answer was an error: its text.
    #[error("{0}")]
    Refused(String),
    /// No network answered there.
    #[error("no answer from the network at {address}: {cause}")]
    NoAnswer {
        /// Where it was looked for.
        address: SocketAddr,
        /// What went wrong.
        cause: io::Error,
    },
}

/// Accepts commands until dropped.
#[derive(Debug)]
pub struct ControlServer {
    address: SocketAddr,
    accepting: AbortHandle,
}

/// Accepts commands to `wan` on a loopback TCP port; 0 picks one.
pub async fn serve(wan: Wan, port: u16) -> io::Result<ControlServer> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let address = listener.local_addr()?;
    Ok(ControlServer { address, accepting: tokio::spawn(accept(listener, wan)).abort_handle() })
}

impl ControlServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Sends a command to the network at `address` and returns its status as one line of JSON.
pub async fn send(address: SocketAddr, command: &Command) -> Result<String, ControlError> {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(format!("{command}\n").as_bytes()).await?;
        read_line(&mut connection, ANSWER_BYTES_MAX).await
    };
    let answer = within_time(exchange).await.map_err(|cause| ControlError::NoAnswer { address, cause })?;
    match answer.strip_prefix(ERROR) {
        Some(reason) => Err(ControlError::Refused(reason.to_owned())),
        None => Ok(answer),
    }
}

/// What an answer starts with that is no status.
const ERROR: &str = "error: ";

/// Two region names and a verb.
const COMMAND_BYTES_MAX: u64 = 1 << 10;
/// The status of some hundred regions' links.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Connections at a time; people type commands one after the other.
const CONNECTIONS_MAX: usize = 8;
/// For a whole exchange: all of it is on one machine.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept, so that a lack of file descriptors does not burn a core.
const RETRY_AFTER: Duration = Duration::from_millis(100);

async fn accept(listener: TcpListener, wan: Wan) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, _)) => {
                let wan = wan.clone();
                tokio::spawn(async move {
                    if let Err(error) = within_time(answer(connection, wan)).await {
                        tracing::debug!(%error, "control connection");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control port could not accept");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Answers one command and closes, so that a stray HTTP request can't carry one after its first line.
async fn answer(mut connection: TcpStream, wan: Wan) -> io::Result<()> {
    let line = read_line(&mut connection, COMMAND_BYTES_MAX).await?;
    let outcome = line.parse().and_then(|command: Command| Ok(command.apply(&wan)?));
    let answer = match outcome {
        Ok(()) => serde_json::to_string(&wan.status())?,
        Err(error) => format!("{ERROR}{error}"),
    };
    connection.write_all(format!("{answer}\n").as_bytes()).await
}

async fn read_line(connection: &mut (impl AsyncRead + Unpin), bytes_max: u64) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(connection.take(bytes_max)).read_line(&mut line).await?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no whole line came")),
    }
}

async fn within_time<T>(exchange: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(EXCHANGE_TIMEOUT, exchange).await?
}
