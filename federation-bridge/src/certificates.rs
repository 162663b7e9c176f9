//! The certificates of a mesh.
//!
//! A mesh has an authority of its own. It issues every server a certificate whose name says which
//! server of which region it is, as a DNS name in the subject alternative names:
//!
//! ```text
//! <server>.<region>.mesh.meridian        us-east-1.us-east.mesh.meridian
//! ```
//!
//! The name is never looked up: where a server is reached is configuration, the certificate says who
//! it is. Region and server names are therefore DNS labels (1 to 63 lower-case letters, digits and inner
//! hyphens). The same certificates serve QUIC between regions and TCP between the servers of one:
//! TLS 1.3 alone, both sides authenticated, nothing resumed, so that every connection is checked
//! against the certificates of the day.
//!
//! A directory holds `authority.pem`, `<server>.pem` and `<server>.key`, and, only where certificates
//! are issued, `authority.key`.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use meridian_seam::clock::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;
use x509_parser::extensions::GeneralName;

/// Validity of a server's certificate in days, unless told otherwise.
pub const SERVER_VALID_DAYS: u32 = 825;

/// Validity of an authority in days, unless told otherwise: ten years.
pub const AUTHORITY_VALID_DAYS: u32 = 3_652;

/// The application protocol that both sides name in the handshake.
pub const PROTOCOL: &[u8] = b"meridian/1";

/// The end of every name.
const MESH_DOMAIN: &str = ".mesh.meridian";

/// Certificates are valid from this long before they are issued: servers' clocks differ.
const BACKDATED: Duration = Duration::from_secs(3_600);

/// No PEM file of a mesh comes near it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which server of which region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    /// The region's name.
    pub region: String,
    /// The server's name, unique in its region.
    pub server: String,
}

impl PeerName {
    /// Puts the two names together.
    pub fn new(region: impl Into<String>, server: impl Into<String>) -> Self {
        Self { region: region.into(), server: server.into() }
    }

    /// The form in certificates.
    ///
    /// # Errors
    /// [`CertificateError::Name`] if one of the names is not a DNS label in lower case.
    pub fn dns_name(&self) -> Result<String, CertificateError> {
        for name in [&self.region, &self.server] {
            if !is_label(name) {
                return Err(CertificateError::Name(format!(
                    "'{name}' can't stand in a certificate: use 1 to 63 lower-case letters, digits and inner hyphens"
                )));
            }
        }
        Ok(format!("{}.{}{MESH_DOMAIN}", self.server, self.region))
    }

    fn from_dns_name(name: &str) -> Option<Self> {
        let (server, region) = name.strip_suffix(MESH_DOMAIN)?.split_once('.')?;
        (is_label(server) && is_label(region)).then(|| Self::new(region, server))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {} of region {}", self.server, self.region)
    }
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// What is wrong with a certificate, and what to do about it.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file can't be read.
    #[error(
        "cannot read {path}: {error}; correct the path in the configuration, or issue certificates with `meridian certs`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file can't be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that must not be overwritten.
    #[error("{path} {holds}; use another directory, or move it away first")]
    Exists {
        /// The file.
        path: PathBuf,
        /// What is in it.
        holds: String,
    },
    /// A file holds something else than it should.
    #[error("{path} holds no usable {what} ({reason}); it must be a PEM file as `meridian certs` makes it")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// Certificate and key are not a pair.
    #[error(
        "the key in {key} does not belong to the certificate in {certificate}; replace both files together"
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The own certificate would be refused by every peer.
    #[error(
        "the certificate in {path} is not valid under the authority in {authority} ({reason}); issue a new one with `meridian certs`, or check this machine's clock"
    )]
    Invalid {
        /// The certificate's file.
        path: PathBuf,
        /// The authority's file.
        authority: PathBuf,
        /// What the verifier said.
        reason: String,
    },
    /// A certificate for somebody else.
    #[error("the certificate in {path} is for {found}, not for {expected}")]
    OtherName {
        /// The certificate's file.
        path: PathBuf,
        /// Whom it names.
        found: PeerName,
        /// Whom it should name.
        expected: PeerName,
    },
    /// A name that is no name of a server of a mesh.
    #[error("{0}")]
    Name(String),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(String),
}

