"""The same random requests to ZooKeeper and to Meridian, over several sessions each: every reply, every event with its
place among them, and every end of a connection must be the same; zxids are compared by the writes they stand for.

By hand: random_differential.py BINARY --first 1 --last 100, with ZOOKEEPER_JARS naming a directory with the jars of a
ZooKeeper 3.9. A seed that differs is played again with --first SEED --trace.
"""

import argparse
import base64
import bisect
import contextlib
import hashlib
import random
import socket
import sys

import differential as wire
from differential import Client, Reader, create, int_, long_, multi, string

# What is not asked, since ZooKeeper 3.9.5 is not to be followed there:
LEFT_OUT = {
    "/zookeeper/quota/zookeeper_limits": "its creation ends every server of a ZooKeeper for good: the log repeats it",
    "a negative time to live with flags that have none": "ends ZooKeeper's processing of all requests",
    "the connection of a session whose password somebody guesses": "ZooKeeper closes it, whoever guesses",
    "deleteContainer": "any client may delete any empty container with it, whatever the ACL",
    "limits of a quota that can't be read": "no znode below can be written then",
    "flags of an ephemeral znode with createContainer or createTTL within a multi": "ZooKeeper makes none, but refuses "
    "it children until the multi is done",
    "how paths of events encode characters beyond U+FFFF": "as surrogates there; no znode has such a path",
    "hard limits within a multi": "hold here; ZooKeeper compares each operation with what was used before the first",
    "limits without the znode of what is used": "hold here; zkCli makes both",
    "a quota within another": "zkCli makes none; what ZooKeeper has counted for the outer one stays with it",
    "the schemes sasl, x509 and ensemble": "known here without a setting, there only with their providers",
    "null where a string or credentials belong": "read as empty here; ZooKeeper fails in different ways",
    "getAllChildrenNumber of the empty path": "one more than that of the root",
    "paths above 64 KiB": "refused here with badArguments",
}

SESSIONS = 3
STEPS = 150
# A few seconds' worth.
SEEDS = range(1, 13)
SUPER = b"super:test"
# What both servers are started with.
PROPERTIES = {
    "extendedTypesEnabled": "true",
    "enforceQuota": "true",
    "DigestAuthenticationProvider.superDigest": "super:D/InIHSb7yEEbrWz8b9l71RjZJU=",
}
WRITES = {
    wire.CREATE, wire.CREATE2, wire.CONTAINER, wire.TTL, wire.DELETE, wire.SET, wire.SET_ACL, wire.MULTI, wire.CLOSE,
}
# Flags of ephemeral znodes, plain and sequential.
EPHEMERAL = (1, 3)
TIMEOUT_MS = 40_000
# Differences after the first ones of a seed mostly follow from them.
SHOWN_PER_SEED = 3


def as_utf8(path):
    """A path whose characters may be encoded as surrogates."""
    if path is None or b"\xed" not in path:
        return path
    return path.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Side:
    """One of the two servers, during one seed."""

    def __init__(self, address):
        self.address = address
        # The zxids of the writes, and which write each one is.
        self.zxids = []
        self.writes = {}
        self.times = {}
        # Of writes that ended a session.
        self.ends = set()
        self.owners = {0: None}
        self.open = {}
        self.sessions = [Session(self, number) for number in range(SESSIONS)]

    def note_write(self, zxid, name):
        if not self.zxids or zxid > self.zxids[-1]:
            self.zxids.append(zxid)
            self.writes[zxid] = name

    def zxid_at(self, share):
        """The zxid of the write that stands at a share of all so far."""
        return self.zxids[int(share * (len(self.zxids) - 1))] if self.zxids else 0

    def seen(self, zxid):
        """The last write up to a zxid."""
        at = bisect.bisect_right(self.zxids, zxid)
        return self.writes[self.zxids[at - 1]] if at else "before"

    def made_by(self, zxid):
        if zxid <= 0:
            return zxid
        if not self.zxids or zxid < self.zxids[0]:
            return "before"
        return self.writes.get(zxid, "none of them")

    def is_time_of(self, zxid, time_ms):
        return self.times.setdefault(zxid, time_ms) == time_ms


