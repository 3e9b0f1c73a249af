# SPDX-License-Identifier: BSD-2-Clause
"""
Workers that are killed, masters that are killed, reloads, crash loops: what docs/crash.md promises.
KILLS and RELOADS set how many there are of each under load; tests/crash makes a long run of them.
"""

import contextlib
import hashlib
import os
import pathlib
import random
import select
import signal
import socket
import statistics
import struct
import threading
import time

from harness import (Failed, Sandbox, Server, TPROXYD, banner, case, case_for, echo, free_port, line,
                     main, redirected, refusal, tmpdir, wait_for)

KILLS = int(os.environ.get("KILLS", "40"))
RELOADS = int(os.environ.get("RELOADS", "10"))
HERE = "10.77.0.1"
BULK = 64 << 20


# --- the two processes ----------------------------------------------------------------------------

def children(pid):
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def registered(box):
    return [proxy["tgid"] for proxy in box.config()["proxies"] if proxy["tgid"]]


def worker(box):
    """The worker, once it is registered, which is before it does anything."""
    def look():
        found = children(box.proxy.pid)
        return found[0] if found and registered(box) == found else None
    return wait_for(look, "a registered worker")


def kill_worker(box):
    """Kills the worker, if there is one this instant; whether there was."""
    found = children(box.proxy.pid)
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGKILL)
        return True
    return False


