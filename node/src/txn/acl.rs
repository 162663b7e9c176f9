//! Access control: who may do what with a znode.

use std::collections::HashSet;
use std::sync::Arc;

use meridian_seam::codec;
use meridian_wire as wire;
use serde::{Deserialize, Serialize};

use crate::tree::Acl;

/// Who a client has proved to be: pairs of scheme and identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities(pub Vec<(String, String)>);

impl Identities {
    /// The form in which a request carries them; empty for nobody in particular.
    pub fn encode(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        // A handful of short strings always encodes.
        codec::encode(self).unwrap_or_default()
    }

    /// Reads what [`Identities::encode`] made; anything else is nobody.
    pub fn decode(bytes: &[u8]) -> Self {
        codec::decode(bytes).unwrap_or_default()
    }
}

/// Whether one of `identities` (encoded) has all of `wanted` permissions.
pub fn permits(acl: &[Acl], wanted: i32, identities: &[u8]) -> bool {
    let granted = |a: &Acl| a.perms & wanted == wanted;
    if acl.iter().any(|a| granted(a) && &*a.scheme == "world" && &*a.id == "anyone") {
        return true;
    }
    if identities.is_empty() {
        return acl.is_empty();
    }
    let Identities(known) = Identities::decode(identities);
    if acl.is_empty() || known.iter().any(|(scheme, _)| scheme == "super") {
        return true;
    }
    acl.iter().any(|a| {
        granted(a)
            && known.iter().any(|(scheme, id)| {
                *scheme == *a.scheme && if scheme == "ip" { ip_matches(&a.id, id) } else { *id == *a.id }
            })
    })
}

/// Turns the ACL that a client asks for into the one that is stored: `auth` entries become the client's
/// own identities. `None` if the ACL is not a valid one.
pub fn resolve(asked: &[wire::Acl<'_>], identities: &[u8]) -> Option<Arc<[Acl]>> {
    let mut resolved: Vec<Acl> = Vec::with_capacity(asked.len());
    for entry in asked {
        match entry.scheme {
            "world" if entry.id == "anyone" => resolved.push(stored(entry, entry.scheme, entry.id)),
            "auth" => {
                let Identities(known) = Identities::decode(identities);
                let before = resolved.len();
                let proved =
                    known.iter().filter(|(scheme, _)| matches!(scheme.as_str(), "digest" | "sasl" | "x509"));
                resolved.extend(proved.map(|(scheme, id)| stored(entry, scheme, id)));
                if resolved.len() == before {
                    return None;
                }
            }
            "digest" if is_digest(entry.id) => resolved.push(stored(entry, entry.scheme, entry.id)),
            "ip" if parse_network(entry.id).is_some() => resolved.push(stored(entry, entry.scheme, entry.id)),
            "x509" if !entry.id.is_empty() => resolved.push(stored(entry, entry.scheme, entry.id)),
            "sasl" if is_principal(entry.id) => resolved.push(stored(entry, entry.scheme, entry.id)),
            _ => return None,
        }
    }
    let mut seen = HashSet::new();
    resolved.retain(|entry| seen.insert(entry.clone()));
    (!resolved.is_empty()).then(|| resolved.into())
}

/// `user:digest`, neither with a further colon; ZooKeeper takes an empty user, but no empty digest.
fn is_digest(id: &str) -> bool {
    id.split_once(':').is_some_and(|(_, digest)| !digest.is_empty() && !digest.contains(':'))
}

/// A user's name, or `name@REALM` or `name/host@REALM` as Kerberos has them.
fn is_principal(id: &str) -> bool {
    match id.split_once('@') {
        None => !id.is_empty(),
        Some((name, realm)) => name.matches('/').count() <= 1 && !realm.contains(['/', '@']),
    }
}

fn stored(entry: &wire::Acl<'_>, scheme: &str, id: &str) -> Acl {
    Acl { perms: entry.perms, scheme: scheme.into(), id: id.into() }
}

/// An address with the length of its network prefix: `10.1.0.0/16`, or a single address.
fn parse_network(text: &str) -> Option<(std::net::IpAddr, u32)> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let address = parse_v4(address).map(std::net::IpAddr::V4).or_else(|| address.parse().ok())?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(width), |b| b.parse().ok().filter(|b| *b <= width))?;
    Some((address, bits))
}

