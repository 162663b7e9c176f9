"""The same requests to ZooKeeper and to Meridian: every reply must be the same, zxids and times aside.

The reference is Debian's package `zookeeper`, or the jars of the directory ZOOKEEPER_JARS. By hand: differential.py
REFERENCE_HOST:PORT MERIDIAN_HOST:PORT [TEXT] with two fresh servers; TEXT: only scenarios whose name has this text.
"""

import contextlib
import glob
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

ANSWER_S = 10
OPEN = [(31, "world", "anyone")]
CREATE, DELETE, EXISTS, GET, SET, GET_ACL, SET_ACL, CHILDREN, SYNC = range(1, 10)
PING, CHILDREN2, CHECK, MULTI, CREATE2, RECONFIG, CHECK_WATCHES, REMOVE_WATCHES = range(11, 19)
CONTAINER, DELETE_CONTAINER, TTL, MULTI_READ = range(19, 23)
AUTH, SET_WATCHES, SASL, EPHEMERALS, COUNT, SET_WATCHES2, ADD_WATCH, WHO = range(100, 108)
CLOSE = -11
ERROR = -1
XIDS = {PING: -2, AUTH: -4, SET_WATCHES: -8, SET_WATCHES2: -8}


def int_(value):
    return struct.pack("!i", value)


def long_(value):
    return struct.pack("!q", value)


def bool_(value):
    return bytes([value])


def buffer(value):
    return int_(-1) if value is None else int_(len(value)) + value


def string(value):
    return buffer(None if value is None else value if isinstance(value, bytes) else value.encode())


def vector(items, encode):
    return int_(-1) if items is None else int_(len(items)) + b"".join(map(encode, items))


def acl_(acl):
    return vector(acl, lambda entry: int_(entry[0]) + string(entry[1]) + string(entry[2]))


def create(path, data=b"", acl=OPEN, flags=0, op=CREATE):
    return op, string(path) + buffer(data) + acl_(acl) + int_(flags)


def ttl(path, ttl_ms, flags=5):
    return TTL, create(path, flags=flags)[1] + long_(ttl_ms)


def delete(path, version=-1):
    return DELETE, string(path) + int_(version)


def exists(path, watch=False):
    return EXISTS, string(path) + bool_(watch)


def get(path, watch=False):
    return GET, string(path) + bool_(watch)


def set_(path, data=b"", version=-1):
    return SET, string(path) + buffer(data) + int_(version)


def get_acl(path):
    return GET_ACL, string(path)


def set_acl(path, acl, version=-1):
    return SET_ACL, string(path) + acl_(acl) + int_(version)


def children(path, watch=False, op=CHILDREN):
    return op, string(path) + bool_(watch)


def check(path, version=-1):
    return CHECK, string(path) + int_(version)


def multi(*operations, op=MULTI):
    body = b"".join(int_(number) + bool_(False) + int_(-1) + body for number, body in operations)
    return op, body + int_(-1) + bool_(True) + int_(-1)


def auth(scheme, credentials):
    return AUTH, int_(0) + string(scheme) + buffer(credentials)


def add_watch(path, mode):
    return ADD_WATCH, string(path) + int_(mode)


def remove_watches(path, kind, op=REMOVE_WATCHES):
    return op, string(path) + int_(kind)


def set_watches(zxid, *paths, op=SET_WATCHES):
    return op, long_(zxid) + b"".join(vector(some, string) for some in paths)


