"""What an operator is told when a server can't start: it ends at once, with a message that names the cause."""

import os
import socket
import subprocess
import tempfile

from mesh import DEADLINE_S, say
from region import Region


def refusal(binary, directory, text, *words, **environment):
    """The message of a server that must not start."""
    path = os.path.join(directory, "region.toml")
    with open(path, "w") as file:
        file.write(text)
    command = [binary, "server", "--config", path, *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"a server started that should not have:\n{text}") from None
    assert done.returncode == 1, f"ended with {done.returncode}: {done.stderr}"
    message = done.stderr.splitlines()[-1]
    say(message)
    return done.stderr


def expect(binary, directory, text, *mentioned):
    message = refusal(binary, directory, text)
    for word in mentioned:
        assert word in message, f"{word!r} is not mentioned in: {message}"


def check_wrong_configuration(binary):
    """a wrong configuration is refused, and the key is named"""
    with Region(binary) as region:
        good = region.configuration(1)
        with tempfile.TemporaryDirectory() as directory:
            expect(binary, directory, good.replace("tick_ms", "tickTime"), "tickTime")
            expect(binary, directory, good.replace("server = 1 ", "server = 9 "), "server", "9")
            expect(binary, directory, good.replace("number = 3", "number = 2"), "number 2", "twice")
            expect(binary, directory, good.replace('region = "us-east"', ""), "region")
            expect(binary, directory, good.replace("authority.pem", "none.pem"), "none.pem", "meridian certs")
            expect(binary, directory, good.replace("us-east-1.key", "us-east-2.key"), "us-east-2.key", "belong")
            other = good.replace("us-east-1.key", "us-east-2.key").replace("us-east-1.pem", "us-east-2.pem")
            expect(binary, directory, other, "us-east-2.pem", "us-east-1")


def check_port_in_use(binary):
    """a port that is in use is named, with the key that says so"""
    with Region(binary) as region, tempfile.TemporaryDirectory() as directory:
        good = region.configuration(1)
        for port, key in (
            (region.clients[0], "client.listen"),
            (region.admins[0], "admin.listen"),
            (region.peers[0], "servers"),
        ):
            with socket.create_server(("127.0.0.1", port)):
                expect(binary, directory, good, str(port), key)


def check_data_directory(binary):
    """a data directory that is in use, is another server's, or can't be written is refused"""
    with Region(binary) as region, tempfile.TemporaryDirectory() as directory:
        region.start(1)
        region.start(2)
        region.await_healthy(1, 2)
        third = region.configuration(3)
        expect(binary, directory, third.replace("data-3", "data-1"), "data-1", "in use")
        process = region.processes[1]
        process.terminate()
        process.wait(DEADLINE_S)
        expect(binary, directory, third.replace("data-3", "data-1"), "data-1", "us-east-1", "us-east-3")
        with open(region.path("file"), "w"):
            pass
        expect(binary, directory, third.replace("data-3", "file"), region.path("file"))