class SideReader(Reader):
    """Reads records so that those of both sides can be compared."""

    def __init__(self, data, side):
        super().__init__(data)
        self.side = side

    def stat(self):
        czxid, mzxid, ctime, mtime = (self.take("!q") for _ in range(4))
        versions = tuple(self.int() for _ in range(3))
        owner, length, count, pzxid = self.take("!q"), self.int(), self.int(), self.take("!q")
        made = tuple(map(self.side.made_by, (czxid, mzxid, pzxid)))
        times = self.side.is_time_of(czxid, ctime), self.side.is_time_of(mzxid, mtime)
        return made, times, versions, self.side.owners.get(owner, "nobody known"), length, count


    def acl(self):
        """What `auth` stands for comes in the order of a hash table."""
        return sorted(super().acl())


class Session(Client):
    def __init__(self, side, number):
        super().__init__(side.address)
        self.side = side
        self.number = number
        self.count = 0

    def begin(self, **hello):
        """Opens or takes up a session."""
        answer = self.connect(**{"timeout_ms": TIMEOUT_MS, **hello})
        if self.session[0] and answer not in ("closed", "silence"):
            if self.session[0] not in self.side.owners:
                self.count += 1
                self.side.owners[self.session[0]] = f"{self.number}.{self.count}"
            self.side.open[self.session[0]] = self.session[1]
        return answer

    def begin_again(self):
        """Takes the session up after its connection has ended, or opens a new one if it is over."""
        self.stream.close()
        answer = self.begin(session=self.session)
        if answer == "closed" or not answer[2]:
            answer = answer, self.begin()
        return answer

    def exchange(self, name, requests):
        """Sends requests at once and takes all that comes up to the last reply."""
        sent = []
        for op, body, *xid in requests:
            xid = xid[0] if xid else wire.XIDS.get(op) or next(self.xids)
            sent.append((xid, op))
            self.raw(int_(xid) + int_(op) + body)
        seen = []
        for at, (xid, op) in enumerate(sent):
            seen += self.take_reply(xid, op, f"{name}.{at}")
            if seen[-1] in ("closed", "silence"):
                break
        return seen

    def take_reply(self, xid, op, name):
        events = []
        while True:
            frame = self.frame()
            if frame is None or frame == b"silence":
                return self.tell(events) + ["closed" if frame is None else "silence"]
            reader = SideReader(frame, self.side)
            got, zxid, error = reader.int(), reader.take("!q"), reader.int()
            if got == -1:
                events.append((zxid, reader))
                continue
            if op in WRITES:
                self.side.note_write(zxid, name)
            if op == wire.CLOSE:
                self.side.ends.add(zxid)
            body = reader.body(op) if error == 0 and reader.data else None
            at = zxid if zxid <= 0 else self.side.seen(zxid)
            if op == wire.CLOSE:
                self.side.open.pop(self.session[0], None)
            return self.tell(events) + [("as asked" if got == xid else got, at, error, body, reader.data)]

    def tell(self, events):
        """Events of one write to several znodes come in the order of a hash table where a session has ended."""
        told = []
        for zxid, reader in events:
            kind, state, path = reader.int(), reader.int(), as_utf8(reader.buffer())
            event = ("event", self.side.made_by(zxid), kind, state, path)
            at = len(told)
            while zxid in self.side.ends and at and told[at - 1][1] == event[1] and told[at - 1][4] > path:
                at -= 1
            told.insert(at, event)
        return told

    def raw_then(self, frame):
        """Sends bytes as they are, and says whether the connection is still there afterwards."""
        with contextlib.suppress(OSError):
            self.stream.sendall(frame)
        return self.exchange("", [(wire.WHO, b"")])


def digest(credentials):
    user = credentials.split(b":")[0]
    return user + b":" + base64.b64encode(hashlib.sha1(credentials).digest())


