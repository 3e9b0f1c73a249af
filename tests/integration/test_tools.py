# SPDX-License-Identifier: BSD-2-Clause
"""tproxy status, conns and doctor: what they say of an instance is so."""

import json
import os
import pathlib
import re
import signal
import subprocess

from harness import (LOAD, ROOT, TPROXY, UNPRIVILEGED, Sandbox, Server, banner, case, case_for, echo, in_netns,
                     line, main, netns_cookies, new_netns, run, wait_for)
from harness.pins import HOOKS, assert_whole, object_ids, pretend_another_abi


def status(box):
    """The instance as `tproxy status --json` shows it."""
    shown = json.loads(box.tool("status", "--json").stdout)["instances"]
    assert len(shown) == 1, shown
    return shown[0]


def connections(box, *words):
    return json.loads(box.tool("conns", "--json", *words).stdout)["connections"]


def findings(box, code):
    """What `tproxy doctor --json` finds that is not ok; it must end with that code."""
    done = box.tool("doctor", "--json", check=False)
    tree = json.loads(done.stdout)
    found = [one for one in tree["findings"] if one["result"] != "ok"]
    assert done.returncode == code, (done.returncode, found)
    assert tree["well"] == (code == 0)
    return found


# --- status ---------------------------------------------------------------------------------------

@case
def status_shows_settings_hooks_and_proxies():
    with Sandbox(load=("--on-proxy-down", "refuse", "--max-connections", "5000")) as box:
        shown = status(box)
        assert shown["name"] == box.name and shown["enabled"] is True, shown
        assert (shown["port"], shown["policy"]) == (18000, "refuse"), shown
        assert shown["serving"] is True, shown
        proxy, = shown["proxies"]
        assert (proxy["pid"], proxy["comm"]) == (box.proxy.worker, "tproxyd"), proxy
        assert proxy["here"] is (True if netns_cookies() else None), proxy
        assert proxy["alive"] is True, proxy
        cgroup, = shown["cgroups"]
        assert cgroup == {"id": os.stat(box.cgroup).st_ino, "path": f"/{box.name}"}, cgroup
        ids = object_ids(box)
        assert sorted(hook["hook"] for hook in shown["hooks"]) == sorted(HOOKS)
        for hook in shown["hooks"]:
            assert hook["link"] == ids[hook["pin"]], hook
            assert hook["program"] == ids[f"prog_{hook['hook']}"], hook
        assert shown["missing_pins"] == []
        assert shown["maps"]["map_socks"]["max"] == 5000, shown["maps"]


@case
def status_counts():
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        with box.connect(server.address) as client:
            client.sendall(b"x")
            client.recv(1)
            shown = status(box)
            assert shown["counters"] == box.counters()
            assert shown["maps"]["map_socks"]["used"] == shown["maps"]["map_ports"]["used"] == 1
        box.wait_no_records()
        assert status(box)["maps"]["map_socks"]["used"] == 0


@case
def status_in_words():
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        box.connect(server.address).close()
        text = box.tool("status").stdout
        for words in (f"{box.name}: serving", "18000", f"pid {box.proxy.worker}", f"/{box.name} ",
                      "connections sent to the proxy", "connect4", "map_socks"):
            assert words in text, (words, text)


@case
def status_tells_a_dead_proxy_from_a_living_one():
    with Sandbox() as box:
        box.proxy.stop(signal.SIGKILL)
        shown = status(box)
        assert shown["serving"] is False and shown["proxies"][0]["alive"] is False, shown
        assert "no proxy in this network namespace" in box.tool("status").stdout
        box.start_proxy().stop()
        assert status(box)["proxies"] == []


@case
def status_sees_that_the_proxy_is_in_another_namespace():
    with Sandbox(proxy=None) as box, new_netns() as other:
        with in_netns(other):
            box.start_proxy()
            assert status(box)["serving"] is True
        shown = status(box)
        assert shown["proxies"][0]["here"] is (False if netns_cookies() else None), shown
        assert not shown["serving"], shown


@case
def status_of_what_is_not_there():
    done = run([TPROXY, "status"])
    assert "no instance is loaded" in done.stdout, done.stdout
    assert json.loads(run([TPROXY, "status", "--json"]).stdout) == {"instances": []}
    done = run([TPROXY, "status", "--name", "not-there"], check=False)
    assert done.returncode == 1 and "tproxy-load" in done.stdout + done.stderr, done


@case
def status_lists_every_instance():
    with Sandbox(proxy=None) as one, Sandbox(load=("--port", "18001"), proxy=None) as two:
        shown = json.loads(run([TPROXY, "status", "--json"]).stdout)["instances"]
        assert {instance["name"] for instance in shown} == {one.name, two.name}


@case_for({"an unknown command": ("frobnicate",), "an unknown option": ("status", "--frobnicate"),
           "a bad name": ("status", "--name", "A/B"), "an argument": ("conns", "extra")})
