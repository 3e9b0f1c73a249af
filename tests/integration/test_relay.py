# SPDX-License-Identifier: BSD-2-Clause
"""What a session carries: bytes, ends and resets, each way."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import select
import socket
import struct
import threading
import time

from harness import (UNHELD, Failed, Sandbox, Server, case, case_for, connected, echo, free_port, line, main,
                     run, silent, swallow, tmpdir, wait_for)
from harness.steps import Traced

MEGABYTE = os.urandom(1 << 20)
ADDRESSES = {"IPv4": ("10.77.0.1",), "IPv6": ("fd77::1",)}


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_all(sock):
    """Everything up to the FIN."""
    parts = []
    while data := sock.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def assert_reset(sock):
    """The next thing that comes is a reset."""
    try:
        raise Failed(f"no reset, but {sock.recv(100)!r}")
    except ConnectionResetError:
        pass


def assert_connect_is_reset(box, address):
    """The reset may come before connect() has returned."""
    with contextlib.suppress(ConnectionResetError), box.connect(address) as client:
        raise Failed(f"no reset, but {client.recv(100)!r}")


class Exchange:
    """A server that runs a test's own steps on one connection, and hands on what they return."""

    def __init__(self, steps):
        self.steps, self.result, self.done = steps, None, threading.Event()

    def __call__(self, connection):
        try:
            self.result = self.steps(connection)
        except OSError as error:
            self.result = error
        self.done.set()

    def wait(self):
        assert self.done.wait(20), "the server's side is still waiting"
        return self.result


@case_for(ADDRESSES)
def half_close_client_first(address):
    with Sandbox() as box, Server(address, swallow) as server:
        with box.connect(server.address) as client:
            for _ in range(5):
                client.sendall(MEGABYTE)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == str(5 << 20).encode()
        assert "end=closed" in box.proxy.wait_log(f":{server.port} ")


@case_for(ADDRESSES)
def half_close_server_first(address):
    def steps(connection):
        connection.sendall(MEGABYTE)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)

    exchange = Exchange(steps)
    with Sandbox() as box, Server(address, exchange) as server:
        with box.connect(server.address) as client:
            assert read_all(client) == MEGABYTE
            for _ in range(3):
                client.sendall(MEGABYTE)
        assert exchange.wait() == 3 * MEGABYTE
        assert "end=closed" in box.proxy.wait_log(f":{server.port} ")


