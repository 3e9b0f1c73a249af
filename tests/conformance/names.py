# SPDX-License-Identifier: BSD-2-Clause
"""getpeername, getsockname, and what the server sees of a client that chose its source."""

import array
import ctypes
import errno
import functools
import os
import select
import socket

from harness import Sandbox, Server, banner, in_netns, line

from .registry import scenario
from .stage import RESET, libc, name_of, poll_now, reset
from .worlds import MARK, MARK_PORT

SO_MARK = 36
IP_BIND_ADDRESS_NO_PORT = 24


@functools.cache
def reuse_lent():
    """hooks may set SO_REUSEADDR (6.1)"""
    with Sandbox() as box, Server("10.77.0.1", banner) as server, box.socket() as client:
        client.bind(("10.77.0.1", 0))
        port = client.getsockname()[1]
        client.connect(server.address)
        line(client)
        return server.peers[0][1] == port


@scenario()
def names_at_every_moment(stage):
    client, server = stage.pair()
    stage.names("connected", client, server)
    stage.names("dup", client.dup(), server)
    stage.send(client, b"x")
    stage.receive("server", server, 1)
    client.shutdown(socket.SHUT_WR)
    stage.names("half closed", client, server)
    address, mine = client.getpeername(), client.getsockname()
    server.close()
    stage.receive("client", client)
    stage.peername("after FIN", client, address)
    stage.note("after FIN getsockname", client.getsockname() == mine)


@scenario()
def names_after_a_reset(stage):
    client, server = stage.pair()
    reset(server)
    stage.poll("client", client, RESET)
    stage.peername("client", client)
    stage.note("getsockname", client.getsockname()[0])
    stage.receive("client", client)
    stage.peername("then", client)


@scenario()
def names_after_the_server_closed(stage):
    client, server = stage.pair()
    address = client.getpeername()
    server.close()
    stage.poll("client", client, select.POLLRDHUP)
    stage.state("client", client, "CLOSE_WAIT")
    stage.peername("client", client, address)
    stage.attempt("shutdown", client.shutdown, socket.SHUT_WR)
    stage.wait(lambda: poll_now(client) & select.POLLHUP)
    stage.state("finally", client, "CLOSE")
    stage.peername("finally", client)


@scenario(modes=("non-blocking",))
def names_as_soon_as_writable(stage):
    """Many times, without a pause: the answer must be there from the first moment."""
    listener = stage.listener(backlog=128)
    address, wrong, names = stage.address(listener), 0, set()
    for _ in range(50):
        client = stage.socket()
        client.connect_ex(address)
        poll_now(client, select.POLLOUT, 10)
        wrong += client.getpeername()[:2] != address
        names.add(client.getsockname()[:2])
    stage.note("wrong", wrong)
    peers = {(stage.dialled(server.getpeername()[0]), server.getpeername()[1]) for server in
             (stage.accept(listener) for _ in range(50))}
    stage.note("all are the server's peers", names == peers)


@scenario(modes=("blocking",))
def names_as_soon_as_connect_returns(stage):
    listener = stage.listener(backlog=128)
    address, wrong = stage.address(listener), 0
    for _ in range(50):
        client = stage.socket()
        client.connect(address)
        wrong += client.getpeername()[:2] != address
        mine = client.getsockname()[:2]
        theirs = stage.accept(listener).getpeername()[:2]
        wrong += mine != (stage.dialled(theirs[0]), theirs[1])
        client.close()
    stage.note("wrong", wrong)


@scenario(modes=("blocking",))
def names_in_a_child(stage):
    client, server = stage.pair()
    child = os.fork()
    if not child:
        want = stage.dialled(server.getsockname()[0]), server.getsockname()[1]
        mine = stage.dialled(server.getpeername()[0]), server.getpeername()[1]
        os._exit(client.getpeername()[:2] != want or (client.getsockname()[:2] != mine) * 2)
    stage.note("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    client.close()
    stage.receive("server", server)


@scenario(modes=("blocking",))
def names_of_a_socket_that_was_handed_on(stage):
    """Through a UNIX socket to a process that closes everything else."""
    client, server = stage.pair()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        _, control, _, _ = theirs.recvmsg(1, socket.CMSG_LEN(4))
        handed = socket.socket(fileno=array.array("i", control[0][2])[0])
        theirs.sendall(repr(handed.getpeername()[:2]).encode())
        handed.sendall(b"from the child")
        os._exit(0)
    theirs.close()
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                           array.array("i", [client.fileno()]))])
    client.close()
    stage.note("peer is as dialled", ours.recv(200).decode()
               == repr((stage.dialled(server.getsockname()[0]), server.getsockname()[1])))
    stage.receive("server", server)
    os.waitpid(child, 0)
    ours.close()


