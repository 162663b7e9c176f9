//! The protocol's numbers.

use crate::WireError;

/// Defines an enum whose variants are numbers on the wire.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum $name { $($(#[$doc])* $variant = $value,)+ }

        impl $name {
            /// Every value there is.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
        }

        impl TryFrom<i32> for $name {
            type Error = WireError;

            fn try_from(value: i32) -> Result<Self, WireError> {
                match value {
                    $($value => Ok(Self::$variant),)+
                    _ => Err(WireError::UnknownCode { what: $what, value }),
                }
            }
        }

        impl From<$name> for i32 {
            fn from(code: $name) -> i32 {
                code as i32
            }
        }
    };
}

codes! {
    /// What a request asks for.
    OpCode, "operation" {
        /// A watch event; only ever sent by a server.
        Notification = 0,
        /// Creates a znode; the reply has its path.
        Create = 1,
        /// Deletes a znode.
        Delete = 2,
        /// Reads a znode's stat.
        Exists = 3,
        /// Reads a znode's data.
        GetData = 4,
        /// Writes a znode's data.
        SetData = 5,
        /// Reads a znode's ACL.
        GetAcl = 6,
        /// Writes a znode's ACL.
        SetAcl = 7,
        /// Lists a znode's children.
        GetChildren = 8,
        /// Waits until the server has caught up with the leader.
        Sync = 9,
        /// Keeps the session alive.
        Ping = 11,
        /// Lists a znode's children and reads its stat.
        GetChildren2 = 12,
        /// Compares a znode's version; only within a `multi`.
        Check = 13,
        /// Several writes, all or none.
        Multi = 14,
        /// Creates a znode; the reply has its path and stat.
        Create2 = 15,
        /// Changes the ensemble's members.
        Reconfig = 16,
        /// Asks whether the session has such watches.
        CheckWatches = 17,
        /// Removes watches of the session.
        RemoveWatches = 18,
        /// Creates a container, deleted when it has been emptied.
        CreateContainer = 19,
        /// Deletes an empty container or an expired znode; servers among themselves.
        DeleteContainer = 20,
        /// Creates a znode that expires unless written.
        CreateTtl = 21,
        /// Several reads.
        MultiRead = 22,
        /// Adds credentials to the session.
        Auth = 100,
        /// Sets watches again after a reconnect.
        SetWatches = 101,
        /// A step of a SASL exchange.
        Sasl = 102,
        /// Lists the session's ephemeral znodes under a prefix.
        GetEphemerals = 103,
        /// Counts a znode's descendants.
        GetAllChildrenNumber = 104,
        /// Sets watches again after a reconnect, persistent ones too.
        SetWatches2 = 105,
        /// Adds a persistent watch.
        AddWatch = 106,
        /// Lists the session's identities.
        WhoAmI = 107,
        /// Opens a session; servers among themselves.
        CreateSession = -10,
        /// Ends the session.
        CloseSession = -11,
        /// A failed operation within the results of a `multi`.
        Error = -1,
    }
}

/// Request numbers with a meaning of their own.
pub mod xid {
    /// A watch event.
    pub const NOTIFICATION: i32 = -1;
    /// A ping and its reply.
    pub const PING: i32 = -2;
    /// Adding credentials, and its reply.
    pub const AUTH: i32 = -4;
    /// Setting watches again, and its reply.
    pub const SET_WATCHES: i32 = -8;
}

codes! {
    /// The outcome of a request.
    ErrorCode, "error code" {
        /// Success.
        Ok = 0,
        /// The server failed.
        SystemError = -1,
        /// An operation of a `multi` after the one that failed.
        RuntimeInconsistency = -2,
        /// The server found its data inconsistent.
        DataInconsistency = -3,
        /// The connection was lost.
        ConnectionLoss = -4,
        /// A record could not be encoded or decoded.
        MarshallingError = -5,
        /// The operation is not known.
        Unimplemented = -6,
        /// The operation took too long.
        OperationTimeout = -7,
        /// Arguments that can't be.
        BadArguments = -8,
        /// The session is not known.
        UnknownSession = -12,
        /// The new members can't form a quorum.
        NewConfigNoQuorum = -13,
        /// Another change of members is under way.
        ReconfigInProgress = -14,
        /// Not an error by itself: the codes at and below it are those of the API.
        ApiError = -100,
        /// The znode does not exist.
        NoNode = -101,
        /// The session may not do this.
        NoAuth = -102,
        /// The version given is not the znode's.
        BadVersion = -103,
        /// Ephemeral znodes have no children.
        NoChildrenForEphemerals = -108,
        /// The znode exists.
        NodeExists = -110,
        /// The znode has children.
        NotEmpty = -111,
        /// The session has expired.
        SessionExpired = -112,
        /// A callback that can't be; clients only.
        InvalidCallback = -113,
        /// The ACL can't be.
        InvalidAcl = -114,
        /// The credentials were refused.
        AuthFailed = -115,
        /// The session is served by another connection.
        SessionMoved = -118,
        /// A write to a server in read-only mode.
        NotReadOnly = -119,
        /// An ephemeral znode by a local session.
        EphemeralOnLocalSession = -120,
        /// There is no such watch.
        NoWatcher = -121,
        /// The request took too long.
        RequestTimeout = -122,
        /// Changing members is switched off.
        ReconfigDisabled = -123,
        /// The session has to authenticate by SASL first.
        SessionClosedRequireSaslAuth = -124,
        /// The write would exceed a quota.
        QuotaExceeded = -125,
        /// The server has too much to do.
        ThrottledOp = -127,
    }
}

