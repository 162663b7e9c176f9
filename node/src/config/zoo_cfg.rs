//! Reads ZooKeeper's `zoo.cfg` as a configuration of this server.
//!
//! Each of ZooKeeper's keys is translated, has no effect here (and the log says why), or is refused with
//! what to do instead. Keys that start with `meridian.` are this server's own: `meridian.region=eu` is
//! `region = "eu"`. A key may be written with or without the prefix `zookeeper.` that it has as a Java
//! system property.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use serde_json::json;

use super::{ConfigError, invalid};
use crate::txn::ensemble::{Member, Role};

/// A `zoo.cfg` in this server's own terms.
#[derive(Debug)]
pub(super) struct ZooCfg {
    name: String,
    values: serde_json::Value,
    /// What the log should tell about keys that have no effect.
    pub(super) notices: Vec<String>,
}

impl Provider for ZooCfg {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let value = Value::serialize(&self.values)?;
        let dict = value.into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// Whether a file is one: anything that is not TOML by its name.
pub(super) fn is_zoo_cfg(file: &Path) -> bool {
    file.extension().is_none_or(|extension| extension != "toml")
}

/// The error of a `zoo.cfg` that leaves open where the data is.
pub(super) fn without_data_dir<T>() -> Result<T, ConfigError> {
    invalid("dataDir", "is missing: it says where the data and the file myid are")
}

/// What becomes of one of ZooKeeper's keys.
enum Treatment {
    /// It is this key here, of this kind.
    Is(&'static str, Kind),
    /// It has no effect, and needs none: for this reason.
    NoEffect(&'static str),
    /// As [`Treatment::NoEffect`], and nothing that the log need mention.
    Silent,
    /// It is refused unless it has this value: what to do instead.
    Only(&'static str, &'static str),
    /// It is read together with others.
    Apart,
}

/// How a value is written.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Share,
    Boolean,
    Text,
    Words,
}

/// ZooKeeper's keys, without the prefix `zookeeper.`, in the order of its documentation.
const KEYS: &[(&str, Treatment)] = {
    use Kind::{Boolean, Number, Share, Text, Words};
    use Treatment::{Apart, Is, NoEffect, Only, Silent};
    const ENGINE: &str = "batches, queues and threads of this server need no setting";
    const TLS_QUORUM: &str =
        "servers talk TLS when meridian.security.certificate, .key and .authority are set";
    const TLS_VERSIONS: &str = "clients are served over TLS 1.2 and 1.3 with the suites that are safe today";
    &[
        ("clientPort", Apart),
        ("clientPortAddress", Apart),
        ("dataDir", Is("data_dir", Text)),
        ("dataLogDir", Is("storage.log_dir", Text)),
        ("tickTime", Is("tick_ms", Number)),
        ("initLimit", Silent),
        ("syncLimit", Silent),
        ("electionAlg", Silent),
        ("cnxTimeout", Silent),
        ("quorumCnxnTimeoutMs", Silent),
        ("maxTimeToWaitForEpoch", Silent),
        ("connectToLearnerMasterLimit", Silent),
        ("fastleader.minNotificationInterval", Silent),
        ("fastleader.maxNotificationInterval", Silent),
        ("electionPortBindRetry", Silent),
        ("observer.reconnectDelayMs", Silent),
        ("observer.election.DelayMs", Silent),
        ("observerMasterPort", NoEffect("observers learn from the leader")),
        ("maxCnxns", Is("client.connections_max", Number)),
        ("maxClientCnxns", Is("client.connections_per_address_max", Number)),
        ("minSessionTimeout", Is("client.session_timeout_min_ms", Number)),
        ("maxSessionTimeout", Is("client.session_timeout_max_ms", Number)),
        ("jute.maxbuffer", Is("client.frame_bytes_max", Number)),
        ("jute.maxbuffer.extrasize", Silent),
        ("4lw.commands.whitelist", Is("client.four_letter_words", Words)),
        ("reconfigEnabled", Is("client.reconfig", Boolean)),
        ("standaloneEnabled", Silent),
        ("extendedTypesEnabled", Is("client.extended_types", Boolean)),
        ("emulate353TTLNodes", Silent),
        ("enforceQuota", Is("client.enforce_quota", Boolean)),
        ("znode.container.checkIntervalMs", Is("client.containers.check_interval_ms", Number)),
        ("znode.container.maxPerMinute", Is("client.containers.per_minute_max", Number)),
        ("znode.container.maxNeverUsedIntervalMs", Is("client.containers.never_used_ms", Number)),
        ("peerType", Apart),
        ("dynamicConfigFile", Apart),
        ("quorumListenOnAllIPs", Apart),
        ("snapCount", Is("storage.entries_per_snapshot", Number)),
        ("preAllocSize", Silent),
        ("commitLogCount", Silent),
        ("snapSizeLimitInKb", Is("storage.log_kb_per_snapshot", Number)),
        ("txnLogSizeLimitInKb", Silent),
        (
            "autopurge.snapRetainCount",
            NoEffect("old snapshots and logs are always removed; two snapshots are kept"),
        ),
        ("autopurge.purgeInterval", Silent),
        ("forceSync", Only("yes", "an acknowledged write is always on disk; remove the key")),
        ("syncEnabled", Silent),
        ("leaderServes", Only("yes", "the leader always serves clients; remove the key")),
        ("admin.enableServer", Apart),
        ("admin.serverAddress", Apart),
        ("admin.serverPort", Apart),
        ("admin.commandURL", Only("/commands", "the commands are under /commands")),
        ("admin.idleTimeout", Silent),
        ("admin.rateLimiterIntervalInMS", Silent),
        ("admin.forceHttps", Only("false", "the admin port speaks HTTP: bind it to a loopback address")),
        ("admin.portUnification", Only("false", "the admin port speaks HTTP: bind it to a loopback address")),
        ("admin.needClientAuth", Silent),
        ("metricsProvider.className", Apart),
        ("metricsProvider.httpHost", Apart),
        ("metricsProvider.httpPort", Apart),
        ("metricsProvider.exportJvmInfo", Silent),
        ("serverCnxnFactory", Silent),
        ("clientPortListenBacklog", Silent),
        ("tcpKeepAlive", Silent),
        ("clientTcpKeepAlive", Silent),
        ("watchManagerName", Silent),
        ("watcherCleanThreadsNum", Silent),
        ("watcherCleanThreshold", Silent),
        ("watcherCleanIntervalInSeconds", Silent),
        ("maxInProcessingDeadWatchers", Silent),
        ("bitHashCacheSize", Silent),
        ("flushDelay", NoEffect(ENGINE)),
        ("maxWriteQueuePollTime", NoEffect(ENGINE)),
        ("maxBatchSize", NoEffect(ENGINE)),
        ("nio.numSelectorThreads", Silent),
        ("nio.numWorkerThreads", Silent),
        ("commitProcessor.numWorkerThreads", Silent),
        ("commitProcessor.maxReadBatchSize", Silent),
        ("commitProcessor.maxCommitBatchSize", Silent),
        ("maxResponseCacheSize", Silent),
        ("maxGetChildrenResponseCacheSize", Silent),
        ("maxConcurrentSnapSyncs", Silent),
        ("maxConcurrentDiffSyncs", Silent),
        ("digest.enabled", Silent),
        ("snapshot.compression.method", NoEffect("snapshots have a format of their own")),
        ("snapshot.trust.empty", Silent),
        ("serializeLastProcessedZxid.enabled", Silent),
        ("fsync.warningthresholdms", Silent),
        ("learner.closeSocketAsync", Silent),
        ("leader.closeSocketAsync", Silent),
        ("learner.asyncSending", Silent),
        ("forwardlearnerrequeststocommitprocessordisabled", Silent),
        ("follower.skipLearnerRequestToNextProcessor", Silent),
        ("messageTracker.BufferSize", Silent),
        ("messageTracker.Enabled", Silent),
        ("request_throttler.shutdownTimeout", Silent),
        ("multiAddress.enabled", NoEffect("of several addresses of a server the first is used")),
        ("multiAddress.reachabilityCheckTimeoutMs", Silent),
        ("multiAddress.reachabilityCheckEnabled", Silent),
        ("fips-mode", Silent),
        ("audit.enable", Only("false", "there is no audit log yet: remove the key if that will do")),
        ("audit.impl.class", Silent),
        ("sslQuorum", Only("false", TLS_QUORUM)),
        ("sslQuorumReloadCertFiles", Silent),
        ("quorum.auth.enableSasl", Only("false", TLS_QUORUM)),
        ("secureClientPort", Apart),
        ("secureClientPortAddress", Apart),
        ("client.portUnification", Is("client.tls.port_unification", Boolean)),
        ("client.certReload", Silent),
        ("ssl.keyStore.location", Apart),
        ("ssl.keyStore.type", Apart),
        ("ssl.keyStore.password", Silent),
        ("ssl.keyStore.passwordPath", Silent),
        ("ssl.trustStore.location", Apart),
        ("ssl.trustStore.type", Apart),
        ("ssl.trustStore.password", Silent),
        ("ssl.trustStore.passwordPath", Silent),
        ("ssl.clientAuth", Apart),
        ("ssl.protocol", NoEffect(TLS_VERSIONS)),
        ("ssl.enabledProtocols", NoEffect(TLS_VERSIONS)),
        ("ssl.ciphersuites", NoEffect(TLS_VERSIONS)),
        ("ssl.context.supplier.class", NoEffect("Java classes are not loaded")),
        ("ssl.hostnameVerification", Silent),
        (
            "ssl.clientHostnameVerification",
            Only("false", "clients are known by their certificates, not their hosts"),
        ),
        ("ssl.allowReverseDnsLookup", Silent),
        ("ssl.crl", Only("false", "revocation lists are not read: issue short-lived certificates")),
        ("ssl.ocsp", Only("false", "revocation is not asked about: issue short-lived certificates")),
        ("ssl.handshakeDetectionTimeoutMillis", Is("client.tls.handshake_timeout_ms", Number)),
        ("ssl.sslProvider", Silent),
        ("ssl.authProvider", Only("x509", "clients' certificates are identities of the scheme x509")),
        ("outstandingHandshake.limit", NoEffect("handshakes under way are always bounded")),
        ("netty.server.earlyDropSecureConnectionHandshakes", Silent),
        ("DigestAuthenticationProvider.superDigest", Is("client.authentication.super_digest", Text)),
        ("DigestAuthenticationProvider.enabled", Is("client.authentication.digest", Boolean)),
        (
            "DigestAuthenticationProvider.digestAlg",
            Only("SHA1", "digests are made with SHA1: remove the key"),
        ),
        ("IPAuthenticationProvider.usexforwardedfor", Silent),
        ("X509AuthenticationProvider.superUser", Is("client.authentication.x509_super", Text)),
        ("superUser", Is("client.authentication.sasl_super", Text)),
        ("letAnySaslUserDoX", NoEffect("an ACL of the scheme sasl names one user")),
        ("ensembleAuthName", Is("client.authentication.ensemble_names", Words)),
        ("skipACL", Is("client.authentication.skip_acl", Boolean)),
        ("java.security.auth.login.config", Is("client.authentication.sasl_users_file", Text)),
        ("kerberos.removeHostFromPrincipal", Is("client.authentication.kerberos.remove_host", Boolean)),
        ("kerberos.removeRealmFromPrincipal", Is("client.authentication.kerberos.remove_realm", Boolean)),
        (
            "security.auth_to_local",
            Only("DEFAULT", "principals are shortened by the keys kerberos.remove... alone"),
        ),
        ("kerberos.canonicalizeHostNames", Silent),
        ("requireKerberosConfig", Silent),
        ("readonlymode.enabled", Is("client.read_only_mode", Boolean)),
        ("localSessionsEnabled", Apart),
        ("localSessionsUpgradingEnabled", Apart),
        ("globalOutstandingLimit", Is("client.outstanding_max", Number)),
        ("requestThrottleLimit", Apart),
        ("requestThrottleStallTime", Silent),
        ("requestThrottleDropStale", Silent),
        ("requestStaleLatencyCheck", Silent),
        ("requestStaleConnectionCheck", Silent),
        ("throttledOpWaitTime", Is("client.throttled_wait_ms", Number)),
        ("advancedFlowControlEnabled", Silent),
        ("enableEagerACLCheck", Silent),
        ("largeRequestMaxBytes", Silent),
        ("largeRequestThreshold", NoEffect("jute.maxbuffer bounds every request")),
        ("connectionMaxTokens", Is("client.throttle.tokens_max", Number)),
        ("connectionTokenFillTime", Is("client.throttle.fill_interval_ms", Number)),
        ("connectionTokenFillCount", Is("client.throttle.fill_tokens", Number)),
        ("connectionFreezeTime", Is("client.throttle.freeze_ms", Number)),
        ("connectionDropIncrease", Is("client.throttle.drop_increase", Share)),
        ("connectionDropDecrease", Is("client.throttle.drop_decrease", Share)),
        ("connectionDecreaseRatio", Is("client.throttle.decrease_ratio", Share)),
        ("connection_throttle_weight_enabled", Apart),
        ("connection_throttle_global_session_weight", Apart),
        ("connection_throttle_local_session_weight", Apart),
        ("connection_throttle_renew_session_weight", Apart),
        ("sessionRequireClientSASLAuth", Apart),
        ("allowSaslFailedClients", Only("false", "clients that fail to prove themselves are disconnected")),
        ("enforce.auth.enabled", Apart),
        ("enforce.auth.schemes", Apart),
    ]
};

/// Parts of a key of our own at most; none that there is has as many.
const KEY_PARTS_MAX: usize = 8;

/// Where clients connect unless it is said: every address of this server, of IPv4 and IPv6.
const ANY_HOST: &str = "[::]";

/// Where an ensemble on its own gets its region's name from, unless `meridian.region` says so.
const REGION: &str = "zookeeper";

/// Reads a `zoo.cfg`, with the files that it names (`myid`, the dynamic configuration).
///
/// # Errors
/// If a file can't be read, a line makes no sense or a key is refused; the message says which and what to do.
pub(super) fn read(file: &Path) -> Result<ZooCfg, ConfigError> {
    let text = read_file(file)?;
    let mut lines = properties(&text);
    if let Some(dynamic) = lines.get("dynamicConfigFile").map(PathBuf::from) {
        // What the static file says wins only where the dynamic one says nothing.
        for (key, value) in properties(&read_file(&dynamic)?) {
            lines.insert(key, value);
        }
    }
    let mut translation = Translation { lines, values: json!({}), notices: Vec::new() };
    translation.translate()?;
    let Translation { values, notices, .. } = translation;
    Ok(ZooCfg { name: file.display().to_string(), values, notices })
}

fn read_file(file: &Path) -> Result<String, ConfigError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text),
        Err(error) => invalid("--config", format!("cannot read {}: {error}", file.display())),
    }
}