@scenario()
def both_ends_in_one_process(stage):
    client, server = stage.pair()
    stage.note("server's own name", server.getsockname()[0])
    stage.note("server's peer", server.getpeername()[0])


# --- a source that the client chose ---------------------------------------------------------------

def bound(stage, host, port=0, options=()):
    client = stage.socket()
    for level, option, value in options:
        client.setsockopt(level, option, value)
    client.bind((stage.dialled(host), port))
    return client


def meet(stage, client, listener):
    """Connects and notes the names."""
    if stage.connect(client, stage.address(listener)):
        return None
    server = stage.accept(listener)
    stage.names("client", client, server)
    stage.send(client, b"hello")
    stage.receive("server", server, 5)
    return server


@scenario()
def a_bound_address(stage):
    client = bound(stage, stage.host(5))
    server = meet(stage, client, stage.listener())
    stage.note("server sees", server.getpeername()[0])


@scenario()
def a_bound_address_without_a_port(stage):
    client = bound(stage, stage.host(5), 0,
                   [(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)])
    server = meet(stage, client, stage.listener())
    stage.note("server sees", server.getpeername()[0])


def free_port(stage, number):
    with socket.socket(stage.served) as probe:
        probe.bind((stage.host(number), 0))
        return probe.getsockname()[1]


@scenario()
def a_bound_port_with_SO_REUSEADDR(stage):
    port = free_port(stage, 5)
    client = bound(stage, stage.host(5), port, [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)])
    server = meet(stage, client, stage.listener())
    stage.note("server sees the port", server.getpeername()[1] == port)
    stage.note("client's own port", client.getsockname()[1] == port)


@scenario(needs=reuse_lent)
def a_bound_port_without_SO_REUSEADDR(stage):
    port = free_port(stage, 5)
    client = bound(stage, stage.host(5), port)
    server = meet(stage, client, stage.listener())
    stage.note("server sees the port", server.getpeername()[1] == port)
    stage.note("client's own port", client.getsockname()[1] == port)
    stage.note("SO_REUSEADDR", client.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))


@scenario()
def a_bound_port_of_any_address(stage):
    port = free_port(stage, 5)
    client = stage.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("" if stage.kind == "v4" else "::", port))
    server = meet(stage, client, stage.listener())
    stage.note("server sees the port", server.getpeername()[1] == port)


@scenario(modes=("blocking",))
def one_source_to_two_servers(stage):
    """Two sockets with the same address and port, and different destinations."""
    port = free_port(stage, 6)
    for number in (1, 2):
        client = bound(stage, stage.host(6), port, [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)])
        server = meet(stage, client, stage.listener(number))
        stage.note("server sees the port", server.getpeername()[1] == port)


@scenario(modes=("blocking",))
def one_source_to_one_server_twice(stage):
    """The second is the same connection as the first."""
    port, listener = free_port(stage, 6), stage.listener()
    for _ in range(2):
        client = bound(stage, stage.host(6), port, [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)])
        stage.note("connect", name_of(client.connect_ex(stage.address(listener))))


@scenario(modes=("blocking",))
def a_bound_source_is_used_again(stage):
    """After a reset nothing of the first connection is left to be in the way."""
    port, listener = free_port(stage, 6), stage.listener()
    for _ in range(3):
        client = bound(stage, stage.host(6), port, [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)])
        server = meet(stage, client, listener)
        if not server:
            return
        stage.note("server sees the port", server.getpeername()[1] == port)
        reset(client)
        stage.receive("server", server)
        server.close()


@scenario(modes=("blocking",))
def a_bound_socket_refused_and_then_not(stage):
    client = bound(stage, stage.host(5))
    before = client.getsockname()
    stage.connect(client, stage.closed_port(), "refused")
    stage.note("still bound", client.getsockname() == before)
    server = meet(stage, client, stage.listener())
    stage.note("server sees", server.getpeername()[0])


@scenario(modes=("blocking",))
def bind_after_a_failure(stage):
    client = stage.socket()
    stage.connect(client, stage.closed_port(), "refused")
    stage.attempt("bind", client.bind, (stage.dialled(stage.host(4)), 0))
    meet(stage, client, stage.listener())


@scenario(families=("v4", "v6"))
def bound_to_a_device(stage):
    client = stage.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    meet(stage, client, stage.listener())


