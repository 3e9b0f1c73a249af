# SPDX-License-Identifier: BSD-2-Clause
"""connect() that succeeds, is under way, is given up, or is done again."""

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
import threading

from .registry import scenario
from .stage import (RESET, bits, connecting_to, digest, libc, name_of, poll_now, raw_connect, reset,
                    sockaddr)

SO_SNDTIMEO = 21
AF_UNSPEC = struct.pack("=H", socket.AF_UNSPEC) + bytes(14)
SILENT = 9  # the host that never answers


def silent(stage):
    """The address of a server that never answers, at a port that no other run uses."""
    port = stage.listener().getsockname()[1]
    return stage.dialled(stage.host(SILENT)), port


def upstreams(stage, address):
    """Sockets of anybody in SYN_SENT to it, in whichever form the address is written."""
    host = stage.host(SILENT)
    return sum(connecting_to(form, address[1]) for form in {host, stage.dialled(host)})


@scenario()
def connect_succeeds(stage):
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    stage.state("client", client)
    stage.poll("client", client)
    stage.so_error("client", client)
    stage.names("client", client, stage.accept(listener))
    stage.note("connect again", name_of(client.connect_ex(stage.address(listener))))
    stage.note("connect elsewhere", name_of(client.connect_ex(stage.closed_port())))
    stage.poll("client", client)


@scenario()
def a_socket_before_connect(stage):
    client = stage.socket()
    stage.poll("fresh", client)
    stage.state("fresh", client)
    stage.peername("fresh", client)
    stage.note("getsockname", client.getsockname()[:2])
    stage.attempt("recv", client.recv, 1)
    stage.attempt("send", client.send, b"x", socket.MSG_NOSIGNAL)
    stage.attempt("shutdown", client.shutdown, socket.SHUT_WR)
    stage.so_error("fresh", client)


@scenario(modes=("non-blocking",))
def non_blocking_connect_step_by_step(stage):
    listener, client = stage.listener(), stage.socket()
    address = stage.address(listener)
    stage.note("first", name_of(client.connect_ex(address)))
    stage.note("writable", bits(poll_now(client, select.POLLOUT, 10)))
    stage.state("then", client)
    stage.poll("then", client)
    stage.peername("then", client, address)
    stage.note("second", name_of(client.connect_ex(address)))
    stage.note("third", name_of(client.connect_ex(address)))
    stage.attempt("recv", client.recv, 1)


@scenario(modes=("non-blocking",))
def non_blocking_connect_to_a_silent_server(stage):
    address, client = silent(stage), stage.socket()
    stage.note("first", name_of(client.connect_ex(address)))
    stage.note("second", name_of(client.connect_ex(address)))
    stage.note("within 300 ms", bits(poll_now(client, timeout=0.3)))
    stage.state("waiting", client)
    stage.so_error("waiting", client)
    stage.peername("waiting", client)
    stage.attempt("recv", client.recv, 1)
    stage.attempt("send", client.send, b"x", socket.MSG_NOSIGNAL)
    stage.note("third", name_of(client.connect_ex(address)))
    stage.note("bind", name_of(_bind_error(client, stage.host(2))))
    stage.note("upstreams", upstreams(stage, address))
    client.close()
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))


def _bind_error(sock, host):
    try:
        sock.bind((host, 0))
    except OSError as error:
        return error.errno
    return 0


@scenario(modes=("blocking",))
def a_blocking_connect_with_SO_SNDTIMEO(stage):
    address, client = silent(stage), stage.socket()
    client.setsockopt(socket.SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", 0, 200000))
    stage.note("first", name_of(client.connect_ex(address)))
    stage.note("second", name_of(client.connect_ex(address)))
    stage.state("then", client)
    client.close()
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))


@scenario()
def a_silent_server_and_few_SYNs(stage):
    address, client = silent(stage), stage.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    stage.timed_connect(client, address)
    stage.poll("after", client)
    stage.state("after", client)
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))
    stage.connect(client, stage.address(stage.listener()), "another try")


@scenario(modes=("blocking",))
def a_silent_server_and_TCP_USER_TIMEOUT(stage):
    address, client = silent(stage), stage.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
    stage.timed_connect(client, address)
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))


