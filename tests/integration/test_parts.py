# SPDX-License-Identifier: BSD-2-Clause
"""Several tproxyds side by side, each with its part of an instance's ports."""

import collections
import contextlib
import errno
import json
import os
import signal
import socket
import time

from harness import (PROXY_PORT, Sandbox, Server, TPROXYD, UNHELD, case, case_for, echo, exchange, main,
                     redirected, run, wait_for)
from harness.load import HERE, registered

REFUSE = ("--on-proxy-down", "refuse")
CLIENTS = 32  # eight for each port, about


@contextlib.contextmanager
def in_parts(count, *words, load=REFUSE):
    """A box with that many tproxyds, which are box.parts."""
    with Sandbox(load=load, proxy=None) as box:
        box.parts = [box.start_proxy("--part", f"{number}/{count}", *words)
                     for number in range(1, count + 1)]
        yield box


def connect_all(stack, box, server):
    clients = [stack.enter_context(box.connect(server.address)) for _ in range(CLIENTS)]
    for client in clients:
        exchange(client)
        assert redirected(client)
        assert client.getpeername()[:2] == server.address
    return clients


def ports_of(box):
    """How many clients each port has."""
    return collections.Counter(record["proxy_port"] for record in box.records())


def accepted(box):
    """What the tproxyd in each slot has accepted; a slot that nobody has had is 0."""
    return [entry["value"]["accepted"] for entry in box.map("proxies")]


@case_for({"two": (2,), "three": (3,), "four": (4,)})
def clients_are_spread_over_them(count):
    with in_parts(count) as box, Server(HERE, echo) as server, contextlib.ExitStack() as stack:
        assert len(registered(box)) == count
        connect_all(stack, box, server)
        counts = accepted(box)
        assert sum(counts) == CLIENTS, counts
        assert all(counts[:count]) and not any(counts[count:]), counts


@case_for({f"part {part} of {count}, {family}, hold = {hold}": (part, count, address, hold)
           for family, address in (("IPv4", HERE), ("IPv6", "fd77::1"))
           for part, count, hold in ((1, 2, "on"), (2, 2, "on"), (1, 2, "off"), (3, 4, "on"))})
def while_one_is_away_the_others_take_its_clients(part, count, address, hold):
    """Under this policy any of them that went direct would be refused, and any connection of a
    tproxyd that passed for a client's."""
    with in_parts(count, "--hold", hold) as box, Server(address, echo) as server:
        assert box.parts[part - 1].stop() == 0
        with contextlib.ExitStack() as stack:
            connect_all(stack, box, server)
            assert part - 1 not in {(port - PROXY_PORT) % count for port in ports_of(box)}
        box.wait_no_records()
        box.start_proxy("--part", f"{part}/{count}", "--hold", hold)
        with contextlib.ExitStack() as stack:
            connect_all(stack, box, server)
            assert len(ports_of(box)) == 4
        assert box.counters()["refused_by_policy"] == 0


@case_for({"the first": (1,), "the second": (2,)})
def one_that_is_killed_is_replaced_and_nothing_of_the_others_changes(part):
    with in_parts(2) as box, Server(HERE, echo) as server, contextlib.ExitStack() as stack:
        before = registered(box)
        clients = connect_all(stack, box, server)
        others = sum(count for port, count in ports_of(box).items()
                     if (port - PROXY_PORT) % 2 != part - 1)
        assert box.parts[part - 1].stop(signal.SIGKILL)
        successor = box.start_proxy("--part", f"{part}/2")
        after = registered(box)
        assert len(after) == 2 and len(set(before) & set(after)) == 1, (before, after)
        assert successor.worker in after
        box.parts[part - 1] = successor
        kept = 0
        for client in clients:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, AssertionError):
                exchange(client)
                kept += 1
        assert 0 < kept == others < CLIENTS, (kept, others)
        connect_all(stack, box, server)


@case
def each_is_upgraded_by_itself():
    with in_parts(2) as box, Server(HERE, echo) as server, contextlib.ExitStack() as stack:
        clients = connect_all(stack, box, server)
        for number, old in enumerate(list(box.parts), 1):
            box.parts[number - 1] = box.start_proxy("--part", f"{number}/2", "--takeover")
            assert old.wait_exit() == 0, old.log()
            assert "handed over" in old.log(), old.log()
        for part in box.parts:
            served = part.times_served()
            assert part.kill_worker()
            wait_for(lambda: part.times_served() > served, "the next worker")
            part.reload()
            part.wait_log("reloading: becoming")
            wait_for(lambda: part.times_served() > served + 1, "the worker after the reload")
        for client in clients:
            exchange(client)
        connect_all(stack, box, server)
        assert len(registered(box)) == 2


@case
def a_whole_one_clears_what_dead_parts_left():
    with in_parts(3) as box, Server(HERE, echo) as server, contextlib.ExitStack() as stack:
        for part in box.parts:
            part.stop(signal.SIGKILL)
        assert len(registered(box)) == 3
        whole = box.start_proxy()
        assert registered(box) == [whole.worker]
        connect_all(stack, box, server)


