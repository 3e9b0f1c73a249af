#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""
tests/bench/report.py [JSON]: writes docs/performance.md and docs/performance.svg from the results
of a run (default: bench.json in the build directory $O). Nothing in them is written by hand.
"""

import json
import os
import pathlib
import statistics
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bench import plot, rows, summary  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

HEAD = """\
# Performance

What a connection costs through tproxy, through other transparent proxies, and directly, measured
side by side on one machine.

This page is made by `tests/bench/report.py` from the results of a run; do not edit it.

## How to run it

	sudo make bench			# everything, in about {minutes} minutes
	sudo make bench QUICK=1		# in less than two minutes, with less certain numbers
	sudo make bench-report		# this page and its plot, from the last run

Peers that are missing are installed from Debian. Each path has a network namespace and cgroups of
its own, the traffic is loopback traffic in there, and nothing is left behind, even after SIGKILL.
Results are also in `build/bench.json`, with every sample.

A round makes each test on each path, one path directly after the other, and each round begins with
another path. What counts is the ratio to the direct path *of the same round*: `x2.00 [1.90..2.20]`
is the median of these ratios and their extremes. Absolute numbers say something about the machine
only, and a machine with other work to do, or steal time, makes all of them uncertain.

Server and clients are the same on all paths, and so are `ip_local_port_range` (10000 to 65535) and
`tcp_tw_reuse` (1). The address of the server, 10.77.0.1, is on the loopback device. tproxyd runs
with its defaults, but without a log line for each session, as the others do, and lets one user have
all sessions.

## The machine

{machine}

{size}

## Results

{caption}

![Speed relative to a direct connection](performance.svg)

{tables}

{problems}
## What the rows mean

{meanings}

## The hooks, program by program

Medians of the rounds; a round's are the medians of its turns, {turns} after each of its other tests, of
{hooked:,} connections each.

{hooks}

## The paths

{paths}

The peers' configurations are in [tests/bench/peers](../tests/bench/peers/README.md).
"""


def markdown_table(grid):
    lines = [f"| {' | '.join(line)} |" for line in grid]
    lines.insert(1, "|" + "---|" * len(grid[0]))
    return "\n".join(lines)


def describe_machine(machine):
    facts = [
        ("kernel", machine["kernel"]),
        ("CPU", f"{machine['cpus']} x {machine['cpu']}"),
        ("memory", f"{machine['memory_gb']} GB"),
        ("virtualisation", machine["virtualisation"]),
        ("congestion control", f"{machine['congestion_control']} (the host's default)"),
        ("clock", machine["clocksource"]),
        ("tproxyd", machine["tproxyd"]),
        ("packages", ", ".join(machine["packages"])),
    ]
    return markdown_table([["", ""], *([name, value] for name, value in facts)])


def describe_size(results):
    size = results["size"]
    limit = (f" (the limit of descriptors, {results['descriptors']:,} a process, allows no more)"
             if results["limited"] else "")
    live = ", ".join(f"{count:,}" for count in size["live"])
    return (f"{size['rounds']} rounds. {size['sequential']:,} connections one after the other, "
            f"{size['parallel']:,} 8 at a time; {size['milliseconds']} ms of each keep-alive and "
            f"write test, {size['bulk_seconds']} s of each bulk test; {size['idle']:,} idle "
            f"sessions; latency at {live} live sessions{limit}; {size['past']:,} connections in "
            f"the long run.")


def result_tables(results):
    """Ratios, costs, and what is measured once; a table each, or they would be too wide to read."""
    paths = list(results["paths"])
    lines = summary.table(results)
    once = {row.key for row in rows.ONCE_ROWS}
    groups = (
        ("Relative to direct", [line for line in lines if line[0].ratio]),
        ("What the proxy costs", [line for line in lines if not line[0].ratio
                                  and line[0].key not in once]),
        ("Memory, growth (measured once)", [line for line in lines if line[0].key in once]),
    )
    parts = []
    for title, chosen in groups:
        shown = [path for path in paths if any(cells[path] for _, cells, _ in chosen)]
        grid = [["", *shown, "goal for tproxy"]]
        for row, cells, judged in chosen:
            grid.append([row.title, *(summary.show(row, path, cells[path]) for path in shown),
                         summary.goal_words(judged)])
        parts.append(f"### {title}\n\n{markdown_table(grid)}")
    return "\n\n".join(parts)


def caption(results):
    judged = [verdict for _, _, verdict in summary.table(results) if verdict]
    loads = ", ".join(f"{one['load']:.1f}" for one in results["rounds"])
    return (f"{results['date']}, {results['seconds'] // 60} min {results['seconds'] % 60} s. Steal "
            f"time (CPU that the hypervisor gave to others) in the rounds: "
            f"{summary.steal_words(results)}. Load of the machine before the run: "
            f"{results['load_before']:.1f}; after each round, the bench's own included: {loads}. "
            f"{sum(verdict.met for verdict in judged)} of {len(judged)} goals are met.")


def hook_table(results):
    grid = [["path", "program", "ns a run", "runs a connection", "us a connection"]]
    rounds = [one["samples"]["hooks"] for one in results["rounds"]]
    for path in rounds[0]:
        found = [samples[path]["programs"] for samples in rounds if "programs" in samples[path]]
        for name in sorted({name for programs in found for name in programs}):
            each, runs = (statistics.median(programs.get(name, {}).get(what, 0)
                                            for programs in found) for what in ("us", "runs"))
            if runs:
                grid.append([path, name, f"{each / runs * 1000:.0f}", f"{runs:.2f}", f"{each:.2f}"])
    return markdown_table(grid)


def write(results):
    found = summary.problems(results)
    problems = "".join(f"- {line}\n" for line in found)
    text = HEAD.format(
        minutes=max(round(results["seconds"] / 60), 1),
        machine=describe_machine(results["machine"]),
        size=describe_size(results),
        caption=caption(results),
        tables=result_tables(results),
        problems=f"What went wrong in measuring:\n\n{problems}\n" if found else "",
        meanings="\n".join(f"- **{row.title}**: {row.means}" for row in rows.ROWS + rows.ONCE_ROWS),
        hooks=hook_table(results),
        turns=results["size"]["hook_turns"],
        hooked=results["size"]["hooked"],
        paths="\n".join(f"- **{path}**: {about}" for path, about in results["paths"].items()))
    (ROOT / "docs/performance.md").write_text(text)
    (ROOT / "docs/performance.svg").write_text(plot.draw(results))


def main():
    default = pathlib.Path(os.environ.get("O", "build")) / "bench.json"
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    try:
        write(json.loads(path.read_text()))
    except FileNotFoundError:
        sys.exit(f"tests/bench/report.py: there is no {path}; run first: sudo make bench")
    print(f"written: {ROOT}/docs/performance.md, {ROOT}/docs/performance.svg")


if __name__ == "__main__":
    main()
