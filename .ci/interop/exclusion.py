"""Mutual exclusion and ephemerals between regions."""

import threading

from mesh import DEADLINE_S, Process, eventually, say


class Overlap:
    """Counts who is inside at once."""

    def __init__(self):
        self.guard = threading.Lock()
        self.inside = 0
        self.most = 0
        self.entered = []

    def enter(self, who):
        with self.guard:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.entered.append(who)

    def leave(self):
        with self.guard:
            self.inside -= 1


def check_lock(mesh):
    """a kazoo Lock on /global is held in one region at a time, and passes to the region that waits"""
    one, other = mesh.regions[0], mesh.regions[2]
    with mesh.client(one) as first, mesh.client(other) as second:
        lock = first.Lock("/global/lock", "first")
        assert lock.acquire(timeout=DEADLINE_S)
        rival = second.Lock("/global/lock", "second")
        assert not rival.acquire(blocking=False), "a held lock was acquired in another region"
        acquired = threading.Event()
        waiting = threading.Thread(
            target=lambda: rival.acquire(timeout=DEADLINE_S) and acquired.set(), daemon=True
        )
        waiting.start()
        eventually("the other region waits", lambda: lock.contenders() == ["first", "second"])
        assert not acquired.is_set(), "a held lock was acquired in another region"
        lock.release()
        assert acquired.wait(DEADLINE_S), "the watch of the waiting side did not fire"
        assert not first.Lock("/global/lock", "first").acquire(blocking=False)
        rival.release()


def check_lock_contention(mesh):
    """clients of all regions that contend for a lock are never inside together, and all get in"""
    overlap, rounds = Overlap(), 4
    failures = []

    def contend(region):
        try:
            with mesh.client(region) as client:
                for _ in range(rounds):
                    with client.Lock("/global/contended", region):
                        overlap.enter(region)
                        client.exists("/global/contended")
                        overlap.leave()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=contend, args=(r,), daemon=True) for r in mesh.regions * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
    assert not failures, failures
    assert overlap.most == 1, f"{overlap.most} inside at once: {overlap.entered}"
    assert len(overlap.entered) == rounds * len(threads), overlap.entered


def check_election(mesh):
    """a kazoo Election on /global has one leader over all regions, which the waiting region's candidate succeeds"""
    one, other = mesh.regions[1], mesh.regions[2]
    with mesh.client(one) as first, mesh.client(other) as second:
        elected, ends = [], {region: threading.Event() for region in (one, other)}

        def lead(region):
            elected.append(region)
            ends[region].wait(DEADLINE_S)

        def stand(client, region):
            candidate = client.Election("/global/election", region)
            thread = threading.Thread(target=candidate.run, args=(lead, region), daemon=True)
            thread.start()
            return thread

        threads = [stand(first, one)]
        eventually("the first candidate leads", lambda: elected == [one])
        threads.append(stand(second, other))
        candidates = first.Election("/global/election")
        eventually("the second candidate stands", lambda: candidates.contenders() == [one, other])
        assert elected == [one], elected
        ends[one].set()
        eventually("the other region's candidate leads", lambda: elected == [one, other])
        ends[other].set()
        for thread in threads:
            thread.join(DEADLINE_S)
        # Another region's delete is seen here once it has arrived: only a sync would wait for it.
        eventually("no candidate is left", lambda: candidates.contenders() == [])


def check_killed_client(mesh):
    """the ephemerals of a killed client disappear in every region, and a lock it held passes on"""
    for region in mesh.regions[:2]:
        paths = [f"{subtree}/dies/{region}" for subtree in ("/global", "/shared")]
        lock = f"/global/dies-lock/{region}"
        process = Process(mesh.hosts(region), 6, f"lock={lock}", *paths)
        for other in mesh.regions:
            with mesh.client(other) as client:
                for path in paths:
                    client.sync(path)
                    owner = client.exists(path).ephemeralOwner
                    assert owner == process.client_id[0], f"{path} in {other}: owner {owner:#x}"
        gone = threading.Event()
        watching = mesh.regions[2]
        with mesh.client(watching) as client:
            assert client.exists(paths[0], watch=lambda _: gone.set())
            assert not client.Lock(lock, "heir").acquire(blocking=False), "a held lock was acquired"
            process.kill()
            assert gone.wait(DEADLINE_S), f"no watch fired in {watching} when a client of {region} died"
            heir = client.Lock(lock, "heir")
            assert heir.acquire(timeout=DEADLINE_S), f"the lock of a killed client of {region} never passed on"
            heir.release()
        for server in mesh.servers:
            with mesh.client(server) as client:
                for path in paths:
                    eventually(
                        f"{path} is gone at {server}",
                        lambda client=client, path=path: client.exists(path) is None,
                    )
        say(f"a client of {region}: gone at {len(mesh.servers)} servers")
