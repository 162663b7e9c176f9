//! SASL's DIGEST-MD5 mechanism (RFC 2831), the server's side, with what ZooKeeper's clients use of it: quality of
//! protection `auth`, one realm.
//!
//! Three tokens: the server's challenge, the client's response, and the server's proof that it knows the
//! password too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use md5::{Digest, Md5};

/// ZooKeeper's clients know the server by this name, and its realm too.
const REALM: &str = "zk-sasl-md5";
/// RFC 2831, section 2.1.2: a longer response is not to be looked at.
const RESPONSE_BYTES_MAX: usize = 4_096;

/// An exchange whose challenge has been sent.
#[derive(Debug)]
pub(in crate::server) struct Exchange {
    nonce: String,
}

/// What a right response proves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proof {
    /// Who the client is.
    pub(super) user: String,
    /// The last token, which proves the server.
    pub(super) token: Vec<u8>,
}

impl Exchange {
    /// Begins an exchange with a nonce that nobody can guess; returns the challenge with it.
    pub(super) fn begin(random: [u8; 24]) -> (Self, Vec<u8>) {
        let nonce = base64::engine::general_purpose::STANDARD.encode(random);
        let challenge =
            format!(r#"realm="{REALM}",nonce="{nonce}",qop="auth",charset=utf-8,algorithm=md5-sess"#);
        (Self { nonce }, challenge.into_bytes())
    }

    /// Judges the response. `None` for a wrong password, an unknown user or anything that is no response.
    pub(super) fn judge(self, response: &[u8], users: &BTreeMap<String, String>) -> Option<Proof> {
        if response.len() > RESPONSE_BYTES_MAX {
            return None;
        }
        let given = directives(std::str::from_utf8(response).ok()?)?;
        let get = |key: &str| given.get(key).map(String::as_str);
        let (user, cnonce, uri) = (get("username")?, get("cnonce")?, get("digest-uri")?);
        let realm = get("realm").unwrap_or_default();
        // The first and only use of the nonce.
        let is_fresh = get("nonce")? == self.nonce && get("nc")? == "00000001";
        let is_known = matches!(get("qop"), None | Some("auth")) && uri.starts_with("zookeeper/");
        if !is_fresh || !is_known {
            return None;
        }
        let password = users.get(user)?;
        let in_latin1 = |text: &str| latin1(text, get("charset").is_some());
        let secret = [&in_latin1(user)[..], b":", &in_latin1(realm), b":", &in_latin1(password)].concat();
        let mut a1 = Md5::digest(secret).to_vec();
        a1.extend_from_slice(format!(":{}:{cnonce}", self.nonce).as_bytes());
        if let Some(authzid) = get("authzid") {
            a1.extend_from_slice(format!(":{authzid}").as_bytes());
        }
        let a1 = hex(&Md5::digest(a1));
        let digest = |method: &str| {
            let a2 = hex(&Md5::digest(format!("{method}:{uri}")));
            let joined = format!("{a1}:{}:00000001:{cnonce}:auth:{a2}", self.nonce);
            hex(&Md5::digest(joined))
        };
        let expected = digest("AUTHENTICATE");
        let is_right = equal_in_constant_time(expected.as_bytes(), get("response")?.as_bytes());
        is_right.then(|| Proof { user: user.into(), token: format!("rspauth={}", digest("")).into_bytes() })
    }
}

/// RFC 2831, section 2.1.2.1: what is in ISO 8859-1 is hashed in it, even if it came in UTF-8.
fn latin1(text: &str, is_utf8: bool) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.filter(|_| is_utf8).unwrap_or_else(|| text.as_bytes().to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn equal_in_constant_time(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Reads `key=value, key="quoted \" value"`. A key that comes twice is refused.
fn directives(text: &str) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_matches([' ', ',']);
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_string(), &after[end..])
            }
        };
        if found.insert(key.trim().to_ascii_lowercase(), value).is_some() {
            return None;
        }
        rest = after.trim_start_matches([' ', '\t', '\r', '\n', ',']);
    }
    Some(found)
}

