//! Configuration of how clients prove who they are, and of TLS for clients.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, invalid};
use crate::server::{Authentication, ClientCertificates, Kerberos, TlsOptions};

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthenticationConfig {
    /// Whether clients may use the scheme `digest`.
    pub digest: bool,
    /// `user:base64(sha1(user:password))` of who may do everything.
    pub super_digest: Option<String>,
    /// Users of SASL DIGEST-MD5 with their passwords. Without any, and without `kerberos`, SASL is off.
    pub sasl_users: BTreeMap<String, String>,
    /// A JAAS file, as ZooKeeper has it, whose section `Server` has further users, `user_name="password"`, or the
    /// `principal` and the `keyTab` of Kerberos.
    pub sasl_users_file: Option<PathBuf>,
    /// SASL GSSAPI.
    pub kerberos: Option<KerberosConfig>,
    /// The user of SASL who may do everything, as the identity is written in ACLs.
    pub sasl_super: Option<String>,
    /// Further users of SASL who may do everything, by any names.
    pub sasl_supers: BTreeMap<String, String>,
    /// The subject of a client's certificate that may do everything, as `CN=admin,O=example`.
    pub x509_super: Option<String>,
    /// Names of this ensemble; a client that gives another one is disconnected.
    pub ensemble_names: BTreeSet<String>,
    /// Serve only clients that have proved an identity of one of these schemes.
    pub required_schemes: BTreeSet<String>,
    /// Do not check ACLs at all.
    pub skip_acl: bool,
}

impl Default for AuthenticationConfig {
    fn default() -> Self {
        Self {
            digest: true,
            super_digest: None,
            sasl_users: BTreeMap::new(),
            sasl_users_file: None,
            kerberos: None,
            sasl_super: None,
            sasl_supers: BTreeMap::new(),
            x509_super: None,
            ensemble_names: BTreeSet::new(),
            required_schemes: BTreeSet::new(),
            skip_acl: false,
        }
    }
}

/// How clients prove who they are by Kerberos. Needs a build with the feature `kerberos`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KerberosConfig {
    /// This server's principal, `zookeeper/host@REALM`. Clients ask for it by the host that they connect to.
    pub principal: Option<String>,
    /// The file with its key; the library's own (`KRB5_KTNAME`, `/etc/krb5.keytab`) if there is none.
    pub keytab: Option<PathBuf>,
    /// Whether a client `alice/host@REALM` is known as `alice@REALM`.
    pub remove_host: bool,
    /// Whether a client `alice@REALM` of this server's realm is known as `alice`.
    pub remove_realm: bool,
}

impl AuthenticationConfig {
    /// The same for the server.
    ///
    /// # Errors
    /// If the JAAS file or the keytab can't be read, or what is required can't be proved.
    pub fn authentication(&self) -> Result<Authentication, ConfigError> {
        let jaas = self.jaas()?;
        let mut sasl_users = self.sasl_users.clone();
        sasl_users.extend(jaas.users.clone());
        let kerberos = self.kerberos_with(jaas).map(|config| accept(&config)).transpose()?;
        if self.required_schemes.contains("sasl") && sasl_users.is_empty() && kerberos.is_none() {
            return invalid(
                "client.authentication.required_schemes",
                "has sasl, but there are no users: set client.authentication.sasl_users, sasl_users_file or kerberos",
            );
        }
        Ok(Authentication {
            super_digest: self.super_digest.clone(),
            digest_off: !self.digest,
            sasl_users,
            kerberos: kerberos.map(Arc::new),
            sasl_supers: self.sasl_super.iter().chain(self.sasl_supers.values()).cloned().collect(),
            x509_super: self.x509_super.clone(),
            ensemble_names: self.ensemble_names.clone(),
            required_schemes: self.required_schemes.clone(),
            skip_acl: self.skip_acl,
        })
    }