@case
def both_sides_half_close_and_a_byte_still_arrives():
    """A FIN one way must not be passed on as the end of the other."""
    def steps(connection):
        connection.recv(1)
        connection.sendall(b"a")
        assert connection.recv(1) == b"", "no FIN"
        connection.sendall(b"b")

    exchange = Exchange(steps)
    with Sandbox() as box, Server("10.77.0.1", exchange) as server:
        with box.connect(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"a"
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"b"
        exchange.wait()


@case
def write_then_close_delivers_everything():
    exchange = Exchange(read_all)
    with Sandbox() as box, Server("10.77.0.1", exchange) as server:
        with box.connect(server.address) as client:
            client.sendall(MEGABYTE)
        assert exchange.wait() == MEGABYTE


@case
def connect_then_close_is_seen_by_the_server():
    exchange = Exchange(read_all)
    with Sandbox() as box, Server("10.77.0.1", exchange) as server:
        box.connect(server.address).close()
        assert exchange.wait() == b""


def digest_sender(sock, blocks):
    """Sends changing blocks and the FIN; returns the digest of what was sent."""
    digest = hashlib.sha256()
    for number in range(blocks):
        block = number.to_bytes(4, "big") + MEGABYTE
        digest.update(block)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def digest_reader(sock, results):
    digest = hashlib.sha256()
    while data := sock.recv(1 << 20):
        digest.update(data)
    results.append(digest.hexdigest())


def both_ways(sock, blocks):
    """Sends and receives at once; returns (digest sent, digest received)."""
    results = []
    reader = threading.Thread(target=digest_reader, args=(sock, results))
    reader.start()
    sent = digest_sender(sock, blocks)
    reader.join()
    return sent, results[0]


@case_for(ADDRESSES)
def big_transfers_both_ways_at_once_arrive_whole(address):
    exchange = Exchange(lambda connection: both_ways(connection, 60))
    with Sandbox() as box, Server(address, exchange) as server:
        with box.connect(server.address) as client:
            sent, received = both_ways(client, 100)
        assert exchange.wait() == (received, sent)
        ended = box.proxy.wait_log(f":{server.port} ")
        block = 4 + len(MEGABYTE)
        assert f" up={100 * block} down={60 * block} " in ended, ended


@case
def a_slow_reader_holds_the_sender_back():
    gate = threading.Event()

    def steps(connection):
        gate.wait(20)
        return len(read_all(connection))

    exchange = Exchange(steps)
    with Sandbox() as box, Server("10.77.0.1", exchange) as server:
        with box.connect(server.address) as client:
            client.setblocking(False)
            sent = 0
            try:
                while sent < 1 << 30:
                    sent += client.send(MEGABYTE)
            except BlockingIOError:
                pass
            assert sent < 1 << 30, "somebody buffers without limit"
            gate.set()
        assert exchange.wait() == sent


@case
def a_thousand_sessions_at_once_stay_apart():
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        with box.inside():
            clients = [socket.create_connection(server.address) for _ in range(1000)]
        for number, client in enumerate(clients):
            client.sendall(b"%08d" % number)
        for number, client in enumerate(clients):
            assert client.recv(8, socket.MSG_WAITALL) == b"%08d" % number
            client.close()
        box.wait_no_records()


@case_for({"client": (True,), "server": (False,)})
def a_reset_arrives_as_a_reset_from_the(resetter_is_client):
    def steps(connection):
        connection.sendall(b"ready\n")
        if resetter_is_client:
            assert_reset(connection)
        else:
            connection.recv(1)
            reset_on_close(connection)
        return "as expected"

    exchange = Exchange(steps)
    with Sandbox() as box, Server("10.77.0.1", exchange) as server:
        with box.connect(server.address) as client:
            line(client)
            if resetter_is_client:
                reset_on_close(client)
            else:
                client.sendall(b"x")
                assert_reset(client)
        assert exchange.wait() == "as expected"
        who = "reset-by-client" if resetter_is_client else "reset-by-server"
        assert f"end={who}" in box.proxy.wait_log(f":{server.port} ")


@case_for(ADDRESSES)
def a_refused_server_resets_the_client(address):
    port = free_port(address)
    with Sandbox(proxy=UNHELD) as box:
        assert_connect_is_reset(box, (address, port))
        ended = box.proxy.wait_log(f":{port} ")
        assert "end=connect-failed" in ended and "Connection refused" in ended, ended
        box.wait_no_records()


@case
def an_unreachable_server_resets_the_client():
    run(["ip", "route", "add", "unreachable", "10.88.0.0/24"])
    with Sandbox(proxy=UNHELD) as box:
        assert_connect_is_reset(box, ("10.88.0.1", 80))
        assert "end=connect-failed" in box.proxy.wait_log("dst=10.88.0.1:80")


@contextlib.contextmanager
def black_hole():
    """The address of a server that never answers: what arrives for it is dropped."""
    run(["nft", "table inet hole { chain c { type filter hook input priority 0; "
         "ip daddr 10.77.0.9 drop; }; }"])
    try:
        yield ("10.77.0.9", 80)
    finally:
        run(["nft", "delete table inet hole"])


def upstreams_waiting():
    """Into the black hole."""
    return run(["ss", "-Htn", "state", "syn-sent", "dst", "10.77.0.9"]).stdout.splitlines()


@case
def a_silent_server_resets_the_client_after_connect_timeout():
    with black_hole() as address, Sandbox(proxy=(*UNHELD, "--connect-timeout", "200ms")) as box:
        with box.connect(address) as client:
            assert_reset(client)
        assert "end=connect-timeout" in box.proxy.wait_log("dst=10.77.0.9:80")
        assert not upstreams_waiting()


@case
def a_held_client_of_a_silent_server_times_out_after_connect_timeout():
    with black_hole() as address, Sandbox(proxy=("--connect-timeout", "1s")) as box:
        with box.socket() as client:
            client.settimeout(30)  # its own timer takes two minutes
            error = client.connect_ex(address)
        assert error == errno.ETIMEDOUT, errno.errorcode[error]
        assert "end=connect-timeout" in box.proxy.wait_log("dst=10.77.0.9:80")
        wait_for(lambda: not upstreams_waiting(), "the upstream connection to go")


@case
def a_client_that_came_in_has_its_own_TCP_USER_TIMEOUT():
    """While it is held that is the connect-timeout, unless it has one."""
    words = ("--connect-timeout", "1h")
    with Sandbox(proxy=words) as box, Server("10.77.0.1", echo) as server, black_hole() as silent_one:
        for own, held in ((0, 3600000), (12345, 12345)):
            with box.socket() as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, own)
                client.connect(server.address)
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == own
            with box.socket() as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, own)
                client.setblocking(False)
                client.connect_ex(silent_one)
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == held


