//! Certificates for simulated servers. Their keys are Ed25519: signatures of one length, so that the sizes
//! of handshakes do not differ between two runs.

use std::path::Path;

use anyhow::Context;
use meridian_bridge::certificates::{IdentityPaths, PeerName};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
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
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
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
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let certificate = parameters.signed_by(&key, issuer)?;
    let paths = IdentityPaths::in_directory(directory, &name.server);
    std::fs::write(paths.certificate, certificate.pem())?;
    std::fs::write(paths.key, key.serialize_pem())?;
    std::fs::write(paths.authority, authority)?;
    Ok(())
}
