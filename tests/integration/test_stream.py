# SPDX-License-Identifier: BSD-2-Clause
"""What is more than the worker moves at a time."""

import contextlib
import fcntl
import os
import pathlib
import re
import signal
import socket
import struct
import termios

from harness import Sandbox, Server, case, main, tmpdir, wait_for
from harness.steps import Traced
from harness.system import DEADLINE

MEGABYTE = os.urandom(1 << 20)


@case
def a_stream_is_moved_in_large_pieces():
    """Larger than a pipe takes as it is made."""
    def send(connection):
        for _ in range(100):
            connection.sendall(MEGABYTE)

    with Sandbox() as box, Server("10.77.0.1", send) as server, tmpdir() as directory:
        with Traced(box.proxy.worker, "-o", directory / "strace", "-e", "splice"):
            with box.connect(server.address) as client:
                receive(client, 100 << 20)
            box.wait_no_records()
        moved = [int(count) for count in
                 re.findall(r"= (\d+)$", (directory / "strace").read_text(), re.M)]
    assert max(moved) > 1 << 16, max(moved)
    assert len(moved) < 2 * (100 << 20 >> 16), len(moved)


@contextlib.contextmanager
def large_buffers():
    """Of sockets made in the block."""
    settings = [pathlib.Path("/proc/sys/net/ipv4", name) for name in ("tcp_rmem", "tcp_wmem")]
    before = [setting.read_text() for setting in settings]
    for setting in settings:
        setting.write_text("4096 33554432 33554432")
    try:
        yield
    finally:
        for setting, text in zip(settings, before):
            setting.write_text(text)


def receive(client, count):
    while count:
        data = client.recv(min(count, 1 << 20))
        assert data, count
        count -= len(data)


@case
def all_that_came_before_a_reset_arrives():
    """Though the client sends something that the server does not take any more."""
    def serve(connection):
        connection.settimeout(DEADLINE)
        connection.sendall(32 * MEGABYTE)  # opens the windows: what a reset finds unsent is lost
        assert connection.recv(5) == b"hello"
        os.kill(box.proxy.worker, signal.SIGSTOP)
        connection.sendall(6 * MEGABYTE)
        wait_for(lambda: fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)) == bytes(4),
                 "all to be acknowledged")
        client.sendall(b"more")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        os.kill(box.proxy.worker, signal.SIGCONT)

    with (large_buffers(), Sandbox() as box, Server("10.77.0.1", serve) as server,
          box.connect(server.address) as client):
        receive(client, 32 << 20)
        client.sendall(b"hello")
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                got += len(data)
    assert got == 6 << 20, (got, server.errors)


main()
