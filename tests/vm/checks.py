#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""
The whole life of the default instance on a machine of its own: hooks on the root of all cgroups, in the
initial namespaces, where the other tests never are. Runs inside a guest; see run.

The steps build on each other and run in the order of the file.
"""

import ctypes
import errno
import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading

from harness import (LOAD, TPROXY, TPROXYD, Failed, Server, banner, bpftool, echo, free_port, hello,
                     line, refusal, run, wait_for)
from steps import run_all, step, step_for

V4, V6 = socket.AF_INET, socket.AF_INET6
PINS = pathlib.Path("/sys/fs/bpf/tproxy")
BPFFS = PINS.parent
DEADLINE = 20
RENAME_EXCHANGE = 2
AT_FDCWD = -100

# Kind of connection -> (server's address, address the client dials, client's family).
KINDS = {
    "IPv4": ("10.77.0.1", "10.77.0.1", V4),
    "IPv6": ("fd77::1", "fd77::1", V6),
    "v4-mapped": ("10.77.0.1", "::ffff:10.77.0.1", V6),
    "IPv4 loopback": ("127.0.0.1", "127.0.0.1", V4),
    "IPv6 loopback": ("::1", "::1", V6),
}
ADDRESSES = ("10.77.0.1/32", "fd77::1/128")

# --- what differs from kernel to kernel, found by trying ------------------------------------------

def doctor():
    """What `tproxy doctor` finds: subject -> (result, text)."""
    done = run([TPROXY, "doctor", "--json"], check=False)
    return {found["what"]: (found["result"], found["found"])
            for found in json.loads(done.stdout)["findings"]}


def complaints():
    return {what: text for what, (result, text) in doctor().items() if result == "wrong"}


def probe_exchange():
    """Two directories of bpffs change places."""
    pair = [BPFFS / "vm_one", BPFFS / "vm_two"]
    for path in pair:
        path.mkdir()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        one, two = (os.fsencode(path) for path in pair)
        if libc.renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE):
            return os.strerror(ctypes.get_errno())
        return "works"
    finally:
        for path in pair:
            path.rmdir()


def probe_netns_cookie():
    """SO_NETNS_COOKIE, by which a tool recognizes its own network namespace."""
    with socket.socket() as probe:
        try:
            return f"works ({int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, 71, 8), 'little')})"
        except OSError as error:
            return error.strerror


def probe_cgroup_kill():
    path = pathlib.Path("/sys/fs/cgroup/vm_probe")
    path.mkdir()
    try:
        return "works" if (path / "cgroup.kill").exists() else "no such file"
    finally:
        path.rmdir()


def show_probes():
    """The differences that matter here, for the log."""
    own = "of our choice" if refusal() == errno.ECONNREFUSED else "EPERM only"
    for name, found in (("errno of a refused connect()", own),
                        ("RENAME_EXCHANGE on bpffs", probe_exchange()),
                        ("SO_NETNS_COOKIE", probe_netns_cookie()),
                        ("cgroup.kill", probe_cgroup_kill())):
        print(f"probe - {name}: {found}", flush=True)


# --- helpers --------------------------------------------------------------------------------------

class Daemon:
    """The tproxyd of the default instance."""

    process = None
    log = pathlib.Path("/run/tproxyd.log")

    @classmethod
    def start(cls):
        with open(cls.log, "wb") as log:
            cls.process = subprocess.Popen([TPROXYD], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: cls.process.poll() is not None or "serving instance" in cls.log.read_text(),
                 "tproxyd to serve")
        if cls.process.poll() is not None:
            raise Failed(f"tproxyd ended with {cls.process.returncode}: {cls.log.read_text()}")

    @classmethod
    def end(cls, how):
        """By SIGKILL both of its processes, the one that does the work while the other is stopped."""
        if how == signal.SIGKILL:
            cls.process.send_signal(signal.SIGSTOP)
            children = f"/proc/{cls.process.pid}/task/{cls.process.pid}/children"
            for worker in pathlib.Path(children).read_text().split():
                os.kill(int(worker), how)
                wait_for(lambda: not pathlib.Path(f"/proc/{worker}/fdinfo/0").exists(), "its end")
        cls.process.send_signal(how)
        return cls.process.wait(DEADLINE)


def connect(address, family=V4):
    made = socket.socket(family)
    made.settimeout(DEADLINE)
    try:
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def send_all(client, data):
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def connect_errno(address, family=V4):
    """What connect() fails with; 0 if it does not."""
    try:
        connect(address, family).close()
        return 0
    except OSError as error:
        return error.errno


def expect(got, wanted, what):
    """Compares two errnos; 0 is success."""
    if got != wanted:
        raise Failed(f"{what}: {errno.errorcode.get(got, got)}, not {errno.errorcode[wanted]}")


def counters():
    totals = {}
    for cpu in bpftool("map", "dump", "pinned", PINS / "map_stats")[0]["formatted"]["values"]:
        for name, value in cpu["value"].items():
            totals[name] = totals.get(name, 0) + value
    return totals


def counted(name, action):
    """Runs action() and says by how much the counter grew."""
    before = counters()[name]
    action()
    return counters()[name] - before


def object_ids():
    """Pin -> id of the program or link."""
    found = {}
    for kind in ("prog", "link"):
        for pin in sorted(PINS.glob(f"{kind}_*")):
            found[pin.name] = bpftool(kind, "show", "pinned", pin)["id"]
    return found


# --- the loader -----------------------------------------------------------------------------------

@step
def tproxy_doctor_finds_nothing_wrong_with_the_kernel():
    assert not complaints(), complaints()


@step
def tproxy_run_intercepts_one_command():
    with Server("10.77.0.1", hello) as server:
        url = f"http://10.77.0.1:{server.port}/"
        done = run([TPROXY, "run", "--", "curl", "-sS", url])
        assert done.stdout == f"hello from 10.77.0.1 {server.port}\n", done.stdout
        assert f"dst=10.77.0.1:{server.port}" in done.stderr, done.stderr
    assert not list(BPFFS.iterdir()), list(BPFFS.iterdir())


@step
def the_first_load():
    said = run([LOAD]).stderr
    assert "loaded" in said, said
    programs = {pin.name.removeprefix("prog_") for pin in PINS.glob("prog_*")}
    for hook in ("connect4", "connect6", "sockops", "getsockopt", "getpeername4", "getpeername6",
                 "getsockname4", "getsockname6", "sock_release"):
        assert hook in programs and list(PINS.glob(f"link_{hook}_*")), hook


@step
def a_second_load_changes_nothing():
    before = object_ids()
    said = run([LOAD]).stderr
    assert "unchanged" in said, said
    assert object_ids() == before


@step
def without_a_proxy_connections_go_direct():
    with Server("10.77.0.1", banner) as server:
        def direct():
            with connect(server.address) as client:
                assert line(client) == f"10.77.0.1 {server.port}"
        assert counted("passed_by_policy", direct) == 1
    expect(connect_errno(("10.77.0.1", free_port("10.77.0.1"))), errno.ECONNREFUSED, "a closed port")


@step
def other_settings_take_effect_in_place():
    before = object_ids()
    said = run([LOAD, "--on-proxy-down", "refuse"]).stderr
    assert "unchanged" not in said, said
    links = {name: number for name, number in object_ids().items() if name.startswith("link_")}
    assert links == {name: number for name, number in before.items() if name in links}
    said = run([LOAD, "--on-proxy-down", "refuse", "--max-connections", "1000"]).stderr
    assert "other map sizes" in said, said
    assert links.keys() <= object_ids().keys(), "a hook is missing"


@step
def without_a_proxy_connections_are_refused():
    wanted = refusal()
    with Server("10.77.0.1", banner) as server:
        for dials, family in (("10.77.0.1", V4), ("::ffff:10.77.0.1", V6)):
            grew = counted("refused_by_policy", lambda dials=dials, family=family: expect(
                connect_errno((dials, server.port), family), wanted, dials))
            assert grew == 1, grew
        assert not server.peers, server.peers


# --- connections ----------------------------------------------------------------------------------

@step
def tproxyd_starts_and_its_self_test_passes():
    Daemon.start()


@step_for(KINDS)
def a_megabyte_there_and_back(serves, dials, family):
    data = os.urandom(1 << 20)
    with Server(serves, echo) as server:
        def exchange():
            with connect((dials, server.port), family) as client:
                assert client.getpeername()[:2] == (dials, server.port), client.getpeername()
                wait_for(lambda: server.peers, "the server to accept")
                seen, own = server.peers[0], client.getsockname()[:2]
                assert own == (dials.replace(serves, seen[0]), seen[1]), (own, seen)
                sender = threading.Thread(target=send_all, args=(client, data))
                sender.start()
                got = hashlib.sha256()
                while chunk := client.recv(1 << 16):
                    got.update(chunk)
                sender.join()
                assert got.digest() == hashlib.sha256(data).digest()
        assert counted("redirected", exchange) == 1


@step_for(KINDS)
def a_closed_port_refuses(serves, dials, family):
    expect(connect_errno((dials, free_port(serves)), family), errno.ECONNREFUSED, dials)


@step_for({"IPv4": ("192.0.2.1", V4), "IPv6": ("2001:db8::1", V6),
           "v4-mapped": ("::ffff:192.0.2.1", V6)})
def no_route_is_ENETUNREACH(dials, family):
    expect(connect_errno((dials, 80), family), errno.ENETUNREACH, dials)


@step
def tools_show_an_open_connection():
    with Server("10.77.0.1", banner) as server, connect(server.address) as client:
        line(client)
        found = json.loads(run([TPROXY, "conns", "--json"]).stdout)["connections"]
        assert [entry["pid"] for entry in found] == [os.getpid()], found
        assert f"10.77.0.1:{server.port}" in json.dumps(found), found
        status = run([TPROXY, "status"]).stdout
        assert status.startswith("tproxy: serving"), status
        assert json.loads(run([TPROXY, "status", "--json"]).stdout)
        assert not complaints(), complaints()


@step
def bpftool_prints_the_fields_of_a_record():
    with Server("10.77.0.1", banner) as server, connect(server.address) as client:
        line(client)
        record = bpftool("map", "dump", "pinned", PINS / "map_socks")[0]["formatted"]["value"]
        assert record["pid"] == os.getpid() and record["dst"]["port"] == server.port, record


@step
def SO_ORIGINAL_DST_has_been_answered():
    """By the self-test: it asks the accepted socket, for either family."""
    assert counters()["original_dst"] >= 2, counters()


@step
def a_killed_tproxyd_leaves_the_policy_in_force():
    Daemon.end(signal.SIGKILL)
    with Server("10.77.0.1", banner) as server:
        expect(connect_errno(server.address), refusal(), "without a proxy")
        Daemon.start()
        with connect(server.address) as client:
            assert line(client) == f"10.77.0.1 {server.port}"


@step
def a_load_under_a_serving_proxy():
    said = run([LOAD, "--on-proxy-down", "direct"]).stderr
    with Server("10.77.0.1", banner) as server:
        def served():
            with connect(server.address) as client:
                assert line(client) == f"10.77.0.1 {server.port}"
        assert counted("redirected", served) == 1, said


@step
def records_go_with_their_connections():
    for name in ("map_socks", "map_ports"):
        wait_for(lambda name=name: not bpftool("map", "dump", "pinned", PINS / name),
                 f"{name} to be empty")


@step
def tproxyd_stops_when_told():
    assert Daemon.end(signal.SIGTERM) == 0, Daemon.log.read_text()


@step
def unload_leaves_nothing():
    run([LOAD, "--unload"])
    assert not list(BPFFS.iterdir()), list(BPFFS.iterdir())

    def ours():
        return [entry for kind, prefix in (("prog", "tp_"), ("map", "map_"))
                for entry in bpftool(kind, "show") or []
                if entry.get("name", "").startswith(prefix)]
    wait_for(lambda: not ours(), "the kernel to free programs and maps")
    assert not bpftool("link", "show"), "links are left"
    with Server("10.77.0.1", banner) as server, connect(server.address) as client:
        assert line(client) == f"10.77.0.1 {server.port}"


def main():
    for address in ADDRESSES:
        run(["ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])])
    show_probes()
    run_all()


if __name__ == "__main__":
    main()
