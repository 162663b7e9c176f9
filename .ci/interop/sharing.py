"""Shared subtrees: what one region writes is the same in the others."""

from kazoo.protocol.states import ZnodeStat

from mesh import eventually, say


def check_home_writes_are_read_elsewhere(mesh):
    """what the home of /shared writes is read in the other regions, in its order"""
    with mesh.client(mesh.home) as home:
        home.create("/shared/settings", b"0")
        for i in range(1, 21):
            home.set("/shared/settings", b"%d" % i)
    for region in mesh.regions:
        if region != mesh.home:
            with mesh.client(region) as client:
                eventually(
                    f"{region} reads the home's last write",
                    lambda client=client: client.exists("/shared/settings")
                    and client.get("/shared/settings")[0] == b"20",
                )


def check_forwarded_writes(mesh):
    """a write to /shared from another region is forwarded, and its writer reads it at once"""
    for region in mesh.regions:
        if region == mesh.home:
            continue
        path = f"/shared/from-{region}"
        with mesh.client(region) as client, mesh.client(mesh.home) as home:
            client.create(path, b"first")
            assert client.get(path)[0] == b"first", f"{region} does not read its own write"
            # An acknowledged write is committed at home.
            home.sync(path)
            assert home.get(path)[0] == b"first", f"the home does not have the write of {region}"
            version = client.set(path, b"second").version
            assert (client.get(path)[0], version) == (b"second", 1)


def check_sync_then_read(mesh):
    """after a write in one region, sync and a read in another show it, every time"""
    writer_region, reader_region = mesh.regions[1], mesh.regions[2]
    with mesh.client(writer_region) as writer, mesh.client(reader_region) as reader:
        for base in ("/global/synced", "/shared/synced"):
            writer.create(base, b"")
            for i in range(15):
                writer.set(base, b"%d" % i)
                reader.sync(base)
                data = reader.get(base)[0]
                assert data == b"%d" % i, f"{base}: {data} read after sync, {i} written"


def check_equal_everywhere(mesh):
    """data and stat of shared znodes are equal at all servers of all regions, zxids included"""
    with mesh.client(mesh.regions[0]) as a, mesh.client(mesh.regions[2]) as b:
        for base in ("/global/equal", "/shared/equal"):
            a.create(base, b"a")
            b.sync(base)
            b.create(base + "/child", b"x" * 100)
            b.create(base + "/held", b"", ephemeral=True)
            a.sync(base)
            a.set(base, b"a second time")
            a.set_acls(base + "/child", a.get_acls(base + "/child")[0])
            a.create(base + "/gone")
            a.delete(base + "/gone")
        paths = [base + end for base in ("/global/equal", "/shared/equal") for end in ("", "/child", "/held")]
        seen = {path: {} for path in paths}
        for server in mesh.servers:
            with mesh.client(server) as client:
                for path in paths:
                    client.sync(path)
                    data, stat = client.get(path)
                    seen[path][server.name] = (data, stat, tuple(client.get_acls(path)[0]))
        for path, by_server in seen.items():
            assert len(set(by_server.values())) == 1, f"{path} differs: {by_server}"
            stat = next(iter(by_server.values()))[1]
            assert isinstance(stat, ZnodeStat) and stat.czxid > 0 and stat.ctime > 0, stat
        stat = seen["/global/equal"][mesh.servers[0].name][1]
        assert (stat.version, stat.cversion, stat.numChildren) == (1, 4, 2), stat
        assert seen["/global/equal/held"][mesh.servers[0].name][1].ephemeralOwner == b.client_id[0]
    say(f"{len(paths)} znodes at {len(mesh.servers)} servers")
    eventually("the digests of all servers agree", mesh.digests_agree)
