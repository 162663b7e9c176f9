//! Clients that prove themselves by Kerberos, with a KDC of its own for each test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libgssapi::context::{ClientCtx, CtxFlags, SecurityContext};
use libgssapi::credential::{Cred, CredUsage};
use libgssapi::name::Name;
use libgssapi::oid::{GSS_MECH_KRB5, GSS_NT_HOSTBASED_SERVICE, GSS_NT_KRB5_PRINCIPAL, OidSet};
use meridian_node::server::{Kerberos, ServerOptions};
use meridian_wire::{Acl, Create, CreateMode, ErrorCode, OpCode, Request, Response, perms};
use tempfile::TempDir;

use crate::authentication::token;
use crate::raw::RawClient;
use crate::region::{PATIENCE, TestRegion};

const REALM: &str = "MERIDIAN.TEST";
const SERVICE: &str = "zookeeper/localhost@MERIDIAN.TEST";
const PASSWORD: &str = "secret";
/// The answer to the offer: no security layer, and as whom is for the principal to say.
const TAKEN: &[u8] = b"\x01\0\0\0";

/// Whether this process is the one that a test is for. The library is told of its KDC by the environment, which only
/// a new process can have of its own, so the first process starts the KDC and the test anew, and waits for both.
fn in_realm(test: &str) -> bool {
    const INSIDE: &str = "MERIDIAN_TEST_IN_REALM";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let kdc = Kdc::start();
    for user in ["alice", "bob", "root"] {
        kdc.administer(&format!("addprinc -pw {PASSWORD} {user}"));
    }
    kdc.administer(&format!("addprinc -randkey {SERVICE}"));
    kdc.administer(&format!("ktadd -k {} {SERVICE}", kdc.path("keytab").display()));
    let mut inside = Command::new(std::env::current_exe().unwrap());
    let name = format!("kerberos::{test}");
    inside.args([&name, "--exact", "--nocapture"]).env(INSIDE, "1");
    let done = kdc.environment(&mut inside).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    assert!(text(&done.stdout).contains("1 passed"), "there is no test {name}");
    false
}

struct Kdc {
    directory: TempDir,
    process: Option<Child>,
}