@scenario(modes=("blocking",))
def a_signal_interrupts_connect(stage):
    address, client = silent(stage), stage.socket()
    data = sockaddr(client.family, *address)
    interrupted = []
    # By libc, because socket.connect() would go on waiting after the handler.
    before = signal.signal(signal.SIGUSR1, lambda *_: interrupted.append(1))
    signal.siginterrupt(signal.SIGUSR1, True)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        stage.note("first", name_of(raw_connect(client, data)))
        stage.note("interrupted", bool(interrupted))
        client.setblocking(False)
        stage.note("second", name_of(raw_connect(client, data)))
        stage.state("then", client)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    client.close()
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))


@scenario(modes=("blocking",))
def shutdown_by_another_thread_during_connect(stage):
    address, client = silent(stage), stage.socket()
    # Some kernels refuse to (EBUSY), and connect() goes on.
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    timer = threading.Timer(0.2, lambda: stage.attempt("shutdown", client.shutdown,
                                                       socket.SHUT_RDWR))
    timer.start()
    error = client.connect_ex(address)
    timer.join()
    stage.note("connect", name_of(error))
    stage.state("then", client)
    stage.poll("then", client)
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))
    stage.connect(client, stage.address(stage.listener()), "another try")


@scenario()
def connect_then_close(stage):
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    client.close()
    stage.receive("server", stage.accept(listener))


@scenario()
def connect_then_reset(stage):
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    reset(client)
    stage.receive("server", stage.accept(listener))


@scenario(modes=("non-blocking",))
def close_at_once_without_waiting_for_connect(stage):
    """On loopback the handshake is over before close(); what matters is that nothing is left."""
    address, client = stage.closed_port(), stage.socket()
    client.connect_ex(address)
    client.close()
    stage.until("no upstream", lambda: not connecting_to(address[0], address[1]))


@scenario()
def refused(stage):
    client, address = stage.socket(), stage.closed_port()
    stage.timed_connect(client, address)
    stage.so_error("after", client)
    stage.poll("after", client)
    stage.state("after", client)
    stage.peername("after", client)
    name = client.getsockname()
    stage.note("getsockname", name[0])
    stage.attempt("send", client.send, b"x", socket.MSG_NOSIGNAL)
    stage.attempt("recv", client.recv, 1)


@scenario(modes=("non-blocking",))
def refused_and_told_by_the_second_connect(stage):
    client, address = stage.socket(), stage.closed_port()
    stage.note("first", name_of(client.connect_ex(address)))
    stage.poll("then", client, RESET)
    stage.note("second", name_of(client.connect_ex(address)))
    stage.poll("after second", client)
    stage.note("third", name_of(client.connect_ex(address)))
    stage.poll("after third", client, RESET)
    stage.so_error("then", client)
    stage.note("after SO_ERROR", name_of(client.connect_ex(address)))


@scenario(modes=("non-blocking",))
def refused_and_told_by_recv_and_send(stage):
    for what, call in (("recv", lambda s: s.recv(1)),
                       ("send", lambda s: s.send(b"x", socket.MSG_NOSIGNAL))):
        client = stage.socket()
        client.connect_ex(stage.closed_port())
        stage.poll(what, client, RESET)
        stage.attempt(what, call, client)
        stage.attempt(f"{what} again", call, client)
        stage.poll(f"after {what}", client)


@scenario()
def refused_and_tried_again(stage):
    client = stage.socket()
    for number in range(3):
        stage.connect(client, stage.closed_port(), f"refused {number}")
    listener = stage.listener()
    if stage.connect(client, stage.address(listener), "at last"):
        stage.connect(client, stage.address(listener), "once more")
    server = stage.accept(listener)
    stage.names("client", client, server)
    stage.send(client, b"hello")
    stage.receive("server", server, 5)


@scenario()
def the_same_address_begins_to_listen(stage):
    """A client that waits for its server to come up."""
    waiting = stage.keep(socket.socket(stage.served))
    waiting.bind((stage.host(), 0))
    address = stage.address(waiting)
    stage.connect(stage.socket(), address, "before")
    waiting.listen(5)
    client = stage.socket()
    stage.connect(client, address, "after")
    stage.names("client", client, stage.accept(waiting))
    waiting.close()
    stage.connect(stage.socket(), address, "closed again")


def unspec(stage, sock, what):
    stage.note(what, name_of(raw_connect(sock, AF_UNSPEC)))


