//! Members that come, go and change their roles while clients are served.

use std::time::Duration;

use meridian_node::txn::ensemble::{Member, Members, Role};
use zookeeper_client as zk;

use crate::region::{TestRegion, eventually};

async fn client(addresses: &str) -> zk::Client {
    zk::Client::connector().with_session_timeout(Duration::from_secs(10)).connect(addresses).await.unwrap()
}

fn open() -> zk::CreateOptions<'static> {
    zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all())
}

fn members(region: &TestRegion, servers: &[(u8, Role)]) -> Members {
    let member = |(server, role): &(u8, Role)| {
        (*server, Member::new(*role, region.peer_address((*server).into()), None))
    };
    servers.iter().map(member).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_is_added_promoted_and_the_leader_removed_without_loss() {
    let mut region = TestRegion::start(3, 1).await;
    // The observer stays in any case.
    let client = client(&region.address(4).to_string()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    let (config, _) = client.get_data("/zookeeper/config").await.unwrap();
    let config = String::from_utf8(config).unwrap();
    assert!(config.contains("server.3=") && config.contains(":observer\nversion="), "{config}");

    // The observer becomes a voter, and the leader goes.
    let leader = region.leader().await;
    let others: Vec<(u8, Role)> =
        (1..=4).filter(|server| u64::from(*server) != leader).map(|server| (server, Role::Voter)).collect();
    let wanted = members(&region, &others);
    region.server(leader).region().change_members(wanted.clone()).await.unwrap();
    client.create("/after", b"2", &open()).await.unwrap();
    for (server, _) in &others {
        let server = region.server((*server).into()).region();
        eventually("all voters know it", async || {
            let roster = server.roster();
            roster.voters.len() == 3 && !roster.voters.contains(&leader)
        })
        .await;
    }
    assert_eq!(*region.server(4).region().view().state.ensemble.members, wanted);

    // Who was removed is needed no more.
    region.stop(leader).await;
    client.create("/alone", b"3", &open()).await.unwrap();
    client.get_data("/before").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_joins_and_its_vote_counts() {
    let mut region = TestRegion::start(1, 0).await;
    let client = client(&region.addresses()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    region.join_server(2).await;
    region.join_server(3).await;
    eventually("it serves what was written before", async || {
        region.server(3).region().view().state.tree.get("/before").is_some()
    })
    .await;
    let wanted = members(&region, &[(1, Role::Voter), (2, Role::Voter), (3, Role::Voter)]);
    region.server(2).region().change_members(wanted).await.unwrap();
    assert_eq!(region.server(1).region().roster().voters.len(), 3);
    // The first server alone was everything once; now the other two go on without it.
    region.server(1).region().transfer_leadership(3).await.unwrap();
    region.stop(1).await;
    let client = self::client(&region.addresses()).await;
    client.create("/after", b"2", &open()).await.unwrap();
    assert_eq!(client.get_data("/before").await.unwrap().0, b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_disk_votes_again_once_it_is_up_to_date() {
    let mut region = TestRegion::start(3, 0).await;
    let leader = region.leader().await;
    let client = client(&region.address(leader).to_string()).await;
    client.create("/before", b"1", &open()).await.unwrap();
    let lost = (1..=3).find(|server| *server != leader).unwrap();
    region.stop(lost).await;
    region.wipe(lost);
    client.create("/without", b"2", &open()).await.unwrap();
    region.start_server(lost).await;
    eventually("it has everything and votes", async || {
        let roster = region.server(leader).region().roster();
        let caught_up = region.server(lost).region().view().state.tree.get("/without").is_some();
        caught_up && roster.settled && roster.voters.contains(&lost)
    })
    .await;
    // With it there is a majority again when another goes.
    let other = (1..=3).find(|server| *server != leader && *server != lost).unwrap();
    region.stop(other).await;
    client.create("/after", b"3", &open()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_that_are_not_there_are_refused() {
    let region = TestRegion::start(1, 0).await;
    let mut wanted = members(&region, &[(1, Role::Voter)]);
    for server in 7..=8 {
        wanted.insert(server, Member::new(Role::Voter, format!("127.0.0.1:{server}"), None));
    }
    let refused = region.server(1).region().change_members(wanted).await.unwrap_err();
    assert!(refused.to_string().contains("up to date"), "{refused}");
    let client = client(&region.addresses()).await;
    client.create("/goes-on", b"", &open()).await.unwrap();
}