def has_ended(pid):
    """A process that is not our child may stay a zombie for as long as we run."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def times_served(box):
    return box.proxy.log().count("serving on as pid")


def resets(proxy):
    return [text for text in proxy.log().splitlines() if "end=" in text and "end=closed" not in text]


# --- clients that fail at the first thing that is wrong ----------------------------------------------

class Load:
    """Clients in threads, each of which works until stop() and then looks back at what it did."""

    def __init__(self, box):
        self.box, self.failures, self.done = box, [], {}
        self.over = threading.Event()
        self.threads = []

    def start(self, function, *args):
        def body():
            try:
                function(*args)
            except Exception as error:  # to be told at the end
                self.failures.append(f"{function.__name__}: {error!r}")
                self.over.set()
        thread = threading.Thread(target=body, daemon=True)
        self.threads.append(thread)
        thread.start()

    def count(self, what, number=1):
        self.done[what] = self.done.get(what, 0) + number

    def finish(self):
        self.over.set()
        for thread in self.threads:
            thread.join(60)
        if any(thread.is_alive() for thread in self.threads):
            self.failures.append("a client is stuck")
        if self.failures:
            raise Failed("; ".join(self.failures) + "\n" + self.box.proxy.log()[-3000:])

    # Each makes its socket in the intercepted cgroup: joining it is the process's affair, so one
    # thread at a time.
    _join = threading.Lock()

    def connect(self, address):
        with self._join:
            made = self.box.socket()
        made.settimeout(60)
        made.connect(address)
        return made

    # --- the clients ---

    def ping_for_ever(self, address):
        with self.connect(address) as client:
            number = 0
            while not self.over.is_set():
                word = b"%d;" % number
                client.sendall(word)
                answer = client.recv(len(word), socket.MSG_WAITALL)
                assert answer == word, (answer, word)
                number += 1
            self.count("pings", number)

    def short_ones(self, address):
        while not self.over.is_set():
            with self.connect(address) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                answer = b""
                while data := client.recv(64):
                    answer += data
                assert answer == b"hello", answer
            self.count("connections")

    def refused_ones(self, address):
        while not self.over.is_set():
            try:
                self.connect(address).close()
                raise Failed("connected to a port where nobody listens")
            except ConnectionRefusedError:
                self.count("refusals")

    def reset_ones(self, address):
        while not self.over.is_set():
            with self.connect(address) as client:
                client.sendall(b"?")
                answer = b""
                try:
                    while data := client.recv(64):
                        answer += data
                    raise Failed(f"FIN, not a reset, after {answer}")
                except ConnectionResetError:
                    assert answer == b"before", answer
            self.count("resets")

    def transfer(self, address):
        """Both ways at once, and the end of one way long before that of the other."""
        block = random.Random(4711).randbytes(1 << 20)
        while not self.over.is_set():
            with self.connect(address) as client:
                sent, came, total = hashlib.sha256(), hashlib.sha256(), 0

                def send():
                    left = BULK
                    while left:
                        size = min(left, random.randint(1, 300000))
                        client.sendall(block[:size])
                        sent.update(block[:size])
                        left -= size
                    client.shutdown(socket.SHUT_WR)
                self.start(send)
                sender = self.threads[-1]
                while data := client.recv(1 << 18):
                    came.update(data)
                    total += len(data)
                sender.join()
                assert (total, came.digest()) == (BULK, sent.digest()), f"{total} of {BULK} bytes"
            self.count("bytes", 2 * BULK)


def reset_after_answer(connection):
    connection.recv(1)
    connection.sendall(b"before")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def under_load(box):
    """All kinds of sessions at once; at the end each must have come through whole."""
    with Server(HERE, echo) as server, Server(HERE, reset_after_answer) as resetter:
        load = Load(box)
        idle = [load.connect(server.address) for _ in range(100)]
        half = load.connect(server.address)
        half.sendall(b"half")
        half.shutdown(socket.SHUT_WR)
        nobody = (HERE, free_port(HERE))
        for function, address in ((load.ping_for_ever, server.address), (load.short_ones, server.address),
                                  (load.short_ones, server.address), (load.refused_ones, nobody),
                                  (load.reset_ones, resetter.address), (load.transfer, server.address),
                                  (load.transfer, server.address)):
            load.start(function, address)
        try:
            yield load
        finally:
            load.finish()
        assert half.recv(64, socket.MSG_WAITALL) == b"half"
        half.close()
        for client in idle:
            client.sendall(b"x")
            assert client.recv(1) == b"x", "an idle session"
            client.close()
        print(f"# {load.done}")
    box.wait_no_records()


def open_descriptors(box):
    """But for the pool of idle pipes, which may be there or not."""
    names = [os.readlink(entry) for entry in pathlib.Path(f"/proc/{box.proxy.pid}/fd").iterdir()]
    return sorted(name.partition(":")[0] for name in names if not name.startswith("pipe:"))


# --- cases ----------------------------------------------------------------------------------------

@case
def every_session_outlives_its_workers():
    with Sandbox() as box:
        worker(box)
        kill_worker(box)
        wait_for(lambda: times_served(box) == 1, "the second worker")
        before, killed, gaps = open_descriptors(box), 0, []
        with under_load(box) as load:
            while killed < KILLS and not load.over.is_set():
                time.sleep(random.expovariate(1 / 0.12))  # at any instant
                served = times_served(box)
                start = time.monotonic()
                if kill_worker(box):
                    killed += 1
                    wait_for(lambda: times_served(box) > served, "the next worker")
                    gaps.append((time.monotonic() - start) * 1000)
        print(f"# {killed} workers killed; ms from a kill to serving: "
              f"median {statistics.median(gaps):.0f}, most {max(gaps):.0f}")
        wait_for(lambda: open_descriptors(box) == before, "as few descriptors as before")
        wrong = [text for text in resets(box.proxy)
                 if "connect-failed" not in text and "reset-by-server" not in text]
        assert not wrong, wrong[:3]


@case
def reloads_keep_every_session_and_the_main_pid():
    with Sandbox() as box:
        with under_load(box) as load:
            for _ in range(RELOADS):
                old = worker(box)
                box.proxy.process.send_signal(signal.SIGHUP)
                wait_for(lambda: worker(box) != old or load.over.is_set(), "another worker")
                made = load.done.get("connections", 0)
                wait_for(lambda: load.done.get("connections", 0) > made + 20 or load.over.is_set(),
                         "connections through it")
        assert box.proxy.log().count("reloading: becoming") == RELOADS
        # The first of these filled the queue, which nobody read: that must not stop a master.
        told = box.proxy.notified()
        assert "RELOADING=1" in told and "READY=1" in told, told
        assert box.proxy.stop() == 0


@case
def a_reload_brings_new_settings_or_none():
    with Sandbox(proxy=None) as box, Server(HERE, echo) as server, tmpdir() as scratch:
        config = scratch / "tproxy.conf"
        config.write_text("[proxy]\nlog-sessions = no\n")
        box.proxy = box.start_proxy("--config", config)
        with box.connect(server.address) as client:
            config.write_text("[proxy]\nlog-sessions = perhaps\n")
            old = worker(box)
            box.proxy.process.send_signal(signal.SIGHUP)
            box.proxy.wait_log("not reloaded")
            assert "line 2" in box.proxy.log(), box.proxy.log()
            assert worker(box) == old, "the worker that served was stopped all the same"
            client.sendall(b"1")
            assert client.recv(1) == b"1"
            config.write_text("[proxy]\nlog-sessions = yes\n")
            box.proxy.process.send_signal(signal.SIGHUP)
            box.proxy.wait_log("1 sessions go on")
            client.sendall(b"2")
            assert client.recv(1) == b"2"
        box.proxy.wait_log("end=closed")


@case
def hold_can_be_switched_by_a_reload():
    with Sandbox(proxy=None) as box, Server(HERE, echo) as server, tmpdir() as scratch:
        config = scratch / "tproxy.conf"
        config.write_text("[proxy]\nhold = on\n")
        box.proxy = box.start_proxy("--config", config)
        with box.connect(server.address) as old:
            for number, hold in enumerate(("off", "on", "off")):
                config.write_text(f"[proxy]\nhold = {hold}\n")
                before = worker(box)
                box.proxy.process.send_signal(signal.SIGHUP)
                wait_for(lambda: times_served(box) == number + 1 and worker(box) != before, "a reload")
                held = box.counters()["held"]
                with box.connect(server.address) as client:
                    assert redirected(client)
                assert box.counters()["held"] - held == (hold == "on")
                old.sendall(b"x")
                assert old.recv(1) == b"x"


@case
def a_binary_that_keeps_sessions_otherwise_is_refused():
    with Sandbox(proxy=None) as box:
        checked = box.run([TPROXYD, "--name", box.name, "--check"], check=False,
                          env=dict(os.environ, TPROXYD_LAYOUT="0.0.0.0"))
        assert checked.returncode == 1 and "restart" in checked.stderr, checked
        box.run([TPROXYD, "--name", box.name, "--check"])


@case_for({"workers are killed": (True,), "it is told to stop": (False,)})
def a_held_client_waits_on_while(killed):
    """Its server takes no handshake at first: a listener whose queue is full."""
    with Sandbox() as box, socket.socket() as full:
        full.bind((HERE, 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()), box.socket() as client:
            client.setblocking(False)
            assert client.connect_ex(full.getsockname()) != 0
            wait_for(lambda: box.counters()["held"] >= 1, "the handshake to be held")
            for number in range(3 if killed else 0):
                kill_worker(box)
                wait_for(lambda: times_served(box) == number + 1, "the next worker")
            if not killed:
                box.proxy.process.send_signal(signal.SIGTERM)
                box.proxy.wait_log("no new connections")
            full.accept()[0].close()
            server, _ = full.accept()
            wait_for(lambda: select.select([], [client], [], 0)[1], "connect() to end")
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            client.settimeout(20)
            with server:
                server.sendall(b"late")
                assert client.recv(4, socket.MSG_WAITALL) == b"late"
            assert redirected(client)


@case
def urgent_bytes_come_once():
    """The one kind of byte that passes through a worker's memory."""
    def collect(connection):
        while data := connection.recv(65536):
            received.extend(data)
        connection.sendall(b"end")

    received = bytearray()
    with Sandbox() as box, Server(HERE, collect) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # inherited
        with box.connect(server.address) as client:
            for number in range(600):
                client.sendall(b"%04d" % number)
                client.send(b"!", socket.MSG_OOB)
                # The next mark takes the place of one that was not reached yet.
                wait_for(lambda: len(received) >= 5 * (number + 1), "the urgent byte")
                if number % 20 == 10:
                    kill_worker(box)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(3, socket.MSG_WAITALL) == b"end"
    assert received == b"".join(b"%04d!" % number for number in range(600))