@case
def held_clients_come_in_as_others_when_hold_is_switched_off():
    """Each has one upstream at a time, and one that gives up none."""
    with black_hole() as address, tmpdir() as scratch:
        config = scratch / "tproxy.conf"
        config.write_text("[proxy]\nhold = on\n")
        with Sandbox(proxy=("--config", config)) as box, box.socket() as stays, box.socket() as goes:
            for client in (stays, goes):
                client.setblocking(False)
                client.connect_ex(address)
            wait_for(lambda: len(upstreams_waiting()) == 2, "both to be held")
            config.write_text("[proxy]\nhold = off\n")
            box.proxy.reload()
            goes.close()
            wait_for(lambda: box.proxy.times_logged("end=hold-off") in (1, 2), "its upstream to end")
            wait_for(lambda: connected(stays), "the client to come in", 10)
            wait_for(lambda: len(upstreams_waiting()) == 1, "one upstream to be left")


@case
def a_client_that_gives_up_leaves_no_upstream_behind():
    with black_hole() as address, Sandbox(proxy=(*UNHELD, "--connect-timeout", "1h")) as box:
        with box.connect(address) as client:
            wait_for(upstreams_waiting, "the upstream connection to be tried")
            reset_on_close(client)
        assert "end=client-gave-up" in box.proxy.wait_log("dst=10.77.0.9:80")
        wait_for(lambda: not upstreams_waiting(), "the upstream connection to go")


ACKS_LOST = """
table ip lost {
    chain in {
        type filter hook input priority 0
        tcp dport 18000-18003 tcp flags & (syn | ack | psh | rst) == ack drop
    }
}
"""


@case
def a_client_that_resets_before_it_was_accepted_is_reset_at_the_server():
    """The last packet of its handshake is lost: it is connected for itself alone."""
    with Sandbox() as box, Server("10.77.0.1", silent) as server:
        run(["nft", "-f", "-"], input=ACKS_LOST)
        try:
            with box.connect(server.address) as client:
                reset_on_close(client)
            wait_for(lambda: server.errors, "the server to be reset", 3)
        finally:
            run(["nft", "delete", "table", "ip", "lost"])
        assert "end=client-gave-up" in box.proxy.wait_log(f"dst=10.77.0.1:{server.port}")
        box.wait_no_records()


def delayed_acks():
    """How many acknowledgements of this network namespace waited for their timer."""
    names, values = [text.split() for text in pathlib.Path("/proc/thread-self/net/netstat")
                     .read_text().splitlines() if text.startswith("TcpExt:")]
    return int(values[names.index("DelayedACKs")])


def calls_of(box, what):
    """How often the worker makes each call meanwhile."""
    with tmpdir() as directory:
        with Traced(box.proxy.worker, "-o", directory / "strace"):
            what()
            box.wait_no_records()
        made = re.findall(r"^(\w+)\(", (directory / "strace").read_text(), re.M)
    return {call: made.count(call) for call in made}


@case_for({"one message": ("10.77.0.1", 1, 7), "two messages": ("10.77.0.1", 2, 8),
           "IPv6": ("fd77::1", 1, 7)})
def a_session_takes_few_calls(address, messages, options):
    """
    What only a second message needs, none for one; one where the congestion control is another on
    this host. Each to wait, to see how much memory there is, and for a peer that is late or early,
    comes on top.
    """
    def session():
        with box.connect(server.address) as client:
            for _ in range(messages):
                client.sendall(b"ping")
                assert client.recv(4) == b"ping"

    paces = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text() == "bbr\n"
    few = {"socket": 1, "connect": 1, "accept4": 1, "sendto": 1, "getsockname": 1, "poll": 1,
           "setsockopt": options + paces, "epoll_ctl": 2, "shutdown": 1,
           "close": 2, "bpf": 0}
    with Sandbox(proxy=("--log-sessions", "no")) as box, Server(address, echo) as server:
        session()  # opens a pipe, and shows where the server is
        box.wait_no_records()
        for _ in range(10):
            calls = calls_of(box, session)
            if calls.get("splice", 0) <= 2 + 6 * messages and all(
                    calls.get(call, 0) == count for call, count in few.items()):
                return
    raise Failed(f"{calls} instead of {few}")