    /// The file with the key of this server's principal, if one is named.
    ///
    /// # Errors
    /// If the JAAS file can't be read.
    pub fn keytab(&self) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.kerberos_with(self.jaas()?).and_then(|config| config.keytab))
    }

    fn jaas(&self) -> Result<Jaas, ConfigError> {
        self.sasl_users_file.as_deref().map_or_else(|| Ok(Jaas::default()), read_jaas)
    }

    /// Kerberos's keys, and what only the JAAS file says.
    fn kerberos_with(&self, jaas: Jaas) -> Option<KerberosConfig> {
        match (self.kerberos.clone(), jaas.kerberos) {
            (Some(own), Some(file)) => Some(KerberosConfig {
                principal: own.principal.or(file.principal),
                keytab: own.keytab.or(file.keytab),
                ..own
            }),
            (own, file) => own.or(file),
        }
    }
}

#[cfg(feature = "kerberos")]
fn accept(config: &KerberosConfig) -> Result<Kerberos, ConfigError> {
    let Some(principal) = &config.principal else {
        return invalid(
            "client.authentication.kerberos.principal",
            "is missing: it is the service that clients ask for, as zookeeper/host@REALM; without it remove all of kerberos",
        );
    };
    Kerberos::accept(principal, config.remove_host, config.remove_realm).or_else(|error| {
        let keytab = config.keytab.as_deref().unwrap_or(Path::new("the default keytab"));
        invalid(
            "client.authentication.kerberos",
            format!("{principal} can't be had from {}: {error}; `klist -k` lists a keytab", keytab.display()),
        )
    })
}

#[cfg(not(feature = "kerberos"))]
fn accept(_: &KerberosConfig) -> Result<Kerberos, ConfigError> {
    invalid(
        "client.authentication.kerberos",
        "this build does not speak Kerberos: build with `cargo build --release --features kerberos`, or remove the \
         keys (in a zoo.cfg those with kerberos, and Krb5LoginModule in its JAAS file)",
    )
}

/// What the section `Server` of a JAAS file says.
#[derive(Debug, Default, PartialEq)]
struct Jaas {
    users: BTreeMap<String, String>,
    kerberos: Option<KerberosConfig>,
}

fn read_jaas(file: &Path) -> Result<Jaas, ConfigError> {
    const KEY: &str = "client.authentication.sasl_users_file";
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return invalid(KEY, format!("cannot read {}: {error}", file.display())),
    };
    let section = text.split('}').find_map(|section| {
        let (name, content) = section.split_once('{')?;
        (name.split_whitespace().last() == Some("Server")).then_some(content)
    });
    let Some(section) = section else {
        return invalid(KEY, format!("{} has no section Server {{ ... }};", file.display()));
    };
    let mut users = BTreeMap::new();
    for user in jaas_keys(section, "user_") {
        let parsed = user.split_once('=').and_then(|(name, rest)| {
            let value = rest.trim_start().strip_prefix('"')?;
            let name = Some(name.trim()).filter(|name| !name.contains(char::is_whitespace))?;
            Some((name.to_string(), value.split_once('"')?.0.to_string()))
        });
        match parsed {
            Some((name, password)) => users.insert(name, password),
            None => {
                return invalid(KEY, format!("{}: write users as user_name=\"password\"", file.display()));
            }
        };
    }
    let kerberos = section.contains("Krb5LoginModule").then(|| KerberosConfig {
        principal: jaas_value(section, "principal").map(String::from),
        keytab: jaas_value(section, "keyTab").map(PathBuf::from),
        ..KerberosConfig::default()
    });
    Ok(Jaas { users, kerberos })
}

/// The value of `key="value"`.
fn jaas_value<'a>(section: &'a str, key: &'a str) -> Option<&'a str> {
    jaas_keys(section, key).find_map(|rest| {
        let value = rest.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?;
        Some(value.split_once('"')?.0)
    })
}

/// What follows each key that begins so.
fn jaas_keys<'a>(section: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let found = section.match_indices(start);
    let begins = |at: usize| section[..at].chars().next_back().is_none_or(char::is_whitespace);
    found.filter(move |(at, _)| begins(*at)).map(|(at, _)| &section[at + start.len()..])
}

