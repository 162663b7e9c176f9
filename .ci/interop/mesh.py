"""A mesh started by `meridian demo`, its servers, and the clients of its regions."""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from kazoo.client import KazooClient
from kazoo.retry import KazooRetry

# Lost connections are what many checks are about.
logging.getLogger("kazoo").addHandler(logging.NullHandler())

# Generous: a shared machine of two cores runs twelve servers and their clients.
DEADLINE_S = 120
# Well above a failover within a region, below what a check can wait for.
SESSION_S = 20


class Server:
    def __init__(self, region, entry):
        self.region = region
        self.name = entry["name"]
        self.role = entry["role"]
        self.pid = entry["pid"]
        self.client = entry["client"]
        self.admin = entry["admin"]
        self.config = entry["config"]
        # The process, once this program has started it again.
        self.process = None

    def ask(self, path):
        """The JSON answer of the server's HTTP endpoint."""
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=10) as answer:
            return json.load(answer)

    def state(self):
        """What the server says of itself, or nothing while it does not serve."""
        try:
            return self.ask("/mesh")
        except OSError:
            return {}

    def __str__(self):
        return self.name


class Mesh:
    """Three regions of three voters and an observer; stopped when the block ends."""

    def __init__(self, binary):
        self.binary = binary
        self.directory = tempfile.TemporaryDirectory(prefix="meridian-interop-")

    def __enter__(self):
        self.log = open(os.path.join(self.directory.name, "demo.log"), "w+")
        command = [self.binary, "demo", "--json", "--data", os.path.join(self.directory.name, "mesh")]
        self.demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        ready, _, _ = select.select([self.demo.stdout], [], [], DEADLINE_S)
        line = self.demo.stdout.readline() if ready else ""
        if not line:
            self.__exit__()
            raise AssertionError("meridian demo printed no mesh")
        description = json.loads(line)
        self.control = description["control"].rsplit(":", 1)[1]
        self.regions = [region["name"] for region in description["regions"]]
        self.servers = [
            Server(region["name"], entry)
            for region in description["regions"]
            for entry in region["servers"]
        ]
        self.home = next(s["home"] for s in description["subtrees"] if s["path"] == "/shared")
        return self

    def __exit__(self, *_):
        for server in getattr(self, "servers", []):
            if server.process:
                server.process.kill()
                server.process.wait()
        self.demo.terminate()
        try:
            self.demo.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.demo.kill()
        self.log.close()
        self.directory.cleanup()

    def of(self, region):
        return [server for server in self.servers if server.region == region]

    def hosts(self, region):
        return ",".join(server.client for server in self.of(region))

    @contextlib.contextmanager
    def client(self, place, **options):
        """A started client of a region (all its servers listed) or of one server."""
        hosts = place.client if isinstance(place, Server) else self.hosts(place)
        client = start_client(hosts, **options)
        try:
            yield client
        finally:
            stop_client(client)

    def leader(self, region):
        """The server that leads a region."""
        def leading():
            return next((s for s in self.of(region) if s.state().get("leads_region")), None)

        return eventually(f"{region} has a leader", leading)

    def global_leader(self):
        """The region that leads the global group, agreed on by all regional leaders."""
        def agreed():
            known = {self.leader(region).state().get("global_leader") for region in self.regions}
            return known.pop() if len(known) == 1 else None

        return eventually("the regions agree on who leads the global group", agreed)

    def kill(self, server):
        say(f"kill -9 {server}")
        os.kill(server.pid, signal.SIGKILL)
        if server.process:
            server.process.wait()

    def restart(self, server):
        say(f"start {server} again")
        log = os.path.join(self.directory.name, f"{server.name}-again.log")
        with open(log, "a") as out:
            command = [self.binary, "server", "--config", server.config]
            server.process = subprocess.Popen(command, stdout=out, stderr=out)
        server.pid = server.process.pid

        def serves():
            assert server.process.poll() is None, f"{server} ended:\n{open(log).read()}"
            return server.state().get("region_leader")

        eventually(f"{server} serves again", serves)

    def link(self, *words):
        """`meridian demo cut ...` and `heal ...`."""
        say("meridian demo " + " ".join(words))
        command = [self.binary, "demo", *words, "--control", self.control]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"

    @contextlib.contextmanager
    def cut(self, *regions):
        """Cut links in the block, healed after it."""
        self.link("cut", *regions)
        try:
            yield
        finally:
            self.link("heal")

    def await_whole(self):
        """Waits until every region has a leader and a lease, and all servers have equal shared subtrees."""
        def all_lead():
            states = [server.state() for server in self.servers]
            return all(s.get("region_leader") and s.get("lease_holds") for s in states)

        eventually("every server has a leader and a lease", all_lead)
        self.global_leader()
        eventually("the digests of all servers agree", self.digests_agree)

    def digests_agree(self):
        try:
            digests = [server.ask("/digest") for server in self.servers]
        except OSError:
            return False
        return all(digest == digests[0] for digest in digests)

    def describe(self):
        """One line for each server, to tell what went wrong."""
        lines = []
        for server in self.servers:
            try:
                digests = [f"{d['path']} {d['zxid']} {d['digest'][:8]}" for d in server.ask("/digest")]
            except OSError as error:
                digests = [str(error)]
            lines.append(f"{server}: {server.state()} {digests}")
        return "\n".join(lines)


def start_client(hosts, timeout=SESSION_S, **options):
    retry = KazooRetry(max_tries=-1, delay=0.1, backoff=1.5, max_delay=2)
    client = KazooClient(hosts=hosts, timeout=timeout, connection_retry=retry, **options)
    client.start(timeout=DEADLINE_S)
    return client


def stop_client(client):
    with contextlib.suppress(Exception):
        client.stop()
    with contextlib.suppress(Exception):
        client.close()


class Process:
    """A client in a process of its own (client.py), which can be killed."""

    def __init__(self, hosts, timeout_s, *paths):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "client.py")
        command = [sys.executable, script, hosts, str(timeout_s), *paths]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.kill()
            raise AssertionError("the client process did not create its ephemeral znodes")
        session, password = line.split()
        self.client_id = (int(session), bytes.fromhex(password))

    def kill(self):
        self.process.kill()
        self.process.wait()


def say(text):
    print(f"    {text}", flush=True)


def eventually(what, holds, seconds=DEADLINE_S):
    """Waits until `holds` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
