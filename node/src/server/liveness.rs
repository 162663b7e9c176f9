//! Who is alive: the clients of this server, this server for the leader, the leader for this server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use meridian_bridge::lease::BELIEF_SHARE;
use meridian_seam::clock::millis;
use meridian_seam::{codec, limits};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::connection::Service;
use super::hub::{Hub, LeaseReport, Report, ReportAnswer};
use super::{Client, ServerOptions};
use crate::session::Expiry;
use crate::txn::Command;

/// Closes connections that have been silent for their session's timeout, and those whose session the
/// leader may soon end because it has not heard of this server; the leader also expires sessions.
pub(super) async fn sweep(service: Arc<Service>) {
    let hub = &service.hub;
    let mut ticks = every(service.options.report_interval());
    let mut leadership = service.region.leadership();
    let mut led_term = None;
    loop {
        // A new leader sets its policy before it takes a client's write.
        tokio::select! {
            biased;
            Ok(()) = leadership.changed() => {}
            () = back_in_touch(&service) => {}
            _ = ticks.tick() => {}
        }
        let now = hub.now();
        let (cut_off, read_only) = (service.is_cut_off(), service.is_read_only());
        let out_of_touch = is_out_of_touch(&service, now);
        service.local_sessions.expire(now);
        for client in hub.clients() {
            let timeout = client.timeout();
            if now.saturating_sub(client.heard()) > timeout {
                tracing::debug!(peer = %client.peer, "closed: silent for its timeout");
                let counted = u64::from(client.session() == 0);
                hub.metrics.sessionless_expired.fetch_add(counted, Ordering::Relaxed);
                client.close();
            } else if client.session() == 0 && cut_off {
                tracing::debug!(peer = %client.peer, "closed: no session can be opened");
                client.close();
            } else if client.session() != 0 && client.is_read_only() != read_only {
                tracing::debug!(peer = %client.peer, read_only, "closed: read-only mode begins or ends");
                client.close();
            } else if client.session() != 0
                && !read_only
                && out_of_touch
                && now.saturating_sub(known_to_leader(hub, &client)) > timeout.mul_f64(CONTACT_SHARE)
            {
                tracing::debug!(peer = %client.peer, "closed: no contact with a leader and its majority");
                client.close();
            }
        }
        let leads = *leadership.borrow();
        if !leads.is_me {
            led_term = None;
            continue;
        }
        if led_term.replace(leads.term) != Some(leads.term) {
            hub.renew_all();
        }
        note_quorum(&service);
        expire(&service);
        set_policy(&service);
    }
}

/// How soon a server that is out of touch looks again: so much later than another at most it leaves read-only mode.
const SEEK_PAUSE: Duration = Duration::from_millis(20);

/// Whether this server serves nobody, or reads alone, until it hears of a leader and its majority.
fn seeks_contact(service: &Service) -> bool {
    !service.hub.has_had_contact() || service.is_cut_off()
}

/// Ends when a server that is or gets out of touch no longer is.
async fn back_in_touch(service: &Service) {
    while !seeks_contact(service) {
        tokio::time::sleep(service.cut_off_in()).await;
    }
    while seeks_contact(service) {
        tokio::time::sleep(SEEK_PAUSE).await;
        note_quorum(service);
    }
}

/// A leader is in touch when a majority is.
fn note_quorum(service: &Service) {
    if let Some(age) = service.region.quorum_age() {
        service.hub.in_contact(service.hub.now().saturating_sub(age));
    }
}

/// What the leader's configuration says counts for the whole region.
fn set_policy(service: &Service) {
    let policy = service.options.policy;
    if service.hub.view().state.policy == policy {
        return;
    }
    let proposed = service.region.propose(&Command::SetPolicy(policy));
    tokio::spawn(async move {
        if let Err(error) = proposed.await {
            tracing::debug!(%error, "the policy will be set later");
        }
    });
}

/// The leader ends a session at the earliest its whole timeout after it last heard of it. By this share of the
/// timeout after the last time that it is sure to have, and out of touch with it, the connection is closed, so that no
/// client believes in a session that is over.
pub(super) const CONTACT_SHARE: f64 = 0.75;

/// What a client is sent keeps it believing for [`BELIEF_SHARE`] of the timeout more. By the rest of it after the leader
/// has last heard of the session, and out of touch with the leader, its connection is silent if it owns ephemerals:
/// even if this server should fall silent for good, its client does not believe longer than the leader waits. Until it
/// counts as out of touch it answers all the same, for which the leader waits longer: [`answers_unheard_for`].
const ANSWER_SHARE: f64 = 1.0 - BELIEF_SHARE;

/// Whether a client must not be sent anything for now, since its session may be over before it gives this server up.
pub(super) fn is_in_doubt(service: &Service, client: &Client) -> bool {
    let hub = &service.hub;
    let now = hub.now();
    is_out_of_touch(service, now)
        && !client.is_read_only()
        && now.saturating_sub(known_to_leader(hub, client)) > client.timeout().mul_f64(ANSWER_SHARE)
        && hub.view().state.tree.ephemerals_of(client.session()).next().is_some()
}

/// When a majority of the region's voters was last known to follow the leader, if one is known.
pub(super) fn last_backed(service: &Service) -> Option<Duration> {
    let hub = &service.hub;
    let leads = *service.region.leadership().borrow();
    if leads.is_me {
        return Some(hub.now().saturating_sub(service.region.quorum_age()?));
    }
    leads.leader.map(|_| hub.contact())
}

/// Whether more than one report to the leader in a row has failed. [`Service::is_cut_off`] waits for an election, too.
fn is_out_of_touch(service: &Service, now: Duration) -> bool {
    now.saturating_sub(service.hub.contact()) > answers_unheard_for(&service.options)
}