/// TLS for clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The address that speaks TLS alone.
    #[serde(default)]
    pub listen: Option<String>,
    /// Whether `client.listen` speaks TLS as well.
    #[serde(default)]
    pub port_unification: bool,
    /// The server's certificate, followed by those up to its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM; may be the same file.
    pub key: PathBuf,
    /// The authorities that vouch for clients, PEM.
    #[serde(default)]
    pub authorities: Option<PathBuf>,
    /// Whether clients show certificates; `need` if `authorities` is set, else `none`.
    #[serde(default)]
    pub client_certificates: Option<ClientCertificates>,
    /// Handshakes that take longer are ended.
    #[serde(default = "default_handshake_timeout_ms")]
    pub handshake_timeout_ms: u64,
}

fn default_handshake_timeout_ms() -> u64 {
    10_000
}

impl TlsConfig {
    /// The same for the server.
    pub fn options(&self) -> TlsOptions {
        let by_authorities =
            if self.authorities.is_some() { ClientCertificates::Need } else { ClientCertificates::None };
        TlsOptions {
            listen: self.listen.clone(),
            port_unification: self.port_unification,
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.authorities.clone(),
            client_certificates: self.client_certificates.unwrap_or(by_authorities),
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_the_service_are_read_from_a_jaas_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("jaas.conf");
        let text = "Client { x required username=\"no\"; };\n\
            Server {\n  org.apache.zookeeper.server.auth.DigestLoginModule required\n    user_a=\"b c\"\n    user_d = \"e\";\n};\n";
        std::fs::write(&file, text).unwrap();
        let config = AuthenticationConfig {
            sasl_users: [("f".into(), "g".into())].into(),
            sasl_users_file: Some(file.clone()),
            ..AuthenticationConfig::default()
        };
        let users: Vec<_> = config.authentication().unwrap().sasl_users.into_iter().collect();
        let pair = |user: &str, password: &str| (user.to_string(), password.to_string());
        assert_eq!(users, [pair("a", "b c"), pair("d", "e"), pair("f", "g")]);
        let kerberos = "Server {\n com.sun.security.auth.module.Krb5LoginModule required\n debug=true useKeyTab=true\n \
            keyTab=\"/user_a/zk.keytab\" storeKey=true\n principal = \"zookeeper/a@B\";\n};";
        std::fs::write(&file, kerberos).unwrap();
        let kerberos = Some(KerberosConfig {
            keytab: Some("/own".into()),
            remove_host: true,
            ..KerberosConfig::default()
        });
        for (own, keytab, remove_host) in [(None, "/user_a/zk.keytab", false), (kerberos, "/own", true)] {
            let config = AuthenticationConfig { kerberos: own, ..config.clone() };
            let read = config.kerberos_with(config.jaas().unwrap()).unwrap();
            assert_eq!(read.principal.as_deref(), Some("zookeeper/a@B"));
            assert_eq!((read.keytab, read.remove_host), (Some(keytab.into()), remove_host));
        }
        for (bad, advice) in [("Client { };", "no section Server"), ("Server { user_x; };", "user_name=")] {
            std::fs::write(&file, bad).unwrap();
            let error = config.authentication().err().unwrap().to_string();
            assert!(error.contains(advice), "{error}");
        }
    }

    #[test]
    #[cfg(not(feature = "kerberos"))]
    fn a_build_without_kerberos_says_what_to_do() {
        let kerberos = Some(KerberosConfig::default());
        let config = AuthenticationConfig { kerberos, ..AuthenticationConfig::default() };
        let error = config.authentication().err().unwrap().to_string();
        assert!(error.contains("--features kerberos"), "{error}");
    }

    #[test]
    fn sasl_can_be_required_only_if_there_are_users() {
        let required_schemes = ["sasl".to_string()].into();
        let config = AuthenticationConfig { required_schemes, ..AuthenticationConfig::default() };
        let error = config.authentication().err().unwrap().to_string();
        assert!(error.contains("sasl_users"), "{error}");
    }
}
