"""A killed server: clients carry on, nothing acknowledged is lost, and the server catches up."""

import contextlib
import threading
import time

from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError

from mesh import DEADLINE_S, SESSION_S, eventually, say, start_client, stop_client

SUBTREES = ("/global", "/shared", "")


class Writers:
    """A client for each region and kind of subtree that creates znodes, and remembers the acknowledged ones."""

    def __init__(self, mesh, name):
        self.mesh = mesh
        self.name = name
        self.acknowledged = {(region, subtree): [] for region in mesh.regions for subtree in SUBTREES}
        self.stopped = threading.Event()
        self.clients = {}
        self.threads = []

    def __enter__(self):
        for region in self.mesh.regions:
            with self.mesh.client(region) as client:
                for subtree in SUBTREES:
                    client.ensure_path(self.directory(region, subtree))
        for key in self.acknowledged:
            self.clients[key] = start_client(self.mesh.hosts(key[0]), timeout=SESSION_S)
            self.threads.append(threading.Thread(target=self.write, args=key, daemon=True))
        self.sessions = {key: client.client_id[0] for key, client in self.clients.items()}
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for client in self.clients.values():
            stop_client(client)
        for thread in self.threads:
            thread.join(DEADLINE_S)

    def directory(self, region, subtree):
        return f"{subtree}/{self.name}/{region}"

    def write(self, region, subtree):
        client, number = self.clients[region, subtree], 0
        while not self.stopped.is_set():
            number += 1
            name = f"n{number:06}"
            # What is not acknowledged may or may not be there: its name is not used again.
            with contextlib.suppress(KazooException, KazooTimeoutError):
                client.create_async(f"{self.directory(region, subtree)}/{name}", b"kept").get(timeout=SESSION_S)
                self.acknowledged[region, subtree].append(name)
            self.stopped.wait(0.1)

    def counts(self):
        return {key: len(names) for key, names in self.acknowledged.items()}

    def await_progress(self, *without):
        """Waits until every writer, but those of `without`, has five more writes acknowledged."""
        before, started = self.counts(), time.monotonic()
        keys = [key for key in before if key not in without]

        def lagging():
            now = self.counts()
            return [key for key in keys if now[key] < before[key] + 5]

        try:
            eventually("every writer goes on", lambda: not lagging())
        except AssertionError:
            raise AssertionError(f"no further writes are acknowledged for {lagging()}") from None
        say(f"all writers went on within {time.monotonic() - started:.1f} s")

    def lost_sessions(self):
        return [key for key, client in self.clients.items() if client.client_id[0] != self.sessions[key]]

    def verify(self):
        """Every acknowledged write is at every server that should have it."""
        total = 0
        for server in self.mesh.servers:
            with self.mesh.client(server) as client:
                for (region, subtree), names in self.acknowledged.items():
                    if subtree == "" and region != server.region:
                        continue
                    directory = self.directory(region, subtree)
                    client.sync(directory)
                    missing = set(names) - set(client.get_children(directory))
                    assert not missing, f"{server}: acknowledged, but not in {directory}: {sorted(missing)}"
                    total += len(names)
        say(f"{sum(self.counts().values())} acknowledged writes, {total} found at {len(self.mesh.servers)} servers")


def survive(mesh, server, name):
    with Writers(mesh, name) as writers:
        writers.await_progress()
        mesh.kill(server)
        writers.await_progress()
        lost = writers.lost_sessions()
        assert not lost, f"sessions ended because {server} was killed: {lost}"
        mesh.restart(server)
        writers.await_progress()
    mesh.await_whole()
    writers.verify()


def check_observer(mesh):
    """an observer is killed"""
    survive(mesh, next(s for s in mesh.of(mesh.regions[1]) if s.role == "observer"), "kill-observer")


def check_follower(mesh):
    """a follower is killed"""
    region = mesh.regions[2]
    leader = mesh.leader(region)
    follower = next(s for s in mesh.of(region) if s.role == "voter" and s is not leader)
    survive(mesh, follower, "kill-follower")


def check_regional_leader(mesh):
    """the leader of a region that does not lead the global group is killed"""
    led = mesh.global_leader()
    survive(mesh, mesh.leader(next(r for r in mesh.regions if r != led)), "kill-leader")


def check_global_leader(mesh):
    """the leader of the region that leads the global group is killed"""
    survive(mesh, mesh.leader(mesh.global_leader()), "kill-global-leader")


def check_home_leader(mesh):
    """the leader of the home of /shared is killed"""
    survive(mesh, mesh.leader(mesh.home), "kill-home-leader")
