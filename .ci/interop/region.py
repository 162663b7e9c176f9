"""A region of three servers, started by hand as deploy/README.md says, from deploy/region.toml."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request

from mesh import DEADLINE_S, eventually, say, start_client, stop_client

DEPLOY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy")
MESH_MARK = "# The mesh:"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def replace(text, old, new):
    assert old in text, f"deploy/region.toml no longer has {old!r}: the guide and this check must follow it"
    return text.replace(old, new)


class Region:
    """Three voters of a region without a mesh, each a process with a configuration of its own."""

    def __init__(self, binary):
        self.binary = binary

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="meridian-region-")
        self.clients, self.admins, self.peers = (free_ports(3) for _ in range(3))
        self.processes = {}
        self.meridian("certs", "authority", "--directory", self.directory)
        for number in (1, 2, 3):
            self.meridian("certs", "issue", "us-east", str(number), "--directory", self.directory)
            with open(self.path(f"region-{number}.toml"), "w") as file:
                file.write(self.configuration(number))
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def meridian(self, *words):
        done = subprocess.run([self.binary, *words], capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, f"meridian {' '.join(words)}: {done.stderr}"

    def configuration(self, number):
        """The example, changed in what the guide says is to be changed."""
        with open(os.path.join(DEPLOY, "region.toml")) as file:
            text = file.read()
        text = text[: text.index(MESH_MARK)]
        text = replace(text, "server = 1 ", f"server = {number} ")
        text = replace(text, "/var/lib/meridian", self.path(f"data-{number}"))
        text = replace(text, "0.0.0.0:2181", f"127.0.0.1:{self.clients[number - 1]}")
        text = replace(text, "127.0.0.1:8080", f"127.0.0.1:{self.admins[number - 1]}")
        text = replace(text, "/etc/meridian/us-east-1", self.path(f"us-east-{number}"))
        text = replace(text, "/etc/meridian/authority.pem", self.path("authority.pem"))
        observer = text.index("[[servers]]\nnumber = 4")
        text = text[:observer] + text[text.index("# Made with:") :]
        for other in (1, 2, 3):
            text = replace(text, f"10.1.0.{other}:2888", f"127.0.0.1:{self.peers[other - 1]}")
        return text

    def start(self, number):
        with open(self.path(f"{number}.log"), "a") as log:
            command = [self.binary, "server", "--config", self.path(f"region-{number}.toml")]
            self.processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def log(self, number):
        with open(self.path(f"{number}.log")) as file:
            return file.read()

    def is_healthy(self, number):
        process = self.processes[number]
        assert process.poll() is None, f"server {number} ended with {process.returncode}:\n{self.log(number)}"
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admins[number - 1]}/health") as answer:
                return answer.status == 200
        return False

    def await_healthy(self, *numbers):
        for number in numbers:
            eventually(f"server {number} is healthy", lambda number=number: self.is_healthy(number))

    def hosts(self):
        return ",".join(f"127.0.0.1:{port}" for port in self.clients)


def check_started_by_hand(binary):
    """three servers form a region; certificates are renewed on SIGHUP; SIGTERM ends a server cleanly, data stays"""
    with Region(binary) as region:
        for number in (1, 2, 3):
            region.start(number)
        region.await_healthy(1, 2, 3)
        client = start_client(region.hosts())
        try:
            client.create("/kept", b"value")
            renew_certificates(region)
            client.set("/kept", b"after SIGHUP")
            for number in (1, 2, 3):
                process = region.processes[number]
                process.send_signal(signal.SIGTERM)
                assert process.wait(DEADLINE_S) == 0, f"SIGTERM ended server {number} with {process.returncode}"
                region.start(number)
                region.await_healthy(number)
                client.set("/kept", b"after %d" % number)
        finally:
            stop_client(client)
        for process in region.processes.values():
            process.send_signal(signal.SIGTERM)
        for number, process in region.processes.items():
            process.wait(DEADLINE_S)
            region.start(number)
        region.await_healthy(1, 2, 3)
        client = start_client(region.hosts())
        try:
            assert client.get("/kept")[0] == b"after 3", "data is lost when all servers stop"
        finally:
            stop_client(client)


def renew_certificates(region):
    for number in (1, 2, 3):
        region.meridian("certs", "issue", "us-east", str(number), "--directory", region.directory)
        region.processes[number].send_signal(signal.SIGHUP)
    for number in (1, 2, 3):
        eventually(
            f"server {number} reloads its certificates",
            lambda number=number: "certificates reloaded" in region.log(number),
        )
    region.await_healthy(1, 2, 3)


def check_unit(binary):
    """systemd accepts the unit (skipped where there is no systemd-analyze)"""
    if not shutil.which("systemd-analyze"):
        say("no systemd-analyze here")
        return
    with open(os.path.join(DEPLOY, "meridian.service")) as file:
        unit = file.read()
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "meridian.service")
        with open(path, "w") as file:
            file.write(unit.replace("/usr/bin/meridian", binary))
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "meridian.service" in line]
    assert done.returncode == 0 and not complaints, done.stderr
