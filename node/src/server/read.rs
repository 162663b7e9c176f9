//! Reads, executed by the connection itself on a published view and encoded straight into its output.

use std::borrow::Cow;

use bytes::BytesMut;
use meridian_seam::limits;
use meridian_wire::{
    Acl, ClientInfo, ErrorCode, OpCode, OpResult, ReplyHeader, Request, Response, Stat, begin_frame,
    encode_names, finish_frame, perms,
};

use crate::region::View;
use crate::session::Watch;
use crate::tree::{Tree, ZnodeRef, or_root};
use crate::txn::acl::{self, Identities};

/// Who reads.
pub(super) struct Reader<'a> {
    pub(super) session: i64,
    /// Encoded identities.
    pub(super) identities: &'a [u8],
    /// The same, as the client has proved them.
    pub(super) known: &'a Identities,
}

impl Reader<'_> {
    /// Appends the reply to a read.
    pub(super) fn reply(&self, view: &View, request: &Request<'_>, xid: i32, out: &mut BytesMut) {
        let start = begin_frame(out);
        let header_at = out.len();
        let header = ReplyHeader { xid, zxid: view.state.zxid, error: ErrorCode::Ok };
        header.encode(out);
        if let Err(error) = self.body(view, request, out) {
            out.truncate(header_at);
            ReplyHeader { error, ..header }.encode(out);
        }
        if finish_frame(start, out).is_err() {
            // More than a frame can say: the client learns that it can't have it.
            reply_error(xid, view.state.zxid, ErrorCode::MarshallingError, out);
        }
    }

    fn body(&self, view: &View, request: &Request<'_>, out: &mut BytesMut) -> Result<(), ErrorCode> {
        let tree = &view.state.tree;
        match request {
            Request::Exists { path, .. } if path.contains('\0') => return Err(ErrorCode::BadArguments),
            Request::Exists { path, .. } => self.readable(tree, path)?.stat().encode(out),
            Request::GetData { path, .. } => {
                let znode = self.readable(tree, path)?;
                Response::Data { data: znode.data, stat: znode.stat() }.encode(out);
            }
            Request::GetChildren { path, .. } => {
                self.readable(tree, path)?;
                encode_names(tree.children(or_root(path)), out);
            }
            Request::GetChildren2 { path, .. } => {
                let znode = self.readable(tree, path)?;
                encode_names(tree.children(or_root(path)), out);
                znode.stat().encode(out);
            }
            Request::GetAcl { path } => self.acl(tree, path, out)?,
            Request::MultiRead(operations) => self.multi_read(tree, operations, out)?,
            Request::GetEphemerals { prefix } => {
                let paths = tree.ephemerals_of(self.session).map(|path| &**path);
                encode_names(paths.filter(|path| path.starts_with(prefix)), out);
            }
            Request::GetAllChildrenNumber { path } => {
                self.readable(tree, path)?;
                Response::Number(descendants(tree, or_root(path))).encode(out);
            }
            Request::WhoAmI => self.who_am_i(out),
            Request::Ping => {}
            _ => return Err(ErrorCode::Unimplemented),
        }
        Ok(())
    }

    /// The znode, if the client may read it. A path that can't be has no znode.
    pub(super) fn readable<'t>(&self, tree: &'t Tree, path: &str) -> Result<ZnodeRef<'t>, ErrorCode> {
        let znode = tree.get(or_root(path)).ok_or(ErrorCode::NoNode)?;
        if acl::permits(znode.acl, perms::READ, self.identities) { Ok(znode) } else { Err(ErrorCode::NoAuth) }
    }

    /// The watch that a read leaves, by what it finds.
    pub(super) fn watch_of(&self, view: &View, request: &Request<'_>) -> Option<Watch> {
        let found = |path: &str| self.readable(&view.state.tree, path);
        match request {
            // A znode that is absent can be waited for.
            Request::Exists { path, .. } => {
                matches!(found(path), Ok(_) | Err(ErrorCode::NoNode)).then_some(Watch::Data)
            }
            Request::GetData { path, .. } => found(path).is_ok().then_some(Watch::Data),
            Request::GetChildren { path, .. } | Request::GetChildren2 { path, .. } => {
                found(path).is_ok().then_some(Watch::Child)
            }
            _ => None,
        }
    }

    fn acl(&self, tree: &Tree, path: &str, out: &mut BytesMut) -> Result<(), ErrorCode> {
        let znode = tree.get(or_root(path)).ok_or(ErrorCode::NoNode)?;
        let is_admin = acl::permits(znode.acl, perms::ADMIN, self.identities);
        if !is_admin && !acl::permits(znode.acl, perms::READ, self.identities) {
            return Err(ErrorCode::NoAuth);
        }
        let ids: Vec<Cow<'_, str>> =
            znode.acl.iter().map(|a| if is_admin { Cow::from(&*a.id) } else { masked(a) }).collect();
        let entries = znode.acl.iter().zip(&ids);
        let acl = entries.map(|(a, id)| Acl { perms: a.perms, scheme: &a.scheme, id }).collect();
        Response::Acl { acl, stat: znode.stat() }.encode(out);
        Ok(())
    }

    fn multi_read(
        &self,
        tree: &Tree,
        operations: &[Request<'_>],
        out: &mut BytesMut,
    ) -> Result<(), ErrorCode> {
        let mut budget = limits::CONNECTION_OUTPUT_BYTES_MAX;
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            let (result, bytes) = match operation {
                Request::GetData { path, .. } => match self.readable(tree, path) {
                    Ok(z) => {
                        let bytes = z.data.map_or(0, <[u8]>::len);
                        (OpResult::GetData { data: z.data, stat: z.stat() }, bytes)
                    }
                    Err(error) => (OpResult::Error(error), 0),
                },
                Request::GetChildren { path, .. } => match self.readable(tree, path) {
                    Ok(_) => {
                        let names: Vec<&str> = tree.children(or_root(path)).collect();
                        let bytes = names.iter().map(|name| name.len() + 4).sum();
                        (OpResult::GetChildren(names), bytes)
                    }
                    Err(error) => (OpResult::Error(error), 0),
                },
                _ => return Err(ErrorCode::Unimplemented),
            };
            // A small request must not ask for more than the server can hold.
            budget = budget.checked_sub(bytes + Stat::LENGTH).ok_or(ErrorCode::MarshallingError)?;
            results.push(result);
        }
        Response::Results(results).encode(out);
        Ok(())
    }

    fn who_am_i(&self, out: &mut BytesMut) {
        let user = |scheme: &str, id: &str| match (scheme, id.split_once(':')) {
            ("digest", Some((user, _))) => user.to_string(),
            _ => id.to_string(),
        };
        let Identities(known) = self.known;
        let known: Vec<(String, &String)> = known.iter().map(|(s, id)| (user(s, id), s)).collect();
        let clients = known.iter().map(|(user, scheme)| ClientInfo { scheme, user }).collect();
        Response::Clients(clients).encode(out);
    }
}