impl From<CertificateError> for io::Error {
    fn from(error: CertificateError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// The server and region that a certificate names.
///
/// # Errors
/// [`CertificateError::Name`] if the certificate can't be parsed, or names no server of a mesh or
/// several.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Result<PeerName, CertificateError> {
    let refuse = |reason: &str| CertificateError::Name(format!("the certificate {reason}"));
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| refuse("is not an X.509 certificate"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| refuse("has malformed alternative names"))?
        .ok_or_else(|| refuse("has no alternative names"))?;
    let mut mesh_names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) if name.ends_with(MESH_DOMAIN) => Some(*name),
        _ => None,
    });
    match (mesh_names.next(), mesh_names.next()) {
        (Some(name), None) => PeerName::from_dns_name(name)
            .ok_or_else(|| refuse(&format!("names '{name}', which is not <server>.<region>{MESH_DOMAIN}"))),
        (None, _) => Err(refuse(&format!("has no name under {MESH_DOMAIN}"))),
        (Some(_), Some(_)) => Err(refuse("names several servers")),
    }
}

/// The authority of a mesh: it issues the certificates of the servers.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority, valid from now for a number of days.
    ///
    /// # Errors
    /// [`CertificateError::Issue`].
    pub fn create(clock: &dyn Clock, valid_days: u32) -> Result<Self, CertificateError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, "Meridian mesh authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut parameters, clock, valid_days);
        let key = KeyPair::generate().map_err(issue_error)?;
        let certificate_pem = parameters.self_signed(&key).map_err(issue_error)?.pem();
        Ok(Self { certificate_pem, issuer: Issuer::new(parameters, key) })
    }

    /// Reads `authority.pem` and `authority.key` in a directory.
    ///
    /// # Errors
    /// [`CertificateError::Read`], [`CertificateError::Malformed`].
    pub fn load(directory: &Path) -> Result<Self, CertificateError> {
        let (certificate, key) = (directory.join("authority.pem"), directory.join("authority.key"));
        let (certificate_pem, key_pem) = (read_text(&certificate)?, read_text(&key)?);
        let malformed = |path: PathBuf, what| {
            move |error: rcgen::Error| CertificateError::Malformed { path, what, reason: error.to_string() }
        };
        let key = KeyPair::from_pem(&key_pem).map_err(malformed(key, "private key"))?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(malformed(certificate, "certificate"))?;
        Ok(Self { certificate_pem, issuer })
    }

    /// Writes `authority.pem` and `authority.key` into a directory.
    ///
    /// # Errors
    /// [`CertificateError::Exists`] if there is an authority already: replacing it would cut the mesh
    /// apart. [`CertificateError::Write`].
    pub fn save(&self, directory: &Path) -> Result<(), CertificateError> {
        let (certificate, key) = (directory.join("authority.pem"), directory.join("authority.key"));
        for path in [&certificate, &key] {
            if path.exists() {
                return Err(CertificateError::Exists {
                    path: path.clone(),
                    holds: "holds the authority of a mesh already".into(),
                });
            }
        }
        write_file(&key, &self.issuer.key().serialize_pem(), 0o600)?;
        write_file(&certificate, &self.certificate_pem, 0o644)
    }

    /// Issues a certificate with a new key, valid from now for a number of days.
    ///
    /// # Errors
    /// [`CertificateError::Name`], [`CertificateError::Issue`].
    pub fn issue(
        &self,
        name: &PeerName,
        clock: &dyn Clock,
        valid_days: u32,
    ) -> Result<Issued, CertificateError> {
        let dns_name = name.dns_name()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
            .distinguished_name
            .push(DnType::CommonName, DnValue::Utf8String(format!("{}.{}", name.server, name.region)));
        parameters.subject_alt_names = vec![SanType::DnsName(dns_name.try_into().map_err(issue_error)?)];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        set_validity(&mut parameters, clock, valid_days);
        let key = KeyPair::generate().map_err(issue_error)?;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(issue_error)?;
        Ok(Issued {
            name: name.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            authority_pem: self.certificate_pem.clone(),
        })
    }
}

