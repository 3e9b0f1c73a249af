# SPDX-License-Identifier: BSD-2-Clause
"""SO_ORIGINAL_DST on an accepted socket answers as netfilter's REDIRECT does, cell by cell."""

import contextlib
import errno
import ipaddress
import socket
import subprocess

from harness import (PROXY_PORT, Failed, Sandbox, Server, case, case_for, main, program, refusal,
                     run, wait_for)

SOL_IP, SOL_TCP, SOL_IPV6, SOL_SOCKET = 0, 6, 41, 1
ORIGINAL_DST = 80
TCP_INFO = 11
UNKNOWN = 9999
PORT = 4711

# What the prober's buffer holds behind the answer.
UNTOUCHED = "cc"
V4_ANSWER = "0200" + f"{PORT:04x}" + "0a4d0003" + 8 * "00"
V6_ANSWER = "0a00" + f"{PORT:04x}" + 4 * "00" + "fd77" + 13 * "00" + "03" + 4 * "00"


class Prober:
    """A trusted listener (tests/programs/prober.c) with one connection accepted."""

    def __init__(self, box, family):
        command = [program("prober"), box.pins / "map_listeners", PROXY_PORT, family]
        self.process = box.popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 bufsize=1)
        if self._line() != "ready":
            raise Failed("the prober did not start")

    def _line(self):
        return self.process.stdout.readline().strip()

    def ask(self, text):
        self.process.stdin.write(text + "\n")
        return self._line()

    def get(self, level, option, length):
        return self.ask(f"get {level} {option} {length}")

    def close(self):
        self.process.kill()
        self.process.communicate()


# listener -> (address the client dials, the client's family)
LISTENERS = {
    "4": (("10.77.0.3", PORT), socket.AF_INET),
    "6": (("fd77::3", PORT), socket.AF_INET6),
    "dual": (("::ffff:10.77.0.3", PORT), socket.AF_INET6),
}


@contextlib.contextmanager
def accepted(listener, redirected=True):
    """A prober whose accepted socket came from an intercepted client, or from one outside."""
    target, family = LISTENERS[listener]
    with Sandbox(proxy=None) as box, contextlib.closing(Prober(box, listener)) as prober:
        if redirected:
            client = box.connect(target, family)
        else:
            loopback = "127.0.0.1" if listener != "6" else "::1"
            client = socket.create_connection((loopback, PROXY_PORT))
        with client:
            met = prober.ask("accept")
            assert ipaddress.ip_address(met.removeprefix("::ffff:")).is_loopback, met
            yield box, prober


def wrote(answer, length):
    """The prober's line where `answer` was written into a buffer of that length."""
    size = len(answer) // 2
    return f"OK {size} " + answer + UNTOUCHED * (min(length, 128) - size)


def lengths(level, answer, size):
    """(level, option, length, expected) for each length that the table names."""
    short = [(level, ORIGINAL_DST, length, "EINVAL") for length in (0, 1, size - 1)]
    return short + [(level, ORIGINAL_DST, length, wrote(answer, length))
                    for length in (size, size + 4, 28, 32, 128) if length >= size]


ELSEWHERE = [(SOL_TCP, ORIGINAL_DST, 16, "ENOPROTOOPT"),
             (SOL_SOCKET, ORIGINAL_DST, 16, "ENOPROTOOPT")]