/// The lines of a Java properties file: `key=value`, `#` and `!` for comments, a backslash at the end to go on.
fn properties(text: &str) -> BTreeMap<String, String> {
    let mut whole = String::new();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        if whole.is_empty() && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        if let Some(begun) = line.strip_suffix('\\') {
            whole.push_str(begun);
            continue;
        }
        whole.push_str(line);
        let (key, value) = whole.split_once(['=', ':']).unwrap_or((&whole, ""));
        let key = key.trim();
        found.insert(key.strip_prefix("zookeeper.").unwrap_or(key).to_string(), value.trim().to_string());
        whole.clear();
    }
    found
}

struct Translation {
    lines: BTreeMap<String, String>,
    values: serde_json::Value,
    notices: Vec<String>,
}

impl Translation {
    fn translate(&mut self) -> Result<(), ConfigError> {
        self.set("region", json!(REGION))?;
        // ZooKeeper's defaults where ours differ.
        self.set("client.four_letter_words", json!(["srvr"]))?;
        for (key, value) in self.lines.clone() {
            self.key(&key, &value)?;
        }
        self.servers()?;
        self.tls()?;
        self.required_schemes()?;
        self.sessions()?;
        self.admin()?;
        self.metrics()
    }

    fn key(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        if let Some(own) = key.strip_prefix("meridian.") {
            let parsed = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            self.set(own, parsed)?;
            return Ok(());
        }
        // The providers of authentication are all built in.
        if key.starts_with("server.") || key == "authProvider" || key.starts_with("authProvider.") {
            return Ok(());
        }
        if let Some(name) = key.strip_prefix("superUser.") {
            // A name may have dots, which would make it a table here.
            return self
                .set(&format!("client.authentication.sasl_supers.{}", name.replace('.', "_")), json!(value));
        }
        if key.starts_with("group.") || key.starts_with("weight.") {
            return invalid(
                key,
                "groups and weights of voters are not supported: make each group a region of a mesh \
                 (`meridian plan` compares the layouts), or remove the lines for a plain majority",
            );
        }
        match KEYS.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)) {
            Some((_, Treatment::Is(own, kind))) => {
                if let Some(value) = typed(key, value, *kind)? {
                    self.set(own, value)?;
                }
            }
            Some((_, Treatment::NoEffect(reason))) => {
                self.notices.push(format!("{key} has no effect: {reason}"))
            }
            Some((_, Treatment::Only(allowed, advice))) if !value.eq_ignore_ascii_case(allowed) => {
                return invalid(key, format!("'{value}' is not supported: {advice}"));
            }
            Some(_) => {}
            None => self.notices.push(unknown(key)),
        }
        Ok(())
    }

    /// Sets one of our own keys; what stands above it must not have a value itself.
    fn set(&mut self, key: &str, value: serde_json::Value) -> Result<(), ConfigError> {
        if key.split('.').count() > KEY_PARTS_MAX {
            return invalid("meridian.", format!("a key has more than {KEY_PARTS_MAX} parts"));
        }
        let mut place = &mut self.values;
        for part in key.split('.') {
            if !place.is_object() && !place.is_null() {
                return invalid(
                    &format!("meridian.{key}"),
                    "is within a key that has a value: remove one of them",
                );
            }
            place = &mut place[part];
        }
        *place = value;
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.lines.get(key).map(String::as_str)
    }

    fn is(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The servers of the ensemble, this one's number, and where it listens for clients.
    fn servers(&mut self) -> Result<(), ConfigError> {
        let mut members = BTreeMap::new();
        for (key, value) in &self.lines {
            let Some(number) = key.strip_prefix("server.") else { continue };
            let Ok(number) = number.parse::<u8>() else {
                return invalid(key, "servers have numbers from 0 to 255 here; number them anew");
            };
            match value.parse::<Member>() {
                Ok(member) => members.insert(number, member),
                Err(reason) => return invalid(key, reason),
            };
        }
        let alone = members.is_empty();
        if alone {
            members.insert(1, Member::new(Role::Voter, "127.0.0.1:0".into(), None));
        }
        let number = if alone { 1 } else { self.my_id(&members)? };
        self.set("server", json!(number))?;
        let Some(me) = members.get_mut(&number) else {
            let numbers: Vec<String> = members.keys().map(|number| format!("server.{number}")).collect();
            let reason = format!("holds {number}, but the servers here are {}", numbers.join(", "));
            return invalid("myid", reason);
        };
        if let Some(kind) = self.lines.get("peerType") {
            let declared = if kind == "observer" { Role::Observer } else { Role::Voter };
            if declared != me.role && !alone {
                self.notices
                    .push(format!("peerType is {kind}, but server.{number} says otherwise, which counts"));
            }
        }
        let client = self.client_address(me.client.as_deref())?;
        let all_addresses = self.is("quorumListenOnAllIPs");
        let listen = me.address.rsplit_once(':').map(|(_, port)| format!("0.0.0.0:{port}"));
        // An empty one is none: TLS alone.
        self.set("client.listen", json!(client.unwrap_or_default()))?;
        if let Some(listen) = listen.filter(|_| all_addresses) {
            self.set("listen", json!(listen))?;
        }
        let entries: Vec<_> = members
            .iter()
            .map(|(number, member)| {
                json!({
                    "number": number, "address": member.address, "role": member.role,
                    "client": member.client, "election_port": member.election_port,
                })
            })
            .collect();
        self.set("servers", json!(entries))?;
        Ok(())
    }

    fn my_id(&self, members: &BTreeMap<u8, Member>) -> Result<u8, ConfigError> {
        let Some(directory) = self.get("dataDir") else {
            return without_data_dir();
        };
        let file = Path::new(directory).join("myid");
        let Ok(text) = std::fs::read_to_string(&file) else {
            let numbers: Vec<String> = members.keys().map(u8::to_string).collect();
            let reason = format!(
                "cannot read {}: write this server's number ({}) into it",
                file.display(),
                numbers.join(" or ")
            );
            return invalid("myid", reason);
        };
        match text.trim().parse() {
            Ok(number) => Ok(number),
            Err(_) => invalid(
                "myid",
                format!("{} holds '{}', which is no number from 0 to 255", file.display(), text.trim()),
            ),
        }
    }

    /// Where this server listens for clients: `clientPort`, or what `server.N` says behind its semicolon.
    fn client_address(&self, of_member: Option<&str>) -> Result<Option<String>, ConfigError> {
        let port = self.get("clientPort").map(|port| match port.parse::<u16>() {
            Ok(port) => Ok(port),
            Err(_) => invalid("clientPort", format!("'{port}' is no port")),
        });
        let host = self.get("clientPortAddress").unwrap_or(ANY_HOST);
        match (port.transpose()?, of_member) {
            (Some(port), Some(of_member)) if !of_member.ends_with(&format!(":{port}")) => invalid(
                "clientPort",
                format!("is {port}, but the line of this server says {of_member}: keep one of them"),
            ),
            (Some(port), _) => Ok(Some(at_port(host, port))),
            (None, Some(of_member)) => Ok(Some(match of_member.strip_prefix("0.0.0.0:") {
                Some(port) => format!("{ANY_HOST}:{port}"),
                None => of_member.to_string(),
            })),
            (None, None) if self.lines.contains_key("secureClientPort") => Ok(None),
            (None, None) => {
                invalid("clientPort", "is missing: say where clients connect, as clientPort=2181")
            }
        }
    }

    /// The stores of keys and of trusted certificates, which must be PEM.
    fn tls(&mut self) -> Result<(), ConfigError> {
        let wanted = self.lines.contains_key("secureClientPort") || self.is("client.portUnification");
        if !wanted {
            // What is set has no effect in ZooKeeper either.
            if let Some(client) = self.values.get_mut("client").and_then(|client| client.as_object_mut()) {
                client.remove("tls");
            }
            return Ok(());
        }
        let Some(keys) = self.pem("ssl.keyStore")? else {
            return invalid(
                "ssl.keyStore.location",
                "is missing: clients over TLS need a certificate to trust",
            );
        };
        self.set("client.tls.certificate", json!(keys))?;
        self.set("client.tls.key", json!(keys))?;
        let authorities = self.pem("ssl.trustStore")?;
        let asked = self.get("ssl.clientAuth").unwrap_or("need").to_ascii_lowercase();
        if authorities.is_none() && asked != "none" {
            let reason = "is missing: clients show certificates unless ssl.clientAuth=none";
            return invalid("ssl.trustStore.location", reason);
        }
        self.set("client.tls.authorities", json!(authorities))?;
        self.set("client.tls.client_certificates", json!(asked))?;
        if let Some(port) = self.get("secureClientPort") {
            let host = self.get("secureClientPortAddress").or_else(|| self.get("clientPortAddress"));
            self.set("client.tls.listen", json!(at_port(host.unwrap_or(ANY_HOST), port)))?;
        }
        Ok(())
    }

    /// The file of a store.
    fn pem(&self, store: &str) -> Result<Option<String>, ConfigError> {
        let key = format!("{store}.location");
        let Some(file) = self.get(&key) else { return Ok(None) };
        let declared = self.get(&format!("{store}.type")).map(str::to_ascii_lowercase);
        let is_pem = match declared {
            Some(declared) => declared == "pem",
            None => file.to_ascii_lowercase().ends_with(".pem"),
        };
        if !is_pem {
            let reason = format!(
                "{file} is not PEM: convert it with `keytool -importkeystore -srckeystore {file} -destkeystore x.p12 \
                 -deststoretype PKCS12` and `openssl pkcs12 -in x.p12 -nodes -out x.pem`, and name the new file"
            );
            return invalid(&key, reason);
        }
        Ok(Some(file.to_string()))
    }

    /// Local sessions, and what may be under way.
    fn sessions(&mut self) -> Result<(), ConfigError> {
        let mode = match (self.is("localSessionsEnabled"), self.is("localSessionsUpgradingEnabled")) {
            (false, _) => "off",
            (true, _) if self.is_standalone() => {
                // A restart must not end them.
                self.notices.push("localSessionsEnabled has no effect for a server on its own".into());
                "off"
            }
            (true, false) => "only",
            (true, true) => "upgrading",
        };
        self.set("client.local_sessions", json!(mode))?;
        if let Some(limit) = self.get("requestThrottleLimit").filter(|limit| *limit != "0") {
            let limit = typed("requestThrottleLimit", limit, Kind::Number)?;
            if limit.is_some() && !self.lines.contains_key("globalOutstandingLimit") {
                self.set("client.outstanding_max", json!(limit))?;
            }
        }
        if self.is("connection_throttle_weight_enabled") {
            for (session, own, default) in [
                ("global", "global_session", "3"),
                ("local", "local_session", "1"),
                ("renew", "renewal", "2"),
            ] {
                let key = format!("connection_throttle_{session}_session_weight");
                if let Some(weight) = typed(&key, self.get(&key).unwrap_or(default), Kind::Number)? {
                    self.set(&format!("client.throttle.{own}_weight"), weight)?;
                }
            }
        }
        Ok(())
    }

    /// Whether ZooKeeper would run without a quorum.
    fn is_standalone(&self) -> bool {
        let servers = self.lines.keys().filter(|key| key.starts_with("server.")).count();
        servers == 0 || servers == 1 && self.get("standaloneEnabled") != Some("false")
    }

    /// What a client must have proved.
    fn required_schemes(&mut self) -> Result<(), ConfigError> {
        let mut schemes: Vec<String> = Vec::new();
        if self.is("enforce.auth.enabled") {
            let listed = self.get("enforce.auth.schemes").unwrap_or("sasl");
            schemes.extend(listed.split(',').map(|scheme| scheme.trim().to_string()));
        }
        if self.is("sessionRequireClientSASLAuth") {
            schemes.push("sasl".into());
        }
        if !schemes.is_empty() {
            self.set("client.authentication.required_schemes", json!(schemes))?;
        }
        Ok(())
    }

    fn admin(&mut self) -> Result<(), ConfigError> {
        let off = self.get("admin.enableServer").is_some_and(|value| value.eq_ignore_ascii_case("false"));
        let port = self.get("admin.serverPort").unwrap_or("8080");
        // What can change the members is not opened to the world unless somebody says so.
        let host = self.get("admin.serverAddress").unwrap_or("127.0.0.1");
        let optional = !self.lines.contains_key("admin.serverPort");
        let listen = if off { json!(null) } else { json!(format!("{host}:{port}")) };
        self.set("admin.listen", listen)?;
        // Several servers on one machine: only the first gets ZooKeeper's default port.
        self.set("admin.optional", json!(optional))?;
        Ok(())
    }

    fn metrics(&mut self) -> Result<(), ConfigError> {
        let Some(provider) = self.get("metricsProvider.className") else { return Ok(()) };
        if !provider.ends_with("PrometheusMetricsProvider") {
            return Ok(());
        }
        let host = self.get("metricsProvider.httpHost").unwrap_or("0.0.0.0");
        let port = self.get("metricsProvider.httpPort").unwrap_or("7000");
        let listen = json!(format!("{host}:{port}"));
        self.set("admin.metrics_listen", listen)?;
        Ok(())
    }
}

