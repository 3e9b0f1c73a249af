# SPDX-License-Identifier: BSD-2-Clause
"""Who may do what: pins and their group, tproxyd without root, what an ordinary user gains nowhere."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess

from harness import (ROOT, TPROXYD, UNPRIVILEGED, Failed, Sandbox, Server, banner, bpftool, case, case_for,
                     echo, free_port, line, main, redirected, run, tmpdir, wait_for)
from harness.load import children, worker
from harness.pins import BPFFS, assert_nothing, assert_whole, object_ids, pretend_another_build, remove, rewrite_config
from harness.sandbox import LAUNCHER, Proxy

GROUP = 4711  # nobody's, as a user and as a group
HERE = "10.77.0.1"
KERNEL = tuple(map(int, re.match(r"(\d+)\.(\d+)", os.uname().release).groups()))


def rights(path):
    """(mode, uid, gid)."""
    found = path.lstat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def assert_refuses(done, *words):
    assert done.returncode == 1, (done.returncode, done.stderr)
    for word in words:
        assert str(word) in done.stderr, f"no '{word}' in: {done.stderr}"


# --- pins -----------------------------------------------------------------------------------------

@contextlib.contextmanager
def bpffs_of(mode, group=0):
    """bpffs as an administrator, or the kernel (mode 1777), has it."""
    os.chown(BPFFS, 0, group)
    BPFFS.chmod(mode)
    try:
        yield
    finally:
        os.chown(BPFFS, 0, 0)
        BPFFS.chmod(0o1700)


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
        assert rights(BPFFS) == ((0o1710 if group else 0o1700), 0, group)
        box.unload()
        assert rights(BPFFS) == (0o1700, 0, 0)


@case
def the_last_instance_of_a_group_closes_its_way():
    words = ("--group", str(GROUP))
    with Sandbox(load=words, proxy=None) as one, Sandbox(load=words, proxy=None) as two:
        one.unload()
        assert rights(BPFFS) == (0o1710, 0, GROUP)
        assert f"{BPFFS}: group {GROUP} may not search it any more" in two.unload().stderr
        assert rights(BPFFS) == (0o1700, 0, 0)


@case_for({"a load for another group": ("--group", str(GROUP)), "a load for root": ()})
def a_way_that_an_administrator_opened_outlives(*words):
    with bpffs_of(0o1710, GROUP + 1), Sandbox(load=None) as box:
        assert box.load(*words, check=False).returncode == bool(words)
        box.load("--max-connections", "4242")
        box.unload()
        assert rights(BPFFS) == (0o1710, 0, GROUP + 1)


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
            done = two.load("--group", str(GROUP + 1), "--check", check=False)
            assert done.returncode == 3 and "chmod 0711" in done.stderr, done
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
def a_change_to_a_group_that_cannot_be_let_in_changes_nothing():
    words = ("--group", str(GROUP))
    with Sandbox(load=words, proxy=None) as one, Sandbox(load=words, proxy=None) as two:
        before = object_ids(two), two.config()
        for more in (("--check",), ("--port", "18001"), ("--max-connections", "4242")):
            done = two.load("--group", str(GROUP + 1), *more, check=False)
            assert done.returncode == (3 if "--check" in more else 1), done
            assert f"so group {GROUP + 1} cannot" in done.stderr, done
            assert (object_ids(two), two.config()) == before
            assert_rights(two, GROUP)
        one.unload()
        two.load("--group", str(GROUP + 1))
        assert_rights(two, GROUP + 1)
        two.unload()


@case
def a_group_that_does_not_exist():
    with Sandbox(load=None) as box:
        assert_refuses(box.load("--group", "no-such-group", check=False), "no-such-group", "groupadd")
        assert_nothing(box)


@case_for({word or "empty": (word,) for word in ("", "-1", "+12", " 12", "4294967295", "4294967296", "9" * 30)})
def a_group_that_is_none(word):
    with Sandbox(load=None) as box:
        assert_refuses(box.load("--group", word, check=False), f"'{word}'", "neither a name nor a number")
        assert_nothing(box)


# --- what the loader does not trust ---------------------------------------------------------------

def as_user(*words, check=True):
    return run([*UNPRIVILEGED, *words], check)


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
    with bpffs_of(0o1777), Sandbox(load=None) as box:
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


@case_for({"a directory": ("mkdir",), "a symbolic link": ("ln", "-s", "/tmp")})
def what_a_stranger_makes_keeps_no_hooks_in_force(*command):
    with bpffs_of(0o1777), Sandbox(proxy=None) as box:
        old, new = (BPFFS / f"{box.name}{suffix}" for suffix in ("~old", "~new"))
        as_user(*command, old)
        for done in (box.load(), box.unload(), box.load()):
            assert f"left alone: {old}" in done.stderr, done
        as_user(*command, new)
        assert_refuses(box.load(check=False), new, "remove it")
        done = box.unload()
        assert f"left alone: {old}" in done.stderr and f"left alone: {new}" in done.stderr, done
        assert rights(old)[1] == rights(new)[1] == 65534
        remove(old)
        remove(new)
        assert_nothing(box)


# --- tproxyd without root -------------------------------------------------------------------------

NUMBERS = {"net_bind_service": 10, "net_admin": 12, "net_raw": 13, "bpf": 39}


def status(pid):
    """/proc/PID/status; sets of capabilities as sets of numbers."""
    found = dict(re.findall(r"^(\w+):\t(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M))
    return {key: bits(value) if key.startswith("Cap") else value for key, value in found.items()}


def bits(text):
    return {bit for bit in range(64) if int(text, 16) >> bit & 1}


def unit_capabilities():
    """What the unit gives, less what this machine itself was not given."""
    text = (ROOT / "systemd/tproxyd.service").read_text()
    named = re.search(r"^AmbientCapabilities=(.*)$", text, re.M)[1]
    assert named == re.search(r"^CapabilityBoundingSet=(.*)$", text, re.M)[1], "two sets"
    given = {NUMBERS[name.removeprefix("CAP_").lower()] for name in named.split()}
    assert given == set(NUMBERS.values()), given
    return given & status("self")["CapBnd"]


def as_unit(without=()):
    """The command that becomes what the unit's User= and capabilities make of tproxyd."""
    names = [name for name, number in NUMBERS.items()
             if number in unit_capabilities() and name not in without]
    caps = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", f"--reuid={GROUP}", f"--regid={GROUP}", "--clear-groups",
            f"--bounding-set={caps}", f"--inh-caps={caps}", f"--ambient-caps={caps}"]