CREDENTIALS = [b"bob:secret", b"eve:other", b"a:b:c", b"nobody"]
ODD_PATHS = [
    "", "a", "a/b", "/a/", "//", "//a", "/a//b", "/.", "/..", "/a/.", "/a/..", "/a/./b", "/a/../b", "/./a", "/a\0",
    "/a/\0", "/a\x01b", "/a/\x1f", "/\x7f", "/a/\u009f", "/\u00a0", "/a/\u00e9", "/\ud7ff", "/\ue000", "/a/\uf8ff",
    "/\uf900", "/\uffef", "/\ufff0", "/a/\ufffd", "/\uffff", "/\U0001f600", "/a/\U0010ffff", "/none/a", "/none/a/",
    "/a b", "/ ", "/a/" + "y" * 300, "/" + "x" * 5_000, "/zookeeper", "/zookeeper/", "/zookeeper/quota",
    "/zookeeper/quota/a", "/zookeeper/none", "/zookeeper/none/none", "/", "/",
    "/..a", "/a.", "/...", "/a\t", "/a\n", "/%2f", "/a:b", "/a,b", "/\u2028", "/ab\u0300",
]
ODD_ACLS = [
    [], [(0, "world", "anyone")], [(32, "world", "anyone")], [(31, "world", "someone")], [(31, "world", "")],
    [(31, "nonsense", "x")], [(31, "auth", "")], [(31, "auth", "x")], [(31, "digest", "x")], [(31, "digest", "a:b")],
    [(31, "digest", "a:b:c")], [(31, "digest", ":")], [(31, "digest", ":b")], [(31, "digest", "a:")],
    [(31, "ip", "1.2.3.4")], [(31, "ip", "1.2.3.4/33")], [(31, "ip", "1.2.3.4/")], [(31, "ip", "1.2.3.4/-1")],
    [(31, "ip", "1.2.3")], [(31, "ip", "x")], [(31, "ip", "127.0.0.0/8")], [(31, "ip", "127.0.0.1")], [(31, "ip", "")],
    [(31, "ip", "::1")], [(31, "ip", "1.2.3.400")], [(31, "ip", "0.0.0.0/0")], [(31, "ip", "01.2.3.4")],
    [(31, "super", "x")], [(31, "sasl", "")], [(31, "x509", "")],
    [(-1, "world", "anyone")], [(63, "world", "anyone")], [(31, "world", "anyone")] * 2, [(31, "", "")],
    [(31, "ensemble", "x")], [(1, "world", "anyone"), (31, "nonsense", "x")], [(31, "World", "anyone")],
    [(31, "auth", ""), (31, "auth", "")],
]
ODD_AUTH = [
    ("digest", b""), ("digest", SUPER), ("digest", b"super:wrong"), ("digest", b":"), ("digest", b":x"), ("ip", b""),
    ("ip", b"10.0.0.1"), ("nonsense", b""), ("world", b"anyone"), ("x509", b""), ("sasl", b"x"), ("super", b""),
    ("", b""), ("auth", b""), ("Digest", b"a:b"), ("digest", b"bob:wrong"),
    ("digest", "caf\u00e9:x".encode()), ("digest", b"\xff:x"),
]
ODD_OPS = [0, 10, 13, 16, 23, 99, 108, 1000, -1, -2, -10, -12, 2**31 - 1, -(2**31)]


