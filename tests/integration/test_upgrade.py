# SPDX-License-Identifier: BSD-2-Clause
"""
Hooks that are replaced and resized under traffic. UPGRADES sets how many upgrades there are (10);
for STEPS, at which a loader meets trouble, see harness/steps.py.
"""

import contextlib
import errno
import os
import random
import signal
import socket
import subprocess
import threading

from harness import (LOAD, O, PROXY_PORT, UNHELD, Failed, Sandbox, Server, bpftool, case, case_for, free_port, line, main,
                     run, swallow, tmpdir, wait_for)
from harness.pins import BPFFS, assert_whole, directories
from harness.steps import kill_at, run_with, some, stop_points, traced, troubled
from harness.system import children

UPGRADES = int(os.environ.get("UPGRADES", "10"))
HOSTS = [f"10.77.0.{n}" for n in range(1, 5)]
BUILD, VERSION = O / "tests/variants/build", O / "tests/variants/version"
PATIENT = ("--drain-timeout", "300s")  # as live sessions stay to the end
REFUSE = ("--on-proxy-down", "refuse")  # so that one that no proxy takes fails


# --- traffic that ends at the first failure -------------------------------------------------------

def witness(connection):
    """Says who is connected with whom, then waits for the FIN."""
    connection.sendall("{} {} {} {}\n".format(*connection.getsockname(),
                                              *connection.getpeername()).encode())
    while connection.recv(4096):
        pass


class Traffic:
    """Short connections from several threads, live ones in between, refused ones."""

    def __init__(self, servers):
        self.servers = servers
        self.nobody = (HOSTS[0], free_port(HOSTS[0]))
        self.over, self.failures, self.count, self.live = threading.Event(), [], 0, []
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(4)]

    def _connect(self, address):
        made = socket.socket()
        made.settimeout(30)
        try:
            made.connect(address)
        except OSError:
            made.close()
            raise
        return made

    @staticmethod
    def check(client, address, told):
        """The client's names for both ends are the server's."""
        names = "{} {} {} {}".format(*client.getpeername(), *client.getsockname())
        assert told == names and client.getpeername() == address, (told, names, address)

    def _once(self, address):
        with self._connect(address) as client:
            self.check(client, address, line(client))
        self.count += 1

    def _work(self):
        try:
            while not self.over.is_set():
                self._once(random.choice(self.servers).address)
        except Exception as error:  # to be told at the end
            self.failures.append(repr(error))
            self.over.set()

    def refused(self):
        """Handshakes are still held: what the server says is what connect() says."""
        try:
            self._connect(self.nobody).close()
        except ConnectionRefusedError:
            return
        raise Failed("connected to a port where nobody listens")

    def more_live(self, number=20):
        for _ in range(number):
            address = random.choice(self.servers).address
            client = self._connect(address)
            self.live.append((client, address, line(client)))

    def check_live(self):
        for client, address, told in self.live:
            self.check(client, address, told)

    def progress(self):
        """Waits until it has gone on for a while."""
        before = self.count
        wait_for(lambda: self.count > before + 40 or self.over.is_set(), "traffic to go on")
        self.ok()

    def ok(self):
        if self.failures:
            raise Failed("; ".join(self.failures) + f", after {self.count}")

    def __enter__(self):
        self.more_live()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        if kind is None:
            self.ok()
            self.check_live()
        for client, _, _ in self.live:
            client.close()
        print(f"# {self.count} short connections")


@contextlib.contextmanager
def traffic(box, stale=0):
    """
    This process is a client meanwhile; its servers listen outside. `stale`: so many records may stay
    until the hooks go (docs/pins.md).
    """
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(host, witness)) for host in HOSTS]
        stack.enter_context(box.inside())
        with Traffic(servers) as load:
            yield load
    wait_for(lambda: len(box.map("socks")) <= stale and len(box.map("ports")) <= stale,
             "the records to go")


def by_policy(box):
    counters = box.counters()
    return counters["passed_by_policy"] + counters["refused_by_policy"]


# --- cases ----------------------------------------------------------------------------------------

@case
def another_build_and_back_under_load():
    with Sandbox(load=REFUSE) as box, traffic(box) as load:
        for _ in range(UPGRADES):
            for binary in (BUILD / "tproxy-load", LOAD):
                done = box.load(*REFUSE, binary=binary)
                assert "another build" in done.stderr, done.stderr
                load.progress()
        load.refused()
        load.check_live()
        assert not by_policy(box), box.counters()


