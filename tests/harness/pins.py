# SPDX-License-Identifier: BSD-2-Clause
"""What is pinned and attached: a complete set, nothing at all, a set of another version."""

import os
import pathlib
import shutil

from .system import bpftool, run

BPFFS = pathlib.Path("/sys/fs/bpf")
HOOKS = ["connect4", "connect6", "sockops", "getsockopt", "getpeername4", "getpeername6",
         "getsockname4", "getsockname6", "sock_release"]
FILTERS = ["doorman"]
MAPS = ["config", "socks", "ports", "live_socks", "live_ports", "listeners", "doors", "rings", "routes",
        "failed", "checked", "stats", "proxies", "windows"]
KERNELS_OWN = {"maps.debug", "progs.debug"}

# struct tp_config
OFFSET_ABI, OFFSET_BUILD = 4, 24


def directories():
    """What is in the tests' bpffs."""
    return sorted(set(os.listdir(BPFFS)) - KERNELS_OWN)


def remove(path):
    """Removes a directory of pins; what is only pinned there is detached and freed."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def attached(*cgroups):
    """
    Names of the programs that links attach to each of these cgroups: a list, or of several a list each.
    (`bpftool cgroup show` knows hooks that Linux 5.10 does not, and fails there.)
    """
    links = [link for link in bpftool("link", "show") or [] if link["type"] == "cgroup"]
    names = {program["id"]: program.get("name") for program in bpftool("prog", "show") or []}
    found = [sorted(names.get(link["prog_id"]) for link in links
                    if link["cgroup_id"] == os.stat(cgroup).st_ino) for cgroup in cgroups]
    return found if len(cgroups) > 1 else found[0]


def expected(*cgroups):
    """The names of a complete set's pins."""
    links = {f"link_{hook}_{os.stat(cgroup).st_ino}" for hook in HOOKS for cgroup in cgroups}
    programs = {f"prog_{name}" for name in HOOKS + FILTERS}
    return links | programs | {f"map_{name}" for name in MAPS}


def assert_whole(box, *cgroups):
    """A complete, enabled set on exactly these cgroups (default: the box's), and nothing else."""
    cgroups = cgroups or (box.cgroup,)
    found = {pin.name for pin in box.pins.iterdir()}
    assert found == expected(*cgroups), sorted(found ^ expected(*cgroups))
    all_three = (box.cgroup, box.clients, box.servers)
    for cgroup, names in zip(all_three, attached(*all_three)):
        want = sorted(f"tp_{hook}" for hook in HOOKS) if cgroup in cgroups else []
        assert names == want, (cgroup, names)
    assert box.config()["enabled"] == 1
    assert directories() == [box.name], directories()


def assert_nothing(box):
    """Not a pin, not a program."""
    names = attached(box.cgroup, box.clients, box.servers)
    assert names == [[], [], []], names
    assert directories() == [], directories()


def object_ids(box):
    """Pin name -> id of the map, program or link."""
    kinds = {"map_": "map", "prog_": "prog", "link_": "link"}
    found = {}
    for pin in box.pins.iterdir():
        kind = next(kind for prefix, kind in kinds.items() if pin.name.startswith(prefix))
        found[pin.name] = bpftool(kind, "show", "pinned", pin)["id"]
    return found


def rewrite_config(box, offset, data):
    """Writes bytes into the pinned map_config, as another version would have."""
    pin = box.pins / "map_config"
    value = bpftool("map", "dump", "pinned", pin)[0]["value"]
    value[offset:offset + len(data)] = [f"{byte:#x}" for byte in data]
    run(["bpftool", "map", "update", "pinned", pin, "key", *["0"] * 4, "value", *value])


def pretend_another_abi(box):
    rewrite_config(box, OFFSET_ABI, b"\x63\0\0\0")


def pretend_another_build(box):
    rewrite_config(box, OFFSET_BUILD, bytes(8))
