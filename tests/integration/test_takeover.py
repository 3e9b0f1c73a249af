# SPDX-License-Identifier: BSD-2-Clause
"""
A tproxyd that takes everything over from another one: docs/crash.md, "Takeover". TAKEOVERS sets how
many there are under load, STABS how many are interrupted by a SIGKILL.
"""

import contextlib
import os
import pathlib
import random
import re
import resource
import signal
import socket
import struct
import threading
import time

from harness import (Sandbox, Server, TPROXYD, UNPRIVILEGED, case, case_for, echo, exchange, main,
                     redirected, run, tmpdir, wait_for)
from harness.load import (HERE, children, held_client, open_descriptors, registered, under_load,
                          unexpected_ends, worker)
from harness.pins import pretend_another_abi
from harness.system import has_ended

TAKEOVERS = int(os.environ.get("TAKEOVERS", "10"))
SESSIONS = int(os.environ.get("SESSIONS", "500"))
STABS = int(os.environ.get("STABS", "20"))


# --- one after the other --------------------------------------------------------------------------

def take_over(box, *words, **options):
    """Starts a tproxyd that takes over from the present one; the box's is then the new one."""
    old = box.proxy
    box.proxy = box.start_proxy("--takeover", *words, **options)
    assert old.wait_exit() == 0, old.log()
    return old


def try_to(box, *words, **options):
    """The same with one that fails. What it wrote."""
    newcomer = box.start_proxy("--takeover", *words, ready=False, **options)
    assert newcomer.wait_exit() == 1, newcomer.log()
    box._proxies.remove(newcomer)  # its exit code is not 0, as it should be
    return newcomer.log()


def assert_serves(box, server, *clients):
    """Those that were there before, and one more."""
    for client in clients:
        exchange(client)
    with box.connect(server.address) as another:
        assert redirected(another)
        exchange(another)


def control_path(box):
    return f"/run/tproxy/{box.name}@{os.stat('/proc/self/ns/net').st_ino}.sock"


# --- peers of the control socket ------------------------------------------------------------------

HELLO, REFUSE, OFFER, FDS, TAKEN = range(1, 6)


class Peer:
    """Speaks the control protocol, as badly as it is told to."""

    def __init__(self, box):
        self.box = box
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(control_path(box))
        self.socket.settimeout(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, kind, body, version=1, magic=b"tpxd"):
        self.socket.send(struct.pack("=4sHH", magic, version, kind) + body)

    def hello(self, layout, abi=None, port=None, ports=None, netns=None, name=None, **header):
        config = self.box.config()
        self.send(HELLO, struct.pack(
            "=IHHQ32s64s", config["abi"] if abi is None else abi, config["port"] if port is None else port,
            config["ports"] if ports is None else ports,
            os.stat("/proc/self/ns/net").st_ino if netns is None else netns,
            (name or self.box.name).encode(), layout.encode()), **header)

    def answer(self):
        """(type, body) of the next message; type 0 at the end."""
        data = self.socket.recv(65536)
        return (struct.unpack("=H", data[6:8])[0], data[8:]) if data else (0, b"")


def layout_of(box):
    """How it keeps its sessions, which it tells those who do it otherwise."""
    with Peer(box) as peer:
        peer.hello(layout="0.0.0.0")
        kind, text = peer.answer()
        assert kind == REFUSE, text
        return re.search(r"\(0\.0\.0\.0, not ([\d.]+)\)", text.decode())[1]


@contextlib.contextmanager
def standing_offer(box):
    """All has been offered to somebody who does not take it."""
    layout = layout_of(box)
    with Peer(box) as peer:
        peer.hello(layout)
        assert peer.answer()[0] == OFFER
        yield peer


# --- cases ----------------------------------------------------------------------------------------

@case
def every_session_outlives_takeovers():
    with Sandbox() as box:
        take_over(box)
        before, olds = open_descriptors(box), []
        with under_load(box) as load, held_client(box, load.joining):
            for _ in range(TAKEOVERS):
                olds.append(take_over(box))
                made = load.done.get("connections", 0)
                wait_for(lambda: load.done.get("connections", 0) > made + 20 or load.over.is_set(),
                         "connections through it")
                if load.over.is_set():
                    break
        wait_for(lambda: open_descriptors(box) == before, "as few descriptors as before")
        wrong = [text for proxy in [*olds, box.proxy] for text in unexpected_ends(proxy)]
        assert not wrong, wrong[:3]
        assert box.proxy.stop() == 0
        assert not os.path.exists(control_path(box))