@case
def more_and_fewer_connections_under_load():
    with Sandbox(load=REFUSE) as box, traffic(box) as load:
        for number in range(UPGRADES):
            load.more_live(2)
            size = 500000 if number % 2 else 1000
            done = box.load(*REFUSE, "--max-connections", size)
            assert "other map sizes" in done.stderr, done.stderr
            load.refused()
            load.progress()
            load.check_live()
        assert_whole(box)
        assert not by_policy(box), box.counters()


@case
def fewer_than_there_are_is_refused():
    with Sandbox() as box, traffic(box) as load:
        ids = {pin.name: pin.stat().st_ino for pin in box.pins.iterdir()}
        done = box.load("--max-connections", 5, check=False)
        assert done.returncode == 1 and "--max-connections" in done.stderr, done.stderr
        assert ids == {pin.name: pin.stat().st_ino for pin in box.pins.iterdir()}
        assert directories() == [box.name]
        load.progress()
        load.refused()


def replace_proxy(box, proxy, directory):
    """As a restart does: the old one lets its sessions end, the new one takes new ones."""
    proxy.process.send_signal(signal.SIGTERM)
    listening = ["ss", "-Hltn", f"sport >= {PROXY_PORT} and sport < {PROXY_PORT + 16}"]
    wait_for(lambda: not run(listening).stdout, "tproxyd to stop listening")
    return box.start_proxy(*PATIENT, program=directory / "tproxyd")


