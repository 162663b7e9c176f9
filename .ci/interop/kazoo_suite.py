"""kazoo's own tests against a Meridian ensemble: its harness starts it in place of ZooKeeper.

kazoo_suite.py BINARY [PYTEST ARGUMENTS]. The harness finds kazoo-suite/bin/java before any other Java.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
SUITE = os.path.join(HERE, "kazoo-suite")
ENVIRONMENT = os.path.join(HERE, "..", "..", ".venv-kazoo-suite")

# What does not pass, and why it says nothing about the protocol.
NOT_PASSED = {}


def python():
    """The interpreter of an environment with kazoo and what its tests need."""
    requirements = os.path.join(SUITE, "requirements.txt")
    installed = os.path.join(ENVIRONMENT, "installed.txt")
    interpreter = os.path.join(ENVIRONMENT, "bin", "python")
    with open(requirements) as file:
        wanted = file.read()
    if not os.path.exists(installed) or open(installed).read() != wanted:
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # The wheel has no tests.
        subprocess.run([*pip, "--no-binary", "kazoo", "--requirement", requirements], check=True)
        with open(installed, "w") as file:
            file.write(wanted)
    return interpreter


def run(binary, *arguments):
    """The suite's report."""
    environment = {
        **os.environ,
        "KAZOO_SUITE_SERVER": os.path.abspath(binary),
        "PATH": os.path.join(SUITE, "bin") + ":" + os.path.dirname(python()) + ":" + os.environ["PATH"],
        "ZOOKEEPER_PATH": SUITE,
        "ZOOKEEPER_VERSION": "3.9.3",
    }
    command = [python(), "-m", "pytest", "--pyargs", "kazoo.tests", "-p", "no:cacheprovider", "--timeout", "180"]
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [*command, "-q", "-rfEs", "-W", "ignore", "--show-capture=no", *arguments],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
        )
    return done.stdout


def check_kazoo_suite(binary):
    """kazoo's own test suite passes"""
    from mesh import say

    report = run(binary)
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::\S+|::\S+)", report, re.MULTILINE))
    unexpected = {test for test in failed if test.split("::", 1)[1] not in NOT_PASSED}
    assert " passed" in report and not unexpected, report[-20_000:]
    say(report.splitlines()[-1])
    for test, reason in NOT_PASSED.items():
        say(f"not passed: {test}: {reason}")


if __name__ == "__main__":
    print(run(*sys.argv[1:]))
