# SPDX-License-Identifier: BSD-2-Clause
"""
Random torture: a session whose steps a seed determines. One thread plays both ends in lock step, so
that what each end sees is determined by the steps alone and can be compared between the worlds:
before an end closes or resets, what was sent to it has arrived.
"""

import os
import random
import select
import socket
import time

from .stage import (DEADLINE, RESET, at_mark, bits, name_of, pattern, poll_now, queued, reset)

NAME = "torture"
LAZY_MAX = 16000  # bytes that lie unread at a time: always within the first window


def sessions():
    """(name, family, seed) of every session: TORTURE of them, from TORTURE_SEED on."""
    first, count = int(os.environ.get("TORTURE_SEED", "1")), int(os.environ.get("TORTURE", "150"))
    return [(NAME, ("v4", "v6", "mapped")[seed % 3], seed) for seed in range(first, first + count)]


class End:
    """One end of the session and what it has seen."""

    def __init__(self, name, sock):
        self.name, self.sock = name, sock
        self.unread = bytearray()  # sent to it, not read yet
        self.may_send = self.open = True
        self.sent = 0


class Session:
    def __init__(self, stage, seed):
        self.stage, self.random = stage, random.Random(seed)
        client, server = stage.pair()
        for sock in (client, server):
            sock.setblocking(False)
        self.ends = [End("client", client), End("server", server)]
        stage.names("client", client, server)

    # --- steps; each takes the end that acts and the other one ---

    def chunk(self, end, size):
        end.sent += size
        return pattern(size, self.random.randrange(1 << 16))

    def send_small(self, end, other):
        """Some bytes, or some writes, that the other end does not read yet."""
        for _ in range(self.random.choice((1, 1, 2, 20))):
            size = self.random.choice((1, 2, 100, 1460, 5000))
            if len(other.unread) + size > LAZY_MAX:
                return
            data = self.chunk(end, size)
            other.unread += data
            self.stage.send(end.sock, data)

    def send_big(self, end, other):
        """More than fits anywhere, read while it is written."""
        self.read_all(other)
        data = self.chunk(end, self.random.choice((100_000, 300_000, 1_000_000)))
        self.transfer([(end, other, data)])

    def send_both_ways(self, end, other):
        if not other.may_send:
            return
        self.read_all(end)
        self.read_all(other)
        self.transfer([(end, other, self.chunk(end, self.random.randrange(1, 400_000))),
                       (other, end, self.chunk(other, self.random.randrange(1, 400_000)))])

    def transfer(self, flows):
        """Moves data over the given (from, to, data) at the same time."""
        left = [[source, target, memoryview(data), bytearray(), data]
                for source, target, data in flows]
        end = time.monotonic() + DEADLINE
        while any(len(got) < len(data) for _, _, _, got, data in left):
            if time.monotonic() > end:
                break
            for flow in left:
                source, target, rest, got, _ = flow
                try:
                    if rest:
                        flow[2] = rest[source.sock.send(rest[:65536], socket.MSG_NOSIGNAL):]
                except BlockingIOError:
                    pass
                poll_now(target.sock, select.POLLIN, 0.001)
                try:
                    got += target.sock.recv(1 << 18)
                except BlockingIOError:
                    pass
        for source, target, _, got, data in left:
            same = "intact" if got == data else f"{len(got)} of {len(data)} bytes or not the same"
            self.stage.note(f"{source.name} to {target.name}", f"{len(data)} bytes {same}")

    def read_all(self, end):
        """Everything that is on its way to this end."""
        want = bytes(end.unread)
        end.unread.clear()
        got = bytearray()
        while len(got) < len(want):
            data, how = self.stage.read(end.sock, len(want) - len(got))
            got += data
            if how != "more":
                self.stage.note(f"{end.name} reading", how)
                break
        if want:
            same = "intact" if got == want else f"{len(got)} bytes or not the same"
            self.stage.note(f"{end.name} read", f"{len(want)} bytes {same}")

    def read(self, end, _other):
        self.read_all(end)

    def urgent(self, end, other):
        """An urgent byte between others; `after`, for nobody at the mark can tell what follows."""
        self.read_all(other)
        before = self.chunk(end, self.random.choice((0, 1, 3000)))
        after = self.chunk(end, self.random.choice((1, 2, 3000)))
        self.stage.send(end.sock, before)
        self.stage.send(end.sock, b"!", socket.MSG_OOB)
        self.stage.send(end.sock, after)
        self.stage.poll(f"{other.name} urgent", other.sock, select.POLLPRI | select.POLLIN)
        self.stage.wait(lambda: queued(other.sock) >= len(before))
        got = self.stage.read(other.sock, len(before))[0] if before else b""
        self.stage.wait(lambda: at_mark(other.sock), 5)
        self.stage.note("at the mark", f"{got == before} {at_mark(other.sock)}")
        self.stage.attempt("urgent byte", other.sock.recv, 1, socket.MSG_OOB)
        got = self.stage.read(other.sock, len(after))[0]
        self.stage.note("after the mark", got == after)

    def pause(self, _end, _other):
        time.sleep(self.random.random() * 0.01)

    def look(self, end, other):
        """The poll bits, once all is quiet."""
        self.settle(end, other)
        for one in (end, other):
            self.stage.note(f"{one.name} poll", bits(poll_now(one.sock)))

    def settle(self, end, other):
        """Waits until everything sent is where it is going."""
        for one in (end, other):
            self.stage.wait(lambda one=one: queued(one.sock) >= len(one.unread))

    def half_close(self, end, other):
        end.may_send = False
        end.sock.shutdown(socket.SHUT_WR)
        self.stage.poll(f"{other.name} after FIN", other.sock, select.POLLRDHUP)
        if self.random.random() < 0.7:
            self.read_all(other)
            self.stage.note(f"{other.name} at the end", self.stage.read(other.sock, 1)[1])

    # --- ends ---

    def close(self, end, other):
        """With unread data this is a reset."""
        self.settle(end, other)
        self.stage.note(f"{end.name} closes", f"{len(end.unread)} unread")
        end.sock.close()
        if end.unread:
            self.wait_reset(end, other)
        self.rest(other)

    def reset(self, end, other):
        self.settle(end, other)
        self.stage.note(f"{end.name} resets", f"{len(end.unread)} unread")
        reset(end.sock)
        self.wait_reset(end, other)
        self.rest(other)

    def wait_reset(self, end, other):
        """There is none where both have sent their FIN."""
        self.stage.poll(other.name, other.sock, RESET if end.may_send or other.may_send
                        else select.POLLHUP)

    def rest(self, other):
        """What the other end still gets, and how its writes fare."""
        data, how = self.stage.read(other.sock, len(other.unread) + 1)
        same = "intact" if data == bytes(other.unread) else f"{len(data)} bytes or not the same"
        self.stage.note(f"{other.name} rest", f"{len(other.unread)} bytes {same}, {how}")
        if how == "EOF" and other.may_send:
            self.write_until_reset(other)
        other.sock.close()

    def write_until_reset(self, end):
        """Nobody is there to read it."""
        try:
            end.sock.send(b"x", socket.MSG_NOSIGNAL)
        except OSError as error:
            self.stage.note(f"{end.name} writes", name_of(error))
            return
        self.stage.poll(f"{end.name} wrote", end.sock, RESET)
        self.stage.so_error(end.name, end.sock)
        self.stage.attempt(f"{end.name} writes again", end.sock.send, b"x", socket.MSG_NOSIGNAL)

    STEPS = {send_small: 6, send_big: 2, send_both_ways: 2, read: 4, urgent: 2, pause: 1, look: 3,
             half_close: 1}

    def play(self):
        steps, weights = zip(*self.STEPS.items())
        for _ in range(self.random.randrange(1, 15)):
            actor = self.random.randrange(2)
            end, other = self.ends[actor], self.ends[1 - actor]
            step = self.random.choices(steps, weights)[0]
            sends = step not in (Session.read, Session.pause, Session.look)
            if sends and not end.may_send:
                continue
            self.stage.note("step", f"{step.__name__} by {end.name}")
            step(self, end, other)
        actor = self.random.randrange(2)
        last = self.random.choice((Session.close, Session.close, Session.reset))
        last(self, self.ends[actor], self.ends[1 - actor])


def session(stage, seed):
    stage.blocking = False
    Session(stage, seed).play()
