//! The ACLs of a tree, each kept once.

use std::sync::{Arc, LazyLock};

use foldhash::fast::FixedState;
use imbl::{GenericHashMap, OrdMap};

use super::Acl;

static OPEN: LazyLock<Arc<[Acl]>> = LazyLock::new(|| Arc::new([Acl::open()]));

/// ACLs by number. Number 0 is the open one, which most znodes have; the others are counted and go with their
/// last znode.
#[derive(Clone, Debug, Default)]
pub(super) struct Acls {
    lists: OrdMap<u64, (Arc<[Acl]>, u64)>,
    numbers: GenericHashMap<Arc<[Acl]>, u64, FixedState, imbl::shared_ptr::DefaultSharedPtr>,
    last: u64,
}

impl Acls {
    /// The ACL of a number.
    pub(super) fn get(&self, number: u64) -> Option<&Arc<[Acl]>> {
        if number == 0 { Some(&OPEN) } else { self.lists.get(&number).map(|(acl, _)| acl) }
    }

    /// The number of an ACL that one znode more has.
    pub(super) fn take(&mut self, acl: &Arc<[Acl]>) -> u64 {
        if Arc::ptr_eq(acl, &OPEN) || **acl == **OPEN {
            return 0;
        }
        let number = self.numbers.get(acl).copied().unwrap_or_else(|| {
            self.last += 1;
            self.numbers.insert(acl.clone(), self.last);
            self.last
        });
        self.lists.entry(number).or_insert_with(|| (acl.clone(), 0)).1 += 1;
        number
    }

    /// One znode less has it.
    pub(super) fn give_back(&mut self, number: u64) {
        let Some((acl, znodes)) = self.lists.get_mut(&number) else { return };
        *znodes -= 1;
        if *znodes == 0 {
            self.numbers.remove(acl);
            self.lists.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_goes_with_its_last_znode() {
        let mut acls = Acls::default();
        let read: Arc<[Acl]> = Arc::new([Acl { perms: 1, ..Acl::open() }]);
        let number = acls.take(&read);
        assert_eq!(acls.take(&read), number);
        assert_eq!(acls.take(&OPEN.iter().cloned().collect()), 0);
        acls.give_back(number);
        assert_eq!(acls.get(number), Some(&read));
        acls.give_back(number);
        assert_eq!((acls.get(number), acls.numbers.len()), (None, 0));
        acls.give_back(0);
        assert!(acls.get(0).is_some());
    }
}
