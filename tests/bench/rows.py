# SPDX-License-Identifier: BSD-2-Clause
"""The rows of the table: what is taken from the samples, and the goals it is held against."""

import dataclasses
import statistics
import typing

FLOORS = ("floor", "floor-hold")
BULK = ("bulk-up-1", "bulk-down-1", "bulk-up-8", "bulk-down-8")


@dataclasses.dataclass(frozen=True)
class Row:
    """
    A number of each path and round. `ratio`: what counts is how it relates to the direct path's of
    the same round. `goal` is for the path "tproxy": ("at most" or "at least", bound), or ("best
    peer", factor): at most so many times the best peer's. `floors`: paths without a proxy's work.
    """

    key: str
    title: str
    unit: str
    value: typing.Callable  # of a round's {test: {path: sample}} and a path; None: there is none
    means: str
    higher_is_better: bool = False
    ratio: bool = True
    goal: tuple = ()
    floors: tuple = FLOORS


def _dig(found, words):
    for word in words:
        if not isinstance(found, dict) or found.get(word) is None:
            return None
        found = found[word]
    return found


def _of(test, *words):
    return lambda samples, path: _dig(samples, (test, path, *words))


def _proxy_per_connection(kind):
    def value(samples, path):
        sample = _dig(samples, ("sequential", path))
        if path == "direct" or "error" in sample:
            return None
        seconds = sum(sample["proxy"].values()) if kind == "all" else sample["proxy"][kind]
        return seconds * 1e6 / sample["count"]
    return value


def _machine_per_connection(*kinds):
    """What the whole machine spent beyond what it did on the direct path."""
    def value(samples, path):
        sample, direct = (_dig(samples, ("sequential", name)) for name in (path, "direct"))
        if path == "direct" or "error" in sample or "error" in direct:
            return None
        spent = sum(sample["machine"][kind] / sample["count"] for kind in kinds)
        return (spent - sum(direct["machine"][kind] / direct["count"] for kind in kinds)) * 1e6
    return value


def _proxy_per_gigabyte(kind):
    def value(samples, path):
        found = [_dig(samples, (test, path)) for test in BULK]
        if path == "direct" or any(not sample or "error" in sample for sample in found):
            return None
        seconds = sum(sum(sample["proxy"].values()) if kind == "all" else sample["proxy"][kind]
                      for sample in found)
        return seconds / (sum(sample["bytes"] for sample in found) / 1e9)
    return value


def _keepalive(connections, p50_goal, rate_goal):
    test = f"keepalive-{connections}"
    name = f"keep-alive, {connections} connection{'s' if connections > 1 else ''}"
    return [
        Row(f"{test}-rate", f"{name}: requests", "/s", _of(test, "rate"),
            "requests on open connections, each the next as soon as the response is there",
            higher_is_better=True, goal=rate_goal),
        Row(f"{test}-p50", f"{name}: p50", "us", _of(test, "total", "p50"),
            "from sending a request to having its response", goal=p50_goal),
        Row(f"{test}-p99", f"{name}: p99", "us", _of(test, "total", "p99"), "of the same",
            goal=("best peer", 1)),
        Row(f"{test}-p999", f"{name}: p99.9", "us", _of(test, "total", "p999"), "of the same"),
    ]


def _bulk(test, title, least):
    return Row(test, title, "Gb/s", _of(test, "gbps"), "iperf3, as counted by the receiver",
               higher_is_better=True, goal=("at least", least))


