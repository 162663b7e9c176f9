//! Sockets: TCP for clients and for the servers of a region, UDP for QUIC between regions.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Buffers asked for at a UDP socket: 300 ms at 100 Mbit/s, while the process is not scheduled.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// A connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connected byte stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Accepts connections on one address.
pub trait Listener: Send + Sync {
    /// The next connection and the address of its other end.
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>>;

    /// The address bound, with the port that was chosen if port 0 was asked for.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Accepts for one task, and goes on after failures: out of file descriptors, every attempt fails until others have
/// closed some.
pub struct Acceptor {
    listener: Box<dyn Listener>,
    whose: &'static str,
    failures: WarningPace,
    refusals: WarningPace,
}

/// How long an [`Acceptor`] waits after a failure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Acceptor {
    /// `whose` connections they are, for the log.
    pub fn new(listener: Box<dyn Listener>, whose: &'static str) -> Self {
        Self { listener, whose, failures: WarningPace::default(), refusals: WarningPace::default() }
    }

    /// The next connection and the address of its other end.
    pub async fn accept(&mut self) -> (BoxStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => self.failed(&error),
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    /// The address bound.
    ///
    /// # Errors
    /// If the listener does not know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Has the log tell that a connection is closed at once, since `connections_max` are open.
    pub fn refused(&self, peer: SocketAddr, connections_max: usize) {
        if self.refusals.is_due() {
            tracing::warn!(whose = self.whose, %peer, connections_max, "connection refused: too many are open");
        }
    }

    fn failed(&self, error: &io::Error) {
        if self.failures.is_due() {
            tracing::warn!(whose = self.whose, %error, "cannot accept connections; trying again");
        }
    }
}

/// Paces warnings of what strangers can cause as often as they like: one every ten seconds at most.
#[derive(Default)]
pub struct WarningPace(Mutex<Option<Instant>>);

const WARNING_INTERVAL: Duration = Duration::from_secs(10);

impl WarningPace {
    /// Whether to warn now; if so, not again for ten seconds.
    pub fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// Makes sockets.
pub trait Net: Send + Sync + 'static {
    /// Binds `address` (`host:port`) for TCP.
    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn Listener>>>;

    /// Connects to `address` (`host:port`), resolving the name anew every time.
    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<BoxStream>>;

    /// Resolves `address` (`host:port`), anew every time.
    fn resolve(&self, address: String) -> BoxFuture<'static, io::Result<SocketAddr>>;

