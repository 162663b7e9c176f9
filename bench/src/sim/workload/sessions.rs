//! What clients rely on in their sessions: watches, ephemerals, the order of their requests, and that all of it
//! survives a change of servers.

use meridian_wire::{CreateMode, ErrorCode};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::super::client::{self, Disconnected, Once};
use super::super::history::Scope;
use super::{Step, Worker, pair_of};

impl Worker {
    /// Leaves a watch of some kind. That it fires when it must, and only then, is checked with everything that the
    /// client is shown afterwards.
    pub(super) async fn watch(&mut self, scope: Scope) -> Step {
        let path = match self.random.random_range(0..4) {
            0 => pair_of(scope)[0].clone(),
            1 => format!("{}/counter", scope.root()),
            _ => self.register(scope),
        };
        self.history().count("watches set");
        let refused = match self.random.random_range(0..20) {
            0..7 => self.client.get(&path, true).await?.err(),
            7..13 => self.client.exists(&path, true).await?.err(),
            13..17 => self.client.children(&format!("{}/queue", scope.root()), true).await?.err(),
            17..19 => self.client.watch_lastingly(&path, false).await?.err(),
            _ => self.client.watch_lastingly(&format!("{}/own", scope.root()), true).await?.err(),
        };
        match refused {
            None | Some(ErrorCode::NoNode) => Ok(()),
            Some(error) => self.refused("watch", scope, error),
        }
    }

    /// Reads what is watched: if it has changed, the watch has told.
    pub(super) async fn look_at_what_is_watched(&mut self) -> Step {
        let stops = self.is_to_stop();
        for path in self.client.watched_paths() {
            if self.is_home_lost() && path.starts_with(Scope::Homed.root()) {
                continue;
            }
            if stops {
                // A refusal shows as a watch that did not fire.
                let _ = self.client.sync(&path).await?;
            } else if self.random.random_bool(0.7) {
                continue;
            }
            let watched_children = self.client.is_watched(&path, Once::Child);
            let refused = if watched_children {
                self.client.children(&path, false).await?.err()
            } else {
                self.client.exists(&path, false).await?.err()
            };
            if let Some(error) = refused.filter(|error| *error != ErrorCode::NoNode) {
                self.client.violation(format!("a read of {path} was answered {error:?}"));
            }
        }
        Ok(())
    }

    /// Makes sure that its ephemeral is there as long as the session lives, or that of a closed session is gone.
    pub(super) async fn ephemeral(&mut self, scope: Scope) -> Step {
        if self.random.random_bool(0.4) {
            return self.look_for_the_dead(scope).await;
        }
        let Some(path) = self.ephemerals.get(&scope).cloned() else {
            return self.make_ephemeral(scope).await;
        };
        if self.is_own(&path).await? {
            return Ok(());
        }
        // The session may be about to end: then this is not answered.
        match self.client.sync(&path).await? {
            Ok(()) if self.is_own(&path).await? => Ok(()),
            Ok(()) => {
                self.ephemerals.remove(&scope);
                self.client.violation(format!("{path} is gone, and its session lives"));
                Ok(())
            }
            Err(error) => self.refused("sync", scope, error),
        }
    }

    async fn is_own(&mut self, path: &str) -> Result<bool, Disconnected> {
        let session = self.client.session();
        Ok(self.client.get(path, false).await?.is_ok_and(|(_, stat)| stat.ephemeral_owner == session))
    }

    async fn make_ephemeral(&mut self, scope: Scope) -> Step {
        let session = self.client.session();
        let path = format!("{}/ephemerals/{session:x}-{}", scope.root(), self.count);
        match self.client.create(&path, "", CreateMode::Ephemeral).await? {
            Ok(_) => {
                self.ephemerals.insert(scope, path);
                Ok(())
            }
            Err(error) => self.refused("ephemeral", scope, error),
        }
    }

