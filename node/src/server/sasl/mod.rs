//! SASL, the server's side: which mechanism a client speaks, and what its tokens come to.
//!
//! Packets do not name the mechanism. A client of GSSAPI begins with a token, one of DIGEST-MD5 with an empty one.

mod digest_md5;
mod gssapi;
#[cfg(feature = "kerberos")]
mod kerberos;

use std::collections::BTreeMap;

pub use gssapi::Kerberos;

/// A client's exchange whose next token is awaited.
pub(super) enum Exchange {
    /// The challenge has been sent.
    DigestMd5(digest_md5::Exchange),
    /// Any step of several.
    Gssapi(gssapi::Exchange),
}

/// What a token came to.
pub(super) enum Step {
    /// This token goes to the client, which is to send another one.
    Continue(Exchange, Vec<u8>),
    /// The client is who this says; a last token may go to it.
    Proved { user: String, token: Option<Vec<u8>> },
    /// The client did not prove what it claimed. The reason is for the log alone.
    Refused(String),
}

/// Whom the mechanisms know.
#[derive(Clone, Copy)]
pub(super) struct Mechanisms<'a> {
    /// The users of DIGEST-MD5 with their passwords; none turns it off.
    pub(super) users: &'a BTreeMap<String, String>,
    pub(super) kerberos: Option<&'a Kerberos>,
}

impl Mechanisms<'_> {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.kerberos.is_none()
    }

    /// Takes the first token of an exchange, or the next one of one that has begun.
    pub(super) async fn step(
        &self,
        exchange: Option<Exchange>,
        token: &[u8],
        random: impl FnOnce() -> [u8; 24],
    ) -> Step {
        match (exchange, self.kerberos) {
            (None, Some(kerberos)) if !token.is_empty() => kerberos.step(kerberos.begin(), token).await,
            (None, _) if self.users.is_empty() => refused("DIGEST-MD5 is asked for, and has no users here"),
            // ZooKeeper does not look at the token either.
            (None, _) => {
                let (begun, challenge) = digest_md5::Exchange::begin(random());
                Step::Continue(Exchange::DigestMd5(begun), challenge)
            }
            (Some(Exchange::DigestMd5(begun)), _) => match begun.judge(token, self.users) {
                Some(proof) => Step::Proved { user: proof.user, token: Some(proof.token) },
                None => refused("a wrong password, or no response"),
            },
            (Some(Exchange::Gssapi(begun)), Some(kerberos)) => kerberos.step(begun, token).await,
            (Some(Exchange::Gssapi(_)), None) => refused("Kerberos is not set up"),
        }
    }
}

fn refused(reason: &str) -> Step {
    Step::Refused(reason.into())
}