fn issue_error(error: rcgen::Error) -> CertificateError {
    CertificateError::Issue(error.to_string())
}

fn set_validity(parameters: &mut CertificateParams, clock: &dyn Clock, valid_days: u32) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + unix_time(clock);
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + Duration::from_secs(86_400) * valid_days;
}

fn unix_time(clock: &dyn Clock) -> Duration {
    Duration::from_millis(u64::try_from(clock.unix_ms()).unwrap_or(0))
}

/// A certificate with its key.
pub struct Issued {
    /// Whom it names.
    pub name: PeerName,
    /// The certificate in PEM.
    pub certificate_pem: String,
    /// Its private key in PEM.
    pub key_pem: String,
    /// The certificate of the authority in PEM.
    pub authority_pem: String,
}

impl Issued {
    /// Writes `<server>.pem`, `<server>.key` (readable by the owner alone) and, if it is not there,
    /// `authority.pem` into a directory. An older certificate of the same server is replaced.
    ///
    /// # Errors
    /// [`CertificateError::Exists`] if the directory holds a certificate of a server of the same name in
    /// another region. [`CertificateError::Write`].
    pub fn save(&self, directory: &Path) -> Result<IdentityPaths, CertificateError> {
        let paths = IdentityPaths::in_directory(directory, &self.name.server);
        if paths.certificate.exists() {
            let present = peer_name(first_certificate(&read_certificates(&paths.certificate)?)?)?;
            if present != self.name {
                return Err(CertificateError::Exists {
                    path: paths.certificate,
                    holds: format!("holds the certificate of {present}"),
                });
            }
        }
        write_file(&paths.key, &self.key_pem, 0o600)?;
        write_file(&paths.certificate, &self.certificate_pem, 0o644)?;
        if !paths.authority.exists() {
            write_file(&paths.authority, &self.authority_pem, 0o644)?;
        }
        Ok(paths)
    }
}

/// Where a server's certificate, its key and the authority's certificate are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPaths {
    /// The certificate; intermediate ones may follow.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the authorities that are trusted: several while one replaces another.
    pub authority: PathBuf,
}

impl IdentityPaths {
    /// The paths that [`Issued::save`] writes to.
    pub fn in_directory(directory: &Path, server: &str) -> Self {
        Self {
            certificate: directory.join(format!("{server}.pem")),
            key: directory.join(format!("{server}.key")),
            authority: directory.join("authority.pem"),
        }
    }
}

/// What a server shows to its peers, and by what it judges theirs.
///
/// The TLS configurations are those of the moment: take one for each connection, then
/// [`reload`](Self::reload) holds for all later ones.
pub struct Identity {
    paths: IdentityPaths,
    name: PeerName,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    name: PeerName,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    key_digest: hmac::Tag,
    expires_unix_s: i64,
}

impl Identity {
    /// Reads the files and checks that peers will accept what they hold.
    ///
    /// # Errors
    /// [`CertificateError`]: which file, what is wrong, what to do.
    pub fn load(paths: IdentityPaths, clock: Arc<dyn Clock>) -> Result<Self, CertificateError> {
        Self::load_with(paths, clock, rustls::crypto::aws_lc_rs::default_provider())
    }

    /// The same with other cryptography: a simulation's has no randomness of its own.
    ///
    /// # Errors
    /// As for [`Identity::load`].
    pub fn load_with(
        paths: IdentityPaths,
        clock: Arc<dyn Clock>,
        provider: CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let provider = Arc::new(provider);
        let loaded = Loaded::read(&paths, &clock, &provider)?;
        Ok(Self { paths, name: loaded.name.clone(), clock, provider, loaded: ArcSwap::from_pointee(loaded) })
    }

