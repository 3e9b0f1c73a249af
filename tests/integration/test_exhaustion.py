# SPDX-License-Identifier: BSD-2-Clause
"""
What runs out: service goes on for what fits, the rest waits or meets the failure policy, a counter
says what it was, tproxyd does not spin, and when there is some again all is as before.
"""

import contextlib
import errno
import os
import pathlib
import resource
import signal
import socket
import struct
import time

from harness import (NO_SHARES, PROXY_PORTS, Sandbox, Server, Skip, case, case_for, connected, echo, main,
                     redirected, run, tmpdir, wait_for)
from harness.steps import Traced

STARVED_S = 3  # for how long CPU time is measured


def ping(client, word=b"ping"):
    client.settimeout(20)
    client.sendall(word)
    got = b""
    while len(got) < len(word):
        more = client.recv(len(word) - len(got))
        assert more, "an end in the middle"
        got += more
    assert got == word, got


def start(box, address):
    """A connection under way."""
    client = box.socket()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect(address)
    return client


def cpu_seconds(box):
    """Of all that runs in tproxyd's cgroup."""
    usage = (box.servers / "cpu.stat").read_text().split()
    return int(usage[usage.index("usage_usec") + 1]) / 1e6


@contextlib.contextmanager
def little_cpu(box):
    """While the block runs, and for some seconds, tproxyd uses less than 5% of a CPU."""
    used, begin = cpu_seconds(box), time.monotonic()
    yield
    time.sleep(max(0, begin + STARVED_S - time.monotonic()))
    share = (cpu_seconds(box) - used) / (time.monotonic() - begin)
    print(f"{share:.1%} of a CPU while starved")
    assert share < 0.05, f"{share:.0%} of a CPU while starved"


def close_with_reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def all_get_in(clients):
    """One ends and makes room for another, until each has been served."""
    waiting = list(clients)
    while waiting:
        for client in wait_for(lambda: [c for c in waiting if connected(c)], "the next to be let in"):
            ping(client)
            client.close()
            waiting.remove(client)


@case
def descriptors():
    with Sandbox(proxy=None) as box, Server("10.77.0.1", echo) as server:
        box.proxy = box.start_proxy(*NO_SHARES, prefix=["prlimit", "--nofile=160:160"])
        clients = [start(box, server.address) for _ in range(80)]
        wait_for(lambda: sum(map(connected, clients)) >= 40, "those that fit")
        wait_for(lambda: box.proxy_counters()["no_descriptors"] >= 30, "no_descriptors")
        fitting = [client for client in clients if connected(client)]
        assert len(fitting) < 60, "all fit"
        with little_cpu(box):
            for client in fitting:
                ping(client)
        all_get_in(clients)
        with box.connect(server.address) as late:
            ping(late)
        box.wait_no_records()


@case
def descriptors_for_pipes():
    """Bytes wait in their sockets, and flow when there are descriptors again."""
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        clients = [box.connect(server.address) for _ in range(20)]
        pid = box.proxy.worker
        wait_for(lambda: box.proxy_counters()["sessions"] == 20, "20 sessions")
        used = len(os.listdir(f"/proc/{pid}/fd"))
        hard = run(["prlimit", "--pid", pid, "--nofile", "--noheadings", "-o", "HARD"]).stdout.strip()
        run(["prlimit", "--pid", pid, f"--nofile={used}:{hard}"])
        with little_cpu(box):
            for client in clients:
                client.sendall(b"ping")
            wait_for(lambda: box.proxy_counters()["no_pipe"] >= 20, "no_pipe")
        assert box.proxy_counters()["no_pipe"] == 20, "counted again while they waited"
        run(["prlimit", "--pid", pid, f"--nofile={hard}:{hard}"])
        for client in clients:
            assert client.recv(4) == b"ping"
            client.close()


@contextlib.contextmanager
def memory_cgroup(box):
    """The cgroup that bounds tproxyd's memory: its own where that can, else one of version 1."""
    if "memory" in (box.cgroup.parent / "cgroup.controllers").read_text():
        for path in (box.cgroup.parent, box.cgroup):
            (path / "cgroup.subtree_control").write_text("+memory")
        yield box.servers, "memory.current", "memory.max"
        return
    own = [line.split(":")[2] for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()
           if line.split(":")[1] == "memory"]
    if not own:
        raise Skip("no memory controller in /proc/self/cgroup")
    path = pathlib.Path(f"/sys/fs/cgroup/memory/{own[0]}", box.name)
    path.mkdir()
    try:
        yield path, "memory.usage_in_bytes", "memory.limit_in_bytes"
    finally:
        box.proxy.end_now()

        def removed():
            with contextlib.suppress(OSError):
                path.rmdir()
            return not path.exists()

        wait_for(removed, f"{path} to be removed")


