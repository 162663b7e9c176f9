//! Mutual TLS between the servers of a region, with the certificates of the mesh.

use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use meridian_bridge::certificates::{Identity, PeerName, peer_name};
use meridian_seam::net::BoxStream;
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::server_name;
use crate::region::PeerTls;

/// What this server shows to the others of its region.
pub struct PeerIdentity {
    identity: Arc<Identity>,
}

impl PeerIdentity {
    /// Uses the identity as of each new connection: a reloaded certificate takes effect with the next one.
    pub fn new(identity: Arc<Identity>) -> Arc<Self> {
        Arc::new(Self { identity })
    }

    fn region(&self) -> &str {
        &self.identity.name().region
    }
}

impl PeerTls for PeerIdentity {
    fn connect(&self, stream: BoxStream, server: u64) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            let number = u8::try_from(server).map_err(io::Error::other)?;
            let expected = PeerName::new(self.region(), server_name(self.region(), number));
            let dns_name = ServerName::try_from(expected.dns_name()?).map_err(io::Error::other)?;
            let connector = TlsConnector::from(self.identity.client_config());
            Ok(Box::new(connector.connect(dns_name, stream).await?) as BoxStream)
        })
    }

    fn accept(&self, stream: BoxStream) -> BoxFuture<'_, io::Result<(BoxStream, u64)>> {
        Box::pin(async move {
            let stream = TlsAcceptor::from(self.identity.server_config()).accept(stream).await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let shown = shown.ok_or_else(|| refused("the peer showed no certificate".into()))?;
            let name = peer_name(shown)?;
            if name.region != self.region() {
                return Err(refused(format!("{name} is a server of another region")));
            }
            let number = name.server.rsplit('-').next().and_then(|n| n.parse::<u8>().ok());
            let number = number.filter(|n| server_name(&name.region, *n) == name.server);
            let number = number.ok_or_else(|| refused(format!("{name} is not named like a server")))?;
            Ok((Box::new(stream) as BoxStream, u64::from(number)))
        })
    }
}

fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}
