# SPDX-License-Identifier: BSD-2-Clause
"""
The two ends of a connection while a machine comes up, as programs:

	traffic.py serve	tells each client by which address it came, then echoes
	traffic.py ask NAME	writes to /run/boottest/NAME what a client and its server saw
	traffic.py stay		the same as `last`, and then does not go
"""

import json
import os
import pathlib
import signal
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import Server, echo, line, redirected  # noqa: E402

HERE = ("10.77.0.1", 7700)
REPORTS = pathlib.Path("/run/boottest")


def announce(connection):
    connection.sendall("{} {}\n".format(*connection.getpeername()).encode())
    echo(connection)


def serve():
    with Server(HERE[0], announce, HERE[1]), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"])
        notify.send(b"READY=1")
        while True:
            time.sleep(3600)


def ask(name, until=lambda: None):
    with socket.create_connection(HERE, 30) as client:
        seen = line(client)
        report = {"peer": client.getpeername(), "own": client.getsockname(), "seen": seen,
                  "redirected": redirected(client), "pid": os.getpid(),
                  "cgroup": pathlib.Path("/proc/self/cgroup").read_text().strip()}
        (REPORTS / name).write_text(json.dumps(report))
        until()


if __name__ == "__main__":
    {"serve": serve, "ask": ask, "stay": lambda: ask("last", signal.pause)}[sys.argv[1]](*sys.argv[2:])
