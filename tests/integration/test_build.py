# SPDX-License-Identifier: BSD-2-Clause
"""The Makefile: both compilers, dependencies, what it says where something is missing."""

import os
import re

from harness import ROOT, case, case_for, main, run, tmpdir

PROGRAMS = ("tproxy-load", "tproxyd", "tproxy")


def make(*words, check=True, tree=ROOT):
    command = ["make", "-C", tree, "--no-print-directory", f"-j{os.cpu_count()}", *words]
    environment = {key: value for key, value in os.environ.items() if key != "O"}
    return run(command, check, env=environment)


def copy_sources(directory):
    for name in ("Makefile", "bpf", "loader", "proxy", "tools", "tests"):
        run(["cp", "-a", ROOT / name, directory])


def planned(tree, changed):
    """What make would make after a change of one file, by name."""
    path = tree / changed
    before = path.stat()
    path.touch()
    try:
        return set(re.findall(r" -o build/(\S+)", make("-n", "V=1", "CC=clang", "all",
                                                       tree=tree).stdout))
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@case
def clang_builds_it_and_each_change_is_followed():
    """In a copy of the sources, which may be touched."""
    with tmpdir() as tree:
        copy_sources(tree)
        done = make("CC=clang", "all", "tests", tree=tree)
        assert "warning" not in done.stdout + done.stderr, done.stdout + done.stderr
        for program in PROGRAMS:
            assert run([tree / "build" / program, "--version"]).stdout.startswith(program)
        again = make("CC=clang", "all", "tests", tree=tree).stdout
        assert not re.search("^  [A-Z]", again, re.M), f"built twice: {again}"
        for changed, wanted in (("bpf/abi.h", {"bpf/tproxy.bpf.o", *PROGRAMS}),
                                ("bpf/connect.bpf.h", {"bpf/tproxy.bpf.o", "tproxy-load"}),
                                ("tools/lib/opts.c", {*PROGRAMS}),
                                ("proxy/table.h", {"tproxyd"})):
            made = planned(tree, changed)
            assert wanted <= made, f"{changed} changed, and {wanted - made} would not be made"
        assert not planned(tree, "tools/run.c") & {"tproxyd", "tproxy-load"}, "made for nothing"


@case_for({"a tool": ("CLANG=no-such-clang", "no-such-clang"),
           "a library": ("PKGS=no-such-library", "no-such-library")})
def what_is_missing_is_said_once(word, name):
    with tmpdir() as directory:
        done = make(f"O={directory}", word, check=False)
        assert done.returncode, done.stdout
        assert f"missing: {name}\n" in done.stderr and "sudo make deps" in done.stderr, done.stderr


main()
