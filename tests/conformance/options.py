# SPDX-License-Identifier: BSD-2-Clause
"""Options, other ways to connect, and other kinds of sockets."""

import asyncio
import errno
import functools
import os
import select
import socket
import struct
import tempfile
import threading

from . import uring
from .registry import scenario
from .stage import bits, name_of, poll_now, raw_connect, reset, sockaddr

TCP_FASTOPEN_CONNECT, TCP_USER_TIMEOUT, TCP_ULP = 30, 18, 31
MSG_FASTOPEN = 0x20000000
IPPROTO_MPTCP = 262
NO_COOKIE = 7  # the host at which nobody offers TCP Fast Open


@functools.cache
def mptcp():
    """MPTCP sockets (5.6, where it is configured)"""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True

# Values that a client may have set; what it reads back must be what it set, or the default.
OPTIONS = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "SO_REUSEADDR": (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    "SO_REUSEPORT": (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
    "SO_OOBINLINE": (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    "SO_RCVLOWAT": (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 3),
    "SO_PRIORITY": (socket.SOL_SOCKET, 12, 4),
    "SO_MARK": (socket.SOL_SOCKET, 36, 9),
    "TCP_NODELAY": (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    "TCP_CORK": (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 7),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
    "TCP_SYNCNT": (socket.IPPROTO_TCP, socket.TCP_SYNCNT, 4),
    "TCP_LINGER2": (socket.IPPROTO_TCP, socket.TCP_LINGER2, 20),
    "TCP_DEFER_ACCEPT": (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0),
    "TCP_QUICKACK": (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 12345),
    "TCP_NOTSENT_LOWAT": (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 99999),
    "TCP_THIN_LINEAR_TIMEOUTS": (socket.IPPROTO_TCP, 16, 1),
    "SO_PROTOCOL": (socket.SOL_SOCKET, 38, None),
    "SO_DOMAIN": (socket.SOL_SOCKET, 39, None),
    "SO_TYPE": (socket.SOL_SOCKET, socket.SO_TYPE, None),
    "SO_ACCEPTCONN": (socket.SOL_SOCKET, socket.SO_ACCEPTCONN, None),
    "SO_ERROR": (socket.SOL_SOCKET, socket.SO_ERROR, None),
    "SO_BINDTOIFINDEX": (socket.SOL_SOCKET, 62, None),
}
# Left out: TCP_MAXSEG and the buffer sizes, which depend on the path and follow the traffic, and
# TCP_CONGESTION, which tproxyd's hooks may choose for the way to it.


def options_of(sock):
    return {name: sock.getsockopt(level, number) for name, (level, number, _) in OPTIONS.items()}


def note_options(stage, what, sock):
    for name, value in options_of(sock).items():
        stage.note(f"{what} {name}", value)


@scenario()
def options_left_alone(stage):
    client = stage.socket()
    before = options_of(client)
    stage.pair(sock=client)
    after = options_of(client)
    stage.note("changed", sorted(name for name in before if before[name] != after[name]))
    note_options(stage, "connected", client)


@scenario()
def options_that_were_set(stage):
    client = stage.socket()
    for level, number, value in OPTIONS.values():
        if value is not None:
            client.setsockopt(level, number, value)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
    stage.pair(sock=client)
    note_options(stage, "connected", client)
    stage.note("SO_RCVTIMEO", client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16).hex())
    stage.note("SO_LINGER", client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).hex())


@scenario()
def options_of_a_refused_socket(stage):
    client = stage.socket()
    stage.connect(client, stage.closed_port())
    note_options(stage, "refused", client)


@scenario(modes=("blocking",))
def options_set_on_the_way(stage):
    client, server = stage.pair()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    client.send(b"corked ")
    client.send(b"together")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    stage.receive("server", server, 15)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stage.attempt("repair", client.setsockopt, socket.IPPROTO_TCP, 99, 1)
    note_options(stage, "then", client)


@scenario()
def SO_ORIGINAL_DST_on_the_client(stage):
    """Nothing was redirected, as far as it can tell."""
    client, server = stage.pair()
    for name, sock in (("client", client), ("server", server)):
        stage.attempt(f"{name} SOL_IP", sock.getsockopt, socket.IPPROTO_IP, 80, 16)
        stage.attempt(f"{name} SOL_IPV6", sock.getsockopt, socket.IPPROTO_IPV6, 80, 28)
        stage.attempt(f"{name} record", sock.getsockopt, 0x7470, 1, 256)


# --- other ways to connect ------------------------------------------------------------------------

@scenario()
def MSG_FASTOPEN_to_a_server(stage):
    """Directly there is a cookie from the second time on; through the proxy it may fall back."""
    listener = stage.listener()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    for attempt in ("first", "second"):
        client = stage.socket()
        sent = _fastopen(client, b"hello", stage.address(listener))
        if sent == -errno.EINPROGRESS and not stage.finish(client):
            stage.send(client, b"hello")  # no cookie: a connect as any other, without the data
        elif sent != 5:
            stage.note(f"{attempt} sent", sent)
        server = stage.accept(listener)
        stage.receive(f"{attempt} server", server, 5)
        stage.send(server, b"answer")
        stage.receive(f"{attempt} client", client, 6)
        stage.names(attempt, client, server)


def _fastopen(sock, data, address):
    try:
        return sock.sendto(data, MSG_FASTOPEN | socket.MSG_NOSIGNAL, address)
    except OSError as error:
        return -error.errno


@scenario()
def MSG_FASTOPEN_refused(stage):
    """At a host of which no run has a cookie: with one, the first write would connect."""
    client = stage.socket()
    sent = _fastopen(client, b"hello", stage.closed_port(NO_COOKIE))
    if not stage.blocking:
        stage.note("sent", name_of(-sent))
        sent = -stage.finish(client)
    stage.note("connect", name_of(-sent))
    stage.state("then", client)


@scenario(modes=("blocking",))
def MSG_FASTOPEN_nowhere(stage):
    sent = _fastopen(stage.socket(), b"hello", (stage.pick("10.80.3.1", "fd80:3::1"), 80))
    stage.note("connect", name_of(-sent))


@scenario()
def TCP_FASTOPEN_CONNECT_to_a_server(stage):
    """Without a cookie connect() makes the connection; with one the first write does."""
    listener = stage.listener()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    client = stage.socket()
    client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    error = client.connect_ex(stage.address(listener))
    if error == errno.EINPROGRESS and not stage.blocking:
        error = stage.finish(client)
    stage.note("connect", name_of(error))
    stage.send(client, b"hello")
    server = stage.accept(listener)
    stage.receive("server", server, 5)
    stage.names("client", client, server)
    stage.send(server, b"bye")
    server.close()
    stage.receive("client", client)


@scenario()
def TCP_FASTOPEN_CONNECT_refused(stage):
    client = stage.socket()
    client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    stage.connect(client, stage.closed_port(NO_COOKIE))


@scenario(needs=mptcp)
def an_MPTCP_client(stage):
    """Whatever it falls back to."""
    listener = stage.listener()
    client = stage.socket(protocol=IPPROTO_MPTCP)
    if stage.connect(client, stage.address(listener)):
        return
    server = stage.accept(listener)
    stage.names("client", client, server)
    stage.send(client, b"hello")
    stage.receive("server", server, 5)
    stage.send(server, b"bye")
    server.close()
    stage.receive("client", client)


@scenario(needs=mptcp)
def an_MPTCP_client_and_server(stage):
    listener = stage.listener(protocol=IPPROTO_MPTCP)
    client = stage.socket(protocol=IPPROTO_MPTCP)
    if stage.connect(client, stage.address(listener)):
        return
    server = stage.accept(listener)
    stage.names("client", client, server)
    stage.send(client, b"hello")
    client.shutdown(socket.SHUT_WR)
    stage.receive("server", server)
    stage.send(server, b"bye")
    server.close()
    stage.receive("client", client)


@scenario(needs=mptcp)
def an_MPTCP_client_refused(stage):
    client = stage.socket(protocol=IPPROTO_MPTCP)
    stage.connect(client, stage.closed_port())


@scenario(modes=("blocking",), needs=mptcp)
def an_MPTCP_client_nowhere(stage):
    client = stage.socket(protocol=IPPROTO_MPTCP)
    stage.connect(client, (stage.pick("10.99.0.1", "fd99::1"), 80))


@scenario()
def io_uring_connects(stage):
    listener, client = stage.listener(), stage.socket()
    with uring.Ring() as ring:
        address = _address(stage, *stage.address(listener))
        stage.note("good", name_of(-ring.connect(client, address)))
        server = stage.accept(listener)
        stage.names("client", client, server)
        stage.send(client, b"hello")
        stage.receive("server", server, 5)
        stage.note("again", name_of(-ring.connect(client, address)))
        other = stage.socket()
        stage.note("refused", name_of(-ring.connect(other, _address(stage, *stage.closed_port()))))
        stage.state("refused", other)
        for what, host in (("no route", stage.pick("10.99.0.1", "fd99::1")),
                           ("prohibit", stage.pick("10.80.3.1", "fd80:3::1"))):
            stage.note(what, name_of(-ring.connect(stage.socket(), _address(stage, host, 80))))


@scenario(modes=("blocking",))
def io_uring_gives_up(stage):
    """A connect request that is cancelled by the end of its ring."""
    port = stage.listener().getsockname()[1]
    client = stage.socket()
    nowhere = _address(stage, stage.dialled(stage.host(9)), port)
    with uring.Ring() as ring:
        stage.note("answer", ring.connect(client, nowhere, timeout=0.2))
    stage.state("then", client, "SYN_SENT")
    client.close()


def _address(stage, host, port):
    return sockaddr(stage.family, host, port)


@scenario(families=("v4", "v6"), modes=("non-blocking",))
def asyncio_streams(stage):
    listener = stage.listener()
    host, port = stage.address(listener)

    async def talk():
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"hello")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def refused():
        await asyncio.open_connection(*stage.closed_port())

    def serve():
        server = listener.accept()[0]
        data = b""
        while more := server.recv(100):
            data += more
        server.sendall(data[::-1])
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    stage.attempt("answer", asyncio.run, talk())
    thread.join()
    stage.attempt("refused", asyncio.run, refused())


