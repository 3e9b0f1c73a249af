# SPDX-License-Identifier: BSD-2-Clause
"""
tproxy-load killed before each call that changes anything: the old set, the new one or nothing is in
force then, and the next run repairs what is left.
"""

import re

from harness import (LOAD, Sandbox, Server, banner, case_for, line, main, redirected, run,
                     tmpdir)
from harness.pins import assert_nothing, assert_whole, attached, pretend_another_build

# Calls that change what outlives the process; exit_group: everything is done.
CALLS = "bpf,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mount,munmap,exit_group"
CHANGING_BPF = re.compile(
    r"BPF_(OBJ_PIN|LINK_(CREATE|UPDATE|DETACH)|PROG_ATTACH|MAP_(UPDATE|DELETE)_ELEM)")


def stop_points(command):
    """(call, its number) of each changing call of an undisturbed run."""
    with tmpdir() as directory:
        log = directory / "strace"
        run(["strace", "-qq", "-o", log, "-e", f"trace={CALLS}", *command])
        points, counts, changed = [], {}, False
        for text in log.read_text().splitlines():
            call = text.partition("(")[0]
            counts[call] = counts.get(call, 0) + 1
            changes = CHANGING_BPF.search(text) if call == "bpf" else call not in ("munmap",)
            changed = changed or bool(changes)
            # A store into map_config's mapping is no call; it lies before an unmapping.
            if changes or (call == "munmap" and changed):
                points.append((call, counts[call]))
    return points


def kill_at(command, point):
    call, number = point
    done = run(["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                f"inject={call}:signal=KILL:when={number}", *command], check=False)
    assert done.returncode in (-9, 137), f"not killed at {point}: {done.returncode} {done.stderr}"


def assert_traffic(box, server, ways):
    """A connection works, and goes one of the ways: "direct", "proxied"."""
    with box.connect(server.address) as client:
        assert line(client) == "{} {}".format(*server.address)
        way = "proxied" if redirected(client) else "direct"
        assert way in ways, f"the connection was {way}"


def assert_at_most_once(box):
    """
    No program runs twice for a process, on its cgroup and on one around it or on one alone; except
    while nothing is redirected.
    """
    for inner in (box.clients, box.servers):
        names = sum(attached(inner, box.cgroup), [])
        once = len(names) == len(set(names))
        assert once or not box.config()["port"], f"twice on {inner}: {names}"


# The ways that a connection may go.
DIRECT, PROXIED, EITHER = ("direct",), ("proxied",), ("direct", "proxied")


class Scenario:
    """
    What is there before (cgroups and options, or None), the command that is killed, the cgroups that
    it is to cover, and which ways a connection may go after the kill while a proxy serves.
    """

    def __init__(self, before, words, cgroups=("",), change=lambda box: None, ways=PROXIED):
        self.before, self.words, self.change = before, words, change
        self.cgroups, self.ways = cgroups, ways

    def prepare(self, box):
        """The state before, from whatever is there."""
        box.unload()
        if self.before is None:
            return None
        cgroups, words = self.before
        box.loader(*cgroup_options(box, cgroups), *words)
        self.change(box)
        return box.start_proxy()

    def command(self, box):
        options = [] if "--unload" in self.words else cgroup_options(box, self.cgroups)
        return [LOAD, "--name", box.name, *options, *self.words]

    def repair(self, box):
        words = [word for word in self.words if word != "--unload"]
        box.loader(*cgroup_options(box, self.cgroups), *words)


def cgroup_options(box, names):
    return [word for name in names for word in ("--cgroup", box.cgroup / name)]


SCENARIOS = {
    "first load": Scenario(None, [], ways=DIRECT),
    "upgrade": Scenario(([""], []), [], change=pretend_another_build),
    # The maps are swapped while nothing is redirected: the policy applies until the next run.
    "resize": Scenario(([""], ["--max-connections", "100"]), ["--max-connections", "200"],
                       ways=EITHER),
    "policy": Scenario(([""], ["--on-proxy-down", "refuse"]), []),
    "other cgroups": Scenario((["clients", "proxy"], []), [], ways=EITHER),
    "unload": Scenario(([""], []), ["--unload"], ways=EITHER),
}


@case_for({f"{name}, then {then}": (scenario, then)
           for name, scenario in SCENARIOS.items() for then in ("load", "unload")})
def killed_at_each_step_of(scenario, then):
    with Sandbox(load=None) as box, Server("10.77.0.1", banner) as server:
        proxy = scenario.prepare(box)
        points = stop_points(scenario.command(box))
        assert points, "nothing to be killed at"
        for point in points:
            if proxy:
                proxy.stop()
            proxy = scenario.prepare(box)
            kill_at(scenario.command(box), point)
            try:
                assert_at_most_once(box)
                assert_traffic(box, server, scenario.ways)
                if then == "unload":
                    box.unload()
                    assert_nothing(box)
                    assert_traffic(box, server, DIRECT)
                    continue
                scenario.repair(box)
                assert_whole(box, *(box.cgroup / name for name in scenario.cgroups))
                kept = proxy and "--unload" not in scenario.words
                assert_traffic(box, server, PROXIED if kept else EITHER)
            except AssertionError as error:
                raise AssertionError(f"killed at {point}: {error}") from error


main()
