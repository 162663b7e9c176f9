"""Applications that keep their state in ZooKeeper, over three Meridian servers started from a plain zoo.cfg, of which
some are killed: by hand applications.py BINARY [TEXT]. Installs what comes from PyPI, some 1 GB; PostgreSQL,
ClickHouse and Java must be there, or their checks say that they are not.
"""

import contextlib
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv

from mesh import DEADLINE_S, eventually, say
from region import free_ports

HERE = os.path.dirname(os.path.abspath(__file__))
ENVIRONMENT = os.path.abspath(os.path.join(HERE, "..", "..", ".venv-applications"))
REQUIREMENTS = os.path.join(HERE, "applications-requirements.txt")


def python():
    """The interpreter of an environment with the applications."""
    installed = os.path.join(ENVIRONMENT, "installed.txt")
    interpreter = os.path.join(ENVIRONMENT, "bin", "python")
    with open(REQUIREMENTS) as file:
        wanted = file.read()
    if not os.path.exists(installed) or open(installed).read() != wanted:
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)
        with open(installed, "w") as file:
            file.write(wanted)
    return interpreter


class Ensemble:
    """Three servers with a zoo.cfg as ZooKeeper's guide has it."""

    def __init__(self, binary):
        self.binary = binary

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="meridian-applications-")
        os.chmod(self.directory, 0o755)
        self.clients, peers, elections = (free_ports(3) for _ in range(3))
        self.processes = Processes(self.directory)
        for number, client in enumerate(self.clients, 1):
            data = f"{self.directory}/{number}"
            os.mkdir(data)
            with open(f"{data}/myid", "w") as file:
                file.write(f"{number}\n")
            with open(f"{data}/zoo.cfg", "w") as file:
                file.write(f"tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\nclientPort={client}\n")
                file.write("maxClientCnxns=0\n4lw.commands.whitelist=*\nadmin.enableServer=false\n")
                for other, (peer, election) in enumerate(zip(peers, elections), 1):
                    file.write(f"server.{other}=127.0.0.1:{peer}:{election}\n")
            self.start(number)
        eventually("the ensemble has a leader", self.leader)
        return self

    def __exit__(self, *_):
        self.processes.stop()
        shutil.rmtree(self.directory)

    def start(self, number):
        command = [self.binary, "server", "--config", f"{self.directory}/{number}/zoo.cfg"]
        self.processes.start(f"server {number}", command)

    def start_again(self, number):
        self.start(number)
        eventually("the server is back", lambda: self.mode(number) in ("leader", "follower"))

    def hosts(self):
        return ",".join(f"127.0.0.1:{port}" for port in self.clients)

    def mode(self, number):
        with contextlib.suppress(OSError):
            return word(self.clients[number - 1], b"srvr").partition("Mode: ")[2].split("\n")[0]

    def leader(self):
        return next((number for number in (1, 2, 3) if self.mode(number) == "leader"), None)

    def kill_leader(self):
        number = self.leader()
        say(f"kill -9 of server {number}, which leads")
        self.processes.kill(f"server {number}")
        return number


def word(port, text):
    with socket.create_connection(("127.0.0.1", port), 5) as stream:
        stream.sendall(text)
        return b"".join(iter(lambda: stream.recv(65536), b"")).decode()


class Processes:
    """Processes by name, each with its log and its own group, stopped together."""

    def __init__(self, directory):
        self.directory = directory
        self.running = {}

    def start(self, name, command, **options):
        with open(self.log(name), "a") as log:
            self.running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **options
            )

    def log(self, name):
        return f"{self.directory}/{name.replace(' ', '-')}.log"

    def kill(self, name):
        process = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self):
        for name in list(self.running):
            self.kill(name)


def ask(port, path):
    """A JSON answer over HTTP, whatever its status; nothing while there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as answer:
        return json.load(answer)
    except (OSError, ValueError):
        return {}


SPARK_APPLICATION = """
import sys
from pyspark.sql import SparkSession
session = SparkSession.builder.master(sys.argv[1]).config("spark.cores.max", 1).config("spark.ui.enabled", False)
session = session.config("spark.driver.host", "127.0.0.1").config("spark.executor.memory", "512m").getOrCreate()
for line in sys.stdin:
    print("sum", session.sparkContext.parallelize(range(int(line)), 2).sum(), flush=True)
