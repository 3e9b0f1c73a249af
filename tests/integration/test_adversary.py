# SPDX-License-Identifier: BSD-2-Clause
"""
What an ordinary user can do to the proxy and to those who use it: nothing that outlasts him, and
while he tries the others are served. ADVERSARY_CONNECTIONS says how many connections a flood has.
"""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

from harness import (PROXY_PORT, UNPRIVILEGED, Failed, Sandbox, Server, Skip, banner, case,
                     case_for, echo, line, main, program, redirected, run, wait_for)
from harness.system import DEADLINE

CONNECTIONS = int(os.environ.get("ADVERSARY_CONNECTIONS", "20000"))
HERE, SILENT, PORT = "10.77.0.1", "10.77.0.9", 7777
REFUSE = ("--on-proxy-down", "refuse")
POLICIES = {"direct": ((),), "refuse": (REFUSE,)}
# A session takes two descriptors, a user gets 90% of the sessions, and others want some too.
HELD = min(10000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 * 9 // 10 - 1000)


def popen(box, command):
    """Starts a command of the adversary's in the intercepted cgroup."""
    return box.popen([*UNPRIVILEGED, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                     stderr=subprocess.STDOUT)


def end(process):
    process.kill()
    process.communicate()


def script(text, *words):
    """A Python program as a command."""
    return [sys.executable, "-c", text, *map(str, words)]


def assert_proxied(box, server):
    with box.connect(server.address) as client:
        line(client)
        assert redirected(client)


def assert_by_policy(box, server, policy):
    reached = len(server.peers)
    with box.socket() as client:
        if policy:
            assert client.connect_ex(server.address) == errno.ECONNREFUSED, "not refused"
            assert len(server.peers) == reached, "the server was reached"
            return
        client.connect(server.address)
        line(client)
        assert not redirected(client)


# --- those who only want to be served -----------------------------------------------------------

class Bystander:
    """Connects again and again, says a word and gets it back. Fails at the first that fails."""

    def __init__(self, box, address):
        self.box, self.address = box, address
        self.took, self.failure, self.over = [], None, threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self):
        try:
            while not self.over.is_set():
                began = time.monotonic()
                with self.box.connect(self.address) as client:
                    assert redirected(client)
                    client.sendall(b"word")
                    assert client.recv(4) == b"word"
                self.took.append(time.monotonic() - began)
                time.sleep(0.005)
        except Exception as error:  # told at the end
            self.failure = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over.set()
        self.thread.join(2 * DEADLINE)
        if kind is None and (self.failure or self.thread.is_alive()):
            raise Failed(f"a bystander was not served: {self.failure!r}")


def usual_latency(box, address):
    with Bystander(box, address) as one:
        wait_for(lambda: len(one.took) >= 50, "connections without an adversary")
    return statistics.median(one.took)


def assert_served(one, usual):
    """The adversary takes processor time like any program; he must not hold anybody up."""
    median = statistics.median(one.took)
    assert median < 20 * usual + 0.02, f"{median * 1000:.1f} ms, before {usual * 1000:.1f} ms"
    assert max(one.took) < 3, f"one took {max(one.took):.1f} s"


def assert_served_at_all(one):
    """A full backlog drops SYNs, as any server's does; the second or third one of a client, after
    1 and 3 s, is taken."""
    assert max(one.took) < 10, f"one took {max(one.took):.1f} s"


# --- what it costs the proxy --------------------------------------------------------------------

def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kb(pid):
    for text in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith("VmRSS:"):
            return int(text.split()[1])
    raise Failed("no VmRSS")


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Unharmed:
    """At the end of the block the proxy must be as it was at its beginning."""

    def __init__(self, box):
        self.box, self.pid = box, box.proxy.worker

    def __enter__(self):
        self.fds, self.rss = descriptors(self.pid), resident_kb(self.pid)
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            return
        assert self.box.proxy.worker == self.pid, "the worker has died"
        self.box.wait_no_records()
        idle_pipes = 2 * (64 + 16)  # a pool is kept
        wait_for(lambda: descriptors(self.pid) <= self.fds + idle_pipes, "descriptors to be closed")
        assert resident_kb(self.pid) < self.rss + 4096, (self.rss, resident_kb(self.pid))
        assert len(self.box.proxy.log()) < 1 << 20, "the log can be filled"


# --- floods ---------------------------------------------------------------------------------------

@case_for({"connects": ("refused", 0), "garbage": ("garbage", 1),
           "half a handshake": ("abandon", 3)})
def connections_straight_to_the_port_gain_nothing(mode, port):
    """Each is reset, none becomes a session."""
    with Sandbox(proxy=("--log-sessions", "no")) as box, Server(HERE, echo) as server:
        usual = usual_latency(box, server.address)
        with Unharmed(box) as proxy, Bystander(box, server.address) as one:
            base, before, cpu = len(one.took), box.counters(), cpu_seconds(proxy.pid)
            made = 0
            while made < CONNECTIONS or len(one.took) < base + 20:
                done = box.run([*UNPRIVILEGED, program("flood"), mode, "127.0.0.1",
                                PROXY_PORT + port, CONNECTIONS], timeout=300)
                assert done.stdout == "0 failed\n", done.stdout
                made += CONNECTIONS
            cpu = cpu_seconds(proxy.pid) - cpu
        if mode == "abandon":  # faster than anybody accepts
            assert_served_at_all(one)
        else:
            assert_served(one, usual)
        after = box.counters()
        assert after["to_proxy"] - before["to_proxy"] == made, (before, after)
        sessions, wanted = after["accepted"] - before["accepted"], len(one.took) - base
        assert abs(sessions - wanted) <= 1, f"{sessions - wanted} sessions were made of them"
        assert cpu < 0.0005 * made, f"{cpu} s of processor time for {made}"


@contextlib.contextmanager
def silent_host():
    """The address of a host that swallows every packet."""
    run(["nft", "table inet void { chain in { type filter hook input priority 0; "
         f"ip daddr {SILENT} drop; }}; }}"])
    try:
        yield SILENT
    finally:
        run(["nft", "delete table inet void"])


@case
def whoever_looks_like_an_awaited_client_is_not_let_in_for_it():
    """accept() names clients by an address and a port (tp_tag). One may choose both, but for four bits."""
    with Sandbox() as box, Server(HERE, banner) as server, box.socket() as victim:
        os.kill(box.proxy.worker, signal.SIGSTOP)  # both are to be there when it looks
        victim.setblocking(False)
        victim.connect_ex(server.address)
        record = wait_for(lambda: [one for one in box.records() if one["seq"]], "a held client")[0]
        tag = (record["cookie"] & 0xfffff) << 24 | record["seq"] & 0xffffff
        address = socket.inet_ntoa((0x10000000 | tag >> 16).to_bytes(4, "big"))
        run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
        with socket.socket() as thief:
            thief.settimeout(DEADLINE)
            thief.bind((address, tag & 0xffff))
            thief.connect(("127.0.0.1", record["proxy_port"]))
            os.kill(box.proxy.worker, signal.SIGCONT)
            try:
                raise Failed(f"let in: {thief.recv(100)!r}")
            except ConnectionResetError:
                pass
        run(["ip", "address", "delete", f"{address}/32", "dev", "lo"])
        victim.settimeout(DEADLINE)
        assert line(victim) == "{} {}".format(*server.address)


@case
def held_connections_keep_nobody_out():
    """Thousands in SYN_SENT at once, their server is silent; then their process is killed."""
    with silent_host() as void, Server(HERE, echo) as server, \
            Sandbox(proxy=("--log-sessions", "no")) as box:
        usual = usual_latency(box, server.address)
        with Unharmed(box) as proxy:
            proxy.rss += HELD * 320 // 1024  # slots that were used stay
            flood = popen(box, [program("flood"), "keep", void, PORT, HELD])
            with Bystander(box, server.address) as one:
                assert flood.stdout.readline() == b"ready\n"
                wait_for(lambda: descriptors(proxy.pid) >= HELD,
                         lambda: f"all {HELD} to be held: {descriptors(proxy.pid)} descriptors, "
                                 f"{box.proxy_counters()}, {box.counters()}")
                base = len(one.took)
                wait_for(lambda: len(one.took) >= base + 50, "others to be served meanwhile")
                end(flood)
                base = len(one.took)
                wait_for(lambda: len(one.took) >= base + 20, "others to be served afterwards")
            assert_served(one, usual)
            counters = box.counters()
            assert counters["held"] >= HELD and not counters["no_record_space"], counters


@case_for(POLICIES)
def whoever_takes_all_records_sends_others_to_the_policy(policy):
    with silent_host() as void, Server(HERE, banner) as server, \
            Sandbox(load=("--max-connections", "64", *policy)) as box:
        flood = popen(box, [program("flood"), "keep", void, PORT, 64])
        assert flood.stdout.readline() == b"ready\n"
        assert_by_policy(box, server, policy)
        counters = box.counters()
        assert counters["no_record_space"] == 1, counters
        assert counters["refused_by_policy" if policy else "passed_by_policy"] == 1, counters
        end(flood)
        box.wait_no_records()
        assert_proxied(box, server)


# --- squatters ------------------------------------------------------------------------------------

SQUATTER = """
import socket, sys
host, port, option = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if option:
    s.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
while True:
    try:
        s.bind((host, port))
        s.listen(100)
        break
    except OSError as error:
        if len(sys.argv) < 5:
            print(error.strerror, flush=True)
            raise SystemExit
print("ready", flush=True)
s.settimeout(None)
while True:
    s.accept()
    print("a client", flush=True)
"""

SQUATS = {"127.0.0.1": ("127.0.0.1", ""), "127.0.0.1, SO_REUSEPORT": ("127.0.0.1", "SO_REUSEPORT"),
          "0.0.0.0": ("0.0.0.0", ""), "0.0.0.0, SO_REUSEPORT": ("0.0.0.0", "SO_REUSEPORT"),
          "::": ("::", ""), "::, SO_REUSEPORT": ("::", "SO_REUSEPORT"), "::1": ("::1", "")}


def squat(box, host, option, *insist, port=PROXY_PORT):
    return popen(box, script(SQUATTER, host, port, option, *insist))


def assert_no_client(squatter):
    """Nobody but who dialled it; ends it."""
    os.set_blocking(squatter.stdout.fileno(), False)
    end_output = squatter.stdout.read() or b""
    end(squatter)
    assert b"a client" not in end_output, "a client was sent to the squatter"


@case_for({f"{name}, {'refuse' if policy else 'direct'}": (*where, policy)
           for name, where in SQUATS.items() for policy in ((), REFUSE)})
def who_takes_the_port_of_an_absent_proxy_gets_no_client(host, option, policy):
    with Sandbox(load=policy, proxy=None) as box, Server(HERE, banner) as server:
        squatter = squat(box, host, option)
        assert squatter.stdout.readline() == b"ready\n"
        assert_by_policy(box, server, policy)
        unseen = host == "::1"  # an IPv4 client's proxy would listen on IPv4
        counters = box.counters()
        assert counters["no_listener" if unseen else "untrusted_listener"] == 1, counters
        proxy = box.start_proxy(ready=False)
        assert proxy.wait_exit() == 1 and "another process holds it" in proxy.log(), proxy.log()
        assert_no_client(squatter)
        box.start_proxy()
        assert_proxied(box, server)


@case
def who_takes_another_port_of_the_proxy_gets_no_client():
    """It is done without."""
    with Sandbox(proxy=None) as box, Server(HERE, banner) as server:
        squatter = squat(box, "0.0.0.0", "", port=PROXY_PORT + 1)
        assert squatter.stdout.readline() == b"ready\n"
        box.start_proxy()
        for _ in range(16):  # which port it is depends on the client's socket
            assert_proxied(box, server)
        assert_no_client(squatter)


@case_for(SQUATS)
def the_port_of_a_serving_proxy_cannot_be_taken(host, option):
    with Sandbox() as box, Server(HERE, banner) as server:
        squatter = squat(box, host, option)
        assert squatter.stdout.readline().strip() == b"Address already in use"
        end(squatter)
        assert_proxied(box, server)


def starts(box):
    """Whether another tproxyd comes to serve; it does not where somebody else has the port."""
    proxy = box.start_proxy(ready=False)
    try:
        box.proxy = proxy.wait_ready()
    except Failed:
        assert "another process holds it" in proxy.log(), proxy.log()
        return False
    return True


@case
def who_waits_for_the_port_while_the_proxy_is_restarted_gets_no_client():
    """Both processes are killed and another tproxyd is started, again and again, while somebody
    tries to bind the port all the time. If he gets it that keeps the proxy out, no more."""
    with Sandbox(load=REFUSE) as box, Server(HERE, banner) as server:
        for host, option in SQUATS.values():
            squatter = squat(box, host, option, "insist")
            for _ in range(3):
                box.proxy.stop(signal.SIGKILL)
                assert_by_policy(box, server, REFUSE)
                if not starts(box):
                    assert_by_policy(box, server, REFUSE)
                    break
                assert_proxied(box, server)
            assert_no_client(squatter)
            if box.proxy.process.poll() is not None:
                assert starts(box)


# --- who calls himself what, and is what ----------------------------------------------------------

def spawn_as(pid, command, cgroup):
    """Starts a command with a pid of our choice (clone3, Linux 5.5). Returns what it prints."""
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = (ctypes.c_int * 1)(pid)
    args = (ctypes.c_uint64 * 11)()
    args[4], args[8], args[9] = signal.SIGCHLD, ctypes.addressof(wanted), 1
    reader, writer = os.pipe()
    made = libc.syscall(435, ctypes.byref(args), ctypes.sizeof(args))
    if made == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        (cgroup / "cgroup.procs").write_text("0")
        os.execvp(command[0], command)
    os.close(writer)
    if made < 0:
        error = ctypes.get_errno()
        os.close(reader)
        if error not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise OSError(error, os.strerror(error), f"clone3 with pid {pid}")
        raise Skip(f"clone3 with a pid: {os.strerror(error)}")
    with open(reader) as output:
        text = output.read()
    os.waitpid(pid, 0)
    return text


CONNECT = """
import socket, sys
with socket.socket() as s:
    print(s.connect_ex((sys.argv[1], int(sys.argv[2]))))
"""


INIT_PID_NS = 0xeffffffc  # PROC_PID_INIT_INO


def kill_and_bury(box):
    """Ends the proxy such that its worker's pid is free. Returns that."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans are ours
    pid = box.proxy.worker
    if os.stat("/proc/self/ns/pid").st_ino != INIT_PID_NS:
        raise Skip("the kernel knows the proxy by another pid than we do")
    assert box.config()["proxies"][0]["tgid"] == pid
    box.proxy.stop(signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


@case_for(POLICIES)
def the_pid_of_a_dead_proxy_exempts_nobody(policy):
    with Sandbox(load=policy) as box, Server(HERE, banner) as server:
        pid = kill_and_bury(box)
        dial = [*UNPRIVILEGED, *script(CONNECT, *server.address)]
        wanted = errno.ECONNREFUSED if policy else 0
        assert spawn_as(pid, dial, box.clients) == f"{wanted}\n"
        box.start_proxy()
        before = box.counters()["redirected"]
        assert spawn_as(pid, dial, box.clients) == "0\n"
        assert box.counters()["redirected"] == before + 1, box.counters()


NAMES = [b"\x1b[2J\x1b]0;x\x07", b"a\nsession dst=", b'"\',"}]', b"\xff\xfe\x80",
         "na\u00efve \u2603".encode(), b"%s%n%s%n", b"\x7f\x01\x02", b" ", b"\xe2\x98"]

NAMED = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[3]), 0, 0, 0)
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    print("ready", flush=True)
    sys.stdin.read()
"""


def as_shown(name):
    """In JSON a name is as it is, or escaped where it is no UTF-8."""
    name = name[:15]
    try:
        return name.decode()
    except UnicodeDecodeError:
        return "".join(chr(c) if 0x20 <= c < 0x7f and c != 0x5c else f"\\x{c:02x}" for c in name)


@case
def a_process_may_call_itself_what_it_likes():
    with Sandbox() as box, Server(HERE, banner) as server:
        clients = [popen(box, script(NAMED, *server.address, name.hex())) for name in NAMES]
        for client in clients:
            assert client.stdout.readline() == b"ready\n"
        shown = json.loads(box.tool("conns", "--json").stdout)["connections"]
        assert sorted(one["comm"] for one in shown) == sorted(map(as_shown, NAMES)), shown
        text = box.tool("conns").stdout
        assert len(text.splitlines()) == 1 + len(NAMES), text
        json.loads(box.tool("status", "--json").stdout)
        for client in clients:
            client.communicate()
        wait_for(lambda: box.proxy.log().count("end=") == len(NAMES), "a line each")
        for output in (text, box.proxy.log()):
            odd = {c for c in output if c != "\n" and not " " <= c <= "~"}
            assert not odd, odd


# --- a namespace of one's own ---------------------------------------------------------------------

FORGER = """
import os, socket, struct, subprocess, sys
grant, port, victim, source = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if "own" in sys.argv:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", source, "dev", "lo"], check=True)
tried = []
for kind in (socket.SOCK_RAW, socket.SOCK_STREAM):
    try:
        with socket.socket(socket.AF_INET, kind, socket.IPPROTO_RAW if kind == 3 else 0) as s:
            for mark in (grant, 1, 0xffffffff):
                s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
                if kind != socket.SOCK_RAW:
                    continue
                for flags in (2, 4, 0x14, 0x12):
                    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0,
                                     socket.inet_aton(source), socket.inet_aton("127.0.0.1"))
                    tcp = struct.pack("!HHIIBBHHH", victim, port, 1, 1, 0x50, flags, 100, 0, 0)
                    s.sendto(ip + tcp, ("127.0.0.1", 0))
        tried.append("done")
    except PermissionError:
        tried.append("denied")
if "own" in sys.argv:
    trap = socket.create_server(("127.0.0.1", port))
    with socket.socket() as s:
        tried.append(str(s.connect_ex(("127.0.0.1", 9))))
    trap.setblocking(False)
    try:
        trap.accept()
        tried.append("trapped")
    except BlockingIOError:
        tried.append("nobody")
print(*tried)
"""


@case
def marks_and_raw_packets_of_ones_own_namespace_reach_nobody():
    """There every user is root, and may know all that there is to know."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    probe = run([*UNPRIVILEGED, *unshare, "true"], check=False)
    if probe.returncode:
        raise Skip(f"unprivileged user namespaces: {probe.stderr.strip()}")
    with silent_host() as void, Server(HERE, banner) as server, Sandbox() as box:
        base = box.counters()["held"]  # by the self-test
        with box.socket() as held:
            held.setblocking(False)
            assert held.connect_ex((void, PORT)) == errno.EINPROGRESS
            wait_for(lambda: box.counters()["held"] > base, "the handshake to be held")
            source, port = held.getsockname()
            record = box.records()[0]
            forge = script(FORGER, box.config()["grant"], PROXY_PORT, record["src"]["port"], source)
            assert box.run([*UNPRIVILEGED, *forge]).stdout == "denied denied\n"
            done = box.run([*UNPRIVILEGED, *unshare, *forge, "own"])
            assert done.stdout == f"done done {errno.ECONNREFUSED} nobody\n", done
            state = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            assert state == b"\x02", "it is no longer held"
            counters = box.counters()
            assert counters["untrusted_listener"] == 1, counters
            assert not counters["hold_unknown"] + counters["hold_malformed"], counters
        assert_proxied(box, server)


main()