codes! {
    /// What kind of znode a create makes.
    CreateMode, "create mode" {
        /// Stays until deleted.
        Persistent = 0,
        /// Goes with its session.
        Ephemeral = 1,
        /// Stays; its name ends in ten digits that rise.
        PersistentSequential = 2,
        /// Goes with its session; its name ends in ten digits that rise.
        EphemeralSequential = 3,
        /// Goes some time after its last child went.
        Container = 4,
        /// Goes when it has no children and was not written for a time.
        PersistentWithTtl = 5,
        /// The same, with a name that ends in ten digits that rise.
        PersistentSequentialWithTtl = 6,
    }
}

impl CreateMode {
    /// Does the znode belong to its session?
    pub fn is_ephemeral(self) -> bool {
        matches!(self, Self::Ephemeral | Self::EphemeralSequential)
    }

    /// Does the server append a number to the name?
    pub fn is_sequential(self) -> bool {
        matches!(
            self,
            Self::PersistentSequential | Self::EphemeralSequential | Self::PersistentSequentialWithTtl
        )
    }

    /// Is it a container?
    pub fn is_container(self) -> bool {
        self == Self::Container
    }

    /// Does it have a time to live?
    pub fn is_ttl(self) -> bool {
        matches!(self, Self::PersistentWithTtl | Self::PersistentSequentialWithTtl)
    }
}

codes! {
    /// What a watch event tells.
    EventType, "event type" {
        /// The state of the connection changed, not a znode.
        None = -1,
        /// The znode was created.
        NodeCreated = 1,
        /// The znode was deleted.
        NodeDeleted = 2,
        /// The znode's data was written.
        NodeDataChanged = 3,
        /// A child was created or deleted.
        NodeChildrenChanged = 4,
        /// A data watch was removed.
        DataWatchRemoved = 5,
        /// A child watch was removed.
        ChildWatchRemoved = 6,
        /// A persistent watch was removed.
        PersistentWatchRemoved = 7,
    }
}

codes! {
    /// The state of a connection, as told in watch events.
    KeeperState, "connection state" {
        /// Not connected.
        Disconnected = 0,
        /// Connected to a server of a quorum.
        SyncConnected = 3,
        /// The credentials were refused.
        AuthFailed = 4,
        /// Connected to a server in read-only mode.
        ConnectedReadOnly = 5,
        /// Authenticated by SASL.
        SaslAuthenticated = 6,
        /// The session has expired.
        Expired = -112,
        /// The client was closed.
        Closed = 7,
    }
}

codes! {
    /// How far a persistent watch reaches.
    AddWatchMode, "watch mode" {
        /// The znode and its list of children.
        Persistent = 0,
        /// The znode and all below it.
        PersistentRecursive = 1,
    }
}

codes! {
    /// Which watches to check or remove.
    WatcherType, "watcher type" {
        /// Watches of lists of children.
        Children = 1,
        /// Watches of data and existence.
        Data = 2,
        /// All of them.
        Any = 3,
        /// Persistent watches.
        Persistent = 4,
        /// Persistent recursive watches.
        PersistentRecursive = 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_others_are_refused() {
        let known: Vec<i32> = (-200..200).filter(|number| OpCode::try_from(*number).is_ok()).collect();
        let numbers = [-11..=-10, -1..=9, 11..=22, 100..=107].into_iter().flatten();
        assert_eq!(known, numbers.collect::<Vec<_>>());
        for &op in OpCode::ALL {
            assert_eq!(OpCode::try_from(i32::from(op)), Ok(op));
        }
        let known: Vec<i32> = (-200..200).filter(|number| ErrorCode::try_from(*number).is_ok()).collect();
        let numbers = [-127..=-127, -125..=-118, -115..=-110, -108..=-108, -103..=-100, -14..=-12, -8..=0];
        assert_eq!(known, numbers.into_iter().flatten().collect::<Vec<_>>());
        assert_eq!(OpCode::try_from(10), Err(WireError::UnknownCode { what: "operation", value: 10 }));
        assert_eq!(CreateMode::try_from(7), Err(WireError::UnknownCode { what: "create mode", value: 7 }));
    }

    #[test]
    fn create_modes_know_their_properties() {
        let having = |property: fn(CreateMode) -> bool| -> Vec<i32> {
            CreateMode::ALL.iter().filter(|mode| property(**mode)).map(|mode| i32::from(*mode)).collect()
        };
        assert_eq!(having(CreateMode::is_ephemeral), [1, 3]);
        assert_eq!(having(CreateMode::is_sequential), [2, 3, 6]);
        assert_eq!(having(CreateMode::is_container), [4]);
        assert_eq!(having(CreateMode::is_ttl), [5, 6]);
    }
}