@scenario(families=("v4", "v6"), modes=("blocking",))
def connect_through_a_duplicate(stage):
    listener, client = stage.listener(), stage.socket()
    twin = client.dup()
    stage.note("connect", name_of(twin.connect_ex(stage.address(listener))))
    server = stage.accept(listener)
    twin.close()
    stage.names("client", client, server)
    client.close()
    stage.receive("server", server)


@scenario(families=("v4", "v6"), modes=("blocking",))
def connecting_a_listener(stage):
    listening, listener = stage.listener(2), stage.listener(1)
    stage.note("connect", name_of(listening.connect_ex(stage.address(listener))))


# --- other kinds of sockets -----------------------------------------------------------------------

@scenario()
def UDP(stage):
    server = stage.keep(socket.socket(stage.served, socket.SOCK_DGRAM))
    server.bind((stage.host(), 0))
    client = stage.socket(socket.SOCK_DGRAM)
    stage.note("connect", name_of(client.connect_ex(stage.address(server))))
    stage.peername("client", client, stage.address(server))
    client.send(b"hello")
    data, peer = server.recvfrom(100)
    stage.note("server", f"{data} {peer[0]} {stage.dialled(peer[0]) == client.getsockname()[0]}")
    server.sendto(b"answer", peer)
    poll_now(client, select.POLLIN, 10)
    stage.attempt("client", client.recv, 100)
    stage.note("unspec", name_of(raw_connect(client, struct.pack("=H", 0) + bytes(14))))
    stage.peername("then", client)
    client.connect(stage.closed_port())
    client.send(b"x")
    stage.poll("refused", client, select.POLLERR)
    stage.so_error("refused", client)
    stage.note("no route", name_of(client.connect_ex((stage.pick("10.99.0.1", "fd99::1"), 80))))