class Reader:
    def __init__(self, data):
        self.data = data

    def take(self, format_):
        size = struct.calcsize(format_)
        (value,) = struct.unpack(format_, self.data[:size])
        self.data = self.data[size:]
        return value

    def int(self):
        return self.take("!i")

    def buffer(self):
        length = self.int()
        if length < 0:
            return None
        value, self.data = self.data[:length], self.data[length:]
        return value

    def vector(self, read):
        count = self.int()
        return None if count < 0 else [read() for _ in range(count)]

    def stat(self):
        longs = [self.take("!q") for _ in range(4)]
        versions = [self.int() for _ in range(3)]
        owner, length, count = self.take("!q"), self.int(), self.int()
        pzxid = self.take("!q")
        order = (longs[0] == longs[1], longs[1] == pzxid)
        return versions, owner != 0, length, count, order

    def acl(self):
        return self.vector(lambda: (self.int(), self.buffer(), self.buffer()))

    def results(self):
        results = []
        while True:
            op, done, error = self.int(), self.take("!b"), self.int()
            if done:
                return results
            results.append((op, error, self.int() if op == ERROR else self.body(op, in_multi=True)))

    def body(self, op, in_multi=False):
        if op in (CREATE, SYNC):
            return self.buffer()
        if op in (CREATE2, CONTAINER, TTL):
            return self.buffer(), self.stat()
        if op in (EXISTS, SET, SET_ACL):
            return self.stat()
        if op in (GET, RECONFIG):
            return self.buffer(), self.stat()
        if op == GET_ACL:
            return self.acl(), self.stat()
        if op in (CHILDREN, EPHEMERALS):
            return sorted(self.vector(self.buffer))
        if op == CHILDREN2:
            return sorted(self.vector(self.buffer)), self.stat()
        if op in (COUNT, ADD_WATCH):
            return self.int()
        if op in (MULTI, MULTI_READ):
            return self.results()
        if op == WHO:
            return sorted(self.vector(lambda: (self.buffer(), self.buffer())))
        return None


class Client:
    """One connection; what comes is told in a form that can be compared."""

    def __init__(self, address):
        self.address = address
        self.stream = None
        self.xids = itertools.count(1)
        self.session = (0, bytes(16))

    def connect(self, zxid=0, timeout_ms=10_000, session=None, read_only=b"\0", protocol=0):
        host, port = self.address.rsplit(":", 1)
        self.stream = socket.create_connection((host, int(port)), ANSWER_S)
        session = session or (0, bytes(16))
        body = int_(protocol) + long_(zxid) + int_(timeout_ms) + long_(session[0]) + buffer(session[1]) + read_only
        self.stream.sendall(buffer(body))
        frame = self.frame()
        if frame is None:
            return "closed"
        if frame == b"silence":
            return "silence"
        reader = Reader(frame)
        version, timeout = reader.int(), reader.int()
        self.session = reader.take("!q"), reader.buffer()
        return version, timeout, self.session[0] != 0, len(self.session[1]), reader.data

    def frame(self):
        def exactly(count):
            data = b""
            while len(data) < count:
                more = self.stream.recv(count - len(data))
                if not more:
                    raise ConnectionError
                data += more
            return data

        try:
            return exactly(struct.unpack("!i", exactly(4))[0])
        except ConnectionError:
            return None
        except TimeoutError:
            return b"silence"

    def send(self, request):
        op, body = request
        self.raw(int_(XIDS.get(op, next(self.xids))) + int_(op) + body)

    def raw(self, frame):
        try:
            self.stream.sendall(buffer(frame))
        except OSError:
            pass

    def call(self, request):
        """Everything up to the reply."""
        self.send(request)
        return self.receive(request[0])

    def receive(self, op):
        seen = []
        while True:
            frame = self.frame()
            if frame is None:
                return [*seen, "closed"]
            if frame == b"silence":
                return [*seen, "silence"]
            reader = Reader(frame)
            xid, zxid, error = reader.int(), reader.take("!q"), reader.int()
            if xid == -1:
                # Since 3.9 events carry zxids.
                seen.append(("event", reader.int(), reader.int(), reader.buffer()))
                continue
            xid = "xid" if xid > 0 else xid
            body = reader.body(op) if error == 0 and reader.data else None
            return [*seen, (xid, error, body, reader.data)]


