# SPDX-License-Identifier: BSD-2-Clause
"""
The worker killed before each system call that it makes for a session, or STEPS of them (see
harness/steps.py): the session goes on, and its server sees one connection, not two.
"""

import random
import signal
import socket

from harness import (Failed, Sandbox, Server, Stress, case, case_for, main, quiet_direct_path, tmpdir,
                     wait_for)
from harness.steps import Traced, some

HERE = "10.77.0.1"


def echo_and_reset(connection):
    """To the end of what comes; b"!" asks for a reset instead."""
    while data := connection.recv(100):
        connection.sendall(data)
        if data == b"!":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return


def session(box, server, reset):
    """One, with all that it does compared."""
    with box.connect(server.address) as client:
        client.sendall(b"hello")
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        assert client.getsockname() == server.peers[-1]
        client.sendall(b"!" if reset else b"?")
        assert client.recv(1) == (b"!" if reset else b"?")
        if not reset:
            client.shutdown(socket.SHUT_WR)
        try:
            assert client.recv(1) == b"" and not reset, "FIN, not a reset"
        except ConnectionResetError:
            assert reset, "a reset, not FIN"


def refusal(box, _server, _reset):
    try:
        box.connect((HERE, 9)).close()
        raise Failed("connected to a port where nobody listens")
    except ConnectionRefusedError:
        pass


def kill_points(box, server, what, reset):
    """(call, its number) of each call of an undisturbed session."""
    with tmpdir() as directory:
        log = directory / "strace"
        with Traced(box.proxy.worker, "-o", str(log)):
            what(box, server, reset)
            box.wait_no_records()
        counts, points = {}, []
        for text in log.read_text().splitlines():
            call = text.partition("(")[0]
            if not call.isidentifier():
                continue  # what strace says itself
            counts[call] = counts.get(call, 0) + 1
            points.append((call, counts[call]))
        return points


@case_for({"a session": (session, False, 1), "one that ends with a reset": (session, True, 1),
           "a refusal": (refusal, False, 0)})
def a_worker_may_die_before_any_call(what, reset, connections):
    with Sandbox(proxy=("--log-sessions", "no")) as box, Server(HERE, echo_and_reset) as server:
        points, met = some(kill_points(box, server, what, reset)), 0
        for call, number in points:
            before, served = len(server.peers), box.proxy.times_served()
            with Traced(box.proxy.worker, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}",
                        "-o", "/dev/null") as strace:
                what(box, server, reset)
                box.wait_no_records()
                if strace.process.poll() is not None:
                    met += 1
                    wait_for(lambda: box.proxy.times_served() > served, "the next worker")
            made = len(server.peers) - before
            assert made == connections, f"{made} connections, killed before {call} number {number}"
        print(f"# {met} of {len(points)} calls were met")
        assert met > len(points) / 2, (met, points)


@case
def a_worker_may_die_before_any_call_under_load():
    """
    With other sessions' events in hand as well. A second connection made for a client, which no
    client would see, is one that the server still has at the end.
    """
    quiet_direct_path()
    with Sandbox(proxy=("--log-sessions", "no")) as box, Stress(box, short=16, rate=500) as load:
        for call in ("socket", "setsockopt", "connect", "sendto", "accept4", "epoll_ctl", "splice",
                     "shutdown", "close", "setsockopt", "sendto", "setsockopt"):
            for number in random.sample(range(1, 20), 3):
                # Workers that die one after the other are started after pauses.
                made, served = load.check()["connections"], box.proxy.times_served()
                load.wait(lambda report: report["connections"] > made + 40, "load")
                with Traced(box.proxy.worker, "-e", f"trace={call}", "-e",
                            f"inject={call}:signal=KILL:when={number}", "-o", "/dev/null"):
                    load.wait(lambda _: box.proxy.times_served() > served, "the next worker")
        load.finish()
        box.wait_no_records()


main()
