# SPDX-License-Identifier: BSD-2-Clause
"""
What is measured. A test takes a world and gives a sample: a dictionary of numbers. Those of ROUND
are made once a round on each path, the paths in turn, and the hooks are timed after each of them;
the others are made once at the end.
"""

import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import time

from harness import system

from . import machine, worlds
from .rows import BULK
from .worlds import ADDRESS, BULK_PORT, PORT, SINK_PORT


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything."""

    rounds: int
    sequential: int  # connections
    parallel: int
    milliseconds: int  # of a test that runs for a time
    bulk_seconds: int
    bulk_every: int  # rounds; bulk tests take the longest
    idle: int  # sessions whose memory is measured
    live: tuple  # numbers of sessions at which latency is measured
    probes: int
    passes: int  # over these numbers, as the machine's own speed changes meanwhile
    past: int  # connections after which the rate is looked at again
    hooked: int  # connections for which hooks are timed, in a turn
    hook_turns: int  # on each path, after each test of a round


FULL = Size(rounds=9, sequential=10000, parallel=10000, milliseconds=700, bulk_seconds=1,
            bulk_every=2, idle=10000, live=(1, 100, 1000, 9000, 50000), probes=5000, passes=5,
            past=200000, hooked=500, hook_turns=2)
QUICK = Size(rounds=2, sequential=1000, parallel=1000, milliseconds=150, bulk_seconds=1,
             bulk_every=2, idle=1000, live=(1, 100, 2000), probes=1000, passes=2, past=10000,
             hooked=250, hook_turns=1)

# What a path may do wrong without being the end of the run: fail, refuse, stand still.
PROBLEMS = (AssertionError, RuntimeError, OSError, subprocess.TimeoutExpired)

PAST_TURNS = 100  # for each path, over the connections in `past`


def fit(size):
    """The size that the limit of descriptors allows."""
    live = sorted({min(count, worlds.Crowded.most_live()) for count in size.live})
    return dataclasses.replace(size, idle=min(size.idle, worlds.most_sessions() - 1),
                               live=tuple(live))


def _sequential(world, size):
    return world.load("connect", ADDRESS, PORT, size.sequential, 1)


def _parallel(world, size):
    return world.load("connect", ADDRESS, PORT, size.parallel, 8)


def _keepalive(connections):
    def measure(world, size):
        return world.load("keepalive", ADDRESS, PORT, connections, size.milliseconds)
    return measure


def _writes(world, size):
    return world.load("writes", ADDRESS, SINK_PORT, size.milliseconds)


def _bulk(streams, *words):
    def measure(world, size):
        shown = json.loads(world.client(
            "iperf3", "--client", ADDRESS, "--port", BULK_PORT, "--json", "--parallel", streams,
            "--time", size.bulk_seconds, *words))
        if "error" in shown:
            raise RuntimeError(f"iperf3: {shown['error']}")
        received = shown["end"]["sum_received"]
        return {"bytes": received["bytes"], "gbps": received["bits_per_second"] / 1e9}
    return measure


ROUND = {
    "sequential": _sequential,
    "parallel": _parallel,
    "keepalive-1": _keepalive(1),
    "keepalive-32": _keepalive(32),
    "keepalive-256": _keepalive(256),
    "writes": _writes,
    "bulk-up-1": _bulk(1),
    "bulk-down-1": _bulk(1, "--reverse"),
    "bulk-up-8": _bulk(8),
    "bulk-down-8": _bulk(8, "--reverse"),
}


def _is_problem(given):
    return isinstance(given, dict) and "error" in given


def _attempt(measure, world, size):
    """What a test gives on a path; {"error": why} where the path failed it."""
    try:
        world.wait_idle()
        return measure(world, size)
    except PROBLEMS as error:
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[-1]}


def _metered(measure):
    """The test, with the CPU time it took."""
    def metered(world, size):
        with machine.Meter(world.proxy) as meter:
            numbers = measure(world, size)
        return {**numbers, "proxy": meter.proxy, "machine": meter.machine}
    return metered


def rotated(all_worlds, number):
    """Each round, or turn, begins with another path."""
    at = number % max(len(all_worlds), 1)
    return all_worlds[at:] + all_worlds[:at]


def _turn(number, chosen, measure, size):
    """One short test on each path. The machine changes its speed within seconds: over many turns
    all paths have the same one."""
    return {world.name: _attempt(measure, world, size) for world in rotated(chosen, number)}


def _by_path(turns):
    """{path: what its turns gave, or its last problem}."""
    found = {}
    for turn in turns:
        for name, given in turn.items():
            found.setdefault(name, []).append(given)
    return {name: next((one for one in reversed(given) if _is_problem(one)), given)
            for name, given in found.items()}


def _hook_turn(world, size):
    with world.hooks() as pins, machine.HookStatistics(pins) as kernel:
        shown = world.load("connect", ADDRESS, PORT, size.hooked, 1)
        world.wait_idle()
        programs = kernel.programs()
    count = shown["count"]
    return {"count": count, "failures": shown["failures"],
            "programs": {name: {"us": program["ns"] / 1e3 / count, "runs": program["runs"] / count}
                         for name, program in programs.items() if program["runs"]}}


def _hook_sample(turns):
    """A round's, of its turns: medians, as a turn is short enough to be hit by another guest."""
    def median(name, what):
        return round(statistics.median(turn["programs"].get(name, {}).get(what, 0)
                                       for turn in turns), 3)

    names = {name for turn in turns for name in turn["programs"]}
    each = [sum(program["us"] for program in turn["programs"].values()) for turn in turns]
    return {"count": sum(turn["count"] for turn in turns),
            "failures": sum(turn["failures"] for turn in turns),
            "us_per_connection": statistics.median(each),
            "turns": [round(one, 3) for one in each],
            "programs": {name: {"us": median(name, "us"), "runs": median(name, "runs")}
                         for name in sorted(names)}}


