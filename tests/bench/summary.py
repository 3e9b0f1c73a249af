# SPDX-License-Identifier: BSD-2-Clause
"""From samples to medians, ratios, spread, and whether the goals are met."""

import dataclasses
import statistics

from .rows import FLOORS, ONCE_ROWS, ROWS

DIRECT, OURS = "direct", "tproxy"
OUR_PATHS = ("tproxy", "tproxy-nohold", "tproxy-2")


@dataclasses.dataclass(frozen=True)
class Cell:
    """Of one row and path. `low` and `high` are the extremes of the rounds."""

    value: float  # median, in the row's unit
    ratio: float  # median of the rounds' ratios to the direct path, or None
    low: float
    high: float

    @property
    def figure(self):
        return self.value if self.ratio is None else self.ratio


@dataclasses.dataclass(frozen=True)
class Verdict:
    text: str  # the goal in words
    met: bool
    how: str  # met, not met, and how far from the floors


def _round_values(row, rounds, path):
    """(value, ratio) of each round that has both."""
    found = []
    for samples in rounds:
        value = row.value(samples, path)
        direct = row.value(samples, DIRECT) if row.ratio else None
        if value is None or (row.ratio and not direct):
            continue
        found.append((value, value / direct if row.ratio else None))
    return found


def cell(row, rounds, path):
    """None where the path has no such number."""
    found = _round_values(row, rounds, path)
    if not found:
        return None
    values, ratios = zip(*found)
    spread = ratios if row.ratio else values
    return Cell(statistics.median(values), statistics.median(ratios) if row.ratio else None,
                min(spread), max(spread))


def beside_floors(row, rounds):
    """{floor: what we have over what it has, the median of the rounds' ratios}."""
    found = {}
    for floor in row.floors:
        pairs = [(row.value(samples, OURS), row.value(samples, floor)) for samples in rounds]
        ratios = [ours / least for ours, least in pairs if ours is not None and least]
        if ratios:
            found[floor] = statistics.median(ratios)
    return found


def _judge(row, cells, beside, bound_words, bound):
    """A goal that is not met is held against the floors: who is within a tenth of one is at it."""
    def against(name):
        ratio = beside[name]
        near = ratio >= 0.9 if row.higher_is_better else ratio <= 1.1
        return f"{'at' if near else 'off'} {name} (x{number(ratio)} of it)"

    ours = cells[OURS].figure
    met = ours >= bound if row.higher_is_better else ours <= bound
    if met:
        return Verdict(bound_words, True, "met")
    return Verdict(bound_words, False, "; ".join(["NOT met", *map(against, beside)]))


def verdict(row, cells, beside):
    """
    Whether the goal of a row is met, or None where there is no goal or no number. `beside` is
    beside_floors().
    """
    ours = cells.get(OURS)
    if not row.goal or not ours:
        return None
    kind, bound = row.goal
    sign = "x" if row.ratio else ""
    if kind == "best peer":
        peers = [found.figure for path, found in cells.items()
                 if found and path not in (DIRECT, *FLOORS, *OUR_PATHS)]
        if not peers:
            return None
        words = "the best peer's" if bound == 1 else f"{bound:g} of the best peer's"
        bound *= min(peers)
        return _judge(row, cells, beside, f"<= {words} ({sign}{number(bound)})", bound)
    unit = "" if row.ratio or row.unit == "x" else f" {row.unit}"
    return _judge(row, cells, beside,
                  f"{'<=' if kind == 'at most' else '>='} {sign}{bound:g}{unit}", bound)


def table(results):
    """[(row, {path: cell}, verdict)] of all rows."""
    paths = list(results["paths"])
    rounds = [one["samples"] for one in results["rounds"]]
    lines = []
    for rows, samples in ((ROWS, rounds), (ONCE_ROWS, [results["once"]])):
        for row in rows:
            cells = {path: cell(row, samples, path) for path in paths}
            lines.append((row, cells, verdict(row, cells, beside_floors(row, samples))))
    return lines


# --- text -----------------------------------------------------------------------------------------

def number(value):
    """Three significant digits, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def show(row, path, found):
    if not found:
        return "-"
    if path == DIRECT and row.ratio:
        return f"{number(found.value)} {row.unit}"
    spread = f" [{number(found.low)}..{number(found.high)}]" if found.low != found.high else ""
    if row.ratio:
        return f"x{number(found.ratio)}{spread}"
    return f"{number(found.value)} {row.unit}{spread}"


def goal_words(judged):
    return f"{judged.text}: {judged.how}" if judged else ""


def steal_words(results):
    return ", ".join(f"{one['steal_percent']:g}%" for one in results["rounds"])


def problems(results):
    """What went wrong in measuring, a line each."""
    found = []
    for number_, one in enumerate(results["rounds"], 1):
        for test, samples in one["samples"].items():
            for path, sample in samples.items():
                if "error" in sample:
                    found.append(f"round {number_}, {test}, {path}: {sample['error']}")
                elif sample.get("failures"):
                    found.append(f"round {number_}, {test}, {path}: {sample['failures']} of "
                                 f"{sample['count']} failed")
    for test, samples in results["once"].items():
        found += [f"{test}, {path}: {sample['error']}" for path, sample in samples.items()
                  if "error" in sample]
    return found


def text(results):
    """The table for a terminal."""
    paths = list(results["paths"])
    grid = [["", *paths, "goal for tproxy"]]
    for row, cells, judged in table(results):
        grid.append([row.title, *(show(row, path, cells[path]) for path in paths),
                     goal_words(judged)])
    widths = [max(len(line[column]) for line in grid) for column in range(len(grid[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip()
             for line in grid]
    verdicts = [judged for _, _, judged in table(results) if judged]
    lines += [
        "",
        f"xN: ratio to direct, median of {len(results['rounds'])} rounds [extremes]; "
        f"steal in the rounds: {steal_words(results)}",
        f"goals: {sum(judged.met for judged in verdicts)} of {len(verdicts)} met",
        *problems(results),
    ]
    return "\n".join(lines)