def a_bad_command_line_is_refused(*words):
    done = run([TPROXY, *words], check=False)
    assert done.returncode == 2 and words[-1] in done.stderr, done


# --- conns ----------------------------------------------------------------------------------------

@case_for({"IPv4": ("10.77.0.1", "10.77.0.1:{}"), "IPv6": ("fd77::1", "[fd77::1]:{}")})
def conns_shows_a_live_connection(address, shown_as):
    with Sandbox() as box, Server(address, echo) as server:
        with box.connect(server.address) as client:
            client.sendall(b"12345")
            assert client.recv(5) == b"12345"
            shown, = connections(box)
            assert shown["instance"] == box.name
            assert shown["pid"] == os.getpid() and shown["uid"] == 0, shown
            assert shown["dst"] == shown_as.format(server.port), shown
            host, port = client.getsockname()[:2]
            assert shown["local"] == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), shown
            wait_for(lambda: connections(box)[0]["up"] == 5, "the acknowledgement")
            assert (shown["down"], shown["state"].upper()[:5]) == (5, "ESTAB"), shown
            assert shown["dst"] in box.tool("conns").stdout
        box.wait_no_records()
        assert connections(box) == []


@case
def conns_filters():
    with Sandbox() as box, Server("10.77.0.1", banner) as one, Server("10.77.0.2", banner) as two:
        clients = [box.connect(server.address) for server in (one, two)]
        for client in clients:
            line(client)
        assert len(connections(box)) == 2
        only, = connections(box, "--dst", "10.77.0.2")
        assert only["dst"] == f"10.77.0.2:{two.port}", only
        assert len(connections(box, "--pid", os.getpid())) == 2
        assert connections(box, "--pid", 1) == []
        for client in clients:
            client.close()


@case
def conns_looks_into_other_namespaces():
    with Sandbox(proxy=None) as box, new_netns() as other:
        with in_netns(other):
            server = Server("10.77.0.1", echo)
            box.start_proxy()
            client = box.popen(["/usr/bin/python3", "-c", "import socket, sys; "
                                f"s = socket.create_connection({server.address!r}); "
                                "s.sendall(b'abc'); s.recv(3); sys.stdin.read()"], stdin=-1)
        wait_for(lambda: [c for c in connections(box) if c["down"] == 3 and c["state"]],
                 "the connection of another namespace")
        client.communicate()
        server.close()


# --- doctor ---------------------------------------------------------------------------------------

@case
def doctor_finds_nothing_wrong_with_a_serving_instance():
    with Sandbox() as box:
        about = [one for one in findings(box, 0) if box.name in one["what"] + one["found"]]
        assert not about, about


def remove_program_pin(box):
    (box.pins / "prog_connect4").unlink()


def remake_cgroup(box):
    box.proxy.stop()
    for path in (box.clients, box.servers, box.cgroup):
        path.rmdir()
    for path in (box.cgroup, box.clients, box.servers):
        path.mkdir()


def kill_proxy(box):
    box.proxy.stop(signal.SIGKILL)


def leave_side_pin(box):
    run(["bpftool", "prog", "pin", "pinned", box.pins / "prog_sockops",
         box.pins / "prog_sockops~new"])


def add_foreign_pin(box):
    run(["bpftool", "map", "create", box.pins / "visitor", "type", "array", "key", "4", "value", "4",
         "entries", "1", "name", "visitor"])


@case_for({
    "a missing pin": (remove_program_pin, 1, "prog_connect4"),
    "a foreign pin": (add_foreign_pin, 1, "visitor"),
    "an interrupted upgrade": (leave_side_pin, None, "prog_sockops~new"),
    "a cgroup that was made again": (remake_cgroup, 1, "cgroup"),
    "another ABI": (pretend_another_abi, 1, "version 99"),
    "a proxy that died": (kill_proxy, None, "prox"),
})
def doctor_finds(damage, code, word):
    with Sandbox() as box:
        damage(box)
        done = box.tool("doctor", "--json", check=False)
        bad = [one for one in json.loads(done.stdout)["findings"] if one["result"] != "ok"]
        assert code in (None, done.returncode), (done.returncode, bad)
        named = [one for one in bad if word in one["what"] + " " + one["found"]]
        assert named, f"nothing of '{word}' in {bad}"
        assert all(one["fix"] for one in named), f"no fix in {named}"
        text = box.tool("doctor", check=False).stdout
        assert named[0]["found"] in text and named[0]["fix"] in text, text


def fixes(box):
    done = box.tool("doctor", "--json", check=False)
    return {one["fix"] for one in json.loads(done.stdout)["findings"]
            if one["what"] == box.name and one["fix"] and one["fix"].startswith("tproxy-load")}


def follow(fix):
    run(["bash", "-c", f"PATH={os.path.dirname(LOAD)}:$PATH; {fix}"])