def run_round(number, all_worlds, size, report):
    """Every test on every path, and after each the hooks."""
    begin, samples, hooks = machine.machine_times(), {}, []
    order = rotated(all_worlds, number)
    with_hooks = [world for world in order if world.name in ("floor", "floor-hold", *worlds.ALONE)]
    for test in ROUND:
        if test in BULK and number % size.bulk_every:
            continue
        report(test)
        samples[test] = {world.name: _attempt(_metered(ROUND[test]), world, size)
                         for world in order}
        for _ in range(size.hook_turns):
            hooks.append(_turn(len(hooks), with_hooks, _hook_turn, size))
            with_hooks = [one for one in with_hooks if not _is_problem(hooks[-1][one.name])]
    samples["hooks"] = {name: turns if _is_problem(turns) else _hook_sample(turns)
                        for name, turns in _by_path(hooks).items()}
    end = machine.machine_times()
    return {"steal_percent": round(machine.steal_percent(begin, end), 2),
            "load": os.getloadavg()[0], "samples": samples}


# --- once -----------------------------------------------------------------------------------------

def _idle_memory(world, size):
    count = min(size.idle, worlds.most_sessions(world.session_descriptors) - 1)
    with world.sessions() as command:
        command("open", 1)  # what the first session costs is not the others'
        before = world.resident()
        command("open", count + 1)
        grown = world.resident() - before
    return {"sessions": count, "bytes": grown, "mb_per_1000": grown / 1e3 / count}


def _live_latency(world, size):
    passes = []
    counts = [count for count in size.live if count <= world.most_live()]
    with world.sessions() as command:
        for _ in range(size.passes):
            passes.append([])
            for count in counts:
                command("open", count)
                command("probe", size.probes // 10)  # warms up
                passes[-1].append(command("probe", size.probes))
            command("open", 0)
            world.wait_idle()
    return {"passes": passes}


# test -> (what measures it, the paths)
ONCE = {
    "idle-memory": (_idle_memory, [world.name for world in worlds.ALL[1:]]),
    "live-latency": (_live_latency, ["direct", "tproxy", "haproxy"]),
}


def _past_turn(world, size):
    return world.load("connect", ADDRESS, PORT, size.past // PAST_TURNS, 8)["rate"]


def _past_connections(all_worlds, size):
    """Of each path the rates of all its turns, or its last problem."""
    chosen = [world for world in all_worlds if world.name in ("direct", "floor", *worlds.ALONE)]
    turns = [_turn(number, chosen, _past_turn, size) for number in range(PAST_TURNS)]
    return {name: rates if _is_problem(rates) else {"rates": rates}
            for name, rates in _by_path(turns).items()}


def _worlds_of(test, names, all_worlds):
    """Of those that are open, or, for the live sessions, with room for them all."""
    crowded = {one.name: one for one in worlds.CROWDED} if test == "live-latency" else {}
    for world in (world for world in all_worlds if world.name in names):
        if world.name in crowded:
            with crowded[world.name]() as other:
                yield other
        else:
            yield world


def run_once(all_worlds, size, report):
    results = {}
    for test, (measure, names) in ONCE.items():
        report(test)
        results[test] = {}
        for world in _worlds_of(test, names, all_worlds):
            results[test][world.name] = _attempt(measure, world, size)
    report("past-connections")
    results["past-connections"] = _past_connections(all_worlds, size)
    return results


def _open(stack, chosen, report):
    """Enters the worlds. A peer that cannot be set up here is left out."""
    entered = []
    for world in chosen:
        try:
            entered.append(stack.enter_context(world()))
        except system.Failed as error:
            if world.name in ("direct", *worlds.OURS):
                raise
            report(f"left out {world.name}: {error}")
    return entered


def run(all_names, size, report):
    """Everything. Gives what is written as JSON."""
    started, load_before = time.time(), os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        chosen = [world for world in worlds.ALL if world.name in all_names]
        report("setting up " + ", ".join(world.name for world in chosen))
        open_worlds = _open(stack, chosen, report)
        rounds = []
        for number in range(size.rounds):
            rounds.append(run_round(number, open_worlds, size, lambda test, number=number: report(
                f"round {number + 1} of {size.rounds}: {test}")))
        once = run_once(open_worlds, size, report)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started)),
        "seconds": round(time.time() - started),
        "load_before": load_before,
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "limited": size.live[-1] == worlds.Crowded.most_live(),  # by descriptors
        "machine": machine.describe(worlds.PACKAGES),
        "size": dataclasses.asdict(size),
        "paths": {world.name: world.about for world in open_worlds},
        "rounds": rounds,
        "once": once,
    }
