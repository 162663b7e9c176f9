"""SASL GSSAPI: clients that prove themselves by Kerberos, on servers built with the feature `kerberos`.

The realm and its KDC are started for each check. kazoo speaks through the Python module `kerberos`; the Java client is
Debian's, or the jars of the directory ZOOKEEPER_JARS.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile

from kazoo.client import KazooClient
from kazoo.exceptions import AuthFailedError, ConnectionClosedError, NoAuthError
from kazoo.security import make_acl

from differential import SASL, Client, Reader, buffer, exists, is_serving, zookeeper_jars
from kdc import Kdc
from mesh import eventually, say, stop_client
from region import free_ports

REALM = "MERIDIAN.TEST"
SERVICE = f"zookeeper/localhost@{REALM}"
ALICE = f"alice@{REALM}"
AUTH_FAILED, REQUIRES_SASL = -115, -124
PATIENCE_S = 30

# As ZooKeeper has it.
JAAS = """\
{name} {{
    com.sun.security.auth.module.Krb5LoginModule required
    useKeyTab=true
    storeKey=true
    useTicketCache=false
    keyTab="{keytab}"
    principal="{principal}";
}};
"""


@contextlib.contextmanager
def server(binary, kdc, keytab, lines="", users=""):
    """A server whose JAAS file names the service, its port and the process; `lines` are added to its zoo.cfg."""
    directory = tempfile.mkdtemp(prefix="meridian-sasl-")
    (port,) = free_ports(1)
    jaas = JAAS.format(name="Server", keytab=keytab, principal=SERVICE)
    digest = f"    org.apache.zookeeper.server.auth.DigestLoginModule required {users};"
    with open(f"{directory}/jaas.conf", "w") as file:
        file.write(jaas.replace("\n}", f"\n{digest}\n}}"))
    with open(f"{directory}/zoo.cfg", "w") as file:
        file.write(
            f"tickTime=2000\ndataDir={directory}/data\nclientPort={port}\nclientPortAddress=127.0.0.1\n"
            f"maxClientCnxns=0\nadmin.enableServer=false\n"
            f"authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n"
            f"java.security.auth.login.config={directory}/jaas.conf\n{lines}"
        )
    os.mkdir(f"{directory}/data")
    command = [binary, "server", "--config", f"{directory}/zoo.cfg"]
    environment = {**os.environ, **kdc.environment}
    with open(f"{directory}/log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        def serves():
            assert process.poll() is None, open(f"{directory}/log").read()
            return is_serving(f"127.0.0.1:{port}")

        eventually("the server serves", serves)
        yield port
        assert process.poll() is None, open(f"{directory}/log").read()
    except BaseException:
        print(open(f"{directory}/log").read()[-5_000:])
        raise
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


@contextlib.contextmanager
def realm(binary, **options):
    """A KDC that knows alice and bob, and a server of it."""
    with Kdc(REALM) as kdc:
        keytab = kdc.add("zookeeper/localhost")
        with server(binary, kdc, keytab, **options) as port:
            yield kdc, keytab, port


@contextlib.contextmanager
def client(kdc, port, user=None, cache=None, **options):
    """A started client of a user, or of nobody."""
    sasl = {"mechanism": "GSSAPI", **options} if user or cache else options or None
    saved = {key: os.environ.get(key) for key in kdc.environment}
    tickets = cache or (kdc.tickets(user, kdc.add(user)) if user else kdc.environment["KRB5CCNAME"])
    os.environ.update({**kdc.environment, "KRB5CCNAME": tickets})
    one = KazooClient(hosts=f"localhost:{port}", timeout=10, sasl_options=sasl)
    try:
        one.start(timeout=PATIENCE_S)
        # It has started before it has proved itself.
        one.exists("/")
        yield one
    finally:
        stop_client(one)
        for key, value in saved.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def refused(kdc, port, **options):
    try:
        with client(kdc, port, **options):
            pass
    except (AuthFailedError, ConnectionClosedError):
        return
    raise AssertionError("the client was let in")


def acl(identity):
    return [make_acl("sasl", identity, all=True)]


def may_read(one, path):
    try:
        one.get(path)
    except NoAuthError:
        return False
    return True


def token(raw, value):
    """The answer to a token: an error, and the server's token."""
    raw.send((SASL, buffer(value)))
    frame = raw.frame()
    assert frame not in (None, b"silence"), frame
    reader = Reader(frame)
    reader.int(), reader.take("!q")
    error = reader.int()
    return error, reader.buffer() if error == 0 else None


def connected(port):
    raw = Client(f"127.0.0.1:{port}")
    raw.connect()
    return raw


def check_acls(binary):
    """a znode of `sasl:alice@REALM` is alice's; bob and strangers are kept out"""
    with realm(binary) as (kdc, _, port):
        with client(kdc, port, "alice") as alice, client(kdc, port, "bob") as bob, client(kdc, port) as nobody:
            alice.create("/hers", b"1", acl=acl(ALICE))
            assert may_read(alice, "/hers") and not may_read(bob, "/hers") and not may_read(nobody, "/hers")
            bob.create("/his", acl=acl(f"bob@{REALM}"))
            assert may_read(bob, "/his") and not may_read(alice, "/his")
        with client(kdc, port, "app/host.example") as app:
            app.create("/app", acl=acl(f"app/host.example@{REALM}"))
            assert may_read(app, "/app") and not may_read(app, "/hers")


def check_names(binary):
    """hosts and realms are removed from principals as configured, and the super user may do everything"""
    lines = (
        "kerberos.removeHostFromPrincipal=true\nkerberos.removeRealmFromPrincipal=true\n"
        "superUser=root\n"
    )
    with realm(binary, lines=lines) as (kdc, _, port):
        with client(kdc, port, "alice/host.example") as alice, client(kdc, port, "root") as root:
            alice.create("/hers", acl=acl("alice"))
            assert may_read(alice, "/hers") and may_read(root, "/hers")


