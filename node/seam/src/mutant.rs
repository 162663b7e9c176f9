//! Deliberately broken variants of production code, which the simulator has to find.
//!
//! Without the feature `mutants`, which only the simulator's crate turns on, [`is`] is a constant and nothing of them
//! is compiled in. With it the broken variant of a thread is chosen by `set`; no configuration and no environment
//! reaches it.

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A promise that the code breaks on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant { $($(#[doc = $doc])+ $variant,)+ }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it does, in a line.
            pub fn summary(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

mutants! {
    /// What the log has written counts as durable before it is synced
    AckBeforeFsync = "ack-before-fsync",
    /// A failed sync counts as a success
    FsyncFailureIgnored = "fsync-failure-ignored",
    /// Checksums of log records are not compared
    ChecksumUnchecked = "checksum-unchecked",
    /// A server's vote is not written down
    UnsavedVote = "unsaved-vote",
    /// An observer answers in place of the last voter when that can't be reached
    ObserverInQuorum = "observer-in-quorum",
    /// An older incarnation goes on, and what it writes to the global group's storage is taken
    UnfencedIncarnation = "unfenced-incarnation",
    /// An append of the global group counts as durable before the region has committed it
    GlobalAckBeforeCommit = "global-ack-before-commit",
    /// Writes that a server sends again are applied again
    ResentWriteApplied = "resent-write-applied",
    /// Requests that a region sends again are ordered again
    ResentForwardApplied = "resent-forward-applied",
    /// Records that a home sends again are applied again
    MirrorAppliedTwice = "mirror-applied-twice",
    /// A mirror starts from a source that could not be read, and deletes what that did not show
    DeletionOnEmptySource = "deletion-on-empty-source",
    /// Both sides count a lease from the receipt, without drift and margin
    LeaseFromReceipt = "lease-from-receipt",
    /// Nobody waits for clients whose server falls silent when their region's lease runs out
    SilentServersForgotten = "silent-servers-forgotten",
    /// Servers go on serving the holders of a lease that is over, and do not end their sessions
    LeaseIgnored = "lease-ignored",
    /// Requests of sessions that ended with their region's lease still take effect
    StaleLeaseEpoch = "stale-lease-epoch",
    /// A leader that was paused expires the sessions that it did not hear of meanwhile
    ExpiryAfterPause = "expiry-after-pause",
    /// A connection whose session has moved on may still write
    SessionMovedUnchecked = "session-moved-unchecked",
    /// A request does not wait for those before it that somebody else orders
    OrderersOvertake = "orderers-overtake",
    /// `sync` is answered without asking whoever orders the subtree
    SyncUnordered = "sync-unordered",
    /// The operations of a multi before the one that fails stay
    HalfMulti = "half-multi",
    /// A snapshot lacks the newest znode
    SnapshotIncomplete = "snapshot-incomplete",
    /// Sequential znodes are numbered by how many children there are
    SequenceFromChildCount = "sequence-from-child-count",
    /// Ephemerals stay when their session is closed
    EphemeralStays = "ephemeral-stays",
    /// A watch is registered some time after the read that leaves it
    WatchAfterRead = "watch-after-read",
    /// A reply is sent ahead of the events that come before it
    EventAfterReply = "event-after-reply",
    /// A watch that fires once stays
    WatchStays = "watch-stays",
    /// Setting watches again does not tell what has changed meanwhile
    SetWatchesForgets = "set-watches-forgets",
}

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Breaks what runs on this thread, or nothing.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }

    /// Whether this is broken here.
    pub fn is(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{is, set};

/// Whether this is broken here: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline]
pub const fn is(_: Mutant) -> bool {
    false
}