/// The content of a quoted string, and what follows the closing quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exchange(nonce: &str) -> Exchange {
        Exchange { nonce: nonce.into() }
    }

    fn users(user: &str, password: &str) -> BTreeMap<String, String> {
        [(user.to_string(), password.to_string())].into()
    }

    /// The example of RFC 2831, section 4, with the service that is ours.
    #[test]
    fn a_right_response_is_proved_and_answered() {
        let response = |digest: &str| {
            format!(
                r#"charset=utf-8,username="chris",realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",nc=00000001,cnonce="OA6MHXh6VqTrRk",digest-uri="zookeeper/elwood.innosoft.com",response={digest},qop=auth"#
            )
        };
        let expected =
            client_response("chris", "elwood.innosoft.com", "secret", "zookeeper/elwood.innosoft.com");
        let judged = |text: &str, users: &BTreeMap<String, String>| {
            exchange("OA6MG9tEQGm2hh").judge(text.as_bytes(), users)
        };
        let right = response(&expected);
        let known = users("chris", "secret");
        let proof = judged(&right, &known).unwrap();
        assert_eq!(proof.user, "chris");
        assert!(proof.token.starts_with(b"rspauth="));
        assert_eq!(judged(&right, &users("chris", "other")), None);
        assert_eq!(judged(&right, &users("eve", "secret")), None);
        for (from, to) in [
            ("nc=00000001", "nc=00000002"),
            ("OA6MG9tEQGm2hh", "OA6MG9tEQGm2hi"),
            ("qop=auth", "qop=auth-conf"),
            ("zookeeper/", "imap/"),
            ("cnonce=", "cnoncf="),
            ("username=", "username=\"x\",username="),
        ] {
            assert_eq!(judged(&right.replace(from, to), &known), None, "{to}");
        }
    }

    /// The digest as a client computes it, written down apart from the code above.
    fn client_response(user: &str, realm: &str, password: &str, uri: &str) -> String {
        let md5 = |bytes: &[u8]| Md5::digest(bytes);
        let mut a1 = md5(format!("{user}:{realm}:{password}").as_bytes()).to_vec();
        a1.extend_from_slice(b":OA6MG9tEQGm2hh:OA6MHXh6VqTrRk");
        let a2 = hex(&md5(format!("AUTHENTICATE:{uri}").as_bytes()));
        let joined = format!("{}:OA6MG9tEQGm2hh:00000001:OA6MHXh6VqTrRk:auth:{a2}", hex(&md5(&a1)));
        hex(&md5(joined.as_bytes()))
    }

    /// The digest printed in RFC 2831, section 4, for its `imap` service.
    #[test]
    fn digests_are_those_of_the_rfc() {
        let digest = client_response("chris", "elwood.innosoft.com", "secret", "imap/elwood.innosoft.com");
        assert_eq!(digest, "d388dad90d4bbd760a152321f2143af7");
    }

    #[test]
    fn directives_are_read() {
        let read = directives(r#" a=1, b="x,\"y\\" ,C = z"#).unwrap();
        let pairs: Vec<(&str, &str)> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("a", "1"), ("b", "x,\"y\\"), ("c", "z")]);
        for bad in ["a", "a=\"open", "a=1,a=2", "a=\"\\"] {
            assert_eq!(directives(bad), None, "{bad}");
        }
        assert_eq!(latin1("\u{e9}", true), [0xe9]);
        assert_eq!(latin1("\u{e9}", false), "\u{e9}".as_bytes());
        assert_eq!(latin1("\u{20ac}", true), "\u{20ac}".as_bytes());
    }

    proptest! {
        #[test]
        fn arbitrary_responses_prove_nothing(response in proptest::collection::vec(any::<u8>(), 0..200), text in "([a-z]{1,8}=\"?[a-z,\\\\\"]{0,6}\"?,?){0,6}") {
            prop_assert_eq!(exchange("n").judge(&response, &users("u", "p")), None);
            prop_assert_eq!(exchange("n").judge(text.as_bytes(), &users("u", "p")), None);
        }
    }
}
