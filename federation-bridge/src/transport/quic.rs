//! QUIC as the links between regions need it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use meridian_seam::entropy::Entropy;
use meridian_seam::limits;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ConnectionId, ConnectionIdGenerator, IdleTimeout, TransportConfig, ValidationTokenConfig, VarInt,
};
use rustls::pki_types::CertificateDer;

use super::{Congestion, Settings};
use crate::certificates::{CertificateError, Identity, PeerName, peer_name};

/// Closed on purpose.
pub(super) const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// Closed because the peer may not connect.
pub(super) const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
/// Closed to make room.
pub(super) const CLOSE_ROOM: VarInt = VarInt::from_u32(2);

/// 100 Mbit/s over 200 ms are 2.5 MB. What follows a lost packet is held back until it has come again,
/// for a round trip or two, so that a window must hold several times as much.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Unique among the connections of an endpoint.
const IDENTIFIER_BYTES: usize = 8;

/// What a client calls a server before it has answered; RFC 9000 wants at least 8 bytes.
const INITIAL_IDENTIFIER_BYTES: usize = 20;

/// Before anything is measured. The standard's 333 ms make a handshake that lost a packet wait a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Probes are small and old ones are worth nothing.
const DATAGRAM_BUFFER_BYTES: usize = 16 << 10;

/// What strangers may make an endpoint hold while their handshakes wait to be looked at.
const UNSEEN_BYTES_MAX: u64 = 4 << 20;

/// The key of the stateless resets must outlive the process: it comes from the certificate's private key.
pub(super) fn endpoint_config(identity: &Identity, entropy: &Arc<dyn Entropy>) -> quinn::EndpointConfig {
    let reset_key = identity.derived_secret("stateless reset");
    let mut config =
        quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key.as_ref())));
    let entropy = Arc::clone(entropy);
    let mut seed = [0; 32];
    entropy.fill(&mut seed);
    config.rng_seed(Some(seed));
    config.cid_generator(move || Box::new(RandomIdentifiers(Arc::clone(&entropy))));
    config
}

/// Identifiers of connections without a checksum: by one, a new process would take the identifiers of
/// the old one for forged, and ignore their packets instead of answering with a reset.
struct RandomIdentifiers(Arc<dyn Entropy>);

impl ConnectionIdGenerator for RandomIdentifiers {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut identifier = [0; IDENTIFIER_BYTES];
        self.0.fill(&mut identifier);
        ConnectionId::new(&identifier)
    }

    fn cid_len(&self) -> usize {
        IDENTIFIER_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What the endpoint starts with; connections get [`with_identity`] of the moment.
pub(super) fn server_config(identity: &Identity, settings: &Settings) -> io::Result<quinn::ServerConfig> {
    let mut transport = transport_config(settings)?;
    transport.max_concurrent_bidi_streams(VarInt::from_u32(limits::BRIDGE_STREAMS_MAX));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    let mut config = quinn::ServerConfig::with_crypto(server_crypto(identity)?);
    config.transport_config(Arc::new(transport));
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    config.validation_token_config(tokens);
    config.max_incoming(limits::BRIDGE_HANDSHAKES_MAX);
    config.incoming_buffer_size(UNSEEN_BYTES_MAX / 16);
    config.incoming_buffer_size_total(UNSEEN_BYTES_MAX);
    Ok(config)
}

/// The same with the certificates in use now.
pub(super) fn with_identity(
    config: &quinn::ServerConfig,
    identity: &Identity,
) -> io::Result<Arc<quinn::ServerConfig>> {
    let mut config = config.clone();
    config.crypto = server_crypto(identity)?;
    Ok(Arc::new(config))
}

fn server_crypto(identity: &Identity) -> io::Result<Arc<QuicServerConfig>> {
    QuicServerConfig::try_from(identity.server_config()).map(Arc::new).map_err(io::Error::other)
}

/// For one connection: the peer opens one stream, to say that it is content, and no other.
pub(super) fn client_config(
    identity: &Identity,
    settings: &Settings,
    entropy: &Arc<dyn Entropy>,
) -> io::Result<quinn::ClientConfig> {
    let crypto = QuicClientConfig::try_from(identity.client_config()).map_err(io::Error::other)?;
    let mut transport = transport_config(settings)?;
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_concurrent_uni_streams(VarInt::from_u32(1));
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let entropy = Arc::clone(entropy);
    config.initial_dst_cid_provider(Arc::new(move || {
        let mut identifier = [0; INITIAL_IDENTIFIER_BYTES];
        entropy.fill(&mut identifier);
        ConnectionId::new(&identifier)
    }));
    Ok(config)
}

fn transport_config(settings: &Settings) -> io::Result<TransportConfig> {
    let idle_timeout = IdleTimeout::try_from(settings.idle_timeout).map_err(|_| {
        let reason = format!("an idle timeout of {:?} is out of bounds", settings.idle_timeout);
        io::Error::new(io::ErrorKind::InvalidInput, reason)
    })?;
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(Some(idle_timeout))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    match settings.congestion {
        Congestion::Bbr => {
            config.congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()))
        }
        Congestion::Cubic => {
            config.congestion_controller_factory(Arc::new(quinn::congestion::CubicConfig::default()))
        }
    };
    Ok(config)
}

/// Whom the peer's certificate names.
pub(super) fn peer_of(connection: &quinn::Connection) -> Result<PeerName, CertificateError> {
    let shown =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = shown.as_ref().and_then(|chain| chain.first());
    peer_name(leaf.ok_or_else(|| CertificateError::Name("no certificate was shown".into()))?)
}