"""


class Spark:
    """Two masters that find each other in ZooKeeper, and a worker."""

    def __init__(self, ensemble):
        self.ensemble = ensemble
        self.processes = Processes(ensemble.directory)
        self.ports, self.pages = free_ports(2), free_ports(2)
        home = subprocess.check_output([python(), "-c", "import pyspark; print(pyspark.__path__[0])"], text=True)
        self.home = home.strip()
        recovery = {"recoveryMode": "ZOOKEEPER", "zookeeper.url": ensemble.hosts(), "zookeeper.dir": "/spark"}
        options = " ".join(f"-Dspark.deploy.{key}={value}" for key, value in recovery.items())
        self.environment = {**os.environ, "SPARK_HOME": self.home, "SPARK_DAEMON_JAVA_OPTS": options,
                            "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": python()}

    def __enter__(self):
        for number in (0, 1):
            self.start_master(number)
        (page,) = free_ports(1)
        self.start("worker", "worker.Worker", "-c", 2, "-m", "2g", "--webui-port", page, self.url())
        return self

    def __exit__(self, *_):
        self.processes.stop()

    def start_master(self, number):
        port, page = self.ports[number], self.pages[number]
        self.start(f"master {number}", "master.Master", "--port", port, "--webui-port", page)

    def start(self, name, kind, *words):
        command = [f"{self.home}/bin/spark-class", f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1"]
        self.processes.start(name, [*command, *map(str, words)], env=self.environment, cwd=self.ensemble.directory)

    def url(self):
        return "spark://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def states(self):
        return [ask(page, "/json/").get("status") for page in self.pages]

    def leading(self):
        states = self.states()
        return states.index("ALIVE") if states.count("ALIVE") == 1 else None

    def counts(self, master):
        state = ask(self.pages[master], "/json/")
        alive = [worker for worker in state.get("workers", []) if worker["state"] == "ALIVE"]
        return len(alive), len(state.get("activeapps", []))

    @contextlib.contextmanager
    def application(self):
        command = [python(), "-c", SPARK_APPLICATION, self.url()]
        pipe = subprocess.PIPE
        with open(f"{self.ensemble.directory}/application.log", "a") as log:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=self.environment)
        try:
            yield lambda count: run_job(process, count)
        finally:
            process.kill()
            process.wait()


def run_job(process, count):
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"sum {count * (count - 1) // 2}\n"


def check_spark(binary):
    """Spark's standby master takes over worker and application when the leading one is killed"""
    if not shutil.which("java"):
        return say("Java is not installed here")
    with Ensemble(binary) as ensemble, Spark(ensemble) as spark:
        eventually("a master leads and has the worker", lambda: (m := spark.leading()) is not None
                   and spark.counts(m)[0] == 1)
        first = spark.leading()
        with spark.application() as run:
            run(1_000)
            killed = ensemble.kill_leader()
            run(2_000)
            # A master gives up the lead with its connection, and ends: it may have been connected to that server.
            eventually("a master leads and has the worker", lambda: (m := spark.leading()) is not None
                       and spark.counts(m)[0] == 1)
            if spark.leading() != first:
                spark.processes.kill(f"master {first}")
                spark.start_master(first)
                first = 1 - first
                eventually("the other master is back", lambda: spark.states()[1 - first] == "STANDBY")
            say(f"kill -9 of master {first}")
            spark.processes.kill(f"master {first}")
            second = 1 - first
            eventually("the other master has taken over", lambda: spark.states()[second] == "ALIVE"
                       and spark.counts(second) == (1, 1))
            run(3_000)
            ensemble.start(killed)
            with spark.application() as run_another:
                run_another(4_000)
            run(5_000)


POSTGRESQL = sorted(f"/usr/lib/postgresql/{v}/bin" for v in os.listdir("/usr/lib/postgresql")) \
    if os.path.isdir("/usr/lib/postgresql") else []


