//! The demo as a user starts it: every server a process of its own, clients of another make in this one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use zookeeper_client::{Acls, Client, CreateMode, LockOptions, LockPrefix};

struct Demo {
    process: Child,
    ready: Value,
    restarted: Vec<Child>,
}

impl Demo {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_meridian"))
            .args(["demo", "--json", "--control", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).expect("one line of JSON once the mesh is ready");
        Self { process, ready, restarted: Vec::new() }
    }

    fn servers(&self) -> impl Iterator<Item = &Value> {
        self.ready["regions"].as_array().unwrap().iter().flat_map(|r| r["servers"].as_array().unwrap())
    }

    /// The addresses for the clients of a region.
    fn clients(&self, region: usize) -> String {
        let servers = self.ready["regions"][region]["servers"].as_array().unwrap();
        servers.iter().map(|s| s["client"].as_str().unwrap()).collect::<Vec<_>>().join(",")
    }

    async fn connect(&self, region: usize) -> Client {
        let connector = Client::connector().with_session_timeout(Duration::from_secs(30));
        connector.connect(&self.clients(region)).await.unwrap()
    }

    fn ask(server: &Value, path: &str) -> Option<Value> {
        let address = server["admin"].as_str()?;
        let mut response = ureq::get(format!("http://{address}{path}")).call().ok()?;
        serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()
    }

    /// The server that leads the region that leads the global group.
    fn global_leader(&self) -> Value {
        for region in self.ready["regions"].as_array().unwrap() {
            for server in region["servers"].as_array().unwrap() {
                let status = Self::ask(server, "/mesh").unwrap();
                if status["leads_region"] == true && status["global_leader"] == region["name"] {
                    return server.clone();
                }
            }
        }
        panic!("no server leads the global group");
    }

    fn kill(server: &Value) {
        let pid = server["pid"].as_u64().unwrap().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }

    fn start_again(&mut self, server: &Value) {
        let config = server["config"].as_str().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_meridian"))
            .args(["server", "--config", config])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.restarted.push(child);
    }

    /// Waits until all servers report the same digests of all shared subtrees.
    async fn until_digests_agree(&self) {
        let agree = || {
            let digests: Vec<_> = self.servers().map(|s| Self::ask(s, "/digest")).collect();
            let distinct: BTreeSet<String> = digests.iter().flatten().map(Value::to_string).collect();
            digests.iter().all(Option::is_some) && distinct.len() == 1
        };
        until("all digests agree", agree).await;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
        for child in &mut self.restarted {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    for _ in 0..600 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

async fn create(client: &Client, path: &str) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    // A write whose answer a failing server took with it may have had its effect.
    for _ in 0..100 {
        match client.create(path, b"x", &options).await {
            Ok(_) | Err(zookeeper_client::Error::NodeExists) => return,
            Err(error) => {
                eprintln!("{path}: {error}, trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    panic!("{path} could not be created");
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_exclude_across_regions_and_nothing_is_lost_with_the_global_leader() {
    let mut demo = Demo::start();
    let (east, eu) = (demo.connect(0).await, demo.connect(2).await);

    // A lock on the global subtree: the second waits for the first, in another region.
    let prefix = || LockPrefix::new_curator("/global/locks", "latch-").unwrap();
    let options = || {
        let ancestors = CreateMode::Persistent.with_acls(Acls::anyone_all());
        LockOptions::new(Acls::anyone_all()).with_ancestor_options(ancestors).unwrap()
    };
    let held = east.lock(prefix(), b"east", options()).await.unwrap();
    let waiting = eu.lock(prefix(), b"eu", options());
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "two regions hold the lock");
    drop(held);
    let held = tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    drop(held);

    // Written at home, read elsewhere after a sync; written elsewhere, forwarded.
    create(&east, "/shared/home").await;
    eu.sync("/shared").await.unwrap();
    assert_eq!(eu.get_data("/shared/home").await.unwrap().0, b"x");
    create(&eu, "/shared/away").await;
    east.sync("/shared").await.unwrap();
    let (there, here) =
        (eu.get_data("/shared/away").await.unwrap(), east.get_data("/shared/away").await.unwrap());
    assert_eq!(there, here, "data and stat are the same in every region");

    // The leader of the region that leads the global group is killed while both write.
    let victim = demo.global_leader();
    for i in 0..30 {
        if i == 10 {
            Demo::kill(&victim);
        }
        create(&east, &format!("/global/east-{i}")).await;
        create(&eu, &format!("/global/eu-{i}")).await;
        create(&eu, &format!("/local-{i}")).await;
    }
    demo.start_again(&victim);
    demo.until_digests_agree().await;
    for client in [&east, &eu] {
        client.sync("/global").await.unwrap();
        for i in 0..30 {
            for region in ["east", "eu"] {
                let stat = client.check_stat(&format!("/global/{region}-{i}")).await.unwrap();
                assert!(stat.is_some(), "/global/{region}-{i} was acknowledged and is lost");
            }
        }
    }
    for i in 0..30 {
        assert!(eu.check_stat(&format!("/local-{i}")).await.unwrap().is_some());
    }
}
