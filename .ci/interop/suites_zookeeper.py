"""ZooKeeper's own tests that need a server, in Java and in C, with Meridian in its place.

They come from Debian's source package. Those in Java are compiled as they are, beside stand-ins for the few classes by
which they start and stop servers (suites-java/zookeeper): these start `meridian server` processes. What reaches further
into a server than that does not compile; Eclipse's compiler makes of it an error when a test gets there, and the test
counts as one of the insides of ZooKeeper's server. Those in C start servers by scripts, for which suites-c stands in.

By hand: suites_zookeeper.py BINARY [CLASS...], for classes within org.apache.zookeeper.
"""

import collections
import concurrent.futures
import glob
import os
import queue
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

from mesh import say

HERE = os.path.dirname(os.path.abspath(__file__))
STAND_INS = os.path.join(HERE, "suites-java", "zookeeper")
SERVER_SCRIPT = os.path.join(HERE, "suites-c", "zkServer.sh")
WORK = os.path.abspath(os.path.join(HERE, "..", "..", ".venv-suites-zookeeper"))
JARS = "/usr/share/java"
PACKAGE = "org.apache.zookeeper."
JAVA_PACKAGES = """
    default-jdk-headless libeclipse-jdt-core-java libzookeeper-java junit5 libmockito-java libhamcrest-java
    libcommons-cli-java libcommons-io-java libcommons-collections4-java libjline2-java libbcprov-java libbcpkix-java
    liblogback-java libnetty-java libjackson2-databind-java libdropwizard-metrics-java libsnappy-java libjetty9-java
""".split()
C_PACKAGES = "cmake g++ libcppunit-dev libsasl2-dev libsasl2-modules libssl-dev libzookeeper-java openssl".split()
# Of other jars, those that the tests, their runner and the clients need.
JAR_PATTERNS = """
    zookeeper.jar zookeeper-jute.jar slf4j-api.jar logback-classic.jar logback-core.jar junit-jupiter*.jar
    junit-platform-[cerl]*.jar junit-vintage-engine.jar junit4.jar opentest4j*.jar apiguardian-api.jar picocli.jar
    univocity-parsers.jar mockito-core.jar byte-buddy.jar byte-buddy-agent.jar objenesis.jar hamcrest.jar netty-*.jar
    commons-*.jar jline2.jar jackson-*.jar metrics-core.jar snappy-java.jar bcprov.jar bcpkix.jar bcutil.jar
    jetty9-*.jar servlet-api.jar
""".split()
COMPILERS = ["eclipse-jdt-core.jar", "org.eclipse.*.jar", "equinox*.jar"]

# The tests that go through clients. The others are about the insides of ZooKeeper's server or of its clients, or add
# nothing:
# - EagerACLFilterTest, SessionUpgradeQuorumTest and MultiOpSessionUpgradeTest ask servers for their last zxid or their
#   sessions in every test, ServerIdTest makes session ids of each of 256 numbers of servers;
# - ReconfigRecoveryTest and ReconfigLegacyTest are about the files that ZooKeeper makes of its configuration;
# - StandaloneTest asks whether the server's process has a QuorumPeer, and that a server on its own can't get others;
# - AsyncHammerTest, ObserverQuorumHammerTest and ClientSkipACLTest repeat for minutes what others here do.
CLASSES = """
    ClientReconnectTest ClientRequestTimeoutTest CustomHostProviderTest EnforceAuthenticationTest
    GetAllChildrenNumberTest GetEphemeralsTest RemoveWatchesCmdTest RemoveWatchesTest SaslAuthTest ZKUtilTest
    server.CreateTTLTest server.ZooKeeperServerMaxCnxnsTest server.quorum.ReconfigFailureCasesTest
    server.quorum.StandaloneDisabledTest test.ACLCountTest test.ACLRootTest test.ACLTest test.AsyncOpsTest
    test.AsyncTest test.AuthTest test.BufferSizeTest test.ChrootAsyncTest test.ChrootClientTest test.ChrootTest
    test.ClientHammerTest test.ClientPortBindTest test.ClientRetryTest test.ClientTest test.CreateTest
    test.DigestAuthDisabledTest test.DisconnectedWatcherTest test.EnforceQuotaTest test.EnsembleAuthTest
    test.FourLetterWordsQuorumTest test.FourLetterWordsTest test.FourLetterWordsWhiteListTest test.GetChildren2Test
    test.KeyAuthClientTest test.LocalSessionsOnlyTest test.MaxCnxnsTest test.MultiAsyncTransactionTest
    test.MultiOperationTest test.NullDataTest test.ObserverLETest test.ObserverTest
    test.PersistentRecursiveWatcherTest test.PersistentWatcherTest test.QuorumHammerTest test.QuorumQuotaTest
    test.QuorumRestartTest test.QuorumTest test.ReadOnlyModeTest test.ReconfigExceptionTest
    test.ReconfigMisconfigTest test.ReconfigTest test.RecoveryTest test.SSLAuthTest
    test.SaslAuthDesignatedClientTest test.SaslAuthDesignatedServerTest test.SaslAuthFailDesignatedClientTest
    test.SaslAuthFailTest test.SaslAuthMissingClientConfigTest test.SaslAuthRequiredFailNoSASLTest
    test.SaslAuthRequiredFailWrongSASLTest test.SaslAuthRequiredTest test.SaslDigestAuthOverSSLTest
    test.SaslSuperUserTest test.ServerCnxnTest test.SessionInvalidationTest test.SessionTest test.SessionTimeoutTest
    test.SessionUpgradeTest test.StatTest test.SyncCallTest test.WatchEventWhenAutoResetTest test.WatcherFuncTest
    test.WatcherTest test.ZooKeeperQuotaTest
""".split()

