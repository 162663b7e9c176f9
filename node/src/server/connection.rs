//! A client's connection: one task that reads frames, executes reads on the published view, submits
//! writes, and answers everything in the order asked.
//!
//! What goes out is merged by the region's zxids. A reply decided at a zxid comes after all events up to
//! it and before all later ones, so that a client that has seen a zxid has seen everything up to it: that
//! is what it relies on when it sets its watches again elsewhere.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meridian_bridge::mesh::Orderer;
use meridian_seam::clock::millis;
use meridian_seam::entropy::Entropy;
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::net::{BoxStream, Mover};
use meridian_seam::{codec, limits};
use meridian_wire::{
    AddWatchMode, AuthPacket, ConnectRequest, ConnectResponse, ErrorCode, OpCode, PASSWORD_LENGTH,
    ReplyHeader, Request, RequestHeader, Response, WatcherType, WireError, begin_frame, cut_frame,
    finish_frame,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::sync::Semaphore;

use super::authentication::{SaslStep, Verdict};
use super::client::{Client, Established, Last};
use super::hub::{Hub, Waiting, event_frame, session_id};
use super::liveness::{self, CONTACT_SHARE, is_in_doubt};
use super::local_sessions::LocalSessions;
use super::metrics::Tally;
use super::read::{Reader, is_read, reply_error};
use super::sasl::Exchange;
use super::throttle::Throttle;
use super::{LocalSessionMode, ServerOptions, words};
use crate::region::{Region, View};
use crate::session::Watch;
use crate::txn::acl::Identities;
use crate::txn::{Answer, ClientRequest, Command, MultiResult, Outcome, Reply, makes_ephemeral, route};

/// What the connections of a server share.
pub(super) struct Service {
    pub(super) hub: Arc<Hub>,
    pub(super) region: Region,
    pub(super) options: ServerOptions,
    pub(super) local_sessions: LocalSessions,
    pub(super) throttle: Mutex<Throttle>,
    /// For writes under way.
    pub(super) room: Semaphore,
    pub(super) entropy: Arc<dyn Entropy>,
    /// The port that speaks the protocol itself, if there is one.
    pub(super) listening: Option<Mover>,
    pub(super) listening_secure: Option<SocketAddr>,
    pub(super) sessions_opened: AtomicU64,
    /// What operators set and ask for; nothing is traced by it.
    pub(super) trace_mask: AtomicI64,
}

impl Service {
    /// Whether the server has been cut off from its leader and a majority for longer than an election takes.
    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off_in().is_zero()
    }

    /// When it counts as cut off, unless it hears of them before.
    pub(super) fn cut_off_in(&self) -> Duration {
        const PATIENCE: Duration = Duration::from_secs(2);
        let contact_age = self.hub.now().saturating_sub(self.hub.contact());
        self.options.tick.max(PATIENCE).saturating_sub(contact_age)
    }

    /// Whether reads are all that can be had here.
    pub(super) fn is_read_only(&self) -> bool {
        self.options.read_only_mode && self.is_cut_off()
    }

    /// The address that clients connect to: that of TLS if it is the only one.
    pub(super) fn client_address(&self) -> SocketAddr {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        // A server has one of them.
        self.listening.as_ref().map(Mover::address).or(self.listening_secure).unwrap_or(unspecified)
    }

    /// Why clients had better go to another server for now, if so.
    pub(super) fn unreadiness(&self) -> Option<String> {
        if let Some(reason) = self.region.failure().borrow().clone() {
            return Some(reason);
        }
        let reason = if self.is_read_only() {
            return None;
        } else if self.region.leadership().borrow().leader.is_none() {
            "no leader is known"
        } else if !self.hub.has_had_contact() {
            "this server has not heard of a leader and its majority yet"
        } else if self.is_cut_off() {
            "this server is cut off from the leader or the leader from a majority"
        } else if self.hub.view().state.ensemble.members.is_empty() {
            "the region is being formed, or this server has not caught up with it"
        } else if !self.region.has_room() {
            "the disk is full"
        } else {
            return None;
        };
        Some(reason.into())
    }

    /// Lets one more session be opened, or not.
    fn admits(&self, cost: u32) -> bool {
        let random = || {
            let mut random = [0; 8];
            self.entropy.fill(&mut random);
            u64::from_be_bytes(random) as f64 / u64::MAX as f64
        };
        self.throttle.lock().admits(cost, self.hub.now(), random)
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(
    service: Arc<Service>,
    client: Arc<Client>,
    stream: BoxStream,
    certificate_subject: Option<&str>,
) {
    let authentication = &service.options.authentication;
    let mut identities = Identities(vec![("ip".into(), client.peer.ip().to_string())]);
    if let Some(subject) = certificate_subject {
        authentication.add_certificate(subject, &mut identities);
    }
    let encoded_identities: Bytes = authentication.encode(&identities).into();
    client.identify(encoded_identities.clone());
    let mut connection = Connection {
        service,
        stage: Stage::Hello,
        input: BytesMut::new(),
        output: BytesMut::new(),
        held: None,
        outstanding: VecDeque::new(),
        orderer: None,
        encoded_identities,
        identities,
        is_local: false,
        exchange: None,
        client,
        tally: Tally::default(),
        last: None,
        room: IDLE_BYTES,
        allocated: 0,
        now: Duration::ZERO,
    };
    let end = connection.run(stream).await;
    tracing::debug!(peer = %connection.client.peer, reason = %end, "connection closed");
    let metrics = &connection.service.hub.metrics;
    if matches!(end, End::Malformed(WireError::FrameLength { .. })) {
        metrics.frames_refused.fetch_add(1, Ordering::Relaxed);
    }
    if !matches!(connection.stage, Stage::Last) {
        metrics.dropped.fetch_add(1, Ordering::Relaxed);
    }
    let outstanding = connection.outstanding.len() as u64;
    connection.service.hub.metrics.outstanding.fetch_sub(outstanding, Ordering::Relaxed);
    let under_way = connection.outstanding.iter().filter(|o| o.xid.is_some()).count();
    connection.service.room.add_permits(under_way);
}

/// The part of a connection that its task owns.
struct Connection {
    service: Arc<Service>,
    client: Arc<Client>,
    stage: Stage,
    input: BytesMut,
    output: BytesMut,
    /// The next request, which must wait for outstanding writes.
    held: Option<Bytes>,
    /// Writes submitted and not yet answered, in order.
    outstanding: VecDeque<Outstanding>,
    /// Who orders the outstanding writes.
    orderer: Option<Orderer>,
    identities: Identities,
    encoded_identities: Bytes,
    /// Whether the session is one that only this server knows.
    is_local: bool,
    /// A SASL exchange that waits for the client's next token.
    exchange: Option<Exchange>,
    /// What is not yet counted in the server's metrics.
    tally: Tally,
    /// The last request of this wake-up.
    last: Option<Last>,
    /// Room for the next read: little while the client is idle, more while much comes.
    room: usize,
    /// Memory that the input may hold.
    allocated: usize,
    /// The time of this wake-up.
    now: Duration,
}

enum Stage {
    /// Nothing has come yet.
    Hello,
    /// The session is being opened or taken up.
    Opening { session: i64, password: [u8; PASSWORD_LENGTH], read_only: Option<bool>, is_new: bool },
    /// Requests are served.
    Open,
    /// What is in the output is the last.
    Last,
}

struct Outstanding {
    /// None for what the server itself has asked for, which takes no room.
    xid: Option<i32>,
    sequence: u64,
    since: Duration,
    answer: Option<Answer>,
}

/// What became of the wish for room for a write.
#[derive(PartialEq, Eq)]
enum Room {
    Taken,
    /// Others had it for too long.
    Denied,
}

/// What became of a request.
#[derive(PartialEq, Eq)]
enum Step {
    Done,
    /// It must wait for outstanding writes.
    Held,
}

/// How often it is looked again whether a client may be sent what it waits for.
const DOUBT_PAUSE: Duration = Duration::from_millis(50);
/// Room for the input of an idle connection: most are idle, and there may be very many.
const IDLE_BYTES: usize = 2 << 10;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("by the client")]
    Client,
    #[error("by the server")]
    Server,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("malformed request: {0}")]
    Malformed(#[from] WireError),
    #[error("request can't be logged: {0}")]
    Codec(#[from] codec::CodecError),
    #[error("{0}")]
    Refused(&'static str),
}

const CUT_OFF: End = End::Refused("this server is cut off from a majority of its region");

impl Connection {
    async fn run(&mut self, stream: BoxStream) -> End {
        let client = self.client.clone();
        let (mut reader, mut writer) = tokio::io::split(stream);
        loop {
            let more = match self.process().await {
                Ok(more) => more,
                Err(end) => return end,
            };
            if let Err(end) = self.flush(&mut writer).await {
                return end;
            }
            if matches!(self.stage, Stage::Last) {
                // The client may close first; nothing is lost if it does.
                let _ = writer.shutdown().await;
                return End::Server;
            }
            if more {
                continue;
            }
            let wants_input = self.prepare_input();
            tokio::select! {
                biased;
                () = client.closing() => return End::Server,
                read = reader.read_buf(&mut self.input), if wants_input => match read {
                    Ok(0) => return End::Client,
                    Ok(read) => {
                        self.tally.bytes_received += read as u64;
                        let filled = self.input.len() == self.input.capacity();
                        self.room = if filled { limits::CONNECTION_READ_AHEAD_BYTES } else { IDLE_BYTES };
                        self.now = self.service.hub.now();
                        client.hear(self.now);
                    }
                    Err(error) => return error.into(),
                },
                // Last, so that a client with many events is still heard.
                () = client.woken() => self.now = self.service.hub.now(),
            }
        }
    }

    /// Answers what can be answered. Returns whether there is more to do after the output is written.
    async fn process(&mut self) -> Result<bool, End> {
        loop {
            self.take_answers()?;
            if self.output.len() >= limits::CONNECTION_FLUSH_BYTES {
                return Ok(true);
            }
            match self.stage {
                Stage::Hello => {
                    if !self.greet().await? {
                        return Ok(false);
                    }
                }
                Stage::Opening { .. } | Stage::Last => return Ok(false),
                Stage::Open => {
                    let frame = match self.held.take() {
                        Some(frame) => frame,
                        None => match cut_frame(&mut self.input, self.service.options.frame_bytes_max)? {
                            Some(frame) => frame,
                            None => return Ok(false),
                        },
                    };
                    if self.request(&frame).await? == Step::Held {
                        self.held = Some(frame);
                        return Ok(false);
                    }
                }
            }
        }
    }

    async fn flush(&mut self, writer: &mut WriteHalf<BoxStream>) -> Result<(), End> {
        let hub = &self.service.hub;
        self.tally.bytes_sent += self.output.len() as u64;
        if self.tally.has_packets() {
            self.tally.finish(|| hub.now().saturating_sub(self.now));
            let tally = std::mem::take(&mut self.tally);
            hub.metrics.add(&tally);
            let at_ms = millis(self.now);
            self.client.count(&tally, self.last.take().map(|last| Last { at_ms, ..last }));
        }
        let settled = hub.settled();
        self.client.take_events(settled, |frame| self.output.extend_from_slice(&frame));
        if self.output.is_empty() {
            return Ok(());
        }
        while is_in_doubt(&self.service, &self.client) {
            tokio::select! {
                biased;
                () = self.client.closing() => return Err(End::Server),
                () = tokio::time::sleep(DOUBT_PAUSE) => {}
            }
        }
        if hub.lease().is_past(|| hub.now())
            && hub.view().state.owns_ephemerals_elsewhere(self.client.session())
        {
            return Err(End::Refused("the region's lease is over"));
        }
        tokio::select! {
            biased;
            () = self.client.closing() => Err(End::Server),
            written = writer.write_all_buf(&mut self.output) => {
                written?;
                writer.flush().await?;
                if self.output.capacity() > limits::CONNECTION_FLUSH_BYTES {
                    // One large reply must not hold its memory for as long as the client stays.
                    self.output = BytesMut::new();
                }
                Ok(())
            }
        }
    }

    /// Makes room for what is to be read; false if enough is there while the next request waits.
    fn prepare_input(&mut self) -> bool {
        let waits = self.held.is_some() || matches!(self.stage, Stage::Opening { .. });
        if waits && self.input.len() >= limits::CONNECTION_READ_AHEAD_BYTES {
            return false;
        }
        let announced =
            self.input.first_chunk::<4>().map_or(0, |prefix| u32::from_be_bytes(*prefix) as usize);
        let missing =
            (announced.min(self.service.options.frame_bytes_max) + 4).saturating_sub(self.input.len());
        let wanted = if waits { self.room } else { self.room.max(missing) };
        if self.input.is_empty() && wanted < self.allocated {
            self.input = BytesMut::new();
            self.allocated = 0;
        }
        self.input.reserve(wanted);
        self.allocated = self.allocated.max(wanted);
        true
    }

    /// The first bytes: a four-letter word, or the frame that opens a session. False if more are needed.
    async fn greet(&mut self) -> Result<bool, End> {
        if let Some(word) = self.input.first_chunk::<4>()
            && words::is_word(word)
        {
            let word = *word;
            // The new mask follows the word.
            let mask = self.input.get(4..12).and_then(|mask| mask.try_into().ok()).map(i64::from_be_bytes);
            if &word == b"stmk" && mask.is_none() {
                return Ok(false);
            }
            let text = words::answer(&self.service, word, mask);
            self.output.extend_from_slice(text.as_bytes());
            self.stage = Stage::Last;
            return Ok(true);
        }
        let Some(frame) = cut_frame(&mut self.input, self.service.options.frame_bytes_max)? else {
            return Ok(false);
        };
        let hello = ConnectRequest::decode(&frame)?;
        if hello.last_zxid_seen > self.service.hub.view().state.zxid {
            return Err(End::Refused("the client has seen a newer state than this server's"));
        }
        let service = self.service.clone();
        let is_local = service.options.local_sessions != LocalSessionMode::Off;
        let weights = service.throttle.lock().weights();
        let cost = match (hello.session_id, is_local) {
            (0, true) => weights.local,
            (0, false) => weights.global,
            _ => weights.renewal,
        };
        if !service.admits(cost) {
            service.hub.metrics.connections_rejected.fetch_add(1, Ordering::Relaxed);
            return Err(End::Refused("too many clients come at once"));
        }
        if service.is_read_only() {
            self.open_read_only(&hello)?;
        } else if service.is_cut_off() {
            // It does not wait here in vain while another server could serve it.
            return Err(CUT_OFF);
        } else if !service.region.has_room() {
            return Err(End::Refused("the disk is full"));
        } else {
            self.until_formed().await?;
            if is_local && service.options.read_only_mode && hello.read_only == Some(true) {
                self.until_backed().await?;
            }
            if !(is_local && self.open_locally(&hello)?) {
                self.open(&hello).await?;
            }
        }
        Ok(true)
    }

    /// Waits until `/zookeeper/config` says who the members are: it does so from the first session on.
    async fn until_formed(&mut self) -> Result<(), End> {
        tokio::select! {
            biased;
            () = self.client.closing() => Err(End::Server),
            formed = self.service.region.formed() => formed.map_err(|_| CUT_OFF),
        }
    }

    /// Waits until a majority of the region is known to stand behind this server since the client came: a session that
    /// nobody else learns of would be opened without it, and its client, who would be content with reads, be told that
    /// it may write.
    async fn until_backed(&mut self) -> Result<(), End> {
        let (service, client, came) = (self.service.clone(), self.client.clone(), self.now);
        while liveness::last_backed(&service).is_none_or(|backed| backed < came) {
            if service.is_cut_off() {
                return Err(CUT_OFF);
            }
            tokio::select! {
                biased;
                () = client.closing() => return Err(End::Server),
                () = tokio::time::sleep(DOUBT_PAUSE) => {}
            }
        }
        Ok(())
    }

    fn timeout_of(&self, hello: &ConnectRequest<'_>) -> u32 {
        let (min, max) = self.service.options.session_timeout_bounds_ms();
        u32::try_from(hello.timeout_ms).unwrap_or(0).clamp(min, max)
    }

    /// The identifier and the password of a new session.
    fn new_session(&self) -> Result<(i64, [u8; PASSWORD_LENGTH]), End> {
        let service = &self.service;
        let mut password = [0; PASSWORD_LENGTH];
        service.entropy.fill(&mut password);
        let counter = service.sessions_opened.fetch_add(1, Ordering::Relaxed);
        let session = session_id(service.options.region.region, service.region.me(), counter)
            .ok_or(End::Refused("this server must be restarted: it has opened all sessions it can"))?;
        Ok((session, password))
    }

    /// Serves reads to a client that asks for no more. A session that the region knows may read here too.
    fn open_read_only(&mut self, hello: &ConnectRequest<'_>) -> Result<(), End> {
        if hello.read_only != Some(true) {
            return Err(CUT_OFF);
        }
        self.client.restrict_to_reads();
        let view = self.service.hub.view().clone();
        let known = view.state.sessions.get(&hello.session_id).filter(|s| s.password == hello.password);
        if let Some(known) = known {
            let password = known.password;
            return self.serve_session(hello.session_id, &password, self.timeout_of(hello), hello.read_only);
        }
        if !self.open_locally(hello)? {
            self.refuse_session(hello.read_only)?;
        }
        Ok(())
    }

    /// Opens a session that only this server knows, or takes one up. False if the session asked for is none.
    fn open_locally(&mut self, hello: &ConnectRequest<'_>) -> Result<bool, End> {
        let service = self.service.clone();
        let timeout_ms = self.timeout_of(hello);
        if hello.session_id == 0 {
            let (session, password) = self.new_session()?;
            if !service.local_sessions.open(session, password, self.client.clone()) {
                return Err(End::Refused("too many local sessions"));
            }
            self.is_local = true;
            self.serve_session(session, &password, timeout_ms, hello.read_only)?;
            return Ok(true);
        }
        let Ok(password) = <[u8; PASSWORD_LENGTH]>::try_from(hello.password) else { return Ok(false) };
        if !service.local_sessions.take_up(hello.session_id, &password, &self.client) {
            return Ok(false);
        }
        self.is_local = true;
        self.serve_session(hello.session_id, &password, timeout_ms, hello.read_only)?;
        Ok(true)
    }

    fn serve_session(
        &mut self,
        session: i64,
        password: &[u8; PASSWORD_LENGTH],
        timeout_ms: u32,
        read_only: Option<bool>,
    ) -> Result<(), End> {
        self.client.open(session, timeout_ms, self.now);
        let timeout_ms = i32::try_from(timeout_ms).unwrap_or(i32::MAX);
        self.put_welcome(session, password, timeout_ms, read_only)?;
        self.stage = Stage::Open;
        Ok(())
    }

    /// Asks for the session to be opened or taken up.
    async fn open(&mut self, hello: &ConnectRequest<'_>) -> Result<(), End> {
        let timeout_ms = self.timeout_of(hello);
        let connection = self.client.number;
        if hello.session_id == 0 {
            let (session, password) = self.new_session()?;
            self.stage = Stage::Opening { session, password, read_only: hello.read_only, is_new: true };
            return self
                .submit(None, Some(session), |caller| {
                    codec::encode(&Command::OpenSession { caller, session, connection, timeout_ms, password })
                })
                .await;
        }
        let session = hello.session_id;
        let Ok(password) = <[u8; PASSWORD_LENGTH]>::try_from(hello.password) else {
            self.refuse_session(hello.read_only)?;
            return Ok(());
        };
        self.stage = Stage::Opening { session, password, read_only: hello.read_only, is_new: false };
        self.submit(None, Some(session), |caller| {
            codec::encode(&Command::MoveSession { caller, session, connection, password, timeout_ms })
        })
        .await
    }

    /// Hands a write to the region; its answer will come through the inbox.
    async fn submit(
        &mut self,
        xid: Option<i32>,
        opens: Option<i64>,
        build: impl FnOnce(crate::txn::Caller) -> Result<Vec<u8>, codec::CodecError>,
    ) -> Result<(), End> {
        let service = self.service.clone();
        let client = self.client.clone();
        let since = self.now;
        let submitted = service.region.submit(|caller| {
            let command = build(caller)?;
            service.hub.wait(caller.sequence, Waiting { client: client.clone(), opens, since });
            Ok::<_, codec::CodecError>(Bytes::from(command))
        });
        let sequence = tokio::select! {
            biased;
            () = client.closing() => return Err(End::Server),
            sequence = submitted => sequence?,
        };
        self.outstanding.push_back(Outstanding { xid, sequence, since: self.now, answer: None });
        service.hub.metrics.outstanding.fetch_add(1, Ordering::Relaxed);
        self.client.outstanding.store(self.outstanding.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Takes room for one more write of this server's clients; `None` if the write has to be held.
    ///
    /// Only who has no write under way waits here: those that hold room are never kept from giving it back.
    async fn take_room(&mut self) -> Result<Option<Room>, End> {
        let service = self.service.clone();
        if let Ok(permit) = service.room.try_acquire() {
            permit.forget();
            return Ok(Some(Room::Taken));
        }
        if !self.outstanding.is_empty() {
            return Ok(None);
        }
        let patience = service.options.throttled_wait.unwrap_or(Duration::MAX);
        let client = self.client.clone();
        tokio::select! {
            biased;
            () = client.closing() => Err(End::Server),
            acquired = tokio::time::timeout(patience, service.room.acquire()) => Ok(Some(match acquired {
                Ok(Ok(permit)) => {
                    permit.forget();
                    Room::Taken
                }
                // The semaphore is never closed: it took too long.
                _ => Room::Denied,
            })),
        }
    }

    /// Takes answers from the inbox and replies, in order, to the writes that they complete.
    fn take_answers(&mut self) -> Result<(), End> {
        if self.outstanding.is_empty() {
            return Ok(());
        }
        let (answers, ended) = self.client.take_answers();
        for answer in answers {
            let waiting = self.outstanding.iter_mut().find(|o| o.sequence == answer.sequence);
            if let Some(waiting) = waiting {
                waiting.answer = Some(answer);
            }
        }
        while self.outstanding.front().is_some_and(|o| o.answer.is_some())
            && let Some(Outstanding { xid, since, answer: Some(answer), .. }) = self.outstanding.pop_front()
        {
            self.service.room.add_permits(usize::from(xid.is_some()));
            self.service.hub.metrics.outstanding.fetch_sub(1, Ordering::Relaxed);
            if !mutant::is(Mutant::EventAfterReply) {
                self.take_events(answer.zxid);
            }
            if let Stage::Opening { session, password, read_only, is_new } = self.stage {
                let waited = (!is_new).then(|| self.now.saturating_sub(since));
                self.welcome(session, &password, read_only, waited, &answer.outcome)?;
                continue;
            }
            // The opening of a session that was local so far concerns nobody else.
            let Some(xid) = xid else { continue };
            let before = self.output.len();
            reply_outcome(xid, answer.zxid, &answer.outcome, &mut self.output)?;
            self.tally.wrote(self.now.saturating_sub(since), self.output.len() - before);
        }
        self.client.outstanding.store(self.outstanding.len(), Ordering::Relaxed);
        if ended && self.outstanding.is_empty() {
            self.stage = Stage::Last;
        }
        Ok(())
    }

    /// Tells the client what became of its session, for which an existing one has waited so long.
    fn welcome(
        &mut self,
        session: i64,
        password: &[u8],
        read_only: Option<bool>,
        waited: Option<Duration>,
        outcome: &Outcome,
    ) -> Result<(), End> {
        match outcome {
            Outcome { error: ErrorCode::Ok, reply: Reply::Session(timeout_ms) } => {
                // Where this server applies the log late, the session may be over by now.
                let timeout = Duration::from_millis(u64::from(*timeout_ms));
                if waited.is_some_and(|waited| waited >= timeout.mul_f64(CONTACT_SHARE)) {
                    return Err(End::Refused("the session was taken up too late to be sure that it lives"));
                }
                tracing::debug!(peer = %self.client.peer, session, timeout_ms, "session served");
                if waited.is_some() {
                    self.service.hub.metrics.revalidated.fetch_add(1, Ordering::Relaxed);
                }
                let timeout_ms = i32::try_from(*timeout_ms).unwrap_or(i32::MAX);
                self.put_welcome(session, password, timeout_ms, read_only)?;
                self.stage = Stage::Open;
                Ok(())
            }
            Outcome { error: ErrorCode::SessionExpired, .. } => self.refuse_session(read_only),
            _ => Err(End::Refused("no session can be opened")),
        }
    }

    fn refuse_session(&mut self, read_only: Option<bool>) -> Result<(), End> {
        self.stage = Stage::Last;
        self.put_welcome(0, &[0; PASSWORD_LENGTH], 0, read_only)
    }

    fn put_welcome(
        &mut self,
        session_id: i64,
        password: &[u8],
        timeout_ms: i32,
        read_only: Option<bool>,
    ) -> Result<(), End> {
        let start = begin_frame(&mut self.output);
        // The byte is there if the client sent it.
        let read_only = read_only.map(|_| self.client.is_read_only());
        ConnectResponse { protocol_version: 0, timeout_ms, session_id, password, read_only }
            .encode(&mut self.output);
        Ok(finish_frame(start, &mut self.output)?)
    }

    /// Starts the next request, if nothing that it must wait for is outstanding.
    async fn request(&mut self, frame: &Bytes) -> Result<Step, End> {
        let (header, body) = RequestHeader::decode(frame)?;
        let Ok(op) = OpCode::try_from(header.op) else {
            return Ok(self.alone(|this| this.unimplemented(header)));
        };
        let proves = matches!(op, OpCode::Auth | OpCode::Sasl);
        if !proves && !self.service.options.authentication.suffices(&self.identities) {
            let required = ErrorCode::SessionClosedRequireSaslAuth;
            return Ok(self.alone(|this| this.refuse(header.xid, required, "none of those required")));
        }
        if self.client.is_read_only() && (is_write(op) || op == OpCode::Check) {
            return Ok(self.alone(|this| this.write_read_only(header, op)));
        }
        if self.is_local && op == OpCode::CloseSession {
            return Ok(self.alone(|this| this.close_locally(header.xid)));
        }
        let step = if is_write(op) {
            self.write(header, op, body).await?
        } else if op == OpCode::Ping && !self.outstanding.is_empty() {
            // Ahead of outstanding writes: a session must not end because another region can't be reached.
            // Clients tell pings by their xid, not by their place; zxid 0 says nothing of the state.
            self.reply(header.xid, 0, &Response::Empty)?;
            Step::Done
        } else if !self.outstanding.is_empty() {
            Step::Held
        } else if op == OpCode::Sasl {
            self.sasl(header.xid, body).await?;
            Step::Done
        } else {
            self.answer_here(header, op, body)?;
            Step::Done
        };
        if step == Step::Done {
            self.tally.received += 1;
            let zxid = self.service.hub.settled();
            self.last = Some(Last { operation: header.op, xid: header.xid, zxid, ..Last::default() });
        }
        Ok(step)
    }

    /// Does something that must wait for all outstanding writes.
    fn alone(&mut self, act: impl FnOnce(&mut Self)) -> Step {
        if !self.outstanding.is_empty() {
            return Step::Held;
        }
        act(self);
        Step::Done
    }

    async fn write(&mut self, header: RequestHeader, op: OpCode, body: &[u8]) -> Result<Step, End> {
        let request = Request::decode(op, body)?;
        if longest_path(&request) > limits::PATH_BYTES_MAX {
            return Ok(self.alone(|this| this.reply_error(header.xid, ErrorCode::BadArguments)));
        }
        // Clients know systemError as a failure without effect. Ending a session makes room.
        if op != OpCode::CloseSession && !self.service.region.has_room() {
            return Ok(self.alone(|this| this.reply_error(header.xid, ErrorCode::SystemError)));
        }
        if op == OpCode::Reconfig && !self.service.options.reconfig_enabled {
            return Ok(self.alone(|this| this.reply_error(header.xid, ErrorCode::ReconfigDisabled)));
        }
        // What has no single orderer is refused where it is applied, in the region's own order.
        let orderer = route(&self.service.hub.view().state.mesh, &request).unwrap_or(None);
        let switches = orderer != self.orderer && !mutant::is(Mutant::OrderersOvertake);
        let waits = !self.outstanding.is_empty() && switches
            || self.outstanding.len() >= limits::CONNECTION_REQUESTS_MAX;
        if waits {
            return Ok(Step::Held);
        }
        match self.take_room().await? {
            Some(Room::Taken) => {}
            Some(Room::Denied) => {
                self.service.hub.metrics.throttled.fetch_add(1, Ordering::Relaxed);
                self.reply_error(header.xid, ErrorCode::ThrottledOp);
                return Ok(Step::Done);
            }
            None => return Ok(Step::Held),
        }
        let submitted = self.submit_write(header, orderer, &request, body).await;
        if submitted.is_err() {
            self.service.room.add_permits(1);
        }
        submitted.map(|()| Step::Done)
    }

    async fn submit_write(
        &mut self,
        header: RequestHeader,
        orderer: Option<Orderer>,
        request: &Request<'_>,
        body: &[u8],
    ) -> Result<(), End> {
        self.orderer = orderer;
        if self.is_local && makes_ephemeral(request) {
            self.upgrade().await?;
        }
        let identities = self.encoded_identities.clone();
        let (session, connection) = (self.client.session(), self.client.number);
        let is_local = self.is_local;
        self.submit(Some(header.xid), None, |caller| {
            let identities = &identities;
            let request = ClientRequest { caller, session, connection, identities, op: header.op, body };
            codec::encode(&if is_local { Command::LocalClient(request) } else { Command::Client(request) })
        })
        .await
    }

    /// Makes a local session known to the region, if that is allowed: the request that needs it comes next.
    async fn upgrade(&mut self) -> Result<(), End> {
        if self.service.options.local_sessions != LocalSessionMode::Upgrading {
            return Ok(());
        }
        let session = self.client.session();
        let Some(password) = self.service.local_sessions.close(session) else {
            return Err(End::Refused("the local session has expired"));
        };
        self.is_local = false;
        let connection = self.client.number;
        let timeout_ms = u32::try_from(self.client.timeout().as_millis()).unwrap_or(u32::MAX);
        self.submit(None, Some(session), |caller| {
            codec::encode(&Command::OpenSession { caller, session, connection, timeout_ms, password })
        })
        .await
    }

    /// Ends a session that only this server knows.
    fn close_locally(&mut self, xid: i32) {
        self.service.local_sessions.close(self.client.session());
        self.reply_error(xid, ErrorCode::Ok);
        self.stage = Stage::Last;
    }

    /// What is left of writes in read-only mode.
    fn write_read_only(&mut self, header: RequestHeader, op: OpCode) {
        if op == OpCode::CloseSession {
            return self.close_locally(header.xid);
        }
        self.reply_error(header.xid, ErrorCode::NotReadOnly);
    }

    /// Answers a request that is no write. Nothing is outstanding.
    fn answer_here(&mut self, header: RequestHeader, op: OpCode, body: &[u8]) -> Result<(), End> {
        // What it is told before its answer counts, too.
        let before = self.output.len();
        match op {
            OpCode::Auth => {
                let Request::Auth(packet) = Request::decode(op, body)? else { return Ok(()) };
                self.authenticate(header.xid, &packet);
            }
            OpCode::SetWatches | OpCode::SetWatches2 => {
                if let Request::SetWatches(watches) | Request::SetWatches2(watches) =
                    Request::decode(op, body)?
                {
                    self.set_watches(header.xid, &watches)?;
                }
            }
            OpCode::AddWatch | OpCode::RemoveWatches | OpCode::CheckWatches => {
                self.change_watches(header.xid, &Request::decode(op, body)?)?;
            }
            _ if is_read(op) => self.read(header.xid, &Request::decode(op, body)?),
            _ => {
                self.unimplemented(header);
                return Ok(());
            }
        }
        self.tally.read(self.output.len().saturating_sub(before));
        Ok(())
    }

    fn read(&mut self, xid: i32, request: &Request<'_>) {
        let Self { service, client, output, encoded_identities, identities, .. } = self;
        let reader = Reader { session: client.session(), identities: encoded_identities, known: identities };
        let watched = match request {
            Request::Exists { path, watch: true }
            | Request::GetData { path, watch: true }
            | Request::GetChildren { path, watch: true }
            | Request::GetChildren2 { path, watch: true } => Some(*path),
            _ => None,
        };
        let view;
        let guard;
        let view: &View = if let Some(path) = watched.filter(|_| mutant::is(Mutant::WatchAfterRead)) {
            guard = service.hub.view();
            watch_later(service.clone(), client.clone(), path, reader.watch_of(&guard, request));
            &guard
        } else if let Some(path) = watched {
            view = service.hub.watch(client, path, |view| reader.watch_of(view, request));
            &view
        } else {
            guard = service.hub.view();
            &guard
        };
        client.take_events(view.state.zxid, |frame| output.extend_from_slice(&frame));
        reader.reply(view, request, xid, output);
    }

    fn set_watches(&mut self, xid: i32, watches: &meridian_wire::SetWatches<'_>) -> Result<(), End> {
        let service = self.service.clone();
        let (view, missed) = service.hub.set_watches(&self.client, watches);
        self.take_events(view.state.zxid);
        for (event, path) in missed {
            // Without a zxid: the client has not seen the others yet.
            self.output.extend_from_slice(&event_frame(event, &path, -1));
        }
        self.reply(xid, view.state.zxid, &Response::Empty)
    }

    fn change_watches(&mut self, xid: i32, request: &Request<'_>) -> Result<(), End> {
        let service = self.service.clone();
        let hub = &service.hub;
        if let Request::AddWatch { path, mode } = request {
            let watch = match AddWatchMode::try_from(*mode) {
                Ok(AddWatchMode::Persistent) => Watch::Persistent,
                Ok(AddWatchMode::PersistentRecursive) => Watch::Recursive,
                Err(_) => {
                    self.reply_error(xid, ErrorCode::MarshallingError);
                    return Ok(());
                }
            };
            let view = hub.watch(&self.client, path, |_| Some(watch));
            self.take_events(view.state.zxid);
            return self.reply(xid, view.state.zxid, &Response::Error(ErrorCode::Ok));
        }
        let (Request::RemoveWatches { path, kind } | Request::CheckWatches { path, kind }) = request else {
            return Ok(());
        };
        let watches: &[Watch] = match WatcherType::try_from(*kind) {
            Ok(WatcherType::Children) => &[Watch::Child],
            Ok(WatcherType::Data) => &[Watch::Data],
            Ok(WatcherType::Any) => &[Watch::Child, Watch::Data, Watch::Persistent, Watch::Recursive],
            Ok(WatcherType::Persistent) => &[Watch::Persistent],
            Ok(WatcherType::PersistentRecursive) => &[Watch::Recursive],
            Err(_) => {
                self.reply_error(xid, ErrorCode::MarshallingError);
                return Ok(());
            }
        };
        let remove = matches!(request, Request::RemoveWatches { .. });
        let found = hub.unwatch(&self.client, path, watches, remove);
        self.reply_error(xid, if found { ErrorCode::Ok } else { ErrorCode::NoWatcher });
        Ok(())
    }

    fn authenticate(&mut self, xid: i32, packet: &AuthPacket<'_>) {
        let service = self.service.clone();
        match service.options.authentication.judge(packet, &mut self.identities) {
            Verdict::Accepted => {
                self.identify();
                self.take_events(service.hub.view().state.zxid);
                reply_error(xid, 0, ErrorCode::Ok, &mut self.output);
            }
            Verdict::Refused => self.refuse(xid, ErrorCode::AuthFailed, packet.scheme),
            Verdict::Misdirected => {
                tracing::warn!(peer = %self.client.peer, "closed: the client looks for another ensemble");
                self.stage = Stage::Last;
            }
        }
    }

    /// What the client has proved counts from here on.
    fn identify(&mut self) {
        self.encoded_identities = self.service.options.authentication.encode(&self.identities).into();
        self.client.identify(self.encoded_identities.clone());
    }

    async fn sasl(&mut self, xid: i32, body: &[u8]) -> Result<(), End> {
        let Request::Sasl { token } = Request::decode(OpCode::Sasl, body)? else { return Ok(()) };
        let (service, client) = (self.service.clone(), self.client.clone());
        let authentication = &service.options.authentication;
        let random = || {
            let mut random = [0; 24];
            service.entropy.fill(&mut random);
            random
        };
        let step = tokio::select! {
            biased;
            () = client.closing() => return Err(End::Server),
            step = authentication.sasl_step(&mut self.exchange, token, random, &mut self.identities) => step,
        };
        let before = self.output.len();
        match step {
            SaslStep::Token(token) => {
                self.identify();
                self.reply(xid, 0, &Response::Token(token.as_deref()))?;
            }
            SaslStep::Refused(reason) => {
                let is_required = authentication.requires_sasl();
                let error =
                    if is_required { ErrorCode::SessionClosedRequireSaslAuth } else { ErrorCode::AuthFailed };
                self.note_refusal(&format!("sasl: {reason}"));
                // Java's client, in the midst of an exchange, takes an answer without a token for a lost connection.
                let header = ReplyHeader { xid, zxid: 0, error };
                Response::Token(None).encode_frame(header, &mut self.output)?;
            }
        }
        self.tally.read(self.output.len() - before);
        Ok(())
    }

    /// The last that a client hears that has not proved what it must.
    fn refuse(&mut self, xid: i32, error: ErrorCode, reason: &str) {
        self.note_refusal(reason);
        reply_error(xid, 0, error, &mut self.output);
    }

    fn note_refusal(&mut self, reason: &str) {
        // It may quote the client.
        tracing::info!(peer = %self.client.peer, ?reason, "closed: authentication refused");
        self.service.hub.metrics.authentication_failed();
        self.stage = Stage::Last;
    }

    fn unimplemented(&mut self, header: RequestHeader) {
        tracing::debug!(peer = %self.client.peer, op = header.op, "closed: unimplemented operation");
        // As in ZooKeeper, it has no zxid.
        self.take_events(self.service.hub.view().state.zxid);
        reply_error(header.xid, -1, ErrorCode::Unimplemented, &mut self.output);
        self.stage = Stage::Last;
    }

    fn reply_error(&mut self, xid: i32, error: ErrorCode) {
        let zxid = self.service.hub.view().state.zxid;
        self.take_events(zxid);
        reply_error(xid, zxid, error, &mut self.output);
    }

    fn reply(&mut self, xid: i32, zxid: i64, response: &Response<'_>) -> Result<(), End> {
        Ok(response.encode_frame(ReplyHeader { xid, zxid, error: ErrorCode::Ok }, &mut self.output)?)
    }

    fn take_events(&mut self, upto: i64) {
        self.client.take_events(upto, |frame| self.output.extend_from_slice(&frame));
    }
}

/// For [`Mutant::WatchAfterRead`].
fn watch_later(service: Arc<Service>, client: Arc<Client>, path: &str, watch: Option<Watch>) {
    let path = path.to_string();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(3)).await;
        service.hub.watch(&client, &path, |_| watch);
    });
}

fn is_write(op: OpCode) -> bool {
    matches!(
        op,
        OpCode::Create
            | OpCode::Create2
            | OpCode::CreateContainer
            | OpCode::CreateTtl
            | OpCode::Delete
            | OpCode::SetData
            | OpCode::SetAcl
            | OpCode::Sync
            | OpCode::Multi
            | OpCode::Reconfig
            | OpCode::CloseSession
    )
}

fn longest_path(request: &Request<'_>) -> usize {
    match request {
        Request::Multi(operations) => operations.iter().map(longest_path).max().unwrap_or(0),
        other => other.path().map_or(0, str::len),
    }
}

/// Appends the reply to a write.
fn reply_outcome(xid: i32, zxid: i64, outcome: &Outcome, out: &mut BytesMut) -> Result<(), WireError> {
    use meridian_wire::OpResult;

    let header = ReplyHeader { xid, zxid, error: outcome.error };
    let response = match &outcome.reply {
        Reply::Empty | Reply::Session(_) => Response::Empty,
        Reply::Path(path) => Response::Path(path),
        Reply::PathStat(path, stat) => Response::Create2 { path, stat: *stat },
        Reply::Stat(stat) => Response::Stat(*stat),
        Reply::Members(data, stat) => Response::Data { data: Some(data), stat: *stat },
        Reply::Multi(results) => Response::Results(
            results
                .iter()
                .map(|result| match result {
                    MultiResult::Created(path, None) => OpResult::Create(path),
                    MultiResult::Created(path, Some(stat)) => OpResult::Create2 { path, stat: *stat },
                    MultiResult::Set(stat) => OpResult::SetData(*stat),
                    MultiResult::Done(OpCode::Check) => OpResult::Check,
                    MultiResult::Done(_) => OpResult::Delete,
                    MultiResult::Failed(error) => OpResult::Error(*error),
                })
                .collect(),
        ),
    };
    response.encode_frame(header, out)
}

/// A fresh client for an accepted connection.
pub(super) fn accept(
    hub: &Hub,
    number: u64,
    peer: SocketAddr,
    is_secure: bool,
    handshake: Duration,
) -> Arc<Client> {
    let established = Established { at: hub.now(), unix_ms: hub.unix_ms(), is_secure };
    let client = Arc::new(Client::new(number, peer, handshake, established));
    hub.connect(&client);
    client
}