class Generator:
    """The steps of a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.few = self.random.choice(["ab", "abc", "a"])
        self.has_quotas = seed % 3 == 0

    def is_rare(self, share):
        return self.random.random() < share

    def pick(self, weighted):
        return self.random.choices(list(weighted), weights=list(weighted.values()))[0]

    def path(self, odd=0.06):
        if self.is_rare(odd):
            return self.random.choice(ODD_PATHS)
        depth = self.pick({1: 6, 2: 6, 3: 2, 4: 0.5})
        return "".join("/" + self.random.choice(self.few) for _ in range(depth))

    def version(self):
        return self.pick({-1: 20, 0: 4, 1: 2, 2: 1, 5: 1, -2: 0.5, 2**31 - 1: 0.3, -(2**31): 0.3})

    def data(self):
        return self.pick({b"": 3, b"x": 5, b"y" * 40: 3, None: 1, b"z" * 300: 1, b"\xff\0\xfe": 1})

    def acl(self):
        if self.is_rare(0.75):
            return wire.OPEN
        if self.is_rare(0.25):
            return self.random.choice(ODD_ACLS)
        entries = []
        for _ in range(self.pick({1: 4, 2: 3, 3: 1})):
            perms = self.pick({31: 3, 1: 1, 15: 1, 16: 0.5, 17: 1, self.random.randrange(32): 3})
            scheme = self.pick({"world": 3, "auth": 2, "digest": 3, "ip": 2})
            identity = {
                "world": "anyone",
                "auth": "",
                "digest": digest(self.random.choice(CREDENTIALS[:2])),
                "ip": self.pick({"127.0.0.1": 3, "10.0.0.0/8": 1, "127.0.0.0/8": 1}),
            }
            entries.append((perms, scheme, identity[scheme]))
        return entries

    def flags(self):
        return self.pick({0: 8, 1: 3, 2: 4, 3: 3, 4: 0.5, 5: 0.3, 6: 0.3, 7: 0.2, -1: 0.2, 100: 0.1})

    def ttl_create(self, in_multi):
        odd = {0: 1, -1: 1, -2: 0.5, (1 << 40) - 1: 1, 1 << 40: 0.5, 2**63 - 1: 0.3, -(2**63): 0.3}
        ttl_ms = self.pick({60_000: 8, **odd})
        flags = self.pick({5: 6, 6: 4, 0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5, 4: 0.3, 7: 0.2, -1: 0.2})
        flags = 5 if in_multi and flags in EPHEMERAL else flags
        if flags not in (5, 6):
            # A negative one with other flags ends ZooKeeper's processing of requests.
            ttl_ms = max(ttl_ms, 0)
        return wire.TTL, create(self.path(), self.data(), self.acl(), flags)[1] + long_(ttl_ms)

    def plain_create(self, op=wire.CREATE):
        return create(self.path(), self.data(), self.acl(), self.flags(), op)

    def container(self, in_multi):
        flags = self.pick({4: 8, 0: 1, 1: 0.5, 2: 0.5})
        flags = 4 if in_multi and flags in EPHEMERAL else flags
        return create(self.path(), self.data(), self.acl(), flags, wire.CONTAINER)

    def change(self, in_multi=False):
        """A write that may stand in a multi."""
        kind = self.pick({"create": 8, "create2": 3, "container": 1, "ttl": 2, "delete": 5, "set": 6, "check": 3})
        return {
            "create": self.plain_create,
            "create2": lambda: self.plain_create(wire.CREATE2),
            "container": lambda: self.container(in_multi),
            "ttl": lambda: self.ttl_create(in_multi),
            "delete": lambda: wire.delete(self.path(), self.version()),
            "set": lambda: wire.set_(self.path(), self.data(), self.version()),
            "check": lambda: wire.check(self.path(), self.version()),
        }[kind]()

    def multi(self):
        count = self.pick({0: 1, 1: 4}) if self.has_quotas else self.pick({0: 0.5, 1: 2, 2: 4, 3: 4, 5: 2, 12: 0.5})
        changes = [self.change(in_multi=True) for _ in range(count)]
        return multi(*changes)

    def multi_read(self):
        reads = []
        for _ in range(self.pick({0: 0.5, 1: 2, 2: 3, 4: 2})):
            reads.append(self.pick({wire.get: 1, wire.children: 1})(self.path(), self.is_rare(0.1)))
        return multi(*reads, op=wire.MULTI_READ)

    def read(self):
        kind = self.pick({"exists": 4, "get": 5, "children": 3, "children2": 3, "acl": 3, "multi": 2, "count": 1,
                          "ephemerals": 1, "who": 1})
        path, watch = self.path(), self.is_rare(0.4)
        return {
            "exists": lambda: wire.exists(path, watch),
            "get": lambda: wire.get(path, watch),
            "children": lambda: wire.children(path, watch),
            "children2": lambda: wire.children(path, watch, wire.CHILDREN2),
            "acl": lambda: wire.get_acl(path),
            "multi": self.multi_read,
            "count": lambda: (wire.COUNT, string(path or "/")),
            "ephemerals": lambda: (wire.EPHEMERALS, string(self.pick({path: 2, "/": 2, "": 0.5, "/a/": 1}))),
            "who": lambda: (wire.WHO, b""),
        }[kind]()

    def write(self):
        kind = self.pick({"change": 20, "acl": 3, "multi": 7, "sync": 1})
        return {
            "change": lambda: next(c for c in iter(self.change, None) if c[0] != wire.CHECK),
            "acl": lambda: wire.set_acl(self.path(), self.acl(), self.version()),
            "multi": self.multi,
            "sync": lambda: (wire.SYNC, string(self.path())),
        }[kind]()

    def watch(self):
        path = self.path()
        kind = self.pick({1: 3, 2: 3, 3: 4, 4: 3, 5: 3, 0: 0.3, 6: 0.3, -1: 0.3})
        return self.pick({
            wire.add_watch(path, self.pick({0: 5, 1: 5, 2: 0.3, -1: 0.3})): 5,
            wire.remove_watches(path, kind): 4,
            wire.remove_watches(path, kind, wire.CHECK_WATCHES): 2,
        })

    def watches_again(self):
        """Watches set again, relative to some write; a function, for the sides' zxids differ."""
        share = self.pick({0: 1, 1: 2, self.random.random(): 4})
        count = self.pick({3: 2, 5: 3})
        lists = [[self.path(0.03) for _ in range(self.pick({0: 3, 1: 3, 3: 1}))] for _ in range(count)]
        op = wire.SET_WATCHES if count == 3 else wire.SET_WATCHES2
        return lambda side: wire.set_watches(side.zxid_at(share), *lists, op=op)

    def auth(self):
        if self.is_rare(0.25):
            return wire.auth(*self.random.choice(ODD_AUTH))
        return wire.auth("digest", self.random.choice(CREDENTIALS))

    def quota(self):
        """What setquota and delquota do, and reads of it."""
        path = "/zookeeper/quota/" + self.random.choice(self.few)
        kind = self.pick({"all": 3, "read": 3, "delete": 1, "set": 1})
        limits, stats = path + "/zookeeper_limits", path + "/zookeeper_stats"
        number = lambda: self.pick({-1: 3, 0: 0.5, 1: 1, 3: 2, 10: 2, 100: 1})
        text = f"count={number()},bytes={number()}=;byteHardLimit={number()};countHardLimit={number()}"
        if self.is_rare(0.2):
            text = self.random.choice([f"count={number()},bytes={number()}", "count=3", "bytes=5"])
        return {
            "all": [create(path), create(limits, text.encode()), create(stats, b"count=0,bytes=0")],
            "read": [wire.get(limits), wire.get(stats)],
            "delete": [wire.delete(limits), wire.delete(stats), wire.delete(path)],
            "set": [wire.set_(limits, text.encode())],
        }[kind]

    def requests(self):
        """What one session asks at once."""
        kinds = {"read": 30, "write": 45, "watch": 9, "again": 4, "auth": 4, "several": 8, "ping": 1}
        kind = self.pick({**kinds, "quota": 8 if self.has_quotas else 0})
        if kind == "several":
            return [self.pick({"read": 1, "write": 1}) for _ in range(self.pick({2: 3, 3: 2, 6: 1}))], kind
        one = getattr(self, {"again": "watches_again"}.get(kind, kind), None)
        if kind == "ping":
            return [(wire.PING, b"")], kind
        made = one()
        return made if isinstance(made, list) else [made], kind

    def step(self):
        """A session's number, and what it does."""
        number = self.random.randrange(SESSIONS)
        kind = self.pick({"ask": 100, "reconnect": 2.5, "close": 2, "impostor": 0.3, "odd frame": 0.7, "odd op": 0.7,
                          "odd xid": 1, "large": 0.3, "stranger": 0.3})
        if kind == "ask":
            requests, name = self.requests()
            requests = [self.read() if r == "read" else self.write() if r == "write" else r for r in requests]
            return number, name, Ask(requests)
        if kind == "reconnect":
            return number, kind, Reconnect(self.pick({0: 2, 1: 1, self.random.random(): 2}), self.is_rare(0.5))
        if kind == "close":
            return number, kind, Close()
        if kind == "odd op":
            return number, kind, Ask([(self.random.choice(ODD_OPS), b"")])
        if kind == "odd xid":
            op, body = self.pick({self.read(): 1, self.write(): 1})
            return number, kind, Ask([(op, body, self.pick({0: 1, -2: 1, -3: 1, -4: 1, -8: 1, -9: 1, 2**31 - 1: 1}))])
        if kind == "large":
            size = self.pick({900_000: 2, 0xFFFFF - 100: 1, 0xFFFFF: 1, 2_000_000: 1})
            return number, kind, Ask([wire.set_(self.path(0), bytes(size)), wire.get(self.path(0))])
        if kind == "stranger":
            hello = self.random.choice(list(wire.HELLOS.values()))
            return number, kind, Stranger(hello)
        if kind == "impostor":
            return number, kind, Impostor()
        return number, kind, OddFrame(self.pick({int_(-1): 1, int_(0x100000): 1, int_(0): 1, int_(4) + b"\0\0\0\1": 1,
                                                  int_(7) + b"\0\0\0\1\0\0\0": 1, int_(2**31 - 1): 1, b"ruok": 1}))


