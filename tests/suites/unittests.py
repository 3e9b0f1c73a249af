#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""
Runs the tests of Python's unittest kind that stdin names, as JSON:

	{"names": [modules], "only": [ids] or null, "skip": [ids]}

and writes one JSON line a test to the file given: [id, "begun"], then [id, outcome, detail]. A test
that does not end is shown with all its threads' stacks, and the process with it ends: the caller
runs the rest in another.
"""

import faulthandler
import json
import sys
import unittest

TIMEOUT = 120  # seconds for one test

WORST = ("ok", "expected failure", "skipped", "failed")


class Recorder(unittest.TestResult):
    """A result that is written down as it comes."""

    def __init__(self, path):
        super().__init__()
        self._out = open(path, "a", encoding="utf-8")
        self._outcome, self._detail = None, ""

    def _write(self, *row):
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()

    def _note(self, test, outcome, detail=""):
        """A class's or module's fixture has no begin and no end."""
        if self._outcome is None:
            self._write(test.id(), outcome, detail)
        elif WORST.index(outcome) >= WORST.index(self._outcome):
            self._outcome, self._detail = outcome, detail

    def startTest(self, test):
        super().startTest(test)
        self._outcome, self._detail = "ok", ""
        self._write(test.id(), "begun")
        faulthandler.dump_traceback_later(TIMEOUT, exit=True, file=sys.__stderr__)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        self._write(test.id(), self._outcome, self._detail)
        self._outcome = None
        super().stopTest(test)

    def addError(self, test, err):
        self._note(test, "failed", self._exc_info_to_string(err, test))

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test, reason):
        self._note(test, "skipped", str(reason))

    def addExpectedFailure(self, test, err):
        self._note(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        self._note(test, "failed", "unexpected success")


def chosen(suite, keep):
    """The suite with only those tests for which keep(id)."""
    if not isinstance(suite, unittest.TestSuite):
        return suite if keep(suite.id()) else None
    return unittest.TestSuite(filter(None, (chosen(part, keep) for part in suite)))


def prepare_cpython():
    """What CPython's own runner sets up; its tests read it."""
    from test import support
    support.use_resources = ["cpu", "network", "subprocess", "walltime"]
    support.verbose = False


def main():
    wanted = json.load(sys.stdin)
    if any(name.startswith("test.") for name in wanted["names"]):
        prepare_cpython()
    only, skip = wanted["only"], set(wanted["skip"])
    suite = unittest.defaultTestLoader.loadTestsFromNames(wanted["names"])
    # The only reference, so that tests are freed as they run: some collect garbage for ever.
    suite = chosen(suite, lambda name: name not in skip and (only is None or name in only))
    suite.run(Recorder(sys.argv[1]))


if __name__ == "__main__":
    main()
