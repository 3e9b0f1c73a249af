# SPDX-License-Identifier: BSD-2-Clause
"""The tests of Go's own network packages: one program a package, built once for both worlds."""

import functools
import os
import pathlib
import re
import subprocess
import threading

from harness import O

from .world import require

GOROOT = pathlib.Path("/usr/lib/go-1.19")
PACKAGES = ("net", "net/http", "net/http/httptest", "net/http/httputil", "net/rpc", "net/smtp",
            "crypto/tls")
DEADLINE = "400s"

RESULT = re.compile(r"^\s*--- (?P<what>PASS|FAIL|SKIP): (?P<name>\S+) \(")
BEGUN = re.compile(r"^=== RUN\s+(?P<name>\S+)$")
OUTCOMES = {"PASS": "ok", "FAIL": "failed", "SKIP": "skipped"}

_building = threading.Lock()


@functools.cache
def _build(package):
    cache = O / "suites-go"
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / f"{package.replace('/', '-')}.test"
    environment = dict(os.environ, GOCACHE=str(cache / "cache"), GOPATH=str(cache / "path"),
                       GOFLAGS="-mod=mod", GO111MODULE="auto")
    subprocess.run([GOROOT / "bin" / "go", "test", "-c", "-vet=off", "-o", program, package],
                   cwd=GOROOT / "src", env=environment, check=True)
    return program


def parse(output):
    """{test name: (outcome, the output's end for what failed)}; subtests are tests of their own."""
    found = {}
    for line in output.splitlines():
        if match := BEGUN.match(line):
            found[match["name"]] = ("failed", f"did not end:\n{output[-6000:]}")
        elif match := RESULT.match(line):
            outcome = OUTCOMES[match["what"]]
            detail = _about(output, match["name"]) if outcome == "failed" else ""
            found[match["name"]] = (outcome, detail)
    return found


def _about(output, name):
    """What a failed test wrote: the lines that are indented below its result."""
    lines = output.splitlines()
    at = next(index for index, line in enumerate(lines) if f"--- FAIL: {name} (" in line)
    return "\n".join(lines[max(0, at - 5):at + 25])


def golang(package):
    def suite(world, only=None):
        require("golang-1.19-go", "golang-1.19-src")
        with _building:
            program = _build(package)
        command = [program, "-test.v", f"-test.timeout={DEADLINE}"]
        if only:
            names = {name.partition("/")[0] for name in only}
            command.append(f"-test.run=^({'|'.join(map(re.escape, sorted(names)))})$")
        _, output = world.run(command, cwd=GOROOT / "src" / package,
                              environment={"GOROOT": str(GOROOT), "GO_BUILDER_NAME": ""})
        return parse(output) or {"the program": ("failed", output[-6000:])}
    return suite


SUITES = {f"go/{package}": golang(package) for package in PACKAGES}