def errors_of_create():
    yield "a", create("/a")
    for path in ["", "a", "/a", "/a/", "//", "/a//b", "/a/.", "/a/..", "/a/./b", "/none/a", "/a\0b", "/a/b\0", "/a\1",
                 "/\x7f", "/\u009f", "/\ue000", "/\ufff0", "/\uffff", "/a\u00a0", "/\U0001f600", "/none/", "/./a"]:
        for flags in (0, 2):
            yield f"create {path!r} {flags}", create(path, flags=flags)
    yield "null path", (CREATE, string(None) + buffer(b"") + acl_(OPEN) + int_(0))
    for flags in (-1, 7, 8, 100, 1 << 30):
        yield f"flags {flags}", create("/flags", flags=flags)
    for acl in ([], None, [(0, "world", "anyone")], [(32, "world", "anyone")], [(31, "world", "someone")],
                [(31, "nonsense", "x")], [(31, "auth", "")], [(31, "digest", "x")], [(31, "digest", "a:b")],
                [(31, "digest", "a:b:c")], [(31, "ip", "1.2.3.4")], [(31, "ip", "1.2.3.4/33")], [(31, "ip", "x")],
                [(31, "ip", "1.2.3.4/16")], [(31, "super", "x")], [(31, "sasl", "")], [(-1, "world", "anyone")],
                [(31, "world", "anyone"), (31, "world", "anyone")], [(31, "", "")], [(31, "digest", ":")],
                [(31, "digest", ":b")], [(31, "digest", "a:")]):
        yield f"acl {acl}", create("/acl", acl=acl)
        yield "read back", get_acl("/acl")
        yield "delete", delete("/acl")
    yield "ephemeral", create("/e", flags=1)
    yield "its child", create("/e/c")
    yield "its sequential child", create("/e/c", flags=2)
    yield "null data", create("/null", data=None)
    yield "null data", get("/null")
    for op in (CREATE2, CONTAINER):
        yield f"op {op}", create(f"/op{op}", op=op)
        yield f"op {op} again", create(f"/op{op}", op=op)
    yield "create2 with a ttl's flag", create("/t", flags=5, op=CREATE2)
    yield "create with a ttl's flag", create("/t", flags=6)
    yield "create with a container's flag", create("/by-flag", flags=4)
    yield "its stat", exists("/by-flag")
    yield "container with flag 0", create("/c0", flags=0, op=CONTAINER)
    yield "container", create("/c4", flags=4, op=CONTAINER)
    yield "ephemeral by createContainer", create("/c1", flags=1, op=CONTAINER)
    for ttl_ms in (0, -1, -2, 1 << 40, (1 << 40) - 1, (1 << 63) - 1):
        yield f"ttl {ttl_ms}", ttl("/ttl", ttl_ms)
        yield "delete", delete("/ttl")
    for flags in (0, 1, 2, 3, 4, 6, 7):
        yield f"ttl with flags {flags}", ttl("/tf", 60_000, flags)
        if flags in (6, 7):
            # With others it kills ZooKeeper 3.8.
            yield f"no ttl with flags {flags}", ttl("/tg", -1, flags)
    yield "children", children("/", op=CHILDREN2)
    yield "ephemerals", (EPHEMERALS, string("/"))
    yield "ephemerals of an odd path", (EPHEMERALS, string(""))
    yield "count", (COUNT, string("/"))
    yield "count of none", (COUNT, string("/none"))