# How a test shows that it reaches into the server: by what the stand-ins lack, by the null that they give, or by
# looking for the server's metrics in its own process (which the tests of quotas do once the quota has held).
INSIDES = re.compile(
    "Unresolved compilation problem"
    '|Cannot (invoke|read field) "?org\\.apache\\.zookeeper\\.server\\.'
    "|(NoSuch(Method|Field)|NoClassDefFound|IncompatibleClassChange)Error: .*org.apache.zookeeper.server"
    "|UnsupportedOperationException: beans of the server"
    "|ZooKeeperQuotaTest[.]validateQuotaExceededMetrics[(]"
)
BROKEN_BY_HAND = "makes the server in its own process fail by hand"
CHANGED_WHILE_RUNNING = "changes the settings of a running server in its own process"
LARGE_ZNODES = "starts a server whose znodes are larger than jute.maxbuffer, which is no reason not to serve them"
STAYS = "a server whose new client port is taken stays at the old one; ZooKeeper's leaves it"
# What does not pass, and why.
NOT_PASSED = {
    "test.ReadOnlyModeTest#testSeekForRwServer": "suspends a thread of the server's process to keep it read-only",
    "test.ReadOnlyModeTest#testGlobalSessionInRO": "read-only mode serves clients without localSessionsEnabled too",
    "server.quorum.ReconfigFailureCasesTest#testIncrementalReconfigInvokedOnHiearchicalQS": "weighs voters by groups",
    "server.quorum.ReconfigFailureCasesTest#testObserverToParticipantConversionFails": (
        "an observer that is up to date counts for the quorum of the voters that it is to be one of"
    ),
    "server.quorum.ReconfigFailureCasesTest#testTooFewRemainingPariticipants": "an ensemble may shrink to one voter",
    "test.ObserverTest#testObserverWithStandlone": "one voter with observers is an ensemble here",
    "test.ReconfigTest#testPortChange": "asks the server's process which ports it is at, once clients are served there",
    "test.ReconfigTest#testPortChangeToBlockedPortFollower": STAYS,
    "test.ReconfigTest#testPortChangeToBlockedPortLeader": STAYS,
    "test.ReconfigTest#testRemoveAddTwo": (
        "a change to voters that are gone, but were up to date, is not refused, and the region waits for them"
    ),
    "test.ClientTest#testPathValidation": BROKEN_BY_HAND,
    "test.ChrootClientTest#testPathValidation": BROKEN_BY_HAND,
    "test.FourLetterWordsWhiteListTest#testFourLetterWordsAllDisabledByDefault": CHANGED_WHILE_RUNNING,
    "test.FourLetterWordsWhiteListTest#testFourLetterWordsEnableSomeCommands": CHANGED_WHILE_RUNNING,
    "test.FourLetterWordsWhiteListTest#testFourLetterWordsInvalidConfiguration": CHANGED_WHILE_RUNNING,
    "test.FourLetterWordsWhiteListTest#testISROEnabledWhenReadOnlyModeEnabled": CHANGED_WHILE_RUNNING,
    "test.EnsembleAuthTest#removeEnsembleAuthProvider": CHANGED_WHILE_RUNNING,
    "test.SaslSuperUserTest#testOtherSuperIsSuper": CHANGED_WHILE_RUNNING,
    "test.KeyAuthClientTest#testAuth": "needs a scheme of authentication that is a Java class",
    "test.SaslAuthDesignatedClientTest#testReadAccessUser": "letAnySaslUserDoX has no effect here",
    "test.BufferSizeTest#testCreatesReqs": CHANGED_WHILE_RUNNING,
    "test.BufferSizeTest#testSetReqs": CHANGED_WHILE_RUNNING,
    "test.BufferSizeTest#testStartupFailureCreate": LARGE_ZNODES,
    "test.BufferSizeTest#testStartupFailureSet": LARGE_ZNODES,
    "test.BufferSizeTest#testStartupFailureSnapshot": LARGE_ZNODES,
    "test.ServerCnxnTest#testServerCnxnExpiry": (
        "a connection without a session stays for as long as a session may be silent, not for nio.sessionlessCnxnTimeout"
    ),
    "ZKUtilTest#testUnreadableFileInput": "tests permissions of files, which do not bind root",
}