def check_two_mechanisms(binary):
    """GSSAPI and DIGEST-MD5 on one server, each client by its first token"""
    with realm(binary, users='user_carol="secret"') as (kdc, _, port):
        digest = {"mechanism": "DIGEST-MD5", "username": "carol"}
        with client(kdc, port, "alice") as alice, client(kdc, port, **digest, password="secret") as carol:
            carol.create("/carols", acl=acl("carol"))
            assert may_read(carol, "/carols") and not may_read(alice, "/carols")
        refused(kdc, port, **digest, password="guess")


def check_required(binary):
    """where SASL is required, Kerberos is as good as DIGEST-MD5, and who has neither is not served"""
    lines = "sessionRequireClientSASLAuth=true\n"
    with realm(binary, lines=lines, users='user_carol="secret"') as (kdc, _, port):
        with client(kdc, port, "alice") as alice:
            alice.create("/hers")
        with client(kdc, port, mechanism="DIGEST-MD5", username="carol", password="secret") as carol:
            assert may_read(carol, "/hers")
        stranger = connected(port)
        stranger.send(exists("/hers"))
        assert Reader(stranger.frame()[12:]).int() == REQUIRES_SASL
        assert stranger.frame() is None
        assert token(connected(port), b"garbage") == (REQUIRES_SASL, None)


def check_refused(binary):
    """garbage, another's name and tickets of a false KDC are refused, and nobody else notices"""
    with realm(binary) as (kdc, _, port), Kdc(REALM) as false_kdc:
        with client(kdc, port, "alice") as alice:
            states = []
            alice.add_listener(states.append)
            alice.create("/hers", acl=acl(ALICE))
            alice.create("/here", ephemeral=True)

            random = b"\x60" + os.urandom(2_000)
            for garbage in (b"x", bytes(64 << 10), b"\x60\x82\xff\xff" * 1_000, random, bytes(900_000)):
                raw = connected(port)
                assert token(raw, garbage) == (AUTH_FAILED, None)
                assert raw.frame() is None, "the connection stays open"
            assert token(connected(port), b"") == (AUTH_FAILED, None), "DIGEST-MD5 has no users here"

            refused(kdc, port, user="bob", authorization_id=ALICE)
            # The realm's name, the service's and alice's, and other keys.
            false_kdc.add("zookeeper/localhost")
            refused(false_kdc, port, user="alice")
            assert states == [], states
            assert may_read(alice, "/hers") and alice.exists("/here")
            with client(kdc, port) as nobody:
                assert not may_read(nobody, "/hers")


def check_expired(binary):
    """a principal that has expired or is unknown gets no ticket, and so nothing"""
    with realm(binary) as (kdc, _, port):
        keytab = kdc.add("mallory")
        kdc.run("kadmin.local", "-q", f'modprinc -expire yesterday mallory@{REALM}')
        for user in ("mallory", "unknown"):
            try:
                kdc.tickets(user, keytab)
            except AssertionError as error:
                say(str(error).strip().splitlines()[-1])
            else:
                raise AssertionError(f"{user} got a ticket")
        with client(kdc, port, "alice") as alice:
            alice.create("/hers")


def check_half_done(binary):
    """exchanges that stop half way cost nobody else anything"""
    with realm(binary, users='user_carol="secret"') as (kdc, _, port):
        idle = [connected(port) for _ in range(200)]
        for raw in idle:
            assert token(raw, b"")[0] == 0
        with client(kdc, port, "alice") as alice:
            alice.create("/hers", acl=acl(ALICE))
        for raw in idle:
            raw.stream.close()


def check_new_key(binary):
    """the service's key is renewed without a restart, and clients with older tickets still come in"""
    with realm(binary) as (kdc, keytab, port):
        older = kdc.tickets("alice", kdc.add("alice"))
        with client(kdc, port, cache=older):
            pass
        kdc.renew("zookeeper/localhost", keytab)
        for one in (client(kdc, port, cache=older), client(kdc, port, "bob")):
            with one as let_in:
                let_in.exists("/")


def classpath():
    """The Java client's, or nothing."""
    return os.pathsep.join(zookeeper_jars())


def java_client(kdc, port, user, directory, *words):
    """What zkCli of a user says."""
    keytab = kdc.add(user)
    jaas = f"{directory}/{user}.conf"
    with open(jaas, "w") as file:
        file.write(JAAS.format(name="Client", keytab=keytab, principal=f"{user}@{REALM}"))
    properties = {"java.security.auth.login.config": jaas, "java.security.krb5.conf": kdc.path("krb5.conf")}
    command = ["java", *(f"-D{key}={value}" for key, value in properties.items()), "-cp", classpath()]
    command += ["org.apache.zookeeper.ZooKeeperMain", "-server", f"localhost:{port}", "-waitforconnection", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def check_java(binary):
    """the Java client with a JAAS file (skipped where it is not installed)"""
    if not shutil.which("java") or not classpath():
        say("the Java client is not installed here")
        return
    with realm(binary) as (kdc, _, port), tempfile.TemporaryDirectory() as directory:
        def said(user, *words):
            return java_client(kdc, port, user, directory, *words)

        created = said("alice", "create", "/hers", "treasure", f"sasl:{ALICE}:cdrwa")
        assert "Created /hers" in created, created
        seen = said("alice", "get", "/hers")
        assert "treasure" in seen, seen
        seen = said("bob", "get", "/hers")
        assert "treasure" not in seen and "Insufficient permission" in seen, seen
        with client(kdc, port, "alice") as one:
            assert one.get("/hers")[0] == b"treasure"
