"""A client to be killed: creates ephemeral znodes, prints its session, and waits."""

import sys
import threading

from kazoo.client import KazooClient

hosts, timeout_s, *paths = sys.argv[1:]
client = KazooClient(hosts=hosts, timeout=float(timeout_s))
client.start(timeout=60)
for path in paths:
    client.create(path, b"held", ephemeral=True, makepath=True)
session, password = client.client_id
print(session, password.hex(), flush=True)
threading.Event().wait()
