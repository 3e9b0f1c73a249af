# SPDX-License-Identifier: BSD-2-Clause
"""How connections end: FIN in either order, resets, and everything that was sent before."""

import os
import pathlib
import select
import socket
import struct
import threading

from .registry import scenario, scenario_for
from .stage import RESET, digest, name_of, pattern, poll_now, reset, unsent

SO_ZEROCOPY, MSG_ZEROCOPY_FLAG = 60, 0x4000000
BIG = pattern(3_000_000, 7)
LITTLE = pattern(5000, 3)


def ends(stage, actor_is_client):
    """(name, socket) of the end that acts, and of the other one."""
    client, server = stage.pair()
    pair = ("client", client), ("server", server)
    return pair if actor_is_client else pair[::-1]


EITHER = {"client": (True,), "server": (False,)}


@scenario_for(EITHER)
def FIN_first_by_the(stage, actor_is_client):
    (one, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"last words")
    actor.shutdown(socket.SHUT_WR)
    stage.poll(two, other, select.POLLRDHUP)
    stage.state(one, actor, "FIN_WAIT2")
    stage.state(two, other, "CLOSE_WAIT")
    stage.receive(two, other)
    stage.poll(two, other)
    stage.send(other, b"answer")
    stage.receive(one, actor, 6)
    stage.attempt(f"{one} sends", actor.send, b"x", socket.MSG_NOSIGNAL)
    stage.poll(one, actor)
    other.shutdown(socket.SHUT_WR)
    stage.poll(one, actor, select.POLLHUP)
    stage.poll(two, other, select.POLLHUP)
    stage.receive(one, actor)
    stage.attempt(f"{two} sends", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.so_error(one, actor)
    stage.state(two, other, "CLOSE")


@scenario_for(EITHER)
def FIN_and_a_lot_the_other_way(stage, actor_is_client):
    """A half-closed connection carries what is in flight, and long after."""
    (one, actor), (two, other) = ends(stage, actor_is_client)
    sender = threading.Thread(target=lambda: (stage.send(other, BIG),
                                              other.shutdown(socket.SHUT_WR)))
    sender.start()
    stage.send(actor, b"x" * 1000)
    actor.shutdown(socket.SHUT_WR)
    stage.receive(one, actor)
    sender.join()
    stage.receive(two, other)


@scenario()
def both_close_at_the_same_time(stage):
    client, server = stage.pair()
    stage.send(client, b"from the client")
    stage.send(server, b"from the server")
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    stage.receive("client", client)
    stage.receive("server", server)
    stage.poll("client", client, select.POLLHUP)
    stage.poll("server", server, select.POLLHUP)
    stage.so_error("client", client)
    stage.so_error("server", server)


@scenario_for(EITHER)
def write_then_close_by_the(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    sender = threading.Thread(target=lambda: (stage.send(actor, BIG), actor.close()))
    sender.start()
    stage.receive(two, other)
    sender.join()
    stage.poll(two, other)
    stage.state(two, other, "CLOSE_WAIT")


@scenario_for(EITHER)
def write_little_then_close_by_the(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, LITTLE)
    actor.close()
    stage.receive(two, other)


@scenario_for(EITHER)
def a_reset_by_the(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    reset(actor)
    stage.poll(two, other, RESET)
    stage.state(two, other, "CLOSE")
    stage.peername(two, other)
    stage.receive(two, other)
    stage.so_error(two, other)
    stage.poll(two, other)
    stage.attempt("recv again", other.recv, 1)
    stage.attempt("send", other.send, b"x", socket.MSG_NOSIGNAL)


@scenario_for(EITHER)
def a_reset_met_by_a_write(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    reset(actor)
    stage.poll(two, other, RESET)
    stage.attempt("send", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.attempt("send again", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.attempt("recv", other.recv, 1)


@scenario_for(EITHER)
def a_reset_after_data(stage, actor_is_client):
    """What was delivered before is read before."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, LITTLE)
    stage.arrived(other, len(LITTLE))
    reset(actor)
    stage.poll(two, other, RESET)
    stage.receive(two, other)
    stage.attempt("send", other.send, b"x", socket.MSG_NOSIGNAL)


@scenario_for(EITHER)
def a_reset_right_after_data(stage, actor_is_client):
    """Without a look at whether it has arrived: a small write is on its way at once."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, LITTLE)
    stage.acknowledged(actor)
    reset(actor)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_reset_with_a_lot_unread(stage, actor_is_client):
    """All that the reader's window has taken is still to be read."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    data = pattern(40000, 11)
    stage.send(actor, data)
    stage.arrived(other, len(data))
    reset(actor)
    stage.poll(two, other, RESET)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_reset_after_the_own_FIN(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"bye")
    actor.shutdown(socket.SHUT_WR)
    stage.poll(two, other, select.POLLRDHUP)
    stage.receive(two, other)
    reset(actor)
    stage.poll(two, other, RESET)
    stage.so_error(two, other)
    stage.attempt("send", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_reset_after_the_own_FIN_unread(stage, actor_is_client):
    """The other end has not looked before both had come."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"bye")
    actor.shutdown(socket.SHUT_WR)
    stage.poll(two, other, select.POLLRDHUP)
    reset(actor)
    stage.poll(two, other, RESET)
    stage.receive(two, other)
    stage.receive(f"{two} again", other)


@scenario_for(EITHER)
def a_reset_after_the_others_FIN(stage, actor_is_client):
    (one, actor), (two, other) = ends(stage, actor_is_client)
    other.shutdown(socket.SHUT_WR)
    stage.poll(one, actor, select.POLLRDHUP)
    reset(actor)
    stage.poll(two, other, RESET)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_close_with_unread_data(stage, actor_is_client):
    """Is a reset."""
    (one, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(other, LITTLE)
    stage.note(f"{one} has it", stage.arrived(actor, len(LITTLE)))
    actor.close()
    stage.poll(two, other, RESET)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_close_with_unread_data_and_data_sent(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(other, LITTLE)
    stage.arrived(actor, len(LITTLE))
    stage.send(actor, b"answer")
    stage.arrived(other, 6)
    actor.close()
    stage.poll(two, other, RESET)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_write_to_a_closed_end(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    actor.close()
    stage.receive(two, other)
    stage.attempt("first write", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.poll(two, other, RESET)
    stage.attempt("second write", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.attempt("third write", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.receive(two, other)


@scenario_for(EITHER)
def a_big_write_to_an_end_that_resets(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    met = []

    def write():
        try:
            while True:
                stage.send(other, BIG)
        except OSError as error:
            met.append(name_of(error))

    writer = threading.Thread(target=write)
    writer.start()
    stage.read(actor, 500_000)
    reset(actor)
    writer.join()
    stage.note(f"{two} writing", met)
    stage.receive(two, other)


@scenario_for(EITHER)
def shutdown_of_reading(stage, actor_is_client):
    """Local to the end that does it."""
    (one, actor), (two, other) = ends(stage, actor_is_client)
    stage.attempt("shutdown", actor.shutdown, socket.SHUT_RD)
    stage.poll(one, actor)
    stage.receive(one, actor)
    stage.send(other, b"unwanted")
    stage.arrived(actor, 8)
    stage.attempt(f"{one} still gets", actor.recv, 100)
    stage.send(actor, b"hello")
    stage.receive(two, other, 5)
    stage.attempt("shutdown of both", actor.shutdown, socket.SHUT_RDWR)
    stage.receive(two, other)


@scenario_for(EITHER)
def shutdown_of_both(stage, actor_is_client):
    (one, actor), (two, other) = ends(stage, actor_is_client)
    actor.shutdown(socket.SHUT_RDWR)
    stage.poll(one, actor)
    stage.poll(two, other, select.POLLRDHUP)
    stage.receive(two, other)
    stage.attempt("write", other.send, b"x", socket.MSG_NOSIGNAL)
    stage.poll(one, actor, RESET)  # there is nobody to read it
    stage.so_error(one, actor)
    stage.poll(two, other, RESET)
    stage.attempt("shutdown again", actor.shutdown, socket.SHUT_WR)


@scenario(modes=("blocking",))
def close_waits_with_SO_LINGER(stage):
    """Until the peer has acknowledged everything, the FIN included."""
    client, server = stage.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
    stage.send(client, LITTLE)
    client.close()
    stage.receive("server", server)


@scenario()
def a_server_that_speaks_first(stage):
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    server = stage.accept(listener)
    stage.send(server, b"220 hello\r\n")
    stage.receive("client", client, 11)
    stage.send(client, b"QUIT\r\n")
    stage.receive("server", server, 6)
    stage.send(server, b"221 bye\r\n")
    server.close()
    stage.receive("client", client)


@scenario()
def a_server_that_speaks_once_and_closes(stage):
    """daytime and the like: everything has happened before the client first reads."""
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    server = stage.accept(listener)
    stage.send(server, LITTLE)
    server.close()
    stage.poll("client", client, select.POLLRDHUP)
    stage.receive("client", client)
    stage.so_error("client", client)


@scenario()
def a_server_that_accepts_and_resets(stage):
    listener, client = stage.listener(), stage.socket()
    stage.connect(client, stage.address(listener))
    reset(stage.accept(listener))
    stage.poll("client", client, RESET)
    stage.receive("client", client)


@scenario(families=("v4", "v6"))
def a_server_that_speaks_and_resets_before_the_client_looks(stage):
    listener, client = stage.listener(), stage.socket()
    client.connect_ex(stage.address(listener))
    server = stage.accept(listener)
    stage.send(server, b"go away")
    stage.acknowledged(server)
    reset(server)
    stage.poll("client", client, RESET)
    stage.receive("client", client)


# --- bytes ----------------------------------------------------------------------------------------

@scenario_for(EITHER)
def one_byte_back_and_forth(stage, actor_is_client):
    (one, actor), (two, other) = ends(stage, actor_is_client)
    for number in range(200):
        stage.send(actor, bytes([number]))
        if stage.read(other, 1) != (bytes([number]), "more"):
            stage.note(f"{two} lost byte", number)
        stage.send(other, bytes([255 - number]))
        if stage.read(actor, 1) != (bytes([255 - number]), "more"):
            stage.note(f"{one} lost byte", number)
    stage.note("rounds", 200)


@scenario_for(EITHER, modes=("non-blocking",))
def many_small_writes(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    data = pattern(30_000, 5)

    def write():
        for at in range(0, len(data), 7):
            stage.send(actor, data[at:at + 7])
        actor.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    stage.receive(two, other)
    writer.join()


@scenario_for(EITHER, modes=("blocking",))
def a_slow_reader(stage, actor_is_client):
    """More than fits into the buffers on the way: the sender is held back, and nothing is lost."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    largest = sum(int(pathlib.Path(f"/proc/sys/net/ipv4/tcp_{kind}").read_text().split()[2])
                  for kind in ("rmem", "wmem"))
    data, sent = pattern(2 * largest + 1_000_000, 9), 0
    actor.setblocking(False)
    while sent < len(data) and poll_now(actor, select.POLLOUT, 0.3):
        try:
            sent += actor.send(data[sent:sent + 1_000_000])
        except BlockingIOError:
            pass
    stage.note("held back", sent < len(data))
    writer = threading.Thread(target=lambda: (stage.send(actor, data[sent:]),
                                              actor.shutdown(socket.SHUT_WR)))
    writer.start()
    stage.receive(two, other)
    writer.join()


@scenario()
def a_lot_both_ways(stage):
    client, server = stage.pair()
    up, down = pattern(4_000_000, 1), pattern(2_500_000, 2)
    threads = [threading.Thread(target=lambda s=s, d=d: (stage.send(s, d),
                                                         s.shutdown(socket.SHUT_WR)))
               for s, d in ((client, up), (server, down))]
    got = {}
    threads += [threading.Thread(target=lambda n=n, s=s: got.update({n: stage.read(s)}))
                for n, s in (("client", client), ("server", server))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("client", "server"):
        stage.note(name, f"{digest(got[name][0])}, {got[name][1]}")


@scenario(modes=("non-blocking",))
def writable_again_after_a_stall(stage):
    """POLLOUT goes when the peer does not read, and comes back when it does."""
    client, server = stage.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    chunk, sent, full = bytes(65536), 0, 0
    while full < 4:  # for a while: some more fits before POLLOUT says so
        try:
            sent += client.send(chunk)
            full = 0
        except BlockingIOError:
            full += 1
            poll_now(client, select.POLLOUT, 0.3)
    stage.poll("stalled", client)
    stage.attempt("send", client.send, b"x", socket.MSG_NOSIGNAL)
    data, end = stage.read(server, sent)
    stage.note("server", f"{len(data) == sent} {end}")
    stage.poll("drained", client, select.POLLOUT)
    stage.note("unsent", unsent(client) if stage.acknowledged(client) else "some")


@scenario(modes=("blocking",))
def peeking_and_waiting_for_all(stage):
    client, server = stage.pair()
    stage.send(server, b"0123456789")
    stage.arrived(client, 10)
    stage.attempt("peek", client.recv, 4, socket.MSG_PEEK)
    stage.attempt("peek again", client.recv, 20, socket.MSG_PEEK)
    timer = threading.Timer(0.1, server.sendall, (b"abcdefghij",))
    timer.start()
    stage.attempt("wait for all", client.recv, 20, socket.MSG_WAITALL)
    timer.join()
    stage.attempt("do not wait", client.recv, 1, socket.MSG_DONTWAIT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50000))
    stage.attempt("with a timeout", client.recv, 1)
    stage.send(server, b"abc")
    stage.arrived(client, 3)
    stage.attempt("truncated", lambda: client.recv_into(bytearray(2), 2, socket.MSG_TRUNC))


@scenario(modes=("blocking",))
def SO_RCVLOWAT(stage):
    client, server = stage.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    stage.send(server, b"12345")
    stage.arrived(client, 5)
    stage.poll("5 of 10", client)
    stage.send(server, b"67890")
    stage.poll("10 of 10", client, select.POLLIN)
    stage.receive("client", client, 10)


@scenario(modes=("blocking",))
def sendfile_and_splice(stage):
    """The client's own zero-copy calls."""
    client, server = stage.pair()
    with open("/proc/self/exe", "rb") as file:
        size = 2_000_000
        want = digest(file.read(size))
        sender = threading.Thread(target=lambda: (client.sendfile(file, 0, size),
                                                  client.shutdown(socket.SHUT_WR)))
        sender.start()
        data, end = stage.read(server)
        sender.join()
    stage.note("server", f"{digest(data) == want} {end}")


@scenario(modes=("non-blocking",))
def eagain_when_there_is_nothing(stage):
    client, server = stage.pair()
    stage.attempt("recv", client.recv, 1)
    stage.send(server, b"x")
    stage.poll("client", client, select.POLLIN)
    stage.receive("client", client, 1)
    stage.attempt("recv", client.recv, 1)
    stage.poll("client", client)


@scenario()
def several_requests_on_one_connection(stage):
    """Of many sizes, each with an answer."""
    client, server = stage.pair()
    for number, size in enumerate((1, 2, 100, 1460, 1461, 4096, 65535, 65536, 10, 200_000, 1)):
        data = pattern(size, number)
        for one, two, name in ((client, server, "server"), (server, client, "client")):
            sender = threading.Thread(target=stage.send, args=(one, data))
            sender.start()
            got, end = stage.read(two, size)
            sender.join()
            stage.note(f"{name} {size}", f"{got == data} {end}")


@scenario_for(EITHER, modes=("blocking",))
def small_buffers(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    for sock in (actor, other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer = threading.Thread(target=lambda: (stage.send(actor, pattern(40_000, 4)),
                                              actor.shutdown(socket.SHUT_WR)))
    writer.start()
    stage.receive(two, other)
    writer.join()


@scenario(modes=("blocking",))
def MSG_ZEROCOPY(stage):
    client, server = stage.pair()
    client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    writer = threading.Thread(target=stage.send, args=(client, BIG, MSG_ZEROCOPY_FLAG))
    writer.start()
    stage.receive("server", server, len(BIG))
    writer.join()
    stage.poll("client", client, select.POLLERR)
    seen = client.recvmsg(1, 256, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[1]
    stage.note("completion", [(level, kind) for level, kind, _ in seen])


@scenario_for(EITHER)
def a_connection_used_by_a_child(stage, actor_is_client):
    """The end of one of two processes that have it is not its end."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    child = os.fork()
    if not child:
        actor.sendall(b"from the child")
        os._exit(0)
    os.waitpid(child, 0)
    stage.receive(two, other, 14)
    stage.poll(two, other)
    stage.send(actor, b"from the parent")
    actor.close()
    stage.receive(two, other)