def expected_of_worker(given):
    """docs/privileges.md: of what was given, what this kernel asks a worker for."""
    kept = {"net_admin", "net_bind_service"}
    if KERNEL < (5, 19):
        kept.add("bpf")
    return {NUMBERS[name] for name in kept} & given


@contextlib.contextmanager
def unprivileged(*words, without=()):
    """A sandbox whose tproxyd runs as the unit has it, from a directory where root put it."""
    with tmpdir() as directory, Sandbox(load=("--group", str(GROUP)), proxy=None) as box:
        box.binary = directory / "tproxyd"
        shutil.copy(TPROXYD, box.binary)
        command = [*as_unit(without), str(box.binary), "--name", box.name, *map(str, words)]
        box.proxy = Proxy(box.servers, command)
        box._proxies.append(box.proxy)
        box.proxy.wait_ready()
        yield box


def assert_serves(box, server, client=None):
    if client:
        client.sendall(b"still")
        assert client.recv(5, socket.MSG_WAITALL) == b"still"
    with box.connect(server.address) as another:
        assert redirected(another)
        another.sendall(b"there")
        assert another.recv(5, socket.MSG_WAITALL) == b"there"


def assert_stages(box, given):
    master, works = status(box.proxy.pid), status(worker(box))
    for one in (master, works):
        assert one["Uid"].split() == [str(GROUP)] * 4, one["Uid"]
        assert one["NoNewPrivs"] == "1" and one["CapBnd"] == given, one
    assert master["CapPrm"] == master["CapInh"] == master["CapAmb"] == given, master
    assert master["CapEff"] == given & {NUMBERS["bpf"]}, master
    assert master["Seccomp"] == "0", master
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert works[name] == expected_of_worker(given), (name, works[name])
    assert works["Seccomp"] == "2", works


@case
def a_user_of_its_own_serves_with_the_documented_capabilities():
    with unprivileged() as box, Server(HERE, echo) as server:
        assert_stages(box, unit_capabilities())
        assert_serves(box, server)
        with box.socket() as client:  # held, or it would connect
            try:
                client.connect((HERE, free_port(HERE)))
                raise Failed("connected to a port where nobody listens")
            except ConnectionRefusedError:
                pass
        with box.socket() as client:  # a port below 1024 and a mark, both for the upstream too
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 5)
            client.bind(("10.77.0.2", 777))
            client.connect(server.address)
            assert redirected(client)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            peer = server.peers[-1]
            assert peer[0] == "10.77.0.2" and (peer[1] == 777 or KERNEL < (6, 1)), peer


@case
def as_root_it_gives_up_the_same():
    with Sandbox() as box, Server(HERE, echo) as server:
        given = unit_capabilities()
        works, master = status(worker(box)), status(box.proxy.pid)
        assert works["CapEff"] == works["CapPrm"] == expected_of_worker(given), works
        assert master["CapBnd"] == master["CapPrm"] == given | {2}, master  # CAP_DAC_READ_SEARCH
        assert works["Seccomp"] == "2" and works["NoNewPrivs"] == "1"
        assert_serves(box, server)


