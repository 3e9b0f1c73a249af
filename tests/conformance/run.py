# SPDX-License-Identifier: BSD-2-Clause
"""Compares what the two worlds saw. Their runs are made at once, when the first is asked for."""

import difflib
import functools
import os

from harness import Failed, Skip

from . import connecting, ends, failing, names, options, urgent  # noqa: F401  for their scenarios
from . import registry, torture, worlds


def label(job):
    name, family, mode = job
    return f"{name} ({family}, {'seed ' if name == torture.NAME else ''}{mode})"


@functools.cache
def jobs():
    """Every run whose label holds $TPTEST_CASE; all if none does."""
    everything = registry.runs() + torture.sessions()
    wanted = os.environ.get("TPTEST_CASE", "")
    return [job for job in everything if wanted in label(job)] or everything


@functools.cache
def outcomes():
    return worlds.outcomes(jobs())


def compare(index):
    """Raises Failed, with both transcripts, if a run's are not the same; Skip, if it could not be."""
    probe = registry.needed.get(jobs()[index][0], lambda: True)
    if not probe():
        raise Skip(f"this kernel fails the probe: {probe.__doc__}")
    direct, proxied = (world.get(index, (["did not run"], "", 0)) for world in outcomes())
    if max(direct[2], proxied[2]) > 5:
        print(f"# {label(jobs()[index])} took {direct[2]:.1f} s and {proxied[2]:.1f} s")
    broken = [line for line in direct[0] if line.startswith(("did not run", "raised", "pair:"))]
    if direct[0] == proxied[0] and not broken:
        return
    print(f"--- {label(jobs()[index])}: direct (-), through the proxy (+)")
    for line in difflib.ndiff(direct[0], proxied[0]):
        if not line.startswith("?"):
            print(f"    {line}")
    for trouble in {direct[1], proxied[1]} - {""}:
        print(trouble)
    raise Failed(f"the scenario itself failed: {broken[0]}" if broken else
                 "what the client saw is not the same")


def assert_proxied():
    """The runs of the other world were indeed made through the proxy."""
    counters = outcomes()[1]["counters"][0]
    print("#", ", ".join(f"{name} {count}" for name, count in counters.items() if count))
    for name in ("redirected", "held", "accepted", "no_route", "bound_device"):
        if not counters[name]:
            raise Failed(f"nothing was counted as {name}")
    for name in ("passed_by_policy", "accepted_unknown", "no_record_space", "no_port_space",
                 "untrusted_listener", "hold_no_space"):
        if counters[name]:
            raise Failed(f"{counters[name]} connections were counted as {name}")
    if counters["redirected"] < len(jobs()) / 2:
        raise Failed(f"only {counters['redirected']} connections of {len(jobs())} runs")