@case_for({"a group by name": ("www-data",), "by number": ("4711",)})
def the_fix_of_doctor_keeps_every_setting(group):
    words = ("--port", "18002", "--on-proxy-down", "refuse", "--max-connections", "5000", "--group", group)
    with Sandbox(load=None) as box:
        odd = box.cgroup / "b\\x2dc d"
        odd.mkdir()
        box.loader("--cgroup", odd, *words)
        before = object_ids(box), box.config()
        (box.pins / "map_config").unlink()
        assert box.tool("status", check=False).returncode == 1
        assert "BROKEN" in box.tool("status", check=False).stdout
        fix, = fixes(box)
        follow(fix)
        assert object_ids(box) == before[0] and "unchanged" in box.loader(
            "--cgroup", odd, *words).stderr
        for pin in box.pins.glob("link_*"):
            pin.unlink()
        found = fixes(box)
        assert found and all("each --cgroup as it was loaded" in one for one in found), found
        box.unload()


@case
def the_fix_of_doctor_keeps_hooks_whose_loader_was_killed_between_two_renames():
    """As before Linux 6.1, where directories of a bpffs cannot be exchanged."""
    with Sandbox(load=("--port", "18002", "--max-connections", "5000"), proxy=None) as box:
        before = object_ids(box), box.config()
        box.pins.rename(f"{box.pins}~old")
        pathlib.Path(f"{box.pins}~new").mkdir(mode=0o700)
        fix, = (one for one in fixes(box) if box.name in one)
        follow(fix)
        assert_whole(box)
        assert (object_ids(box), box.config()) == before


@case
def cgroup_paths_are_data():
    with Sandbox(load=None) as box:
        odd = box.cgroup / "b\\x2d\u00fc"
        odd.mkdir()
        box.loader("--cgroup", odd)
        cgroup, = status(box)["cgroups"]
        assert cgroup["path"] == f"/{box.name}/{odd.name}", cgroup
        assert "b\\x2d\\xc3\\xbc" in box.tool("status").stdout


@case
def doctor_knows_the_hooks_of_instances_it_was_not_asked_about():
    with Sandbox(proxy=None):
        done = run([TPROXY, "doctor", "--name", "tptest-typo"], check=False)
        assert done.returncode == 1 and "not loaded" in done.stdout, done
        assert "none of ours" not in done.stdout, done


@case_for({"text": ("status",), "JSON": ("status", "--json"), "doctor": ("doctor",)})
def output_that_cannot_be_written_is_a_failure(*words):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run([TPROXY, *words], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and b"cannot write" in done.stderr, done


@case
def doctor_finds_an_interrupted_load():
    with Sandbox() as box:
        (box.pins.parent / f"{box.name}~new").mkdir(mode=0o700)
        done = json.loads(box.tool("doctor", "--json", check=False).stdout)
        assert [one for one in done["findings"] if "~new" in one["found"] and one["fix"]], done


@case_for({"before a load": ("~new",), "in the place of an old one": ("~old",)})
def doctor_does_not_believe_a_stranger(suffix):
    with Sandbox(load=None) as box:
        left = box.pins.parent / f"{box.name}{suffix}"
        left.mkdir(mode=0o700)
        os.chown(left, 65534, 65534)
        done = json.loads(box.tool("doctor", "--json", check=False).stdout)
        found, = (one for one in done["findings"] if suffix in one["found"])
        assert found["fix"] == "remove it" and "user 65534" in found["found"], found
        left.rmdir()


@case
def an_ordinary_user_is_told_what_he_cannot_see():
    with Sandbox():
        done = run([*UNPRIVILEGED, TPROXY, "doctor"], check=False)
        assert "root" in done.stdout, done.stdout
        done = run([*UNPRIVILEGED, TPROXY, "status"], check=False)
        assert "root" in done.stdout + done.stderr, done


# --- bpftool --------------------------------------------------------------------------------------

def field_names(tree):
    """Of all structures in what bpftool dumped."""
    if isinstance(tree, list):
        return set().union(*map(field_names, tree))
    if isinstance(tree, dict):
        return set(tree).union(*map(field_names, tree.values()))
    return set()


@case
def the_page_on_bpftool_shows_what_there_is():
    """Every field of the maps that it dumps, and every pin but those of links, named by cgroup."""
    text = (ROOT / "docs/inspecting.md").read_text()
    with Sandbox() as box, Server("10.77.0.1", banner) as server, box.connect(server.address) as client:
        line(client)
        fields = set().union(*(field_names(box.map(name)) for name in ("socks", "ports", "doors", "config")))
        pins = {pin.name for pin in box.pins.iterdir() if not pin.name.startswith("link_")}
    for shown, real in ((r'^ +"(\w+)": ', fields), (r"^    ((?:map|prog)_\w+)$", pins)):
        differ = real ^ set(re.findall(shown, text, re.MULTILINE))
        assert not differ, differ


main()
