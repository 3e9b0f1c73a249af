# SPDX-License-Identifier: BSD-2-Clause
"""Who may do what: pins and their group, tproxyd without root, what an ordinary user gains nowhere."""

import os
import pathlib
import stat

from harness import UNPRIVILEGED, Sandbox, Server, banner, case, case_for, line, main, redirected, run
from harness.pins import BPFFS, assert_nothing, assert_whole, pretend_another_build

GROUP = 4711  # nobody's


def rights(path):
    """(mode, uid, gid)."""
    found = path.lstat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def assert_refuses(done, *words):
    assert done.returncode == 1, (done.returncode, done.stderr)
    for word in words:
        assert str(word) in done.stderr, f"no '{word}' in: {done.stderr}"


# --- pins -----------------------------------------------------------------------------------------

def assert_rights(box, group):
    """The whole instance is root's, and as much of it the group's as tproxyd needs."""
    assert rights(box.pins) == ((0o750 if group else 0o700), 0, group), oct(rights(box.pins)[0])
    for pin in box.pins.iterdir():
        mode = 0o660 if pin.name.startswith("map_") else 0o640 if pin.name == "prog_doorman" else 0
        want = (mode, 0, group) if group and mode else (0o600, 0, 0)
        assert rights(pin) == want, (pin.name, oct(rights(pin)[0]), rights(pin))


@case
def the_pins_are_roots_alone():
    with Sandbox(proxy=None) as box:
        assert_rights(box, 0)
        assert rights(BPFFS) == (0o1700, 0, 0)


@case
def a_group_gets_what_tproxyd_needs_and_loses_it_again():
    with Sandbox(load=("--group", str(GROUP)), proxy=None) as box:
        assert_rights(box, GROUP)
        assert rights(BPFFS) == (0o1710, 0, GROUP)
        assert "unchanged" in box.load("--group", str(GROUP)).stderr
        assert "access rights set" in box.load("--group", str(GROUP + 1)).stderr
        assert_rights(box, GROUP + 1)
        assert rights(BPFFS) == (0o1710, 0, GROUP + 1)
        box.load()
        assert_rights(box, 0)
        assert rights(BPFFS) == (0o1700, 0, 0)
        box.load("--group", "daemon")
        assert_rights(box, 1)
        box.unload()
        assert_nothing(box)
        assert rights(BPFFS) == (0o1700, 0, 0)


@case_for({"the same group": (GROUP,), "another one": (GROUP + 1,), "none": (0,)})
def an_upgrade_keeps_or_changes_the_group(group):
    with Sandbox(load=("--group", str(GROUP)), proxy=None) as box:
        pretend_another_build(box)
        box.load("--max-connections", "4242", *(("--group", str(group)) if group else ()))
        assert_whole(box)
        assert_rights(box, group)


@case
def rights_that_somebody_changed_come_back():
    with Sandbox(proxy=None) as box:
        (box.pins / "map_socks").chmod(0o666)
        os.chown(box.pins / "prog_connect4", 65534, 65534)
        assert "access rights set" in box.load("--check").stderr
        assert rights(box.pins / "map_socks")[0] == 0o666, "--check changed it"
        box.load()
        assert_rights(box, 0)


@case
def a_second_group_is_not_let_in_beside_the_first():
    with Sandbox(load=("--group", str(GROUP)), proxy=None) as one:
        with Sandbox(load=None) as two:
            assert_refuses(two.load("--group", str(GROUP + 1), check=False), BPFFS, GROUP, "chmod 0711")
            assert sorted(path.name for path in BPFFS.glob("tptest*")) == [one.name]
            BPFFS.chmod(0o711)
            try:
                two.load("--group", str(GROUP + 1))
                assert_rights(two, GROUP + 1)
                assert rights(BPFFS) == (0o711, 0, GROUP)
                two.unload()
            finally:
                BPFFS.chmod(0o1710)
        assert_rights(one, GROUP)


@case
def a_group_that_does_not_exist():
    with Sandbox(load=None) as box:
        assert_refuses(box.load("--group", "no-such-group", check=False), "no-such-group", "groupadd")
        assert_nothing(box)


# --- what the loader does not trust ---------------------------------------------------------------

def as_user(*words, check=True):
    return run([*UNPRIVILEGED, *words], check)


class open_to_all:
    """bpffs as it often is: everybody may make directories in it."""

    def __enter__(self):
        BPFFS.chmod(0o1777)

    def __exit__(self, *_):
        BPFFS.chmod(0o1700)
        os.chown(BPFFS, 0, 0)


@case_for({"world-writable": (0o777, 0), "group-writable": (0o770, 0), "readable to all": (0o755, 0),
           "sticky and world-writable": (0o1777, 0), "of another user": (0o700, 65534)})
def a_loose_directory_is_refused(mode, owner):
    for suffix in ("", "~new"):
        with Sandbox(load=None) as box:
            path = BPFFS / f"{box.name}{suffix}"
            path.mkdir()
            os.chown(path, owner, 0)
            path.chmod(mode)
            for words in ((), ("--check",), ("--group", str(GROUP))):
                done = box.load(*words, check=False)
                assert done.returncode == (3 if "--check" in words else 1), done
                for word in (path, f"uid {owner}", f"{mode:04o}", "chown root", "--name"):
                    assert str(word) in done.stderr, (word, done.stderr)
            assert rights(path) == (mode, owner, 0), "it was changed"


@case_for({"the instance's": ("",), "the one it is prepared in": ("~new",)})
def who_makes_the_directory_first_captures_nothing(suffix):
    with open_to_all(), Sandbox(load=None) as box:
        path = f"{BPFFS}/{box.name}{suffix}"
        as_user("mkdir", path)
        assert_refuses(box.load(check=False), path, "uid 65534", "remove it")
        assert not list(pathlib.Path(path).iterdir())
        pathlib.Path(path).rmdir()
        as_user("ln", "-s", "/tmp", path)
        assert_refuses(box.load(check=False), path, "not a directory")
        pathlib.Path(path).unlink()
        box.load()
        assert_whole(box)


main()
