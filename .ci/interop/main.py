"""Runs the interoperability checks: main.py BINARY [THEME...]."""

import argparse
import importlib
import inspect
import os
import signal
import sys
import time
import traceback

from mesh import Mesh

# In this order: the later ones break things.
MESH_THEMES = ["protocol", "sharing", "exclusion", "failover", "partition"]
OTHER_THEMES = [
    "region",
    "operator_errors",
    "differential",
    "random_differential",
    "suites",
    "applications",
    "sasl",
]
# An hour of other people's tests, applications, and what needs a KDC and a build with Kerberos.
ON_REQUEST = {"suites", "applications", "sasl"}


def checks_of(theme):
    """The functions of a theme whose names begin with `check_`, in the order of the file."""
    module = importlib.import_module(theme)
    found = [value for name, value in vars(module).items() if name.startswith("check_")]
    return sorted(found, key=lambda check: check.__code__.co_firstlineno)


class Tally:
    def __init__(self, pattern):
        self.passed = 0
        self.failed = []
        self.pattern = pattern

    def run(self, theme, subject, after=lambda: None, describe=lambda: ""):
        for check in checks_of(theme):
            if self.pattern and self.pattern not in check.__name__:
                continue
            print(f"{theme}: {inspect.getdoc(check)}", flush=True)
            started = time.monotonic()
            try:
                check(subject)
                after()
            except Exception:
                self.failed.append(f"{theme}.{check.__name__}")
                traceback.print_exc(file=sys.stdout)
                print(describe())
                print(f"  FAILED after {time.monotonic() - started:.0f} s", flush=True)
            else:
                self.passed += 1
                print(f"  ok, {time.monotonic() - started:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("themes", nargs="*", metavar="THEME")
    parser.add_argument("--only", metavar="TEXT", help="checks whose name has this text")
    arguments = parser.parse_args()
    themes = arguments.themes or [t for t in MESH_THEMES + OTHER_THEMES if t not in ON_REQUEST]
    unknown = set(themes) - set(MESH_THEMES + OTHER_THEMES)
    if unknown:
        parser.error(f"no such theme: {', '.join(sorted(unknown))}")
    binary = os.path.abspath(arguments.binary)
    # A stop from outside ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    tally = Tally(arguments.only)
    mesh_themes = [theme for theme in MESH_THEMES if theme in themes]
    if mesh_themes:
        with Mesh(binary) as mesh:
            for theme in mesh_themes:
                tally.run(theme, mesh, mesh.await_whole, mesh.describe)
    for theme in OTHER_THEMES:
        if theme in themes:
            tally.run(theme, binary)
    for name in tally.failed:
        print(f"failed: {name}")
    print(f"{tally.passed} passed, {len(tally.failed)} failed")
    # At least one check must have run.
    return 0 if tally.passed and not tally.failed else 1


if __name__ == "__main__":
    sys.exit(main())
