//! How clients prove who they are, and what they must have proved before they are served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use meridian_seam::limits;
use meridian_wire::AuthPacket;
use sha1::{Digest, Sha1};

use super::sasl::{Exchange, Kerberos, Mechanisms, Step};
use crate::txn::acl::Identities;

/// How clients prove who they are.
#[derive(Clone, Default)]
pub struct Authentication {
    /// `user:base64(sha1(user:password))` of those who may do everything
    /// (`DigestAuthenticationProvider.superDigest`).
    pub super_digest: Option<String>,
    /// Whether the scheme `digest` is refused (`DigestAuthenticationProvider.enabled=false`).
    pub digest_off: bool,
    /// The users of SASL DIGEST-MD5 with their passwords.
    pub sasl_users: BTreeMap<String, String>,
    /// SASL GSSAPI, if clients may use it.
    pub kerberos: Option<Arc<Kerberos>>,
    /// The users of SASL who may do everything (`zookeeper.superUser`, `zookeeper.superUser.*`).
    pub sasl_supers: BTreeSet<String>,
    /// The subject of a client's certificate that may do everything (`X509AuthenticationProvider.superUser`).
    pub x509_super: Option<String>,
    /// Names of this ensemble that clients may insist on (`zookeeper.ensembleAuthName`); none takes any.
    pub ensemble_names: BTreeSet<String>,
    /// A client is served only if it has proved an identity of one of these schemes (`enforce.auth.schemes`);
    /// none serves everybody.
    pub required_schemes: BTreeSet<String>,
    /// Whether ACLs are not checked at all (`skipACL`).
    pub skip_acl: bool,
}

/// What became of an attempt to prove something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is proved, or there was nothing to prove.
    Accepted,
    /// The client is to be told so, and disconnected.
    Refused,
    /// The client is to be disconnected: it looks for another ensemble.
    Misdirected,
}

/// What a step of a SASL exchange came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SaslStep {
    /// The token that goes to the client; none if SASL is not set up here, or the last word is the client's.
    Token(Option<Vec<u8>>),
    /// The client did not prove what it claimed. The reason is for the log.
    Refused(String),
}

impl Authentication {
    /// Judges an auth packet and adds what it proves.
    pub(super) fn judge(&self, packet: &AuthPacket<'_>, identities: &mut Identities) -> Verdict {
        match packet.scheme {
            "digest" if !self.digest_off => {
                let identity = digest_identity(packet.auth);
                if self.super_digest.as_ref() == Some(&identity) && !add(identities, "super", "") {
                    return Verdict::Refused;
                }
                if add(identities, "digest", &identity) { Verdict::Accepted } else { Verdict::Refused }
            }
            // Everybody has proved where they come from.
            "ip" => Verdict::Accepted,
            "ensemble" if self.ensemble_names.is_empty() || packet.auth.is_empty() => Verdict::Accepted,
            "ensemble" => {
                let name = String::from_utf8_lossy(packet.auth);
                if self.ensemble_names.contains(&*name) { Verdict::Accepted } else { Verdict::Misdirected }
            }
            // The certificate has been judged before the first request.
            "x509" if identities.0.iter().any(|(scheme, _)| scheme == "x509") => Verdict::Accepted,
            _ => Verdict::Refused,
        }
    }

    /// Takes the next token of a SASL exchange and adds what it proves.
    pub(super) async fn sasl_step(
        &self,
        exchange: &mut Option<Exchange>,
        token: &[u8],
        random: impl FnOnce() -> [u8; 24],
        identities: &mut Identities,
    ) -> SaslStep {
        let mechanisms = Mechanisms { users: &self.sasl_users, kerberos: self.kerberos.as_deref() };
        if mechanisms.is_empty() {
            return SaslStep::Token(None);
        }
        match mechanisms.step(exchange.take(), token, random).await {
            Step::Continue(next, token) => {
                *exchange = Some(next);
                SaslStep::Token(Some(token))
            }
            Step::Proved { user, token } => {
                let is_super = self.sasl_supers.contains(&user);
                if add(identities, "sasl", &user) && (!is_super || add(identities, "super", "")) {
                    SaslStep::Token(token)
                } else {
                    SaslStep::Refused("too many identities".into())
                }
            }
            Step::Refused(reason) => SaslStep::Refused(reason),
        }
    }

