//! Configuration of how clients prove who they are, and of TLS for clients.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, invalid};
use crate::server::{Authentication, ClientCertificates, TlsOptions};

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthenticationConfig {
    /// Whether clients may use the scheme `digest`.
    pub digest: bool,
    /// `user:base64(sha1(user:password))` of who may do everything.
    pub super_digest: Option<String>,
    /// Users of SASL DIGEST-MD5 with their passwords. Without any SASL is off.
    pub sasl_users: BTreeMap<String, String>,
    /// A JAAS file, as ZooKeeper has it, whose section `Server` has further users: `user_name="password"`.
    pub sasl_users_file: Option<PathBuf>,
    /// The user of SASL who may do everything.
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
            sasl_super: None,
            sasl_supers: BTreeMap::new(),
            x509_super: None,
            ensemble_names: BTreeSet::new(),
            required_schemes: BTreeSet::new(),
            skip_acl: false,
        }
    }
}

impl AuthenticationConfig {
    /// The same for the server.
    ///
    /// # Errors
    /// If the file of users can't be read, or what is required can't be proved.
    pub fn authentication(&self) -> Result<Authentication, ConfigError> {
        let mut sasl_users = self.sasl_users.clone();
        if let Some(file) = &self.sasl_users_file {
            sasl_users.extend(read_users(file)?);
        }
        if self.required_schemes.contains("sasl") && sasl_users.is_empty() {
            return invalid(
                "client.authentication.required_schemes",
                "has sasl, but there are no users: set client.authentication.sasl_users or sasl_users_file",
            );
        }
        Ok(Authentication {
            super_digest: self.super_digest.clone(),
            digest_off: !self.digest,
            sasl_users,
            sasl_supers: self.sasl_super.iter().chain(self.sasl_supers.values()).cloned().collect(),
            x509_super: self.x509_super.clone(),
            ensemble_names: self.ensemble_names.clone(),
            required_schemes: self.required_schemes.clone(),
            skip_acl: self.skip_acl,
        })
    }
}

/// The users in the section `Server` of a JAAS file.
fn read_users(file: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
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
    for user in section.split("user_").skip(1) {
        let parsed = user.split_once('=').and_then(|(name, rest)| {
            let value = rest.trim_start().strip_prefix('"')?;
            Some((name.trim().to_string(), value.split_once('"')?.0.to_string()))
        });
        match parsed {
            Some((name, password)) => users.insert(name, password),
            None => {
                return invalid(KEY, format!("{}: write users as user_name=\"password\"", file.display()));
            }
        };
    }
    Ok(users)
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
    fn users_are_read_from_a_jaas_file() {
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
        for (bad, advice) in [("Client { };", "no section Server"), ("Server { user_x; };", "user_name=")] {
            std::fs::write(&file, bad).unwrap();
            let error = config.authentication().err().unwrap().to_string();
            assert!(error.contains(advice), "{error}");
        }
    }

    #[test]
    fn sasl_can_be_required_only_if_there_are_users() {
        let required_schemes = ["sasl".to_string()].into();
        let config = AuthenticationConfig { required_schemes, ..AuthenticationConfig::default() };
        let error = config.authentication().err().unwrap().to_string();
        assert!(error.contains("sasl_users"), "{error}");
    }
}
