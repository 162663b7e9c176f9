//! Znodes and what they consist of.

use std::sync::Arc;

use bytes::Bytes;
use meridian_bridge::mesh::SubtreeId;
use meridian_wire::Stat;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::Lifetime;

/// A znode of a tree, as it is read and written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZnodeRef<'t> {
    /// The subtree it belongs to.
    pub subtree: SubtreeId,
    /// Its data; clients tell null from empty.
    pub data: Option<&'t [u8]>,
    /// Who may do what.
    pub acl: &'t Arc<[Acl]>,
    /// How long it stays: [`ZnodeRef::lifetime`].
    pub owner: i64,
    /// Its times, versions and zxids.
    pub times: Times,
    /// Number of its children; whoever writes a znode need not know it.
    pub children: u32,
}

/// A znode by itself, without its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// The subtree it belongs to.
    pub subtree: SubtreeId,
    /// Its data.
    pub data: Option<Bytes>,
    /// Who may do what.
    pub acl: Arc<[Acl]>,
    /// How long it stays.
    pub owner: i64,
    /// Its times, versions and zxids.
    pub times: Times,
}

/// The part of a stat that is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// zxid of its creation.
    pub czxid: i64,
    /// zxid of the last change of its data.
    pub mzxid: i64,
    /// zxid of the last creation or deletion of a child.
    pub pzxid: i64,
    /// Time of its creation, ms since the Unix epoch.
    pub ctime: i64,
    /// Time of the last change of its data.
    pub mtime: i64,
    /// Changes of its data.
    pub version: i32,
    /// Creations of children: the number of the next sequential child. The stat that clients see counts
    /// deletions as well.
    pub cversion: i32,
    /// Changes of its ACL.
    pub aversion: i32,
}

/// An entry of an ACL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Acl {
    /// Bits of [`meridian_wire::perms`].
    pub perms: i32,
    /// How `id` is to be read: `world`, `digest`, `ip`, ...
    pub scheme: Box<str>,
    /// Whom it is about.
    pub id: Box<str>,
}

impl Acl {
    /// `world:anyone` may do everything.
    pub fn open() -> Self {
        Self { perms: meridian_wire::perms::ALL, scheme: "world".into(), id: "anyone".into() }
    }
}

impl Znode {
    /// The znode as a tree takes it.
    pub fn as_ref(&self) -> ZnodeRef<'_> {
        let Self { subtree, data, acl, owner, times } = self;
        ZnodeRef { subtree: *subtree, data: data.as_deref(), acl, owner: *owner, times: *times, children: 0 }
    }
}

impl ZnodeRef<'_> {
    /// The znode by itself.
    pub fn to_owned(&self) -> Znode {
        Znode {
            subtree: self.subtree,
            data: self.data.map(Bytes::copy_from_slice),
            acl: self.acl.clone(),
            owner: self.owner,
            times: self.times,
        }
    }

    /// How long it stays.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime::of_owner(self.owner)
    }

    /// The stat that clients see.
    pub fn stat(&self) -> Stat {
        let Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion } = self.times;
        let num_children = i32::try_from(self.children).unwrap_or(i32::MAX);
        Stat {
            czxid,
            mzxid,
            ctime,
            mtime,
            version,
            // Every child was created, and those that are not there any more were deleted.
            cversion: cversion.wrapping_mul(2).wrapping_sub(num_children),
            aversion,
            ephemeral_owner: self.lifetime().session(),
            data_length: self.data.map_or(0, |data| i32::try_from(data.len()).unwrap_or(i32::MAX)),
            num_children,
            pzxid,
        }
    }

    pub(super) fn data_len(&self) -> u64 {
        self.data.map_or(0, |data| data.len() as u64)
    }

    /// A hash of everything that must be equal in all copies. The subtree's root is hashed like any
    /// other znode; its place above does not enter.
    pub(super) fn hash(&self, path: &str) -> u128 {
        let mut input = Input(Vec::with_capacity(256 + path.len() + self.data.map_or(0, <[u8]>::len)));
        input.field(path.as_bytes());
        input.field(self.data.unwrap_or(&[0xff; 3]));
        for acl in self.acl.iter() {
            input.field(&acl.perms.to_le_bytes());
            input.field(acl.scheme.as_bytes());
            input.field(acl.id.as_bytes());
        }
        let Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion } = self.times;
        for number in [czxid, mzxid, pzxid, ctime, mtime, self.owner] {
            input.0.extend_from_slice(&number.to_le_bytes());
        }
        for number in [version, cversion, aversion] {
            input.0.extend_from_slice(&number.to_le_bytes());
        }
        xxh3_128(&input.0)
    }
}

/// What is hashed, in one piece: for short pieces that is several times as fast as bit by bit.
struct Input(Vec<u8>);

impl Input {
    fn field(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }
}
