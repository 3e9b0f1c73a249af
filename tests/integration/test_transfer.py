# SPDX-License-Identifier: BSD-2-Clause
"""
Records that are carried over to hooks with maps of another size, call by call of the loader. STEPS
sets at how many calls clients end (harness/steps.py).
"""

import contextlib
import errno
import os
import pathlib
import signal
import socket
import subprocess
import threading

from harness import (LOAD, PROXY_PORT, PROXY_PORTS, UNHELD, Sandbox, Server, assert_names, bpftool, case, case_for,
                     free_port, line, main, run, swallow, tmpdir, wait_for, witness)
from harness.pins import BPFFS, assert_whole
from harness.steps import DELETE, DETACH, LINK_CREATE, LOOK, LOOKUP, SWAP, UPDATE, Stepped, some

HOSTS = [f"10.77.0.{n}" for n in range(1, 3)]


def resized(box, size=1000):
    return [LOAD, "--name", box.name, "--cgroup", box.cgroup, "--max-connections", str(size)]


def side_of(box):
    """The set of its that is not in force."""
    return BPFFS / f"{box.name}~new"


def entries(directory):
    """Of its map_socks, as bpftool prints them."""
    return bpftool("map", "dump", "pinned", directory / "map_socks")


def is_refused(client):
    assert client.connect_ex((HOSTS[0], free_port(HOSTS[0]))) == errno.ECONNREFUSED


def finds_no_way(client):
    """To the proxy, so that its attempt ends before there is a SYN."""
    rule = ["pref", "0", "fwmark", "7", "to", "127.0.0.1", "prohibit"]
    run(["ip", "rule", "add", "pref", "1", "table", "local"])
    run(["ip", "rule", "del", "pref", "0"])
    run(["ip", "rule", "add", *rule])
    client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
    assert client.connect_ex((HOSTS[1], free_port(HOSTS[1]))) == errno.EACCES
    client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
    run(["ip", "rule", "del", *rule])
    run(["ip", "rule", "add", "pref", "0", "table", "local"])
    run(["ip", "rule", "del", "pref", "1"])


def run_through(loader, events=()):
    """
    To its end, with events (number, what happens) in their order: before so many calls after its
    first look, or in the end. Returns these calls.
    """
    calls, due = [], list(events)
    while (call := loader.next()) not in ("", LOOK):
        pass
    while call:
        while due and due[0][0] <= len(calls):
            due.pop(0)[1]()
        calls.append(call := loader.next())
    loader.end()
    for _, event in due:
        event()
    return calls


def loader_calls(box, *events):
    """Of a run with these events; what was is again."""
    with Stepped(resized(box)) as loader:
        calls = run_through(loader, events)
    box.load()
    return calls


def complete(calls):
    """Before which of them both sets are complete,"""
    return calls.index(SWAP)


def detached(calls):
    """only the new one redirects,"""
    return [number for number, call in enumerate(calls) if call == DETACH][1] + 1


def retired(calls):
    """the old one is no longer kept up to date."""
    return len(calls) - calls[::-1].index(DELETE)


@case_for({"while the old ones redirect": (is_refused, (), complete),
           "when the new ones redirect": (is_refused, (), detached),
           "which ended early": (finds_no_way, UNHELD, detached),
           "which ended early, at the end": (finds_no_way, UNHELD, retired),
           "which ended early, at the end, held": (finds_no_way, (), retired)})
def a_socket_that_connects_again_meanwhile_keeps_its_names(attempt, words, point):
    """Both sets know its attempt that failed."""
    with Sandbox(proxy=words) as box, Server(HOSTS[0], witness) as server, box.socket() as client:
        client.settimeout(None)
        attempt(client)
        number = point(loader_calls(box))
        with Stepped(resized(box)) as loader:
            run_through(loader, [(number, lambda: client.connect(server.address))])
        told = line(client)
        if words == UNHELD:  # its name for itself is another than the server's
            assert told.startswith("{} {} ".format(*server.address)), told
            assert client.getpeername() == server.address
        else:
            assert_names(client, server.address, told)
        assert [record["dst"]["port"] for record in box.records()] == [server.port]
        client.close()
        box.wait_no_records()


