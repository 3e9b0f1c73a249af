# SPDX-License-Identifier: BSD-2-Clause
"""What differs from kernel to kernel, found by trying."""

import errno
import functools
import json
import socket

from .system import TPROXY, run

SO_NETNS_COOKIE = 71


@functools.cache
def refusal():
    """The errno of a connect() that a hook refuses: of our choice where bpf_set_retval exists (5.18)."""
    done = run([TPROXY, "doctor", "--json"], check=False)
    found = {finding["what"] for finding in json.loads(done.stdout)["findings"]}
    return errno.EPERM if "refusals" in found else errno.ECONNREFUSED


@functools.cache
def netns_cookies():
    """Whether a program can tell its own network namespace (5.14)."""
    with socket.socket() as probe:
        try:
            return bool(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
        except OSError:
            return False