class Ask:
    def __init__(self, requests):
        self.requests = requests

    def run(self, session, name):
        return session.exchange(name, [r(session.side) if callable(r) else r for r in self.requests])

    def __str__(self):
        return "; ".join("setWatches" if callable(r) else describe(*r) for r in self.requests)


class Reconnect:
    """The connection is lost, or another takes its place; the session goes on."""

    def __init__(self, share, takes_over):
        self.share, self.takes_over = share, takes_over

    def run(self, session, name):
        old = session.stream
        if not self.takes_over:
            old.close()
        answer = session.begin(zxid=session.side.zxid_at(self.share), session=session.session)
        if self.takes_over:
            new, session.stream = session.stream, old
            told = session.exchange(name, [(wire.WHO, b"")])[-1]
            # It is closed here, soon; a ZooKeeper on its own leaves that to the client.
            answer = answer, told == "closed" or (told[0], told[2]) == ("as asked", 0)
            old.close()
            session.stream = new
        return [answer]

    def __str__(self):
        return f"takes over {self.takes_over}"


class Close:
    def run(self, session, name):
        answer = session.exchange(name, [(wire.CLOSE, b"")])
        after = session.exchange(name, [(wire.WHO, b"")])
        session.stream.close()
        return [*answer, *after, session.begin()]

    def __str__(self):
        return ""


