//! Reads the znodes of an Apache ZooKeeper ensemble: from its files ([`files`]) or through its client port
//! ([`live`]).

pub mod files;
pub mod live;

use std::collections::BTreeMap;

use crate::txn::import::ImportedZnode;

/// What was found elsewhere.
#[derive(Debug, Default)]
pub struct Found {
    /// Every znode that can be taken, by path; parents come before their children.
    pub znodes: BTreeMap<Box<str>, ImportedZnode>,
    /// The highest zxid.
    pub zxid: i64,
    /// Ephemerals, which end with their sessions and are not taken.
    pub ephemerals: u64,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Found {
    /// Leaves out what is never taken: ephemerals and the ensemble's own znodes.
    fn keep_what_lasts(&mut self) {
        use crate::tree::Lifetime;

        let before = self.znodes.len();
        self.znodes.retain(|_, znode| !matches!(Lifetime::of_owner(znode.owner), Lifetime::Ephemeral(_)));
        self.ephemerals = (before - self.znodes.len()) as u64;
        self.znodes.retain(|path, _| &**path != "/zookeeper" && !path.starts_with("/zookeeper/"));
    }
}