@case
def the_next_worker_gives_up_the_same():
    with unprivileged() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        for _ in range(3):
            old = worker(box)
            os.kill(old, signal.SIGKILL)
            wait_for(lambda old=old: worker(box) != old, "another worker")
            assert_serves(box, server, client)
        assert_stages(box, unit_capabilities())


@case
def a_reload_gets_all_back_and_gives_up_the_same():
    with unprivileged() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        box.proxy.process.send_signal(signal.SIGHUP)
        box.proxy.wait_log("serving on")
        assert_serves(box, server, client)
        assert_stages(box, unit_capabilities())


@case
def hold_can_be_switched_on_by_a_reload():
    """Which takes raw sockets and a ring that the one before did not open."""
    with tmpdir() as directory:
        config = directory / "test.conf"
        config.write_text("[proxy]\nhold = off\n")
        with unprivileged("--config", config) as box, Server(HERE, echo) as server:
            config.write_text("[proxy]\nhold = on\n")
            box.proxy.process.send_signal(signal.SIGHUP)
            box.proxy.wait_log("serving on")
            assert_serves(box, server)
            assert box.counters()["held"], box.counters()


@case
def a_reload_that_takes_what_was_not_given_is_refused():
    with tmpdir() as directory:
        config = directory / "test.conf"
        config.write_text("[proxy]\nhold = off\n")
        with unprivileged("--config", config, without=("net_raw",)) as box:
            with Server(HERE, echo) as server, box.connect(server.address) as client:
                config.write_text("[proxy]\nhold = on\n")
                box.proxy.process.send_signal(signal.SIGHUP)
                assert "CAP_NET_RAW" in box.proxy.wait_log("cannot open a raw socket")
                box.proxy.wait_log("not reloaded")
                assert_serves(box, server, client)


@contextlib.contextmanager
def run_directory(uid):
    """An empty /run/tproxy, as systemd makes one for a service of that user."""
    pathlib.Path("/run/tproxy").mkdir(exist_ok=True)
    run(["mount", "-n", "-t", "tmpfs", "-o", f"uid={uid},mode=0755", "none", "/run/tproxy"])
    try:
        yield
    finally:
        run(["umount", "-n", "/run/tproxy"])


@case
def who_takes_over_trusts_root_and_his_own_user_alone():
    with run_directory(GROUP), unprivileged() as box, Server("10.77.0.1", echo) as server:
        words = ("--name", box.name, "--takeover")
        assert_refuses(run([*LAUNCHER, box.servers, TPROXYD, *words], check=False),
                       f"user {GROUP}'s", "does not trust")
        assert_serves(box, server)
        again = Proxy(box.servers, [*as_unit(), str(box.binary), *words])
        box._proxies.append(again)
        again.wait_ready()
        assert box.proxy.process.wait(10) == 0, box.proxy.log()
        box.proxy = again
        assert_serves(box, server)


@case
def a_worker_that_became_master_serves_on_and_does_not_reload():
    with unprivileged() as box, Server(HERE, echo) as server, box.connect(server.address) as client:
        heir = worker(box)
        os.kill(box.proxy.pid, signal.SIGKILL)
        box.proxy.wait_exit()
        wait_for(lambda: children(heir), "a worker of the new master")
        box.proxy.wait_log("serving on")
        assert_serves(box, server, client)
        given = expected_of_worker(unit_capabilities())
        for pid in (heir, *children(heir)):
            assert status(pid)["CapPrm"] == given and status(pid)["Seccomp"] == "2"
        os.kill(heir, signal.SIGHUP)
        box.proxy.wait_log("restart tproxyd instead")
        for pid in children(heir):
            os.kill(pid, signal.SIGKILL)
        assert_serves(box, server, client)
        os.kill(heir, signal.SIGTERM)
        os.kill(heir, signal.SIGINT)
        wait_for(lambda: not [one for one in box.config()["proxies"] if one["tgid"]], "its end")
        box._proxies.remove(box.proxy)  # its exit code is that of SIGKILL


@case
def without_the_group_it_says_what_to_do():
    with Sandbox() as box:
        done = run([*as_unit(), TPROXYD, "--name", box.name, "--check"], check=False)
        assert_refuses(done, "map_config", "tproxy-load --group")


# --- what an ordinary user gains ------------------------------------------------------------------

