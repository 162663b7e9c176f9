"""Other people's test suites of ZooKeeper clients, against Meridian: by hand suites.py BINARY [TEXT].

kazoo's harness starts an ensemble itself: it finds suites-java/java before any other Java, which starts `meridian
server` with the harness's own zoo.cfg. aiozk's tests want one server. The Debian package
golang-github-samuel-go-zookeeper-dev has the Go client's; its harness starts servers as kazoo's does. ZooKeeper's own
tests, in Java and of its C client, are in suites_zookeeper.py.
"""

import contextlib
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv

from kdc import Kdc, is_installed
from mesh import eventually, say
from region import free_ports

HERE = os.path.dirname(os.path.abspath(__file__))
JAVA = os.path.join(HERE, "suites-java")
ENVIRONMENT = os.path.join(HERE, "..", "..", ".venv-suites")
REQUIREMENTS = os.path.join(HERE, "suites-requirements.txt")
GO_CLIENT = "/usr/share/gocode/src/github.com/samuel/go-zookeeper"
KERBEROS_MODULE = "kerberos==1.3.1"
SUITE_S = 900

# What does not pass, and why.
NOT_PASSED = {
    "TestAuth": "getACL without permission: refused since ZooKeeper 3.5, and the test is older",
    "TestIfAuthdataSurvivesReconnect": "its client has not noticed yet that the server was replaced: Java takes longer",
}


def python():
    """The interpreter of an environment with the Python clients and what their tests need."""
    installed = os.path.join(ENVIRONMENT, "installed.txt")
    interpreter = os.path.join(ENVIRONMENT, "bin", "python")
    with open(REQUIREMENTS) as file:
        wanted = file.read()
    # Where Kerberos's headers are: it is built from source.
    wanted += f"{KERBEROS_MODULE}\n" if shutil.which("krb5-config") else ""
    if not os.path.exists(installed) or open(installed).read() != wanted:
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # The wheels have no tests.
        modules = [line for line in wanted.splitlines() if line and not line.startswith("#")]
        subprocess.run([*pip, "--no-binary", "kazoo,aiozk", *modules], check=True)
        with open(installed, "w") as file:
            file.write(wanted)
    return interpreter


def run_pytest(package, arguments, environment):
    command = [python(), "-m", "pytest", "--pyargs", package, "-p", "no:cacheprovider", "--timeout", "180"]
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [*command, "-q", "-rfEs", "-W", "ignore", "--show-capture=no", *arguments],
            cwd=directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=SUITE_S,
        )
    return done.stdout


def in_place_of_java(binary):
    path = os.pathsep.join([JAVA, os.path.dirname(python()), os.environ["PATH"]])
    return {"SUITES_SERVER": os.path.abspath(binary), "PATH": path}


def judge(report, failed):
    unexpected = sorted(test for test in failed if test not in NOT_PASSED)
    assert not unexpected, f"{report[-20_000:]}\nfailed: {', '.join(unexpected)}"
    for test in failed:
        say(f"not passed: {test}: {NOT_PASSED[test]}")


@contextlib.contextmanager
def kerberos(binary):
    """The environment in which kazoo's tests of Kerberos are not skipped, if the server has it."""
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    if "kerberos" not in version or not is_installed():
        say("without Kerberos: its tests are skipped")
        yield {}
        return
    # kazoo's harness knows the realm, the service and the keytabs by these names.
    with Kdc("KAZOOTEST.ORG") as kdc:
        kdc.add("client")
        os.rename(kdc.add("zookeeper/127.0.0.1"), kdc.path("server.keytab"))
        yield {**kdc.environment, "KRB5CCNAME": kdc.path("tickets"), "KRB5_TEST_ENV": kdc.directory}


