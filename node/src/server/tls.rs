//! TLS for clients: certificates that are read again when their files change, and handshakes that cost strangers
//! more than the server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use meridian_seam::limits;
use meridian_seam::net::BoxStream;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// The first byte of a TLS connection; no frame of a client and no four-letter word begins with it.
const TLS_HANDSHAKE: u8 = 22;
/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// How clients are served over TLS.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// The address that speaks TLS alone, `host:port`, if wanted.
    pub listen: Option<String>,
    /// Whether the plain address speaks TLS as well (`client.portUnification`).
    pub port_unification: bool,
    /// The server's certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM. May be the same file.
    pub key: PathBuf,
    /// The certificates of the authorities that vouch for clients, PEM.
    pub authorities: Option<PathBuf>,
    /// Whether clients show certificates.
    pub client_certificates: ClientCertificates,
    /// Handshakes that take longer are ended.
    pub handshake_timeout: Duration,
}

/// Whether clients show certificates (`ssl.clientAuth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked.
    None,
    /// One that is shown must be good.
    Want,
    /// Nobody is served without.
    #[default]
    Need,
}

/// What the listeners share.
pub(super) struct Tls {
    options: TlsOptions,
    config: ArcSwap<ServerConfig>,
    files: Mutex<Vec<Option<SystemTime>>>,
    handshakes: Semaphore,
}

/// A connection that is ready to be served.
pub(super) struct Secured {
    pub(super) stream: BoxStream,
    /// The subject of the client's certificate, if it showed one.
    pub(super) subject: Option<String>,
    pub(super) is_tls: bool,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one of them is missing or makes no sense; the message says which.
    pub(super) fn load(options: TlsOptions) -> io::Result<Arc<Self>> {
        let files = Mutex::new(modified(&options));
        let config = ArcSwap::new(server_config(&options)?);
        let handshakes = Semaphore::new(limits::CLIENT_HANDSHAKES_MAX);
        Ok(Arc::new(Self { options, config, files, handshakes }))
    }

    pub(super) fn options(&self) -> &TlsOptions {
        &self.options
    }

    /// Reads the files again whenever one of them has changed. What can't be used leaves the old ones in use.
    pub(super) async fn reload(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(RELOAD_INTERVAL);
        loop {
            ticks.tick().await;
            let now = modified(&self.options);
            if std::mem::replace(&mut *self.files.lock(), now.clone()) == now {
                continue;
            }
            match server_config(&self.options) {
                Ok(config) => {
                    self.config.store(config);
                    tracing::info!("the clients' certificates are reloaded; new connections use them");
                }
                Err(error) => {
                    tracing::error!(%error, "the clients' certificates are not reloaded; the old ones stay in use");
                }
            }
        }
    }

    /// The server's side of a handshake.
    ///
    /// # Errors
    /// If the client does not complete it in time, too many are under way, or its certificate is not good.
    pub(super) async fn accept(&self, stream: BoxStream) -> io::Result<Secured> {
        let _permit = self.handshakes.try_acquire().map_err(|_| {
            io::Error::new(io::ErrorKind::ConnectionRefused, "too many TLS handshakes are under way")
        })?;
        let handshake = TlsAcceptor::from(self.config.load_full()).accept(stream);
        let stream = tokio::time::timeout(self.options.handshake_timeout, handshake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))??;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let subject = shown.map(subject_of).transpose()?;
        Ok(Secured { stream: Box::new(stream), subject, is_tls: true })
    }

    /// The same for a port where plain clients connect too: the first byte tells.
    pub(super) async fn accept_either(&self, mut stream: BoxStream) -> io::Result<Secured> {
        let mut first = [0];
        let read = tokio::time::timeout(self.options.handshake_timeout, stream.read_exact(&mut first));
        read.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nothing came"))??;
        let (reader, writer) = tokio::io::split(stream);
        let stream: BoxStream = Box::new(tokio::io::join(std::io::Cursor::new(first).chain(reader), writer));
        if first[0] == TLS_HANDSHAKE {
            return self.accept(stream).await;
        }
        Ok(Secured { stream, subject: None, is_tls: false })
    }
}