@case
def another_version_and_back_under_load():
    with Sandbox(proxy=PATIENT) as box, traffic(box) as load:
        proxy = box.proxy
        for directory in [VERSION, O] * max(1, UPGRADES // 10):
            load.more_live(5)
            done = box.load(binary=directory / "tproxy-load")
            assert "another version" in done.stderr, done.stderr
            load.check_live()
            proxy = replace_proxy(box, proxy, directory)
            load.progress()
            load.refused()
            load.check_live()
            assert directories() == [box.name]
        assert_whole(box)
        names = {bpftool("map", "show", "pinned", pin)["name"] for pin in box.pins.glob("map_*")}
        assert "map_odd" not in names, names


@case
def settings_under_load():
    with Sandbox() as box, traffic(box) as load:
        for _ in range(UPGRADES):
            before = by_policy(box)
            box.load(*REFUSE)
            load.progress()
            box.loader("--cgroup", box.clients, "--cgroup", box.servers, *REFUSE)
            load.progress()
            box.load(*REFUSE)
            load.progress()
            assert by_policy(box) == before, box.counters()
            box.load("--port", 18001)  # nobody is there yet: they go direct
            load.progress()
            box.load()
            load.progress()
            load.refused()
            load.check_live()


def resized(box):
    return [LOAD, "--name", box.name, "--cgroup", box.cgroup, "--max-connections", "1000"]


def entries(directory):
    """Of its map_socks, as bpftool prints them."""
    return bpftool("map", "dump", "pinned", directory / "map_socks")


# Of the loader: where both sets are complete, where only the new one redirects, and where the old
# one is no longer kept up to date.
EXCHANGE, DETACHED, RETIRED = ("renameat2", 2), ("membarrier", 1), ("unlink", 3)


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


@case_for({"while the old ones redirect": (is_refused, (), EXCHANGE),
           "when the new ones redirect": (is_refused, (), DETACHED),
           "which ended early": (finds_no_way, UNHELD, DETACHED),
           "which ended early, at the end": (finds_no_way, UNHELD, RETIRED),
           "which ended early, at the end, held": (finds_no_way, (), RETIRED)})
def a_socket_that_connects_again_meanwhile_keeps_its_names(attempt, words, point):
    """Both sets know its attempt that failed."""
    with Sandbox(proxy=words) as box, Server(HOSTS[0], witness) as server, box.socket() as client:
        client.settimeout(None)
        attempt(client)
        before = (box.pins / "map_socks").stat().st_ino
        loader = subprocess.Popen(troubled("delay_enter=2000000", resized(box), point))
        side = BPFFS / f"{box.name}~new"
        wait_for(lambda: (side / "map_socks").exists() and entries(side), "a copy of its record")
        if point != EXCHANGE:
            wait_for(lambda: (box.pins / "map_socks").stat().st_ino != before, "the exchange")
            wait_for(lambda: not list(side.glob("link_connect4_*")), "the old hooks to go")
        if point == RETIRED:
            live = box.pins / "map_live_socks"
            wait_for(lambda: len(bpftool("map", "dump", "pinned", live)) == 1, "one set to be live")
        client.connect(server.address)
        told = line(client)
        assert loader.wait() == 0
        if words == UNHELD:  # its name for itself is another than the server's
            assert told.startswith("{} {} ".format(*server.address)), told
            assert client.getpeername() == server.address
        else:
            Traffic.check(client, server.address, told)
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


@case_for({"in force": (DETACHED, True), "not in force": (EXCHANGE, False)})
def copies_of_a_killed_run_go_with_the_next_one(point, in_force):
    """What the old set has no more is gone, but for what the new one has of its own."""
    with Sandbox() as box, Server(HOSTS[0], witness) as server:
        with box.connect(server.address) as client:
            kill_at(resized(box), point)
            side = BPFFS / f"{box.name}~new"
            new, old = (box.pins, side) if in_force else (side, box.pins)
            enter_two(new, *entries(new), *entries(old))
            box.load(*(("--max-connections", 1000) if in_force else ()))
            assert_whole(box)
            check_two(box)
            Traffic.check(client, server.address, line(client))
        box.wait_no_records()


def call_number(lines, *texts):
    """Of the call to bpf() with the last of `texts`, each the first after the one before."""
    at = 0
    for text in texts:
        at = next(i for i in range(at, len(lines)) if text in lines[i])
    return sum(text.startswith("bpf(") for text in lines[:at + 1])


@case
def an_end_is_not_missed_for_want_of_memory():
    """An entry goes after it was copied, and one call fails: that which looks for the copy."""
    with Sandbox() as box, Server(HOSTS[0], witness) as server, tmpdir() as directory:
        log, side = directory / "strace", BPFFS / f"{box.name}~new"

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
            resize("-e", f"inject=bpf:error=ENOMEM:when={number}")
            assert "INJECTED" in log.read_text()


@case
def a_copy_that_a_killed_run_made_late_is_brought_up_to_date():
    """Its client closes between being read and being written; the run that goes on knows of that."""
    over = threading.Event()

    def late(connection):
        over.wait(60)
        swallow(connection)

    with Sandbox() as box, Server(HOSTS[0], late) as server:
        client = box.connect(server.address)
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):  # more than goes out: its end has to wait
            while True:
                client.send(bytes(1 << 20))
        lines = traced(resized(box))
        box.load()
        written = call_number(lines, "BPF_MAP_LOOKUP_BATCH", "BPF_MAP_UPDATE_ELEM")
        in_force = call_number(lines, "RENAME_EXCHANGE", "BPF_MAP_UPDATE_ELEM")
        with tmpdir() as directory:
            log = directory / "strace"
            at = f"bpf:delay_enter=2000000:when={written}+{in_force - written}"
            strace = subprocess.Popen(["strace", "-qq", "-o", log, "-e", "trace=bpf", "-e",
                                       f"inject={at}", *resized(box)])
            for number in (written, in_force):
                wait_for(lambda: log.exists() and log.read_text().count("\n") >= number - 1,
                         f"call {number}")
                if number == written:
                    client.close()
            os.kill(children(strace.pid)[0], signal.SIGKILL)
            strace.wait()
        box.load("--max-connections", 1000)
        assert_whole(box)
        over.set()
        box.wait_no_records()


TO_AND_FRO = {
    "another build": ([BUILD / "tproxy-load"], [LOAD], REFUSE, 0),
    "another size": ([LOAD, "--max-connections", "1000"], [LOAD], REFUSE, 0),
    "another version": ([VERSION / "tproxy-load"], [LOAD], (), 20),
}


@case_for({f"{name}, {trouble}": (*commands, trouble) for name, commands in TO_AND_FRO.items()
           for trouble in ("signal=KILL", "error=ENOMEM", "error=EPERM")})
def trouble_under_load(there, back, words, stale, trouble):
    killed = trouble == "signal=KILL"
    with Sandbox(load=words) as box, traffic(box, stale if killed else 0) as load:
        def command(binary, *options):
            return [binary, "--name", box.name, "--cgroup", box.cgroup, *words, *options]
        run(command(*there))
        run(command(*back))
        points = stop_points(command(*there))
        run(command(*back))
        for point in some(points):
            try:
                done = run_with(trouble, command(*there), point)
                assert done.returncode or not killed, point
                load.progress()
                load.check_live()
                run(command(*back))
                assert_whole(box)
                assert not list(BPFFS.glob(f"{box.name}~*"))
                load.progress()
                load.check_live()
            except AssertionError as error:
                raise Failed(f"at {point}: {error}") from error


main()
