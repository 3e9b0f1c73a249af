# SPDX-License-Identifier: BSD-2-Clause
"""
The system calls by which a command changes what outlives it, and trouble at each of them, or at
STEPS of them picked at random (3; 0: at each); and strace on what runs already.
"""

import os
import random
import re
import signal
import subprocess

from .system import Failed, program, run, tmpdir

# Calls that change what outlives the process; exit_group: everything is done.
CALLS = "bpf,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mount,munmap,exit_group"
CHANGING_BPF = re.compile(
    r"BPF_(OBJ_PIN|LINK_(CREATE|UPDATE|DETACH)|PROG_ATTACH|MAP_(UPDATE|DELETE)_ELEM)")


def traced(command):
    """Such calls of an undisturbed run, as strace writes them."""
    with tmpdir() as directory:
        log = directory / "strace"
        run(["strace", "-qq", "-o", log, "-e", f"trace={CALLS}", *command])
        return log.read_text().splitlines()


def stop_points(command):
    """(call, its number) of each changing call of an undisturbed run."""
    points, counts, changed = [], {}, False
    for text in traced(command):
        call = text.partition("(")[0]
        counts[call] = counts.get(call, 0) + 1
        changes = CHANGING_BPF.search(text) if call == "bpf" else call not in ("munmap",)
        changed = changed or bool(changes)
        # A store into map_config's mapping is no call; it lies before an unmapping.
        if changes or (call == "munmap" and changed):
            points.append((call, counts[call]))
    return points


def run_with(trouble, command, point):
    """The command with strace's `trouble` (signal=KILL, error=ENOMEM) at a point."""
    call, number = point
    return run(["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                f"inject={call}:{trouble}:when={number}", *command], check=False)


def kill_at(command, point):
    done = run_with("signal=KILL", command, point)
    assert done.returncode in (-9, 137), f"not killed at {point}: {done.returncode} {done.stderr}"


# Of the calls that tests/programs/stepper.c stops after.
LOOKUP, UPDATE, DELETE, LOOK, LINK_CREATE, DETACH = (f"bpf {n}" for n in (1, 2, 3, 24, 28, 34))
SWAP = "renameat2 2"


class Stepped:
    """A command that stops after each of such calls, until it is told to go on."""

    def __init__(self, command):
        self.process = subprocess.Popen([program("stepper"), *map(str, command)], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.stopped = False

    def next(self):
        """Goes on to the next call, and returns it; "": the command has ended."""
        if self.stopped:
            self.process.stdin.write("\n")
        call = self.process.stdout.readline().strip()
        self.stopped = bool(call)
        return call

    def to(self, *calls):
        """Goes on to these, one after the other."""
        for wanted in calls:
            while (call := self.next()) != wanted:
                assert call, f"ended before {wanted}"

    def end(self):
        """Lets it go on to its end."""
        while self.next():
            pass
        assert self.process.wait() == 0, self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Kills it where it is, unless it has ended."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


STEPS = int(os.environ.get("STEPS", "3"))


def some(points):
    """So many of them as STEPS says, in their order."""
    if not STEPS or STEPS >= len(points):
        return points
    return [points[i] for i in sorted(random.sample(range(len(points)), STEPS))]


class Traced:
    """strace on a process that runs; it ends with the block, or with the process."""

    def __init__(self, pid, *words):
        self.process = subprocess.Popen(["strace", *words, "-p", str(pid)], stderr=subprocess.PIPE,
                                        text=True)
        if "attached" not in (said := self.process.stderr.readline()):
            raise Failed(f"strace: {said}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)  # it detaches
        self.process.communicate()
