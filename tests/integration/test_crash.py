# SPDX-License-Identifier: BSD-2-Clause
"""
Workers that are killed, masters that are killed, reloads, crash loops: what docs/crash.md promises.
That nobody notices any of it under load is for test_restart.py.
"""

import contextlib
import os
import pathlib
import signal
import socket
import threading

from harness import (TPROXYD, Failed, Sandbox, Server, banner, bpftool, case, case_for, echo, line, main,
                     redirected, refusal, tmpdir, wait_for)
from harness.load import HERE, children, held_client, registered, worker
from harness.pins import pretend_another_build
from harness.steps import Traced
from harness.system import has_ended


# --- cases ----------------------------------------------------------------------------------------

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
                wait_for(lambda: box.proxy.times_served() == number + 1 and worker(box) != before, "a reload")
                assert bool(box.map("routes")) == (hold == "on"), "routes that nobody keeps up to date"
                held = box.counters()["held"]
                with box.connect(server.address) as client:
                    assert redirected(client)
                assert box.counters()["held"] - held == (hold == "on")
                old.sendall(b"x")
                assert old.recv(1) == b"x"


OPTMEM_MAX = pathlib.Path("/proc/sys/net/core/optmem_max")  # a namespace's own on later kernels


@case
def a_reload_finds_hooks_that_were_unloaded_and_loaded():
    """All of it is new: the slot, the marks, the ring, what tells the doorman a SYN of tproxyd's."""
    with Sandbox() as box, Server(HERE, echo) as server:
        box.unload()
        box.load()
        box.proxy.reload()
        wait_for(lambda: box.proxy.times_served(), "a reload")
        assert registered(box) == [box.proxy.worker]
        with box.connect(server.address) as client:
            client.sendall(b"1")
            assert client.recv(1) == b"1"
            assert redirected(client)
        assert box.counters()["held"] == 1, "it was held again and again"


@case_for({"of the same hooks": (lambda box: None,), "of other hooks": (pretend_another_build,)})
def a_reload_finds_no_room_for_two_doormen(change):
    """Beside each other on a listener: as where a socket has 20 kB for such."""
    with Sandbox() as box, Server(HERE, echo) as server:
        size = bpftool("prog", "show", "pinned", box.pins / "prog_doorman")["bytes_xlated"]
        if OPTMEM_MAX.exists():
            OPTMEM_MAX.write_text(str(3 * size // 2))
        change(box)
        box.load()
        for number in range(2):
            box.proxy.reload()
            wait_for(lambda: box.proxy.times_served() == number + 1, "a reload")
        held = box.counters()["held"]
        with box.connect(server.address) as client:
            assert redirected(client)
        assert box.counters()["held"] == held + 1


@case
def a_binary_that_keeps_sessions_otherwise_is_refused():
    with Sandbox(proxy=None) as box:
        checked = box.run([TPROXYD, "--name", box.name, "--check"], check=False,
                          env=dict(os.environ, TPROXYD_LAYOUT="0.0.0.0"))
        assert checked.returncode == 1 and "restart" in checked.stderr, checked
        box.run([TPROXYD, "--name", box.name, "--check"])


@case_for({"workers are killed": (True,), "it is told to stop": (False,)})
def a_held_client_waits_on_while(killed):
    with Sandbox() as box, held_client(box):
        for number in range(3 if killed else 0):
            box.proxy.kill_worker()
            wait_for(lambda: box.proxy.times_served() == number + 1, "the next worker")
        if not killed:
            box.proxy.process.send_signal(signal.SIGTERM)
            box.proxy.wait_log("no new connections")


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
                    box.proxy.kill_worker()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(3, socket.MSG_WAITALL) == b"end"
    assert received == b"".join(b"%04d!" % number for number in range(600))


def keep_killing(box, over):
    while not over.is_set():
        box.proxy.kill_worker()


def is_refused(box, address):
    with box.socket() as client:
        return client.connect_ex(address) == refusal()


@contextlib.contextmanager
def crash_loop(box):
    over = threading.Event()
    killer = threading.Thread(target=keep_killing, args=(box, over), daemon=True)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@case
def a_crash_loop_ends_in_the_policy_and_keeps_the_sessions():
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=("--grace", "500ms")) as box:
        with Server(HERE, echo) as server, box.connect(server.address) as client:
            with crash_loop(box):
                box.proxy.wait_log("the failure policy decides")
                # A worker that the killer was too slow for may have served in between.
                wait_for(lambda: is_refused(box, server.address), "a refusal by the policy")
                assert "after a pause" in box.proxy.log(), box.proxy.log()
            box.proxy.wait_log("a worker serves again")
            client.sendall(b"still")
            assert client.recv(5, socket.MSG_WAITALL) == b"still"
            with box.connect(server.address) as another:
                assert redirected(another)


@case
def a_crash_loop_ends_in_the_policy_though_memory_is_short_for_a_while():
    """The listener's mark cannot be taken off at first."""
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=("--grace", "500ms")) as box, \
            Server(HERE, echo) as server, tmpdir() as directory:
        log = directory / "strace"
        with Traced(box.proxy.pid, "-o", log, "-e", "trace=bpf", "-e",
                    "inject=bpf:error=ENOMEM:when=1..20"), crash_loop(box):
            box.proxy.wait_log("the failure policy decides")
            assert log.read_text().count("INJECTED") == 20
            wait_for(lambda: is_refused(box, server.address), "a refusal by the policy")


def end_heir(box, heir):
    os.kill(heir, signal.SIGTERM)
    os.kill(heir, signal.SIGINT)
    wait_for(lambda: has_ended(heir), "its end")
    box._proxies.remove(box.proxy)  # its exit code is that of SIGKILL


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
        end_heir(box, heir)
        assert registered(box) == []


@case
def one_that_cannot_start_another_leaves_it_to_the_policy():
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=("--grace", "500ms")) as box:
        with Server(HERE, echo) as server, Traced(worker(box), "-o", "/dev/null", "-e", "trace=clone",
                                                  "-e", "inject=clone:error=EAGAIN"):
            os.kill(box.proxy.pid, signal.SIGKILL)
            box.proxy.wait_exit()
            box.proxy.wait_log("the failure policy decides")
            wait_for(lambda: is_refused(box, server.address), "a refusal by the policy")
        box.proxy.wait_log("a worker serves again")
        end_heir(box, int(box.proxy.notified().rpartition("MAINPID=")[2].split()[0]))


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
        works = worker(box)
        os.kill(box.proxy.pid, signal.SIGSTOP)
        os.kill(works, signal.SIGKILL)
        os.kill(box.proxy.pid, signal.SIGKILL)
        assert box.proxy.wait_exit() == -signal.SIGKILL
        wait_for(lambda: has_ended(works), "its listeners to go, which need not be its first")
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
            box.proxy.kill_worker()
            assert box.proxy.wait_exit() == 0
            assert "end=drained" in box.proxy.log(), box.proxy.log()


main()
