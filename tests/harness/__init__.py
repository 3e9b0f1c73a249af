# SPDX-License-Identifier: BSD-2-Clause
"""What the integration tests share; see tests/README.md."""

from .cases import Skip, case, case_for, main
from .probes import netns_cookies, refusal
from .sandbox import NO_SHARES, PROXY_PORT, PROXY_PORTS, UNHELD, Sandbox, redirected
from .servers import (Server, assert_names, banner, connected, echo, exchange, free_port, hello, line,
                      silent, swallow, witness)
from .stress import Stress, quiet_direct_path
from .system import (LOAD, O, ROOT, TPROXY, TPROXYD, UNPRIVILEGED, Failed, bpftool, in_netns,
                     new_netns, program, run, tmpdir, wait_for)

__all__ = [
    "Failed", "LOAD", "NO_SHARES", "O", "PROXY_PORT", "PROXY_PORTS", "ROOT", "Sandbox", "Server",
    "Skip", "Stress", "TPROXY", "TPROXYD", "UNHELD", "UNPRIVILEGED", "assert_names", "banner",
    "bpftool", "case", "case_for", "connected", "echo", "exchange", "free_port", "hello", "in_netns", "line",
    "main", "netns_cookies", "new_netns", "program", "quiet_direct_path", "redirected", "refusal", "run", "silent",
    "swallow", "tmpdir", "wait_for", "witness",
]