@scenario()
def disconnect_and_connect_elsewhere(stage):
    one, two = stage.listener(1), stage.listener(2)
    client, server = stage.pair(one)
    stage.names("first", client, server)
    stage.send(client, b"one")
    stage.receive("server one", server, 3)
    unspec(stage, client, "AF_UNSPEC")
    stage.receive("server one", server)
    stage.state("between", client)
    stage.poll("between", client)
    stage.peername("between", client)
    stage.note("getsockname between", client.getsockname()[0])
    stage.connect(client, stage.address(two))
    server = stage.accept(two)
    stage.names("second", client, server)
    stage.send(client, b"two")
    stage.receive("server two", server, 3)
    unspec(stage, client, "AF_UNSPEC")
    stage.connect(client, stage.closed_port(), "refused")
    unspec(stage, client, "AF_UNSPEC")
    stage.connect(client, stage.address(one), "back")
    stage.names("third", client, stage.accept(one))


@scenario(modes=("non-blocking",))
def disconnect_while_connecting(stage):
    address, client, listener = silent(stage), stage.socket(), stage.listener()
    stage.note("connect", name_of(client.connect_ex(address)))
    stage.wait(lambda: upstreams(stage, address))
    unspec(stage, client, "AF_UNSPEC")
    stage.state("then", client)
    stage.until("the upstream has gone", lambda: not upstreams(stage, address))
    stage.connect(client, stage.address(listener), "elsewhere")
    server = stage.accept(listener)
    stage.names("client", client, server)
    stage.send(server, b"banner")
    stage.receive("client", client, 6)


@scenario(families=("v4", "v6"), modes=("blocking",))
def a_connected_socket_becomes_a_listener(stage):
    listener = stage.listener()
    client, _ = stage.pair(listener)
    unspec(stage, client, "AF_UNSPEC")
    client.bind((stage.host(3), 0))
    stage.attempt("listen", client.listen, 5)
    other, accepted = stage.pair(client)
    stage.names("other", other, accepted)


@scenario()
def a_server_whose_backlog_is_full(stage):
    """The kernel then drops SYNs; the client's own are sent again after a second."""
    listener = stage.listener(backlog=0)
    first = stage.socket()
    stage.connect(first, stage.address(listener), "first")
    client = stage.socket()
    client.setblocking(False)
    stage.note("second", name_of(client.connect_ex(stage.address(listener))))
    stage.note("within 300 ms", bits(poll_now(client, timeout=0.3)))
    stage.accept(listener)
    stage.note("once there is room", bits(poll_now(client, timeout=10)))
    stage.so_error("second", client)
    stage.names("second", client, stage.accept(listener))


@scenario()
def the_listener_closes_before_it_accepts(stage):
    """What is in its queue is reset."""
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    stage.send(client, b"hello")
    listener.close()
    stage.poll("client", client, RESET)
    stage.receive("client", client)
    stage.attempt("send", client.send, b"x", socket.MSG_NOSIGNAL)


@scenario()
def many_at_once_from_one_thread(stage):
    """To a listener of its own that accepts none before all are connected."""
    listener = stage.listener(backlog=100)
    clients = [stage.socket() for _ in range(40)]
    for client in clients:
        error = client.connect_ex(stage.address(listener))
        if error not in (0, errno.EINPROGRESS):
            stage.note("connect", name_of(error))
    results = {name_of(stage.finish(client)) for client in clients}
    stage.note("results", sorted(results))
    servers = {server.getpeername()[1]: server for server in
               (stage.accept(listener) for _ in clients) if server}
    stage.note("accepted", len(servers))
    wrong = 0
    for number, client in enumerate(clients):
        server = servers.get(client.getsockname()[1])
        if not server:
            wrong += 1
            continue
        stage.send(server, b"%04d" % number)
        wrong += stage.read(client, 4)[0] != b"%04d" % number
    stage.note("mixed up", wrong)


@scenario(modes=("non-blocking",))
def many_refused_at_once(stage):
    address = stage.closed_port()
    clients = [stage.socket() for _ in range(40)]
    for client in clients:
        client.connect_ex(address)
    stage.note("results", sorted({name_of(stage.finish(client)) for client in clients}))