def versions():
    yield "create", create("/v")
    for version in (5, -2, 0, 0, 1, -1):
        yield f"set {version}", set_("/v", b"x", version)
    yield "get", get("/v")
    yield "set none", set_("/none")
    yield "set null data", set_("/v", None)
    yield "get", get("/v")
    for path in ("v", "/v/", "/v\0"):
        for request in (set_(path), delete(path), get(path), exists(path), children(path), get_acl(path),
                        set_acl(path, OPEN), (SYNC, string(path)), (COUNT, string(path))):
            yield f"{request[0]} {path!r}", request
    for version in (5, 0, 0, 1, -1):
        yield f"set acl {version}", set_acl("/v", OPEN, version)
    for acl in ([], None, [(31, "auth", "")], [(31, "nonsense", "")]):
        yield f"set acl {acl}", set_acl("/v", acl)
    yield "set acl of none", set_acl("/none", OPEN)
    yield "child", create("/v/c")
    yield "not empty", delete("/v")
    yield "wrong version", delete("/v/c", 3)
    yield "delete", delete("/v/c", 0)
    yield "delete again", delete("/v/c")
    yield "stat", exists("/v")
    yield "sync none", (SYNC, string("/none"))


def special():
    for path in ("/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config", "/zookeeper/none"):
        for request in (delete(path), create(path), get_acl(path), exists(path), set_(path, b"")):
            yield f"{request[0]} {path}", request
        if path == "/zookeeper/quota":
            continue
    yield "below", create("/zookeeper/mine")
    yield "below", delete("/zookeeper/mine")
    yield "deleteContainer", (DELETE_CONTAINER, string("/zookeeper"))


def sequences():
    yield "parent", create("/s")
    for flags in (2, 3, 2):
        yield f"flags {flags}", create("/s/n-", flags=flags)
    yield "slash", create("/s/", flags=2)
    yield "delete", delete("/s/n-0000000001")
    yield "next", create("/s/n-", flags=2)
    yield "plain", create("/s/plain")
    yield "next", create("/s/n-", flags=2, op=CREATE2)
    yield "children", children("/s", op=CHILDREN2)
    yield "ephemerals", (EPHEMERALS, string("/s"))


def transactions():
    yield "parent", create("/m")
    yield "empty", multi()
    yield "good", multi(create("/m/a", b"1"), set_("/m/a", b"2"), check("/m/a", 1), create("/m/b", op=CREATE2), delete("/m/b"))
    yield "bad", multi(create("/m/c"), check("/m/a", 9), delete("/m/a"))
    yield "no node", multi(create("/m/c"), delete("/m/none"), set_("/m/a"), create("/m/d"))
    yield "first", multi(delete("/m/none"), create("/m/c"))
    yield "exists", multi(create("/m/c"), create("/m/c"))
    yield "bad path", multi(create("m"), create("/m/c"))
    yield "sequential", multi(create("/m/s-", flags=2), create("/m/s-", flags=2))
    yield "ephemeral", multi(create("/m/e", flags=1), create("/m/e/c"))
    yield "containers", multi(create("/m/k", flags=4, op=CONTAINER), ttl("/m/t", 60_000), ttl("/m/u-", 60_000, 6))
    yield "bad ttl", multi(create("/m/k2", flags=4, op=CONTAINER), ttl("/m/t2", 0))
    yield "bad acl", multi(create("/m/x", acl=[]), create("/m/y"))
    yield "not empty", multi(create("/m/z"), create("/m/z/z"), delete("/m/z"))
    yield "check of none", multi(check("/m/none"))
    yield "check", multi(check("/m"))
    yield "children", children("/m", op=CHILDREN2)
    yield "reads", multi(get("/m/a"), children("/m"), get("/m/none"), op=MULTI_READ)
    yield "no reads", multi(op=MULTI_READ)


