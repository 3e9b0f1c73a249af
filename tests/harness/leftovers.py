# SPDX-License-Identifier: BSD-2-Clause
"""What a run must not leave on the machine: snapshots to compare."""

import os
import pathlib
import subprocess

from .system import bpftool, cgroup2_root

PROGRAMS = ("tproxy", "tproxyd", "tproxy-load", "nginx", "sshd", "iperf3", "redsocks")


def _directories(root):
    return {f"cgroup {path}" for path, _, _ in os.walk(root)}


def _below(path):
    """The loader's lock file stays by design. (Unlike rglob, walk allows for what goes meanwhile.)"""
    return {f"file {os.path.join(directory, name)}" for directory, directories, files
            in os.walk(path) for name in directories + files if name != "load.lock"}


def _bpf_objects():
    """Ours by their names; ids, since each load makes new ones."""
    found = set()
    for kind, prefix in (("prog", "tp_"), ("map", "map_")):
        for entry in bpftool(kind, "show") or []:
            if entry.get("name", "").startswith(prefix):
                found.add(f"BPF {kind} {entry['id']} {entry['name']}")
    for link in bpftool("link", "show") or []:
        found.add(f"BPF link {link['id']} {link.get('attach_type', link.get('type'))}")
    return found


def _processes():
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            comm = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile
        if comm in PROGRAMS:
            found.add(f"process {pid} {comm}")
    return found


def _lines(what, command):
    output = subprocess.run(command, text=True, capture_output=True, check=False).stdout
    return {f"{what} {line}" for line in output.splitlines() if line.strip()}


def snapshot():
    """Everything of the kinds that tests make, as a set of lines."""
    return (_directories(cgroup2_root()) | _below("/sys/fs/bpf") | _below("/run/tproxy-load")
            | _bpf_objects() | _processes() | _lines("network namespace", ["ip", "netns"])
            | _lines("nft", ["nft", "list", "ruleset"])
            | _lines("mount", ["findmnt", "-rn", "-o", "TARGET,FSTYPE"]))