ROWS = [
    Row("connect-p50", "connect(): p50", "us", _of("sequential", "connect", "p50"),
        "socket() and connect() alone; only a proxy that waits for the server can be as honest as "
        "a direct connection", goal=("at most", 3)),
    Row("connect-p99", "connect(): p99", "us", _of("sequential", "connect", "p99"), "of the same"),
    Row("new-mean", "new connection + request: mean", "us", _of("sequential", "total", "mean"),
        "socket, connect, request, response, close, one after the other", goal=("at most", 2.2)),
    Row("new-p50", "new connection + request: p50", "us", _of("sequential", "total", "p50"),
        "of the same"),
    Row("new-p99", "new connection + request: p99", "us", _of("sequential", "total", "p99"),
        "of the same", goal=("at most", 1.7)),
    Row("new-8", "new connection + request, 8 at a time", "/s", _of("parallel", "rate"),
        "the same by one event-driven client", higher_is_better=True, goal=("at least", 0.55)),
    *_keepalive(1, ("at most", 1.8), ()),
    *_keepalive(32, (), ("at least", 0.55)),
    *_keepalive(256, (), ("at least", 0.5)),
    Row("writes", "64-byte writes", "/s", _of("writes", "rate"),
        "each sent by itself (TCP_NODELAY), until the server has all", higher_is_better=True),
    _bulk("bulk-up-1", "bulk to the server, 1 stream", 0.9),
    _bulk("bulk-down-1", "bulk from the server, 1 stream", 0.9),
    _bulk("bulk-up-8", "bulk to the server, 8 streams", 0.8),
    _bulk("bulk-down-8", "bulk from the server, 8 streams", 0.8),
    Row("cpu-connection", "proxy CPU per connection", "us", _proxy_per_connection("all"),
        "CPU time of the proxy's cgroup over a new connection + request", ratio=False,
        goal=("at most", 60)),
    Row("cpu-connection-user", "- of that in user space", "us", _proxy_per_connection("user"),
        "as the kernel splits it, by ticks", ratio=False),
    Row("cpu-connection-machine", "machine CPU per connection, beyond direct", "us",
        _machine_per_connection("user", "system", "irq", "softirq"),
        "all that the machine spent, clients and server included; of use only on a machine with "
        "nothing else to do", ratio=False),
    Row("cpu-connection-softirq", "- softirq and kernel threads", "us",
        _machine_per_connection("softirq", "kthreads"), "of the same", ratio=False),
    Row("cpu-gb", "proxy CPU per GB", "s", _proxy_per_gigabyte("all"),
        "CPU time of the proxy's cgroup over the four bulk tests", ratio=False,
        goal=("best peer", 0.5)),
    Row("cpu-gb-user", "- of that in user space", "s", _proxy_per_gigabyte("user"),
        "as the kernel splits it, by ticks", ratio=False),
    Row("hook-time", "hooks per connection", "us", _of("hooks", "us_per_connection"),
        "run time of all our BPF programs by the kernel's statistics, which are part of it, one "
        "connection after the other; a round's number is the median of its short turns, made after "
        "each of the other tests; of the floor: of empty programs in their places; of floor-hold: "
        "of its own programs", ratio=False, goal=("at most", 2)),
]

# Measured once: row without rounds, from the results' "once".
ONCE_ROWS = [
    Row("idle-memory", "proxy RSS per 1000 idle sessions", "MB",
        lambda once, path: _dig(once, ("idle-memory", path, "mb_per_1000")),
        "growth of the resident memory of its processes", ratio=False, goal=("at most", 0.5)),
    Row("live-growth", "request at the most live sessions / at 100", "x",
        lambda once, path: _live_growth(_dig(once, ("live-latency", path, "passes"))),
        "p50 of requests on sessions picked at random; median of several passes from few to many. "
        "Of the direct path and of tproxy with more processes, for descriptors: those of the server "
        "and the clients, and eight tproxyds, each with its part of the ports",
        ratio=False, goal=("at most", 1.2), floors=("direct",)),
    Row("past-growth", "connections/s at the end of the long run / at its start", "x",
        lambda once, path: _past_growth(once, path),
        "8 at a time, the paths in turn, 100 times; the second half of the run over the first. "
        "Of the direct path how the machine itself changed, of the others in relation to that",
        higher_is_better=True, ratio=False, goal=("at least", 0.95)),
]


def _live_growth(passes):
    if not passes:
        return None
    base = next((at for at, point in enumerate(passes[0]) if point["open"] >= 100), 0)
    return statistics.median(points[-1]["total"]["p50"] / points[base]["total"]["p50"]
                             for points in passes)


def _past_growth(once, path):
    def growth(name):
        """By what all connections of a half took: turns of one path differ by half."""
        rates = _dig(once, ("past-connections", name, "rates"))
        if not rates:
            return None
        half = len(rates) // 2
        return statistics.harmonic_mean(rates[half:]) / statistics.harmonic_mean(rates[:half])
    own, machine = growth(path), growth("direct")
    if not own or not machine:
        return None
    return own if path == "direct" else own / machine
