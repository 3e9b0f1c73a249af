# SPDX-License-Identifier: BSD-2-Clause
"""Load that stops at the first thing that is wrong: tests/programs/stress.c and its server."""

import json
import pathlib
import signal
import subprocess
import tempfile
import threading

from . import system
from .system import Failed, program, wait_for

PORT = 7000
ADDRESSES = ["10.77.0.1", "10.77.0.2", "10.77.0.3", "fd77::1", "fd77::2"]

# What would fail, or come late, without any proxy. A client makes more connections than there are
# ports: those in TIME_WAIT are used again after a second, and there are as many as can be (none of
# them one that is listened on, where a client might meet itself). And a server whose queue stays
# full is asked for as long as the longest run takes.
QUIET = {
    "tcp_tw_reuse": "1",
    "tcp_max_tw_buckets": "1000000",  # else clients that have closed are forgotten before their time
    "ip_local_port_range": "20000 65535",
    "tcp_syn_retries": "127",
    "tcp_syn_linear_timeouts": "127",  # from Linux 6.5 on
}


def quiet_direct_path():
    """Settings of this network namespace."""
    for name, value in QUIET.items():
        path = pathlib.Path("/proc/sys/net/ipv4", name)
        if path.exists():
            path.write_text(value)


class Stress:
    """
    A server outside of the cgroup and a client in it (box=None: outside too), which works until
    finish(). Settings are those of stress.c; late_ms: how long the late port's queue is full, 0: to
    the end.
    """

    def __init__(self, box, late_ms=700, nice=0, **settings):
        self.errors, self.last = tempfile.TemporaryFile(), {"connections": 0, "ms": 0}
        nicely = ["nice", "-n", str(nice)]
        self.server = subprocess.Popen(
            [*system.WITH_TEST, *nicely, program("stress_server"), str(PORT), str(late_ms),
             *ADDRESSES],
            stdout=subprocess.PIPE, stderr=self.errors)
        if self.server.stdout.readline() != b"ready\n":
            raise Failed(f"stress_server: {self.said()}")
        command = [*nicely, program("stress"), str(PORT),
                   *(f"{name}={value}" for name, value in settings.items()), *ADDRESSES]
        self.client = (box.popen if box else subprocess.Popen)(command, stdout=subprocess.PIPE,
                                                               stderr=self.errors)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.client.stdout:
            self.last = json.loads(line)

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def check(self):
        """Raises what the client or the server found wrong."""
        if self.client.poll() is not None or self.server.poll() is not None:
            wait_for(lambda: self.client.poll() is not None, "the client to find out", 3)
            raise Failed(f"{self.said()}; after {self.last}")
        return self.last

    def wait(self, condition, what, deadline=system.DEADLINE):
        """Until condition(the last report)."""
        wait_for(lambda: condition(self.check()), what, deadline)

    def finish(self):
        """Lets every session come to its end; returns the last report."""
        self.client.send_signal(signal.SIGTERM)
        try:
            self.client.wait(180)
        except subprocess.TimeoutExpired:
            raise Failed(f"sessions do not end: {self.last}") from None
        self.reader.join()
        if self.client.returncode or self.server.poll() is not None:
            raise Failed(f"{self.said()}; after {self.last}")
        return self.last

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.client, self.server):
            process.kill()
            process.wait()
            process.stdout.close()
