//! Who is alive: the clients of this server, this server for the leader, the leader for this server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_seam::clock::millis;
use meridian_seam::{codec, limits};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::connection::Service;
use super::hub::{LeaseReport, Report, ReportAnswer};
use crate::txn::Command;

/// Closes connections that have been silent for their session's timeout, and those whose session the
/// leader may soon end because it has not heard of this server; the leader also expires sessions.
pub(super) async fn sweep(service: Arc<Service>) {
    let hub = &service.hub;
    let mut ticks = every(service.options.report_interval());
    let leadership = service.region.leadership();
    let mut led_term = None;
    loop {
        ticks.tick().await;
        let now = hub.now();
        let (cut_off, read_only) = (service.is_cut_off(), service.is_read_only());
        service.local_sessions.expire(now);
        for client in hub.clients() {
            let timeout = client.timeout();
            // A session taken up after a while without contact is not to end with the next look.
            let contact_age = now.saturating_sub(hub.contact().max(client.opened()));
            if now.saturating_sub(client.heard()) > timeout {
                tracing::debug!(peer = %client.peer, "closed: silent for its timeout");
                client.close();
            } else if client.session() == 0 && cut_off {
                tracing::debug!(peer = %client.peer, "closed: no session can be opened");
                client.close();
            } else if client.session() != 0 && client.is_read_only() != read_only {
                tracing::debug!(peer = %client.peer, read_only, "closed: read-only mode begins or ends");
                client.close();
            } else if client.session() != 0 && !read_only && contact_age > timeout.mul_f64(CONTACT_SHARE) {
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
        if let Some(age) = service.region.quorum_age() {
            hub.in_contact(now.saturating_sub(age));
        }
        expire(&service);
        set_policy(&service);
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

/// The leader ends a session at the earliest its whole timeout after it last heard of it through this
/// server. By this share of the timeout without contact the connection is closed, so that no client
/// believes in a session that is over.
pub(super) const CONTACT_SHARE: f64 = 0.75;

fn expire(service: &Service) {
    let expired = service.hub.expired();
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
    let leadership = service.region.leadership();
    let mut reported = Duration::ZERO;
    // No more than there are reports in the time of a lease.
    let mut extensions = JoinSet::new();
    loop {
        ticks.tick().await;
        let sent = hub.now();
        let heard_since = |client: &super::Client| client.session() != 0 && client.heard() >= reported;
        let sessions: Vec<i64> =
            hub.clients().iter().filter(|c| heard_since(c)).map(|c| c.session()).collect();
        if leadership.borrow().is_me {
            hub.touch(&sessions);
            reported = whole_ms(sent);
            continue;
        }
        match send_report(&service, sessions).await {
            Ok(answer) => {
                reported = whole_ms(sent);
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