# The C client's suites of tests, those that need a server.
C_SUITES = """
    TestReconfigServer Zookeeper_SASLAuth Zookeeper_clientretry Zookeeper_logClientEnv Zookeeper_multi
    Zookeeper_readOnly Zookeeper_simpleSystem Zookeeper_watchers
""".split()

# Left out when they are built: one that fails ends their program.
C_LEFT_OUT = {
    "TestClient.cc": ["testHangingClient"],  # reads while its session is being closed: races in the client
}
C_NOT_PASSED = {}

# As ZooKeeper's own build has it.
SUPER_DIGEST = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
COMPILE_S = 900
CLASS_S = 900
TEST_S = 240
# The tests mostly wait.
CLASSES_AT_ONCE = 3


def lacks(packages, *commands):
    """Says what is missing, if anything is: a command, or one of Debian's packages with libraries."""
    missing = [command for command in commands if not shutil.which(command)]
    if shutil.which("dpkg-query"):
        libraries = [package for package in packages if package.startswith(("lib", "junit"))]
        query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *libraries]
        known = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        missing += [package for package in libraries if f"{package} installed" not in known]
    if missing:
        say(f"{', '.join(missing)} are not installed here: apt-get install {' '.join(packages)}")
    return bool(missing)


def source():
    """The unpacked source of Debian's ZooKeeper."""
    directory = os.path.join(WORK, "source")
    if not os.path.exists(os.path.join(directory, "pom.xml")):
        downloads = os.path.join(WORK, "downloads")
        for needed in (downloads, directory):
            os.makedirs(needed, exist_ok=True)
        apt_get = ["apt-get", "--quiet=2", *package_sources()]
        subprocess.run([*apt_get, "update"], check=True, stdout=subprocess.DEVNULL)
        fetch = [*apt_get, "source", "--download-only", "--tar-only", "zookeeper"]
        subprocess.run(fetch, cwd=downloads, check=True, stdout=subprocess.DEVNULL)
        (archive,) = glob.glob(f"{downloads}/zookeeper_*.orig.tar.gz")
        subprocess.run(["tar", "-xf", archive, "-C", directory, "--strip-components=1"], check=True)
    return directory


def package_sources():
    """Options by which apt finds sources of packages where it finds the packages; few machines are set up so."""
    parts, lists = (os.path.join(WORK, "apt", name) for name in ("sources", "lists"))
    for directory in (parts, os.path.join(lists, "partial")):
        os.makedirs(directory, exist_ok=True)
    for path in [*glob.glob("/etc/apt/sources.list"), *glob.glob("/etc/apt/sources.list.d/*")]:
        with open(path) as file:
            text = re.sub(r"^(Types: *)?deb\b(?!-src)", r"\1deb-src", file.read(), flags=re.MULTILINE)
        with open(os.path.join(parts, os.path.basename(path)), "w") as file:
            file.write(text)
    return [f"-oDir::Etc::SourceParts={parts}", "-oDir::Etc::SourceList=/dev/null", f"-oDir::State::Lists={lists}"]


