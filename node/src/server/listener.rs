//! Where clients connect: a plain port, one that speaks TLS, or both in one; and who is let in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_seam::net::{Acceptor, BoxStream, Listener, WarningPace};
use parking_lot::Mutex;

use super::connection::{self, Service};
use super::tls::{Secured, Tls};

/// What the ports of a server share.
pub(super) struct Door {
    tls: Option<Arc<Tls>>,
    per_address: PerAddress,
    /// Connections let in so far; each is known by its number.
    admitted: AtomicU64,
    warnings: WarningPace,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// The protocol itself, and TLS too if both are to be served on one port.
    Plain,
    /// TLS alone.
    Secure,
}

/// Connections open per address.
type PerAddress = Arc<Mutex<HashMap<IpAddr, usize>>>;

impl Door {
    pub(super) fn new(tls: Option<Arc<Tls>>) -> Arc<Self> {
        Arc::new(Self {
            tls,
            per_address: PerAddress::default(),
            admitted: AtomicU64::new(0),
            warnings: WarningPace::default(),
        })
    }

    /// The stream that the protocol is spoken on.
    async fn secure(&self, port: Port, stream: BoxStream) -> io::Result<Secured> {
        match (&self.tls, port) {
            (Some(tls), Port::Secure) => tls.accept(stream).await,
            (Some(tls), Port::Plain) if tls.options().port_unification => tls.accept_either(stream).await,
            _ => Ok(Secured { stream, subject: None, is_tls: false }),
        }
    }

    fn warn(&self, peer: SocketAddr, reason: &str) {
        if self.warnings.is_due() {
            tracing::warn!(%peer, reason, "client refused");
        }
    }
}

/// Serves whoever connects to a port.
pub(super) async fn accept_clients(
    service: Arc<Service>,
    door: Arc<Door>,
    listener: Box<dyn Listener>,
    port: Port,
) {
    let mut acceptor = Acceptor::new(listener, "clients");
    loop {
        let (stream, peer) = acceptor.accept().await;
        match Admission::new(&service, &door.per_address, peer.ip()) {
            Ok(admission) => {
                service.hub.metrics.admissions.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve_client(service.clone(), door.clone(), stream, peer, port, admission));
            }
            Err(reason) => {
                service.hub.metrics.connections_rejected.fetch_add(1, Ordering::Relaxed);
                door.warn(peer, reason);
            }
        }
    }
}

async fn serve_client(
    service: Arc<Service>,
    door: Arc<Door>,
    stream: BoxStream,
    peer: SocketAddr,
    port: Port,
    admission: Admission,
) {
    let metrics = &service.hub.metrics;
    metrics.handshakes.fetch_add(1, Ordering::Relaxed);
    let secured = door.secure(port, stream).await;
    metrics.handshakes.fetch_sub(1, Ordering::Relaxed);
    let Secured { stream, subject, is_tls } = match secured {
        Ok(secured) => secured,
        Err(error) => {
            service.hub.metrics.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            return door.warn(peer, &error.to_string());
        }
    };
    let number = door.admitted.fetch_add(1, Ordering::Relaxed) + 1;
    // Whoever says nothing after connecting may do so for as long as a session may be silent.
    let (_, handshake_ms) = service.options.session_timeout_bounds_ms();
    let handshake = Duration::from_millis(handshake_ms.into());
    let client = connection::accept(&service.hub, number, peer, is_tls, handshake);
    connection::serve(service.clone(), client.clone(), stream, subject.as_deref()).await;
    service.hub.disconnect(&client);
    drop(admission);
}

/// A connection counted; dropping it makes room for another.
struct Admission {
    service: Arc<Service>,
    per_address: PerAddress,
    address: IpAddr,
}

impl Admission {
    fn new(service: &Arc<Service>, per_address: &PerAddress, address: IpAddr) -> Result<Self, &'static str> {
        let options = &service.options;
        if service.hub.metrics.connections() >= options.connections_max as u64 {
            return Err("too many connections (client.connections_max, or the limit of open files)");
        }
        let mut counts = per_address.lock();
        let count = counts.entry(address).or_insert(0);
        if options.connections_per_address_max > 0 && *count >= options.connections_per_address_max {
            return Err("too many connections from this address (maxClientCnxns)");
        }
        *count += 1;
        service.hub.metrics.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Self { service: service.clone(), per_address: per_address.clone(), address })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.service.hub.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.per_address.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