def access():
    yield "who", (WHO, b"")
    yield "auth acl without identity", create("/x", acl=[(31, "auth", "")])
    yield "auth", auth("digest", b"bob:secret")
    yield "auth again", auth("digest", b"bob:secret")
    yield "another", auth("digest", b"eve:other")
    yield "who", (WHO, b"")
    yield "auth acl", create("/mine", acl=[(31, "auth", "")])
    yield "get acl", get_acl("/mine")
    yield "mixed acl", create("/shown", acl=[(31, "auth", "ignored"), (1, "world", "anyone")])
    yield "get acl", get_acl("/shown")
    yield "ip", auth("ip", b"")
    for acl in ([(1, "world", "anyone")], [(4, "world", "anyone")], [(31, "digest", "x:y")]):
        name = f"/p{acl[0][0]}"
        yield f"create {name}", create(name, acl=acl)
        for request in (get(name), exists(name), set_(name), children(name), create(name + "/c"), delete(name + "/c"),
                        get_acl(name), set_acl(name, OPEN), (COUNT, string(name)), multi(check(name)),
                        multi(get(name), op=MULTI_READ)):
            if request[0] == EXISTS and acl[0][0] != 1:
                continue  # READ is asked for since 3.9
            yield f"{request[0]} {name}", request


def strangers():
    yield "secret", get("/mine")
    yield "shown", get("/shown")
    yield "masked", get_acl("/shown")
    yield "secret acl", get_acl("/mine")
    yield "set acl", set_acl("/shown", OPEN)
    yield "in multi", multi(create("/ok"), set_("/shown"))
    yield "auth", auth("digest", b"eve:wrong")
    yield "delete it", delete("/shown")


def watches():
    yield "watch none", exists("/w", True)
    yield "create", create("/w")
    yield "data", get("/w", True)
    yield "children", children("/w", True)
    yield "set", set_("/w", b"1")
    yield "child", create("/w/c")
    yield "data of none", get("/none", True)
    yield "both", get("/w", True)
    yield "and", children("/w", True, op=CHILDREN2)
    yield "remove child watch", remove_watches("/w", 1)
    yield "remove child watch again", remove_watches("/w", 1)
    yield "check data", remove_watches("/w", 2, op=CHECK_WATCHES)
    yield "check any", remove_watches("/w", 3, op=CHECK_WATCHES)
    yield "remove any", remove_watches("/w", 3)
    yield "check any", remove_watches("/w", 3, op=CHECK_WATCHES)
    for kind in (0, 6, -1):
        yield f"remove kind {kind}", remove_watches("/w", kind)
    for mode in (2, -1, 1):
        # One mode at a time: since 3.9 a path may have several.
        yield f"add mode {mode}", add_watch("/w", mode)
    yield "set", set_("/w", b"2")
    yield "grandchild", create("/w/c/g")
    yield "set below", set_("/w/c/g")
    yield "delete below", delete("/w/c/g")
    yield "delete below", delete("/w/c")
    yield "delete", delete("/w")
    yield "create", create("/w")
    yield "remove any", remove_watches("/w", 3)
    yield "add", add_watch("/w2", 0)
    yield "create", create("/w2")
    yield "child", create("/w2/c")
    yield "set child", set_("/w2/c")
    yield "remove any", remove_watches("/w2", 3)
    yield "odd path", add_watch("w2", 0)
    yield "odd path", remove_watches("w2", 3)
    yield "both kinds", get("/w2", True)
    yield "both kinds", children("/w2", True)
    yield "multi", multi(set_("/w2", b"a"), create("/w2/d"), delete("/w2/d"))


def watches_again():
    yield "create", create("/again")
    yield "child", create("/again/c")
    yield "old", set_watches(0, ["/again", "/gone"], ["/again", "/none"], ["/again", "/gone"])
    yield "fire", create("/none")
    yield "many", set_watches(1 << 62, ["/again"], [], [], ["/again"], ["/again/c"], op=SET_WATCHES2)
    yield "fire", set_("/again", b"")
    yield "fire", set_("/again/c", b"")
    yield "fire", create("/again/c/x")
    yield "empty", set_watches(0, [], [], [])
    yield "null lists", set_watches(0, None, None, None)


