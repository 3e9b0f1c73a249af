# SPDX-License-Identifier: BSD-2-Clause
"""The plot, in SVG. Bars: speed relative to direct. Lines: what live sessions cost."""

import statistics
from xml.sax.saxutils import escape

from . import summary

WIDTH, MARGIN, LABEL = 960, 20, 250
BAR, GAP, TITLE = 9, 12, 34
CURVES = 260  # height of the second part
COLOURS = {"tproxy": "#0b6e4f", "tproxy-nohold": "#7bc8a4", "tproxy-2": "#2aa198",
           "haproxy": "#3d6cb9",
           "redsocks": "#c0392b", "nginx": "#e08e0b", "socket-proxyd": "#7d5ba6",
           "direct": "#444444", "floor": "#aaaaaa", "floor-hold": "#888888"}

# Rows of the first part; more is better in all of them there: a latency is turned round.
SHOWN = ("connect-p50", "new-mean", "new-p99", "new-8", "keepalive-1-p50", "keepalive-32-rate",
         "keepalive-256-rate", "bulk-up-1", "bulk-down-1", "bulk-up-8", "bulk-down-8")


def _text(x, y, words, size=12, anchor="start", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{colour}">{escape(words)}</text>')


def _rect(x, y, width, height, colour):
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
            f'fill="{colour}"/>')


def _line(x1, y1, x2, y2, colour, width=1, dash=""):
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"{dashed}/>')


def _speed(row, ratio):
    return ratio if row.higher_is_better else 1 / ratio


def _goal_speed(row):
    return _speed(row, row.goal[1]) if row.goal and row.goal[0] != "best peer" else None


def _legend(paths, y):
    parts, x = [], MARGIN
    for path in paths:
        parts += [_rect(x, y - 9, 10, 10, COLOURS[path]), _text(x + 14, y, path)]
        x += 34 + 7 * len(path)
    return parts


def _bars(lines, paths, top):
    """The first part. Returns its elements and its lower end."""
    ceiling = 1.6
    scale = (WIDTH - LABEL - 2 * MARGIN) / ceiling
    parts, y = [], top
    height = len(lines) * (len(paths) * BAR + GAP)
    for tenth in range(0, int(ceiling * 10) + 1, 2):
        x = LABEL + tenth / 10 * scale
        parts.append(_line(x, y - 4, x, y + height, "#444" if tenth == 10 else "#ddd"))
        parts.append(_text(x, y - 8, f"{tenth / 10:g}", 11, "middle"))
    for row, cells, _ in lines:
        begin = y
        parts.append(_text(LABEL - 8, y + len(paths) * BAR / 2 + 4, row.title, 12, "end"))
        for path in paths:
            found = cells[path]
            if found:
                ends = sorted(_speed(row, value) for value in (found.low, found.high))
                low, high = (min(value, ceiling) * scale for value in ends)
                length = min(_speed(row, found.ratio), ceiling) * scale
                middle = y + BAR / 2
                parts += [_rect(LABEL, y + 1, length, BAR - 2, COLOURS[path]),
                          _line(LABEL + low, middle, LABEL + high, middle, "#000")]
            y += BAR
        goal = _goal_speed(row)
        if goal:
            x = LABEL + goal * scale
            parts.append(_line(x, begin - 2, x, y + 2, "#d00", 2, "3,2"))
        y += GAP
    return parts, y


def _curves(results, top):
    """The second part: p50 of a request, median of the passes; the numbers of sessions are evenly
    spaced."""
    samples = {path: sample["passes"] for path, sample in results["once"]["live-latency"].items()
               if "passes" in sample}
    if not samples:
        return []
    counts = [point["open"] for point in next(iter(samples.values()))[0]]
    live = {path: [statistics.median(point["total"]["p50"] for point in points)
                   for points in zip(*passes)] for path, passes in samples.items()}
    most = max(max(p50s) for p50s in live.values())
    left, right, bottom = LABEL, WIDTH - 2 * MARGIN, top + CURVES - 40
    step = (right - left) / max(len(counts) - 1, 1)

    def place(index, value):
        return left + index * step, bottom - value / most * (bottom - top)
    parts = [_line(left, bottom, right, bottom, "#444"), _line(left, top, left, bottom, "#444"),
             _text(left - 8, top + 8, f"{most:.0f} us", 11, "end"),
             _text(left - 8, bottom, "0", 11, "end")]
    for index, count in enumerate(counts):
        parts.append(_text(left + index * step, bottom + 16, f"{count:,}", 11, "middle"))
    parts.append(_text((left + right) / 2, bottom + 34, "live sessions", 12, "middle"))
    for path, p50s in live.items():
        places = [place(index, p50) for index, p50 in enumerate(p50s)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{COLOURS[path]}" '
                     f'stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[path]}"/>'
                  for x, y in places]
    return parts


def draw(results):
    """The whole picture."""
    paths = [path for path in results["paths"] if path != "direct"]
    lines = [line for line in summary.table(results) if line[0].key in SHOWN]
    parts = [_text(MARGIN, 24, "Speed relative to a direct connection (1 = direct; more is better; "
                   "latencies turned round)", 14),
             _text(MARGIN, 42, "bar: median of the rounds' ratios; thin line: extremes; "
                   "dashed red: the goal for tproxy", 11, colour="#555")]
    parts += _legend(["direct", *paths], 64)
    bars, y = _bars(lines, paths, 64 + TITLE)
    parts += bars
    y += TITLE
    parts.append(_text(MARGIN, y, "Latency of a request (p50) against live sessions", 14))
    parts += _curves(results, y + 16)
    height = y + 16 + CURVES
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n")