@contextlib.contextmanager
def many_sessions(box, count):
    """Idle ones, whose server only accepts them."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    with socket.create_server((HERE, 0), backlog=4096) as listener, contextlib.ExitStack() as clients:
        accepted = []

        def accept():
            while len(accepted) < count:
                accepted.append(listener.accept()[0])
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        with box.inside():
            for _ in range(count):
                client = clients.enter_context(socket.socket())
                client.connect(listener.getsockname())
        thread.join(60)
        yield
        for connection in accepted:
            connection.close()


@case
def many_descriptors_take_little_time():
    with Sandbox() as box, Server(HERE, echo) as server, many_sessions(box, SESSIONS):
        with box.connect(server.address) as client:
            waits, over = [], threading.Event()

            def ping():
                while not over.is_set():
                    start = time.monotonic()
                    exchange(client)
                    waits.append((time.monotonic() - start) * 1000)
            thread = threading.Thread(target=ping, daemon=True)
            thread.start()
            for _ in range(3):
                old = take_over(box)
                print("#", next(text for text in old.log().splitlines() if "handed over" in text))
                box.proxy.wait_log("serving on")
            over.set()
            thread.join(20)
            assert not thread.is_alive()
            assert f"{SESSIONS + 1} sessions go on" in box.proxy.log(), box.proxy.log()
        print(f"# {SESSIONS} sessions wait for {max(waits):.0f} ms at most")


def processes(box):
    """Of tproxyds: (master, worker), once there is one master whose worker is registered."""
    found = [int(pid) for pid in (box.servers / "cgroup.procs").read_text().split()]
    if len(found) != 2:
        return None
    for master, heir in (found, found[::-1]):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if children(master) == [heir] == registered(box):
                return master, heir
    return None


def stab(box, pid):
    """Starts a takeover and kills somebody at some instant of it."""
    newcomer = box.start_proxy("--takeover", ready=False)
    victims = [pid, newcomer.pid]
    time.sleep(random.uniform(0, 0.08))
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        victims += children(pid) + children(newcomer.pid)
    victim = random.choice(victims)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    wait_for(lambda: has_ended(victim), "its end")
    box._proxies.remove(newcomer)
    return newcomer


@case
def whoever_is_killed_one_goes_on_with_all_sessions():
    with Sandbox() as box, contextlib.ExitStack() as logs:
        newcomers, went = [], {"on": 0, "over": 0}
        logs.callback(lambda: [newcomer.process.wait(20) for newcomer in newcomers])
        master = box.proxy.pid
        box._proxies.remove(box.proxy)
        with under_load(box) as load, held_client(box, load.joining):
            for _ in range(STABS):
                newcomers.append(stab(box, master))
                before, (master, heir) = master, wait_for(lambda: processes(box), "one master and its worker")
                went["on" if before == master else "over"] += 1
        print(f"# {went}")
        os.kill(master, signal.SIGTERM)
        os.kill(master, signal.SIGINT)
        wait_for(lambda: has_ended(master) and has_ended(heir), "the last one to end")
        assert registered(box) == []


@case
def a_plain_start_is_refused_and_names_the_option():
    with Sandbox() as box, Server(HERE, echo) as server:
        before = worker(box)
        second = box.start_proxy(ready=False)
        assert second.wait_exit() == 1 and "--takeover" in second.log(), second.log()
        box._proxies.remove(second)
        assert worker(box) == before
        assert_serves(box, server)


@case
def with_nobody_to_take_over_from_it_just_starts():
    with Sandbox(proxy=("--takeover",)) as box, Server(HERE, echo) as server:
        assert_serves(box, server)
        assert box.proxy.stop(signal.SIGKILL) == -signal.SIGKILL
        assert os.path.exists(control_path(box)), "nobody was there to remove it"
        box._proxies.remove(box.proxy)
        box.proxy = box.start_proxy("--takeover")
        assert_serves(box, server)


@case
def what_was_taken_over_is_reloaded_and_inherited_like_any_other():
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        take_over(box)
        old = worker(box)
        box.proxy.process.send_signal(signal.SIGHUP)
        wait_for(lambda: worker(box) != old, "a reload")
        exchange(client)
        heir = worker(box)
        wait_for(lambda: box.proxy.log().count("serving on") == 2, "it to serve")
        os.kill(box.proxy.pid, signal.SIGKILL)
        box.proxy.wait_exit()
        wait_for(lambda: children(heir) == registered(box) != [], "a worker of the new master")
        box._proxies.remove(box.proxy)
        box.proxy = box.start_proxy("--takeover")
        wait_for(lambda: has_ended(heir), "the heir to hand over")
        assert_serves(box, server, client)


@case
def settings_are_those_of_the_newcomer():
    with Sandbox(proxy=("--hold", "off")) as box, Server(HERE, echo) as server:
        with box.connect(server.address) as client:
            for hold in ("on", "off", "on"):
                take_over(box, "--hold", hold)
                held = box.counters()["held"]
                assert_serves(box, server, client)
                assert box.counters()["held"] - held == (hold == "on")


@case
def the_service_manager_is_told():
    with Sandbox() as box:
        told = take_over(box).notified()
        assert f"MAINPID={box.proxy.pid}" in told, told
        second = box.cgroup / "second"
        second.mkdir()
        told = take_over(box, cgroup=second).notified()
        assert "MAINPID" not in told and "STOPPING=1" in told, told
        take_over(box, prefix=["env", "-u", "NOTIFY_SOCKET"], ready=False)
        wait_for(lambda: worker(box), "it to serve")
        box.proxy.wait_log("serving on")


# --- newcomers that are no good -------------------------------------------------------------------

@case_for({"another layout": ({"layout": "2.1.1.1"}, "restart"),
           "another ABI": ({"abi": 99}, "version 99"),
           "another port": ({"port": 1}, "port 1"),
           "more ports": ({"ports": 9}, "(9)"),
           "another instance": ({"name": "other"}, "instance"),
           "another network namespace": ({"netns": 1}, "namespace"),
           "another version of the protocol": ({"version": 9}, "version")})
def it_serves_on_and_says_why_if_the_newcomer_has(difference, said):
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        before, same = worker(box), {"layout": layout_of(box)}
        with Peer(box) as peer:
            peer.hello(**(same | difference))
            kind, text = peer.answer()
            assert kind == REFUSE and said in text.decode(), text
            box.proxy.wait_log(text.decode())
        assert worker(box) == before, "its worker was stopped all the same"
        assert_serves(box, server, client)


@case
def it_serves_on_if_the_newcomer_cannot():
    with Sandbox() as box, Server(HERE, echo) as server, tmpdir() as scratch:
        clients = [box.connect(server.address) for _ in range(20)]
        config = scratch / "tproxy.conf"
        config.write_text("[proxy]\nhold = perhaps\n")
        refused = box.start_proxy("--takeover", "--config", config, ready=False)
        assert refused.wait_exit() == 2 and "line 2" in refused.log(), refused.log()
        box._proxies.remove(refused)
        wrote = try_to(box, prefix=["prlimit", "--nofile=32"])
        assert "limit on open files" in wrote, wrote
        box.proxy.wait_log("limit on open files")
        outside = box.cgroup.parent / f"{box.name}-outside"
        outside.mkdir()
        try:
            wrote = try_to(box, cgroup=outside)
        finally:
            outside.rmdir()
        assert "in no cgroup" in wrote, wrote
        assert "in no cgroup" in box.proxy.wait_log("this process is in no cgroup")
        assert_serves(box, server, *clients)
        for client in clients:
            client.close()


@case_for({"vanishes": (False,), "falls silent": (True,)})
def it_serves_on_if_the_newcomer(silent):
    """After all has been offered to it."""
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        with standing_offer(box):
            if silent:
                box.proxy.wait_log("it took too long")
        if not silent:
            box.proxy.wait_log("it has broken off")
        assert_serves(box, server, client)
        take_over(box)
        assert_serves(box, server, client)


@case
def its_guard_takes_the_place_of_a_master_that_dies_while_nobody_works():
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        with standing_offer(box):
            os.kill(box.proxy.pid, signal.SIGKILL)
            box.proxy.wait_exit()
            box._proxies.remove(box.proxy)
            guard, _ = wait_for(lambda: processes(box), "a master and its worker")
            assert_serves(box, server, client)
        box.proxy = box.start_proxy("--takeover")
        wait_for(lambda: has_ended(guard), "it to hand over")
        assert_serves(box, server, client)


@case
def what_it_is_told_during_an_offer_is_not_lost():
    with Sandbox(proxy=("--drain-timeout", "300ms")) as box, Server(HERE, echo) as server:
        with box.connect(server.address) as client:
            with standing_offer(box):
                box.proxy.process.send_signal(signal.SIGHUP)
            box.proxy.wait_log("reloading: becoming")
            assert_serves(box, server, client)
            with standing_offer(box) as peer:
                box.proxy.process.send_signal(signal.SIGTERM)
                box.proxy.wait_log("no new connections")
                while peer.answer()[0]:
                    pass
            assert box.proxy.wait_exit() == 0, box.proxy.log()
            assert "end=drained" in box.proxy.log(), box.proxy.log()


def held_up(box, ms):
    """A newcomer whose worker, with everything in hand, takes so long before it claims it."""
    return box.start_proxy("--takeover", ready=False, prefix=[
        "strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=connect",
        "-e", f"inject=connect:delay_enter={ms * 1000}:when=1"])


def waits_for_hangups(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    blocked = int(re.search(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)[1], 16)
    return status.startswith("Name:\ttproxyd\n") and blocked & 1 << signal.SIGHUP - 1


@case
def a_newcomer_that_is_told_to_reload_does_so_once_it_serves():
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        newcomer = held_up(box, 1500)
        wait_for(lambda: waits_for_hangups(newcomer.process.pid), "a master that waits for signals")
        newcomer.process.send_signal(signal.SIGHUP)
        newcomer.wait_log("reloading: becoming")
        log = newcomer.log()
        assert log.index("serving on as pid") < log.index("reloading: becoming"), log
        assert box.proxy.wait_exit() == 0, box.proxy.log()
        wait_for(lambda: newcomer.times_served() == 2, "the other binary's worker")
        assert_serves(box, server, client)


@case
def one_that_comes_too_late_takes_nothing():
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        late = held_up(box, 5500)
        box.proxy.wait_log("it took too long")
        assert_serves(box, server, client)
        assert late.wait_exit() == 1 and "it took too long" in late.log(), late.log()
        box._proxies.remove(late)
        assert_serves(box, server, client)


# --- peers that mean no good ----------------------------------------------------------------------

CONNECT = """
import socket, sys
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(sys.argv[1])
peer.settimeout(20)
print(len(peer.recv(10)))
"""


@case
def strangers_are_sent_away():
    with Sandbox() as box, Server(HERE, echo) as server:
        before, path = worker(box), pathlib.Path(control_path(box))
        assert path.stat().st_mode & 0o777 == 0o600
        command = [*UNPRIVILEGED, "/usr/bin/python3", "-c", CONNECT, path]
        done = run(command, check=False)
        assert "PermissionError" in done.stderr, done
        path.parent.chmod(0o755)  # what a careless hand may do
        path.chmod(0o666)
        assert run(command).stdout == "0\n"
        box.proxy.wait_log("was sent away")
        assert worker(box) == before
        assert_serves(box, server)


@case
def garbage_is_answered_with_a_refusal():
    with Sandbox() as box, Server(HERE, echo) as server:
        before, source = worker(box), random.Random(4711)
        wrong = [(OFFER, b""), (TAKEN, b"\1\0\0\0"), (FDS, struct.pack("=i", 3)), (REFUSE, b"no"), (77, b"x"),
                 (HELLO, b""), (HELLO, bytes(112)), (HELLO, b"\xff" * 112), (HELLO, b"\0" * 60000)]
        for kind, body in wrong:
            with Peer(box) as peer:
                peer.send(kind, body)
                assert peer.answer()[0] == REFUSE, (kind, body)
        for _ in range(50):
            with Peer(box) as peer:
                peer.socket.send(source.randbytes(source.randint(1, 2000)))
                assert peer.answer()[0] == REFUSE
        with Peer(box) as peer, open("/dev/null", "rb") as null:  # descriptors that nobody asked for
            socket.send_fds(peer.socket, [b"x"], [null.fileno()] * 200)
            assert peer.answer()[0] == REFUSE
        assert worker(box) == before
        assert_serves(box, server)


@case
def silent_ones_and_a_thousand_connections_hold_nobody_up():
    with Sandbox() as box, Server(HERE, echo) as server, contextlib.ExitStack() as silent:
        with box.connect(server.address) as client:
            silent.enter_context(Peer(box))
            exchange(client)
            for _ in range(1000):
                Peer(box).__exit__()
            take_over(box)
            assert_serves(box, server, client)
            exchange(client)


# --- hooks of another version ---------------------------------------------------------------------

@case
def another_abi_is_refused_wherever_it_is_met():
    with Sandbox() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        before = worker(box)
        pretend_another_abi(box)
        for refused in (try_to(box), box.run([TPROXYD, "--name", box.name, "--check"], check=False).stderr):
            assert "speak version 99, this program" in refused, refused
        box.proxy.process.send_signal(signal.SIGHUP)
        box.proxy.wait_log("not reloaded")
        assert "speak version 99" in box.proxy.log()
        assert worker(box) == before
        exchange(client)
        box.proxy.end_now()
        plain = box.start_proxy(ready=False)
        assert plain.wait_exit() == 1 and "speak version 99" in plain.log(), plain.log()
        box._proxies.remove(plain)


main()