@case
def memory():
    """At the limit of its cgroup the kernel would kill: new sessions wait before that."""
    with Sandbox(proxy=None) as box, Server("10.77.0.1", echo) as server, \
            socket.create_server(("10.77.0.2", 0), backlog=4096) as crowd, \
            memory_cgroup(box) as (path, usage, limit):
        join = ["sh", "-c", f'echo $$ >{path}/cgroup.procs; exec "$@"', "sh"]
        box.proxy = box.start_proxy(*NO_SHARES, prefix=join)
        (path / limit).write_text(str(int((path / usage).read_text()) + (8 << 20)))
        worker = box.proxy.worker
        old = [box.connect(server.address) for _ in range(10)]
        clients = [start(box, crowd.getsockname()) for _ in range(3000)]
        wait_for(lambda: box.proxy_counters()["no_memory"] >= 100, "no_memory")
        fitting = sum(map(connected, clients))
        assert 500 < fitting < 2900, fitting
        with little_cpu(box):
            for client in old:
                ping(client)
        waiting = clients
        while waiting:
            done = wait_for(lambda: [client for client in waiting if connected(client)], "the next")
            for client in done:
                close_with_reset(client)  # nobody serves it, so a FIN would not end it
            waiting = [client for client in waiting if client.fileno() >= 0]
        with box.connect(server.address) as late:
            ping(late)
        assert box.proxy.worker == worker, "it was killed"


def assert_map_space(policy):
    load = ("--max-connections", "64", "--on-proxy-down", policy)
    with Sandbox(load=load) as box, Server("10.77.0.1", echo) as server:
        clients = [box.connect(server.address) for _ in range(64)]
        before = box.counters()
        with little_cpu(box):
            for client in clients:
                assert redirected(client)
                ping(client)
            for _ in range(10):
                try:
                    with box.connect(server.address) as over:
                        ping(over)
                        assert policy == "direct" and not redirected(over)
                except OSError as error:
                    assert policy == "refuse" and isinstance(error, (ConnectionRefusedError,
                                                                     PermissionError)), error
        after = box.counters()
        name = "passed_by_policy" if policy == "direct" else "refused_by_policy"
        assert after["no_record_space"] - before["no_record_space"] == 10, after
        assert after[name] - before[name] == 10, after
        for client in clients:
            client.close()
        box.wait_no_records()
        with box.connect(server.address) as late:
            ping(late)
            assert redirected(late)


@case_for({policy: (policy,) for policy in ("direct", "refuse")})
def room_in_the_maps(policy):
    assert_map_space(policy)


def few_ports(first, last):
    path = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = path.read_text()
    path.write_text(f"{first} {last}")
    return lambda: path.write_text(before)


@case
def local_ports_of_the_client():
    """What a client meets whose own socket gets no port is the kernel's answer, as ever."""
    with Sandbox() as box, contextlib.ExitStack() as stack:
        # Each server for itself would leave local ports for more connections than there can be.
        servers = [stack.enter_context(Server(f"10.77.0.{n}", echo)) for n in range(1, 9)]
        server = servers[0]
        back = few_ports(40000, 40009)
        try:
            clients = []
            try:
                while True:
                    clients.append(box.connect(servers[len(clients) % len(servers)].address))
                    assert len(clients) <= 10 * PROXY_PORTS
            except OSError as error:
                assert error.errno == errno.EADDRNOTAVAIL, error
            assert len(clients) >= 5, len(clients)
            with little_cpu(box):
                for client in clients:
                    ping(client)
            for client in clients:
                client.close()
            box.wait_no_records()
        finally:
            back()
        with box.connect(server.address) as late:
            ping(late)


@case
def local_ports_of_the_upstream():
    """Others have them all: the proxy's own connect() fails as a direct one would."""
    with Sandbox() as box, Server("10.77.0.1", echo) as server, Server("10.77.0.2", echo) as other:
        back = few_ports(41000, 41009)
        taken = []
        try:
            try:
                while True:
                    taken.append(socket.create_connection(server.address))
            except OSError as error:
                assert error.errno == errno.EADDRNOTAVAIL, error
            errors = []
            with little_cpu(box):
                for _ in range(20):
                    try:
                        box.connect(server.address).close()
                    except OSError as error:
                        errors.append(error.errno)
                with box.connect(other.address) as client:
                    ping(client)
                assert box.counters()["no_local_port"] >= 10
            assert len(errors) == 20 and errors.count(errno.EADDRNOTAVAIL) >= 10, errors
            assert set(errors) <= {errno.EADDRNOTAVAIL, errno.EHOSTUNREACH}, errors
            assert box.proxy_counters()["no_local_port"] >= 1
            for client in taken:
                client.close()
            back()

            def served():
                with contextlib.suppress(OSError), box.connect(server.address) as late:
                    ping(late)
                    return redirected(late)
                return False

            wait_for(served, "a second to pass")
        finally:
            back()


