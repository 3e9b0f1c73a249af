# SPDX-License-Identifier: BSD-2-Clause
"""
A short part of tests/suites: some of CPython's own network tests, directly and through the proxy.
All of it is `make suites`.
"""

import concurrent.futures
import functools

from harness import Failed, case_for, main
from suites import compare, python, world

# What is quick, and has clients and servers in one process.
MODULES = ("test_asyncio.test_events", "test_socket", "test_ftplib", "test_poplib", "test_httplib",
           "test_smtplib", "test_epoll")


def compared(module):
    """Each module has a pair of worlds to itself."""
    with world.worlds() as both:
        return compare.compare(module, python.modules(f"test.{module}"), both)


@functools.cache
def all_compared():
    """Starts all at once, for they mostly wait. Returns {module: future of its comparison}."""
    pool = concurrent.futures.ThreadPoolExecutor(len(MODULES))
    return {module: pool.submit(compared, module) for module in MODULES}


@case_for({module: (module,) for module in MODULES})
def cpython(module):
    made = all_compared()[module].result()
    print(made.row())
    compare.explain(made)
    if made.differences:
        raise Failed(f"{len(made.differences)} tests differ: {' '.join(sorted(made.differences))}")
    assert made.ok and made.redirected, made.row()


main()
