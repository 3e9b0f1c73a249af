# SPDX-License-Identifier: BSD-2-Clause
"""
The two worlds in which each suite runs: network namespaces and cgroups that are alike, one with the
hooks and a tproxyd, one without.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from harness import Sandbox, Skip, in_netns, new_netns, system, wait_for

# What a suite finds in its environment; nothing of ours may change how it behaves.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
               "HOME": "/root"}

# In net.: suites of new connections would otherwise run out of ports in both worlds.
PORTS = "1024 65000"


class World:
    """Runs programs in one of the worlds. `directory` is for what they write; it goes at the end."""

    def __init__(self, name, box, netns, directory):
        self.name, self.directory = name, directory
        self._box, self._netns = box, netns
        self._process = None

    def popen(self, command, cwd=None, environment=None, **options):
        """Starts a program; it ends with the world at the latest."""
        with in_netns(self._netns):
            return self._box.popen(command, cwd=cwd or self.directory, start_new_session=True,
                                   env={**ENVIRONMENT, **(environment or {})},
                                   stdin=options.pop("stdin", subprocess.DEVNULL), **options)

    def run(self, command, timeout=600, text_in=None, **options):
        """Runs a program to its end. Returns (exit status, its output); the status is None after
        `timeout` seconds."""
        with tempfile.TemporaryFile(dir=self.directory) as log:
            if text_in is not None:
                options["stdin"] = subprocess.PIPE
            process = self.popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
            try:
                process.communicate(text_in and text_in.encode(), timeout=timeout)
                status = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = None
            log.seek(0)
            return status, log.read().decode(errors="replace")

    def listening(self, port):
        """Whether a TCP socket listens on a port."""
        with in_netns(self._netns):
            for table in ("tcp", "tcp6"):
                rows = pathlib.Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
                if any(int(row.split()[1].rpartition(":")[2], 16) == port and row.split()[3] == "0A"
                       for row in rows):
                    return True
        return False

    @contextlib.contextmanager
    def serving(self, command, port, **options):
        """A server for the length of the block, which begins when it listens on the port."""
        with tempfile.TemporaryFile(dir=self.directory) as log:
            process = self.popen(command, stdout=log, stderr=subprocess.STDOUT, **options)

            def ready():
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} ended with {process.returncode}: "
                                       + log.read().decode(errors="replace"))
                return self.listening(port)
            try:
                wait_for(ready, f"{command[0]} to listen")
                yield process
            finally:
                process.terminate()
                process.wait()

    def clear(self):
        """Ends all processes that a suite left and removes its files."""
        (self._box.clients / "cgroup.kill").write_text("1")
        events = self._box.clients / "cgroup.events"
        wait_for(lambda: "populated 0" in events.read_text(), "what a suite left to end")
        for path in self.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

    def counters(self):
        """The kernel side's counters, as the operator sees them; {} where nothing is loaded."""
        if not self._box.proxy:
            return {}
        status = json.loads(self._box.tool("status", "--json").stdout)
        return status["instances"][0]["counters"]


@contextlib.contextmanager
def _world(name, **setup):
    with contextlib.ExitStack() as stack:
        netns = stack.enter_context(new_netns())
        directory = pathlib.Path(tempfile.mkdtemp(prefix=f"tptest-{name}-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)
        stack.enter_context(in_netns(netns))
        pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(PORTS)
        # No name is the beginning of another's: a sandbox removes what begins with its own.
        box = stack.enter_context(Sandbox(name=f"{system.unique()}-{name}", **setup))
        yield World(name, box, netns, directory)


@contextlib.contextmanager
def worlds():
    """(direct, proxied)."""
    with _world("direct", load=None) as direct, _world("proxied") as proxied:
        yield direct, proxied


def require(*packages):
    """Skips, naming what to install, where a Debian package that a suite comes from is missing."""
    missing = []
    for package in packages:
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], text=True,
                              capture_output=True, check=False)
        if "ok installed" not in done.stdout:
            missing.append(package)
    if missing:
        raise Skip(f"not installed; get it with: apt-get install {' '.join(missing)}")