class Impostor:
    """Somebody knows a session's identifier, but not its password."""

    def run(self, session, name):
        stranger = Client(session.address)
        answer = stranger.connect(session=(session.session[0], b"x" * 16), timeout_ms=TIMEOUT_MS)
        stranger.stream.close()
        # ZooKeeper closes the connection of the session's owner.
        session.stream.close()
        return [answer, session.begin(session=session.session)]

    def __str__(self):
        return ""


class Stranger:
    def __init__(self, hello):
        self.hello = hello

    def run(self, session, name):
        stranger = Client(session.address)
        answer = stranger.connect(**self.hello)
        if stranger.session[0] and answer != "closed":
            stranger.call((wire.CLOSE, b""))
        stranger.stream.close()
        return [answer]

    def __str__(self):
        return str(self.hello)


class OddFrame:
    def __init__(self, frame):
        self.frame = frame

    def run(self, session, name):
        return session.raw_then(self.frame)

    def __str__(self):
        return repr(self.frame)


NAMES = {value: name for name, value in vars(wire).items() if name.isupper() and isinstance(value, int)}


def describe(op, body, xid=None):
    text = NAMES.get(op, op)
    shown = body if len(body) < 2000 else body[:2000] + b"..."
    return f"{text} {shown}" + (f" xid {xid}" if xid is not None else "")


def sweep(side):
    """Ends the sessions that are left and deletes every znode."""
    for session, password in list(side.open.items()):
        client = Client(side.address)
        client.connect(session=(session, password), timeout_ms=TIMEOUT_MS)
        client.call((wire.CLOSE, b""))
        client.stream.close()
    client = Client(side.address)
    client.connect(timeout_ms=TIMEOUT_MS)
    client.call(wire.auth("digest", SUPER))

    def delete_below(path):
        for name in client.call(wire.children(path))[-1][2] or []:
            below = path.rstrip("/").encode() + b"/" + name if isinstance(path, str) else path + b"/" + name
            if below in (b"/zookeeper", b"/zookeeper/config", b"/zookeeper/quota"):
                if below != b"/zookeeper/config":
                    delete_below(below.decode())
                continue
            delete_below(below.decode())
            answer = client.call(wire.delete(below))[-1]
            assert answer[1] == 0, f"{side.address} does not delete {below}: {answer}"

    delete_below("/")
    for path in ("/", "/zookeeper", "/zookeeper/quota"):
        assert client.call(wire.set_acl(path, wire.OPEN))[-1][1] == 0
    client.call((wire.CLOSE, b""))
    client.stream.close()