    /// Binds a UDP socket for a QUIC endpoint, with buffers that hold a burst from far away.
    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// The timers and tasks that QUIC runs on.
    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime>;
}

/// How long [`listen`] waits for an address that is in use.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);
const ADDRESS_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address` for TCP. One that is in use is tried again for three seconds: the server that is being
/// replaced may not be quite gone.
///
/// # Errors
/// If the address can't be bound.
pub async fn listen(net: &dyn Net, address: &str) -> io::Result<Box<dyn Listener>> {
    let started = Instant::now();
    loop {
        match net.listen(address.to_string()).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < ADDRESS_PATIENCE =>
            {
                tokio::time::sleep(ADDRESS_RETRY_PAUSE).await;
            }
            bound => return bound,
        }
    }
}

/// Has a listener go to another port of its host. Clones move the same listener.
#[derive(Clone)]
pub struct Mover {
    shared: Arc<Moving>,
}

struct Moving {
    net: Arc<dyn Net>,
    host: String,
    listener: Mutex<Arc<dyn Listener>>,
    address: Mutex<SocketAddr>,
    wanted: Mutex<Option<u16>>,
    told: Notify,
}

/// A listener that can be moved: for one task that accepts.
///
/// # Errors
/// If the listener does not know its address.
pub fn movable(
    net: Arc<dyn Net>,
    address: &str,
    listener: Box<dyn Listener>,
) -> io::Result<(Box<dyn Listener>, Mover)> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_string();
    let shared = Arc::new(Moving {
        net,
        host,
        address: Mutex::new(listener.local_addr()?),
        listener: Mutex::new(listener.into()),
        wanted: Mutex::default(),
        told: Notify::new(),
    });
    Ok((Box::new(MovableListener(shared.clone())), Mover { shared }))
}

impl Mover {
    /// Has the listener go to a port as soon as it can. If that is taken, it stays where it is, and the log says so.
    /// Connections that it has accepted stay.
    pub fn move_to(&self, port: u16) {
        *self.shared.wanted.lock() = Some(port);
        self.shared.told.notify_one();
    }

    /// Where the listener is.
    pub fn address(&self) -> SocketAddr {
        *self.shared.address.lock()
    }
}

struct MovableListener(Arc<Moving>);

impl Listener for MovableListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async move {
            loop {
                let listener = self.0.listener.lock().clone();
                tokio::select! {
                    biased;
                    () = self.0.told.notified() => self.0.go().await,
                    accepted = listener.accept() => return accepted,
                }
            }
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(*self.0.address.lock())
    }
}

impl Moving {
    async fn go(&self) {
        let Some(port) = self.wanted.lock().take() else { return };
        let from = *self.address.lock();
        if from.port() == port {
            return;
        }
        let bound = listen(&*self.net, &format!("{}:{port}", self.host)).await;
        match bound.and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((address, listener)) => {
                tracing::info!(%from, to = %address, "listening at another port");
                *self.address.lock() = address;
                *self.listener.lock() = listener.into();
            }
            Err(error) => tracing::error!(%error, at = %from, "this server stays where it listens"),
        }
    }
}

/// The operating system's sockets.
#[derive(Debug, Default)]
pub struct SystemNet;

/// Listens to IPv6 and IPv4, whatever the system does with such sockets by default; where there is no IPv6, to IPv4.
async fn listen_to_both_families(port: u16) -> io::Result<TcpListener> {
    let Ok(socket) = TcpSocket::new_v6() else {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    };
    socket2::SockRef::from(&socket).set_only_v6(false)?;
    socket.set_reuseaddr(true)?;
    match socket.bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound.and_then(|()| socket.listen(BACKLOG)),
    }
}

/// Connections that wait to be accepted; the system's own bound may be lower.
const BACKLOG: u32 = 1_024;

impl Net for SystemNet {
    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let bound = match address.strip_prefix("[::]:").and_then(|port| port.parse().ok()) {
                Some(port) => listen_to_both_families(port).await,
                None => TcpListener::bind(&address).await,
            };
            let listener = bound.map_err(|e| named(&address, "listen on", &e))?;
            Ok(Box::new(SystemListener(listener)) as Box<dyn Listener>)
        })
    }

    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(&address).await.map_err(|e| named(&address, "connect to", &e))?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxStream)
        })
    }

    fn resolve(&self, address: String) -> BoxFuture<'static, io::Result<SocketAddr>> {
        Box::pin(async move {
            let mut found =
                tokio::net::lookup_host(&address).await.map_err(|e| named(&address, "resolve", &e))?;
            found
                .next()
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address")))
        })
    }

    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let socket =
            std::net::UdpSocket::bind(address).map_err(|e| named(&address.to_string(), "bind UDP", &e))?;
        grow_buffers(&socket);
        self.quic_runtime().wrap_udp_socket(socket)
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }
}

/// Asks for [`UDP_BUFFER_BYTES`] in both directions. Linux grants at most `net.core.rmem_max` and
/// `wmem_max` without saying so; whatever is granted works, less of it drops bursts.
fn grow_buffers(socket: &std::net::UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    for result in
        [socket.set_recv_buffer_size(UDP_BUFFER_BYTES), socket.set_send_buffer_size(UDP_BUFFER_BYTES)]
    {
        if let Err(error) = result {
            tracing::debug!(%error, "the UDP socket keeps the system's buffer size");
        }
    }
}

fn named(address: &str, verb: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {verb} {address}: {error}"))
}

struct SystemListener(TcpListener);

impl Listener for SystemListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            // Who comes by IPv4 to a socket for both has an address of IPv4.
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            Ok((Box::new(stream) as BoxStream, peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn warnings_come_once_in_ten_seconds() {
        let pace = WarningPace::default();
        assert!(pace.is_due());
        tokio::time::advance(WARNING_INTERVAL - Duration::from_millis(1)).await;
        assert!(!pace.is_due());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(pace.is_due() && !pace.is_due());
    }
}
