# SPDX-License-Identifier: BSD-2-Clause
"""Runs one suite in both worlds and compares the results test by test."""

import concurrent.futures
import dataclasses
import time

ATTEMPTS = 3  # at a test that failed only through the proxy, before that is called a difference


@dataclasses.dataclass
class Comparison:
    """What came of one suite. `redirected` are connections that the hooks sent to the proxy."""
    name: str
    tests: int = 0
    ok: int = 0
    skipped: int = 0
    failed: dict = dataclasses.field(default_factory=dict)  # in both: id -> (direct, proxied)
    redirected: int = 0
    seconds: float = 0.0
    again: list = dataclasses.field(default_factory=list)  # ids that were run again
    differences: dict = dataclasses.field(default_factory=dict)  # id -> (direct, proxied)

    def row(self):
        return (f"{self.name:28} {self.tests:5} tests {self.ok:5} ok {self.skipped:4} skipped "
                f"{len(self.failed):3} failed in both {len(self.again):2} rerun "
                f"{len(self.differences):2} different {self.redirected:8} redirected "
                f"{self.seconds:6.1f} s")


def _both(suite, worlds, only=None):
    """Runs it in both worlds at once, so that a busy machine is busy for both."""
    def one(world):
        try:
            return suite(world, only)
        finally:
            world.clear()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(one, world) for world in worlds]]


def _different(direct, proxied):
    """
    Tests that came out otherwise through the proxy. One that fails directly may pass; one that
    fails in both is the same failure, whatever its words.
    """
    absent = ("absent", "the test was not run")
    found = {}
    for name in direct.keys() | proxied.keys():
        one, other = direct.get(name, absent), proxied.get(name, absent)
        if one[0] != other[0] and other[0] != "ok":
            found[name] = (one, other)
    return found


def _brief(direct, proxied):
    """Both outcomes in a line, each with the last line of what it says."""
    def say(world, outcome, detail):
        return " ".join([world, outcome, *detail.splitlines()[-1:]]).replace("\n", " ")[:200]
    return f"{say('direct', *direct)}, {say('proxied', *proxied)}"


def compare(name, suite, worlds):
    """Runs a suite, and again what differs. Returns the Comparison."""
    started, before = time.monotonic(), worlds[1].counters()
    direct, proxied = _both(suite, worlds)
    made = Comparison(name, tests=len(proxied), differences=_different(direct, proxied))
    made.again = sorted(made.differences)
    for attempt in range(1, ATTEMPTS + 1):
        if not made.differences:
            break
        for test, outcomes in sorted(made.differences.items()):
            print(f"  again, attempt {attempt}: {test}: {_brief(*outcomes)}", flush=True)
        results = _both(suite, worlds, list(made.differences))
        left = {test: results[0].get(test, ("absent", "")) for test in made.differences}
        now = _different(left, results[1])
        made.differences = {test: was for test, was in made.differences.items() if test in now}
    outcomes = [outcome for outcome, _ in proxied.values()]
    made.skipped = outcomes.count("skipped")
    made.failed = {test: (direct[test], outcome) for test, outcome in proxied.items()
                   if outcome[0] == "failed" == direct.get(test, outcome)[0]}
    made.ok = made.tests - made.skipped - outcomes.count("failed")
    made.redirected = worlds[1].counters()["redirected"] - before["redirected"]
    made.seconds = time.monotonic() - started
    return made


def explain(made):
    """The differences in full, and a line for each test that fails in both worlds."""
    for test, outcomes in sorted(made.failed.items()):
        print(f"  fails in both: {test}: {_brief(*outcomes)}")
    for test, (direct, proxied) in sorted(made.differences.items()):
        print(f"DIFFERENT {made.name}: {test}")
        for label, (outcome, detail) in (("direct", direct), ("proxied", proxied)):
            print(f"  {label}: {outcome}")
            for line in detail.rstrip().splitlines():
                print(f"    | {line}")
