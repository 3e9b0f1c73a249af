# SPDX-License-Identifier: BSD-2-Clause
"""The machine: namespaces, cgroups, processes, bpftool."""

import contextlib
import ctypes
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
O = (ROOT / os.environ.get("O", "build")).resolve()
LOAD, TPROXYD, TPROXY = (str(O / name) for name in ("tproxy-load", "tproxyd", "tproxy"))

# Names of what a run makes begin with this, so that the runner can sweep after a killed test.
RUN_PREFIX = os.environ.get("TPTEST_RUN", f"tptest-{os.getpid()}")

# For a condition that must come true; long, because only a failing test waits for its end.
DEADLINE = 20

UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
                "--bounding-set=-all", "--no-new-privs"]

# A server outside of a sandbox's cgroup, which nobody sweeps, must end with the test at the latest.
WITH_TEST = ["setpriv", "--pdeathsig", "KILL"]

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
PR_SET_PDEATHSIG = 1

# Addresses on lo of every sandbox: servers may listen on any of them.
ADDRESSES = [f"10.77.0.{n}" for n in range(1, 10)] + [f"fd77::{n}" for n in range(1, 10)]

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


class Failed(AssertionError):
    """A check of a test did not hold."""


def _call(name, *args):
    if getattr(_libc, name)(*args):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def unique(prefix=RUN_PREFIX):
    """A name for an instance or a cgroup that nobody else has."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


def program(name):
    """A helper of tests/programs, as built."""
    return str(O / "tests" / name)


def run(command, check=True, **options):
    """Runs a command to its end; its output is text, both streams in .stdout and .stderr."""
    done = subprocess.run([str(word) for word in command], text=True, errors="replace",
                          capture_output=True, timeout=options.pop("timeout", 120), **options)
    if check and done.returncode:
        raise Failed(f"exit code {done.returncode} of: {' '.join(map(str, command))}\n"
                     f"{done.stdout}{done.stderr}")
    return done


def wait_for(condition, what, deadline=DEADLINE):
    """Calls condition() until it gives something true, and returns that. `what` is a text, or makes
    one of what there is at the deadline."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"still waiting for: {what() if callable(what) else what}")
        time.sleep(0.005)


def children(pid):
    """Their pids, oldest first."""
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(pid):
    """
    A process that is not our child may stay a zombie for as long as we run. A zombie has closed what it
    had open; before that, /proc/PID/fd is empty for an instant.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def bpftool(*words):
    """Runs bpftool and returns what it says, from JSON."""
    return json.loads(run(["bpftool", "-j", *words]).stdout or "null")


@contextlib.contextmanager
def tmpdir():
    """A directory, readable to all, that goes with the block."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="tptest-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- isolation ------------------------------------------------------------------------------------

def setup_network():
    """Brings up lo of the current network namespace with the tests' addresses."""
    lines = ["link set lo up"]
    for address in ADDRESSES:
        lines.append(f"address add {address}/{128 if ':' in address else 32} dev lo"
                     + (" nodad" if ":" in address else ""))
    run(["ip", "-batch", "-"], input="\n".join(lines))


# An empty bpffs; an empty /run, but for the locks by which our programs know each other's cgroups.
MOUNTS = """
mount -n --make-rprivate /
while mountpoint -q /sys/fs/bpf; do umount -n /sys/fs/bpf; done
mount -n -t bpf -o mode=0700 bpf /sys/fs/bpf
mkdir -p -m 0700 /run/tproxy-load
mount -n -t tmpfs -o mode=0755 tmpfs /mnt
mkdir -m 0700 /mnt/tproxy-load
mount -n --bind /run/tproxy-load /mnt/tproxy-load
mount -n --move /mnt /run
"""


def isolate():
    """
    Puts the test file in network and mount namespaces of its own: pins, links, addresses and
    sockets go with the process, however it ends.
    """
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    run(["sh", "-euc", MOUNTS])
    setup_network()


@contextlib.contextmanager
def in_netns(handle):
    """Sockets made in the block by this thread are of the namespace that `handle` is open on."""
    with open("/proc/thread-self/ns/net", "rb") as before:
        _call("setns", handle.fileno(), CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)


@contextlib.contextmanager
def new_netns():
    """A further network namespace, set up like the first; gives an open handle of it."""
    with open("/proc/thread-self/ns/net", "rb") as before:
        _call("unshare", CLONE_NEWNET)
        try:
            setup_network()
            handle = open("/proc/thread-self/ns/net", "rb")
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)
    with handle:
        yield handle


# --- cgroups --------------------------------------------------------------------------------------

def cgroup2_root():
    """Where the cgroup2 hierarchy is mounted."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return pathlib.Path(line.split()[4])
    raise Failed("no cgroup2 hierarchy is mounted")


def cgroup_join(path):
    """Moves this process."""
    (path / "cgroup.procs").write_text("0")


def cgroup_kill(path):
    """Kills what is in a cgroup and below it; before Linux 5.14 all that is seen to be there."""
    if (path / "cgroup.kill").exists():
        (path / "cgroup.kill").write_text("1")
        return
    for listed in path.rglob("cgroup.procs"):
        for pid in listed.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def cgroup_remove(path):
    """Kills what is in a cgroup and below it, then removes it all."""
    if not path.exists():
        return

    def emptied():
        cgroup_kill(path)
        return "populated 0" in (path / "cgroup.events").read_text()

    wait_for(emptied, f"the processes of {path} to end")
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)