/// When the files changed last.
fn modified(options: &TlsOptions) -> Vec<Option<SystemTime>> {
    let files = [Some(&options.certificate), Some(&options.key), options.authorities.as_ref()];
    let when = |file: &PathBuf| std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    files.into_iter().map(|file| file.and_then(when)).collect()
}

fn server_config(options: &TlsOptions) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match (options.client_certificates, &options.authorities) {
        (ClientCertificates::None, _) => builder.with_no_client_auth(),
        (_, None) => {
            let reason = "clients are asked for certificates, but client.tls.authorities is not set";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        (wanted, Some(authorities)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authorities)? {
                roots.add(certificate).map_err(|error| unusable(authorities, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let verifier = match wanted {
                ClientCertificates::Want => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            builder
                .with_client_cert_verifier(verifier.build().map_err(|error| unusable(authorities, &error))?)
        }
    };
    let chain = certificates(&options.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&options.key).map_err(|error| unusable(&options.key, &error))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| unusable(&options.key, &error))?;
    let shown = CertifiedKey::new(chain, key);
    match shown.keys_match() {
        // What can't be compared may still be right: certificates of X.509 version 1, for instance.
        Ok(()) | Err(rustls::Error::InvalidCertificate(_)) => {}
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(error) => return Err(unusable(&options.key, &error)),
    }
    Ok(Arc::new(builder.with_cert_resolver(Arc::new(Shown(Arc::new(shown))))))
}

/// The one certificate of this server, whoever asks.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| unusable(file, &error))?;
    if read.is_empty() {
        return Err(unusable(file, &"it holds no certificate in PEM"));
    }
    Ok(read)
}

fn unusable(file: &Path, reason: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot use {}: {reason}", file.display()))
}

/// The subject of a certificate as Java writes it, which is what ACLs of the scheme x509 hold (RFC 2253).
fn subject_of(certificate: &CertificateDer<'_>) -> io::Result<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(io::Error::other)?;
    Ok(distinguished_name(parsed.subject()))
}

fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes = rdn.iter().map(|attribute| {
                let key = match attribute.attr_type().to_id_string().as_str() {
                    "2.5.4.3" => "CN".to_string(),
                    "2.5.4.6" => "C".to_string(),
                    "2.5.4.7" => "L".to_string(),
                    "2.5.4.8" => "ST".to_string(),
                    "2.5.4.9" => "STREET".to_string(),
                    "2.5.4.10" => "O".to_string(),
                    "2.5.4.11" => "OU".to_string(),
                    "0.9.2342.19200300.100.1.1" => "UID".to_string(),
                    "0.9.2342.19200300.100.1.25" => "DC".to_string(),
                    other => other.to_string(),
                };
                format!("{key}={}", escaped(attribute.as_str().unwrap_or_default()))
            });
            attributes.collect::<Vec<_>>().join("+")
        })
        .collect();
    // The most specific first, the other way round than in the certificate.
    parts.reverse();
    parts.join(",")
}

/// RFC 2253, section 2.4.
fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut escaped = String::new();
    for (index, character) in value.chars().enumerate() {
        let at_an_end = index == 0 && character == '#' || (index == 0 || index == last) && character == ' ';
        if at_an_end || matches!(character, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn subjects_are_written_as_java_writes_them() {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "A, B & \"C\"");
        params.distinguished_name.push(DnType::OrganizationalUnitName, " x ");
        params.distinguished_name.push(DnType::CommonName, "#1");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(subject_of(certificate.der()).unwrap(), "CN=\\#1,OU=\\ x\\ ,O=A\\, B & \\\"C\\\",C=DE");
    }
}
