# SPDX-License-Identifier: BSD-2-Clause
"""
All kinds of load at a steady rate, and nothing grows: `make soak` for MINUTES=30, here for some
seconds. The first half of the time tproxyd is killed, reloaded, and its hooks are replaced; in the
second one worker serves all the time, as memory that it lost would go with it.

What grows is told from what varies by a line fitted to the samples of each half's second half (the
first lets pools and pages fill). A quantity has grown if the line rises by more than three of its
standard errors, which noise does once in 700 fits, and by more than is allowed below. That is chosen
as less than what one object lost in a thousand sessions comes to in 30 minutes, and no more than what
the sessions that happen to be open when a sample is taken come to.
"""

import math
import os
import pathlib
import random
import time

from harness import Sandbox, Stress, case, main, quiet_direct_path
from harness.pins import pretend_another_build

SECONDS = 60 * float(os.environ.get("MINUTES", "0.4"))
SAMPLES = 120  # a half, in a long run
RATE = 300     # short requests a second
LOAD = {"short": 32, "rate": RATE, "echo": 100, "half": 20, "late": 4, "bulk": 2, "mb": 32, "pace": 2000}

# What each may rise by in a quarter of the time.
ALLOWED = {
    "master, kB": 256,
    "worker, kB": 512,
    "cgroup memory, kB": 4096,
    "descriptors": 30,
    "pipes": 30,
    "records": 60,
    "ports": 60,
    "failed": 30,
    "sockets": 60,
    "log, bytes a restart": 600,
}


def memory_kb(pid):
    """Its own, and what of the sessions' table it has touched; not what it has mapped of files."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon:", "RssShmem:")))


def sockets_here():
    """TCP sockets of this namespace, but those in TIME_WAIT, which the clients' pace decides."""
    total = 0
    for table in ("sockstat", "sockstat6"):
        for line in pathlib.Path(f"/proc/thread-self/net/{table}").read_text().splitlines():
            if line.startswith("TCP"):
                words = line.split()
                total += sum(int(words[words.index(name) + 1]) for name in ("inuse", "orphan")
                             if name in words)
    return total


def sample(box, restarts):
    kinds = box.proxy.descriptors()
    taken = {
        "master, kB": memory_kb(box.proxy.pid),
        "worker, kB": memory_kb(box.proxy.worker),
        "descriptors": sum(kind != "pipe" for kind in kinds),
        "pipes": kinds.count("pipe"),
        "records": len(box.map("socks")),
        "ports": len(box.map("ports")),
        "failed": len(box.map("failed")),
        "sockets": sockets_here(),
        "log, bytes a restart": len(box.proxy.log()) / (restarts + 1),
    }
    accounted = box.servers / "memory.current"  # where the controller is on
    if accounted.exists():
        taken["cgroup memory, kB"] = int(accounted.read_text()) // 1024
    return taken


def rise(values):
    """Of the line that fits best, from its first to its last point, and the standard error."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    square = sum((x - middle) ** 2 for x in range(count))
    slope = sum((x - middle) * (y - mean) for x, y in enumerate(values)) / square
    rest = sum((y - mean - slope * (x - middle)) ** 2 for x, y in enumerate(values))
    return slope * (count - 1), math.sqrt(rest / (count - 2) / square) * (count - 1)


class Disturbances:
    """One of each in turn."""

    def __init__(self, box):
        self.box, self.restarts, self.hooks, self.turn = box, 0, 0, 0

    def _served_again(self, load, before):
        load.wait(lambda _: self.box.proxy.times_served() > before, "the next worker")
        self.restarts += 1

    def replace_hooks(self):
        pretend_another_build(self.box)
        self.box.load()
        self.hooks += 1

    def make(self, load, with_restarts):
        proxy, before = self.box.proxy, self.box.proxy.times_served()
        self.turn += 1
        if self.turn % 3 == 0 or not with_restarts:
            self.replace_hooks()
        elif self.turn % 3 == 1 and proxy.kill_worker():
            self._served_again(load, before)
        else:
            proxy.reload()
            self._served_again(load, before)


def half(box, load, disturbances, with_restarts):
    """The samples of one half of the time."""
    interval = max(SECONDS / 2 / SAMPLES, 0.2)
    start, taken = time.monotonic(), []
    while (now := time.monotonic() - start) < SECONDS / 2:
        load.check()
        if random.random() < min(1, interval / 2):  # every other second
            disturbances.make(load, with_restarts)
        taken.append(sample(box, disturbances.restarts))
        time.sleep(max(0, interval - (time.monotonic() - start - now)))
    return taken


def judge(halves):
    """Prints a row for each quantity; returns what has grown."""
    grown = []
    print(f"# {'':22} {'first':>9} {'least':>9} {'most':>9} {'last':>9}   rises with and without restarts"
          "   allowed")
    for name in halves[0][0]:
        series = [[taken[name] for taken in samples] for samples in halves]
        every = series[0] + series[1]
        rises = [rise(values[len(values) // 2:]) for values in series]
        words = "   ".join(f"{by:+9.1f} +- {error:6.1f}" for by, error in rises)
        print(f"# {name:22} {every[0]:9.0f} {min(every):9.0f} {max(every):9.0f} {every[-1]:9.0f}   {words}"
              f"   {ALLOWED[name]:7}")
        if any(by > ALLOWED[name] and by > 3 * error for by, error in rises):
            grown.append(name)
    return grown


@case
def nothing_grows():
    quiet_direct_path()
    with Sandbox(proxy=("--log-sessions", "no")) as box, Stress(box, nice=1, **LOAD) as load:
        load.wait(lambda report: report["connections"] > 200, "load")
        disturbances = Disturbances(box)
        for _ in range(3):
            disturbances.make(load, True)
        halves = [half(box, load, disturbances, with_restarts) for with_restarts in (True, False)]
        report = load.finish()
        print(f"# {report['connections']} connections, {report['bytes'] / 1e9:.2f} GB, in "
              f"{report['ms'] / 1000:.0f} s; {disturbances.restarts} restarts, hooks replaced "
              f"{disturbances.hooks} times; {len(halves[0])} and {len(halves[1])} samples")
        grown = judge(halves)
        assert not grown, f"this grows: {', '.join(grown)}"
        box.wait_no_records()


main()