    /// Nothing is left of sessions that were closed before. (Of a homed subtree elsewhere it may take longer.)
    async fn look_for_the_dead(&mut self, scope: Scope) -> Step {
        if scope == Scope::Homed {
            return Ok(());
        }
        let dead = self.history().closed_sessions();
        let parent = format!("{}/ephemerals", scope.root());
        if let Err(error) = self.client.sync(&parent).await? {
            return self.refused("sync", scope, error);
        }
        let names = match self.client.children(&parent, false).await? {
            Ok(names) => names,
            Err(error) => return self.refused("children", scope, error),
        };
        for name in names {
            let session = name.split('-').next().and_then(|hex| i64::from_str_radix(hex, 16).ok());
            if session.is_some_and(|session| dead.contains(&session)) {
                self.client.violation(format!("{parent}/{name} is there, and its session is closed"));
            }
        }
        Ok(())
    }

    /// Writes rising numbers to a znode of its own in every subtree, all under way at once.
    pub(super) async fn write_in_order(&mut self) -> Step {
        let (number, name) = (self.count, self.client.name().to_string());
        let paths: Vec<String> = self.scopes().iter().map(|scope| own_path(*scope, &name)).collect();
        self.history().count("writes under way together");
        for path in &paths {
            self.client.send(&client::set(path, &number.to_string(), -1)).await?;
        }
        let mut missing = Vec::new();
        for (scope, path) in self.scopes().into_iter().zip(&paths) {
            match self.client.set_reply(path).await? {
                Ok(stat) => self.history().rose(scope, path, stat.mzxid, number),
                Err(ErrorCode::NoNode) => missing.push((scope, path)),
                Err(error) => self.refused("write", scope, error)?,
            }
        }
        for (scope, path) in missing {
            match self.client.create(path, "0", CreateMode::Persistent).await? {
                Ok(_) | Err(ErrorCode::NodeExists) => {}
                Err(error) => self.refused("create", scope, error)?,
            }
        }
        Ok(())
    }

    /// Reads what a neighbour has written in all subtrees, the last first: what was written before is there too.
    pub(super) async fn read_in_order(&mut self) -> Step {
        let Some(name) = self.neighbours.choose(&mut self.random).cloned() else { return Ok(()) };
        let mut newest = None;
        for scope in self.scopes().into_iter().rev() {
            let path = own_path(scope, &name);
            let (number, stat) = match self.client.get(&path, false).await? {
                Ok((data, stat)) => (data.parse::<u64>().unwrap_or(0), stat),
                Err(ErrorCode::NoNode) => return Ok(()),
                Err(error) => return self.refused("read", scope, error),
            };
            if number > 0 {
                self.history().rose(scope, &path, stat.mzxid, number);
            }
            if newest.is_some_and(|newest| number < newest) {
                self.client.violation(format!("{path} is {number} though {newest:?} was written behind it"));
            }
            newest = Some(number);
        }
        Ok(())
    }

    /// Takes its session to another server, at times with a write under way.
    pub(super) async fn change_servers(&mut self) -> Step {
        if self.holds.is_some() {
            return Ok(());
        }
        if self.random.random_bool(0.7) {
            // In some of the subtrees, from the first on: what is written there is never behind the rest.
            for scope in self.scopes().into_iter().take(self.random.random_range(1..=3)) {
                let path = own_path(scope, self.client.name());
                self.client.send(&client::set(&path, &self.count.to_string(), -1)).await?;
            }
            self.count += 1;
        }
        self.client.disconnect();
        self.connect().await?;
        self.write_in_order().await
    }

    /// Ends its session and begins another.
    pub(super) async fn close(&mut self) -> Step {
        let session = self.client.session();
        self.let_go("closing");
        match self.client.close_session().await {
            Ok(Ok(())) => self.history().closed(session),
            Ok(Err(error)) => self.client.violation(format!("the end of a session was answered {error:?}")),
            // It has ended or not.
            Err(Disconnected) => {}
        }
        self.client.abandon_session();
        Err(Disconnected)
    }

    /// Leaves its session to expire and begins another.
    pub(super) async fn abandon(&mut self) -> Step {
        self.let_go("abandoned");
        self.client.abandon_session();
        Err(Disconnected)
    }
}

fn own_path(scope: Scope, name: &str) -> String {
    format!("{}/own/{name}", scope.root())
}
