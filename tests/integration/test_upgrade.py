# SPDX-License-Identifier: BSD-2-Clause
"""
Hooks that are replaced and resized under traffic. UPGRADES sets how many upgrades there are (6);
for STEPS, at which a loader meets trouble, see harness/steps.py.
"""

import contextlib
import os
import random
import signal
import socket
import threading

from harness import (LOAD, O, PROXY_PORT, Failed, Sandbox, Server, assert_names, bpftool, case, case_for, free_port, line,
                     main, run, wait_for, witness)
from harness.pins import BPFFS, assert_whole, directories
from harness.steps import run_with, some, stop_points

UPGRADES = int(os.environ.get("UPGRADES", "6"))
HOSTS = [f"10.77.0.{n}" for n in range(1, 5)]
BUILD, VERSION = O / "tests/variants/build", O / "tests/variants/version"
PATIENT = ("--drain-timeout", "300s")  # as live sessions stay to the end
REFUSE = ("--on-proxy-down", "refuse")  # so that one that no proxy takes fails


# --- traffic that ends at the first failure -------------------------------------------------------

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

    def _once(self, address):
        with self._connect(address) as client:
            assert_names(client, address, line(client))
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
            assert_names(client, address, told)

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
