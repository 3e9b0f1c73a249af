# SPDX-License-Identifier: BSD-2-Clause
"""
The client cannot tell: each scenario of tests/conformance, directly and through the proxy.

TORTURE is the number of random sessions, TORTURE_SEED the seed of the first one, and the seed
is all there is to a session: `TORTURE_SEED=7 TORTURE=1` with TPTEST_CASE=torture repeats one.
"""

from harness import case, case_for, main

from conformance import run


@case_for({run.label(job): (index,) for index, job in enumerate(run.jobs())})
def conformance(index):
    run.compare(index)


@case
def the_other_runs_were_made_through_the_proxy():
    run.assert_proxied()


main()