def keep_killing(box, over):
    while not over.is_set():
        kill_worker(box)


@case
def a_crash_loop_ends_in_the_policy_and_keeps_the_sessions():
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=("--grace", "500ms")) as box:
        with Server(HERE, echo) as server, box.connect(server.address) as client:
            over = threading.Event()
            killer = threading.Thread(target=keep_killing, args=(box, over), daemon=True)
            killer.start()
            try:
                box.proxy.wait_log("the failure policy decides")
                with box.socket() as another:
                    assert another.connect_ex(server.address) == refusal()
                assert "after a pause" in box.proxy.log(), box.proxy.log()
            finally:
                over.set()
                killer.join()
            box.proxy.wait_log("a worker serves again")
            client.sendall(b"still")
            assert client.recv(5, socket.MSG_WAITALL) == b"still"
            with box.connect(server.address) as another:
                assert redirected(another)


@case
def a_worker_takes_the_place_of_its_master():
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        heir = worker(box)
        os.kill(box.proxy.pid, signal.SIGKILL)
        box.proxy.wait_exit()
        box.proxy.wait_log("serving on")
        assert f"MAINPID={heir}\n" in box.proxy.notified() + "\n", "the service manager does not know"
        wait_for(lambda: registered(box) == children(heir) != [], "a worker of the new master")
        client.sendall(b"still")
        assert client.recv(5, socket.MSG_WAITALL) == b"still"
        with box.connect(server.address) as another:
            assert redirected(another)
        os.kill(heir, signal.SIGTERM)
        os.kill(heir, signal.SIGINT)
        wait_for(lambda: has_ended(heir), "its end")
        assert registered(box) == []
        box._proxies.remove(box.proxy)  # its exit code is that of SIGKILL