def odd_requests():
    """Each on a connection of its own."""
    for op in (0, 10, 13, 16, 20, 23, 99, 108, 1000, -1, -2, -10, -12, 2**31 - 1, -(2**31)):
        yield f"op {op}", (op, b"")
    yield "check", check("/")
    yield "multi in multi", multi(multi())
    yield "read in multi", multi(get("/"))
    yield "write in multiRead", multi(create("/a"), op=MULTI_READ)
    yield "unknown in multi", multi((77, b""))
    yield "empty create", (CREATE, b"")
    yield "cut create", (CREATE, string("/cut") + b"\0\0")
    yield "negative string", (GET, int_(-5) + bool_(False))
    yield "huge string", (GET, int_(2**31 - 1) + bool_(False))
    yield "huge acl", (CREATE, string("/h") + buffer(b"") + int_(2**31 - 1))
    yield "negative acl", (CREATE, string("/n") + buffer(b"") + int_(-2) + int_(0))
    yield "bad utf-8", (GET, string(b"/\xff\xfe") + bool_(False))
    yield "trailing bytes", (GET, string("/") + bool_(False) + b"more")
    yield "empty multi body", (MULTI, b"")
    yield "multi without end", (MULTI, int_(CREATE) + bool_(False) + int_(-1) + create("/x")[1])
    yield "unknown auth", auth("nonsense", b"")
    yield "digest without colon", auth("digest", b"nobody")
    yield "digest empty", auth("digest", b"")
    yield "world auth", auth("world", b"")
    yield "wrong super", auth("digest", b"super:wrong")
    yield "sasl", (SASL, buffer(b""))
    yield "reconfig", (RECONFIG, string(None) + string(None) + string(None) + long_(-1))
    yield "close", (CLOSE, b"")
    yield "large", set_("/", bytes(2_000_000))


SCENARIOS = [
    errors_of_create, versions, special, sequences, transactions, access, strangers, watches, watches_again,
]


HELLOS = {
    "old client": dict(read_only=b""),
    "read-only": dict(read_only=b"\1"),
    "short timeout": dict(timeout_ms=1),
    "long timeout": dict(timeout_ms=2**31 - 1),
    "negative timeout": dict(timeout_ms=-1),
    "ahead": dict(zxid=1 << 62),
    "unknown session": dict(session=(12345, bytes(16))),
    "short password": dict(session=(12345, b"x")),
    "password without session": dict(session=(0, b"x")),
    "protocol": dict(protocol=7),
    "trailing": dict(read_only=b"\0more"),
}


def is_meant(scenario, name, reference, meridian):
    """Differences that are meant."""
    if scenario == "odd_requests":
        # ZooKeeper answers most of these with marshallingError and goes on (one of them stops all writes of
        # ZooKeeper 3.9.5); here a request that can't be read ends its connection.
        return meridian == ["closed"] or meridian[-1][1] == -6
    return (scenario, name) in {
        # 3.8 answers create2 in a multi as it answers create.
        ("transactions", "good"),
        # A null path and null lists are taken for empty ones.
        ("errors_of_create", "null path"),
        ("watches_again", "null lists"),
        # An operation among servers.
        ("special", "deleteContainer"),
        # A server on its own tells its members here too.
        ("special", "6 /zookeeper/config"),
        ("special", "3 /zookeeper/config"),
    }


def compare(scenario, name, answers, tally):
    if answers[0] == answers[1] or is_meant(scenario, name, *answers):
        tally[0] += 1
        return
    tally[1] += 1
    print(f"{scenario}: {name}\n  reference {answers[0]}\n  meridian  {answers[1]}")


