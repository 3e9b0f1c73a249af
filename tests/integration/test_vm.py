# SPDX-License-Identifier: BSD-2-Clause
"""
The oldest kernel that we run on, in a virtual machine, with hooks on the root of all cgroups: what
`make vmtest` does on all kernels, without the suites. The kernel is downloaded the first time.
"""

import re
import subprocess
import sys

from harness import ROOT

SERIES = "5.10"
RESULT = re.compile(r"^ *(ok|not ok) - (.*)$")


def main():
    """Not in namespaces of its own, in which there is no network to download from."""
    command = [ROOT / "tests/vm/run", "--checks", "--verbose", SERIES]
    with subprocess.Popen(command, text=True, errors="replace", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as machine:
        for text in machine.stdout:
            found = RESULT.match(text)
            print(f"{found[1]} - Linux {SERIES}: {found[2]}" if found else text.rstrip(), flush=True)
    sys.exit(machine.returncode)


main()