def check_kazoo(binary):
    """kazoo's own test suite passes against an ensemble that its harness starts"""
    with kerberos(binary) as realm:
        environment = {**in_place_of_java(binary), **realm, "ZOOKEEPER_PATH": JAVA, "ZOOKEEPER_VERSION": "3.9.3"}
        report = run_pytest("kazoo.tests", [], environment)
    assert not realm or "Kerberos" not in report, report
    assert " passed" in report, report
    judge(report, re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", report, re.MULTILINE))
    say(report.splitlines()[-1])


@contextlib.contextmanager
def server(binary):
    """One server, and its port."""
    directory = tempfile.mkdtemp(prefix="meridian-suites-")
    (port,) = free_ports(1)
    with open(f"{directory}/zoo.cfg", "w") as file:
        file.write(f"tickTime=2000\ndataDir={directory}/data\nclientPort={port}\nmaxClientCnxns=0\n")
    os.mkdir(f"{directory}/data")
    with open(f"{directory}/log", "w") as log:
        command = [binary, "server", "--config", f"{directory}/zoo.cfg"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def check_aiozk(binary):
    """aiozk's own test suite passes"""
    from differential import is_serving

    with server(binary) as port:
        eventually("the server serves", lambda: is_serving(f"127.0.0.1:{port}"))
        environment = {"ZK_HOST": "127.0.0.1", "ZK_PORT": str(port)}
        report = run_pytest("aiozk.test", ["-o", "asyncio_mode=auto"], environment)
    assert " passed" in report, report
    judge(report, re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", report, re.MULTILINE))
    say(report.splitlines()[-1])


def check_go_client(binary):
    """the Go client's own test suite passes (skipped where it is not installed)"""
    if not shutil.which("go") or not os.path.isdir(GO_CLIENT):
        say("Go or its ZooKeeper client is not installed here")
        return
    with tempfile.TemporaryDirectory() as directory:
        package = os.path.join(directory, "src/github.com/samuel/go-zookeeper")
        shutil.copytree(GO_CLIENT, package)
        adapt_to_39(os.path.join(package, "zk/flw.go"))
        # The harness looks for a jar, which is not opened.
        jar = os.path.join(directory, "contrib/fatjar/zookeeper-0-fatjar.jar")
        os.makedirs(os.path.dirname(jar))
        open(jar, "w").close()
        environment = {"GOPATH": directory, "GO111MODULE": "off", "ZOOKEEPER_PATH": directory}
        environment["GOCACHE"] = os.path.join(directory, "cache")
        # What tests the client alone fails with today's Go.
        tests = ["-run", "Basic|Failover|NoQuorum|WaitForClose|Lock|Create|Multi|Auth|ACL|Child|Watch|Slow|MaxBuffer"]
        done = subprocess.run(
            ["go", "test", "-vet=off", "-v", *tests, "."],
            cwd=os.path.join(package, "zk"),
            env={**os.environ, **in_place_of_java(binary), **environment},
            capture_output=True,
            text=True,
            timeout=SUITE_S,
        )
    passed = re.findall(r"^--- PASS: (\w+)", done.stdout, re.MULTILINE)
    assert passed, done.stdout + done.stderr
    judge(done.stdout, re.findall(r"^--- FAIL: (\w+)", done.stdout, re.MULTILINE))
    say(f"{len(passed)} passed")


def check_zookeeper(binary):
    """ZooKeeper's own tests in Java that need a server pass, the insides of its server aside"""
    import suites_zookeeper

    suites_zookeeper.check_java(binary)


def check_c_client(binary):
    """the C client's own tests pass"""
    import suites_zookeeper

    suites_zookeeper.check_c_client(binary)


def check_curator(binary):
    """Curator's lock, leader latch, cache, counter, containers and transactions work (skipped where not installed)"""
    from differential import is_serving

    names = ("curator-*", "zookeeper", "zookeeper-jute", "guava", "slf4j-api", "slf4j-nop", "netty-*", "jackson-*")
    jars = [jar for name in names for jar in glob.glob(f"/usr/share/java/{name}.jar")]
    if not shutil.which("javac") or not any("curator-recipes" in jar for jar in jars):
        say("Curator is not installed here")
        return
    with server(binary) as port, tempfile.TemporaryDirectory() as directory:
        eventually("the server serves", lambda: is_serving(f"127.0.0.1:{port}"))
        classpath = os.pathsep.join([directory, *jars])
        source = os.path.join(JAVA, "CuratorRecipes.java")
        subprocess.run(["javac", "-cp", classpath, "-d", directory, source], check=True, timeout=SUITE_S)
        command = ["java", "-cp", classpath, "CuratorRecipes", f"127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUITE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def adapt_to_39(file):
    """The Go client reads `srvr` as ZooKeeper 3.4 wrote it: dates and mean latencies look different since."""
    with open(file) as source:
        text = source.read()
    date = r"(\d\d/\d\d/\d\d\d\d \d\d:\d\d [A-Za-z0-9:\+\-]+)"
    assert date in text and "01/02/2006 15:04 MST" in text
    text = text.replace(date, "(.*)").replace("01/02/2006 15:04 MST", "2006-01-02 15:04 MST")
    text = text.replace(r"(\d+)/(\d+)/(\d+)", r"(\d+)/(\d+)[.\d]*/(\d+)")
    with open(file, "w") as target:
        target.write(text)


if __name__ == "__main__":
    for check in (check_kazoo, check_aiozk, check_go_client, check_zookeeper, check_c_client, check_curator):
        if len(sys.argv) < 3 or sys.argv[2] in check.__name__:
            check(sys.argv[1])
