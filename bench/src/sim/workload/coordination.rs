//! What clients coordinate with: locks, elections, queues and gates.

use std::time::Duration;

use meridian_wire::{CreateMode, ErrorCode, EventType, Stat};
use rand::Rng;

use super::super::client::Disconnected;
use super::super::history::{Prize, Scope};
use super::{Step, Worker};

impl Worker {
    pub(super) async fn lock(&mut self, scope: Scope) -> Step {
        if self.holds.is_some() {
            return self.unlock().await;
        }
        let path = format!("{}/lock", scope.root());
        if !self.try_lock(scope, &path).await? && self.random.random_bool(0.6) {
            // Waits in front of it, to be there as soon as it is free.
            if self.wait_until_gone(scope, &path).await? {
                self.try_lock(scope, &path).await?;
            }
        }
        if self.holds.is_none() {
            return Ok(());
        }
        // Some hold it for longer than a lease.
        let longest_ms = if self.random.random_bool(0.25) { 25_000 } else { 2_000 };
        self.hold(longest_ms).await?;
        self.unlock().await
    }

    /// Keeps what it has for a time, unless all work ends.
    async fn hold(&mut self, longest_ms: u64) -> Step {
        let mut left_ms = self.random.random_range(0..longest_ms);
        while left_ms > 0 && !self.is_to_stop() {
            let part_ms = left_ms.min(1_000);
            self.client.idle(Duration::from_millis(part_ms)).await?;
            left_ms -= part_ms;
        }
        Ok(())
    }

    async fn try_lock(&mut self, scope: Scope, path: &str) -> Result<bool, Disconnected> {
        let name = self.client.name().to_string();
        match self.client.create(path, &name, CreateMode::Ephemeral).await? {
            Ok((_, stat)) => {
                self.take(scope, Prize::Lock, stat);
                Ok(true)
            }
            Err(ErrorCode::NodeExists) => Ok(false),
            Err(error) => self.refused("lock", scope, error).map(|()| false),
        }
    }

    /// Watches a znode that others delete; whether it is gone.
    async fn wait_until_gone(&mut self, scope: Scope, path: &str) -> Result<bool, Disconnected> {
        match self.client.exists(path, true).await? {
            Ok(None) => Ok(true),
            Ok(Some(_)) => {
                let longest = Duration::from_millis(self.random.random_range(1_000..16_000));
                let gone = |event, changed: &str| event == EventType::NodeDeleted && changed == path;
                self.client.wait_for(longest, gone).await
            }
            Err(error) => self.refused("exists", scope, error).map(|()| false),
        }
    }

    pub(super) async fn look_at_lock(&mut self, scope: Scope) -> Step {
        if let Ok((_, stat)) = self.client.get(&format!("{}/lock", scope.root()), false).await?
            && stat.ephemeral_owner == self.client.session()
            && self.holds.is_none()
        {
            self.take(scope, Prize::Lock, stat);
        }
        Ok(())
    }

    fn take(&mut self, scope: Scope, prize: Prize, stat: Stat) {
        self.holds = Some((scope, prize));
        self.history().acquired(scope, prize, self.client.name(), stat.czxid);
    }

    pub(super) fn let_go(&mut self, how: &str) {
        if let Some((scope, prize)) = self.holds.take() {
            self.history().lost(scope, prize, self.client.name(), how);
        }
    }

    async fn unlock(&mut self) -> Step {
        let Some((scope, _)) = self.holds else { return Ok(()) };
        self.let_go("released");
        self.delete_own(scope, &format!("{}/lock", scope.root())).await
    }

    async fn delete_own(&mut self, scope: Scope, path: &str) -> Step {
        match self.client.delete(path).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.refused("deletion", scope, error)?;
                // It stays as long as the session: nobody may take it for something else.
                self.client.abandon_session();
                Err(Disconnected)
            }
            Err(Disconnected) => {
                // To see it still there would not mean to have it: the deletion may be on its way. To delete it
                // again could hit somebody else's.
                self.client.abandon_session();
                Err(Disconnected)
            }
        }
    }

    /// The candidate with the lowest number leads; everybody watches the one before.
    pub(super) async fn elect(&mut self, scope: Scope) -> Step {
        if self.holds.is_some() {
            return Ok(());
        }
        let prefix = format!("{}/election/candidate-", scope.root());
        let outcome = self.run_for_leader(scope, prefix).await;
        if outcome.is_err() {
            self.let_go("disconnected");
            self.client.abandon_session();
        }
        outcome
    }

    async fn run_for_leader(&mut self, scope: Scope, prefix: String) -> Step {
        let made = self.create_with_number(scope, prefix, CreateMode::EphemeralSequential).await?;
        let Some((path, stat)) = made else { return Ok(()) };
        let parent = format!("{}/election", scope.root());
        let name = path.rsplit('/').next().unwrap_or_default().to_string();
        for _ in 0..3 {
            let candidates = match self.client.children(&parent, false).await? {
                Ok(candidates) => candidates,
                Err(error) => return self.refused("children", scope, error),
            };
            if !candidates.contains(&name) {
                self.client.violation(format!("{path} of a living session is not among the candidates"));
                return Ok(());
            }
            let Some(before) = candidates.iter().filter(|candidate| **candidate < name).max() else {
                self.take(scope, Prize::Leadership, stat);
                self.hold(2_000).await?;
                self.let_go("resigned");
                break;
            };
            self.wait_until_gone(scope, &format!("{parent}/{before}")).await?;
        }
        self.delete_own(scope, &path).await
    }

    /// Puts an item into the queue, or takes the first one out.
    pub(super) async fn queue(&mut self, scope: Scope) -> Step {
        let queue = format!("{}/queue", scope.root());
        if self.random.random_bool(0.5) {
            let prefix = format!("{queue}/item-");
            return self.create_with_number(scope, prefix, CreateMode::PersistentSequential).await.map(drop);
        }
        let items = match self.client.children(&queue, false).await? {
            Ok(items) => items,
            Err(error) => return self.refused("children", scope, error),
        };
        let Some(first) = items.iter().min() else { return Ok(()) };
        let path = format!("{queue}/{first}");
        self.history().takes(scope, path.clone());
        let answer = self.client.delete(&path).await?;
        self.history().taken(scope, &path, answer.is_ok());
        match answer {
            Ok(()) | Err(ErrorCode::NoNode) => Ok(()),
            Err(error) => self.refused("take", scope, error),
        }
    }

    /// A barrier: whoever finds the gate closed waits until it is open; nobody passes a gate that they know to be
    /// closed.
    pub(super) async fn gate(&mut self, scope: Scope) -> Step {
        let path = format!("{}/gate", scope.root());
        self.history().count("gates");
        let name = self.client.name().to_string();
        match self.client.create(&path, &name, CreateMode::Ephemeral).await? {
            Ok(_) => {
                self.hold(1_500).await?;
                self.delete_own(scope, &path).await
            }
            Err(ErrorCode::NodeExists) => self.wait_until_gone(scope, &path).await.map(drop),
            Err(error) => self.refused("gate", scope, error),
        }
    }
}
