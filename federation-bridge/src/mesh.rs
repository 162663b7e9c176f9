//! The regions of a mesh and the subtrees they share.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use meridian_seam::limits;

/// A region's number: 1 to [`limits::REGIONS_MAX`], in the order of the mesh's table.
pub type RegionId = u8;

/// A subtree's number: its place in the mesh's table, from 1. [`LOCAL`] is everything else.
pub type SubtreeId = u16;

/// The part of a region's tree that is not shared.
pub const LOCAL: SubtreeId = 0;

/// The table of a mesh: equal in every region, or the regions refuse to talk to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Names of the regions; region `i + 1` is at index `i`.
    pub regions: Vec<String>,
    /// The shared subtrees; subtree `i + 1` is at index `i`.
    pub subtrees: Vec<Subtree>,
}

/// A shared subtree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subtree {
    /// The path of its root, which exists from the start and can't be deleted.
    pub path: String,
    /// Who orders its writes.
    pub mode: Mode,
}

/// How a subtree is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The global group orders its writes.
    Global,
    /// One region orders its writes; the others mirror it.
    Homed {
        /// The region that starts as home.
        home: RegionId,
    },
}

/// Who puts requests in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Orderer {
    /// The global group: one order for all global subtrees.
    Global,
    /// The home of this subtree.
    Home(SubtreeId),
}

/// Why a table can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MeshError {
    /// More than the limit.
    #[error("{0} {1} exceed the limit of {2}")]
    TooMany(usize, &'static str, usize),
    /// A name twice.
    #[error("{0} '{1}' appears twice")]
    Duplicate(&'static str, String),
    /// A root that is no plain path below `/`.
    #[error(
        "subtree path '{0}' must be an absolute path other than / and /zookeeper, without a trailing slash"
    )]
    Path(String),
    /// A home that is no region of the table.
    #[error("subtree '{0}' names a home that is not a region of the mesh")]
    Home(String),
    /// Subtrees inside each other.
    #[error("subtree '{0}' lies inside subtree '{1}'; shared subtrees can't be nested")]
    Nested(String, String),
}

