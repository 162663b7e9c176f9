"""A client to be killed: creates ephemeral znodes, takes a lock, prints its session, and waits.

client.py HOSTS TIMEOUT_S [PATH | lock=PATH]...
"""

import sys
import threading

from kazoo.client import KazooClient

hosts, timeout_s, *paths = sys.argv[1:]
client = KazooClient(hosts=hosts, timeout=float(timeout_s))
client.start(timeout=60)
for path in paths:
    if path.startswith("lock="):
        client.Lock(path.removeprefix("lock="), "killed").acquire()
    else:
        client.create(path, b"held", ephemeral=True, makepath=True)
session, password = client.client_id
print(session, password.hex(), flush=True)
threading.Event().wait()