def far_listener(stage, host):
    with in_netns(stage.far):
        listener = stage.keep(socket.socket(stage.served))
        listener.bind((host, 0))
        listener.listen(5)
    return listener


@scenario()
def a_far_server(stage):
    """Over a link: the source is the link's address."""
    host = stage.pick("10.79.0.2", "fd79::2").replace("::ffff:", "")
    listener = far_listener(stage, host)
    client = stage.socket()
    server = meet(stage, client, listener)
    stage.note("server sees", server.getpeername()[0])


@scenario()
def a_server_behind_a_router(stage):
    host = stage.pick("10.81.0.1", "fd81::1").replace("::ffff:", "")
    client = stage.socket()
    server = meet(stage, client, far_listener(stage, host))
    stage.note("server sees", server.getpeername()[0])


@scenario(families=("v4", "v6"))
def a_far_server_through_a_device(stage):
    host = stage.pick("10.79.0.2", "fd79::2")
    listener = far_listener(stage, host)
    client = stage.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"near0\0")
    server = meet(stage, client, listener)
    stage.note("server sees", server.getpeername()[0])


@scenario(families=("v4", "v6"), modes=("blocking",))
def the_wrong_device(stage):
    listener = far_listener(stage, stage.pick("10.81.0.1", "fd81::1"))
    client = stage.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    client.settimeout(0.5)
    try:
        client.connect(stage.address(listener))
        stage.note("connect", "ok")
    except TimeoutError:
        stage.note("connect", "waits")
    except OSError as error:
        stage.note("connect", name_of(error))


@scenario()
def a_marked_socket(stage):
    """The firewall rejects MARK at MARK_PORT: what the upstream is marked with decides."""
    number = 3 + 2 * stage.blocking + (stage.kind == "mapped")  # runs of their own address each
    listener = stage.listener(number, port=MARK_PORT)
    for mark in (0, 5, MARK):
        client = stage.socket()
        client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        if not stage.connect(client, stage.address(listener), f"mark {mark}"):
            stage.names(f"mark {mark}", client, stage.accept(listener))


@scenario(modes=("blocking",))
def options_of_the_address_family(stage):
    """IP_TOS, IPV6_TCLASS and the like do not get in the way."""
    client = stage.socket()
    if stage.family == socket.AF_INET:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
    else:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x10)
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 33)
    meet(stage, client, stage.listener())


@scenario(families=("v4", "v6"), modes=("blocking",))
def source_address_that_is_not_ours(stage):
    client = stage.socket()
    try:
        client.bind((stage.pick("10.66.0.1", "fd66::1"), 0))
    except OSError as error:
        stage.note("bind", name_of(error))
    client.setsockopt(*((socket.IPPROTO_IP, 15, 1) if stage.family == socket.AF_INET
                        else (socket.IPPROTO_IPV6, 78, 1)))  # IP_FREEBIND
    stage.attempt("freebind", client.bind, (stage.pick("10.66.0.1", "fd66::1"), 0))
    client.settimeout(0.3)
    error = client.connect_ex(stage.address(stage.listener()))
    stage.note("connect", "waits" if error in (errno.EAGAIN, errno.EINPROGRESS) else name_of(error))


@scenario(modes=("blocking",), needs=reuse_lent)
def a_socket_connected_to_itself(stage):
    """TCP's simultaneous open, which a port that the client is bound to makes possible."""
    client = bound(stage, stage.host(6))
    stage.connect(client, client.getsockname()[:2])
    stage.note("is its own peer", client.getsockname() == client.getpeername())
    stage.send(client, b"hello")
    stage.receive("client", client, 5)
    client.shutdown(socket.SHUT_WR)
    stage.receive("client", client)


@scenario()
def names_into_buffers_of_any_length(stage):
    """getsockname and getpeername cut the address short and say how long it is."""
    client, _ = stage.pair()
    for function in (libc.getpeername, libc.getsockname):
        for size in (0, 1, 2, 8, 16, 28, 128):
            buffer, length = ctypes.create_string_buffer(b"U" * 128, 129), ctypes.c_int(size)
            result = function(client.fileno(), buffer, ctypes.byref(length))
            raw = buffer.raw[:128]
            raw = raw[:2] + b"PP" + raw[4:] if size > 3 else raw[:2]  # the port cannot be noted
            stage.note(f"{function.__name__} {size}", f"{result} {length.value} {raw.hex()}")
        length = ctypes.c_int(-1)
        ctypes.set_errno(0)
        function(client.fileno(), ctypes.create_string_buffer(128), ctypes.byref(length))
        stage.note(f"{function.__name__} negative", name_of(ctypes.get_errno()))