@case_for({"in one": ("question\n",), "in pieces": ("quest", "ion", "\n")})
def an_answer_in_pieces_comes_without_delay(*question):
    """Without TCP_NODELAY a server sends the next piece when the last is acknowledged."""
    def pieces(connection):
        line(connection)
        for piece in (b"an", b"swer", b"\n"):
            connection.sendall(piece)
        silent(connection)

    with Sandbox() as box, Server("10.77.0.1", pieces) as server:
        before = delayed_acks()
        for _ in range(20):
            with box.connect(server.address) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in question:
                    time.sleep(0.002)
                    client.sendall(piece.encode())
                assert line(client) == "answer"
        assert delayed_acks() - before < 10, f"{delayed_acks() - before} in 20 exchanges"


@case
def a_question_in_pieces_goes_on_without_delay():
    """A server that has answered before acknowledges a piece of the next question 40 ms late."""
    def answers(connection):
        for _ in range(20):
            line(connection)
            connection.sendall(b"answer\n")
        silent(connection)

    with Sandbox() as box, Server("10.77.0.1", answers) as server:
        with box.connect(server.address) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            before = delayed_acks()
            for _ in range(20):
                for piece in (b"quest", b"ion", b"\n"):
                    time.sleep(0.002)
                    client.sendall(piece)
                assert line(client) == "answer"
            assert delayed_acks() - before < 10, f"{delayed_acks() - before} in 20 exchanges"


@case
def data_sent_before_the_server_answers_is_kept():
    """The client's connect() returns before the upstream's: what it writes meanwhile must wait."""
    exchange = Exchange(read_all)
    with Sandbox() as box, Server("10.77.0.1", exchange) as server:
        with box.socket() as client:
            client.setblocking(False)
            client.connect_ex(server.address)
            wait_for(lambda: client.connect_ex(server.address) in (0, 106), "EISCONN")
            client.setblocking(True)
            client.sendall(b"early")
        assert exchange.wait() == b"early"


@case_for(ADDRESSES)
def an_edge_triggered_epoll_of_both_ends_tells_each_event_once(address):
    """However long one message takes after the other: each is an event of its own."""
    def events():
        found = []
        while more := poll.poll(0.2):
            found += more
        return sorted(found)

    def of_both(event):
        return sorted((end.fileno(), event) for end in (client, server))

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with Sandbox() as box, socket.create_server((address, 0), family=family) as listener, \
            box.connect(listener.getsockname()[:2]) as client, listener.accept()[0] as server, \
            select.epoll() as poll:
        for end in client, server:
            poll.register(end, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        assert events() == of_both(select.EPOLLOUT)
        client.sendall(b"question")
        server.sendall(b"answer")
        assert events() == of_both(select.EPOLLIN | select.EPOLLOUT)
        assert (client.recv(100), server.recv(100)) == (b"answer", b"question")
        client.shutdown(socket.SHUT_WR)
        # The client's end, once or twice, as directly: at the shutdown, and when the FIN was taken.
        assert set(events()) == {(client.fileno(), select.EPOLLOUT),
                                 (server.fileno(), select.EPOLLIN | select.EPOLLOUT)}
        assert server.recv(100) == b""


@case
def sessions_survive_the_unloading_of_the_hooks():
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        with box.connect(server.address) as client:
            client.sendall(b"before")
            assert client.recv(100) == b"before"
            box.unload()
            client.sendall(b"after")
            assert client.recv(100) == b"after"


def wakeups(box):
    """How often the worker has slept."""
    text = pathlib.Path(f"/proc/{box.proxy.worker}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)$", text, re.MULTILINE)[1])


@case
def an_idle_server_costs_nothing():
    """A session that carries nothing must not wake the proxy."""
    with Sandbox() as box, Server("10.77.0.1", silent) as server:
        with box.connect(server.address):
            wait_for(lambda: server.peers, "the server to be reached")
            before = wakeups(box)
            time.sleep(1)
            assert wakeups(box) <= before + 5


@case
def bursts_of_tiny_segments_from_many_at_once():
    """More of them wait in a socket than a pipe takes at a time, while others keep tproxyd busy."""
    count, clients = 40, []
    with Sandbox() as box, Server("10.77.0.1", echo) as server, contextlib.ExitStack() as open_ones:
        for _ in range(16):
            client = open_ones.enter_context(box.connect(server.address))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients.append(client)
        for number in range(100):
            byte = bytes([number])
            for client in clients:
                for _ in range(count):
                    client.send(byte)
            for client in clients:
                answer = b""
                while len(answer) < count:
                    answer += client.recv(count) or b"the end"
                assert answer == count * byte, answer


main()
