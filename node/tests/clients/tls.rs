//! Clients over TLS.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meridian_node::server::{ClientCertificates, ServerOptions, TlsOptions};
use meridian_wire::{Acl, Create, CreateMode, ErrorCode, OpCode, Request, Response, perms};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::{Hello, RawClient};
use crate::region::{TestRegion, eventually};

/// An authority and the files of what it has issued.
struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("authority.pem"), certificate.pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `name.pem` with certificate and key.
    fn issue(&self, name: &str) -> PathBuf {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = self.path(&format!("{name}.pem"));
        std::fs::write(&path, certificate.pem() + &key.serialize_pem()).unwrap();
        path
    }

    fn tls(&self, client_certificates: ClientCertificates) -> TlsOptions {
        let server = self.issue("server");
        TlsOptions {
            listen: Some("127.0.0.1:0".into()),
            port_unification: true,
            certificate: server.clone(),
            key: server,
            authorities: Some(self.path("authority.pem")),
            client_certificates,
            handshake_timeout: Duration::from_millis(500),
        }
    }

    async fn region(&self, client_certificates: ClientCertificates) -> TestRegion {
        let tls = self.tls(client_certificates);
        let change = move |o: &mut ServerOptions| {
            o.tls = Some(tls.clone());
            o.authentication.x509_super = Some("CN=admin,O=Example".into());
        };
        TestRegion::with(1, 0, change).await
    }

    /// Connects with a version of TLS, and with a certificate if one is given.
    async fn connect(
        &self,
        address: SocketAddr,
        version: &'static SupportedProtocolVersion,
        shown: Option<&Path>,
    ) -> io::Result<(RawClient, Vec<u8>)> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("authority.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let chain = CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(file).unwrap()).unwrap()
            }
        };
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        Ok((RawClient::connect_over(Box::new(stream), &Hello::default()).await?, certificate))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_served_over_tls_and_plain_on_one_port() {
    let authority = Authority::new();
    let region = authority.region(ClientCertificates::None).await;
    let (plain, secure) = (region.address(1), region.server(1).secure_address().unwrap());
    let mut first = RawClient::connect(plain).await;
    first.create("/plain", CreateMode::Persistent).await.unwrap();
    for address in [plain, secure] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (mut client, _) = authority.connect(address, version, None).await.unwrap();
            assert!(client.get("/plain", false).await.is_ok());
        }
    }
    let mut word = TcpStream::connect(plain).await.unwrap();
    word.write_all(b"ruok").await.unwrap();
    let mut answer = String::new();
    word.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "imok");
    let mut plain = TcpStream::connect(secure).await.unwrap();
    plain.write_all(b"ruok").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or a reset.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"imok"), "no plain client at the secure port");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_an_identity() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let region = authority.region(ClientCertificates::Need).await;
    let secure = region.server(1).secure_address().unwrap();
    let tls13 = &rustls::version::TLS13;
    assert!(authority.connect(secure, tls13, None).await.is_err(), "one is needed");
    let foreign = stranger.issue("bob");
    assert!(authority.connect(secure, tls13, Some(&foreign)).await.is_err(), "of our own authority");
    let (bob, admin) = (authority.issue("bob"), authority.issue("admin"));
    let (mut client, _) = authority.connect(secure, tls13, Some(&bob)).await.unwrap();
    let acl = vec![Acl { perms: perms::ALL, scheme: "auth", id: "" }];
    let create = Create { path: "/bobs", data: None, acl, flags: 0 };
    assert_eq!(client.call(&Request::Create(create)).await.0.error, ErrorCode::Ok);
    let (_, body) = client.call(&Request::GetAcl { path: "/bobs" }).await;
    let Response::Acl { acl, .. } = Response::decode(OpCode::GetAcl, &body).unwrap() else { panic!() };
    assert_eq!((acl[0].scheme, acl[0].id), ("x509", "CN=bob,O=Example"));
    let mut plain = RawClient::connect(region.address(1)).await;
    assert_eq!(plain.get("/bobs", false).await, Err(ErrorCode::NoAuth));
    let (mut admin, _) = authority.connect(secure, tls13, Some(&admin)).await.unwrap();
    assert_eq!(admin.set("/bobs", b"x").await, ErrorCode::Ok, "the super user may");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_reloaded_when_their_files_change() {
    let authority = Authority::new();
    let region = authority.region(ClientCertificates::None).await;
    let secure = region.server(1).secure_address().unwrap();
    let tls13 = &rustls::version::TLS13;
    let (mut before, first) = authority.connect(secure, tls13, None).await.unwrap();
    std::fs::write(authority.path("server.pem"), "half a file").unwrap();
    // What makes no sense is not used.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(authority.connect(secure, tls13, None).await.unwrap().1, first);
    authority.issue("server");
    eventually("the new certificate is shown", async || {
        authority.connect(secure, tls13, None).await.is_ok_and(|(_, shown)| shown != first)
    })
    .await;
    assert!(before.get("/", false).await.is_ok(), "who is connected stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_go_on_is_ended() {
    let authority = Authority::new();
    let region = authority.region(ClientCertificates::None).await;
    for address in [region.address(1), region.server(1).secure_address().unwrap()] {
        for bytes in [&b""[..], &[22], &[22, 3, 1, 0x7f, 0xff], &[22; 4_000]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            // An alert or a reset may come before the end.
            let ended = tokio::time::timeout(crate::region::PATIENCE, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "{bytes:?}");
        }
    }
    assert!(authority.connect(region.address(1), &rustls::version::TLS13, None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_named() {
    let authority = Authority::new();
    let start = |tls: TlsOptions| async move {
        let region = TestRegion::prepare(1, 0, |_| {});
        let options = ServerOptions { tls: Some(tls), ..region.options(1) };
        let environment = meridian_seam::Environment::production();
        let started = meridian_node::server::Server::start(environment, options).await;
        started.err().unwrap().to_string()
    };
    let good = authority.tls(ClientCertificates::None);
    let missing = start(TlsOptions { certificate: authority.path("none.pem"), ..good.clone() }).await;
    assert!(missing.contains("none.pem"), "{missing}");
    let other = authority.issue("other");
    let mixed = start(TlsOptions { key: other, ..good.clone() }).await;
    assert!(mixed.contains("other.pem"), "{mixed}");
    let unasked = TlsOptions { authorities: None, client_certificates: ClientCertificates::Need, ..good };
    assert!(start(unasked).await.contains("client.tls.authorities"));
}
