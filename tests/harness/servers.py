# SPDX-License-Identifier: BSD-2-Clause
"""Origin servers, as threads of the test: outside of the intercepted cgroup."""

import contextlib
import select
import socket
import threading


def echo(connection):
    """Sends back what comes, until the client's FIN."""
    while data := connection.recv(65536):
        connection.sendall(data)


def swallow(connection):
    """Reads to the end and answers with the number of bytes."""
    total = 0
    while data := connection.recv(1 << 20):
        total += len(data)
    connection.sendall(str(total).encode())


def silent(connection):
    """Says nothing, until the client's FIN."""
    while connection.recv(65536):
        pass


def banner(connection):
    """Says which address the client reached, then waits for its FIN."""
    connection.sendall("{} {}\n".format(*connection.getsockname()[:2]).encode())
    silent(connection)


def witness(connection):
    """Says who is connected with whom, then waits for the client's FIN."""
    connection.sendall("{} {} {} {}\n".format(*connection.getsockname(),
                                              *connection.getpeername()).encode())
    silent(connection)


def assert_names(client, address, told):
    """The client's names for both ends are those that the witness, who is at `address`, has told."""
    names = "{} {} {} {}".format(*client.getpeername(), *client.getsockname())
    assert told == names and client.getpeername() == address, (told, names, address)


def hello(connection):
    """One HTTP response that names the server's own address."""
    request = b""
    while b"\r\n\r\n" not in request:
        data = connection.recv(4096)
        if not data:
            return
        request += data
    address = connection.getsockname()
    body = f"hello from {address[0]} {address[1]}\n".encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "
                       + str(len(body)).encode() + b"\r\n\r\n" + body)


def exchange(client, word=b"still"):
    """With a server that echoes."""
    client.sendall(word)
    assert client.recv(len(word), socket.MSG_WAITALL) == word


def connected(client):
    """Whether a connection that was begun without waiting is made."""
    waiting = select.poll()
    waiting.register(client, select.POLLOUT)
    return bool(waiting.poll(0)) and not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def line(connection):
    """Reads up to and with the next newline."""
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)
        if not more:
            break
        data += more
    return data.decode().strip()


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def free_port(address):
    """A port on which nothing listens (in a namespace where nobody else opens any)."""
    with socket.socket(family_of(address)) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


class Server:
    """
    Listens on an address and serves each connection in a thread with handler(connection). The
    peers' addresses are in .peers, what handlers raised in .errors.
    """

    def __init__(self, address, handler, port=0):
        self.peers, self.errors, self.connections = [], [], []
        self.handler = handler
        self.listener = socket.socket(family_of(address))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen(1024)
        self.address = self.listener.getsockname()[:2]
        self.port = self.address[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                connection, peer = self.listener.accept()
                self.peers.append(peer[:2])
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            try:
                self.handler(connection)
            except OSError as error:
                self.errors.append(error)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
