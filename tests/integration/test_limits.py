# SPDX-License-Identifier: BSD-2-Clause
"""What one program may take, how long a session may be silent, and the counters that tell."""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import time

from harness import NO_SHARES, UNHELD, Failed, Sandbox, Server, case, connected, echo, main, run, wait_for

OTHER = 65534  # a user who is not us


@contextlib.contextmanager
def as_user(uid):
    """What this process connects in the block is that user's."""
    os.setresuid(uid, 0, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def ping(client, word=b"ping"):
    client.sendall(word)
    assert client.recv(len(word), socket.MSG_WAITALL) == word


def start(box, address, cgroup=None, uid=0):
    """A connection under way."""
    with box.inside(cgroup), as_user(uid):
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(address)
    return client


def ready(client, events):
    waiting = select.poll()
    waiting.register(client, events)
    return bool(waiting.poll(0))


def get_in(box, address, **who):
    """A connection that is let in at once: before its SYN comes a second time."""
    before = time.monotonic()
    client = start(box, address, **who)
    wait_for(lambda: connected(client), f"{who} to be let in")
    assert time.monotonic() - before < 0.9, f"{who} was kept waiting"
    client.settimeout(20)
    ping(client)
    return client


def assert_share_holds(box, server, counter, full, other):
    """`full` has three sessions, which is all; `other` is not concerned; what ends makes room."""
    clients = [get_in(box, server.address, **full) for _ in range(3)]
    waiting = start(box, server.address, **full)
    wait_for(lambda: box.proxy_counters()[counter], counter)
    others = [get_in(box, server.address, **other) for _ in range(3)]
    assert not connected(waiting)
    counters = box.proxy_counters()
    assert counters["sessions"] == counters["accepted"] == 6, counters
    os.kill(box.proxy.worker, signal.SIGKILL)  # its successor counts anew
    box.proxy.wait_log("serving on")
    wait_for(lambda: box.proxy_counters()[counter] > counters[counter], "a further SYN")
    assert not connected(waiting) and box.proxy_counters()["sessions"] == 6
    clients.pop().close()
    wait_for(lambda: connected(waiting), "the waiting one to be let in")
    for client in (*clients, *others):
        ping(client)
        client.close()
    waiting.close()
    wait_for(lambda: not box.proxy_counters()["sessions"], "no session")
    box.proxy.wait_log("have to wait")


@case
def a_user_over_his_share_waits_and_nobody_else():
    words = ("--max-sessions-per-uid", "3")
    with Sandbox(proxy=words) as box, Server("10.77.0.1", echo) as server:
        assert_share_holds(box, server, "over_uid_share", {"uid": OTHER}, {"uid": 0})


@case
def a_cgroup_over_its_share_waits_and_nobody_else():
    words = ("--max-sessions-per-cgroup", "3")
    with Sandbox(proxy=words) as box, Server("10.77.0.1", echo) as server:
        cgroups = [box.clients / name for name in ("a", "b")]
        for cgroup in cgroups:
            cgroup.mkdir()
        assert_share_holds(box, server, "over_cgroup_share", *({"cgroup": cgroup} for cgroup in cgroups))


@case
def by_default_a_tenth_is_left_for_others():
    with Sandbox(proxy=("--max-sessions", "10")) as box, Server("10.77.0.1", echo) as server:
        clients = [get_in(box, server.address) for _ in range(9)]
        waiting = start(box, server.address)
        wait_for(lambda: box.proxy_counters()["over_uid_share"], "the tenth to be told to wait")
        (box.clients / "other").mkdir()
        with get_in(box, server.address, uid=OTHER, cgroup=box.clients / "other"):
            assert not connected(waiting)
        for client in (*clients, waiting):
            client.close()


@case
def without_hold_who_is_over_the_share_is_reset():
    words = (*UNHELD, "--max-sessions-per-uid", "2")
    with Sandbox(proxy=words) as box, Server("10.77.0.1", echo) as server:
        clients = [get_in(box, server.address, uid=OTHER) for _ in range(2)]
        over = start(box, server.address, uid=OTHER)
        wait_for(lambda: ready(over, select.POLLIN), "a reset")
        try:
            raise Failed(f"no reset, but {over.recv(1)!r}")
        except ConnectionResetError:
            pass
        get_in(box, server.address).close()
        assert box.proxy_counters()["over_uid_share"] == 1
        for client in clients:
            ping(client)


@case
def the_status_shows_what_a_proxy_counted():
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        with get_in(box, server.address):
            tree = json.loads(box.tool("status", "--json").stdout)
            counters = tree["instances"][0]["proxies"][0]["counters"]
            assert counters["sessions"] == counters["accepted"] == 1, counters
            assert counters == {name: int(value) for name, value in box.proxy_counters().items()}
            assert "1  sessions open now (sessions)" in box.tool("status").stdout
        before = box.proxy_counters()
        box.proxy.process.send_signal(signal.SIGHUP)
        box.proxy.wait_log("serving on")
        assert box.proxy_counters()["accepted"] == before["accepted"] == 1
        box.proxy.stop()
        box.proxy = box.start_proxy()
        assert box.proxy_counters()["accepted"] == 0, "another tproxyd begins at 0"


# --- the doorman's ring ---------------------------------------------------------------------------

@case
def a_flood_of_one_user_leaves_room_in_the_ring():
    """The worker reads nothing meanwhile: what does not find a place waits for a second SYN."""
    with contextlib.ExitStack() as stack:
        box = stack.enter_context(Sandbox(proxy=NO_SHARES))
        servers = [stack.enter_context(socket.create_server(("10.77.0.1", 0), backlog=4096))
                   for _ in range(3)]  # nobody accepts
        mine, *others = [server.getsockname() for server in servers]
        os.kill(box.proxy.worker, signal.SIGSTOP)
        flood = [start(box, others[i % 2], uid=OTHER) for i in range(6000)]
        refused = int(box.proxy_counters()["over_ring_share"])
        assert refused >= 1000, box.proxy_counters()
        assert not box.counters()["hold_no_space"]
        ours = [start(box, mine) for _ in range(1000)]
        assert box.counters()["held"] >= 7000 - refused, "no place for others"
        held = box.counters()["held"]
        os.kill(box.proxy.worker, signal.SIGCONT)
        wait_for(lambda: all(map(connected, ours)), "the others to be let in")
        assert box.counters()["held"] < held + len(flood), "only by a second SYN"
        # In a guest without hardware virtualisation it takes more than a minute.
        wait_for(lambda: all(map(connected, flood)), "the flood to be let in", 150)
        for client in (*flood, *ours):
            # Not by FIN: who finds an accept queue full goes on by his timer, which doubles.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        wait_for(lambda: not box.map("socks"), "the records to go")


# --- time -----------------------------------------------------------------------------------------

def reset_after(client):
    """Seconds until the reset that must come."""
    begin = time.monotonic()
    try:
        raise Failed(f"no reset, but {client.recv(1)!r}")
    except ConnectionResetError:
        return time.monotonic() - begin


@case
def a_session_that_is_silent_for_idle_timeout_is_reset():
    with Sandbox(proxy=("--idle-timeout", "800ms")) as box, Server("10.77.0.1", echo) as server:
        busy, idle = (get_in(box, server.address) for _ in range(2))
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            ping(busy)
            time.sleep(0.05)
        idle.setblocking(False)
        assert reset_after(idle) < 0.1
        assert 0.7 < reset_after(busy) < 1.5
        counters = box.proxy_counters()
        assert counters["idle_timeout"] == 2 and not counters["half_closed_timeout"], counters
        box.proxy.wait_log("end=idle-timeout")
        wait_for(lambda: not box.proxy_counters()["sessions"], "no session")


@case
def a_session_with_one_direction_left_is_reset_after_half_closed_timeout():
    def one_way(connection):
        while connection.recv(100):
            pass
        for _ in range(20):
            connection.sendall(b"x")
            time.sleep(0.05)
        time.sleep(20)

    with Sandbox(proxy=("--half-closed-timeout", "500ms")) as box, \
            Server("10.77.0.1", one_way) as server, Server("10.77.0.1", echo) as other:
        whole = get_in(box, other.address)
        client = box.connect(server.address)
        client.shutdown(socket.SHUT_WR)
        assert b"".join(client.recv(1) for _ in range(20)) == b"x" * 20, "bytes still came"
        assert 0.4 < reset_after(client) < 1.5
        box.proxy.wait_log("end=half-closed-timeout")
        assert box.proxy_counters()["half_closed_timeout"] == 1
        ping(whole)


def timers(port):
    """What runs on the sockets connected to a server's port, other than the server's own."""
    rows = run(["ss", "-tnoH", "state", "established", f"dport = {port}"]).stdout.splitlines()
    assert len(rows) == 1, rows
    return rows[0]


@case
def keepalive_is_asked_of_the_server_only_if_wanted():
    with Server("10.77.0.1", echo) as server:
        for words, wanted in (((), None), (("--keepalive", "7s"), "timer:(keepalive,")):
            with Sandbox(proxy=words) as box, get_in(box, server.address):
                row = timers(server.port)
                assert (wanted or "keepalive") in row if wanted else "keepalive" not in row, row
                assert not wanted or "(keepalive,6." in row or "(keepalive,7" in row, row


resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
main()