def enter_two(into, marked, unmarked):
    """Into a map_socks, under cookies whose last byte is 1 and 2, which nobody has, as if a copy and
    a record of the set's own."""
    for number, entry in ((1, marked), (2, unmarked)):
        key = [*entry["key"][:-1], f"{number:#04x}"]
        run(["bpftool", "map", "update", "pinned", into / "map_socks", "key", *key, "value",
             *entry["value"]])


def check_two(box):
    """The marked one is not there; the other one is, and goes."""
    found = {entry["key"][-1]: entry["key"] for entry in entries(box.pins)}
    assert len(found) == 2 and "0x01" not in found and "0x02" in found, found
    run(["bpftool", "map", "delete", "pinned", box.pins / "map_socks", "key", *found["0x02"]])


@case_for({"in force": (detached, True), "not in force": (complete, False)})
def copies_of_a_killed_run_go_with_the_next_one(point, in_force):
    """What the old set has no more is gone, but for what the new one has of its own."""
    with Sandbox() as box, Server(HOSTS[0], witness) as server:
        with box.connect(server.address):
            number = point(loader_calls(box))
        box.wait_no_records()
        with box.connect(server.address) as client:
            with Stepped(resized(box)) as loader:
                loader.to(LOOK)
                for _ in range(number):
                    loader.next()
            side = side_of(box)
            new, old = (box.pins, side) if in_force else (side, box.pins)
            enter_two(new, *entries(new), *entries(old))
            box.load(*(("--max-connections", 1000) if in_force else ()))
            assert_whole(box)
            check_two(box)
            assert_names(client, server.address, line(client))
        box.wait_no_records()


def call_number(lines, *texts):
    """Of the call to bpf() with the last of `texts`, each the first after the one before."""
    at = 0
    for text in texts:
        at = next(i for i in range(at, len(lines)) if text in lines[i])
    return sum(text.startswith("bpf(") for text in lines[:at + 1])


@case_for({"a moment": (1,), "longer": (6,)})
def an_end_is_not_missed_for_want_of_memory_for(calls):
    """An entry goes after it was copied, and calls fail: those that look for the copy."""
    with Sandbox() as box, Server(HOSTS[0], witness) as server, tmpdir() as directory:
        log, side = directory / "strace", side_of(box)

        def resize(*trouble):
            enter_two(box.pins, *2 * entries(box.pins))
            strace = subprocess.Popen([
                "strace", "-qq", "-o", log, "-e", "trace=bpf,renameat2", "-e",
                "inject=renameat2:delay_enter=1000000", *trouble, *resized(box)])
            wait_for(lambda: (side / "map_socks").exists() and len(entries(side)) == 3, "the copies")
            for entry in entries(box.pins):
                if entry["key"][-1] in ("0x01", "0x02"):
                    run(["bpftool", "map", "delete", "pinned", box.pins / "map_socks", "key",
                         *entry["key"]])
            assert strace.wait() == 0
            assert_whole(box)
            assert len(entries(box.pins)) == 1, [entry["key"] for entry in entries(box.pins)]

        with box.connect(server.address):
            resize()
            number = call_number(log.read_text().splitlines(), "RENAME_EXCHANGE",
                                 "BPF_MAP_LOOKUP_BATCH", "BPF_MAP_LOOKUP_ELEM")
            box.load()
            resize("-e", f"inject=bpf:error=ENOMEM:when={number}..{number + calls - 1}")
            assert log.read_text().count("INJECTED") == calls


# --- clients that end while the loader is at one of its calls --------------------------------------

def redirected_ports():
    """The local ports of clients that are connected to tproxyd."""
    to_proxy = f"( dport >= {PROXY_PORT} and dport < {PROXY_PORT + PROXY_PORTS} )"
    return {row.split()[3] for row in run(["ss", "-Htn", "state", "big", to_proxy]).stdout.splitlines()}


class Client(Server):
    """
    One, and its server, that has written more than goes out: its connection lasts longer than its
    descriptor.
    """

    def __init__(self, box, fastopen=False):
        self.drains = threading.Event()
        super().__init__(HOSTS[0], self._drain)
        self.socket, self.others = box.socket(), redirected_ports()
        if fastopen:
            self.socket.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)

    def _drain(self, connection):
        self.drains.wait(60)
        swallow(connection)

    def connect(self):
        self.socket.connect(self.address)
        self.write()

    def write(self):
        self.socket.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                self.socket.send(bytes(1 << 20))

    def release(self):
        self.socket.close()

    def end(self):
        self.drains.set()
        wait_for(lambda: redirected_ports() <= self.others, "the connection's end")

    def __exit__(self, *_):
        self.drains.set()
        self.socket.close()
        self.close()


