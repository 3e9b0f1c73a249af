# SPDX-License-Identifier: BSD-2-Clause
"""
A virtual machine, from its start to its end: without KVM, with the serial line for its only device.

What it has to tell are lines as those of tests/run: `vm: booted`, then `ok - X` and `not ok - X`, at the
end of each part `N passed, N failed, N skipped`, and at last `vm: done`.
"""

import os
import re
import selectors
import shutil
import subprocess
import sys
import time

QEMU = ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max",
        "-smp", "1", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-serial", "stdio"]
COMMAND_LINE = ("console=ttyS0 panic=-1 quiet nokaslr mitigations=off tsc=reliable no_timer_check "
                "random.trust_cpu=on rcupdate.rcu_expedited=1")

# Seconds without a line from the guest after which it is given up: more than tests/run gives a suite.
QUIET = 1600
SUMMARY = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$")


def find_needed(who, programs):
    """Ends the program unless all are there: program -> package."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted(package for program, package in programs.items() if not shutil.which(program))
    if missing:
        sys.exit(f"{who}: something is missing; install it with: "
                 f"apt-get install --no-install-recommends {' '.join(missing)}")


def _lines(command):
    """Runs a virtual machine, and gives its lines as they come; ends it when it falls silent."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(machine.stdout, selectors.EVENT_READ)
            rest = b""
            while selector.select(QUIET):
                data = os.read(machine.stdout.fileno(), 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace").rstrip("\r")
            yield f"vm: silent for {QUIET} s, given up"
    finally:
        machine.kill()
        machine.wait()


def run(kernel, initrd, parameters, summaries=1, memory=768, verbose=False):
    """
    Boots a kernel, and expects so many summaries. Returns [passed, failed, skipped]; prints what is
    worth knowing.
    """
    started, totals, booted, done = time.monotonic(), [0, 0, 0], False, None
    print(f"--- {kernel.release}", flush=True)
    with open(kernel.directory / "console.log", "w", encoding="utf-8") as log:
        for line in _lines([*QEMU, "-m", str(memory), "-kernel", kernel.image, "-initrd", initrd,
                            "-append", f"{COMMAND_LINE} {parameters}"]):
            log.write(f"{line}\n")
            if match := SUMMARY.match(line):
                totals = [total + int(new) for total, new in zip(totals, match.groups())]
                summaries -= 1
            elif booted and not done and (verbose or not line.startswith("ok - ")):
                print(f"    {line}", flush=True)
            booted = booted or line.startswith("vm: booted")
            done = done or line.startswith("vm: done") and time.monotonic()
    if not done or summaries:
        print(f"    the guest did not come to its end; all it wrote: {kernel.directory}/console.log")
        totals[1] += 1
    now = time.monotonic()
    print("    {} passed, {} failed, {} skipped in {:.0f} s, {:.0f} of them to go off".format(
        *totals, now - started, now - (done or now)), flush=True)
    return totals