@case
def a_master_that_dies_with_its_parent_leaves_no_worker():
    with Sandbox(proxy=None) as box:
        box.proxy = box.start_proxy(prefix=["setpriv", "--pdeathsig", "KILL"])
        left = worker(box)
        os.kill(box.proxy.pid, signal.SIGKILL)
        box.proxy.wait_exit()
        wait_for(lambda: has_ended(left), "the worker to die too")
        assert "takes its place" not in box.proxy.log()
        box._proxies.remove(box.proxy)


@case
def without_both_the_sessions_end_and_the_policy_holds():
    with Sandbox() as box, Server(HERE, banner) as server, box.connect(server.address) as client:
        line(client)
        os.kill(box.proxy.pid, signal.SIGSTOP)
        os.kill(worker(box), signal.SIGKILL)
        os.kill(box.proxy.pid, signal.SIGKILL)
        assert box.proxy.wait_exit() == -signal.SIGKILL
        try:
            raise Failed(f"no reset, but {client.recv(1)}")
        except ConnectionResetError:
            pass
        wait_for(lambda: server.errors, "the server to be reset")
        assert isinstance(server.errors[0], ConnectionResetError), server.errors
        with box.connect(server.address) as another:
            line(another)
            assert not redirected(another), "not by the policy, which is direct"
        box._proxies.remove(box.proxy)
        box.proxy = box.start_proxy()
        with box.connect(server.address) as another:
            line(another)
            assert redirected(another)


@case
def a_stop_is_not_lost_with_the_worker_that_was_told():
    with Sandbox(proxy=("--drain-timeout", "300ms")) as box, Server(HERE, echo) as server:
        with box.connect(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            box.proxy.process.send_signal(signal.SIGTERM)
            box.proxy.wait_log("no new connections")
            kill_worker(box)
            assert box.proxy.wait_exit() == 0
            assert "end=drained" in box.proxy.log(), box.proxy.log()


main()