    /// Reads the files again. New connections use what they hold now, those that stand go on.
    ///
    /// # Errors
    /// [`CertificateError`]; what was loaded before stays in use then. The name must be the same.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let loaded = Loaded::read(&self.paths, &self.clock, &self.provider)?;
        if loaded.name != self.name {
            return Err(CertificateError::OtherName {
                path: self.paths.certificate.clone(),
                found: loaded.name,
                expected: self.name.clone(),
            });
        }
        self.loaded.store(Arc::new(loaded));
        Ok(())
    }

    /// Whom the certificate names.
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    /// Checks that the certificate is that of the server that is configured.
    ///
    /// # Errors
    /// [`CertificateError::OtherName`].
    pub fn expect_name(&self, expected: &PeerName) -> Result<(), CertificateError> {
        if self.name == *expected {
            return Ok(());
        }
        Err(CertificateError::OtherName {
            path: self.paths.certificate.clone(),
            found: self.name.clone(),
            expected: expected.clone(),
        })
    }

    /// TLS for the next connection that is accepted: the peer must show a certificate of the authority.
    /// Whom it names is in [`peer_name`] of the first certificate it showed.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded.load().server)
    }

    /// TLS for the next connection that is opened; the server name to verify is the peer's
    /// [`dns_name`](PeerName::dns_name).
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.loaded.load().client)
    }

    /// When the certificate in use expires, in seconds since the Unix epoch.
    pub fn expires_unix_s(&self) -> i64 {
        self.loaded.load().expires_unix_s
    }

    /// A secret for one purpose that is the same after a restart, as long as the private key is.
    pub(crate) fn derived_secret(&self, purpose: &str) -> hmac::Tag {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.loaded.load().key_digest.as_ref());
        hmac::sign(&key, purpose.as_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    fn read(
        paths: &IdentityPaths,
        clock: &Arc<dyn Clock>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, CertificateError> {
        let chain = read_certificates(&paths.certificate)?;
        let leaf = first_certificate(&chain)?.clone();
        let key = read_key(&paths.key)?;
        let roots = Arc::new(read_roots(&paths.authority)?);
        let invalid = |reason: String| CertificateError::Invalid {
            path: paths.certificate.clone(),
            authority: paths.authority.clone(),
            reason,
        };
        let name = peer_name(&leaf).map_err(|e| CertificateError::Malformed {
            path: paths.certificate.clone(),
            what: "certificate of a server",
            reason: e.to_string(),
        })?;
        let client_verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| invalid(e.to_string()))?;
        client_verifier
            .verify_client_cert(&leaf, &chain[1..], UnixTime::since_unix_epoch(unix_time(clock.as_ref())))
            .map_err(|e| invalid(e.to_string()))?;
        let pairing = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::KeyMismatch {
                certificate: paths.certificate.clone(),
                key: paths.key.clone(),
            },
            other => CertificateError::Malformed {
                path: paths.key.clone(),
                what: "private key",
                reason: other.to_string(),
            },
        };
        let time = Arc::new(ClockTime(Arc::clone(clock)));
        let mut server = ServerConfig::builder_with_details(provider.clone(), time.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| invalid(e.to_string()))?
            .with_client_cert_verifier(client_verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(pairing)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let client = client_config(provider.clone(), time, roots, chain, &key).map_err(pairing)?;
        let digest_key = hmac::Key::new(hmac::HMAC_SHA256, b"meridian identity");
        Ok(Self {
            name,
            server: Arc::new(server),
            client: Arc::new(client),
            key_digest: hmac::sign(&digest_key, key.secret_der()),
            expires_unix_s: expires_unix_s(&leaf),
        })
    }
}

fn client_config(
    provider: Arc<CryptoProvider>,
    time: Arc<ClockTime>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut client = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key.clone_key())?;
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = Resumption::disabled();
    Ok(client)
}

fn expires_unix_s(certificate: &CertificateDer<'_>) -> i64 {
    x509_parser::parse_x509_certificate(certificate)
        .map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp())
}

/// The clock of the seam as TLS asks for it.
struct ClockTime(Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(unix_time(self.0.as_ref())))
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|e| CertificateError::Malformed {
            path: path.to_owned(),
            what: "authority certificate",
            reason: e.to_string(),
        })?;
    }
    Ok(roots)
}

/// All certificates of a file, at least one.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let text = read_text(path)?;
    let malformed =
        |reason| CertificateError::Malformed { path: path.to_owned(), what: "certificate", reason };
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| malformed(e.to_string()))?;
    if certificates.is_empty() {
        return Err(malformed("no CERTIFICATE section".into()));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(read_text(path)?.as_bytes()).map_err(|e| CertificateError::Malformed {
        path: path.to_owned(),
        what: "private key",
        reason: e.to_string(),
    })
}