/// For how long a server answers all its clients after its last contact with the leader. A client that pings after a
/// third of its timeout, as ZooKeeper's do, believes in its session for so much longer at most than its timeout after
/// the leader has heard of it: the leader adds this to every timeout.
fn answers_unheard_for(options: &ServerOptions) -> Duration {
    options.report_interval() * 2
}

/// Where the leader notes when it has heard of which session.
pub(super) fn expiry(options: &ServerOptions) -> Expiry {
    Expiry::new(options.report_interval(), answers_unheard_for(options))
}

/// The time from which on the leader, whoever it is by now, gives a client's session its whole timeout at least.
fn known_to_leader(hub: &Hub, client: &Client) -> Duration {
    // What a leader was told that no majority followed any more, the next one does not know.
    hub.contact().min(client.vouched().max(hub.renewed())).max(client.opened())
}

fn expire(service: &Service) {
    let expired = service.hub.expired();
    service.hub.metrics.sessions_expired.fetch_add(expired.len() as u64, Ordering::Relaxed);
    for sessions in expired.chunks(limits::EXPIRED_SESSIONS_PER_COMMAND) {
        tracing::info!(
            count = sessions.len(),
            first = format_args!("{:#x}", sessions[0].0),
            "sessions expire"
        );
        let proposed = service.region.propose(&Command::ExpireSessions { sessions: sessions.to_vec() });
        tokio::spawn(async move {
            if let Err(error) = proposed.await {
                tracing::debug!(%error, "sessions will be expired again");
            }
        });
    }
}

/// Tells the leader which sessions this server has heard of.
pub(super) async fn report(service: Arc<Service>) {
    let hub = &service.hub;
    let interval = service.options.report_interval();
    let mut ticks = every(interval);
    let mut leadership = service.region.leadership();
    let mut reported = Duration::ZERO;
    // No more than there are reports in the time of a lease.
    let mut extensions = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Ok(()) = leadership.changed() => {}
            _ = ticks.tick() => {}
            () = tokio::time::sleep(longest_pause(&service)) => {}
        }
        let sent = hub.now();
        let heard: Vec<(Arc<Client>, Duration)> = hub
            .clients()
            .into_iter()
            .map(|client| (client.clone(), client.heard()))
            .filter(|(client, heard)| client.session() != 0 && *heard >= reported)
            .collect();
        let sessions: Vec<i64> = heard.iter().map(|(client, _)| client.session()).collect();
        let vouch = || heard.iter().for_each(|(client, heard)| client.vouch(*heard));
        if leadership.borrow().is_me {
            hub.touch(&sessions);
            vouch();
            reported = whole_ms(sent);
            continue;
        }
        match send_report(&service, sessions).await {
            Ok(answer) => {
                reported = whole_ms(sent);
                vouch();
                hub.renewed_at(sent.saturating_sub(Duration::from_millis(answer.renewed_age_ms)));
                hub.in_contact(sent.saturating_sub(Duration::from_millis(answer.quorum_age_ms)));
                match answer.lease {
                    None => hub.lease().set(None),
                    Some(lease) => {
                        extensions.spawn(extend_lease(service.clone(), sent, lease));
                    }
                }
                while extensions.try_join_next().is_some() {}
                hub.set_mesh_report(answer.mesh);
            }
            Err(error) => tracing::debug!(%error, "no report to the leader"),
        }
    }
}

/// Until when a server need not report at the latest. Out of touch, it asks a leader that it knows of again and again.
fn longest_pause(service: &Service) -> Duration {
    let leads = *service.region.leadership().borrow();
    if !seeks_contact(service) {
        service.cut_off_in()
    } else if leads.leader.is_some() && !leads.is_me {
        SEEK_PAUSE
    } else {
        // A change of leader ends it.
        service.options.report_interval()
    }
}

/// Takes over the leader's lease as soon as this server is where the leader was.
async fn extend_lease(service: Arc<Service>, sent: Duration, lease: LeaseReport) {
    let left = Duration::from_millis(lease.left_ms);
    let mut applied = service.region.applied();
    let caught_up = async {
        while service.hub.view().position.index < lease.applied {
            if applied.changed().await.is_err() {
                return;
            }
        }
        service.hub.lease().extend(sent + left);
    };
    // After that it would say nothing.
    let _ = tokio::time::timeout(left, caught_up).await;
}

/// The time in the precision in which connections note when they were heard.
fn whole_ms(time: Duration) -> Duration {
    Duration::from_millis(millis(time))
}

async fn send_report(service: &Service, sessions: Vec<i64>) -> std::io::Result<ReportAnswer> {
    // Within the shortest timeout there must be time for another try.
    let (shortest_ms, _) = service.options.session_timeout_bounds_ms();
    let patience = Duration::from_millis(u64::from(shortest_ms) / 4);
    let report = codec::encode(&Report { sessions }).map_err(std::io::Error::other)?;
    let answer = tokio::time::timeout(patience, service.region.report(Bytes::from(report)));
    let answer = answer.await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    codec::decode(&answer).map_err(std::io::Error::other)
}

/// Closes the connections that the region's lease protects as soon as it is over.
pub(super) async fn watch_lease(service: Arc<Service>) {
    let hub = &service.hub;
    loop {
        match hub.lease().deadline() {
            None => hub.lease().changed().await,
            Some(deadline) => {
                let left = deadline.saturating_sub(hub.now());
                if left.is_zero() {
                    hub.close_leased();
                    hub.lease().changed().await;
                    continue;
                }
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(left) => {}
                    () = hub.lease().changed() => {}
                }
            }
        }
    }
}

fn every(interval: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
