//! The bound of every queue, frame, batch and table, each with its reason and with what happens when
//! it is reached.

/// Default of `jute.maxbuffer`: the largest frame taken from a client (ZooKeeper's default, 0xfffff).
/// A longer one closes that connection.
pub const CLIENT_FRAME_BYTES_MAX: usize = 0xf_ffff;

/// Requests of one connection that are read but not yet answered. Beyond it the server stops reading
/// from that connection until answers went out: the client feels back-pressure, nobody else does.
pub const CONNECTION_REQUESTS_MAX: usize = 1_024;

/// Bytes of answers and events waiting for one slow client before it is disconnected.
pub const CONNECTION_OUTPUT_BYTES_MAX: usize = 64 << 20;

/// Bytes of replies after which a connection writes before it executes more requests: a client that asks
/// for much gets it in pieces, and no piece holds the server's memory for long.
pub const CONNECTION_FLUSH_BYTES: usize = 256 << 10;

/// Bytes read from a client beyond the request that is next, while that one waits for earlier ones.
pub const CONNECTION_READ_AHEAD_BYTES: usize = 64 << 10;

/// Paths watched by one connection. Beyond it the connection is closed: no client that can set its
/// watches again after a reconnect has so many.
pub const CONNECTION_WATCHED_PATHS_MAX: usize = 1_000_000;

/// Identities that a client may prove on one connection: every access check reads them all.
pub const CONNECTION_IDENTITIES_MAX: usize = 64;

/// Client connections from one address (`maxClientCnxns`, ZooKeeper's default). Beyond it new ones are
/// closed at once.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 60;

/// The largest `jute.maxbuffer` that may be configured: a request must fit into a batch and a batch into
/// a message between servers, twice over.
pub const CLIENT_FRAME_BYTES_CEILING: usize = 8 << 20;

/// Changes of shared znodes that a server remembers for clients that set their watches again. About
/// older ones it assumes that they concern the client, which costs a read each.
pub const RECENT_CHANGES_MAX: usize = 100_000;

/// Sessions expired by one command.
pub const EXPIRED_SESSIONS_PER_COMMAND: usize = 1_000;

/// Bytes of a snapshot that an operator has restored: it is kept in a temporary file until it is checked.
pub const RESTORE_BYTES_MAX: u64 = 64 << 30;

/// Znodes that go by themselves deleted by one command.
pub const REAPED_ZNODES_PER_COMMAND: usize = 1_000;

/// TLS handshakes of clients under way. Beyond it new ones are closed at once: strangers can hold no more memory
/// and time than this.
pub const CLIENT_HANDSHAKES_MAX: usize = 1_024;

/// Client connections per server, all addresses together. Beyond it new ones are closed at once.
pub const CONNECTIONS_MAX: usize = 65_536;

/// File descriptors that clients' connections leave to other servers, operators at two addresses, and the log and
/// snapshots; half of all where there are few.
pub const FILES_RESERVED: usize = PEER_CONNECTIONS_MAX + 2 * OPERATOR_CONNECTIONS_MAX + 512;

/// Connections accepted from the other servers of a region, all together: three from each of as many as can be numbered.
/// Beyond it new ones are closed at once.
pub const PEER_CONNECTIONS_MAX: usize = 768;

/// Connections accepted from operators, at each address. Beyond it new ones are closed at once.
pub const OPERATOR_CONNECTIONS_MAX: usize = 128;

/// Writes of one server that are not yet applied. Beyond it its connections wait, which is the
/// counterpart of ZooKeeper's globalOutstandingLimit.
pub const SERVER_WRITES_MAX: usize = 65_536;

/// Commands in one batch, which is one log record: bounds the time a batch takes to apply.
pub const BATCH_COMMANDS_MAX: usize = 4_096;

/// Bytes in one batch: one log record and one replication message stay small against the memory.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Batches proposed and not yet applied. Two keep the disk and the network busy at once; more would
/// only make batches smaller.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;

/// Proposals waiting at the leader for a batch. Beyond it a forwarding server is told to come again.
pub const LEADER_QUEUE_PROPOSALS_MAX: usize = 16_384;

