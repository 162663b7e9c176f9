"""Cut links: a lock's holder is told first, the others go on, and all agree after healing."""

import threading
import time

from kazoo.client import KazooState

from failover import SUBTREES, Writers
from mesh import DEADLINE_S, eventually, say

# Longer than others wait for a region's lease and clients, so that the effects of a cut have shown.
LEASE_PASSED_S = 30


def check_region_cut_off(mesh):
    """a region is cut off that neither leads the global group nor is a home"""
    led = mesh.global_leader()
    cut_off(mesh, next(r for r in mesh.regions if r not in (led, mesh.home)), "cut")


def check_global_leader_cut_off(mesh):
    """the region that leads the global group is cut off"""
    cut_off(mesh, mesh.global_leader(), "cut-leading")


def check_home_cut_off(mesh):
    """the home of /shared is cut off: it goes on, and the others read what they have"""
    cut_off(mesh, mesh.home, "cut-home")


def cut_off(mesh, region, name):
    others = [r for r in mesh.regions if r != region]
    path = f"/global/lock-{name}"
    told, acquired = [], threading.Event()
    with Writers(mesh, name) as writers, mesh.client(region) as holder, mesh.client(others[0]) as rival:
        holder.add_listener(lambda state: told.append((time.monotonic(), state)))
        assert holder.Lock(path, region).acquire(timeout=DEADLINE_S)
        waiting = rival.Lock(path, others[0])
        taken = []

        def wait():
            if waiting.acquire(timeout=2 * DEADLINE_S):
                taken.append(time.monotonic())
                acquired.set()

        threading.Thread(target=wait, daemon=True).start()
        eventually("the rival waits", lambda: len(waiting.contenders()) == 2)
        assert not told and not taken
        unreachable = [(region, "/global")]
        # Elsewhere a homed subtree is written through its home only.
        unreachable += [(r, "/shared") for r in (others if region == mesh.home else [region])]
        with mesh.cut(region):
            cut_at = time.monotonic()
            writers.await_progress(*unreachable)
            assert acquired.wait(DEADLINE_S), "the lock of a cut region never passes on"
            assert told, "the lock passed on, and its holder in the cut region was not told"
            told_at, state = told[0]
            assert state in (KazooState.SUSPENDED, KazooState.LOST), state
            assert told_at < taken[0], f"the holder was told {told_at - taken[0]:.2f} s after the lock passed on"
            say(f"holder told {told_at - cut_at:.1f} s, lock passed on {taken[0] - cut_at:.1f} s after the cut")
            writers.await_progress(*unreachable)
            local_reads_go_on(mesh, region, writers)
        writers.await_progress()
    mesh.await_whole()
    writers.verify()


def local_reads_go_on(mesh, region, writers):
    """In a cut region all that was known is still read, its own subtrees and the shared ones."""
    with mesh.client(region) as client:
        for subtree in SUBTREES:
            directory = writers.directory(region, subtree)
            assert client.get_children(directory), f"{directory} can't be read in {region}"


def check_link_cut(mesh):
    """the link between the region that leads the global group and another is cut: a majority goes on, none is harmed"""
    led = mesh.global_leader()
    far = next(r for r in mesh.regions if r not in (led, mesh.home))
    third = next(r for r in mesh.regions if r not in (led, far))
    with Writers(mesh, "cut-link") as writers:
        writers.await_progress()
        with mesh.cut(led, far):
            # What crosses the link may wait: the far side's writes to the global group, those to the home.
            crossing = [(far, "/global"), (far, "/shared"), (led, "/shared")]
            before = writers.counts()
            time.sleep(LEASE_PASSED_S)
            writers.await_progress(*crossing)
            for key in crossing:
                say(f"{key[1]} from {key[0]}: {writers.counts()[key] - before[key]} writes while the link was cut")
            states = {r: mesh.leader(r).state() for r in mesh.regions}
            say("; ".join(f"{r}: {s['global_leader']} leads, lease {s['lease_holds']}" for r, s in states.items()))
            assert states[third]["lease_holds"], f"{third} lost its lease though it reaches both"
        writers.await_progress()
    mesh.await_whole()
    writers.verify()