def path_of(patterns):
    return os.pathsep.join(jar for pattern in patterns for jar in sorted(glob.glob(f"{JARS}/{pattern}")))


def compile_tests():
    """Compiles all tests and the stand-ins; returns where the classes are."""
    tests = os.path.join(WORK, "tests")
    classes = os.path.join(WORK, "classes")
    for directory in (tests, classes):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(os.path.join(source(), "zookeeper-server", "src", "test", "java"), tests)
    os.mkdir(classes)
    for file in glob.glob(f"{STAND_INS}/**/*.java", recursive=True):
        replaced = os.path.join(tests, os.path.relpath(file, STAND_INS))
        if os.path.exists(replaced):
            os.remove(replaced)
    # It ends with an error, since not everything compiles.
    compiler = ["java", "-cp", path_of(COMPILERS), "org.eclipse.jdt.internal.compiler.batch.Main"]
    options = ["-proc:none", "-proceedOnError", "-nowarn", "--release", "11", "-cp", path_of(JAR_PATTERNS)]
    with open(os.path.join(WORK, "compiler.log"), "w") as log:
        command = [*compiler, *options, "-d", classes, STAND_INS, tests]
        subprocess.run(command, stdout=log, stderr=log, timeout=COMPILE_S)
    assert os.path.exists(f"{classes}/suites/MeridianProcess.class"), open(log.name).read()[-5000:]
    return classes


def run_class(binary, classes, name, number):
    """How each test of a class ended: nothing, or why it failed; those that were skipped are left out."""
    work = os.path.join(WORK, "runs", name)
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    resources = os.path.join(source(), "zookeeper-server", "src", "test", "resources")
    properties = {
        "build.test.dir": os.path.join(work, "build"),
        "test.data.dir": os.path.join(resources, "data"),
        "logback.configurationFile": os.path.join(resources, "logback.xml"),
        "suites.server.log": os.path.join(work, "servers.log"),
        "zookeeper.DigestAuthenticationProvider.superDigest": SUPER_DIGEST,
        # Each process has ports of its own.
        "test.junit.threads": str(CLASSES_AT_ONCE),
        "zookeeper.junit.threadid": str(number),
        "junit.jupiter.execution.timeout.default": f"{TEST_S} s",
    }
    command = ["java", "-Xmx512m", *[f"-D{key}={value}" for key, value in properties.items()]]
    command += ["-cp", os.pathsep.join([classes, path_of(JAR_PATTERNS)])]
    command += ["org.junit.platform.console.ConsoleLauncher", "--disable-banner", "--details", "none"]
    command += ["--reports-dir", work, "--select-class", PACKAGE + name]
    with open(os.path.join(work, "log"), "w") as log:
        environment = {**os.environ, "SUITES_SERVER": binary}
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=log)
        try:
            process.wait(CLASS_S)
        except subprocess.TimeoutExpired:
            # A signal that it handles: it ends the servers.
            process.terminate()
            process.wait()
            return {f"{name}#": "the class took too long"}
    results = {}
    for report in glob.glob(f"{work}/TEST-*.xml"):
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            if case.find("skipped") is None:
                results[f"{name}#{re.sub(r'[(].*[)]', '', case.get('name'))}"] = failure(case)
    return results or {f"{name}#": "no test ran: see " + log.name}


def failure(case):
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return f"{found.get('type')}: {found.get('message')}\n{found.text}"
    return None


def run_classes(binary, names):
    classes = compile_tests()
    numbers = queue.Queue()
    for number in range(1, CLASSES_AT_ONCE + 1):
        numbers.put(number)

    def run(name):
        number = numbers.get()
        try:
            return run_class(binary, classes, name, number)
        finally:
            numbers.put(number)

    with concurrent.futures.ThreadPoolExecutor(CLASSES_AT_ONCE) as pool:
        return dict(collections.ChainMap(*pool.map(run, names)))


def check_java(binary, names=()):
    """Runs ZooKeeper's tests in Java and judges them by what is known not to pass."""
    if lacks(JAVA_PACKAGES, "java"):
        return
    results = run_classes(os.path.abspath(binary), names or CLASSES)
    failed = {test: reason for test, reason in sorted(results.items()) if reason}
    insides = {test for test, reason in failed.items() if INSIDES.search(reason[:1000])}
    known = {test: NOT_PASSED[why] for test in failed if (why := known_as(test))}
    for test, reason in known.items():
        say(f"not passed: {test}: {reason}")
    say(f"{len(results) - len(failed)} passed, {len(insides)} are about the insides of ZooKeeper's server")
    unexpected = [test for test in failed if test not in insides and test not in known]
    assert not unexpected, "\n".join(f"{test}: {failed[test][:2000]}" for test in unexpected)


