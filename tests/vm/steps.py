# SPDX-License-Identifier: BSD-2-Clause
"""Checks inside of a guest that build on each other, and run in the order of their file."""

import re
import sys
import traceback

from harness import run

KERNEL_TROUBLE = re.compile(
    r"WARNING:|BUG:|Oops|general protection fault|refcount_t|hung_task|blocked for more|stall")

_steps = []


def step(function):
    _steps.append((function.__name__.replace("_", " "), function))
    return function


def step_for(rows):
    """A step for each label in rows, called with the arguments there."""
    def register(function):
        for label, arguments in rows.items():
            _steps.append((f"{function.__name__.replace('_', ' ')}: {label}",
                           lambda arguments=arguments: function(*arguments)))
        return function
    return register


def the_kernel_has_nothing_to_complain_of():
    trouble = [text for text in run(["dmesg"]).stdout.splitlines() if KERNEL_TROUBLE.search(text)]
    assert not trouble, trouble


def run_all():
    """Where machines differ a step expects what a probe found, so that none is skipped."""
    step(the_kernel_has_nothing_to_complain_of)
    counts = {"ok": 0, "not ok": 0}
    for name, function in _steps:
        what, reason = "ok", ""
        try:
            function()
        except Exception as error:  # whatever it is, the other steps still run
            traceback.print_exc(limit=-3, file=sys.stdout)
            what, reason = "not ok", f": {(str(error).splitlines() or [type(error).__name__])[0]}"
        counts[what] += 1
        print(f"{what} - {name}{reason}", flush=True)
    print(f"{counts['ok']} passed, {counts['not ok']} failed, 0 skipped", flush=True)