def compare_all(addresses, only=""):
    """Numbers of equal and of different replies."""
    tally = [0, 0]
    for scenario in SCENARIOS:
        if only not in scenario.__name__:
            continue
        clients = [Client(address) for address in addresses]
        compare(scenario.__name__, "connect", [client.connect() for client in clients], tally)
        for name, request in scenario():
            answers = [client.call(request) for client in clients]
            compare(scenario.__name__, name, answers, tally)
            if any(answer[-1] == "closed" for answer in answers):
                [client.connect() for client in clients]
        [client.call((CLOSE, b"")) for client in clients]
    if only in "odd_requests":
        for name, request in odd_requests():
            clients = [Client(address) for address in addresses]
            [client.connect() for client in clients]
            compare("odd_requests", name, [client.call(request) for client in clients], tally)
            follow = [client.call((WHO, b"")) for client in clients]
            compare("odd_requests", f"whether {name} ends the connection", follow, tally)
    if only in "hellos":
        for name, hello in HELLOS.items():
            compare("hellos", name, [Client(address).connect(**hello) for address in addresses], tally)
    return tally


# The jars of a ZooKeeper 3.8 or 3.9 and of all that it needs: a directory, or Debian's package.
ZOOKEEPER_JARS = os.environ.get("ZOOKEEPER_JARS")
DEBIAN_JARS = ["/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-nop.jar"]
PROPERTIES = {"extendedTypesEnabled": "true"}


def zookeeper_jars():
    """The class path of the reference; empty where no ZooKeeper is installed."""
    jars = glob.glob(f"{ZOOKEEPER_JARS}/*.jar") if ZOOKEEPER_JARS else [j for j in DEBIAN_JARS if os.path.exists(j)]
    return sorted(jars) if shutil.which("java") and any("zookeeper" in os.path.basename(jar) for jar in jars) else []


def zoo_cfg(directory, name, port, **keys):
    os.mkdir(f"{directory}/{name}")
    keys = dict(tickTime=2000, dataDir=f"{directory}/{name}", clientPort=port, clientPortAddress="127.0.0.1", **keys)
    path = f"{directory}/{name}.cfg"
    with open(path, "w") as file:
        file.writelines(f"{key}={value}\n" for key, value in keys.items())
    return path


@contextlib.contextmanager
def servers(binary, properties=PROPERTIES):
    """A fresh ZooKeeper and a fresh Meridian with the same properties, and their addresses once both serve."""
    from mesh import eventually
    from region import free_ports

    properties = {"admin.enableServer": "false", **properties}
    directory = tempfile.mkdtemp(prefix="meridian-differential-")
    reference, meridian = free_ports(2)
    java = ["java", "-Djava.awt.headless=true", *(f"-Dzookeeper.{key}={value}" for key, value in properties.items())]
    # What goes by itself would come between the requests.
    java += ["-Dznode.container.checkIntervalMs=1000000000", "-cp", os.pathsep.join(zookeeper_jars())]
    java += ["org.apache.zookeeper.server.quorum.QuorumPeerMain", zoo_cfg(directory, "zookeeper", reference)]
    ours = zoo_cfg(directory, "meridian", meridian, **properties, **{"znode.container.checkIntervalMs": 1000000000})
    with open(f"{directory}/log", "w") as log:
        commands = [java, [binary, "server", "--config", ours]]
        processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
    addresses = [f"127.0.0.1:{port}" for port in (reference, meridian)]
    try:
        for address in addresses:
            eventually(f"{address} serves", lambda address=address: is_serving(address))
        yield addresses
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(directory)


def is_serving(address):
    with contextlib.suppress(OSError):
        return Client(address).connect() not in ("closed", "silence")
    return False


def check_against_zookeeper(binary):
    """edge cases of every request are answered as ZooKeeper answers them (skipped where it is not installed)"""
    from mesh import say

    if not zookeeper_jars():
        say("ZooKeeper is not installed here")
        return
    with servers(binary) as addresses:
        equal, different = compare_all(addresses)
    assert equal and not different, f"{different} replies differ"
    say(f"{equal} replies are the same")


def main():
    equal, different = compare_all(sys.argv[1:3], *sys.argv[3:])
    print(f"{equal} passed, {different} failed")
    return different != 0


if __name__ == "__main__":
    sys.exit(main())