@case_for({"root's alone": ((),), "of a group": (("--group", str(GROUP)),)})
def an_ordinary_user_opens_no_pin_and_registers_no_proxy(words):
    with bpffs_of(0o1777), Sandbox(load=words, proxy=None) as box:
        for pin in ("map_config", "map_listeners", "prog_doorman"):
            done = as_user("bpftool", pin.split("_")[0], "show", "pinned", box.pins / pin, check=False)
            assert done.returncode, done.stdout
        assert as_user("ls", box.pins, check=False).returncode
        done = run([*UNPRIVILEGED, TPROXYD, "--name", box.name], check=False)
        assert_refuses(done, "map_config", "Permission denied")
        assert not [one for one in box.config()["proxies"] if one["tgid"]]


PYTHON = "/usr/bin/python3"
LISTEN = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 18000))
s.listen()
s.settimeout(0.2)
print("listens", flush=True)
sys.stdin.readline()
try:
    print(s.accept())
except TimeoutError:
    print("nobody")
"""


@case_for({"direct": ("direct",), "refuse": ("refuse",)})
def who_has_the_port_while_tproxyd_is_away_gets_nobody(policy):
    with Sandbox(load=("--on-proxy-down", policy)) as box, Server(HERE, banner) as server:
        assert box.proxy.stop(signal.SIGKILL) == -signal.SIGKILL
        box._proxies.remove(box.proxy)
        thief = box.popen([*UNPRIVILEGED, PYTHON, "-c", LISTEN], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True)
        assert thief.stdout.readline() == "listens\n"
        if policy == "direct":
            with box.connect(server.address) as client:
                line(client)
                assert not redirected(client)
        else:
            with box.socket() as client:
                assert client.connect_ex(server.address) == 111
                assert not server.peers
        assert box.counters()["untrusted_listener"] == 1
        assert thief.communicate("\n")[0] == "nobody\n"


DIAL = """
import socket, struct, sys
s = socket.socket()
mark = int(sys.argv[3])
if mark:
    s.setsockopt(socket.SOL_SOCKET, 36, struct.pack("=I", mark))  # SO_MARK
sys.stdin.readline()
sys.exit(s.connect_ex((sys.argv[1], int(sys.argv[2]))))
"""


def dial(box, address, prefix=(), mark=0):
    """An ordinary user about to connect; Enter makes it go, and its exit code is the errno."""
    return box.popen([*UNPRIVILEGED, *prefix, PYTHON, "-c", DIAL, *address, mark],
                     stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def take_pid(box, old, pid):
    """As if the kernel had given the process the pid that a dead proxy left in map_config."""
    value = bpftool("map", "dump", "pinned", box.pins / "map_config")[0]["value"]
    raw = bytes(int(byte, 16) for byte in value)
    at = raw.index(struct.pack("=I", old))
    rewrite_config(box, at, struct.pack("=I", pid))


@case
def the_pid_of_a_dead_proxy_exempts_nobody():
    with Sandbox(load=("--on-proxy-down", "refuse")) as box, Server(HERE, banner) as server:
        old = worker(box)
        box.proxy.stop(signal.SIGKILL)
        box._proxies.remove(box.proxy)
        for _ in range(2):
            someone = dial(box, server.address)
            take_pid(box, old, someone.pid)
            old = someone.pid
            someone.communicate("\n")
            assert someone.returncode == 111, (someone.returncode, box.counters())
        assert not server.peers and box.counters()["own_connection"] == 0, box.counters()


@case
def the_pid_of_a_dead_worker_is_taken_out_of_the_books():
    with Sandbox(proxy=("--hold", "off")) as box:
        old = worker(box)
        os.kill(box.proxy.pid, signal.SIGSTOP)
        os.kill(old, signal.SIGKILL)
        entered = [one["tgid"] for one in box.config()["proxies"] if one["tgid"]]
        assert entered == [old], entered
        os.kill(box.proxy.pid, signal.SIGCONT)
        wait_for(lambda: old not in [one["tgid"] for one in box.config()["proxies"]], "it to go")
        assert worker(box) != old


@case
def a_mark_in_a_namespace_of_ones_own_gains_nothing():
    """There everybody may set SO_MARK, also the one by which tproxyd lets clients in."""
    with Sandbox(load=("--on-proxy-down", "refuse")) as box, Server(HERE, banner) as server:
        grant = box.config()["grant"]
        here = dial(box, server.address, mark=grant)
        said = here.communicate("\n")[1]
        assert "PermissionError" in said and here.returncode == 1, (here.returncode, said)
        own = ["unshare", "--user", "--map-root-user", "--net"]
        for mark in (0, 1, grant):
            there = dial(box, ("127.0.0.1", server.port), prefix=own, mark=mark)
            said = there.communicate("\n")[1]
            assert there.returncode == 111 and not said, (there.returncode, said)
        assert box.counters()["refused_by_policy"] == 3 and not server.peers, box.counters()


main()