impl Mesh {
    /// Checks the table.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub fn validate(&self) -> Result<(), MeshError> {
        if self.regions.len() > limits::REGIONS_MAX {
            return Err(MeshError::TooMany(self.regions.len(), "regions", limits::REGIONS_MAX));
        }
        if self.subtrees.len() > limits::SUBTREES_MAX {
            return Err(MeshError::TooMany(self.subtrees.len(), "subtrees", limits::SUBTREES_MAX));
        }
        for (i, name) in self.regions.iter().enumerate() {
            if self.regions[..i].contains(name) {
                return Err(MeshError::Duplicate("region", name.clone()));
            }
        }
        for (i, subtree) in self.subtrees.iter().enumerate() {
            self.validate_subtree(subtree)?;
            for other in &self.subtrees[..i] {
                if other.path == subtree.path {
                    return Err(MeshError::Duplicate("subtree", subtree.path.clone()));
                }
                for (inner, outer) in [(subtree, other), (other, subtree)] {
                    if is_below(&inner.path, &outer.path) {
                        return Err(MeshError::Nested(inner.path.clone(), outer.path.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    fn validate_subtree(&self, subtree: &Subtree) -> Result<(), MeshError> {
        let path = &subtree.path;
        let names_valid = path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/')
                .all(|name| !name.is_empty() && name != "." && name != ".." && !name.contains('\0'))
        });
        if !names_valid || path == "/zookeeper" || path.starts_with("/zookeeper/") {
            return Err(MeshError::Path(path.clone()));
        }
        match subtree.mode {
            Mode::Homed { home } if self.region_name(home).is_none() => Err(MeshError::Home(path.clone())),
            _ => Ok(()),
        }
    }

    /// A fingerprint of the table, which regions must have in common. It depends on what the table says and not on how
    /// this build encodes it: during an upgrade neighbours write different versions of records.
    pub fn fingerprint(&self) -> u64 {
        let mut fields = vec![format!("{} regions", self.regions.len())];
        fields.extend(self.regions.iter().cloned());
        for Subtree { path, mode } in &self.subtrees {
            let mode = match mode {
                Mode::Global => "global".to_string(),
                Mode::Homed { home } => format!("homed {home}"),
            };
            fields.extend([path.clone(), mode]);
        }
        // FNV-1a, of fields that end in a byte that no text has: against mistakes, not against attackers, who would need
        // a certificate.
        let bytes = fields.iter().flat_map(|field| field.bytes().chain([0xff]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }

    /// The name of a region.
    pub fn region_name(&self, region: RegionId) -> Option<&str> {
        self.regions.get(usize::from(region).checked_sub(1)?).map(String::as_str)
    }

    /// The number of a region.
    pub fn region_id(&self, name: &str) -> Option<RegionId> {
        let index = self.regions.iter().position(|n| n == name)?;
        RegionId::try_from(index + 1).ok()
    }

    /// All regions' numbers.
    pub fn region_ids(&self) -> impl Iterator<Item = RegionId> + use<> {
        1..=RegionId::try_from(self.regions.len().min(limits::REGIONS_MAX)).unwrap_or(RegionId::MAX)
    }

    /// All subtrees with their numbers.
    pub fn subtrees(&self) -> impl Iterator<Item = (SubtreeId, &Subtree)> {
        (1..).zip(&self.subtrees)
    }

    /// The subtree of that number; none for [`LOCAL`].
    pub fn subtree(&self, id: SubtreeId) -> Option<&Subtree> {
        self.subtrees.get(usize::from(id).checked_sub(1)?)
    }

    /// The subtree that rules a path: that of the longest prefix, or [`LOCAL`].
    pub fn subtree_of(&self, path: &str) -> SubtreeId {
        // Subtrees are never nested, so at most one matches.
        self.subtrees().find(|(_, s)| s.path == path || is_below(path, &s.path)).map_or(LOCAL, |(id, _)| id)
    }

    /// Who orders the writes of a subtree; none for [`LOCAL`].
    pub fn orderer_of(&self, id: SubtreeId) -> Option<Orderer> {
        Some(match self.subtree(id)?.mode {
            Mode::Global => Orderer::Global,
            Mode::Homed { .. } => Orderer::Home(id),
        })
    }
}

/// Whether `path` lies strictly below `root`.
fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(subtrees: &[(&str, Mode)]) -> Mesh {
        Mesh {
            regions: vec!["a".into(), "b".into()],
            subtrees: subtrees.iter().map(|(p, mode)| Subtree { path: (*p).into(), mode: *mode }).collect(),
        }
    }

    #[test]
    fn the_prefix_of_whole_names_rules() {
        let mesh = mesh(&[("/global", Mode::Global), ("/a/shared", Mode::Homed { home: 2 })]);
        assert_eq!(mesh.validate(), Ok(()));
        assert_eq!(mesh.subtree_of("/global"), 1);
        assert_eq!(mesh.subtree_of("/global/x/y"), 1);
        assert_eq!(mesh.subtree_of("/globally"), LOCAL);
        assert_eq!(mesh.subtree_of("/a"), LOCAL);
        assert_eq!(mesh.subtree_of("/a/shared/1"), 2);
        assert_eq!(mesh.orderer_of(1), Some(Orderer::Global));
        assert_eq!(mesh.orderer_of(2), Some(Orderer::Home(2)));
        assert_eq!(mesh.orderer_of(LOCAL), None);
    }

    #[test]
    fn fingerprints_tell_tables_apart() {
        let tables = [
            mesh(&[]),
            mesh(&[("/x", Mode::Global)]),
            mesh(&[("/x", Mode::Homed { home: 1 })]),
            mesh(&[("/x", Mode::Homed { home: 2 })]),
            mesh(&[("/x", Mode::Global), ("/y", Mode::Global)]),
            Mesh { regions: vec!["ab".into()], subtrees: Vec::new() },
        ];
        let mut fingerprints: Vec<u64> = tables.iter().map(Mesh::fingerprint).collect();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), tables.len());
    }

    #[test]
    fn bad_tables_are_refused() {
        assert_eq!(mesh(&[("/x", Mode::Homed { home: 3 })]).validate(), Err(MeshError::Home("/x".into())));
        for path in ["", "/", "x", "/x/", "//x", "/zookeeper/x", "/a/../b"] {
            assert_eq!(mesh(&[(path, Mode::Global)]).validate(), Err(MeshError::Path(path.into())));
        }
        let nested = mesh(&[("/x/y", Mode::Global), ("/x", Mode::Global)]);
        assert_eq!(nested.validate(), Err(MeshError::Nested("/x/y".into(), "/x".into())));
    }
}
