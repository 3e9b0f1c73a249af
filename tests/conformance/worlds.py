# SPDX-License-Identifier: BSD-2-Clause
"""
The two worlds in which every scenario is run: network namespaces that are alike, one with the hooks
and a tproxyd, one without. Within a world several workers take runs from a queue.
"""

import contextlib
import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

from harness import Sandbox, run, system, wait_for

from . import reflector, registry, torture
from .stage import Stage, libc

PR_SET_PDEATHSIG = 1
WORKERS = 6  # they mostly wait
STUCK = 120  # seconds for one run

# Beyond loopback: a neighbour with servers, one that is not there, the reflector, bad routes.
NETWORK = """
link set near0 up
link set far1 up
address add 10.79.0.1/24 dev near0
address add fd79::1/64 dev near0 nodad
route add 10.81.0.0/24 via 10.79.0.2
route add fd81::/64 via fd79::2
address add 10.82.1.1/32 dev far1
address add fd82:1::1/128 dev far1 nodad
route add 10.82.0.0/24 dev far1
route add fd82::/64 dev far1
route add blackhole 10.80.1.0/24
route add unreachable 10.80.2.0/24
route add prohibit 10.80.3.0/24
route add throw 10.80.4.0/24
route add blackhole fd80:1::/64
route add unreachable fd80:2::/64
route add prohibit fd80:3::/64
route add throw fd80:4::/64
route add 10.80.2.128/25 dev far1
route add fd80:2:0:0:1::/80 dev far1
"""

FAR = """
link set lo up
link set far0 up
address add 10.79.0.2/24 dev far0
address add fd79::2/64 dev far0 nodad
address add 10.81.0.1/32 dev lo
address add fd81::1/128 dev lo nodad
"""

SYSCTLS = """
net/ipv4/neigh/near0/retrans_time_ms=50
net/ipv4/neigh/near0/mcast_solicit=1
net/ipv6/neigh/near0/retrans_time_ms=50
net/ipv6/neigh/near0/mcast_solicit=1
net/ipv4/tcp_fastopen=3
"""

# Host 9 never answers. Host 8 rejects, in the way that the port says.
REJECTS4 = {1: "net-unreachable", 2: "host-unreachable", 3: "prot-unreachable",
            4: "port-unreachable", 5: "net-prohibited", 6: "host-prohibited", 7: "admin-prohibited"}
REJECTS6 = {1: "no-route", 2: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable",
            5: "policy-fail", 6: "reject-route"}
REJECT_TCP = 8
MARK, MARK_PORT = 77, 7077  # that mark is rejected at that port


def firewall():
    rules = ["ip daddr 10.77.0.9 drop", "ip6 daddr fd77::9 drop"]
    rules += [f"ip daddr 10.77.0.8 tcp dport {port} reject with icmp type {code}"
              for port, code in REJECTS4.items()]
    rules += [f"ip6 daddr fd77::8 tcp dport {port} reject with icmpv6 type {code}"
              for port, code in REJECTS6.items()]
    rules += [f"ip daddr 10.77.0.8 tcp dport {REJECT_TCP} reject with tcp reset",
              f"ip6 daddr fd77::8 tcp dport {REJECT_TCP} reject with tcp reset"]
    marked = f"meta mark {MARK} tcp dport {MARK_PORT} reject with tcp reset"
    return ("table inet conform { chain i { type filter hook input priority 0; "
            + " ; ".join(rules) + " ; } ; chain o { type filter hook output priority 0; "
            + marked + " ; } ; }")


def fork(function, *args):
    """Runs function in a child, which ends with its parent at the latest. Returns its pid."""
    sys.stdout.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    status = 1
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            raise ChildProcessError("the parent has gone already")
        function(*args)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(status)


def reflect():
    """Starts a reflector. It ends when the descriptor that this returns is closed everywhere."""
    end, stop = os.pipe()
    made = reflector.Reflector()

    def serve():
        os.close(stop)
        made.serve(end)

    fork(serve)
    os.close(end)
    os.close(made.fd)
    return stop


@contextlib.contextmanager
def network():
    """A network namespace for this process, linked with a far one, of which it gives a handle."""
    if libc.unshare(system.CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    system.setup_network()
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) as holder:
        here = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != here, "the far namespace")
        run(["ip", "link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns",
             holder.pid])
        run(["nsenter", "-t", holder.pid, "-n", "ip", "-batch", "-"], input=FAR)
        stop = reflect()
        run(["ip", "-batch", "-"], input=NETWORK)
        run(["nft", "-f", "-"], input=firewall())
        for line in SYSCTLS.split():
            path, _, value = line.partition("=")
            with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
                file.write(value)
        with open(f"/proc/{holder.pid}/ns/net", "rb") as handle:
            yield handle
        holder.stdin.close()
        os.close(stop)


class Stuck(Exception):
    """A run did not end; what it hangs in is in the traceback."""


def _stuck(*_):
    raise Stuck(f"did not end within {STUCK} s")


def perform(job, far):
    """Runs one job. Returns its transcript."""
    name, family, mode = job
    stage = Stage(family, mode == "blocking", far)
    signal.setitimer(signal.ITIMER_REAL, STUCK)
    try:
        if name == torture.NAME:
            torture.session(stage, mode)
        else:
            registry.scenarios[name][0](stage)
    except Exception as error:  # a difference, if the other world does not raise the same
        stage.note("raised", f"{type(error).__name__}: {error}")
        stage.trouble = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        stage.close()
    return stage


def work(jobs, queue, far, out):
    """Takes indexes into jobs from the pipe `queue` until one is beyond them."""
    signal.signal(signal.SIGALRM, _stuck)
    while (index := struct.unpack("=I", os.read(queue, 4))[0]) < len(jobs):
        started = time.monotonic()
        stage = perform(jobs[index], far)
        result = [index, stage.transcript, stage.trouble, time.monotonic() - started]
        os.write(out.fileno(), (json.dumps(result) + "\n").encode())


def workers(jobs, queue, far, out):
    pids = [fork(work, jobs, queue, far, out) for _ in range(WORKERS)]
    for pid in pids:
        os.waitpid(pid, 0)


def direct(jobs, queue, out):
    with network() as far:
        workers(jobs, queue, far, out)


def proxied(jobs, queue, out):
    with network() as far, Sandbox() as box:
        with box.inside():
            workers(jobs, queue, far, out)
        proof = box.counters()
        os.write(out.fileno(), (json.dumps(["counters", proof, box.proxy.log()]) + "\n").encode())


def outcomes(jobs):
    """Runs all jobs in both worlds, at the same time. Returns {index: result} of either."""
    worlds = []
    for world in (direct, proxied):
        out = tempfile.NamedTemporaryFile(prefix="conform-", mode="a+b")
        reader, writer = os.pipe()
        pid = fork(world, jobs, reader, out)
        os.close(reader)
        worlds.append((pid, writer, out))
    for index in range(len(jobs) + WORKERS):
        for _, writer, _ in worlds:
            with contextlib.suppress(BrokenPipeError):  # its workers died; their results will lack
                os.write(writer, struct.pack("=I", index))
    found = []
    for pid, writer, out in worlds:
        os.close(writer)
        os.waitpid(pid, 0)
        out.seek(0)
        found.append({index: rest for index, *rest in map(json.loads, out)})
    return found