def is_meant(kind, reference, meridian):
    """A request that can't be read ends its connection; ZooKeeper says marshallingError and goes on."""
    return kind == "odd op" and reference[-1][2] == -5 and (meridian[-1] == "closed" or meridian[-1][2] == -6)


def run_seed(seed, addresses, steps=STEPS, trace=False):
    """Numbers of equal and of different steps."""
    sides = [Side(address) for address in addresses]
    generator = Generator(seed)
    tally = Tally(seed, trace)
    for side in sides:
        for session in side.sessions:
            session.begin()
    for index in range(steps):
        number, kind, action = generator.step()
        answers = [action.run(side.sessions[number], str(index)) for side in sides]
        tally.compare(f"step {index}: session {number} {kind} {action}", answers, is_meant(kind, *answers))
        assert "silence" not in answers[0], "the reference no longer answers"
        if kind == "odd op" or any(answer[-1] == "closed" for answer in answers):
            again = [side.sessions[number].begin_again() for side in sides]
            tally.compare(f"step {index}: session {number} again", again)
    for number in range(SESSIONS):
        last = [side.sessions[number].exchange("last", [(wire.PING, b"")]) for side in sides]
        tally.compare(f"last events of session {number}", last)
    for side in sides:
        for session in side.sessions:
            session.stream.close()
        sweep(side)
    return tally.equal, tally.different


class Tally:
    def __init__(self, seed, trace):
        self.seed, self.trace = seed, trace
        self.equal = self.different = 0

    def compare(self, what, answers, is_meant=False):
        is_equal = answers[0] == answers[1] or is_meant
        self.equal += is_equal
        self.different += not is_equal
        if self.trace or not is_equal and self.different <= SHOWN_PER_SEED:
            print(f"seed {self.seed} {what}\n  reference {answers[0]}\n  meridian  {answers[1]}", flush=True)


def run_seeds(seeds, addresses, steps=STEPS, trace=False):
    counts = [run_seed(seed, addresses, steps, trace) for seed in seeds]
    return sum(equal for equal, _ in counts), sum(different for _, different in counts)


def is_old(address):
    """Whether the reference is older than 3.9: its events have no zxids, and it differs in what 3.9 has changed."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), wire.ANSWER_S) as stream:
        stream.sendall(b"srvr")
        return not stream.recv(100).startswith(b"Zookeeper version: 3.9")


def check_random_requests(binary):
    """random requests over several sessions are answered as ZooKeeper 3.9 answers them (skipped where not installed)"""
    from mesh import say

    if not wire.zookeeper_jars():
        return say("ZooKeeper is not installed here")
    with wire.servers(binary, PROPERTIES) as addresses:
        if is_old(addresses[0]):
            return say("the ZooKeeper here is older than 3.9: set ZOOKEEPER_JARS")
        equal, different = run_seeds(SEEDS, addresses)
    assert equal and not different, f"{different} steps differ"
    say(f"{equal} steps are the same")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="BINARY, or REFERENCE_HOST:PORT,MERIDIAN_HOST:PORT")
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--last", type=int, help="last seed; without it the first one alone")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--trace", action="store_true", help="tell every step")
    arguments = parser.parse_args()
    seeds = range(arguments.first, (arguments.last or arguments.first) + 1)
    with contextlib.ExitStack() as stack:
        addresses = arguments.target.split(",")
        if len(addresses) == 1:
            addresses = stack.enter_context(wire.servers(arguments.target, PROPERTIES))
        if is_old(addresses[0]):
            parser.error("the ZooKeeper here is older than 3.9: set ZOOKEEPER_JARS")
        equal, different = run_seeds(seeds, addresses, arguments.steps, arguments.trace)
    print(f"{equal} passed, {different} failed")
    return different != 0


if __name__ == "__main__":
    sys.exit(main())
