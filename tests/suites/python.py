# SPDX-License-Identifier: BSD-2-Clause
"""Suites made of Python's unittest: the interpreter's own tests."""

import json
import pathlib

from .world import require

LAUNCHER = pathlib.Path(__file__).with_name("unittests.py")
RESTARTS = 10  # of a module whose tests take the process down with them

CPYTHON_PACKAGE = "libpython3.11-testsuite"
CPYTHON = [f"test_{name}" for name in """socket asyncio ssl httplib ftplib smtplib socketserver
           urllib2_localnet poplib imaplib telnetlib xmlrpc httpservers selectors poll epoll asyncore
           asynchat smtpd nntplib logging docxmlrpc robotparser select""".split()]

NOT_RUN = [
    # In a virtual machine without a vsock loopback it waits for ever. It has nothing to do with TCP.
    "test.test_socket.ThreadedVSOCKSocketStreamTest.testStream",
    # Wants messages on two sockets told by one epoll_wait(). CPython 3.12 no longer does (its
    # gh-102795); test_relay has a case of the same that waits for both.
    "test.test_epoll.TestEPoll.test_control_and_wait",
]

# Modules that open no TCP connection.
WITHOUT_CONNECTIONS = {"test_selectors", "test_poll", "test_select", "test_smtpd"}


def _read(path):
    """{id: (outcome, detail)} of what was written so far; a test that has only begun took the
    process with it."""
    found = {}
    for line in path.read_text().splitlines():
        name, outcome, *detail = json.loads(line)
        if outcome == "begun":
            found[name] = ("failed", "the test did not end; the process ended with it")
        else:
            found[name] = (outcome, detail[0])
    return found


def run_modules(world, names, only=None):
    """Runs unittest modules in a world. Returns {test id: (outcome, detail)}."""
    results = world.directory / "results"
    results.write_text("")
    if only and any(" (" in name for name in only):
        only = None  # a class's or module's fixture: there is no test to select
    for _ in range(RESTARTS):
        found = _read(results)
        wanted = json.dumps({"names": names, "only": only, "skip": [*found, *NOT_RUN]})
        work = world.directory / "work"
        work.mkdir(exist_ok=True)
        status, output = world.run(["/usr/bin/python3", LAUNCHER, results], text_in=wanted,
                                   cwd=work, timeout=1200)
        if status == 0:
            return _read(results)
        hung = [name for name, (_, detail) in _read(results).items()
                if name not in found and detail.startswith("the test did not end")]
        found = _read(results)
        for name in hung:
            found[name] = ("failed", f"the process ended with {status}:\n{output[-6000:]}")
        with results.open("w") as out:
            for name, row in found.items():
                out.write(json.dumps([name, *row]) + "\n")
        if not hung:
            raise RuntimeError(f"{names}: the launcher ended with {status}:\n{output[-6000:]}")
    return _read(results)


def modules(*names):
    """A suite of some of CPython's test modules."""
    def suite(world, only=None):
        require(CPYTHON_PACKAGE)
        return run_modules(world, names, only)
    return suite


SUITES = {f"cpython/{module}": modules(f"test.{module}") for module in CPYTHON}
QUIET = {f"cpython/{module}" for module in WITHOUT_CONNECTIONS}
