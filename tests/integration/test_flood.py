# SPDX-License-Identifier: BSD-2-Clause
"""Many short connections: every record goes, however the connection ended."""

import os
import pathlib
import select
import signal
import socket
import subprocess
import time

from harness import Sandbox, case, case_for, main, program, wait_for
from harness.system import WITH_TEST

PORT = "7777"
BURST = 5000


class FloodServer:
    """tests/programs/flood.c, outside of the cgroup."""

    def __init__(self, address):
        self.process = subprocess.Popen([*WITH_TEST, program("flood"), "serve", address, PORT],
                                        stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def few_time_waits():
    """
    60,000 ports in TIME_WAIT would be the test's limit, not the proxy's: connect() then searches
    for seconds. Beyond this number the kernel keeps no more of them in this namespace.
    """
    pathlib.Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").write_text("2000")


def assert_flood(box, mode, address, count):
    done = box.run([program("flood"), mode, address, PORT, count])
    assert done.stdout == "0 failed\n", done.stdout


def settled(box):
    """No record left, and the counters say where each connection went."""
    box.wait_no_records()
    counters = box.counters()
    assert counters["record_freed"] == counters["redirected"], counters
    assert counters["accepted_unknown"] == counters["no_record_space"] == 0, counters
    assert counters["no_port_space"] == 0, counters
    return counters


@case_for({"IPv4": ("10.77.0.1", 100000), "IPv6": ("fd77::1", 20000)})
def short_connections_leave_no_record(address, count):
    """A third each: byte there and back; the same, ended by a reset; closed at once."""
    few_time_waits()
    with Sandbox(proxy=("--log-sessions", "no")) as box, FloodServer(address):
        assert_flood(box, "mix", address, count)
        assert settled(box)["redirected"] >= count


@case
def connections_that_nobody_accepts_leave_no_record():
    """With the proxy stopped they end in its backlog, or with their SYN dropped."""
    few_time_waits()
    with Sandbox(proxy=("--log-sessions", "no")) as box, FloodServer("10.77.0.1"):
        for _ in range(4):
            os.kill(box.proxy.worker, signal.SIGSTOP)
            assert_flood(box, "abandon", "10.77.0.1", 10000)
            os.kill(box.proxy.worker, signal.SIGCONT)
            settled(box)
        assert_flood(box, "echo", "10.77.0.1", 1000)
        assert settled(box)["redirected"] >= 41000


def sockets(box):
    """How many are open; pipes are kept for reuse, up to a limit of their own."""
    return box.proxy.descriptors().count("socket")


@case
def no_socket_is_left_open():
    few_time_waits()
    with Sandbox(proxy=("--log-sessions", "no")) as box, FloodServer("10.77.0.1"):
        before = sockets(box)
        assert_flood(box, "mix", "10.77.0.1", 10000)
        settled(box)
        wait_for(lambda: sockets(box) == before, "as few sockets as before")


def burst(count, address=("10.77.0.1", int(PORT))):
    """That many connect() at once, then a byte there and back each. Returns seconds until the last."""
    begin, waiting, poller = time.monotonic(), {}, select.epoll()
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        waiting[client.fileno()] = client
        poller.register(client, select.EPOLLOUT)
    while waiting:
        events = poller.poll(60)
        assert events, f"{len(waiting)} of {count} had no answer"
        for fd, event in events:
            if event == select.EPOLLOUT:
                waiting[fd].send(b"x")
                poller.modify(fd, select.EPOLLIN)
            else:
                with waiting.pop(fd) as client:
                    assert client.recv(2) == b"x"
    return time.monotonic() - begin


@case
def thousands_of_connects_at_once_are_all_served():
    """All of one user, who fills his share of the ring: the rest come by their second SYN."""
    few_time_waits()
    with Sandbox(proxy=("--log-sessions", "no")) as box, FloodServer("10.77.0.1"):
        direct = burst(BURST)
        with box.inside():
            proxied = [burst(BURST) for _ in range(3)]
        print(f"# {BURST} at once: {direct:.2f} s direct, "
              f"{' '.join(f'{one:.2f}' for one in proxied)} s proxied")
        assert settled(box)["redirected"] >= 3 * BURST


@case
def a_proxy_killed_under_load_leaves_no_record():
    few_time_waits()
    with Sandbox(proxy=("--log-sessions", "no")) as box, FloodServer("10.77.0.1"):
        client = box.popen([program("flood"), "mix", "10.77.0.1", PORT, "20000"],
                           stdout=subprocess.PIPE)
        for _ in range(3):
            base = box.counters()["accepted"]
            wait_for(lambda: box.counters()["accepted"] > base + 1000, "load")
            box.proxy.stop(signal.SIGKILL)
            box.proxy = box.start_proxy("--log-sessions", "no")
        client.communicate()
        box.wait_no_records()


main()
