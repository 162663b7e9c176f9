//! How long znodes stay.

/// How long a znode stays. It is kept in one number, as ZooKeeper does, in the place of an ephemeral's owner:
/// identifiers of sessions are positive, so that the negative numbers are free for the other kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// As long as this session.
    Ephemeral(i64),
    /// Until it has lost its last child.
    Container,
    /// Until it has had no children and no change of its data for so many ms.
    Ttl(i64),
}

/// The longest time to live in ms that ZooKeeper takes: 40 bits.
pub const TTL_MS_MAX: i64 = (1 << 40) - 1;

const CONTAINER: i64 = i64::MIN;
const TTL_MARK: i64 = 0xff << 56;

impl Lifetime {
    /// The number in which it is kept.
    pub fn to_owner(self) -> i64 {
        match self {
            Self::Persistent => 0,
            Self::Ephemeral(session) => session,
            Self::Container => CONTAINER,
            Self::Ttl(ttl_ms) => TTL_MARK | ttl_ms & TTL_MS_MAX,
        }
    }

    /// Reads what [`Lifetime::to_owner`] made.
    pub fn of_owner(owner: i64) -> Self {
        match owner {
            0 => Self::Persistent,
            CONTAINER => Self::Container,
            _ if owner & TTL_MARK == TTL_MARK => Self::Ttl(owner & TTL_MS_MAX),
            session => Self::Ephemeral(session),
        }
    }

    /// The session that an ephemeral belongs to, else 0: what a stat tells.
    pub fn session(self) -> i64 {
        if let Self::Ephemeral(session) = self { session } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lifetime_is_kept_in_one_number() {
        for lifetime in [
            Lifetime::Persistent,
            Lifetime::Ephemeral(127 << 56 | 7),
            Lifetime::Container,
            Lifetime::Ttl(1),
            Lifetime::Ttl(TTL_MS_MAX),
        ] {
            assert_eq!(Lifetime::of_owner(lifetime.to_owner()), lifetime);
        }
        // As in ZooKeeper's own snapshots.
        assert_eq!(Lifetime::Ttl(1_000).to_owner() as u64, 0xff00_0000_0000_03e8);
        assert_eq!(Lifetime::Container.to_owner() as u64, 0x8000_0000_0000_0000);
    }
}
