//! Certificates and cryptography for simulated servers, the same in two runs of a seed. What servers send encrypted
//! must not differ: a server that starts again may be sent packets that it can't decrypt, and what it does with them
//! depends on their bytes.

use std::path::Path;

use anyhow::Context;
use meridian_bridge::certificates::{IdentityPaths, PeerName};
use meridian_seam::entropy::thread_u64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use rustls::NamedGroup;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;

/// The certificates of all servers of a mesh, in a directory that goes with them.
pub(super) struct Certificates {
    directory: TempDir,
}

impl Certificates {
    pub(super) fn create(names: &[PeerName]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, "Meridian mesh authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_what_varies(&mut parameters, 1);
        let key = fixed_key(1)?;
        let authority = parameters.self_signed(&key)?.pem();
        let issuer = Issuer::new(parameters, key);
        for (number, name) in (2..).zip(names) {
            issue(directory.path(), &issuer, &authority, number, name)
                .with_context(|| format!("no certificate for {name}"))?;
        }
        Ok(Self { directory })
    }

    pub(super) fn paths_of(&self, server: &str) -> IdentityPaths {
        IdentityPaths::in_directory(self.directory.path(), server)
    }
}

/// An Ed25519 key (RFC 8410) whose secret is a number: signatures of one length that depend on nothing else.
fn fixed_key(number: u64) -> anyhow::Result<KeyPair> {
    const PKCS8_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let mut der = PKCS8_HEAD.to_vec();
    der.extend([0; 24]);
    der.extend(number.to_be_bytes());
    let der = PrivatePkcs8KeyDer::from(der);
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?)
}

/// The servers' cryptography, but all that is random follows from the seed of the thread, and keys are agreed on in
/// public.
pub(super) fn repeatable_crypto() -> CryptoProvider {
    CryptoProvider {
        secure_random: &ThreadRandom,
        kx_groups: vec![&PublicAgreement],
        ..rustls::crypto::aws_lc_rs::default_provider()
    }
}

#[derive(Debug)]
struct ThreadRandom;

impl SecureRandom for ThreadRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&thread_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// Each side sends a random number; their sum, bit by bit, is the secret.
#[derive(Debug)]
struct PublicAgreement;

struct Agreeing([u8; 32]);

impl SupportedKxGroup for PublicAgreement {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        let mut number = [0; 32];
        ThreadRandom.fill(&mut number)?;
        Ok(Box::new(Agreeing(number)))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Agreeing {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, rustls::Error> {
        let secret: Vec<u8> = self.0.iter().zip(peer).map(|(own, theirs)| own ^ theirs).collect();
        Ok(SharedSecret::from(&secret[..]))
    }

    fn pub_key(&self) -> &[u8] {
        &self.0
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

fn set_what_varies(parameters: &mut CertificateParams, number: u64) {
    parameters.serial_number = Some(SerialNumber::from(number));
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2049, 1, 1);
}

fn issue(
    directory: &Path,
    issuer: &Issuer<'static, KeyPair>,
    authority: &str,
    number: u64,
    name: &PeerName,
) -> anyhow::Result<()> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    let common_name = DnValue::Utf8String(format!("{}.{}", name.server, name.region));
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.subject_alt_names = vec![SanType::DnsName(name.dns_name()?.try_into()?)];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters.use_authority_key_identifier_extension = true;
    set_what_varies(&mut parameters, number);
    let key = fixed_key(number)?;
    let certificate = parameters.signed_by(&key, issuer)?;
    let paths = IdentityPaths::in_directory(directory, &name.server);
    std::fs::write(paths.certificate, certificate.pem())?;
    std::fs::write(paths.key, key.serialize_pem())?;
    std::fs::write(paths.authority, authority)?;
    Ok(())
}