@scenario(families=("v4",))
def UNIX(stage):
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        stage.note("none", name_of(stage.socket(family=socket.AF_UNIX).connect_ex(path)))
        server = stage.keep(socket.socket(socket.AF_UNIX))
        server.bind(path)
        stage.note("bound", name_of(stage.socket(family=socket.AF_UNIX).connect_ex(path)))
        server.listen()
        client = stage.socket(family=socket.AF_UNIX)
        stage.note("connect", name_of(client.connect_ex(path)))
        stage.note("peer", client.getpeername() == path)
        accepted = stage.accept(server)
        stage.send(client, b"hello")
        stage.receive("server", accepted, 5)
        reset(client)
        stage.receive("server", accepted)


@scenario(families=("v4", "v6"), modes=("blocking",))
def a_raw_socket(stage):
    client = stage.socket(socket.SOCK_RAW, 253)
    stage.note("connect", name_of(client.connect_ex((stage.host(), 0))))
    stage.attempt("peer", lambda: client.getpeername()[0])


@scenario(families=("v4", "v6"), modes=("blocking",))
def a_ping_socket(stage):
    with open("/proc/sys/net/ipv4/ping_group_range", "w", encoding="ascii") as file:
        file.write("0 0")
    client = stage.socket(socket.SOCK_DGRAM, socket.IPPROTO_ICMP if stage.kind == "v4"
                          else socket.IPPROTO_ICMPV6)
    stage.note("connect", name_of(client.connect_ex((stage.host(), 0))))
    client.send(struct.pack(">BBHHH", 8 if stage.kind == "v4" else 128, 0, 0, 0, 1))
    stage.note("answer", bits(poll_now(client, select.POLLIN, 10)))


@scenario(families=("v4",), modes=("blocking",))
def a_netlink_socket(stage):
    client = stage.socket(socket.SOCK_RAW, 0, socket.AF_NETLINK)
    stage.note("connect", name_of(client.connect_ex((0, 0))))


@scenario(families=("v4", "v6"), modes=("blocking",))
def kernel_TLS_can_be_asked_for(stage):
    """Whether or not the kernel has it, the answer is that of an established connection."""
    fresh = stage.socket()
    stage.attempt("before", fresh.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls")
    client, _ = stage.pair()
    stage.attempt("connected", client.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls")
