# SPDX-License-Identifier: BSD-2-Clause
"""Clients of all kinds that fail at the first thing that is wrong, and the processes they run through."""

import contextlib
import hashlib
import os
import pathlib
import random
import select
import socket
import struct
import threading

from .sandbox import redirected
from .servers import Server, echo, free_port
from .system import Failed, children, wait_for

HERE = "10.77.0.1"
BULK = 64 << 20


# --- the two processes of a tproxyd ---------------------------------------------------------------

def registered(box):
    return [proxy["tgid"] for proxy in box.config()["proxies"] if proxy["tgid"]]


def worker(box):
    """The worker, once it is registered, which is before it does anything."""
    def look():
        found = children(box.proxy.pid)
        return found[0] if found and registered(box) == found else None
    return wait_for(look, "a registered worker")


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
    joining = threading.Lock()

    def connect(self, address):
        with self.joining:
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


@contextlib.contextmanager
def held_client(box, joining=contextlib.nullcontext()):
    """
    In mid-handshake while the block runs, as its server's queue is full; then the server takes it,
    and speaks. `joining`: a lock for this process's joining a cgroup.
    """
    with socket.socket() as full, contextlib.ExitStack() as both:
        full.bind((HERE, 0))
        full.listen(0)
        with joining:
            both.enter_context(socket.create_connection(full.getsockname()))
            client = both.enter_context(box.socket())
        client.setblocking(False)
        assert client.connect_ex(full.getsockname()) != 0
        wait_for(lambda: any(record["dst"]["port"] == full.getsockname()[1] for record in box.records()),
                 "the handshake to be held")
        yield
        full.accept()[0].close()
        server, _ = full.accept()
        wait_for(lambda: select.select([], [client], [], 0)[1], "connect() to end")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        client.settimeout(20)
        with server:
            server.sendall(b"late")
            assert client.recv(4, socket.MSG_WAITALL) == b"late"
        assert redirected(client)


def unexpected_ends(proxy):
    """Lines about sessions that did not end as those of this load do."""
    expected = ("end=closed", "end=connect-failed", "end=reset-by-server")
    return [text for text in proxy.log().splitlines()
            if "end=" in text and not any(end in text for end in expected)]


def open_descriptors(box):
    """But for the pool of idle pipes, which may be there or not, and the log."""
    names = [os.readlink(entry) for entry in pathlib.Path(f"/proc/{box.proxy.pid}/fd").iterdir()]
    return sorted(name.partition(":")[0] for name in names
                  if not name.startswith(("pipe:", "/tmp/")))
