# SPDX-License-Identifier: BSD-2-Clause
"""Urgent data: that it is urgent, where its mark is, and whom it wakes."""

import fcntl
import os
import select
import signal
import socket
import threading

from .ends import EITHER, ends
from .registry import scenario_for
from .stage import at_mark, bits, pattern, poll_now


def urgent(stage, sock, data=b"!"):
    stage.send(sock, data, socket.MSG_OOB)


def up_to_the_mark(stage, what, sock, size):
    """Reads `size` bytes, which must be all before the mark."""
    stage.receive(what, sock, size)
    stage.note(f"{what} at the mark", at_mark(sock))


@scenario_for(EITHER)
def an_urgent_byte_alone(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.note("no mark", at_mark(other))
    stage.attempt("none yet", other.recv, 1, socket.MSG_OOB)
    urgent(stage, actor)
    stage.poll(two, other, select.POLLPRI)
    stage.note("at the mark", at_mark(other))
    stage.attempt("peek", other.recv, 1, socket.MSG_OOB | socket.MSG_PEEK)
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.attempt("again", other.recv, 1, socket.MSG_OOB)
    stage.poll(two, other)
    stage.send(actor, b"after")
    stage.receive(two, other, 5)
    stage.note("mark left", at_mark(other))


@scenario_for(EITHER)
def an_urgent_byte_between_others(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"before")
    urgent(stage, actor)
    stage.send(actor, b"after")
    stage.poll(two, other, select.POLLPRI | select.POLLIN)
    stage.arrived(other, 6)
    stage.note("not at the mark", at_mark(other))
    up_to_the_mark(stage, two, other, 6)
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.receive(two, other, 5)


@scenario_for(EITHER)
def an_urgent_byte_read_first(stage, actor_is_client):
    """Out of band in the proper sense: before what was sent before it."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"before")
    urgent(stage, actor)
    stage.poll(two, other, select.POLLPRI | select.POLLIN)
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.attempt("up to the mark", other.recv, 100)
    stage.note("at the mark", at_mark(other))
    stage.send(actor, b"after")
    stage.receive(two, other, 5)


@scenario_for(EITHER)
def an_urgent_byte_never_asked_for(stage, actor_is_client):
    """It is then left out of the stream."""
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"before")
    urgent(stage, actor)
    stage.send(actor, b"after")
    actor.shutdown(socket.SHUT_WR)
    stage.poll(two, other, select.POLLPRI | select.POLLRDHUP)
    stage.receive(two, other)


@scenario_for(EITHER)
def an_urgent_byte_in_line(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    stage.send(actor, b"before")
    urgent(stage, actor)
    stage.send(actor, b"after")
    stage.poll(two, other, select.POLLPRI | select.POLLIN)
    stage.arrived(other, 12)
    stage.attempt("out of band", other.recv, 1, socket.MSG_OOB)
    stage.attempt("first read", other.recv, 100)
    stage.note("at the mark", at_mark(other))
    stage.attempt("second read", other.recv, 100)
    stage.note("mark left", at_mark(other))


@scenario_for(EITHER)
def the_last_byte_of_an_urgent_write_is_urgent(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    urgent(stage, actor, b"abc!")
    stage.poll(two, other, select.POLLPRI | select.POLLIN)
    up_to_the_mark(stage, two, other, 3)
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)


@scenario_for(EITHER)
def urgent_bytes_one_after_another(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    for number in range(5):
        stage.send(actor, b"%d" % number * 100)
        urgent(stage, actor, b"%d" % number)
        stage.poll(two, other, select.POLLPRI | select.POLLIN)
        up_to_the_mark(stage, two, other, 100)
        stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)


@scenario_for(EITHER)
def an_urgent_byte_then_FIN(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    stage.send(actor, b"before")
    urgent(stage, actor)
    actor.shutdown(socket.SHUT_WR)
    stage.poll(two, other, select.POLLPRI | select.POLLRDHUP)
    up_to_the_mark(stage, two, other, 6)
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.receive(two, other)


@scenario_for(EITHER)
def an_urgent_byte_then_close(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    urgent(stage, actor)
    actor.close()
    stage.poll(two, other, select.POLLPRI | select.POLLRDHUP)
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.receive(two, other)


@scenario_for(EITHER)
def an_urgent_byte_the_other_way_of_a_FIN(stage, actor_is_client):
    (one, actor), (two, other) = ends(stage, actor_is_client)
    actor.shutdown(socket.SHUT_WR)
    stage.poll(two, other, select.POLLRDHUP)
    urgent(stage, other)
    stage.poll(one, actor, select.POLLPRI)
    stage.attempt("urgent byte", actor.recv, 1, socket.MSG_OOB)
    other.close()
    stage.receive(one, actor)


@scenario_for(EITHER)
def an_urgent_byte_in_a_lot(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    before, after = pattern(700_000, 1), pattern(600_000, 2)

    def write():
        stage.send(actor, before)
        urgent(stage, actor)
        stage.send(actor, after)
        actor.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    stage.receive(two, other, len(before))
    stage.until("PRI", lambda: poll_now(other, select.POLLPRI))
    stage.until("at the mark", lambda: at_mark(other))
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.receive(two, other)
    writer.join()


@scenario_for(EITHER)
def both_ends_are_urgent(stage, actor_is_client):
    (one, actor), (two, other) = ends(stage, actor_is_client)
    urgent(stage, actor, b"ab")
    urgent(stage, other, b"cd")
    for name, sock in ((one, actor), (two, other)):
        stage.poll(name, sock, select.POLLPRI | select.POLLIN)
        up_to_the_mark(stage, name, sock, 1)
        stage.attempt(f"{name} urgent byte", sock.recv, 1, socket.MSG_OOB)


@scenario_for(EITHER, families=("v4", "v6"), modes=("blocking",))
def SIGURG(stage, actor_is_client):
    (_, actor), (_, other) = ends(stage, actor_is_client)
    caught = []
    before = signal.signal(signal.SIGURG, lambda *_: caught.append(1))
    try:
        fcntl.fcntl(other.fileno(), fcntl.F_SETOWN, os.getpid())
        urgent(stage, actor)
        stage.until("SIGURG", lambda: caught)
        stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    finally:
        signal.signal(signal.SIGURG, before)


@scenario_for(EITHER, modes=("non-blocking",))
def urgency_as_epoll_and_select_see_it(stage, actor_is_client):
    (_, actor), (two, other) = ends(stage, actor_is_client)
    with select.epoll() as watcher:
        watcher.register(other, select.EPOLLPRI | select.EPOLLET)
        stage.note("before", len(watcher.poll(0)))
        urgent(stage, actor)
        stage.note("epoll", [bits(event) for _, event in watcher.poll(10)])
        stage.note("select", [bool(part) for part in select.select([], [], [other], 10)])
    stage.attempt("urgent byte", other.recv, 1, socket.MSG_OOB)
    stage.note("after", bits(poll_now(other)))
    stage.attempt(f"{two} recv", other.recv, 1)
