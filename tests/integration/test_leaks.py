# SPDX-License-Identifier: BSD-2-Clause
"""
Memory and descriptors at the end of the programs that run once, under valgrind; it knows no
descriptor table that two processes share, so for a serving tproxyd see the asan suites.
"""

import re

from harness import LOAD, TPROXY, TPROXYD, Sandbox, Server, banner, case, line, main, run

VALGRIND = ["valgrind", "--error-exitcode=99", "--leak-check=full", "--track-fds=yes",
            "--errors-for-leak-kinds=definite,indirect,possible",
            "--undef-value-errors=no"]  # it does not know all that bpf(2) fills in


def assert_clean(command, code=0):
    done = run([*VALGRIND, *command], check=False)
    assert done.returncode == code, done.stderr
    left = re.search(r"FILE DESCRIPTORS: (\d+) open", done.stderr)
    assert left and int(left[1]) <= 3, done.stderr


@case
def the_loader_leaves_nothing_open():
    with Sandbox(load=None) as box:
        load = [LOAD, "--name", box.name, "--cgroup", box.cgroup]
        assert_clean([*load, "--check"])
        assert_clean(load)
        assert_clean([*load, "--port", "18001", "--max-connections", "1000"])
        assert_clean([LOAD, "--name", box.name, "--unload"])


@case
def the_operators_commands_leave_nothing_open():
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        with box.connect(server.address) as client:
            line(client)
            for words in (("status", "--json"), ("conns",), ("doctor", "--json")):
                assert_clean([TPROXY, *words, "--name", box.name])
        assert_clean([TPROXYD, "--name", box.name, "--check"])
        assert_clean([TPROXYD, "--name", "not-there", "--check"], 1)


main()