TCP_FASTOPEN_CONNECT = 30


def points(box, connects):
    """
    With a client that connects at a call: the numbers of the calls from then on before which it
    matters that something else happens.
    """
    with Client(box) as client:
        calls = loader_calls(box, (connects, client.connect))
    box.wait_no_records()
    return [number for number, call in enumerate(calls) if number >= connects and call in (
        LOOKUP, UPDATE, DELETE, LOOK, LINK_CREATE, DETACH, SWAP)]


@contextlib.contextmanager
def bystander(box):
    """A connection that notices nothing."""
    with Server(HOSTS[1], witness) as server:
        with box.connect(server.address) as client:
            told = line(client)
            yield
            assert_names(client, server.address, told)
            cookie, = [record["cookie"] for record in box.records()
                       if record["dst"]["port"] == server.port]
            assert cookie in [port["value"] for port in box.map("ports")]
    box.wait_no_records()


@case
def an_end_at_any_call_leaves_nothing():
    """The client's descriptor goes at one call, its connection ends at the same or a later one."""
    with Sandbox() as box:
        last_chance = loader_calls(box).index(DETACH)
        choices = []
        for connects in (0, last_chance):
            them = points(box, connects)
            choices += [(connects, released, ended) for released in them
                        for ended in them if ended >= released]
        print("#", len(choices), "choices")
        for number, choice in enumerate(some(choices)):
            print("# connects, is released, ends at", *choice)
            size = 262144 if number % 2 else 1000
            with bystander(box), Client(box) as client, Stepped(resized(box, size)) as loader:
                run_through(loader, zip(choice, (client.connect, client.release, client.end)))


@case
def an_end_at_any_call_of_two_runs_leaves_nothing():
    """The first one is killed."""
    with Sandbox() as box:
        them = points(box, 0)
        choices = [(released, killed, ended) for released in them
                   for killed in (released, released + 1, released + 2) for ended in them]
        for number, choice in enumerate(some(choices)):
            print("# is released, is killed, ends at", *choice)
            released, killed, ended = choice
            size = 262144 if number % 2 else 1000
            with bystander(box), Client(box) as client:
                client.connect()
                with Stepped(resized(box, size)) as loader:
                    loader.to(LOOK)
                    for call in range(killed + 1):
                        if call == released:
                            client.release()
                        loader.next()
                with Stepped(resized(box, size)) as loader:
                    run_through(loader, [(ended, client.end)])
                assert_whole(box)


@case_for({"it is over": (None,), **{f"it has looked {n} times": (n,) for n in range(3)}})
def a_copy_that_a_killed_run_made_late_goes_when(looks):
    """
    Its client closes between being read and being written; its connection ends when the run that
    goes on is so far.
    """
    with Sandbox() as box, Client(box) as client:
        client.connect()
        with Stepped(resized(box)) as loader:
            loader.to(LOOK)
            client.release()
            loader.to(SWAP, UPDATE)
        with Stepped(resized(box)) as loader:
            if looks is not None:
                loader.to(*looks * (LOOK,))
                client.end()
            loader.end()
        assert_whole(box)
        client.end()
        box.wait_no_records()


@case
def a_record_without_a_source_yet_is_followed():
    """Its client has not sent anything when it is read."""
    pathlib.Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("5")
    with Sandbox() as box, Client(box, fastopen=True) as client, Stepped(resized(box)) as loader:
        client.socket.connect(client.address)
        loader.to(LOOK)
        client.write()
        loader.to(LINK_CREATE)
        client.release()
        loader.end()
        client.end()
        box.wait_no_records()


# --- clients that the proxy keeps waiting ----------------------------------------------------------

WAITING = ("--connect-timeout", "60s")