    /// What the certificate of a client proves, by its subject.
    pub(super) fn add_certificate(&self, subject: &str, identities: &mut Identities) {
        // There is room for the first two.
        add(identities, "x509", subject);
        if self.x509_super.as_deref() == Some(subject) {
            add(identities, "super", "");
        }
    }

    /// Whether a client has proved enough to be served.
    pub(super) fn suffices(&self, identities: &Identities) -> bool {
        self.required_schemes.is_empty()
            || identities.0.iter().any(|(scheme, _)| self.required_schemes.contains(scheme))
    }

    /// Whether a client that does not prove itself by SASL is not served at all.
    pub(super) fn requires_sasl(&self) -> bool {
        self.required_schemes.contains("sasl")
    }

    /// The identities by which requests are judged, encoded.
    pub(super) fn encode(&self, identities: &Identities) -> Vec<u8> {
        if !self.skip_acl {
            return identities.encode();
        }
        let mut all = identities.clone();
        all.0.push(("super".into(), String::new()));
        all.encode()
    }
}

/// Adds an identity, unless it is known. False if there are too many.
fn add(identities: &mut Identities, scheme: &str, id: &str) -> bool {
    let Identities(known) = identities;
    if known.iter().any(|(s, i)| s == scheme && i == id) {
        return true;
    }
    if known.len() >= limits::CONNECTION_IDENTITIES_MAX {
        return false;
    }
    known.push((scheme.into(), id.into()));
    true
}

/// The identity that `user:password` proves: `user:base64(sha1(user:password))`. As in ZooKeeper, credentials
/// without a colon are a user with its name for a password.
fn digest_identity(credentials: &[u8]) -> String {
    let credentials = String::from_utf8_lossy(credentials);
    let user = credentials.split(':').next().unwrap_or_default();
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha1::digest(credentials.as_bytes()));
    format!("{user}:{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(authentication: &Authentication, scheme: &str, auth: &[u8]) -> (Verdict, Vec<(String, String)>) {
        let mut identities = Identities::default();
        let verdict = authentication.judge(&AuthPacket { kind: 0, scheme, auth }, &mut identities);
        (verdict, identities.0)
    }

    #[test]
    fn digests_are_those_of_zookeeper() {
        // From ZooKeeper's documentation of DigestAuthenticationProvider.
        assert_eq!(digest_identity(b"super:test"), "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
        assert!(digest_identity(b"nobody").starts_with("nobody:"));
    }

    #[test]
    fn who_knows_the_super_password_may_do_everything() {
        let super_digest = Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=".to_string());
        let authentication = Authentication { super_digest, ..Authentication::default() };
        let (verdict, known) = judge(&authentication, "digest", b"super:test");
        assert_eq!((verdict, known[0].0.as_str()), (Verdict::Accepted, "super"));
        let (verdict, known) = judge(&authentication, "digest", b"super:guess");
        assert_eq!((verdict, known.len(), known[0].0.as_str()), (Verdict::Accepted, 1, "digest"));
    }

    #[test]
    fn schemes_may_be_off_or_ask_for_a_name() {
        let names = Authentication { ensemble_names: ["a".into()].into(), ..Authentication::default() };
        let off = Authentication { digest_off: true, ..Authentication::default() };
        for (authentication, scheme, auth, expected) in [
            (&off, "digest", &b"a:b"[..], Verdict::Refused),
            (&off, "ensemble", b"any", Verdict::Accepted),
            (&names, "ensemble", b"a", Verdict::Accepted),
            (&names, "ensemble", b"b", Verdict::Misdirected),
            (&names, "x509", b"", Verdict::Refused),
            (&names, "super", b"", Verdict::Refused),
            (&names, "world", b"anyone", Verdict::Refused),
        ] {
            assert_eq!(judge(authentication, scheme, auth).0, expected, "{scheme}");
        }
    }

    #[test]
    fn identities_are_bounded() {
        let authentication = Authentication::default();
        let mut identities = Identities::default();
        for i in 0..=limits::CONNECTION_IDENTITIES_MAX {
            let auth = format!("user{i}:x").into_bytes();
            let verdict =
                authentication.judge(&AuthPacket { kind: 0, scheme: "digest", auth: &auth }, &mut identities);
            assert_eq!(verdict == Verdict::Accepted, i < limits::CONNECTION_IDENTITIES_MAX);
        }
    }
}