class Patroni:
    """PostgreSQL servers under Patroni, which elects their leader by ZooKeeper."""

    def __init__(self, ensemble, count=2):
        self.directory = f"{ensemble.directory}/patroni"
        os.mkdir(self.directory)
        shutil.chown(self.directory, "postgres")
        self.processes = Processes(ensemble.directory)
        self.hosts = ensemble.hosts().split(",")
        self.ports, self.pages = free_ports(count), free_ports(count)

    def __enter__(self):
        for number in range(len(self.ports)):
            self.start(number)
        return self

    def __exit__(self, *_):
        self.processes.stop()

    def start(self, number):
        path = f"{self.directory}/{number}.yml"
        with open(path, "w") as file:
            json.dump(self.configuration(number), file)
        interpreter, environment, user = python(), {"PATH": os.environ["PATH"]}, {}
        if os.getuid() == 0:
            # PostgreSQL does not run as root, and root's own Python may be out of others' reach.
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            interpreter = "/usr/bin/python3"
            environment["PYTHONPATH"] = glob.glob(f"{ENVIRONMENT}/lib/python3*/site-packages")[0]
        command = [interpreter, "-m", "patroni", path]
        self.processes.start(f"patroni {number}", command, cwd=self.directory, env=environment, **user)

    def configuration(self, number):
        page = f"127.0.0.1:{self.pages[number]}"
        access = ["local all all trust", "host all all 127.0.0.1/32 md5", "host replication all 127.0.0.1/32 md5"]
        login = {"username": "postgres", "password": "secret"}
        return {
            "scope": "check",
            "name": f"pg{number}",
            "restapi": {"listen": page, "connect_address": page},
            "zookeeper": {"hosts": self.hosts},
            "bootstrap": {"dcs": {"ttl": 20, "loop_wait": 2, "retry_timeout": 5}, "initdb": ["data-checksums"]},
            "postgresql": {
                "listen": f"127.0.0.1:{self.ports[number]}",
                "connect_address": f"127.0.0.1:{self.ports[number]}",
                "data_dir": f"{self.directory}/{number}",
                "bin_dir": POSTGRESQL[-1],
                "authentication": {"superuser": login, "replication": {"username": "copy", "password": "secret"}},
                "parameters": {"unix_socket_directories": self.directory},
                "pg_hba": access,
            },
        }

    def leading(self):
        roles = [ask(page, "/patroni").get("role") for page in self.pages]
        leaders = [number for number, role in enumerate(roles) if role in ("primary", "master")]
        return leaders[0] if len(leaders) == 1 else None

    def streaming(self):
        return [m["name"] for m in self.members() if m["role"] == "replica" and m["state"] == "streaming"]

    def members(self):
        return next((found for page in self.pages if (found := ask(page, "/cluster").get("members"))), [])

    def sql(self, number, text):
        where = ["-h", "127.0.0.1", "-p", str(self.ports[number]), "-U", "postgres"]
        command = [f"{POSTGRESQL[-1]}/psql", *where, "-Atc", text]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PGPASSWORD": "secret"})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def check_patroni(binary):
    """Patroni makes a replica of PostgreSQL the leader when the leader is killed, and nothing before that"""
    if not POSTGRESQL:
        return say("PostgreSQL is not installed here")
    with Ensemble(binary) as ensemble, Patroni(ensemble) as patroni:
        first = eventually("a leader and a replica", lambda: patroni.streaming() and (patroni.leading(),))[0]
        patroni.sql(first, "create table t (x int); insert into t values (1)")
        killed = ensemble.kill_leader()
        timeline = ask(patroni.pages[first], "/patroni")["timeline"]
        for value in range(2, 12):
            patroni.sql(first, f"insert into t values ({value})")
            time.sleep(1)
        second = 1 - first
        eventually("the replica has all", lambda: patroni.sql(second, "select count(*) from t") == "11")
        state = ask(patroni.pages[first], "/patroni")
        assert state["timeline"] == timeline and patroni.leading() == first, f"the leader has changed: {state}"
        ensemble.start(killed)
        say(f"kill -9 of PostgreSQL {first} and its Patroni")
        postmaster = open(f"{patroni.directory}/{first}/postmaster.pid").readline()
        patroni.processes.kill(f"patroni {first}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(postmaster), signal.SIGKILL)
        eventually("the replica leads", lambda: patroni.leading() == second)
        patroni.sql(second, "insert into t values (12)")
        patroni.start(first)
        eventually("the killed one follows", lambda: patroni.streaming() == [f"pg{first}"])
        assert patroni.sql(first, "select count(*) from t") == "12"


def check_tooz(binary):
    """OpenStack's tooz passes its own tests, a server being killed in the middle"""
    with Ensemble(binary) as ensemble:
        environment = {**os.environ, "TOOZ_TEST_URL": f"zookeeper://{ensemble.hosts()}"}
        command = [python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--pyargs"]
        command += ["tooz.tests.test_coordination", "tooz.tests.test_partitioner"]
        tests = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ensemble.directory)
        killed = None
        lines = []
        for line in tests.stdout:
            lines.append(line)
            if killed is None and "%" in line:
                killed = ensemble.kill_leader()
        tests.wait(DEADLINE_S)
    report = "".join(lines)
    say(report.splitlines()[-1])
    assert not re.search(r"\d+ (failed|error)", report), report


CLICKHOUSE = """<yandex>
<logger><level>information</level><log>{directory}/server.log</log></logger>
<path>{directory}/data/</path><tmp_path>{directory}/tmp/</tmp_path>
<listen_host>127.0.0.1</listen_host><http_port>{http}</http_port><tcp_port>{tcp}</tcp_port>
<interserver_http_port>{servers}</interserver_http_port><interserver_http_host>127.0.0.1</interserver_http_host>
<mark_cache_size>5368709</mark_cache_size>
<zookeeper>{zookeeper}<session_timeout_ms>6000</session_timeout_ms></zookeeper>
<macros><replica>{number}</replica></macros>
<users_config>{directory}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database>
</yandex>"""

CLICKHOUSE_USERS = """<yandex>
<profiles><default/></profiles><quotas><default/></quotas>
<users><default>
<password/><profile>default</profile><quota>default</quota><networks><ip>127.0.0.1</ip></networks>
</default></users>
</yandex>"""


class ClickHouse:
    """Servers of which each has a replica of a table, whose parts they agree on in ZooKeeper."""

    def __init__(self, ensemble, count=2):
        self.ensemble = ensemble
        self.processes = Processes(ensemble.directory)
        self.ports = [free_ports(3) for _ in range(count)]

    def __enter__(self):
        for number in range(len(self.ports)):
            self.start(number)
            eventually(f"ClickHouse {number} answers", lambda: self.try_query(number, "select 1") == ("1", ""))
        return self

    def __exit__(self, *_):
        self.processes.stop()

    def start(self, number):
        directory = f"{self.ensemble.directory}/clickhouse-{number}"
        os.mkdir(directory)
        http, tcp, servers = self.ports[number]
        nodes = [f"<node><host>127.0.0.1</host><port>{port}</port></node>" for port in self.ensemble.clients]
        with open(f"{directory}/config.xml", "w") as file:
            file.write(CLICKHOUSE.format(directory=directory, number=number, http=http, tcp=tcp, servers=servers,
                                         zookeeper="".join(nodes)))
        with open(f"{directory}/users.xml", "w") as file:
            file.write(CLICKHOUSE_USERS)
        command = ["clickhouse-server", f"--config-file={directory}/config.xml"]
        self.processes.start(f"clickhouse {number} output", command, cwd=directory)

    def try_query(self, number, text):
        """The answer, and what went wrong."""
        command = ["clickhouse-client", "--host", "127.0.0.1", "--port", str(self.ports[number][1]), "-q", text]
        done = subprocess.run(command, capture_output=True, text=True)
        wrong = done.stderr.strip() if done.returncode else ""
        return done.stdout.strip(), wrong

    def query(self, number, text):
        answer, wrong = self.try_query(number, text)
        assert not wrong, wrong
        return answer

    def insert(self, number, first, count):
        """Inserts rows once: the same block again is taken for a repetition, in every replica."""
        text = f"insert into t (d, k) select today(), number + {first} from system.numbers limit {count}"
        eventually(f"rows from {first} are inserted", lambda: not self.try_query(number, text)[1])

    def rows(self, number):
        return self.query(number, "select count(), uniqExact(k) from t").split()


def check_clickhouse(binary):
    """ClickHouse's replicated tables have every row once, each server of the ensemble being killed in turn"""
    if not shutil.which("clickhouse-server"):
        return say("ClickHouse is not installed here")
    with Ensemble(binary) as ensemble, ClickHouse(ensemble) as clickhouse:
        for number in (0, 1):
            clickhouse.query(number, "create table t (d Date, k UInt64) engine = "
                                     "ReplicatedMergeTree('/clickhouse/t', '{replica}', d, k, 8192)")
        # With sessions that have lasted: after lost ones this old version takes more than a minute, over ZooKeeper too.
        clickhouse.query(0, "alter table t add column v UInt8 default k % 7")
        first = 0
        for killed in (1, 2, 3):
            say(f"kill -9 of server {killed}")
            ensemble.processes.kill(f"server {killed}")
            for _ in range(20):
                for number in (0, 1):
                    clickhouse.insert(number, first, 1_000)
                    first += 1_000
            ensemble.start_again(killed)
        eventually("parts are merged", lambda: clickhouse.try_query(1, "optimize table t final") == ("", ""))
        for number in (0, 1):
            eventually(f"replica {number} has every row once", lambda: clickhouse.rows(number) == [str(first)] * 2)
            assert clickhouse.query(number, "select countIf(v = k % 7) from t") == str(first)
        clickhouse.query(0, "drop table t")
        eventually("a dropped replica is gone from the tree", lambda: clickhouse.query(
            1, "select count() from system.zookeeper where path = '/clickhouse/t/replicas'") == "1")


class Flink:
    """Two job managers of which one leads."""

    def __init__(self, ensemble):
        self.ensemble = ensemble
        self.processes = Processes(ensemble.directory)
        self.ports = free_ports(2)
        text = "import pyflink; print(pyflink.__path__[0])"
        self.home = subprocess.check_output([python(), "-c", text], text=True).strip()

    def __enter__(self):
        for number in (0, 1):
            self.start(number)
            eventually(f"job manager {number} answers", lambda: self.overview(number))
        return self

    def __exit__(self, *_):
        self.processes.stop()

    def start(self, number):
        directory = f"{self.ensemble.directory}/flink-{number}"
        os.mkdir(directory)
        with open(f"{directory}/config.yaml", "w") as file:
            json.dump(self.configuration(number), file)
        with open(f"{directory}/log4j2.properties", "w") as file:
            file.write("rootLogger=INFO,console\nappender.console.type=Console\nappender.console.name=console\n")
        command = ["java", "-Xmx512m", "--add-opens=java.base/java.util=ALL-UNNAMED",
                   f"-Dlog4j.configurationFile={directory}/log4j2.properties", "-cp", f"{self.home}/lib/*"]
        command += ["org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", directory]
        self.processes.start(f"job manager {number}", command, cwd=directory)

    def configuration(self, number):
        return {
            "high-availability.type": "zookeeper",
            "high-availability.zookeeper.quorum": self.ensemble.hosts(),
            "high-availability.zookeeper.client.session-timeout": 6000,
            "high-availability.storageDir": f"file://{self.ensemble.directory}/flink-state",
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.memory.process.size": "1000m",
            "rest.address": "127.0.0.1",
            "rest.port": self.ports[number],
        }

    def overview(self, number):
        return ask(self.ports[number], "/overview")

    def leads(self, number):
        """Whether a job manager has the lead, by its log."""
        with open(self.processes.log(f"job manager {number}")) as log:
            told = re.findall(r"DispatcherRunner was (granted|revoked) ", log.read())
        return told[-1:] == ["granted"]

    def leading(self):
        leaders = [number for number in (0, 1) if self.leads(number)]
        return leaders[0] if len(leaders) == 1 else None


def check_flink(binary):
    """Flink's standby job manager leads when the leading one is killed, and one of the two after a server's end"""
    if not shutil.which("java"):
        return say("Java is not installed here")
    with Ensemble(binary) as ensemble, Flink(ensemble) as flink:
        eventually("a job manager leads", lambda: flink.leading() is not None)
        for _ in (1, 2, 3):
            killed = ensemble.kill_leader()
            # Curator's latch gives up the lead with the connection, and whoever is first in line has it again.
            eventually("a job manager leads", lambda: flink.leading() is not None)
            ensemble.start_again(killed)
        first = eventually("a job manager leads", lambda: (lead := flink.leading()) is not None and (lead,))[0]
        say(f"kill -9 of job manager {first}")
        flink.processes.kill(f"job manager {first}")
        second = 1 - first
        eventually("the other one leads and answers", lambda: flink.leads(second) and flink.overview(second))


if __name__ == "__main__":
    for check in (check_spark, check_patroni, check_tooz, check_clickhouse, check_flink):
        if len(sys.argv) < 3 or sys.argv[2] in check.__name__:
            print(check.__doc__)
            check(sys.argv[1])
