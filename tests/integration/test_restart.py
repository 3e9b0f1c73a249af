# SPDX-License-Identifier: BSD-2-Clause
"""
tproxyd restarts under load in every way it can, and nobody notices: no connection is refused, reset
or misdirected, no byte is wrong. `make restarttest` makes a long run of it. RESTARTS and
CONNECTIONS set how many there are at least; UPGRADES, KILLS and MEGABYTES are for the long sessions.
"""

import os
import pathlib
import random
import shutil
import statistics
import subprocess
import time

from harness import TPROXYD, Sandbox, Stress, case, main, quiet_direct_path, tmpdir, wait_for

RESTARTS = int(os.environ.get("RESTARTS", "30"))
CONNECTIONS = int(os.environ.get("CONNECTIONS", "0"))
UPGRADES = int(os.environ.get("UPGRADES", "5"))
KILLS = int(os.environ.get("KILLS", "20"))
MEGABYTES = int(os.environ.get("MEGABYTES", "64"))
OTHER_BUILD = os.environ.get("OTHER_BUILD")

ALL_KINDS = {"short": 64, "echo": 100, "half": 20, "late": 4, "bulk": 2, "mb": 64, "pace": 4000}


def descriptors(box):
    """Of master and worker, which share them; but for pipes, of which some are kept for reuse."""
    names = [os.readlink(entry) for entry in pathlib.Path(f"/proc/{box.proxy.pid}/fd").iterdir()]
    return sorted(name.partition(":")[0] for name in names if not name.startswith("pipe:"))


class Restarts:
    """Makes them, and knows how long nobody served."""

    def __init__(self, box, load):
        self.box, self.load = box, load
        self.gaps = {"kill": [], "reload": []}
        self.lost = 0  # kills that met a worker before it served

    def _until_served(self, how, before):
        start = time.monotonic()
        wait_for(lambda: self.box.proxy.times_served() > before or self.load.check() is None,
                 "the next worker")
        self.gaps[how].append((time.monotonic() - start) * 1000)

    def kill(self):
        """Of the worker, wherever it is."""
        before = self.box.proxy.times_served()
        if self.box.proxy.kill_worker():
            self._until_served("kill", before)

    def reload(self):
        """The gap begins when the binary was found good."""
        proxy = self.box.proxy
        served, began = proxy.times_served(), proxy.times_logged("reloading: becoming")
        proxy.reload()
        wait_for(lambda: proxy.times_logged("reloading: becoming") > began, "the binary's answer")
        self._until_served("reload", served)

    def count(self):
        return sum(map(len, self.gaps.values()))

    def figures(self):
        return "; ".join(f"{len(gaps)} {how}s, ms without a worker: median {statistics.median(gaps):.0f}, "
                         f"worst {max(gaps):.0f}" for how, gaps in self.gaps.items() if gaps)


def print_load(report):
    print(f"# {report['connections']} connections in {report['ms'] / 1000:.0f} s: "
          f"{report['exchange']} exchanges ({report['late']} in mid-hold, {report['resets']} ended by a "
          f"reset), {report['tell']} written and closed, {report['refused']} refused as they should be, "
          f"{report['echo']} echo sessions, {report['trickle'] + report['listen']} half-closed ones; "
          f"{report['bytes'] / 1e9:.2f} GB compared byte by byte; short requests took at most "
          f"{report['longest_ms']} ms, {report['slow']} of them over 900 ms")


# --- cases ----------------------------------------------------------------------------------------

@case
def the_load_itself_is_without_failures():
    """Directly: what fails here would not be the proxy's doing."""
    quiet_direct_path()
    with Stress(None, **ALL_KINDS) as load:
        load.wait(lambda report: report["connections"] >= max(2000, CONNECTIONS / 20), "connections", 300)
        print_load(load.finish())


@case
def restarts_are_not_noticed():
    """Half of them by SIGKILL of the worker at random instants, the rest reloads."""
    quiet_direct_path()
    with Sandbox(proxy=("--log-sessions", "no")) as box:
        box.proxy.kill_worker()
        wait_for(lambda: box.proxy.times_served() == 1, "the second worker")
        before = descriptors(box)
        with Stress(box, **ALL_KINDS) as load:
            restarts = Restarts(box, load)
            while restarts.count() < RESTARTS:
                share = CONNECTIONS * restarts.count() / RESTARTS
                load.wait(lambda report: report["connections"] >= share, "connections", 300)
                time.sleep(random.expovariate(1 / 0.05))
                random.choice((restarts.kill, restarts.reload))()
            load.wait(lambda report: report["connections"] >= CONNECTIONS, "connections", 300)
            report = load.finish()
        print(f"# {restarts.figures()}")
        print_load(report)
        box.wait_no_records()
        wait_for(lambda: descriptors(box) == before, "as few descriptors as before")
        print(f"# records left: 0; descriptors but pipes before and after: {len(before)}")
        counters = box.counters()
        assert counters["accepted_unknown"] == counters["no_record_space"] == 0, counters


main()
