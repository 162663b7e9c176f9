"""A Kerberos realm with a KDC of its own: on loopback, in a temporary directory."""

import os
import shutil
import socket
import subprocess
import tempfile

from mesh import eventually
from region import free_ports

CONFIGURATION = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    ignore_acceptor_hostname = false
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    localhost = {realm}
"""

KDC_CONFIGURATION = """\
[kdcdefaults]
    kdc_listen = 127.0.0.1:{port}
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {realm} = {{
        database_name = {directory}/principals
        key_stash_file = {directory}/stash
        acl_file = {directory}/acl
        max_life = 1h
    }}
"""


def is_installed():
    return all(find(name) for name in ("krb5kdc", "kadmin.local", "kdb5_util", "kinit"))


def find(name):
    """A program of the KDC, which is not on everybody's path."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


class Kdc:
    """Stopped, with all its keys and tickets gone, when the block ends."""

    def __init__(self, realm):
        self.realm = realm

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="meridian-kdc-")
        (port,) = free_ports(1)
        names = {"realm": self.realm, "port": port, "directory": self.directory}
        for file, text in (("krb5.conf", CONFIGURATION), ("kdc.conf", KDC_CONFIGURATION)):
            with open(self.path(file), "w") as out:
                out.write(text.format(**names))
        # What servers and clients of the realm need in their environment.
        self.environment = {
            "KRB5_CONFIG": self.path("krb5.conf"),
            "KRB5_KDC_PROFILE": self.path("kdc.conf"),
            "KRB5RCACHEDIR": self.directory,
            "KRB5CCNAME": self.path("no-tickets"),
        }
        self.run("kdb5_util", "create", "-s", "-r", self.realm, "-P", "master")
        command = [find("krb5kdc"), "-n", "-P", self.path("pid")]
        environment = {**os.environ, **self.environment}
        self.log = open(self.path("log"), "w")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        eventually("the KDC answers", lambda: is_open(port))
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def run(self, program, *words):
        done = subprocess.run(
            [find(program), *words],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stdout}{done.stderr}"

    def add(self, *principals):
        """Makes principals, or new keys for them, and returns a keytab with all of them."""
        keytab = self.path(principals[0].replace("/", "-") + ".keytab")
        for principal in principals:
            self.run("kadmin.local", "-q", f"addprinc -randkey {principal}")
            self.renew(principal, keytab)
        return keytab

    def renew(self, principal, keytab):
        """Gives a principal a new key, and adds it to a keytab."""
        self.run("kadmin.local", "-q", f"ktadd -k {keytab} {principal}")

    def tickets(self, principal, keytab):
        """A cache with a ticket for a principal."""
        cache = f"{keytab}.tickets"
        self.run("kinit", "-k", "-t", keytab, "-c", cache, principal)
        return cache


def is_open(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