/// Appends a reply that is an error and nothing besides.
pub(super) fn reply_error(xid: i32, zxid: i64, error: ErrorCode, out: &mut BytesMut) {
    // A header alone always fits a frame.
    let _ = Response::Empty.encode_frame(ReplyHeader { xid, zxid, error }, out);
}

/// Whether an operation is a read that is executed here.
pub(super) fn is_read(op: OpCode) -> bool {
    matches!(
        op,
        OpCode::Exists
            | OpCode::GetData
            | OpCode::GetChildren
            | OpCode::GetChildren2
            | OpCode::GetAcl
            | OpCode::MultiRead
            | OpCode::GetEphemerals
            | OpCode::GetAllChildrenNumber
            | OpCode::WhoAmI
            | OpCode::Ping
    )
}

/// What an entry of an ACL says to somebody who may not change it: not the digest.
fn masked(entry: &crate::tree::Acl) -> Cow<'_, str> {
    match entry.id.split_once(':') {
        Some((user, _)) if &*entry.scheme == "digest" => format!("{user}:x").into(),
        _ => Cow::from(&*entry.id),
    }
}

fn descendants(tree: &Tree, path: &str) -> i32 {
    if path == "/" {
        return i32::try_from(tree.len().saturating_sub(1)).unwrap_or(i32::MAX);
    }
    let mut count = 0_i32;
    let mut left = vec![path.to_string()];
    while let Some(path) = left.pop() {
        for name in tree.children(&path) {
            count = count.saturating_add(1);
            left.push(format!("{path}/{name}"));
        }
    }
    count
}