fn typed(key: &str, value: &str, kind: Kind) -> Result<Option<serde_json::Value>, ConfigError> {
    match kind {
        Kind::Text => Ok(Some(json!(value))),
        Kind::Words => Ok(Some(json!(value.split(',').map(str::trim).collect::<Vec<_>>()))),
        Kind::Number => match value.parse::<i64>() {
            // ZooKeeper's word for "as by default".
            Ok(-1) => Ok(None),
            Ok(number) => Ok(Some(json!(number))),
            Err(_) => invalid(key, format!("'{value}' is no number")),
        },
        Kind::Share => match value.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Some(json!(share))),
            _ => invalid(key, format!("'{value}' is no share from 0 to 1")),
        },
        Kind::Boolean => match value.to_ascii_lowercase().as_str() {
            "true" | "yes" => Ok(Some(json!(true))),
            "false" | "no" => Ok(Some(json!(false))),
            _ => invalid(key, format!("'{value}' is neither true nor false")),
        },
    }
}

/// Java takes a literal address of IPv6 without brackets as well.
fn at_port(host: &str, port: impl std::fmt::Display) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// ZooKeeper takes any key for a system property, so that an unknown one is no error there.
fn unknown(key: &str) -> String {
    let similar = KEYS.iter().map(|(name, _)| (strsim::jaro_winkler(key, name), *name));
    match similar.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((likeness, name)) if likeness > 0.85 => format!("{key} is not known; did you mean {name}?"),
        _ => format!("{key} is not known and has no effect"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, ServerConfig};
    use super::*;
    use crate::server::ClientCertificates;

    /// Loads a `zoo.cfg` whose `DIR` is a directory with a `myid`.
    fn load(text: &str, my_id: &str) -> Result<ServerConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("myid"), my_id).unwrap();
        let file = dir.path().join("zoo.cfg");
        std::fs::write(&file, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        ServerConfig::load(&file, &Overrides::default())
    }

    const THREE: &str = "# an ensemble\n\
        tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir=DIR\nclientPort=2181\n\
        server.1=zk1:2888:3888\nserver.2=zk2:2888:3888:participant\nserver.3=zk3:2888:3888:observer;2183\n";

    #[test]
    fn an_ensemble_starts_as_it_stands() {
        let config = load(THREE, "2\n").unwrap();
        assert_eq!((config.server, config.tick_ms), (2, 2_000));
        assert_eq!(config.client.listen, "[::]:2181");
        assert_eq!(config.peer_listen(), "zk2:2888");
        assert_eq!(config.members()[&3].to_string(), "zk3:2888:3888:observer;0.0.0.0:2183");
        assert_eq!(config.client.four_letter_words, ["srvr"]);
        assert_eq!(config.notices, [""; 0]);
    }

    #[test]
    fn the_client_port_may_stand_with_the_server() {
        let config = load(&THREE.replace("clientPort=2181\n", ""), "3").unwrap();
        assert_eq!(config.client.listen, "[::]:2183");
        let both = load(THREE, "3").unwrap_err().to_string();
        assert!(both.contains("keep one of them"), "{both}");
        let none = load(&THREE.replace("clientPort=2181\n", ""), "1").unwrap_err().to_string();
        assert!(none.contains("clientPort=2181"), "{none}");
    }

    #[test]
    fn a_server_on_its_own_needs_no_number() {
        let config = load("dataDir=DIR\nclientPort: 2181\nmaxClientCnxns=0\n", "").unwrap();
        assert_eq!((config.server, config.client.connections_per_address_max), (1, 0));
    }

    #[test]
    fn a_key_within_one_that_has_a_value_is_refused() {
        for (line, named) in [
            ("meridian.region.x=1", "meridian.region.x"),
            ("meridian.a=5\nmeridian.a.b.c=6", "meridian.a.b.c"),
            ("meridian.admin=off", "meridian.admin"),
            ("meridian.servers=[]\nmeridian.servers.x=1", "meridian.servers.x"),
        ] {
            let error = load(&format!("{THREE}{line}\n"), "1").unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_key_of_very_many_parts_is_refused() {
        let line = format!("meridian.{}b=1", "a.".repeat(100_000));
        let error = load(&format!("{THREE}{line}\n"), "1").unwrap_err().to_string();
        assert!(error.contains("parts"), "{}", error.len());
    }

    #[test]
    fn keys_are_translated_noted_or_refused() {
        let with = |line: &str| load(&format!("{THREE}{line}\n"), "1");
        assert!(with("zookeeper.reconfigEnabled=true").unwrap().client.reconfig);
        assert_eq!(with("jute.maxbuffer=4194304").unwrap().client.frame_bytes_max, 4 << 20);
        assert_eq!(
            with("4lw.commands.whitelist=stat, ruok").unwrap().client.four_letter_words,
            ["stat", "ruok"]
        );
        assert_eq!(with("quorumListenOnAllIPs=true").unwrap().peer_listen(), "0.0.0.0:2888");
        assert_eq!(with("admin.enableServer=false").unwrap().admin.listen, None);
        assert_eq!(with("minSessionTimeout=-1").unwrap().client.session_timeout_min_ms, None);
        assert_eq!(with("meridian.region=eu").unwrap().region, "eu");
        let bounds = with("snapSizeLimitInKb=65536").unwrap().region_storage().log_bounds;
        assert_eq!(bounds.bytes_per_snapshot, 64 << 20);
        assert!(with("snapSizeLimitInKb=0").unwrap_err().to_string().contains("at least 1024"));
        assert_eq!(with("dataLogDir=/logs").unwrap().storage.log_dir.unwrap().to_str(), Some("/logs"));
        let notice = with("flushDelay=5").unwrap().notices.join("");
        assert!(notice.contains("flushDelay has no effect"), "{notice}");
        let notice = with("tickTimes=5").unwrap().notices.join("");
        assert!(notice.contains("did you mean tickTime"), "{notice}");
        for (line, advice) in [
            ("forceSync=no", "always on disk"),
            ("group.1=1:2", "make each group a region"),
            ("tickTime=often", "no number"),
            ("server.300=a:1:2", "from 0 to 255"),
            ("server.4=a:1", "host:port:port"),
            ("reconfigEnabled=maybe", "neither true nor false"),
        ] {
            let error = with(line).unwrap_err().to_string();
            assert!(error.contains(advice), "{line}: {error}");
        }
        let error = load(THREE, "seven").unwrap_err().to_string();
        assert!(error.contains("myid") && error.contains("seven"), "{error}");
        let error = load(THREE, "9").unwrap_err().to_string();
        assert_eq!(error, "myid: holds 9, but the servers here are server.1, server.2, server.3");
        for text in ["clientPort=2181", "clientPort=2181\nserver.1=zk1:2888:3888"] {
            let error = load(text, "1").unwrap_err().to_string();
            assert!(error.starts_with("dataDir: is missing"), "{error}");
        }
    }

    #[test]
    fn tls_and_authentication_are_translated() {
        let secure = "secureClientPort=2281\nssl.keyStore.location=/k.pem\nssl.trustStore.location=/t\n\
            ssl.trustStore.type=PEM\nclient.portUnification=true\nauthProvider.1=x\nskipACL=yes\n\
            DigestAuthenticationProvider.superDigest=super:x\nenforce.auth.enabled=true\n\
            enforce.auth.schemes=sasl, x509\nzookeeper.ensembleAuthName=a,b\n\
            superUser=root\nzookeeper.superUser.a.b=wheel\n";
        let config = load(&format!("{THREE}{secure}"), "1").unwrap();
        let tls = config.client.tls.unwrap();
        assert_eq!(tls.listen.as_deref(), Some("[::]:2281"));
        assert!(tls.port_unification && tls.key.ends_with("k.pem"));
        assert_eq!(tls.client_certificates, Some(ClientCertificates::Need));
        let authentication = config.client.authentication;
        assert_eq!(authentication.super_digest.as_deref(), Some("super:x"));
        assert!(authentication.skip_acl);
        assert_eq!(authentication.required_schemes, ["sasl".to_string(), "x509".to_string()].into());
        assert_eq!(authentication.ensemble_names.len(), 2);
        assert_eq!(authentication.sasl_super.as_deref(), Some("root"));
        assert_eq!(authentication.sasl_supers.values().collect::<Vec<_>>(), ["wheel"]);
        assert_eq!(config.notices, [""; 0]);
        let alone = "dataDir=DIR\nsecureClientPort=2281\nssl.clientAuth=none\nssl.keyStore.location=/k.pem\n";
        assert_eq!(load(alone, "").unwrap().client.listen, "", "TLS alone");
        for (from, to, advice) in [
            ("/k.pem", "/k.jks", "keytool"),
            ("ssl.clientAuth=none", "x=y", "ssl.clientAuth=none"),
            ("ssl.keyStore.location", "y", "need a certificate"),
        ] {
            let error = load(&alone.replace(from, to), "").unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
        let unused = load(&format!("{THREE}ssl.handshakeDetectionTimeoutMillis=5\n"), "1").unwrap();
        assert_eq!(unused.client.tls, None);
    }

    #[test]
    fn names_of_kerberos_are_translated() {
        let lines = "kerberos.removeHostFromPrincipal=true\nzookeeper.kerberos.removeRealmFromPrincipal=false\n\
            zookeeper.security.auth_to_local=DEFAULT\nmeridian.client.authentication.kerberos.keytab=/zk.keytab\n\
            meridian.client.authentication.kerberos.principal=zookeeper/zk1@REALM\n";
        let config = load(&format!("{THREE}{lines}"), "1").unwrap();
        let kerberos = config.client.authentication.kerberos.unwrap();
        assert_eq!((kerberos.remove_host, kerberos.remove_realm), (true, false));
        assert_eq!(kerberos.principal.as_deref(), Some("zookeeper/zk1@REALM"));
        assert_eq!(kerberos.keytab, Some("/zk.keytab".into()));
        assert_eq!(config.notices, [""; 0]);
        let rules = lines.replace("DEFAULT", "RULE:[1:$1]");
        let error = load(&format!("{THREE}{rules}"), "1").unwrap_err().to_string();
        assert!(error.contains("kerberos.remove"), "{error}");
    }

    #[test]
    fn limits_and_kinds_of_sessions_are_translated() {
        let lines = "readonlymode.enabled=true\nlocalSessionsEnabled=true\nlocalSessionsUpgradingEnabled=true\n\
            globalOutstandingLimit=500\nrequestThrottleLimit=7\nconnectionMaxTokens=9\nconnectionFreezeTime=-1\n\
            connectionDropIncrease=0.5\nzookeeper.connection_throttle_weight_enabled=true\n";
        let client = load(&format!("{THREE}{lines}"), "1").unwrap().client;
        assert!(client.read_only_mode);
        assert_eq!(client.local_sessions, crate::server::LocalSessionMode::Upgrading);
        assert_eq!((client.outstanding_max, client.throttle.tokens_max), (500, 9));
        assert_eq!((client.throttle.freeze_ms, client.throttle.drop_increase), (None, 0.5));
        assert_eq!((client.throttle.global_session_weight, client.throttle.renewal_weight), (3, 2));
        let alone = load("dataDir=DIR\nclientPort=2181\nlocalSessionsEnabled=true\n", "").unwrap();
        assert_eq!(alone.client.local_sessions, crate::server::LocalSessionMode::Off);
        assert!(alone.notices.join("").contains("localSessionsEnabled has no effect"));
        let plain = load(&format!("{THREE}requestThrottleLimit=7\n"), "1").unwrap().client;
        assert_eq!(plain.outstanding_max, 7);
        let error = load(&format!("{THREE}connectionDropIncrease=2\n"), "1").unwrap_err().to_string();
        assert!(error.contains("from 0 to 1"), "{error}");
    }

    #[test]
    fn clients_come_by_ipv6() {
        let listen = |host: &str| {
            let text = format!("dataDir=DIR\nclientPort=2181\nclientPortAddress={host}\n");
            load(&text, "").unwrap().client.listen
        };
        assert_eq!(listen("::1"), "[::1]:2181");
        assert_eq!(listen("0:0:0:0:0:0:0:1"), "[::1]:2181");
        assert_eq!(listen("[::1]"), "[::1]:2181");
        assert_eq!(listen("zk1"), "zk1:2181");
    }

    #[test]
    fn a_server_may_have_the_number_zero() {
        let config = load("dataDir=DIR\nserver.0=zk0:2888:3888;2181\n", "0").unwrap();
        assert_eq!((config.server, config.servers[0].number), (0, 0));
    }

    #[test]
    fn the_dynamic_part_may_be_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let dynamic = dir.path().join("zoo.cfg.dynamic");
        std::fs::write(&dynamic, "server.1=zk1:2888:3888;2181\\\n\n").unwrap();
        let text = format!("dataDir=DIR\ndynamicConfigFile={}\n", dynamic.display());
        assert_eq!(load(&text, "1").unwrap().client.listen, "[::]:2181");
    }
}
