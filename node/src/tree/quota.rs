//! Quotas: bounds of the number and the size of the znodes at and below a path, in ZooKeeper's formats.
//!
//! A quota of `/a` is the znode `/zookeeper/quota/a/zookeeper_limits`; what is used stands beside it in
//! `zookeeper_stats`. A znode counts for the longest path above it that has a quota.

use std::fmt;
use std::sync::Arc;

use super::{Tree, split_path};

const ROOT: &str = "/zookeeper/quota";
const LIMITS: &str = "zookeeper_limits";
const STATS: &str = "zookeeper_stats";

/// What the znodes of a quota use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of znodes.
    pub count: i64,
    /// Bytes of their data.
    pub bytes: i64,
}

/// The bounds of a quota; `None` is without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Number of znodes from which on the log warns.
    pub count: Option<i64>,
    /// Bytes from which on the log warns.
    pub bytes: Option<i64>,
    /// Number of znodes that no write may exceed.
    pub count_hard: Option<i64>,
    /// Bytes that no write may exceed.
    pub bytes_hard: Option<i64>,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "count={},bytes={}", self.count, self.bytes)
    }
}

impl Limits {
    /// Reads ZooKeeper's text, such as `count=5,bytes=-1;byteHardLimit=100;countHardLimit=-1`. What is not
    /// understood bounds nothing.
    pub fn parse(text: &[u8]) -> Self {
        let mut limits = Self::default();
        let text = std::str::from_utf8(text).unwrap_or_default();
        for (key, value) in text.split([',', ';']).filter_map(|pair| pair.split_once('=')) {
            // Some releases write `bytes=5=;...`.
            let value = value.trim_end_matches('=').trim().parse().ok().filter(|value| *value > -1);
            match key.trim() {
                "count" => limits.count = value,
                "bytes" => limits.bytes = value,
                "countHardLimit" => limits.count_hard = value,
                "byteHardLimit" => limits.bytes_hard = value,
                _ => {}
            }
        }
        limits
    }
}

/// The path whose quota a znode under [`ROOT`] is about, and the znode's name.
fn subject(path: &str) -> Option<(&str, &str)> {
    let (quota, name) = split_path(path.strip_prefix(ROOT)?)?;
    (quota != "/" && (name == LIMITS || name == STATS)).then_some((quota, name))
}

impl Tree {
    /// The quota that a path counts for, with what is used of it.
    pub fn quota_of(&self, path: &str) -> Option<(&Arc<str>, Usage)> {
        if self.quotas.is_empty() || path.starts_with("/zookeeper/") {
            return None;
        }
        let mut path = path;
        loop {
            if let Some((quota, usage)) = self.quotas.get_key_value(path) {
                return Some((quota, *usage));
            }
            (path, _) = split_path(path)?;
        }
    }

    /// The bounds of a quota.
    pub fn quota_limits(&self, quota: &str) -> Limits {
        let znode = self.get(&format!("{ROOT}{quota}/{LIMITS}"));
        znode.and_then(|z| z.data).map(Limits::parse).unwrap_or_default()
    }

    /// Finds all quotas and counts anew what is used of each: after znodes came or went in bulk.
    pub fn recount_quotas(&mut self) {
        self.quotas.clear();
        let mut left = vec![ROOT.to_string()];
        while let Some(path) = left.pop() {
            left.extend(self.children(&path).map(|name| format!("{path}/{name}")));
            if let Some((quota, LIMITS)) = subject(&path) {
                self.quotas.insert(quota.into(), Usage::default());
            }
        }
        let quotas: Vec<Arc<str>> = self.quotas.keys().cloned().collect();
        for quota in quotas {
            let usage = self.count_usage(&quota);
            self.quotas.insert(quota, usage);
        }
    }

    /// Writes what is used into the znodes where clients read it.
    pub fn write_quota_stats(&mut self) {
        let quotas: Vec<Arc<str>> = self.quotas.keys().cloned().collect();
        quotas.iter().for_each(|quota| self.write_stats(quota));
    }

    /// A znode came, went or changed its size.
    pub(super) fn charge(&mut self, path: &str, count: i64, bytes: i64) {
        let Some((quota, Usage { count: counted, bytes: sum })) = self.quota_of(path) else { return };
        let quota = quota.clone();
        self.quotas.insert(quota.clone(), Usage { count: counted + count, bytes: sum + bytes });
        self.write_stats(&quota);
    }