fn first_certificate<'a>(
    chain: &'a [CertificateDer<'static>],
) -> Result<&'a CertificateDer<'static>, CertificateError> {
    chain.first().ok_or_else(|| CertificateError::Name("no certificate was shown".into()))
}

fn read_text(path: &Path) -> Result<String, CertificateError> {
    let read = || {
        let mut text = String::new();
        fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error| CertificateError::Read { path: path.to_owned(), error })
}

/// Replaces a file as a whole; it has its mode from the start.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let write = || {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(|error| CertificateError::Write { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicI64, Ordering};

    use tempfile::TempDir;

    use super::*;

    const START_MS: i64 = 1_800_000_000_000;
    const DAY_MS: i64 = 86_400_000;

    struct SetClock(AtomicI64);

    impl Clock for SetClock {
        fn unix_ms(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// An authority, and a directory with the certificate of the server us-1 in region us.
    struct Issuing {
        clock: Arc<SetClock>,
        authority: Authority,
        directory: TempDir,
        paths: IdentityPaths,
    }

    impl Issuing {
        fn new() -> Self {
            let clock = Arc::new(SetClock(AtomicI64::new(START_MS)));
            let authority = Authority::create(clock.as_ref(), 100).unwrap();
            let directory = TempDir::new().unwrap();
            let issued = authority.issue(&PeerName::new("us", "us-1"), clock.as_ref(), 30).unwrap();
            let paths = issued.save(directory.path()).unwrap();
            Self { clock, authority, directory, paths }
        }

        fn load(&self) -> Result<Identity, CertificateError> {
            Identity::load(self.paths.clone(), self.clock.clone())
        }

        fn after_days(&self, days: i64) -> &Self {
            self.clock.0.store(START_MS + days * DAY_MS, Ordering::Relaxed);
            self
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_issued_certificate_names_its_server() {
        let issuing = Issuing::new();
        let certificates = read_certificates(&issuing.paths.certificate).unwrap();
        assert_eq!(peer_name(&certificates[0]).unwrap(), PeerName::new("us", "us-1"));
        assert_eq!(issuing.load().unwrap().name(), &PeerName::new("us", "us-1"));
        let authority = read_certificates(&issuing.paths.authority).unwrap();
        assert!(peer_name(&authority[0]).is_err(), "the authority is no server");
        assert!(peer_name(&CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 1])).is_err());
    }

    #[test]
    fn certificates_of_other_shapes_name_nobody() {
        for names in [
            vec!["us.mesh.meridian"],
            vec!["a.us-1.us.mesh.meridian"],
            vec!["*.us.mesh.meridian"],
            vec!["us-1.us.mesh.meridian", "eu-1.eu.mesh.meridian"],
            vec!["us-1.us.example.org"],
        ] {
            let names: Vec<String> = names.into_iter().map(String::from).collect();
            let certificate = rcgen::generate_simple_self_signed(names.clone()).unwrap().cert;
            assert!(matches!(peer_name(certificate.der()), Err(CertificateError::Name(_))), "{names:?}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        let dns_name = |region, server| PeerName::new(region, server).dns_name();
        assert_eq!(dns_name("us-east", "us-east-1").unwrap(), "us-east-1.us-east.mesh.meridian");
        let long = "x".repeat(64);
        for wrong in ["", "US", "a.b", "-a", "a-", "a b", "*", "b\u{fc}ro", long.as_str()] {
            assert!(dns_name(wrong, "1").is_err(), "{wrong}");
            assert!(dns_name("us", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn private_keys_are_for_the_owner_alone() {
        let issuing = Issuing::new();
        issuing.authority.save(&issuing.directory.path().join("missing")).unwrap_err();
        let directory = TempDir::new().unwrap();
        issuing.authority.save(directory.path()).unwrap();
        assert_eq!(mode(&directory.path().join("authority.key")), 0o600);
        assert_eq!(mode(&issuing.paths.key), 0o600);
        assert!(!format!("{:?}", issuing.load().unwrap()).contains("PRIVATE"));
    }

    #[test]
    fn a_saved_authority_goes_on_issuing_and_is_never_overwritten() {
        let issuing = Issuing::new();
        let directory = TempDir::new().unwrap();
        issuing.authority.save(directory.path()).unwrap();
        assert!(matches!(issuing.authority.save(directory.path()), Err(CertificateError::Exists { .. })));
        let again = Authority::load(directory.path()).unwrap();
        let issued = again.issue(&PeerName::new("us", "us-1"), issuing.clock.as_ref(), 30).unwrap();
        issued.save(issuing.directory.path()).unwrap();
        issuing.load().unwrap();
    }

    #[test]
    fn two_servers_of_one_name_do_not_share_a_file() {
        let issuing = Issuing::new();
        let other =
            issuing.authority.issue(&PeerName::new("eu", "us-1"), issuing.clock.as_ref(), 30).unwrap();
        let error = other.save(issuing.directory.path()).unwrap_err().to_string();
        assert!(error.contains("holds the certificate of server us-1 of region us"), "{error}");
    }

    #[test]
    fn validity_follows_the_clock() {
        let issuing = Issuing::new();
        let identity = issuing.load().unwrap();
        assert_eq!(identity.expires_unix_s(), (START_MS + 30 * DAY_MS) / 1_000);
        issuing.after_days(29).load().unwrap();
        let error = issuing.after_days(31).load().unwrap_err();
        assert!(error.to_string().to_lowercase().contains("expired"), "{error}");
        assert!(matches!(identity.reload(), Err(CertificateError::Invalid { .. })));
        assert!(issuing.after_days(-1).load().is_err());
    }

    #[test]
    fn errors_name_the_file() {
        let issuing = Issuing::new();
        let IdentityPaths { certificate, key, authority } = &issuing.paths;
        let good = [certificate, key, authority].map(|path| fs::read(path).unwrap());
        for (path, good) in [certificate, key, authority].into_iter().zip(&good) {
            for bad in ["", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"] {
                fs::write(path, bad).unwrap();
                let error = issuing.load().unwrap_err();
                assert!(matches!(error, CertificateError::Malformed { .. }), "{error}");
                assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            }
            fs::remove_file(path).unwrap();
            assert!(matches!(issuing.load(), Err(CertificateError::Read { .. })));
            fs::write(path, good).unwrap();
        }
        issuing.load().unwrap();
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let issuing = Issuing::new();
        fs::write(&issuing.paths.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(matches!(issuing.load(), Err(CertificateError::KeyMismatch { .. })));
    }

    #[test]
    fn a_certificate_of_another_authority_is_refused() {
        let issuing = Issuing::new();
        let foreign = Authority::create(issuing.clock.as_ref(), 100).unwrap();
        fs::write(&issuing.paths.authority, &foreign.certificate_pem).unwrap();
        assert!(matches!(issuing.load(), Err(CertificateError::Invalid { .. })));
    }

    #[test]
    fn a_reload_can_not_change_the_name() {
        let issuing = Issuing::new();
        let identity = issuing.load().unwrap();
        let other =
            issuing.authority.issue(&PeerName::new("us", "us-2"), issuing.clock.as_ref(), 30).unwrap();
        fs::write(&issuing.paths.certificate, &other.certificate_pem).unwrap();
        fs::write(&issuing.paths.key, &other.key_pem).unwrap();
        assert!(matches!(identity.reload(), Err(CertificateError::OtherName { .. })));
        assert_eq!(identity.name(), &PeerName::new("us", "us-1"));
    }

    #[test]
    fn derived_secrets_last_as_long_as_the_key() {
        let issuing = Issuing::new();
        let secret = |purpose| issuing.load().unwrap().derived_secret(purpose).as_ref().to_vec();
        let before = secret("a");
        assert_eq!(secret("a"), before);
        assert_ne!(secret("b"), before);
        let renewed =
            issuing.authority.issue(&PeerName::new("us", "us-1"), issuing.clock.as_ref(), 30).unwrap();
        renewed.save(issuing.directory.path()).unwrap();
        assert_ne!(secret("a"), before);
    }
}
