# SPDX-License-Identifier: BSD-2-Clause
"""One instance in a cgroup of its own: hooks, tproxyd, clients."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

from . import pins, system
from .servers import family_of
from .system import Failed, bpftool, children, run, wait_for

# Accepted first and connected afterwards: a failure can then only be told by a reset.
UNHELD = ("--hold", "off")
# One user, or one cgroup, may have every session there is room for.
NO_SHARES = ("--max-sessions-per-uid", "100%", "--max-sessions-per-cgroup", "100%")
# The default; each test file has a network namespace of its own.
PROXY_PORT, PROXY_PORTS = 18000, 4

# Joins a cgroup, then becomes the command.
LAUNCHER = ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"']


def redirected(client):
    """Whether the kernel has this socket connected to the proxy; the socket itself cannot tell."""
    inode = str(os.fstat(client.fileno()).st_ino)
    for table in ("tcp", "tcp6"):
        rows = pathlib.Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        for remote, owner in ((row.split()[2], row.split()[9]) for row in rows):
            if owner == inode:
                return int(remote.split(":")[1], 16) - PROXY_PORT in range(PROXY_PORTS)
    raise Failed("the socket is in no table of this namespace")


class Proxy:
    """A running tproxyd. Its messages are in .log()."""

    def __init__(self, cgroup, command, **options):
        self._log = tempfile.TemporaryFile()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind("")  # an abstract name of the kernel's choice
        self._notify.setblocking(False)
        environment = dict(os.environ, NOTIFY_SOCKET="@" + self._notify.getsockname()[1:].decode())
        self.process = subprocess.Popen([*LAUNCHER, str(cgroup), *command], env=environment,
                                        stdin=subprocess.DEVNULL, stdout=self._log,
                                        stderr=self._log, **options)
        self.pid = self.process.pid

    def notified(self):
        """What came over the notify socket since the last call."""
        texts = []
        with contextlib.suppress(BlockingIOError):
            while True:
                texts.append(self._notify.recv(4096).decode())
        return "\n".join(texts)

    def wait_ready(self):
        try:
            wait_for(self._is_ready, "tproxyd to say READY=1")
        except Failed as error:
            raise Failed(f"{error}; it wrote:\n{self.log()}") from None
        return self

    def _is_ready(self):
        if self.process.poll() is not None:
            raise Failed(f"tproxyd ended with {self.process.returncode}: {self.log()}")
        return "READY=1" in self.notified()

    def log(self):
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def wait_log(self, text):
        """Waits for a line that holds text, and returns it."""
        def find():
            return next((line for line in self.log().splitlines() if text in line), None)
        try:
            return wait_for(find, f"tproxyd to write: {text}")
        except Failed as error:
            raise Failed(f"{error}; it wrote:\n{self.log()}") from None

    def wait_exit(self):
        return self.process.wait(timeout=system.DEADLINE)

    @property
    def worker(self):
        """The process that does the work, and is registered; the other one looks after it."""
        return wait_for(lambda: children(self.pid), "a worker")[0]

    def kill_worker(self, but=None):
        """By SIGKILL, if there is one this instant, and it is another than `but`; its pid."""
        found = children(self.pid)
        if not found or found[0] == but:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[0], signal.SIGKILL)
            return found[0]
        return None

    def kill_master(self):
        """By SIGKILL. Its worker takes its place, and is the one that we look at from here on."""
        heir = self.worker
        os.kill(self.pid, signal.SIGKILL)
        if self.pid == self.process.pid:
            self.wait_exit()
        self.pid = heir

    def reload(self):
        os.kill(self.pid, signal.SIGHUP)

    def times_logged(self, text):
        return self.log().count(text)

    def times_served(self):
        """How often a worker has taken the place of another."""
        return self.times_logged("serving on as pid")

    def descriptors(self):
        """What kind each is that master and worker have open; they share them."""
        kinds = []
        for entry in pathlib.Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                kinds.append(os.readlink(entry).partition(":")[0])
        return sorted(kinds)

    def stop(self, how=signal.SIGTERM):
        """Ends it, by SIGKILL both of its processes; returns the exit code."""
        if self.process.poll() is None:
            if how == signal.SIGKILL:
                self.process.send_signal(signal.SIGSTOP)  # no further worker
                worker = self.worker
                os.kill(worker, how)
                self.process.send_signal(how)
                wait_for(lambda: system.has_ended(worker), "the worker to end")
            else:
                self.process.send_signal(how)
        return self.wait_exit()

    def end_now(self):
        """
        Ends it without waiting for sessions, but not by SIGKILL: it has its own to clean up, and
        sanitizers report at exit. Returns the exit code, 0 where a test had ended it already.
        """
        if self.process.poll() is not None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGINT)  # a second SIGTERM might merge with the first
        return self.wait_exit()


class Sandbox:
    """
    A cgroup with the children `clients` and `proxy`, an instance of its own whose hooks are on that
    cgroup, and (proxy=True) a tproxyd. All of it goes at the end of the block.
    """

    def __init__(self, load=(), proxy=(), name=None):
        self.name = name or system.unique()
        self.cgroup = system.cgroup2_root() / self.name
        self.clients, self.servers = self.cgroup / "clients", self.cgroup / "proxy"
        self.pins = pathlib.Path("/sys/fs/bpf") / self.name
        self._load, self._proxy = load, proxy
        self._proxies = []
        self.proxy = None

    def __enter__(self):
        for path in (self.cgroup, self.clients, self.servers):
            path.mkdir()
        try:
            if self._load is not None:
                self.load(*self._load)
                if self._proxy is not None:
                    self.proxy = self.start_proxy(*self._proxy)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, *_):
        codes = [proxy.end_now() for proxy in self._proxies]
        for path in [self.pins, *self.pins.parent.glob(f"{self.name}[!0-9]*")]:
            pins.remove(path)
        system.cgroup_remove(self.cgroup)
        for path in pathlib.Path("/run/tproxy").glob(f"{self.name}@*"):
            path.unlink()  # of one that was killed
        if any(codes) and kind is None:
            raise Failed("\n".join(["tproxyd did not end well:", *map(Proxy.log, self._proxies)]))

    # --- the instance ---

    def loader(self, *words, check=True, prefix=(), binary=system.LOAD):
        return run([*prefix, binary, "--name", self.name, *words], check)

    def load(self, *words, **options):
        return self.loader("--cgroup", self.cgroup, *words, **options)

    def unload(self, **options):
        return self.loader("--unload", **options)

    def start_proxy(self, *words, prefix=(), ready=True, cgroup=None, program=system.TPROXYD,
                    **options):
        command = [*prefix, program, "--name", self.name, *words]
        proxy = Proxy(cgroup or self.servers, command, **options)
        self._proxies.append(proxy)
        return proxy.wait_ready() if ready else proxy

    def tool(self, *words, check=True):
        """Runs the operator's program on this instance."""
        return run([system.TPROXY, words[0], "--name", self.name, *words[1:]], check)

    # --- clients ---

    def run(self, command, check=True, **options):
        """Runs a command in the intercepted cgroup."""
        return run([*LAUNCHER, self.clients, *command], check, **options)

    def popen(self, command, **options):
        """Starts a command in the intercepted cgroup."""
        return subprocess.Popen([*LAUNCHER, str(self.clients), *map(str, command)], **options)

    @contextlib.contextmanager
    def inside(self, cgroup=None):
        """This process is in the intercepted cgroup for the length of the block."""
        here = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
        home = next(line.partition("::")[2] for line in here if line.startswith("0::"))
        system.cgroup_join(cgroup or self.clients)
        try:
            yield
        finally:
            system.cgroup_join(system.cgroup2_root() / home.lstrip("/"))

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        """A socket that the hooks apply to: what counts is the cgroup at its creation."""
        with self.inside():
            made = socket.socket(family, kind)
        made.settimeout(system.DEADLINE)
        return made

    def connect(self, address, family=None):
        """An intercepted connection to (host, port)."""
        made = self.socket(family or family_of(address[0]))
        try:
            made.connect(address)
        except BaseException:
            made.close()
            raise
        return made

    # --- what the kernel holds ---

    def map(self, name):
        """The entries of map_NAME as bpftool prints them, but for those that go meanwhile."""
        entries = bpftool("map", "dump", "pinned", self.pins / f"map_{name}")
        return [entry["formatted"] for entry in entries if "formatted" in entry]

    def records(self):
        return [entry["value"] for entry in self.map("socks")]

    def config(self):
        return self.map("config")[0]["value"]

    def counters(self):
        totals = {}
        for cpu in self.map("stats")[0]["values"]:
            for name, value in cpu["value"].items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def proxy_counters(self):
        """What the tproxyd of this network namespace has counted."""
        slot = next(i for i, proxy in enumerate(self.config()["proxies"])
                    if proxy["tgid"] == self.proxy.worker)
        return self.map("proxies")[slot]["value"]

    def links(self):
        """Pin name -> link as bpftool shows it."""
        return {pin.name: bpftool("link", "show", "pinned", pin)
                for pin in sorted(self.pins.glob("link_*"))}

    def wait_no_records(self):
        """Every record must go once its sockets have gone."""
        try:
            wait_for(lambda: not self.map("socks") and not self.map("ports"),
                     "map_socks and map_ports to be empty")
        except Failed as error:
            raise Failed(f"{error}; there are {self.map('socks')} {self.map('ports')}") from None