@case
def a_part_beside_a_whole_one_says_who_holds_its_port():
    with Sandbox() as box:
        part = box.start_proxy("--part", "2/2", ready=False)
        assert part.wait_exit() == 1
        assert f"127.0.0.1:{PROXY_PORT + 1}" in part.log() and "ss -ltnp" in part.log(), part.log()
        assert registered(box) == [box.proxy.worker]


@case
def one_source_port_to_two_destinations_is_told_apart():
    """Such clients meet at one port, whichever part is away: the second one is left alone."""
    with in_parts(2, load=()) as box, Server(HERE, echo) as one, Server(HERE, echo) as other:
        for away in (None, box.parts[0]):
            if away:
                away.stop()
            before = box.counters()["source_taken"]
            with box.socket() as first, box.socket() as second:
                for client in (first, second):
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                first.bind((HERE, 0))
                second.bind(first.getsockname())
                for client, server in ((first, one), (second, other)):
                    client.connect(server.address)
                    exchange(client)
                assert redirected(first) and not redirected(second)
            assert box.counters()["source_taken"] == before + 1


@contextlib.contextmanager
def address(text):
    """Which also makes a route to it."""
    run(["ip", "addr", "add", text, "dev", "lo"])
    try:
        yield
    finally:
        run(["ip", "addr", "del", text, "dev", "lo"])


def met(box, destination):
    with box.socket() as client:
        return client.connect_ex(destination)


@case_for({f"part {part} is {how}": (part, how)
           for part in (1, 2) for how in ("stopped", "killed", "draining", "ended while draining")})
def routes_are_known_whoever_is_away(part, how):
    """What it has published must not be all that is known, nor stay when routes change."""
    with in_parts(2) as box, Server(HERE, echo) as server, contextlib.ExitStack() as stack:
        gone = box.parts[part - 1]
        if "draining" in how:
            connect_all(stack, box, server)
            gone.process.send_signal(signal.SIGTERM)
            wait_for(lambda: len(registered(box)) == 1, "it to give its slot back")
        else:
            gone.stop(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        assert met(box, ("198.51.100.1", 9)) == errno.ENETUNREACH
        assert box.counters()["no_route"] == 1, "not known to the hooks"
        if how == "ended while draining":
            with address("203.0.113.1/24"):
                time.sleep(0.3)  # published anew, and by whom must not matter
                gone.process.send_signal(signal.SIGTERM)
                assert gone.wait_exit() == 0
        with address("198.51.100.1/24"), Server("198.51.100.1", echo) as other:
            wait_for(lambda: met(box, other.address) == 0, "the route to be known")


@case
def a_worker_that_dies_while_draining_takes_no_slot_from_another_part():
    with in_parts(2) as box, Server(HERE, echo) as server, contextlib.ExitStack() as stack:
        clients = connect_all(stack, box, server)
        first, second = box.parts
        first.process.send_signal(signal.SIGTERM)
        wait_for(lambda: registered(box) == [second.worker], "the first to give its slot back")
        assert second.end_now() == 0
        second = box.start_proxy("--part", "2/2")
        os.kill(first.worker, signal.SIGKILL)
        first.wait_log("serving on as pid")
        ports = {proxy["tgid"]: proxy["port"] for proxy in box.config()["proxies"] if proxy["tgid"]}
        assert ports == {first.worker: PROXY_PORT, second.worker: PROXY_PORT + 1}, ports
        for client in clients:
            client.close()
        assert first.wait_exit() == 0
        assert registered(box) == [second.worker]
        connect_all(stack, box, server)


@case
def status_and_doctor_tell_them_apart():
    with in_parts(2) as box:
        shown = json.loads(box.tool("status", "--json").stdout)["instances"][0]["proxies"]
        assert [proxy["port"] for proxy in shown] == [PROXY_PORT, PROXY_PORT + 1], shown
        assert f"port {PROXY_PORT + 1}, " in box.tool("status").stdout
        assert "nobody listens" not in box.tool("doctor", check=False).stdout
        box.parts[1].stop()
        told = box.tool("doctor", check=False).stdout
        for port in (PROXY_PORT + 1, PROXY_PORT + 3):
            assert f"nobody listens on port {port}" in told, told
        assert f"port {PROXY_PORT}:" not in told, told


@case_for({word or "nothing": (word,) for word in (
    "", "2", "0/2", "3/2", "1/17", "a/b", "1/2/3", " 1/2", "1/2 ", "-1/2", "+1/2", "01/2", "1/0",
    "4294967297/4294967298")})
def what_is_no_part_is_refused(word):
    done = run([TPROXYD, "--part", word], check=False)
    assert done.returncode == 2, done
    assert f"--part {word}" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@case
def more_parts_than_ports_are_refused():
    with Sandbox(load=("--ports", "2"), proxy=None) as box:
        failed = box.start_proxy("--part", "1/3", *UNHELD, ready=False)
        assert failed.wait_exit() == 1
        assert "1/3" in failed.log() and "--ports" in failed.log(), failed.log()


main()
