"""The client protocol: order, transactions, sequences, watches, sessions, hostile input, four-letter words."""

import queue
import socket
import struct
import threading

from kazoo.client import KazooState
from kazoo.exceptions import BadArgumentsError, BadVersionError, NodeExistsError, NoNodeError, RolledBackError

from mesh import DEADLINE_S, Process, eventually, say, start_client, stop_client


def check_pipelined_requests(mesh):
    """requests sent without waiting are answered in order and take effect in order, across subtrees"""
    count = 120
    for region in mesh.regions[:2]:
        with mesh.client(region) as client:
            paths = [f"{subtree}/pipeline-{region}" for subtree in ("/global", "/shared", "")]
            for path in paths:
                client.create(path, b"none")
            answered, done = [], threading.Event()

            def note(result, number):
                answered.append((number, result))
                if len(answered) == 2 * count:
                    done.set()

            for i in range(count):
                path = paths[i % len(paths)]
                client.set_async(path, b"%d" % i).rawlink(lambda r, n=2 * i: note(r, n))
                client.get_async(path).rawlink(lambda r, n=2 * i + 1: note(r, n))
            assert done.wait(DEADLINE_S), f"{region}: {len(answered)} of {2 * count} answers"
            order = [number for number, _ in answered]
            assert order == sorted(order), f"{region}: answered in the order {order}"
            for number, result in answered:
                value = result.get()
                if number % 2:
                    wanted = b"%d" % (number // 2)
                    assert value[0] == wanted, f"{region}: read {value[0]} after writing {wanted}"


def check_transactions(mesh):
    """a transaction happens as a whole or not at all, in every kind of subtree; across orderers it is refused"""
    region = mesh.regions[1]
    with mesh.client(region) as client:
        for base in ("/global/multi", "/shared/multi", "/multi"):
            client.create(base, b"base")
            transaction = client.transaction()
            transaction.check(base, version=0)
            transaction.create(base + "/a", b"1")
            transaction.set_data(base, b"changed")
            transaction.create(base + "/b", b"2")
            transaction.delete(base + "/b")
            results = transaction.commit()
            assert not any(isinstance(r, Exception) for r in results), f"{base}: {results}"
            assert client.get(base)[0] == b"changed" and client.get_children(base) == ["a"], base

            transaction = client.transaction()
            transaction.create(base + "/c", b"3")
            transaction.check(base, version=7)
            results = transaction.commit()
            kinds = [type(r) for r in results]
            assert kinds == [RolledBackError, BadVersionError], f"{base}: {kinds}"
            assert client.exists(base + "/c") is None, f"{base}: a failed transaction left a znode"

        transaction = client.transaction()
        transaction.create("/global/multi/x")
        transaction.create("/multi/x")
        try:
            results = transaction.commit()
        except BadArgumentsError:
            results = [BadArgumentsError()]
        assert any(isinstance(r, BadArgumentsError) for r in results), f"across orderers: {results}"
        assert not client.exists("/global/multi/x") and not client.exists("/multi/x")


def check_sequences(mesh):
    """sequential znodes made in two regions at once get different numbers in the order of their creation"""
    for base in ("/global/sequence", "/shared/sequence"):
        one, other = mesh.regions[0], mesh.regions[2]
        with mesh.client(one) as first, mesh.client(other) as second:
            first.create(base)
            second.sync(base)
            created = [c.create_async(base + "/n-", sequence=True) for _ in range(25) for c in (first, second)]
            names = [result.get(timeout=DEADLINE_S) for result in created]
            assert len(set(names)) == 50, f"{base}: a number was given twice"
            numbers = sorted(int(name.rsplit("-", 1)[1]) for name in names)
            assert numbers == list(range(50)), f"{base}: {numbers}"
            second.sync(base)
            order = sorted(names, key=lambda name: second.exists(name).czxid)
            assert order == sorted(names), f"{base}: numbers and creation differ in order"


def check_watches(mesh):
    """data, child and exists watches fire once for a change made in another region, before the change is read"""
    watching, writing = mesh.regions[1], mesh.regions[2]
    for base in ("/global/watched", "/shared/watched"):
        with mesh.client(watching) as watcher, mesh.client(writing) as writer:
            writer.create(base, b"1")
            watcher.sync(base)
            events = queue.Queue()
            for setting in (watcher.get, watcher.get_children):
                setting(base, watch=events.put)
            assert watcher.exists(base + "/child", watch=events.put) is None
            writer.create(base + "/child")
            got = sorted(events.get(timeout=DEADLINE_S).type for _ in range(2))
            assert got == ["CHILD", "CREATED"], f"{base}: {got}"
            assert watcher.get_children(base) == ["child"], base
            writer.set(base, b"2")
            event = events.get(timeout=DEADLINE_S)
            assert (event.type, event.path) == ("CHANGED", base), event
            assert watcher.get(base)[0] == b"2", f"{base}: old data after the watch"
            watcher.get(base + "/child", watch=events.put)
            writer.delete(base + "/child")
            event = events.get(timeout=DEADLINE_S)
            assert (event.type, event.path) == ("DELETED", base + "/child"), event
            writer.set(base, b"3")
            watcher.sync(base)
            assert watcher.get(base)[0] == b"3" and events.empty(), f"{base}: a watch fired twice"


def check_session_moves(mesh):
    """a session whose client died goes on at another server, with its ephemerals, and the old password counts"""
    for region in mesh.regions[:2]:
        first, second = mesh.of(region)[:2]
        path = f"/global/moving-{region}"
        process = Process(first.client, 40, path)
        process.kill()
        client = start_client(second.client, timeout=40, client_id=process.client_id)
        try:
            assert client.client_id[0] == process.client_id[0], f"{region}: a new session instead of the old"
            owner = client.exists(path).ephemeralOwner
            assert owner == process.client_id[0], f"{region}: owner {owner:#x}"
            wrong = (process.client_id[0], b"x" * 16)
            stranger = start_client(first.client, client_id=wrong)
            same = stranger.client_id[0] == process.client_id[0]
            stop_client(stranger)
            assert not same, f"{region}: a wrong password took over a session"
        finally:
            stop_client(client)
        with mesh.client(mesh.regions[2]) as other:
            other.sync(path)
            assert other.exists(path) is None, f"{path} outlived its closed session"


def check_session_expiry(mesh):
    """an expired session's ephemerals are gone in every region, and its client is told"""
    region = mesh.regions[0]
    paths = ["/global/expiring", "/shared/expiring", "/expiring"]
    process = Process(mesh.hosts(region), 4, *paths)
    process.kill()
    with mesh.client(region) as client:
        for path in paths:
            eventually(f"{path} is gone", lambda path=path: client.exists(path) is None)
    for other in mesh.regions[1:]:
        with mesh.client(other) as client:
            for path in paths[:2]:
                eventually(f"{path} is gone in {other}", lambda path=path: client.exists(path) is None)
    states = []
    client = start_client(mesh.hosts(region), client_id=process.client_id)
    client.add_listener(states.append)
    try:
        assert client.client_id[0] != process.client_id[0], "an expired session was taken up again"
    finally:
        stop_client(client)
    assert states == [KazooState.LOST], states


def check_errors(mesh):
    """errors are those that clients know, from both regions"""
    for region in mesh.regions[:2]:
        with mesh.client(region) as client:
            path = f"/global/errors-{region}"
            client.create(path)
            for wanted, request in (
                (NodeExistsError, lambda: client.create(path)),
                (NoNodeError, lambda: client.create(path + "/a/b")),
                (NoNodeError, lambda: client.get(path + "/none")),
                (BadVersionError, lambda: client.set(path, b"", version=9)),
                (BadVersionError, lambda: client.delete(path, version=9)),
            ):
                try:
                    request()
                except wanted:
                    continue
                raise AssertionError(f"{region}: no {wanted.__name__}")


def connect_request(timeout_ms=10_000):
    body = struct.pack("!iqiq", 0, 0, timeout_ms, 0) + struct.pack("!i", 16) + bytes(16) + b"\0"
    return struct.pack("!i", len(body)) + body


def is_closed(connection):
    """Reads until the other side closes the connection."""
    connection.settimeout(DEADLINE_S)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def check_malformed_frames(mesh):
    """a malformed frame ends the connection it came on, and no other"""
    greeting = connect_request()
    frames = {
        "a negative length": struct.pack("!i", -5),
        "a huge length": struct.pack("!i", 0x7FFFFFFF),
        "a request cut short": struct.pack("!iii", 8, 1, 1),
        "a string longer than its frame": struct.pack("!iiii", 12, 1, 4, 1 << 30),
        "an opcode that does not exist": struct.pack("!iii", 8, 1, 4711),
    }
    for server in (mesh.of(mesh.regions[0])[0], mesh.of(mesh.regions[2])[3]):
        host, port = server.client.rsplit(":", 1)
        with mesh.client(server) as neighbour:
            session = neighbour.client_id[0]
            for what, frame in frames.items():
                with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
                    connection.sendall(greeting)
                    assert len(connection.recv(4096)) >= 4, f"{server}: no answer to a connect request"
                    connection.sendall(frame)
                    if "opcode" not in what:
                        assert is_closed(connection), f"{server}: {what} did not end its connection"
                assert neighbour.exists("/") is not None, f"{server}: {what} hurt a neighbour"
            for what in (struct.pack("!i", 0x7FFFFFFF), b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64):
                with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
                    connection.sendall(what)
                    assert is_closed(connection), f"{server}: {what!r} instead of a greeting was borne"
            assert neighbour.exists("/") is not None
            assert neighbour.client_id[0] == session and neighbour.connected


def check_four_letter_words(mesh):
    """ruok, srvr and mntr answer in every role"""
    for region in mesh.regions[:2]:
        for server in mesh.of(region):
            host, port = server.client.rsplit(":", 1)
            answers = {}
            for word in ("ruok", "srvr", "mntr"):
                with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
                    connection.sendall(word.encode())
                    connection.settimeout(DEADLINE_S)
                    answers[word] = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            assert answers["ruok"] == "imok", answers["ruok"]
            srvr = dict(line.split(": ", 1) for line in answers["srvr"].splitlines() if ": " in line)
            mntr = dict(line.split("\t", 1) for line in answers["mntr"].splitlines())
            mode = srvr["Mode"]
            assert mode == mntr["zk_server_state"], f"{server}: {mode} and {mntr['zk_server_state']}"
            leads = server.state()["leads_region"]
            expected = "leader" if leads else "observer" if server.role == "observer" else "follower"
            assert mode == expected, f"{server}: mode {mode}, expected {expected}"
            assert int(srvr["Zxid"], 16) > 0 and int(mntr["zk_znode_count"]) > 0
    say("leader, follower and observer name themselves")