@case
def the_backlog():
    path = pathlib.Path("/proc/sys/net/core/somaxconn")
    before = path.read_text()
    path.write_text("8")
    try:
        with Sandbox() as box, Server("10.77.0.1", echo) as server:
            os.kill(box.proxy.worker, signal.SIGSTOP)
            clients = [start(box, server.address) for _ in range(200)]
            assert not any(map(connected, clients))
            os.kill(box.proxy.worker, signal.SIGCONT)
            begin = time.monotonic()
            wait_for(lambda: all(map(connected, clients)), "all to be let in")
            print(f"all in after {time.monotonic() - begin:.2f} s")
            for client in clients:
                ping(client)
                client.close()
            box.wait_no_records()
    finally:
        path.write_text(before)


# --- the log --------------------------------------------------------------------------------------

def with_stderr(box, path):
    return box.start_proxy("--drain-timeout", "0", prefix=["sh", "-c", f'exec 2>>"{path}"; exec "$@"', "sh"])


def assert_serves(box, server, count):
    for _ in range(count):
        with box.connect(server.address) as client:
            ping(client)


def assert_lines_lost(box, server):
    """Sessions are served, and their lines counted."""
    with little_cpu(box):
        assert_serves(box, server, 200)
    wait_for(lambda: box.proxy_counters()["log_lines_lost"] >= 150, "lost lines")


@case
def memory_for_a_route():
    """What is known of routes is all there, or nothing, and a while later all."""
    def known():
        return {(tuple(entry["key"]["ip"]), entry["key"]["prefixlen"]): entry["value"]
                for entry in box.map("routes")}

    with Sandbox() as box, tmpdir() as directory:
        log, before = directory / "strace", known()
        assert before
        with Traced(box.proxy.worker, "-o", log, "-e", "trace=bpf", "-e",
                    "inject=bpf:error=ENOMEM:when=2"):
            run(["ip", "route", "add", "prohibit", "10.99.0.0/16"])
            try:
                wait_for(lambda: "INJECTED" in log.read_text() and not known(), "nothing to be known")
                wait_for(lambda: len(known()) == len(before) + 1, "all to be known")
            finally:
                run(["ip", "route", "del", "prohibit", "10.99.0.0/16"])
        wait_for(lambda: known() == before, "what there was")


@case
def room_for_the_log_on_a_full_device():
    with Sandbox(proxy=None) as box, Server("10.77.0.1", echo) as server:
        box.proxy = with_stderr(box, "/dev/full")
        assert_lines_lost(box, server)


@case
def room_for_the_log_on_a_full_disk():
    with tmpdir() as directory, Sandbox(proxy=None) as box, Server("10.77.0.1", echo) as server:
        run(["mount", "-n", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory])
        try:
            filling = directory / "filling"
            log = directory / "log"
            log.write_text("begin\n")
            with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            box.proxy = with_stderr(box, log)
            assert_lines_lost(box, server)
            filling.unlink()
            lost = box.proxy_counters()["log_lines_lost"]
            assert_serves(box, server, 3)
            wait_for(lambda: log.read_text().count("end=closed") >= 3, "lines in the log again")
            assert box.proxy_counters()["log_lines_lost"] == lost
            lines = log.read_text().splitlines()
            assert all(text.startswith("tproxyd: ") for text in lines[-3:]), lines
        finally:
            box.proxy.stop()
            os.system(f"umount -n {directory}")


@case
def a_reader_of_the_log():
    """A pipe that nobody reads: full after 64 KiB."""
    with tmpdir() as directory, Sandbox(proxy=None) as box, Server("10.77.0.1", echo) as server:
        path = directory / "log"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(reader, bytes(4096))
        box.proxy = with_stderr(box, path)
        assert_lines_lost(box, server)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(reader, 65536)
        assert_serves(box, server, 3)
        text = b""

        def lines():
            nonlocal text
            with contextlib.suppress(BlockingIOError):
                text += os.read(reader, 65536)
            return text.count(b"end=closed") >= 3

        wait_for(lines, "lines to be read again")
        os.close(reader)


resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
main()