# (listener, redirected) -> cells
TABLE = {
    ("4", True): [*lengths(SOL_IP, V4_ANSWER, 16), *ELSEWHERE,
                  (SOL_IPV6, ORIGINAL_DST, 28, "EOPNOTSUPP"),
                  (SOL_IPV6, ORIGINAL_DST, 16, "EOPNOTSUPP")],
    ("6", True): [*lengths(SOL_IPV6, V6_ANSWER, 28), *ELSEWHERE,
                  (SOL_IP, ORIGINAL_DST, 16, "ENOENT")],
    ("dual", True): [*lengths(SOL_IP, V4_ANSWER, 16), *ELSEWHERE,
                     (SOL_IPV6, ORIGINAL_DST, 28, "ENOENT"),
                     (SOL_IPV6, ORIGINAL_DST, 27, "EINVAL")],
    ("4", False): [(SOL_IP, ORIGINAL_DST, 16, "ENOENT"), (SOL_IP, ORIGINAL_DST, 15, "EINVAL"),
                   *ELSEWHERE, (SOL_IPV6, ORIGINAL_DST, 28, "EOPNOTSUPP")],
    ("6", False): [(SOL_IPV6, ORIGINAL_DST, 28, "ENOENT"), (SOL_IPV6, ORIGINAL_DST, 27, "EINVAL"),
                   (SOL_IP, ORIGINAL_DST, 16, "ENOENT"), *ELSEWHERE],
    ("dual", False): [(SOL_IP, ORIGINAL_DST, 16, "ENOENT"), (SOL_IPV6, ORIGINAL_DST, 28, "ENOENT")],
}

LEVEL_NAMES = {SOL_IP: "SOL_IP", SOL_TCP: "SOL_TCP", SOL_IPV6: "SOL_IPV6", SOL_SOCKET: "SOL_SOCKET"}


def cells():
    """The table with a label for each cell."""
    rows = {}
    for (listener, redirected), answers in TABLE.items():
        for cell in answers:
            level, _, length, _ = cell
            label = (f"{LEVEL_NAMES[level]} with {length} bytes, listener {listener}, "
                     f"{'redirected' if redirected else 'not redirected'}")
            rows[label] = (listener, redirected, *cell)
    return rows


@case_for(cells())
def so_original_dst(listener, redirected, level, option, length, expected):
    """Where hooks cannot choose an errno the kernel's own stands."""
    if refusal() == errno.EPERM and expected in ("EINVAL", "ENOENT"):
        expected = "ENOPROTOOPT"
    with accepted(listener, redirected) as (_, prober):
        got = prober.get(level, option, length)
        assert got == expected, f"{got}, expected {expected}"


@case
def our_answer_wins_over_conntrack():
    """With conntrack active the kernel's own call succeeds, and names the proxy itself."""
    found = []
    rules = ("table inet tptest { chain c { type filter hook input priority 0; "
             "ct state new accept; }; }")
    run(["nft", rules])
    try:
        with Server("10.77.0.1", lambda made: found.append(
                made.getsockopt(SOL_IP, ORIGINAL_DST, 16))) as plain:
            socket.create_connection(plain.address).close()
            wait_for(lambda: found, "an unhooked socket to be answered by conntrack")
        for listener, level, length, answer in (("4", SOL_IP, 16, V4_ANSWER),
                                                ("6", SOL_IPV6, 28, V6_ANSWER)):
            with accepted(listener) as (_, prober):
                assert prober.get(level, ORIGINAL_DST, length) == wrote(answer, length)
    finally:
        run(["nft", "delete table inet tptest"])


@case_for({"IPv4": ("4",), "IPv6": ("6",)})
def a_buffer_larger_than_a_page_changes_no_answer(listener):
    """Kernels before 6.4 turn each into EFAULT, unless the hook says that it changed nothing."""
    with accepted(listener) as (_, prober):
        assert prober.get(SOL_TCP, TCP_INFO, 65536).startswith("OK ")
        assert prober.get(SOL_TCP, UNKNOWN, 65536) == "ENOPROTOOPT"


@case
def answers_are_counted():
    with accepted("4") as (box, prober):
        before = box.counters()
        prober.get(SOL_IP, ORIGINAL_DST, 16)
        assert box.counters()["original_dst"] == before["original_dst"] + 1
    with accepted("4", redirected=False) as (box, prober):
        before = box.counters()
        prober.get(SOL_IP, ORIGINAL_DST, 16)
        assert box.counters()["original_dst_missing"] == before["original_dst_missing"] + 1


@case
def a_client_socket_has_no_original_destination():
    """netfilter answers on the accepted end; on the client's the kernel's own errors stand."""
    with accepted("4") as (box, _), box.socket() as client:
        client.connect(("10.77.0.3", PORT))
        try:
            client.getsockopt(SOL_IP, ORIGINAL_DST, 16)
            raise Failed("the client's end was answered")
        except OSError:
            pass


main()
