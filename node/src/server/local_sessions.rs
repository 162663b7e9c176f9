//! Sessions that this server alone knows: they cost no write of the region, own no ephemerals and can't be taken
//! up at another server. In read-only mode there are no others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use meridian_seam::limits;
use meridian_wire::PASSWORD_LENGTH;
use parking_lot::Mutex;

use super::client::Client;

/// The local sessions of a server.
#[derive(Default)]
pub(super) struct LocalSessions(Mutex<HashMap<i64, LocalSession, FixedState>>);

struct LocalSession {
    password: [u8; PASSWORD_LENGTH],
    /// The connection that has it, or had it last: it knows the timeout and when the client was heard of.
    client: Arc<Client>,
}

impl LocalSessions {
    /// Opens a session for a connection; false if there are too many.
    pub(super) fn open(&self, session: i64, password: [u8; PASSWORD_LENGTH], client: Arc<Client>) -> bool {
        let mut sessions = self.0.lock();
        if sessions.len() >= limits::SESSIONS_MAX {
            return false;
        }
        sessions.insert(session, LocalSession { password, client });
        true
    }

    /// Lets another connection take a session up and closes the one that had it. False if the session is not
    /// known or the password is not its.
    pub(super) fn take_up(
        &self,
        session: i64,
        password: &[u8; PASSWORD_LENGTH],
        client: &Arc<Client>,
    ) -> bool {
        let mut sessions = self.0.lock();
        let Some(found) = sessions.get_mut(&session).filter(|s| s.password == *password) else {
            return false;
        };
        std::mem::replace(&mut found.client, client.clone()).close();
        true
    }

    /// Ends a session and returns its password, if it was one.
    pub(super) fn close(&self, session: i64) -> Option<[u8; PASSWORD_LENGTH]> {
        self.0.lock().remove(&session).map(|found| found.password)
    }

    /// Ends the sessions that have not been heard of for their timeout.
    pub(super) fn expire(&self, now: Duration) {
        self.0.lock().retain(|_, s| now.saturating_sub(s.client.heard()) <= s.client.timeout());
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Established;
    use super::*;

    fn client(number: u64, at: u64) -> Arc<Client> {
        let at = Duration::from_secs(at);
        let peer = ([127, 0, 0, 1], 1).into();
        let timeout = Duration::from_secs(10);
        Arc::new(Client::new(number, peer, timeout, Established { at, unix_ms: 0, is_secure: false }))
    }

    #[test]
    fn a_local_session_is_its_owners_until_it_expires() {
        let sessions = LocalSessions::default();
        assert!(sessions.open(7, [1; 16], client(1, 0)));
        assert!(!sessions.take_up(7, &[2; 16], &client(2, 5)), "the wrong password");
        assert!(!sessions.take_up(8, &[1; 16], &client(2, 5)), "another session");
        sessions.expire(Duration::from_secs(10));
        assert!(sessions.take_up(7, &[1; 16], &client(2, 5)));
        sessions.expire(Duration::from_secs(15));
        assert_eq!(sessions.len(), 1);
        sessions.expire(Duration::from_secs(16));
        assert_eq!((sessions.len(), sessions.close(7)), (0, None));
    }
}
