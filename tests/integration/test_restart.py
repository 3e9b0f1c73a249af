# SPDX-License-Identifier: BSD-2-Clause
"""
tproxyd restarts under load in every way it can, and nobody notices: no connection is refused, reset
or misdirected, no byte is wrong. `make restarttest` makes a long run of it. RESTARTS and
CONNECTIONS set how many there are at least; UPGRADES, KILLS and MEGABYTES are for the long sessions.
"""

import contextlib
import os
import random
import shutil
import statistics
import time

from harness import (TPROXYD, Sandbox, Stress, case, main, quiet_direct_path, run, tmpdir,
                     wait_for)
from harness.system import has_ended

RESTARTS = int(os.environ.get("RESTARTS", "30"))
CONNECTIONS = int(os.environ.get("CONNECTIONS", "0"))
UPGRADES = int(os.environ.get("UPGRADES", "5"))
KILLS = int(os.environ.get("KILLS", "20"))
MEGABYTES = int(os.environ.get("MEGABYTES", "64"))
OTHER_BUILD = os.environ.get("OTHER_BUILD")

WORDS = ("--log-sessions", "no")
ALL_KINDS = {"short": 64, "echo": 100, "half": 20, "late": 4, "bulk": 2, "mb": 64, "pace": 4000}


def descriptors(box):
    """But for pipes, of which some are kept for reuse, and for the log, of which each tproxyd has one."""
    return [kind for kind in box.proxy.descriptors() if kind != "pipe" and "(deleted)" not in kind]


class Restarts:
    """Makes them, and knows how long nobody served."""

    def __init__(self, box, load):
        self.box, self.load = box, load
        self.gaps = {"kills of the worker": [], "reloads": [], "kills of the master": [], "takeovers": []}
        self.early = 0  # kills that most likely met a worker before it served

    def _until_served(self, how, before):
        start = time.monotonic()
        wait_for(lambda: self.box.proxy.times_served() > before or self.load.check() is None,
                 "the next worker")
        self.gaps[how].append((time.monotonic() - start) * 1000)

    def kill(self):
        """Of the worker, wherever it is; of some also the next one, while it takes over."""
        proxy = self.box.proxy
        before, killed = proxy.times_served(), proxy.kill_worker()
        if not killed:
            return
        while random.random() < 0.2:
            last = killed
            killed = wait_for(lambda: proxy.kill_worker(but=last), "the next worker")
            self.early += 1
        self._until_served("kills of the worker", before)

    def reload(self):
        """The gap begins when the binary was found good."""
        proxy = self.box.proxy
        served, began = proxy.times_served(), proxy.times_logged("reloading: becoming")
        proxy.reload()
        wait_for(lambda: proxy.times_logged("reloading: becoming") > began, "the binary's answer")
        self._until_served("reloads", served)

    def kill_master(self):
        """The worker becomes one, and starts another worker."""
        before = self.box.proxy.times_served()
        self.box.proxy.kill_master()
        self._until_served("kills of the master", before)

    def take_over(self):
        """Another tproxyd does, and this one ends."""
        before = self.box.proxy
        newcomer = self.box.proxy = self.box.start_proxy(*WORDS, "--takeover", ready=False)
        before.wait_log("takes over")
        self._until_served("takeovers", 0)
        newcomer.wait_ready()
        wait_for(lambda: has_ended(before.pid), "the one before to end")

    def any(self):
        """Half of them by SIGKILL, mostly of the worker. The heir of a master does not reload."""
        is_heir = self.box.proxy.pid != self.box.proxy.process.pid
        killed = random.random() < 0.5
        often, rarely = (self.kill, self.kill_master) if killed else (self.reload, self.take_over)
        if random.random() < 0.2 or (is_heir and not killed):
            rarely()
        else:
            often()

    def count(self):
        return sum(map(len, self.gaps.values()))

    def figures(self):
        each = [f"{len(gaps)} {how}, ms until the next served: median {statistics.median(gaps):.0f}, "
                f"worst {max(gaps):.0f}" for how, gaps in self.gaps.items() if gaps]
        return "; ".join([*each, f"{self.early} more kills of the next worker while it took over"])


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
    quiet_direct_path()
    with Sandbox(proxy=WORDS) as box:
        box.proxy.kill_worker()
        wait_for(lambda: box.proxy.times_served() == 1, "the second worker")
        before = descriptors(box)
        with Stress(box, **ALL_KINDS) as load:
            restarts = Restarts(box, load)
            while restarts.count() < RESTARTS:
                share = CONNECTIONS * restarts.count() / RESTARTS
                load.wait(lambda report: report["connections"] >= share, "connections", 300)
                time.sleep(random.expovariate(1 / 0.05))
                restarts.any()
            load.wait(lambda report: report["connections"] >= CONNECTIONS, "connections", 300)
            report = load.finish()
        print(f"# {restarts.figures()}")
        print_load(report)
        box.wait_no_records()
        wait_for(lambda: descriptors(box) == before, "as few descriptors as before")
        print(f"# records left: 0; descriptors but pipes before and after: {len(before)}")
        counters = box.counters()
        assert counters["accepted_unknown"] == counters["no_record_space"] == 0, counters


@contextlib.contextmanager
def two_builds():
    """A directory to start tproxyd from, and a function that puts the other build in its place."""
    with tmpdir() as scratch:
        place, builds = scratch / "tproxyd", [scratch / "one", scratch / "two"]
        shutil.copy(TPROXYD, builds[0])
        if OTHER_BUILD:
            shutil.copy(OTHER_BUILD, builds[1])
        else:
            run(["strip", "-o", builds[1], TPROXYD])
        shutil.copy(builds[0], place)

        def swap():
            builds.reverse()
            shutil.copy(builds[0], scratch / "new")
            os.rename(scratch / "new", place)

        yield place, swap


def is_running(proxy, binary):
    """Master and worker, as a fork is all that there is between them."""
    return os.stat(f"/proc/{proxy.pid}/exe").st_ino == os.stat(binary).st_ino


@case
def long_sessions_outlive_upgrades_and_kills():
    """Some in mid-hold from the first restart to the last, all others under way all the time."""
    quiet_direct_path()
    seconds = 0.05 * KILLS + 0.4 * UPGRADES
    load = {"short": 8, "rate": 50, "echo": 200, "half": 40, "late": 8, "bulk": 1, "mb": MEGABYTES,
            "pace": max(500, int(MEGABYTES * 1024 / seconds))}
    with two_builds() as (binary, swap), Sandbox(proxy=None) as box:
        box.proxy = box.start_proxy(*WORDS, program=binary)
        with Stress(box, late_ms=0, **load) as stress:
            stress.wait(lambda _: box.counters()["held"] >= 8 + 200 + 40, "sessions")
            restarts = Restarts(box, stress)
            plan = ["kill"] * KILLS + ["reload"] * UPGRADES
            random.shuffle(plan)
            for how in plan:
                time.sleep(random.expovariate(1 / 0.03))
                if how == "reload":
                    swap()
                    restarts.reload()
                    wait_for(lambda: is_running(box.proxy, binary), "the other binary")
                else:
                    restarts.kill()
            before = stress.check()
            assert before["late"] == 0, "a full queue was not full"
            report = stress.finish()
        print(f"# {restarts.figures()}; each reload brought another binary")
        print_load(report)
        assert report["late"] == 8, report
        box.wait_no_records()


main()