/// Largest message between the servers of a region, or between regions: a batch with its frame, or a snapshot chunk.
pub const PEER_FRAME_BYTES_MAX: usize = 16 << 20;

/// Requests that wait on one connection between servers or regions. Beyond it the asking side is refused
/// and the answering side stops reading.
pub const RPC_REQUESTS_MAX: usize = 1_024;

/// Bytes of a snapshot sent in one message.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;

/// Entries (batches) in one append message; its bytes are bounded by [`BATCH_BYTES_MAX`] as well.
pub const APPEND_ENTRIES_MAX: u64 = 256;

/// Groups of writes that a server has under way to its leader.
pub const FORWARDS_IN_FLIGHT_MAX: usize = 16;

/// Append messages to one follower under way at a time.
pub const APPENDS_IN_FLIGHT_MAX: usize = 64;

/// Sessions of a region. Beyond it new ones are refused.
pub const SESSIONS_MAX: usize = 1_000_000;

/// Length of a znode path in bytes. ZooKeeper bounds it by the frame alone; here a path is also part of
/// watch events and of index keys.
pub const PATH_BYTES_MAX: usize = 64 << 10;

/// Writes of a region that wait to be ordered elsewhere (by the global group or by a subtree's home).
/// Beyond it further ones are answered with connectionLoss at once: the other side is not reachable.
pub const OUTBOX_REQUESTS_MAX: usize = 65_536;

/// Bytes of the same.
pub const OUTBOX_BYTES_MAX: usize = 64 << 20;

/// Requests forwarded to another region in one message.
pub const FORWARD_REQUESTS_MAX: usize = 1_024;

/// Bytes of the same; a single larger request goes alone.
pub const FORWARD_BYTES_MAX: usize = 1 << 20;

/// Records of a homed subtree kept for regions that lag. A region further behind gets a snapshot.
pub const MIRROR_RECORDS_MAX: usize = 100_000;

/// [`MIRROR_RECORDS_MAX`], which simulations lower, so that regions lag as far within a run.
#[cfg(not(feature = "mutants"))]
pub const fn mirror_records_max() -> usize {
    MIRROR_RECORDS_MAX
}

#[cfg(feature = "mutants")]
mod lowered {
    use std::cell::Cell;

    thread_local! {
        static MIRROR_RECORDS: Cell<usize> = const { Cell::new(super::MIRROR_RECORDS_MAX) };
    }

    /// [`super::MIRROR_RECORDS_MAX`], or less.
    pub fn mirror_records_max() -> usize {
        MIRROR_RECORDS.get()
    }

    /// Lowers what [`mirror_records_max`] returns on this thread.
    pub fn lower_mirror_records_max(records: usize) {
        MIRROR_RECORDS.set(records);
    }
}

#[cfg(feature = "mutants")]
pub use lowered::{lower_mirror_records_max, mirror_records_max};

/// Bytes of the same.
pub const MIRROR_BYTES_MAX: usize = 64 << 20;

/// Regions of a mesh: the region's number is the highest byte of its session identifiers.
pub const REGIONS_MAX: usize = 127;

/// Servers of a region: the number is the second byte of the session identifiers.
pub const SERVERS_MAX: usize = 255;

/// Subtrees of a mesh.
pub const SUBTREES_MAX: usize = 1_000;

/// Connections accepted from other regions, all peers together. Beyond it new ones are closed at once
/// with a reason; those that stand are not disturbed.
pub const BRIDGE_CONNECTIONS_MAX: usize = 1_024;

/// Connections accepted from one peer. One more closes that peer's oldest: a peer that restarted comes
/// anew before its old connection has timed out.
pub const BRIDGE_CONNECTIONS_PER_PEER_MAX: usize = 4;

/// Handshakes of other regions under way. From half of it on a caller must first prove its address;
/// beyond it callers are refused. Strangers can hold no more memory than this.
pub const BRIDGE_HANDSHAKES_MAX: usize = 256;

/// Streams that a peer may have open on one connection. Beyond it the peer's next open waits.
pub const BRIDGE_STREAMS_MAX: u32 = 64;

/// Accepted streams that wait to be taken. Beyond it new ones wait in their connections.
pub const BRIDGE_STREAMS_WAITING_MAX: usize = 64;
