//! A client's write, checked and applied to the tree with ZooKeeper's results and error codes.

use std::borrow::Cow;
use std::sync::Arc;

use meridian_bridge::mesh::{Mesh, SubtreeId};
use meridian_seam::mutant::{self, Mutant};
use meridian_wire::{Create, CreateMode, ErrorCode, EventType, OpCode, Request, Stat, perms};
use meridian_wire::{validate_path, validate_sequential_path};

use super::{MultiResult, Outcome, Policy, Reply, acl};
use crate::tree::{Acl, Lifetime, TTL_MS_MAX, Times, Tree, ZnodeRef, split_path};

/// Everything besides the tree that a request's result may depend on.
pub struct Context<'a> {
    /// The subtree table.
    pub mesh: &'a Mesh,
    /// The subtree that orders this request; its paths must lie in subtrees of the same orderer, which
    /// the caller has checked.
    pub zxid: i64,
    /// The time that the order gave it, ms since the Unix epoch.
    pub time_ms: i64,
    /// The session that asks.
    pub session: i64,
    /// Encoded identities of the client.
    pub identities: &'a [u8],
    /// Whether a hard limit of a quota refuses writes. Quotas are the region's own: where several regions must
    /// come to the same result, the one that asks has judged before.
    pub enforce_quota: bool,
}

/// A change that watches may wait for. Its zxid is the region's, set by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventType,
    /// To which znode.
    pub path: Arc<str>,
    /// The region's zxid of the change.
    pub zxid: i64,
    /// Who may hear of it, which is who may read the znode; `None` is everybody.
    pub readers: Option<Arc<[Acl]>>,
}

impl Event {
    /// A change of a znode that has this ACL.
    pub(super) fn new(kind: EventType, path: impl Into<Arc<str>>, acl: &Arc<[Acl]>) -> Self {
        let readers = (!acl::permits(acl, perms::READ, &[])).then(|| acl.clone());
        Self { kind, path: path.into(), zxid: 0, readers }
    }
}

impl Policy {
    /// Refuses what the policy does not allow, with the answer to the client.
    pub(super) fn admits(&self, request: &Request<'_>) -> Result<(), Outcome> {
        let refused = |request: &Request<'_>| {
            let (Request::Create(create) | Request::Create2(create) | Request::CreateTtl { create, .. }) =
                request
            else {
                return false;
            };
            !self.extended_types && CreateMode::try_from(create.flags).is_ok_and(CreateMode::is_ttl)
        };
        match request {
            Request::Multi(operations) => match operations.iter().position(refused) {
                Some(index) => {
                    let results = failed_multi(operations.len(), index, ErrorCode::Unimplemented);
                    Err(Outcome::ok(Reply::Multi(results)))
                }
                None => Ok(()),
            },
            other if refused(other) => Err(Outcome::error(ErrorCode::Unimplemented)),
            _ => Ok(()),
        }
    }
}

/// Applies a write. `events` gets what watches may wait for; on an error nothing has changed.
pub fn apply(
    tree: &mut Tree,
    context: &Context<'_>,
    request: &Request<'_>,
    events: &mut Vec<Event>,
) -> Outcome {
    let result = match request {
        Request::Multi(operations) => return apply_multi(tree, context, operations, events),
        Request::Sync { path } => Ok(Reply::Path((*path).into())),
        other => apply_one(tree, context, other, events).map(|done| match done {
            MultiResult::Created(path, None) => Reply::Path(path),
            MultiResult::Created(path, Some(stat)) => Reply::PathStat(path, stat),
            MultiResult::Set(stat) => Reply::Stat(stat),
            MultiResult::Done(_) | MultiResult::Failed(_) => Reply::Empty,
        }),
    };
    result.map_or_else(Outcome::error, Outcome::ok)
}

