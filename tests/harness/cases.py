# SPDX-License-Identifier: BSD-2-Clause
"""Test cases: registration, running, and the lines that tests/run reads."""

import os
import sys
import traceback

from . import system

_cases = []


class Skip(Exception):
    """A probe found that this machine cannot run the case; the text says what was found."""


def case(function):
    """Registers a function as a case; its name, with spaces, is the case's name."""
    _cases.append((function.__name__.replace("_", " "), function))
    return function


def case_for(rows):
    """Registers a case for each row {name: arguments}."""
    def register(function):
        for label, arguments in rows.items():
            _cases.append((f"{function.__name__.replace('_', ' ')}: {label}",
                           lambda arguments=arguments: function(*arguments)))
        return function
    return register


def _run_one(name, function):
    try:
        function()
    except Skip as reason:
        return f"skip - {name}: {reason}"
    except Exception as error:  # whatever it is, the other cases still run
        traceback.print_exc(limit=-5, file=sys.stdout)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"not ok - {name}: {first[:300]}"
    return f"ok - {name}"


def main():
    """Runs the file's cases, those whose name holds $TPTEST_CASE where it is set."""
    wanted = os.environ.get("TPTEST_CASE", "")
    system.isolate()
    for name, function in _cases:
        if wanted in name:
            print(_run_one(name, function), flush=True)
