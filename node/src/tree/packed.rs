//! The form in which the tree keeps a znode: what is usual takes no room.

use integer_encoding::VarInt;

use super::Times;
use meridian_bridge::mesh::SubtreeId;

/// What a znode's bytes say. Numbers have as many bytes as they need; those that are zero are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed<'t> {
    pub(super) subtree: SubtreeId,
    /// See [`super::acls::Acls`].
    pub(super) acl: u64,
    pub(super) children: u32,
    pub(super) owner: i64,
    pub(super) times: Times,
    pub(super) data: Data<'t>,
}

/// A znode's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Data<'t> {
    #[default]
    Null,
    Here(&'t [u8]),
    /// Too large to be copied whenever a neighbour changes.
    Elsewhere,
}

/// What is there, by the bits of the first byte.
mod flag {
    pub(super) const DATA_HERE: u8 = 1;
    pub(super) const DATA_ELSEWHERE: u8 = 1 << 1;
    pub(super) const SUBTREE: u8 = 1 << 2;
    pub(super) const ACL: u8 = 1 << 3;
    pub(super) const CHILDREN: u8 = 1 << 4;
    pub(super) const OWNER: u8 = 1 << 5;
    /// It was changed since it was created.
    pub(super) const CHANGED: u8 = 1 << 6;
}

impl<'t> Packed<'t> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion } = self.times;
        let is_new = self.times
            == Times { czxid, mzxid: czxid, pzxid: czxid, ctime, mtime: ctime, ..Times::default() };
        let (data_flag, data): (u8, &[u8]) = match self.data {
            Data::Null => (0, &[]),
            Data::Here(data) => (flag::DATA_HERE, data),
            Data::Elsewhere => (flag::DATA_ELSEWHERE, &[]),
        };
        let mut writer = Writer { bytes: Vec::with_capacity(64 + data.len()) };
        writer.bytes.push(data_flag);
        writer.number(flag::SUBTREE, self.subtree);
        writer.number(flag::ACL, self.acl);
        writer.number(flag::CHILDREN, self.children);
        writer.number(flag::OWNER, self.owner);
        writer.push(czxid);
        writer.push(ctime);
        if !is_new {
            writer.bytes[0] |= flag::CHANGED;
            // Differences are smaller than zxids and times.
            writer.push(mzxid.wrapping_sub(czxid));
            writer.push(pzxid.wrapping_sub(czxid));
            writer.push(mtime.wrapping_sub(ctime));
            [version, cversion, aversion].into_iter().for_each(|number| writer.push(number));
        }
        writer.bytes.extend_from_slice(data);
        writer.bytes
    }

    /// Reads what [`Packed::encode`] made.
    pub(super) fn decode(bytes: &'t [u8]) -> Self {
        let (flags, rest) = bytes.split_first().map_or((0, bytes), |(flags, rest)| (*flags, rest));
        let mut reader = Reader { flags, bytes: rest };
        let subtree = reader.number(flag::SUBTREE);
        let acl = reader.number(flag::ACL);
        let children = reader.number(flag::CHILDREN);
        let owner = reader.number(flag::OWNER);
        let (czxid, ctime): (i64, i64) = (reader.take(), reader.take());
        let mut times = Times { czxid, mzxid: czxid, pzxid: czxid, ctime, mtime: ctime, ..Times::default() };
        if flags & flag::CHANGED != 0 {
            times.mzxid = czxid.wrapping_add(reader.take());
            times.pzxid = czxid.wrapping_add(reader.take());
            times.mtime = ctime.wrapping_add(reader.take());
            (times.version, times.cversion, times.aversion) = (reader.take(), reader.take(), reader.take());
        }
        let data = match flags & (flag::DATA_HERE | flag::DATA_ELSEWHERE) {
            flag::DATA_HERE => Data::Here(reader.bytes),
            flag::DATA_ELSEWHERE => Data::Elsewhere,
            _ => Data::Null,
        };
        Self { subtree, acl, children, owner, times, data }
    }
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn push(&mut self, number: impl VarInt) {
        let mut room = [0; 10];
        let len = number.encode_var(&mut room);
        self.bytes.extend_from_slice(&room[..len]);
    }

    /// A number that is usually zero.
    fn number<N: VarInt + Default + PartialEq>(&mut self, flag: u8, number: N) {
        if number != N::default() {
            self.bytes[0] |= flag;
            self.push(number);
        }
    }
}

struct Reader<'t> {
    flags: u8,
    bytes: &'t [u8],
}

impl Reader<'_> {
    fn take<N: VarInt + Default>(&mut self) -> N {
        let (number, len) = N::decode_var(self.bytes).unwrap_or_default();
        self.bytes = &self.bytes[len..];
        number
    }

    fn number<N: VarInt + Default>(&mut self, flag: u8) -> N {
        if self.flags & flag == 0 { N::default() } else { self.take() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            (subtree, acl, children, owner) in any::<(u16, u64, u32, i64)>(),
            numbers in any::<[i64; 5]>(),
            versions in any::<[i32; 3]>(),
            zeros in any::<[bool; 5]>(),
            data in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        ) {
            let keep = |zero: bool, n: i64| if zero { 0 } else { n };
            let [czxid, mzxid, pzxid, ctime, mtime] = numbers;
            let [version, cversion, aversion] = versions;
            let changed = Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion };
            let new = Times { czxid, mzxid: czxid, pzxid: czxid, ctime, mtime: ctime, ..Times::default() };
            let packed = Packed {
                subtree: if zeros[0] { 0 } else { subtree },
                acl: if zeros[1] { 0 } else { acl },
                children: if zeros[2] { 0 } else { children },
                owner: keep(zeros[3], owner),
                times: if zeros[4] { new } else { changed },
                data: data.as_deref().map_or(Data::Null, Data::Here),
            };
            let bytes = packed.encode();
            prop_assert_eq!(Packed::decode(&bytes), packed);
            let elsewhere = Packed { data: Data::Elsewhere, ..packed };
            let bytes = elsewhere.encode();
            prop_assert_eq!(Packed::decode(&bytes), elsewhere);
        }
    }

    #[test]
    fn a_usual_znode_takes_little() {
        let times = Times {
            czxid: 5 << 32,
            mzxid: 5 << 32,
            pzxid: 5 << 32,
            ctime: 1_700_000_000_000,
            mtime: 1_700_000_000_000,
            ..Times::default()
        };
        let packed = Packed { times, data: Data::Here(&[1; 100]), ..Packed::default() };
        assert_eq!(packed.encode().len(), 113);
    }
}