/// All or nothing: the first failure takes back what came before it.
fn apply_multi(
    tree: &mut Tree,
    context: &Context<'_>,
    operations: &[Request<'_>],
    events: &mut Vec<Event>,
) -> Outcome {
    let Some(operations) = operations.iter().map(in_multi).collect::<Option<Vec<_>>>() else {
        return Outcome::error(ErrorCode::MarshallingError);
    };
    let (before, events_before) = (tree.clone(), events.len());
    let mut results = Vec::with_capacity(operations.len());
    for (index, operation) in operations.iter().enumerate() {
        match apply_one(tree, context, operation, events) {
            Ok(result) => results.push(result),
            Err(error) => {
                if !mutant::is(Mutant::HalfMulti) {
                    *tree = before;
                    events.truncate(events_before);
                }
                return Outcome::ok(Reply::Multi(failed_multi(operations.len(), index, error)));
            }
        }
    }
    Outcome::ok(Reply::Multi(results))
}

/// An operation as ZooKeeper reads it within a multi, where the mode says what a create makes, not the operation.
/// `None` if it takes the multi for unreadable: a create whose mode there is not, or that has no time to live.
fn in_multi<'r, 'a>(operation: &'r Request<'a>) -> Option<Cow<'r, Request<'a>>> {
    let (create, has_ttl) = match operation {
        Request::Create(create) | Request::Create2(create) | Request::CreateContainer(create) => {
            (create, false)
        }
        Request::CreateTtl { create, .. } => (create, true),
        _ => return Some(Cow::Borrowed(operation)),
    };
    Some(match CreateMode::try_from(create.flags) {
        Ok(CreateMode::Container) => Cow::Owned(Request::CreateContainer(create.clone())),
        Ok(mode) if mode.is_ttl() && !has_ttl => return None,
        Ok(mode) if has_ttl && !mode.is_ttl() => Cow::Owned(Request::Create(create.clone())),
        Ok(_) => Cow::Borrowed(operation),
        // It is refused when its turn comes.
        Err(_) if has_ttl => Cow::Borrowed(operation),
        Err(_) => return None,
    })
}

/// Results of a multi whose operation `index` failed: ok before it, its error, and
/// runtimeInconsistency after it.
fn failed_multi(count: usize, index: usize, error: ErrorCode) -> Vec<MultiResult> {
    (0..count)
        .map(|i| match i.cmp(&index) {
            std::cmp::Ordering::Less => MultiResult::Failed(ErrorCode::Ok),
            std::cmp::Ordering::Equal => MultiResult::Failed(error),
            std::cmp::Ordering::Greater => MultiResult::Failed(ErrorCode::RuntimeInconsistency),
        })
        .collect()
}

fn apply_one(
    tree: &mut Tree,
    context: &Context<'_>,
    request: &Request<'_>,
    events: &mut Vec<Event>,
) -> Result<MultiResult, ErrorCode> {
    match request {
        Request::Create(create)
        | Request::Create2(create)
        | Request::CreateContainer(create)
        | Request::CreateTtl { create, .. } => {
            let lifetime = lifetime_of(request, create.flags, context.session)?;
            let (path, stat) = create_znode(tree, context, create, lifetime, events)?;
            Ok(MultiResult::Created(path, (request.op() != OpCode::Create).then_some(stat)))
        }
        Request::Delete { path, version } => delete_znode(tree, context, path, *version, events),
        Request::SetData { path, data, version } => set_data(tree, context, path, *data, *version, events),
        Request::SetAcl { path, acl, version } => set_acl(tree, context, path, acl, *version),
        Request::Check { path, version } => {
            let znode = readable(tree, path)?;
            permit(context, &znode, perms::READ)?;
            expect_version(*version, znode.times.version)?;
            Ok(MultiResult::Done(OpCode::Check))
        }
        _ => Err(ErrorCode::Unimplemented),
    }
}

/// How long a znode to create is to stay.
fn lifetime_of(request: &Request<'_>, flags: i32, session: i64) -> Result<Lifetime, ErrorCode> {
    let mode = CreateMode::try_from(flags).map_err(|_| ErrorCode::BadArguments)?;
    // A time to live goes with the modes that have one, and with no other.
    match request {
        Request::CreateTtl { ttl_ms, .. } if mode.is_ttl() && (1..=TTL_MS_MAX).contains(ttl_ms) => {
            Ok(Lifetime::Ttl(*ttl_ms))
        }
        Request::CreateTtl { ttl_ms, .. } if mode.is_ttl() || *ttl_ms >= 0 => Err(ErrorCode::BadArguments),
        Request::CreateTtl { .. } => Ok(Lifetime::Persistent),
        _ if mode.is_ttl() => Err(ErrorCode::BadArguments),
        Request::CreateContainer(_) => Ok(Lifetime::Container),
        // As in ZooKeeper: the flag alone, without its operation, makes no container.
        _ if mode.is_ephemeral() => Ok(Lifetime::Ephemeral(session)),
        _ => Ok(Lifetime::Persistent),
    }
}

fn create_znode(
    tree: &mut Tree,
    context: &Context<'_>,
    create: &Create<'_>,
    lifetime: Lifetime,
    events: &mut Vec<Event>,
) -> Result<(Arc<str>, Stat), ErrorCode> {
    let mode = CreateMode::try_from(create.flags).map_err(|_| ErrorCode::BadArguments)?;
    let parent_path = parent_of(create.path)?;
    let resolved = acl::resolve(&create.acl, context.identities).ok_or(ErrorCode::InvalidAcl)?;
    let parent = tree.get(parent_path).ok_or(ErrorCode::NoNode)?;
    permit(context, &parent, perms::CREATE)?;
    let path: Arc<str> = if mode.is_sequential() {
        validate_sequential_path(create.path).map_err(|_| ErrorCode::BadArguments)?;
        let number = match mutant::is(Mutant::SequenceFromChildCount) {
            true => i32::try_from(parent.children).unwrap_or(i32::MAX),
            false => parent.times.cversion,
        };
        format!("{}{number:010}", create.path).into()
    } else {
        validate_path(create.path).map_err(|_| ErrorCode::BadArguments)?;
        create.path.into()
    };
    if tree.contains(&path) {
        return Err(ErrorCode::NodeExists);
    }
    if matches!(parent.lifetime(), Lifetime::Ephemeral(_)) {
        return Err(ErrorCode::NoChildrenForEphemerals);
    }
    if context.enforce_quota {
        within_quota(tree, &path, 1, length(create.data))?;
    }
    let znode = ZnodeRef {
        subtree: context.mesh.subtree_of(&path),
        data: create.data,
        acl: &resolved,
        owner: lifetime.to_owner(),
        times: Times {
            czxid: context.zxid,
            mzxid: context.zxid,
            pzxid: context.zxid,
            ctime: context.time_ms,
            mtime: context.time_ms,
            ..Times::default()
        },
        children: 0,
    };
    let stat = znode.stat();
    events.push(Event::new(EventType::NodeCreated, path.clone(), &resolved));
    events.push(Event::new(EventType::NodeChildrenChanged, parent_path, parent.acl));
    tree.create(&path, znode);
    Ok((path, stat))
}

/// The parent's path of a znode to create or delete; the path itself is judged once the parent is found, as
/// ZooKeeper does.
fn parent_of(path: &str) -> Result<&str, ErrorCode> {
    match path.rfind('/') {
        None => Err(ErrorCode::BadArguments),
        Some(_) if path.contains('\0') => Err(ErrorCode::BadArguments),
        Some(0) => Ok("/"),
        Some(slash) => Ok(&path[..slash]),
    }
}

fn delete_znode(
    tree: &mut Tree,
    context: &Context<'_>,
    path: &str,
    version: i32,
    events: &mut Vec<Event>,
) -> Result<MultiResult, ErrorCode> {
    let parent_path = parent_of(path)?;
    let fixed = matches!(path, "/" | "/zookeeper" | "/zookeeper/config" | "/zookeeper/quota");
    if fixed || context.mesh.subtrees().any(|(_, subtree)| subtree.path == path) {
        return Err(ErrorCode::BadArguments);
    }
    let parent = tree.get(parent_path).ok_or(ErrorCode::NoNode)?;
    permit(context, &parent, perms::DELETE)?;
    let znode = tree.get(path).ok_or(ErrorCode::NoNode)?;
    expect_version(version, znode.times.version)?;
    if znode.children > 0 {
        return Err(ErrorCode::NotEmpty);
    }
    remove_znode(tree, path, context.zxid, events);
    Ok(MultiResult::Done(OpCode::Delete))
}

/// Deletes a znode that may be deleted, and says so to the watches.
pub fn remove_znode(tree: &mut Tree, path: &str, zxid: i64, events: &mut Vec<Event>) {
    if let Some(znode) = tree.get(path) {
        events.push(Event::new(EventType::NodeDeleted, path, znode.acl));
    }
    if let Some((parent, _)) = split_path(path)
        && let Some(znode) = tree.get(parent)
    {
        events.push(Event::new(EventType::NodeChildrenChanged, parent, znode.acl));
    }
    tree.delete(path, zxid);
}

/// Deletes the ephemerals of a session that lie in subtrees of one kind.
pub fn remove_ephemerals(
    tree: &mut Tree,
    session: i64,
    zxid: i64,
    concerns: impl Fn(SubtreeId) -> bool,
    events: &mut Vec<Event>,
) {
    let paths: Vec<Arc<str>> = tree
        .ephemerals_of(session)
        .filter(|path| tree.get(path).is_some_and(|znode| concerns(znode.subtree)))
        .cloned()
        .collect();
    for path in paths {
        remove_znode(tree, &path, zxid, events);
    }
}

fn set_data(
    tree: &mut Tree,
    context: &Context<'_>,
    path: &str,
    data: Option<&[u8]>,
    version: i32,
    events: &mut Vec<Event>,
) -> Result<MultiResult, ErrorCode> {
    let znode = readable(tree, path)?;
    permit(context, &znode, perms::WRITE)?;
    if context.enforce_quota {
        within_quota(tree, path, 0, length(data) - length(znode.data))?;
    }
    expect_version(version, znode.times.version)?;
    // A version of -1 would read as "any": it is skipped, as in ZooKeeper.
    let version = match znode.times.version.wrapping_add(1) {
        -1 => 0,
        next => next,
    };
    let times = Times { version, mzxid: context.zxid, mtime: context.time_ms, ..znode.times };
    let event = Event::new(EventType::NodeDataChanged, path, znode.acl);
    let stat = tree.set_data(path, data, times).ok_or(ErrorCode::NoNode)?;
    events.push(event);
    Ok(MultiResult::Set(stat))
}

fn set_acl(
    tree: &mut Tree,
    context: &Context<'_>,
    path: &str,
    asked: &[meridian_wire::Acl<'_>],
    version: i32,
) -> Result<MultiResult, ErrorCode> {
    validate_path(path).map_err(|_| ErrorCode::BadArguments)?;
    let resolved = acl::resolve(asked, context.identities).ok_or(ErrorCode::InvalidAcl)?;
    let znode = tree.get(path).ok_or(ErrorCode::NoNode)?;
    permit(context, &znode, perms::ADMIN)?;
    expect_version(version, znode.times.aversion)?;
    let changed = tree.change(path, |znode| {
        znode.acl = resolved;
        znode.times.aversion = znode.times.aversion.wrapping_add(1);
    });
    let stat = changed.ok_or(ErrorCode::NoNode)?;
    Ok(MultiResult::Set(stat))
}

/// Whether a write that other regions order would exceed a quota of this one.
pub(super) fn exceeds_quota(tree: &Tree, request: &Request<'_>) -> Option<Outcome> {
    let exceeds = |request: &Request<'_>| match request {
        Request::Create(create)
        | Request::Create2(create)
        | Request::CreateContainer(create)
        | Request::CreateTtl { create, .. } => {
            within_quota(tree, create.path, 1, length(create.data)).is_err()
        }
        Request::SetData { path, data, .. } => tree
            .get(path)
            .is_some_and(|znode| within_quota(tree, path, 0, length(*data) - length(znode.data)).is_err()),
        _ => false,
    };
    match request {
        Request::Multi(operations) => operations.iter().position(exceeds).map(|index| {
            Outcome::ok(Reply::Multi(failed_multi(operations.len(), index, ErrorCode::QuotaExceeded)))
        }),
        other => exceeds(other).then(|| Outcome::error(ErrorCode::QuotaExceeded)),
    }
}

/// Where there is a hard limit it counts, else the soft one, which only warns.
fn within_quota(tree: &Tree, path: &str, count: i64, bytes: i64) -> Result<(), ErrorCode> {
    let Some((quota, usage)) = tree.quota_of(path) else { return Ok(()) };
    let limits = tree.quota_limits(quota);
    for (what, used, more, hard, soft) in [
        ("count", usage.count, count, limits.count_hard, limits.count),
        ("bytes", usage.bytes, bytes, limits.bytes_hard, limits.bytes),
    ] {
        if more == 0 {
            continue;
        }
        match (hard, soft) {
            (Some(hard), _) if used + more > hard => return Err(ErrorCode::QuotaExceeded),
            (None, Some(soft)) if used <= soft && used + more > soft => {
                tracing::warn!(%quota, what, limit = soft, used = used + more, "quota exceeded");
            }
            _ => {}
        }
    }
    Ok(())
}

fn length(data: Option<&[u8]>) -> i64 {
    data.map_or(0, |data| i64::try_from(data.len()).unwrap_or(i64::MAX))
}

fn readable<'t>(tree: &'t Tree, path: &str) -> Result<ZnodeRef<'t>, ErrorCode> {
    validate_path(path).map_err(|_| ErrorCode::BadArguments)?;
    tree.get(path).ok_or(ErrorCode::NoNode)
}

fn permit(context: &Context<'_>, znode: &ZnodeRef<'_>, wanted: i32) -> Result<(), ErrorCode> {
    acl::permits(znode.acl, wanted, context.identities).then_some(()).ok_or(ErrorCode::NoAuth)
}

fn expect_version(expected: i32, actual: i32) -> Result<(), ErrorCode> {
    (expected == -1 || expected == actual).then_some(()).ok_or(ErrorCode::BadVersion)
}