@scenario(modes=("non-blocking",))
def epoll_edges(stage):
    """Which events an edge-triggered watcher sees, armed before connect()."""
    listener, client = stage.listener(), stage.socket()
    watcher = select.epoll()
    watcher.register(client, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI
                     | select.EPOLLET)

    def events(what, want):
        seen = 0
        while not seen & want and (ready := watcher.poll(10)):
            seen |= ready[0][1]
        stage.note(what, bits(seen))

    with contextlib.closing(watcher):
        events("fresh", select.EPOLLHUP)
        client.connect_ex(stage.address(listener))
        events("connected", select.EPOLLOUT)
        server = stage.accept(listener)
        stage.send(server, b"x")
        events("a byte", select.EPOLLIN)
        stage.receive("client", client, 1)
        server.shutdown(socket.SHUT_WR)
        events("FIN", select.EPOLLRDHUP)
        stage.receive("client", client)
        reset(server)
        events("reset", select.EPOLLERR)
        stage.so_error("client", client)


@scenario(modes=("non-blocking",))
def select_on_a_connect(stage):
    listener, good, bad = stage.listener(), stage.socket(), stage.socket()
    good.connect_ex(stage.address(listener))
    bad.connect_ex(stage.closed_port())
    for name, sock in (("good", good), ("bad", bad)):
        stage.wait(lambda sock=sock: select.select([], [sock], [], 1)[1])
        ready = select.select([sock], [sock], [sock], 0)
        stage.note(f"select of the {name} one", [bool(part) for part in ready])


@scenario(families=("v4", "v6"), modes=("blocking",))
def happy_eyeballs(stage):
    """A client that tries addresses in turn, as libraries do."""
    listener = stage.listener()
    good = stage.address(listener)
    tries = [stage.pick(("10.99.0.1"), "fd99::1"), stage.host(7), good[0]]
    for host in tries:
        try:
            sock = stage.keep(socket.create_connection((host, good[1]), 5))
        except OSError as error:
            stage.note(host, name_of(error))
            continue
        stage.note(host, "connected")
        stage.names("client", sock, stage.accept(listener))


@scenario(families=("v4", "v6"), modes=("blocking",))
def data_with_the_first_flight(stage):
    """What is written right after connect() returns, before the server has accepted."""
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    stage.send(client, b"early")
    client.shutdown(socket.SHUT_WR)
    server = stage.accept(listener)
    data, end = stage.read(server)
    stage.note("server received", f"{digest(data)}, {end}")
    stage.send(server, b"late")
    server.close()
    stage.receive("client", client)


def in_threads(count, function):
    threads = [threading.Thread(target=function, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@scenario(modes=("blocking",))
def threads_that_connect_at_the_same_time(stage):
    listener = stage.listener()
    address, refused_address, results = stage.address(listener), stage.closed_port(), []

    def one(number):
        sock = stage.socket()
        error = sock.connect_ex(address if number % 2 else refused_address)
        results.append((number % 2, name_of(error)))

    in_threads(16, one)
    stage.note("results", sorted(set(results)))
    stage.note("all", len(results))


@scenario(modes=("blocking",))
def a_child_process_connects_an_inherited_socket(stage):
    listener, client = stage.listener(), stage.socket()
    address = stage.address(listener)
    child = os.fork()
    if not child:
        os._exit(client.connect_ex(address) & 0x7f)
    stage.note("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    server = stage.accept(listener)
    stage.names("parent", client, server)
    stage.send(client, b"hello")
    stage.receive("server", server, 5)


@scenario(modes=("blocking",))
def the_process_that_connects_dies(stage):
    """Its sockets are closed by the kernel; killed in the middle of connect(), too."""
    listener = stage.listener()
    address, nowhere = stage.address(listener), silent(stage)
    connected, tell = os.pipe()
    for what, where in (("connected", address), ("connecting", nowhere)):
        child = os.fork()
        if not child:
            stage.socket().connect_ex(where)
            os.write(tell, b"x")
            signal.pause()
        if what == "connected":
            os.read(connected, 1)
        else:
            stage.until("an upstream", lambda: upstreams(stage, nowhere) > 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if what == "connected":
            stage.receive("server", stage.accept(listener))
    os.close(connected)
    os.close(tell)
    stage.until("the upstream has gone", lambda: not upstreams(stage, nowhere))


@scenario(families=("v4", "v6"), modes=("blocking",))
def connect_with_a_bad_pointer(stage):
    client = stage.socket()
    ctypes.set_errno(0)
    libc.connect(client.fileno(), ctypes.c_void_p(8), 16)
    stage.note("connect", name_of(ctypes.get_errno()))
    stage.note("not a socket", name_of(libc.connect(0, bytes(16), 16) and ctypes.get_errno()))
