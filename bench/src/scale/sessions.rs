//! Sessions that do nothing but watch one znode, held by processes of their own: one process may not have enough file
//! descriptors for all of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use clap::Args;
use meridian_wire::{
    ConnectRequest, ConnectResponse, PASSWORD_LENGTH, ReplyHeader, Request, begin_frame, cut_frame,
    finish_frame, xid,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::interval;

/// Sessions that a process holds.
const SESSIONS_PER_PROCESS: usize = 15_000;
/// Sessions that a process opens at a time.
const OPENING_MAX: usize = 30;
/// Sessions are told to be alive so often: well within the longest timeout of either system.
const PING_INTERVAL: Duration = Duration::from_secs(8);
/// The znode that all of them watch.
const WATCHED: &str = "/watched";
const FRAME_BYTES_MAX: usize = 1 << 20;
/// What a holder says when all of its sessions watch, and when all were told.
const OPENED: &str = "opened";
const TOLD: &str = "told";

/// The processes that hold the sessions.
pub(super) struct Holders(Vec<Holder>);

struct Holder {
    /// It ends with this.
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Holders {
    /// Starts processes that open so many sessions in all, spread over the servers.
    pub(super) fn start(servers: &[String], count: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let start = |first: usize| {
            let count = SESSIONS_PER_PROCESS.min(count - first);
            let mut command = Command::new(&program);
            command.arg("hold-sessions").args(["--first", &first.to_string(), "--count", &count.to_string()]);
            let mut process = command.args(servers).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
            let output = process.stdout.take().context("no standard output")?;
            anyhow::Ok(Holder { _process: process, lines: BufReader::new(output).lines() })
        };
        (0..count).step_by(SESSIONS_PER_PROCESS).map(start).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Waits until all sessions watch.
    pub(super) async fn opened(&mut self) -> anyhow::Result<()> {
        self.all_say(OPENED).await
    }

    /// Waits until every session was told of a change.
    pub(super) async fn told(&mut self) -> anyhow::Result<()> {
        self.all_say(TOLD).await
    }

    /// Waits until every process says a word.
    async fn all_say(&mut self, word: &str) -> anyhow::Result<()> {
        for holder in &mut self.0 {
            let line = holder.lines.next_line().await?;
            ensure!(
                line.as_deref() == Some(word),
                "a process that holds sessions has failed; it says why above"
            );
        }
        Ok(())
    }
}

/// Holds sessions that watch a znode until all were told of a change
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// Number of the first session
    #[arg(long)]
    first: usize,
    /// Sessions
    #[arg(long)]
    count: usize,
    /// Where they are opened, `host:port`, in turn
    #[arg(required = true)]
    servers: Vec<SocketAddr>,
}

/// Runs the command.
///
/// # Errors
/// If a session can't be opened, or ends.
pub(crate) async fn hold(args: &HoldArgs) -> anyhow::Result<ExitCode> {
    // A source address of its own for each process: there are not enough ports for all.
    let source = u8::try_from(2 + args.first / SESSIONS_PER_PROCESS).context("too many sessions")?;
    let opening = Arc::new(Semaphore::new(OPENING_MAX));
    let (opened, mut all_opened) = mpsc::channel::<()>(1);
    let mut sessions = JoinSet::new();
    for number in args.first..args.first + args.count {
        let server = args.servers[number % args.servers.len()];
        let (opening, opened) = (opening.clone(), opened.clone());
        sessions.spawn(async move {
            let stream = {
                let _turn = opening.acquire().await?;
                open_watching(server, source).await?
            };
            drop(opened);
            until_told(stream).await
        });
    }
    drop(opened);
    // Ends when no session is still to be opened, or one has failed.
    tokio::select! {
        _ = all_opened.recv() => println!("{OPENED}"),
        ended = sessions.join_next() => bail!("a session ended before all were opened: {ended:?}"),
    }
    while let Some(told) = sessions.join_next().await {
        told??;
    }
    println!("{TOLD}");
    Ok(ExitCode::SUCCESS)
}

async fn open_watching(server: SocketAddr, source: u8) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, source)), 0))?;
    let mut stream = socket.connect(server).await?;
    let mut output = BytesMut::new();
    let start = begin_frame(&mut output);
    let hello = ConnectRequest {
        protocol_version: 0,
        last_zxid_seen: 0,
        timeout_ms: 40_000,
        session_id: 0,
        password: &[0; PASSWORD_LENGTH],
        read_only: Some(false),
    };
    hello.encode(&mut output);
    finish_frame(start, &mut output)?;
    Request::GetData { path: WATCHED, watch: true }.encode_frame(1, &mut output)?;
    stream.write_all(&output).await?;
    let mut input = BytesMut::new();
    let mut frames = 0;
    while frames < 2 {
        ensure!(stream.read_buf(&mut input).await? > 0, "the server closed the connection");
        while let Some(frame) = cut_frame(&mut input, FRAME_BYTES_MAX)? {
            frames += 1;
            ensure!(frames > 1 || ConnectResponse::decode(&frame)?.session_id != 0, "no session");
        }
    }
    Ok(stream)
}

/// Keeps a session alive until it is told of the change.
async fn until_told(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut ping = BytesMut::new();
    Request::Ping.encode_frame(xid::PING, &mut ping)?;
    let mut pings = interval(PING_INTERVAL);
    // The first comes at once.
    pings.tick().await;
    let mut input = BytesMut::new();
    loop {
        tokio::select! {
            read = stream.read_buf(&mut input) => ensure!(read? > 0, "a session ended before it was told"),
            _ = pings.tick() => stream.write_all(&ping).await?,
        }
        while let Some(frame) = cut_frame(&mut input, FRAME_BYTES_MAX)? {
            let (header, _) = ReplyHeader::decode(&frame)?;
            if header.xid == xid::NOTIFICATION {
                return Ok(());
            }
        }
    }
}
