# SPDX-License-Identifier: BSD-2-Clause
"""
tproxy-load killed before each call that changes anything: the old set, the new one or nothing is in
force then, and the next run repairs what is left. STEPS of them a case (harness/steps.py).
"""

import re

from harness import LOAD, Sandbox, Server, banner, case_for, line, main, redirected
from harness.pins import assert_nothing, assert_whole, attached, pretend_another_build
from harness.steps import kill_at, some, stop_points, traced


def assert_traffic(box, server, ways):
    """A connection works, and goes one of the ways: "direct", "proxied"."""
    with box.connect(server.address) as client:
        assert line(client) == "{} {}".format(*server.address)
        way = "proxied" if redirected(client) else "direct"
        assert way in ways, f"the connection was {way}"


def assert_at_most_once(box):
    """
    No program of a generation runs twice for a process, on its cgroup and on one around it or on one
    alone; except while nothing is redirected.
    """
    generations = 1 + bool(list(box.pins.parent.glob(f"{box.name}~new/link_*")))
    for inner in (box.clients, box.servers):
        names = sum(attached(inner, box.cgroup), [])
        once = all(names.count(name) <= generations for name in names)
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
    "first load": Scenario(None, [], cgroups=("clients", "proxy"), ways=DIRECT),
    "upgrade": Scenario(([""], []), [], change=pretend_another_build),
    "resize": Scenario(([""], ["--max-connections", "100"]), ["--max-connections", "200"]),
    "policy": Scenario(([""], ["--on-proxy-down", "refuse"]), []),
    "other cgroups": Scenario((["clients", "proxy"], []), []),
    "inner cgroups": Scenario(([""], []), [], cgroups=("clients", "proxy")),
    "unload": Scenario(([""], []), ["--unload"], ways=EITHER),
}


@case_for({name: (SCENARIOS[name],) for name in ("first load", "inner cgroups")})
def what_redirects_is_attached_last(scenario):
    """On every cgroup: a client's connection needs the programs on the proxy's."""
    with Sandbox(load=None) as box:
        scenario.prepare(box)
        created = [text for text in traced(scenario.command(box)) if "BPF_LINK_CREATE" in text]
        connects = [bool(re.search("attach_type=BPF_CGROUP_INET[46]_CONNECT", text)) for text in created]
        assert any(connects) and connects == sorted(connects), created


@case_for({f"{name}, then {then}": (scenario, then)
           for name, scenario in SCENARIOS.items() for then in ("load", "unload")})
def killed_at_each_step_of(scenario, then):
    with Sandbox(load=None) as box, Server("10.77.0.1", banner) as server:
        proxy = scenario.prepare(box)
        points = stop_points(scenario.command(box))
        assert points, "nothing to be killed at"
        for point in some(points):
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