@contextlib.contextmanager
def unanswered(box):
    """tproxyd does nothing meanwhile."""
    os.kill(box.proxy.worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(box.proxy.worker, signal.SIGCONT)


def begin(client, address, pins):
    client.setblocking(False)
    client.connect_ex(address)
    wait_for(lambda: bpftool("map", "dump", "pinned", pins / "map_ports"), "the handshake to be held")


def fail(client):
    """It meets its error; the call after one that did not wait says so, too."""
    wait_for(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "connect() to fail")
    client.settimeout(20)
    assert client.connect_ex(("127.0.0.1", 1)) == errno.ECONNABORTED


@case
def a_client_that_was_let_in_meanwhile_keeps_its_names():
    """When its record has been copied, and its port has not."""
    with Sandbox(proxy=WAITING) as box, Server(HOSTS[0], witness) as server, \
            box.socket() as client, Stepped(resized(box)) as loader:
        with unanswered(box):
            begin(client, server.address, box.pins)
            loader.to(LOOK, UPDATE)
        client.settimeout(20)
        told = line(client)
        loader.end()
        assert_names(client, server.address, told)


@case
def a_socket_that_connects_again_from_its_port_is_let_in():
    """The old hooks redirect both attempts; what the new ones know of the first is not enough."""
    with Sandbox(proxy=WAITING) as box, Server(HOSTS[0], witness) as server, \
            box.socket() as client, Stepped(resized(box)) as loader:
        client.bind(("", free_port("0.0.0.0")))
        with unanswered(box):
            begin(client, (HOSTS[0], free_port(HOSTS[0])), box.pins)
            loader.to(LOOK, SWAP, UPDATE)
        fail(client)
        with unanswered(box):
            begin(client, server.address, side_of(box))
            loader.end()
        client.settimeout(20)
        assert_names(client, server.address, line(client))
        client.close()
        box.wait_no_records()


@case
def a_port_that_is_only_bound_to_is_not_entered():
    """A socket's last attempt, by the new hooks, ends before there is a SYN."""
    with Sandbox(proxy=WAITING) as box, box.socket() as client, Stepped(resized(box)) as loader:
        client.bind(("", free_port("0.0.0.0")))
        loader.to(SWAP, UPDATE)
        with unanswered(box):
            begin(client, (HOSTS[0], free_port(HOSTS[0])), side_of(box))
            loader.to(DETACH, DETACH)
        fail(client)
        client.settimeout(None)
        finds_no_way(client)
        loader.end()
        client.close()
        box.wait_no_records()


@case_for({f"{n} calls later, {'' if known else 'not '}known": (n, known)
           for n in range(6) for known in (True, False)})
def a_socket_that_connects_again_by_the_new_hooks_is_let_in(calls, known):
    """
    Its first attempt ended before the last look at what the old ones know of it, or after; when the
    new ones had been told of it, or not.
    """
    with Sandbox(proxy=WAITING) as box, Server(HOSTS[0], witness) as server, \
            box.socket() as client, Stepped(resized(box)) as loader:
        loader.to(SWAP, UPDATE if known else LOOK)
        with unanswered(box):
            begin(client, (HOSTS[0], free_port(HOSTS[0])), side_of(box))
            loader.to(DETACH, DETACH, *() if known else (LOOK,))
        fail(client)
        loader.to(*(LOOK,) if known else ())
        for _ in range(calls):
            loader.next()
        client.connect(server.address)
        told = line(client)
        loader.end()
        assert_names(client, server.address, told)
        assert len(box.map("socks")) == len(box.map("ports")) == 1
        client.close()
        box.wait_no_records()


@case_for({"which both sets know": (True,), "which only the old set knows": (False,)})
def a_socket_that_connects_directly_meanwhile_has_no_record(both):
    """After a redirected attempt that failed, when the new hooks decide."""
    with Sandbox() as box, Server(HOSTS[0], witness) as server, box.socket() as client, \
            Stepped(resized(box)) as loader:
        client.settimeout(None)
        if both:
            is_refused(client)
        loader.to(SWAP, LOOK)
        if not both:
            is_refused(client)
        loader.to(DETACH, DETACH)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        client.connect(server.address)
        assert client.getpeername() == server.address
        loader.end()
        assert client.getpeername() == server.address
        assert not box.records()


@case
def a_record_that_does_not_fit_leaves_no_port_behind():
    """It comes too late to be refused, and its place is taken by one that has no port any more."""
    with Sandbox() as box, Client(box) as client, box.socket() as other:
        is_refused(other)
        with Stepped(resized(box, 1)) as loader:
            loader.to(SWAP)
            client.connect()
            loader.end()
        assert len(box.map("socks")) == 1 and not box.map("ports")
        client.release()
        client.end()
        other.close()
        box.wait_no_records()


main()