def build_c_tests():
    """Builds the C client's tests; returns where. The client without threads has none that need a server."""
    directory = os.path.join(WORK, "client-c")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(os.path.join(source(), "zookeeper-client", "zookeeper-client-c"), directory)
    os.mkdir(f"{directory}/generated")
    records = os.path.join(source(), "zookeeper-jute", "src", "main", "resources", "zookeeper.jute")
    generate = ["java", "-cp", path_of(["zookeeper-jute.jar"]), "org.apache.jute.compiler.generated.Rcc", "-l", "c"]
    subprocess.run([*generate, records], cwd=f"{directory}/generated", check=True, stdout=subprocess.DEVNULL)
    lists = f"{directory}/CMakeLists.txt"
    with open(lists) as file:
        text = file.read()
    # It leaves the tests of SASL out.
    assert text.count("tests/TestLogClientEnv.cc)") == 1
    with open(lists, "w") as file:
        file.write(text.replace("tests/TestLogClientEnv.cc)", "tests/TestLogClientEnv.cc tests/TestSASLAuth.cc)"))
    for file, tests in C_LEFT_OUT.items():
        leave_out(f"{directory}/tests/{file}", tests)
    os.makedirs(f"{directory}/root/bin")
    for script in ("tests/zkServer.sh", "root/bin/zkServer.sh"):
        shutil.copy(SERVER_SCRIPT, f"{directory}/{script}")
    # The sources are older than today's compilers and OpenSSL.
    flags = ["-DCMAKE_CXX_FLAGS=-w -include time.h", "-DCMAKE_C_FLAGS=-w '-DFIPS_mode()=0'"]
    configure = ["cmake", "-S", directory, "-B", f"{directory}/build", "-DWANT_SYNCAPI=ON", "-DWANT_CPPUNIT=ON", *flags]
    with open(f"{directory}/build.log", "w") as log:
        for command in (configure, ["make", "-C", f"{directory}/build", "zktest"]):
            subprocess.run(command, check=True, stdout=log, stderr=log, timeout=COMPILE_S)
    return directory


def leave_out(file, tests):
    with open(file) as source_file:
        text = source_file.read()
    for test in tests:
        assert text.count(f"CPPUNIT_TEST({test});") == 1
        text = text.replace(f"CPPUNIT_TEST({test});", "")
    with open(file, "w") as source_file:
        source_file.write(text)


def check_c_client(binary):
    """Runs the C client's tests that need a server."""
    if lacks(C_PACKAGES, "cmake", "c++", "openssl", "java"):
        return
    directory = build_c_tests()
    environment = {**os.environ, "SUITES_SERVER": os.path.abspath(binary), "ZKROOT": f"{directory}/root"}
    passed = 0
    failed = []
    for suite in C_SUITES:
        # A failed test may bring down its program.
        command = ["stdbuf", "--output=L", f"{directory}/build/zktest", suite]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, timeout=CLASS_S)
        report = done.stdout.decode(errors="replace")
        ended = re.split(rf"^(?={suite}::)", report, flags=re.MULTILINE)[1:]
        assert ended, f"{suite}: no test ran\n{report}"
        passed += sum(": OK" in test for test in ended)
        failed += [test for test in ended if ": OK" not in test]
    # What a test writes follows its name without a gap.
    known = {test: name for test in failed for name in C_NOT_PASSED if test.startswith(name)}
    for name in known.values():
        say(f"not passed: {name}: {C_NOT_PASSED[name]}")
    say(f"{passed} passed")
    unexpected = [test[-2000:] for test in failed if test not in known]
    assert not unexpected, "\n".join(unexpected)


def known_as(test):
    """Its entry in the table of what does not pass, its own or its class's."""
    name = test.partition("[")[0]
    return next((key for key in (name, name.partition("#")[0]) if key in NOT_PASSED), None)


if __name__ == "__main__":
    check_java(sys.argv[1], sys.argv[2:])