impl Kdc {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut kdc = Self { directory, process: None };
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = kdc.directory.path().display();
        let client = format!(
            "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_canonicalize_hostname = false\nrdns = false\n\
             [realms]\n{REALM} = {{\nkdc = 127.0.0.1:{port}\n}}\n[domain_realm]\nlocalhost = {REALM}\n"
        );
        let server = format!(
            "[kdcdefaults]\nkdc_listen = 127.0.0.1:{port}\nkdc_tcp_listen = 127.0.0.1:{port}\n[realms]\n{REALM} = {{\n\
             database_name = {place}/principals\nkey_stash_file = {place}/stash\nacl_file = {place}/acl\n}}\n"
        );
        std::fs::write(kdc.path("krb5.conf"), client).unwrap();
        std::fs::write(kdc.path("kdc.conf"), server).unwrap();
        kdc.run("kdb5_util", &["create", "-s", "-r", REALM, "-P", "master"]);
        let mut daemon = Command::new(program("krb5kdc"));
        daemon.args(["-n", "-P"]).arg(kdc.path("pid")).stdout(Stdio::null()).stderr(Stdio::null());
        kdc.process = Some(kdc.environment(&mut daemon).spawn().unwrap());
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "the KDC does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        kdc
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (key, file) in [
            ("KRB5_CONFIG", "krb5.conf"),
            ("KRB5_KDC_PROFILE", "kdc.conf"),
            ("KRB5_KTNAME", "keytab"),
            ("KRB5RCACHEDIR", ""),
        ] {
            command.env(key, self.path(file));
        }
        command
    }

    fn administer(&self, query: &str) {
        self.run("kadmin.local", &["-q", query]);
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let mut command = Command::new(program(name));
        let done = self.environment(command.args(arguments)).stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Kdc {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A program of the KDC, which is not on everybody's path.
fn program(name: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(name);
    if path.exists() { path } else { name.into() }
}

async fn region(change: impl Fn(&mut ServerOptions) + Send + Sync + 'static) -> TestRegion {
    let kerberos = Arc::new(Kerberos::accept(SERVICE, false, false).unwrap());
    let with_kerberos = move |options: &mut ServerOptions| {
        options.authentication.kerberos = Some(kerberos.clone());
        options.connections_per_address_max = 0;
        change(options);
    };
    TestRegion::with(1, 0, with_kerberos).await
}

/// The client's side of a context between a user and the service.
fn initiate(user: &str) -> ClientCtx {
    let name = Name::new(user.as_bytes(), Some(GSS_NT_KRB5_PRINCIPAL)).unwrap();
    let mechanisms = OidSet::singleton(GSS_MECH_KRB5).unwrap();
    let usage = CredUsage::Initiate;
    let tickets = Cred::acquire_with_password(Some(&name), PASSWORD, None, usage, Some(&mechanisms)).unwrap();
    let service = Name::new(b"zookeeper@localhost", Some(GSS_NT_HOSTBASED_SERVICE)).unwrap();
    ClientCtx::new(Some(tickets), service, CtxFlags::GSS_C_MUTUAL_FLAG, Some(GSS_MECH_KRB5))
}

/// The first token of a context.
fn first(context: &mut ClientCtx) -> Vec<u8> {
    context.step(None, None).unwrap().unwrap().to_vec()
}

/// Goes on until the offer is to be answered.
async fn establish(client: &mut RawClient, context: &mut ClientCtx) -> Result<(), ErrorCode> {
    let first = first(context);
    let answer = token(client, &first).await?.unwrap();
    assert!(context.step(Some(&answer), None).unwrap().is_none(), "nothing more to say");
    let offer = token(client, b"").await?.unwrap();
    assert_eq!(*context.unwrap(&offer).unwrap(), *TAKEN);
    Ok(())
}

async fn prove(client: &mut RawClient, user: &str, answer: &[u8]) -> Result<Option<Vec<u8>>, ErrorCode> {
    let mut context = initiate(user);
    establish(client, &mut context).await?;
    let answer = context.wrap(false, answer).unwrap();
    token(client, &answer).await
}

async fn proved(region: &TestRegion, user: &str) -> RawClient {
    let mut client = RawClient::connect(region.address(1)).await;
    assert_eq!(prove(&mut client, user, TAKEN).await, Ok(None));
    client
}

async fn create_for(client: &mut RawClient, path: &str, id: &str) -> ErrorCode {
    let acl = vec![Acl { perms: perms::ALL, scheme: "sasl", id }];
    let create = Create { path, data: None, acl, flags: CreateMode::Persistent.into() };
    client.call(&Request::Create(create)).await.0.error
}

async fn identities(client: &mut RawClient) -> Vec<(String, String)> {
    let (_, body) = client.call(&Request::WhoAmI).await;
    let Response::Clients(known) = Response::decode(OpCode::WhoAmI, &body).unwrap() else { panic!() };
    known.iter().map(|client| (client.scheme.to_string(), client.user.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_principal_is_an_identity() {
    if !in_realm("a_principal_is_an_identity") {
        return;
    }
    let region = region(|o| o.authentication.sasl_supers = ["root@MERIDIAN.TEST".into()].into()).await;
    let mut alice = proved(&region, "alice").await;
    assert_eq!(identities(&mut alice).await[1], ("sasl".into(), "alice@MERIDIAN.TEST".into()));
    assert_eq!(create_for(&mut alice, "/hers", "alice@MERIDIAN.TEST").await, ErrorCode::Ok);
    assert!(alice.get("/hers", false).await.is_ok());
    let mut bob = proved(&region, "bob").await;
    assert_eq!(bob.get("/hers", false).await, Err(ErrorCode::NoAuth));
    let mut root = proved(&region, "root").await;
    assert!(root.get("/hers", false).await.is_ok());
    let mut named = RawClient::connect(region.address(1)).await;
    assert_eq!(prove(&mut named, "alice", b"\x01\0\0\0alice@MERIDIAN.TEST").await, Ok(None));
    assert!(named.get("/hers", false).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_to_be_another_or_to_hide_is_refused() {
    if !in_realm("who_wants_to_be_another_or_to_hide_is_refused") {
        return;
    }
    let region = region(|_| {}).await;
    let mut alice = proved(&region, "alice").await;
    for answer in
        [&b"\x01\0\0\0alice@MERIDIAN.TEST"[..], b"\x01\0\0\0alice", b"\x02\0\x10\0", b"\x04\0\x10\0", b"\x01"]
    {
        let mut bob = RawClient::connect(region.address(1)).await;
        assert_eq!(prove(&mut bob, "bob", answer).await, Err(ErrorCode::AuthFailed), "{answer:?}");
        bob.closed().await;
    }
    alice.create("/fine", CreateMode::Persistent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_chooses_the_mechanism() {
    if !in_realm("the_first_token_chooses_the_mechanism") {
        return;
    }
    let region = region(|o| {
        o.authentication.sasl_users = [("carol".to_string(), "secret".to_string())].into();
        o.authentication.required_schemes = ["sasl".to_string()].into();
    });
    let region = region.await;
    let mut alice = proved(&region, "alice").await;
    alice.create("/fine", CreateMode::Persistent).await.unwrap();
    let mut carol = RawClient::connect(region.address(1)).await;
    let challenge = token(&mut carol, b"").await.unwrap().unwrap();
    assert!(challenge.starts_with(b"realm=\"zk-sasl-md5\""));
    // Once it has begun, it stays with its mechanism.
    let token_of_kerberos = first(&mut initiate("alice"));
    let refused = ErrorCode::SessionClosedRequireSaslAuth;
    assert_eq!(token(&mut carol, &token_of_kerberos).await, Err(refused));
    carol.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_repeated_tokens_prove_nothing() {
    if !in_realm("damaged_and_repeated_tokens_prove_nothing") {
        return;
    }
    let region = region(|_| {}).await;
    let mut alice = proved(&region, "alice").await;
    assert_eq!(create_for(&mut alice, "/hers", "alice@MERIDIAN.TEST").await, ErrorCode::Ok);

    let mut context = initiate("alice");
    let whole = first(&mut context);
    let damaged = (0..whole.len()).step_by(7).flat_map(|at| {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x5a;
        [flipped, whole[..at.max(1)].to_vec()]
    });
    let long = [whole.clone(), vec![0; 64 << 10]].concat();
    for bad in damaged.chain([vec![0x60; 2_000], long]) {
        let mut mallory = RawClient::connect(region.address(1)).await;
        match token(&mut mallory, &bad).await {
            Err(error) => {
                assert_eq!(error, ErrorCode::AuthFailed);
                mallory.closed().await;
            }
            // What is damaged may be a part that nothing depends on; who has no key gets no further.
            Ok(_) => assert_eq!(mallory.get("/hers", false).await, Err(ErrorCode::NoAuth)),
        }
    }

    let mut once = RawClient::connect(region.address(1)).await;
    let fresh = first(&mut initiate("alice"));
    assert!(token(&mut once, &fresh).await.is_ok());
    let mut again = RawClient::connect(region.address(1)).await;
    assert_eq!(token(&mut again, &fresh).await, Err(ErrorCode::AuthFailed), "a replay");

    let mut last = initiate("alice");
    let mut mallory = RawClient::connect(region.address(1)).await;
    establish(&mut mallory, &mut last).await.unwrap();
    let mut answer = last.wrap(false, TAKEN).unwrap().to_vec();
    *answer.last_mut().unwrap() ^= 1;
    assert_eq!(token(&mut mallory, &answer).await, Err(ErrorCode::AuthFailed));
    assert!(alice.get("/hers", false).await.is_ok(), "nobody else notices");
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_that_stop_half_way_hold_nobody_up() {
    if !in_realm("exchanges_that_stop_half_way_hold_nobody_up") {
        return;
    }
    let region = region(|_| {}).await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        let mut client = RawClient::connect(region.address(1)).await;
        establish(&mut client, &mut initiate("bob")).await.unwrap();
        idle.push(client);
    }
    let mut alice = proved(&region, "alice").await;
    alice.create("/fine", CreateMode::Persistent).await.unwrap();
    // They may still go on, and as nobody may do what all may.
    for client in &mut idle {
        client.get("/fine", false).await.unwrap();
    }
}

#[test]
fn a_server_has_its_key_before_it_starts() {
    let kdc = Kdc::start();
    kdc.administer("addprinc -randkey zookeeper/elsewhere");
    kdc.administer(&format!("ktadd -k {} zookeeper/elsewhere", kdc.path("keytab").display()));
    let file = kdc.path("region.toml");
    let text = |principal: &str| {
        format!(
            "region = \"here\"\nserver = 1\ndata_dir = \"{place}/data\"\n[client]\nlisten = \"127.0.0.1:0\"\n\
             [client.authentication.kerberos]\n{principal}\nkeytab = \"{place}/keytab\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[[servers]]\nnumber = 1\naddress = \"127.0.0.1:0\"\n",
            place = kdc.directory.path().display()
        )
    };
    let mut server = Command::new(env!("CARGO_BIN_EXE_meridian"));
    server.args(["server", "--until-stdin-closes", "--config"]).arg(&file);
    kdc.environment(&mut server).env("KRB5_KTNAME", "/nowhere").stdin(Stdio::null());
    for (principal, advice) in [
        ("principal = \"zookeeper/elsewhere\"", None),
        ("principal = \"zookeeper/localhost\"", Some("klist -k")),
        ("", Some("is missing")),
    ] {
        std::fs::write(&file, text(principal)).unwrap();
        let done = server.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.success(), advice.is_none(), "{said}");
        assert!(said.contains(advice.unwrap_or_default()), "{said}");
    }
}