    /// A znode under [`ROOT`] came or went.
    pub(super) fn note_quota(&mut self, path: &str, comes: bool) {
        let Some((quota, name)) = subject(path) else { return };
        match name {
            LIMITS if comes => {
                self.quotas.insert(quota.into(), Usage::default());
                let usage = self.count_usage(quota);
                self.quotas.insert(quota.into(), usage);
                self.write_stats(quota);
                self.charge_above(quota, Usage { count: -usage.count, bytes: -usage.bytes });
            }
            LIMITS => {
                if let Some(usage) = self.quotas.remove(quota) {
                    self.charge_above(quota, usage);
                }
            }
            _ if comes => self.write_stats(quota),
            _ => {}
        }
    }

    /// What one quota takes over from the next one above it, or gives back.
    fn charge_above(&mut self, quota: &str, usage: Usage) {
        if let Some((parent, _)) = split_path(quota) {
            self.charge(parent, usage.count, usage.bytes);
        }
    }

    fn write_stats(&mut self, quota: &str) {
        let Some(usage) = self.quotas.get(quota).copied() else { return };
        self.change(&format!("{ROOT}{quota}/{STATS}"), |znode| {
            znode.data = Some(usage.to_string().into_bytes().into());
        });
    }

    /// What is at and below a path, without what counts for quotas further below.
    fn count_usage(&self, quota: &str) -> Usage {
        let mut usage = Usage::default();
        let mut left = vec![quota.to_string()];
        while let Some(path) = left.pop() {
            let Some(znode) = self.get(&path) else { continue };
            usage.count += 1;
            usage.bytes += znode.data_len() as i64;
            let children = self.children(&path).map(|name| format!("{path}/{name}"));
            left.extend(children.filter(|child| !self.quotas.contains_key(child.as_str())));
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{rooted, znode};
    use super::*;

    #[test]
    fn limits_are_read_in_zookeepers_format() {
        let soft = Limits { count: Some(5), ..Limits::default() };
        assert_eq!(Limits::parse(b"count=5,bytes=-1"), soft);
        let all = b"count=1,bytes=2=;byteHardLimit=3;countHardLimit=4";
        let expected = Limits { count: Some(1), bytes: Some(2), count_hard: Some(4), bytes_hard: Some(3) };
        assert_eq!(Limits::parse(all), expected);
        for nonsense in [&b""[..], b"count", b"count=x,=,;;", b"\xff", b"count=99999999999999999999"] {
            assert_eq!(Limits::parse(nonsense), Limits::default());
        }
    }

    #[test]
    fn znodes_that_are_not_about_a_quota_are_left_alone() {
        for path in [
            "/zookeeper/quota",
            "/zookeeper/quota/a",
            "/zookeeper/quota/zookeeper_limits",
            "/a/zookeeper_limits",
        ] {
            assert_eq!(subject(path), None, "{path}");
        }
        assert_eq!(subject("/zookeeper/quota/a/zookeeper_stats"), Some(("/a", STATS)));
        assert_eq!(subject("/zookeeper/quota/a/b/zookeeper_limits"), Some(("/a/b", LIMITS)));
    }

    fn quota_znodes() -> Vec<String> {
        let of = |quota: &str| {
            [format!("{ROOT}{quota}"), format!("{ROOT}{quota}/{LIMITS}"), format!("{ROOT}{quota}/{STATS}")]
        };
        [of("/0"), of("/0/1")].concat()
    }

    proptest! {
        /// What is kept up to date write by write is what a count from scratch finds.
        #[test]
        fn usage_follows_content(ops in proptest::collection::vec((0u8..3, 0usize..14, ".{0,4}"), 0..80)) {
            let mut tree = rooted();
            for path in ["/zookeeper", ROOT] {
                tree.put(path, znode(0, "", 0).as_ref());
            }
            let paths = ["/0", "/1", "/0/1", "/0/2", "/0/1/0", "/0/1/1", "/0/1/0/0", "/2"];
            let paths: Vec<String> = paths.iter().map(|p| p.to_string()).chain(quota_znodes()).collect();
            for (op, path, data) in ops {
                let path = &paths[path];
                let parent = split_path(path).unwrap().0;
                match (op, tree.get(path).map(|z| z.children == 0)) {
                    (0, None) if tree.get(parent).is_some() => tree.create(path, znode(0, &data, 1).as_ref()),
                    (1, Some(true)) => tree.delete(path, 2),
                    (2, Some(_)) if !path.ends_with(STATS) => {
                        tree.change(path, |z| z.data = Some(data.into_bytes().into()));
                    }
                    _ => {}
                }
                let kept = tree.quotas.clone();
                let digest = tree.digest(0);
                tree.recount_quotas();
                prop_assert_eq!(&kept, &tree.quotas);
                tree.write_quota_stats();
                prop_assert_eq!(digest, tree.digest(0), "the znodes say the same");
            }
        }
    }
}