/// Four numbers, which may have leading zeros, as in ZooKeeper.
fn parse_v4(text: &str) -> Option<std::net::Ipv4Addr> {
    let numbers: Vec<u8> = text.split('.').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(numbers).ok().map(Into::into)
}

fn ip_matches(network: &str, client: &str) -> bool {
    let bits_of = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
        std::net::IpAddr::V6(v6) => (v6.to_bits(), false),
    };
    let (Some((network, prefix)), Ok(client)) = (parse_network(network), client.parse()) else {
        return false;
    };
    let ((network, network_v4), (client, client_v4)) = (bits_of(network), bits_of(client));
    let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
    network_v4 == client_v4 && network & mask == client & mask
}

#[cfg(test)]
mod tests {
    use meridian_wire::perms;

    use super::*;

    fn acl(perms: i32, scheme: &str, id: &str) -> Acl {
        Acl { perms, scheme: scheme.into(), id: id.into() }
    }

    fn known(pairs: &[(&str, &str)]) -> Vec<u8> {
        Identities(pairs.iter().map(|(s, i)| ((*s).into(), (*i).into())).collect()).encode()
    }

    #[test]
    fn world_reads_and_the_owner_writes() {
        let entries = [acl(perms::READ, "world", "anyone"), acl(perms::ALL, "digest", "bob:x")];
        assert!(permits(&entries, perms::READ, &[]));
        assert!(!permits(&entries, perms::WRITE, &[]));
        assert!(!permits(&entries, perms::WRITE, &known(&[("digest", "eve:x")])));
        assert!(permits(&entries, perms::WRITE, &known(&[("digest", "bob:x")])));
        assert!(permits(&entries, perms::ADMIN, &known(&[("super", "")])));
    }

    #[test]
    fn networks_match_by_prefix() {
        let entries = [acl(perms::ALL, "ip", "10.1.0.0/16")];
        assert!(permits(&entries, perms::READ, &known(&[("ip", "10.1.200.3")])));
        assert!(!permits(&entries, perms::READ, &known(&[("ip", "10.2.0.1")])));
        assert!(!permits(&entries, perms::READ, &known(&[("ip", "::1")])));
        assert!(ip_matches("0.0.0.0/0", "1.2.3.4"));
        assert!(ip_matches("::1", "::1"));
    }

    #[test]
    fn auth_becomes_the_clients_identities() {
        let asked = [wire::Acl { perms: perms::ALL, scheme: "auth", id: "" }];
        assert_eq!(resolve(&asked, &[]), None);
        let got = resolve(&asked, &known(&[("ip", "1.1.1.1"), ("digest", "a:b")])).unwrap();
        assert_eq!(*got, [acl(perms::ALL, "digest", "a:b")]);
        assert_eq!(resolve(&[], &[]), None);
        let one = |scheme, id| resolve(&[wire::Acl { perms: -1, scheme, id }], &[]);
        for (scheme, id) in [
            ("nope", "x"),
            ("super", "x"),
            ("world", "me"),
            ("digest", "a"),
            ("digest", "a:"),
            ("digest", "a:b:c"),
            ("ip", "1.2.3"),
            ("ip", "1.2.3.4/33"),
            ("sasl", ""),
            ("sasl", "user@REALM/host"),
            ("sasl", "user@REALM@OTHER"),
            ("sasl", "a/b/c@REALM"),
        ] {
            assert_eq!(one(scheme, id), None, "{scheme}:{id}");
        }
        for (scheme, id) in [
            ("world", "anyone"),
            ("digest", ":b"),
            ("ip", "::1"),
            ("ip", "1.2.3.4/0"),
            ("ip", "01.2.3.004"),
            ("sasl", "x"),
            ("sasl", "a/b/c"),
            ("sasl", "service/host@REALM"),
        ] {
            assert_eq!(*one(scheme, id).unwrap(), [acl(-1, scheme, id)], "any bits may be set");
        }
        let twice = [wire::Acl::OPEN, asked[0], wire::Acl::OPEN];
        assert_eq!(resolve(&twice, &known(&[("digest", "a:b")])).unwrap().len(), 2);
    }
}
