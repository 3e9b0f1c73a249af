# SPDX-License-Identifier: BSD-2-Clause
"""
The paths that are compared. Each has a world of its own: a network namespace, cgroups for clients,
proxy and origin, the origin's servers. All worlds exist during the whole run.
"""

import contextlib
import errno
import ipaddress
import json
import os
import pathlib
import resource
import shutil
import socket
import statistics
import struct
import subprocess

from harness import system
from harness.sandbox import LAUNCHER, NO_SHARES, Sandbox

from . import machine

ADDRESS, ELSEWHERE = "10.77.0.1", "10.77.0.2"
PORT, SINK_PORT, BULK_PORT = "8080", "8081", "5201"
PROXY_PORTS = (18000, 18001, 18002)  # with a fixed upstream: one for each of the origin's
PEERS = pathlib.Path(__file__).resolve().parent / "peers"

# nft knows the connections of a peer by this user; see peers/.
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

DESCRIPTORS_APART = 1100
SO_NETNS_COOKIE = 71

# One destination can have so many connections at a time from one address: 55,536. Ports in
# TIME_WAIT are used again after a second (tcp_tw_reuse), on all paths, or the kernel's search for a
# free port would soon be all that is measured.
PORT_RANGE = "10000 65535"


def most_sessions(descriptors=2):
    """What the limit of descriptors allows a proxy: so many a session, and some for itself."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_APART) // descriptors


class World:
    """One path. A subclass has the name of the path and brings its proxy up."""

    name = "direct"
    about = "no proxy"
    session_descriptors = 2  # of one process of the proxy
    origins = (ADDRESS,)  # a server process at each of these addresses
    targets = (ADDRESS,)  # a process that holds sessions for each of these

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._netns = None
        self.scratch = None
        self.clients = self.proxy = None  # cgroups

    def __enter__(self):
        try:
            self.scratch = self._stack.enter_context(system.tmpdir())
            self._netns = self._stack.enter_context(system.new_netns())
            with self.inside():
                self.write_sysctl("ipv4/ip_local_port_range", PORT_RANGE)
                self.write_sysctl("ipv4/tcp_tw_reuse", "1")
                self.make_cgroups()
                self._origin = self._cgroup(f"{system.RUN_PREFIX}-origin-{type(self).__name__}")
                self._start_origin()
                self.start_proxy()
                self._idle_sockets = self._sockets()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._stack.close()

    # --- for subclasses ---

    def make_cgroups(self):
        top = self._cgroup(f"{system.RUN_PREFIX}-{type(self).__name__}")
        self.clients, self.proxy = top / "clients", top / "proxy"
        self.clients.mkdir()
        self.proxy.mkdir()

    def start_proxy(self):
        """Brings it up. In the world's network namespace."""

    def spawn(self, cgroup, *command, **options):
        """Starts something that lives as long as the world."""
        log = self._stack.enter_context(open(self.scratch / "log", "ab"))
        options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen([*LAUNCHER, str(cgroup), *map(str, command)], **options)

    def spawn_ready(self, cgroup, program, *words):
        """Starts a program of the bench and waits until it says that it is ready."""
        process = self.spawn(cgroup, system.O / "tests/bench" / program, *words,
                             stdout=subprocess.PIPE)
        if process.stdout.readline() != b"ready\n":
            raise system.Failed((self.scratch / "log").read_text(errors="replace"))
        self._stack.callback(process.stdout.close)

    def spawn_peer(self, ports, *command):
        """Starts a peer, with SIGPIPE ignored as it is in services, and waits until it listens."""
        process = self.spawn(self.proxy, *AS_NOBODY, *command, restore_signals=False)

        def listens():
            if process.poll() is not None:
                text = (self.scratch / "log").read_text(errors="replace")
                raise system.Failed(f"{self.name} ended with {process.returncode}: {text}")
            shown = system.run(["ss", "-Hltn"]).stdout
            return all(f":{port} " in shown for port in ports)
        system.wait_for(listens, f"{self.name} to listen")

    def redirect(self, rules):
        system.run(["nft", "-f", PEERS / rules])
        self.write_sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "10")

    # --- for measurements ---

    @staticmethod
    def most_live():
        """How many sessions it can have at a time."""
        return most_sessions()

    @contextlib.contextmanager
    def inside(self):
        """Processes and sockets made in the block are in the world's network namespace."""
        with system.in_netns(self._netns):
            yield

    def load(self, *words):
        """Runs the load generator as a client; returns its result."""
        return json.loads(self.client(system.O / "tests/bench/load", *words))

    def client(self, *command):
        """Runs a client to its end; returns its output."""
        with self.inside():
            return system.run([*LAUNCHER, self.clients, *command], timeout=120).stdout

    @contextlib.contextmanager
    def sessions(self):
        """
        Load generators that hold sessions; gives a function that sends them a command, which each
        does its share of, one after the other. Of latencies it returns the median of theirs.
        """
        with self.inside():
            holders = [self.spawn(self.clients, system.O / "tests/bench/load", "sessions", address,
                                  PORT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                       for address in self.targets]
        held = [0] * len(holders)

        def ask(holder, word, number):
            holder.stdin.write(f"{word} {number}\n")
            holder.stdin.flush()
            answer = holder.stdout.readline()
            if not answer:
                text = (self.scratch / "log").read_text(errors="replace")[-300:]
                raise system.Failed(f"sessions through {self.name}: {text}")
            return json.loads(answer)

        def command(word, number):
            if word == "open":
                for at, holder in enumerate(holders):
                    held[at] = ask(holder, word, (number + at) // len(holders))["open"]
                return {"open": sum(held)}
            asked = [holder for at, holder in enumerate(holders) if held[at]]
            answers = [ask(holder, word, number // len(asked))["total"] for holder in asked]
            return {"open": sum(held), "total": {key: statistics.median(one[key] for one in answers)
                                                 for key in answers[0]}}
        try:
            yield command
        finally:
            for holder in holders:
                holder.stdin.close()
                holder.stdout.close()
                holder.wait()

    def wait_idle(self):
        """Until every connection of the last measurement has gone (those in TIME_WAIT apart)."""
        with self.inside():
            system.wait_for(lambda: self._sockets() <= self._idle_sockets,
                            f"connections through {self.name} to end", deadline=60)

    def resident(self):
        return machine.resident_bytes(self.proxy)

    # --- inner parts ---

    def _cgroup(self, name):
        path = system.cgroup2_root() / name
        path.mkdir()
        self._stack.callback(system.cgroup_remove, path)
        return path

    def write_sysctl(self, name, value):
        (pathlib.Path("/proc/sys/net") / name).write_text(value)

    @staticmethod
    def _sockets():
        text = pathlib.Path("/proc/thread-self/net/sockstat").read_text()
        words = next(line for line in text.splitlines() if line.startswith("TCP:")).split()
        return int(words[words.index("inuse") + 1])

    def _start_origin(self):
        for address in self.origins:
            self.spawn_ready(self._origin, "origin", address, PORT, SINK_PORT)
        self.spawn(self._origin, "iperf3", "--server", "--bind", self.origins[0], "--port",
                   BULK_PORT)
        system.wait_for(lambda: f":{BULK_PORT} " in system.run(["ss", "-Hltn"]).stdout,
                        "iperf3 to listen")


class Floor(World):
    """Two connections for one, and nothing else."""

    name = "floor"
    about = ("the least that any proxy does: a small relay, dialled directly, with a fixed "
             "upstream")
    origins = (ELSEWHERE,)

    @contextlib.contextmanager
    def attached(self, programs, cgroup):
        """The pins of one of the bench's own sets of programs, and of its maps, on a cgroup."""
        kinds = {"prog_connect4": "connect4", "prog_sockops": "sock_ops",
                 "prog_sock_release": "sock_release", "prog_getsockopt": "getsockopt",
                 "prog_getsockname4": "getsockname4", "prog_getpeername4": "getpeername4"}
        pins = pathlib.Path("/sys/fs/bpf", programs)  # in our own mount namespace
        with contextlib.ExitStack() as stack:
            system.run(["bpftool", "prog", "loadall", system.O / f"tests/bench/{programs}.bpf.o",
                        pins, "pinmaps", pins])
            stack.callback(shutil.rmtree, pins)
            for pin in sorted(pins.iterdir()):
                if pin.name not in kinds:
                    continue
                words = [cgroup, kinds[pin.name], "pinned", pin]
                system.run(["bpftool", "cgroup", "attach", *words])
                stack.callback(system.run, ["bpftool", "cgroup", "detach", *words])
            yield pins

    def hooks(self):
        """Where ours would be attached, programs that do nothing; without the doorman's place."""
        return self.attached("empty", self.proxy.parent)

    def start_proxy(self):
        self.spawn_ready(self.proxy, "relay", ADDRESS, ELSEWHERE, PORT, SINK_PORT, BULK_PORT)


class FloorThatHolds(Floor):
    """The same for a proxy that holds handshakes and can answer for its connections."""

    name = "floor-hold"
    about = ("the same, which lets no client in before its server has answered, and has hooks that "
             "enter connections in two maps and ask what has to be known of each")

    @contextlib.contextmanager
    def hooks(self):
        yield self._pins

    def start_proxy(self):
        self._pins = self._stack.enter_context(self.attached("least", self.proxy.parent))
        self.spawn_ready(self.proxy, "relay", "--hold", self._pins, ADDRESS, ELSEWHERE, PORT,
                         SINK_PORT, BULK_PORT)
        self._enter_routes()

    def _enter_routes(self):
        """Those of IPv4 that tproxyd enters: a search among none would be nothing."""
        with socket.socket() as one:
            netns = one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        local = json.loads(system.run(["ip", "-j", "-4", "route", "show", "table", "local"]).stdout)
        routes = {ipaddress.ip_network(route["dst"]): 0 for route in local
                  if route.get("type") == "local"}
        routes[ipaddress.ip_network("0.0.0.0/0")] = errno.ENETUNREACH
        for network, error in routes.items():
            key = (struct.pack("=I", 160 + network.prefixlen) + netns +
                   bytes(10) + b"\xff\xff" + network.network_address.packed)
            system.run(["bpftool", "map", "update", "pinned", self._pins / "map_routes",
                        "key", *map(str, key), "value", *map(str, struct.pack("=I", error))])


class Tproxy(World):
    """tproxyd with its hooks on the world's cgroups."""

    name = "tproxy"
    about = "tproxyd, handshakes held until the server answers (the default)"
    options = ("--hold", "on")
    parts = 1  # of the ports, each served by a tproxyd of its own

    def make_cgroups(self):
        self.box = self._stack.enter_context(Sandbox(load=("--ports", max(self.parts, 4)),
                                                     proxy=None))
        self.clients, self.proxy = self.box.clients, self.box.servers

    def start_proxy(self):
        for number in range(self.parts):
            self.box.start_proxy("--log-sessions", "no", *NO_SHARES, *self.options,
                                 "--part", f"{number + 1}/{self.parts}")

    @contextlib.contextmanager
    def hooks(self):
        """The directory of the pinned programs that serve this path."""
        yield self.box.pins


class TproxyNoHold(Tproxy):
    name = "tproxy-nohold"
    about = "tproxyd with hold = off"
    options = ("--hold", "off")


class TproxyParts(Tproxy):
    name = "tproxy-2"
    about = "two tproxyds, each with its part of the ports"
    parts = 2


class Crowded(World):
    """The direct path for more sessions than one process may have descriptors, or one address local
    ports, for."""

    origins = targets = tuple(f"10.77.0.{number}" for number in range(1, 5))

    @staticmethod
    def most_live():
        return most_sessions() * TproxyCrowded.parts * 4 // 5  # parts have not quite the same share


class TproxyCrowded(Crowded, Tproxy):
    parts = 8


class HAProxy(World):
    name = "haproxy"
    about = "HAProxy behind nft REDIRECT"

    def start_proxy(self):
        self.redirect("redirect.nft")
        self.spawn_peer(PROXY_PORTS[:1], "haproxy", "-db", "-n", most_sessions(), "-f",
                        self.config("haproxy.cfg"))

    def config(self, name):
        """A copy that nobody may read, wherever the sources are."""
        copy = self.scratch / name
        copy.write_text((PEERS / name).read_text())
        copy.chmod(0o644)
        os.chown(self.scratch, 65534, 65534)
        return copy


class Redsocks(HAProxy):
    name = "redsocks"
    about = "redsocks behind nft REDIRECT, and microsocks"
    session_descriptors = 8  # its own limit follows from that of descriptors, and is lower

    def start_proxy(self):
        self.redirect("redirect.nft")
        self.spawn_peer((1080,), "microsocks", "-i", "127.0.0.1", "-p", "1080")
        self.spawn_peer(PROXY_PORTS[:1], "redsocks", "-c", self.config("redsocks.conf"))


class Nginx(HAProxy):
    name = "nginx"
    about = "nginx stream behind nft REDIRECT, fixed upstreams"

    def start_proxy(self):
        self.redirect("redirect-fixed.nft")
        words = (f"pid {self.scratch}/nginx.pid; "
                 "load_module /usr/lib/nginx/modules/ngx_stream_module.so;")
        self.spawn_peer(PROXY_PORTS, "nginx", "-e", "stderr", "-p", self.scratch, "-c",
                        self.config("nginx.conf"), "-g", words)


class SocketProxyd(World):
    name = "socket-proxyd"
    about = "systemd-socket-proxyd behind nft REDIRECT, fixed upstreams"
    session_descriptors = 6  # two pipes

    def start_proxy(self):
        self.redirect("redirect-fixed.nft")
        for port, upstream in zip(PROXY_PORTS, (PORT, SINK_PORT, BULK_PORT)):
            self.spawn_peer((port,), "systemd-socket-activate", "-l", f"127.0.0.1:{port}",
                            "/lib/systemd/systemd-socket-proxyd", "--connections-max=30000",
                            f"{ADDRESS}:{upstream}")
            with socket.create_connection(("127.0.0.1", port)):
                pass  # the first connection starts it


ALL = (World, Floor, FloorThatHolds, Tproxy, TproxyNoHold, TproxyParts, HAProxy, Redsocks, Nginx,
       SocketProxyd)
CROWDED = (Crowded, TproxyCrowded)
ALONE = ("tproxy", "tproxy-nohold")  # one tproxyd
OURS = (*ALONE, "tproxy-2")
PACKAGES = ("haproxy", "redsocks", "microsocks", "nginx-light", "libnginx-mod-stream", "systemd",
            "iperf3", "nftables")
