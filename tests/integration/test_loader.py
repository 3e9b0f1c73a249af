# SPDX-License-Identifier: BSD-2-Clause
"""tproxy-load: what it puts in place, changes in place, takes away, and refuses."""

import errno
import socket
import subprocess

from harness import (LOAD, TPROXY, UNPRIVILEGED, Sandbox, Server, banner, bpftool, case, case_for, echo,
                     free_port, line, main, redirected, run, tmpdir, wait_for)
from harness.pins import (BPFFS, HOOKS, assert_nothing, assert_whole, attached, object_ids,
                          pretend_another_abi, pretend_another_build)

NO_CAPABILITIES = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


def assert_refuses(done, code, *words):
    """One sentence that holds the words, and that exit code. (Others may load at the same time.)"""
    assert done.returncode == code, (done.returncode, done.stderr)
    said = [text for text in done.stderr.splitlines() if "waiting for another" not in text]
    assert len(said) == 1, done.stderr
    for word in words:
        assert str(word) in said[0], f"no '{word}' in: {said[0]}"


# --- load -----------------------------------------------------------------------------------------

@case
def a_first_load_pins_and_attaches_everything():
    with Sandbox(proxy=None) as box:
        assert_whole(box)
        config = box.config()
        assert config["port"] == 18000 and config["policy"] == 0, config
        assert box.pins.stat().st_mode & 0o077 == 0, oct(box.pins.stat().st_mode)
        for pin in box.pins.iterdir():
            assert pin.stat().st_mode & 0o137 == 0, (pin, oct(pin.stat().st_mode))


@case
def the_same_again_changes_nothing():
    with Sandbox(proxy=None) as box:
        before, config = object_ids(box), box.config()
        done = box.load()
        assert "unchanged" in done.stderr, done.stderr
        assert object_ids(box) == before
        assert box.config() == config


@case
def settings_change_in_place():
    with Sandbox(proxy=None) as box:
        before = object_ids(box)
        box.load("--port", "18001", "--on-proxy-down", "refuse")
        assert object_ids(box) == before
        assert (box.config()["port"], box.config()["policy"]) == (18001, 1)


@case
def quiet_says_nothing():
    with Sandbox(proxy=None) as box:
        done = box.load("--quiet", "--on-proxy-down", "refuse")
        assert done.stdout == "" and "instance" not in done.stderr, done


@case
def max_connections_sizes_the_maps():
    with Sandbox(load=("--max-connections", "1234"), proxy=None) as box:
        for name in ("socks", "ports"):
            shown = bpftool("map", "show", "pinned", box.pins / f"map_{name}")
            assert shown["max_entries"] == 1234, shown


@case
def several_cgroups_are_all_intercepted():
    with Sandbox(load=None) as box, Server("10.77.0.1", banner) as server:
        box.loader("--cgroup", box.clients, "--cgroup", box.servers)
        assert_whole(box, box.clients, box.servers)
        box.start_proxy()
        with box.connect(server.address) as client:
            line(client)
            assert redirected(client)


@case
def cgroups_are_added_and_removed_in_place():
    with Sandbox(load=None) as box:
        box.loader("--cgroup", box.clients)
        before = object_ids(box)
        box.loader("--cgroup", box.clients, "--cgroup", box.servers)
        assert_whole(box, box.clients, box.servers)
        assert before.items() <= object_ids(box).items(), "what was there was replaced"
        box.loader("--cgroup", box.clients)
        assert object_ids(box) == before
        assert attached(box.servers) == []


@case_for({"in place": (), "with other maps": ("--max-connections", "4242")})
def connections_of_a_cgroup_that_is_left_out_go_on_and_leave_no_records(*words):
    with Sandbox(load=None) as box, Server("10.77.0.1", echo) as server:
        box.loader("--cgroup", box.clients, "--cgroup", box.servers)
        box.start_proxy()
        with box.inside(), socket.create_connection(server.address) as left_out, \
                socket.socket() as refused, \
                box.inside(box.servers), socket.create_connection(server.address) as kept:
            with box.inside():
                assert refused.connect_ex(("10.77.0.1", free_port("10.77.0.1"))) == errno.ECONNREFUSED
            assert redirected(left_out) and redirected(kept) and len(box.records()) == 3
            box.loader("--cgroup", box.servers, *words)
            assert_whole(box, box.servers)
            record, = box.records()
            assert record["cgroup_id"] == box.servers.stat().st_ino, record
            assert [entry["value"] for entry in box.map("ports")] == [record["cookie"]]
            assert kept.getpeername() == server.address
            for client in (left_out, kept):
                client.sendall(b"still there")
                assert client.recv(100) == b"still there"
        box.wait_no_records()


@case
def a_cgroup_path_may_be_relative_to_the_root():
    with Sandbox(load=None) as box:
        box.loader("--cgroup", box.name)
        assert_whole(box)


RECORD_COPIED = 32  # TP_RECORD_COPIED


@case_for({"another build": (pretend_another_build, (), True),
           "another size": (lambda box: None, ("--max-connections", "4242"), False)})
def an_upgrade_keeps_connections(change, words, keeps_links):
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        with box.connect(server.address) as client:
            before, records = object_ids(box), box.records()
            if not keeps_links:
                records = [dict(record, flags=record["flags"] | RECORD_COPIED) for record in records]
            change(box)
            box.load(*words)
            after = object_ids(box)
            assert_whole(box)
            for pin, number in after.items():
                if pin.startswith("link_") and keeps_links:
                    assert number == before[pin], f"{pin} was made anew"
                if pin.startswith("prog_"):
                    assert number != before[pin], f"{pin} was not replaced"
            assert box.records() == records
            assert client.getpeername() == server.address
            client.sendall(b"still there")
            assert client.recv(100) == b"still there"
        with box.connect(server.address) as late:
            late.sendall(b"x")
            assert late.recv(1) == b"x"
            assert redirected(late), "no longer proxied"
        box.wait_no_records()


@case
def a_cgroup_that_was_made_again_is_attached_again():
    """Its links are dead: traffic of the new one goes direct, silently, until the next load."""
    with Sandbox(load=None) as box:
        box.loader("--cgroup", box.clients)
        box.clients.rmdir()
        box.clients.mkdir()
        assert attached(box.clients) == []
        box.loader("--cgroup", box.clients)
        assert_whole(box, box.clients)


@case_for({"a program": ("prog_sockops",), "a link": ("link_",), "a map": ("map_ports",),
           "the configuration": ("map_config",)})
def a_pin_that_was_removed_comes_back(prefix):
    with Sandbox(proxy=None) as box:
        next(box.pins.glob(f"{prefix}*")).unlink()
        box.load()
        assert_whole(box)


@case
def loaders_at_the_same_time_wait_for_each_other():
    with Sandbox(load=None) as box:
        command = [LOAD, "--name", box.name, "--cgroup", str(box.cgroup)]
        all_of_them = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
        for one in all_of_them:
            message = one.communicate()[1]
            assert one.returncode == 0, message
        assert_whole(box)


# --- the configuration file -----------------------------------------------------------------------

def with_config(box, directory, text, *words):
    path = directory / "test.conf"
    path.write_text(text)
    return path, box.loader("--config", path, *words, check=False)


@case
def the_file_holds_the_same_settings():
    with Sandbox(load=None) as box, tmpdir() as directory:
        text = (f"[loader]\ncgroup = {box.clients}\ncgroup = {box.servers}\nport = 18005\n"
                "on-proxy-down = refuse\nmax-connections = 77\n")
        _, done = with_config(box, directory, text)
        assert done.returncode == 0, done.stderr
        assert_whole(box, box.clients, box.servers)
        assert (box.config()["port"], box.config()["policy"]) == (18005, 1)
        _, done = with_config(box, directory, text, "--port", "18006", "--cgroup", box.clients)
        assert box.config()["port"] == 18006
        assert_whole(box, box.clients)


@case_for({
    "an unknown key": ("[loader]\nprot = 1\n", ("line 2", "prot", "no such key")),
    "an unknown section": ("[laoder]\nport = 1\n", ("line 2", "[laoder]", "[loader]")),
    "a bad value": ("[loader]\n\nport = 70000\n", ("line 3", "70000", "out of range")),
    "a bad line": ("[loader]\nport 18000\n", ("line 2",)),
})
def a_bad_file_is_refused_with_its_line(text, words):
    with Sandbox(load=None) as box, tmpdir() as directory:
        path, done = with_config(box, directory, text)
        assert_refuses(done, 2, path, *words)
        assert_nothing(box)


@case_for({
    "port 0": (("--port", "0"), ("port", "out of range")),
    "a policy that does not exist": (("--on-proxy-down", "x"), ("on-proxy-down", "direct, refuse")),
    "an unknown option": (("--cgruop", "x"), ("--cgruop", "--help")),
    "a cgroup that is empty": (("--cgroup", ""), ("--cgroup: empty", "PATH")),
    "an argument": (("extra",), ("extra",)),
    "check and unload": (("--check", "--unload"), ("--check", "--unload")),
    "a name that cannot be one": (("--name", "A.b"), ("--name", "A.b")),
    "a file that is not there": (("--config", "/nonexistent"), ("/nonexistent",)),
    "a directory for a file": (("--config", "/tmp"), ("/tmp", "Is a directory")),
})
def a_bad_command_line_is_refused(words, expected):
    with Sandbox(load=None) as box:
        assert_refuses(box.load(*words, check=False), 2, *expected)
        assert_nothing(box)


# --- refusals -------------------------------------------------------------------------------------

@case_for({"an ordinary user": (UNPRIVILEGED, "root"), "root without capabilities":
           (NO_CAPABILITIES, "CAP_")})
def without_privileges(prefix, word):
    with Sandbox(load=None) as box:
        done = box.load(check=False, prefix=prefix)
        assert_refuses(done, 1, word)
        assert_nothing(box)


@case_for({"one that is not there": ("/sys/fs/cgroup/nowhere-at-all", "No such file"),
           "no cgroup2": ("/tmp", "cgroup2")})
def a_wrong_cgroup(path, word):
    with Sandbox(load=None) as box:
        assert_refuses(box.loader("--cgroup", path, check=False), 1, path, word)
        assert_nothing(box)


@case_for({"inside the other's": ("clients",), "the same": ("",), "around the other's": ("..",)})
def overlapping_instances(where):
    with Sandbox(load=None) as box:
        box.loader("--cgroup", box.clients if where == ".." else box.cgroup)
        other = box.cgroup if where == ".." else box.cgroup / where
        done = run([LOAD, "--name", f"{box.name}-b", "--cgroup", other], check=False)
        assert_refuses(done, 1, box.name, "--unload")
        assert not (BPFFS / f"{box.name}-b").exists()


@case_for({"inside": ("clients",), "the same": ("",), "around": ("..",)})
def hooks_whose_pins_are_not_to_be_seen(where):
    """As of an instance that was loaded where another bpffs is mounted."""
    with Sandbox(load=None) as box:
        box.loader("--cgroup", box.clients if where == ".." else box.cgroup)
        other = box.cgroup if where == ".." else box.cgroup / where
        done = in_mount_namespace("mount -t bpf bpf /sys/fs/bpf", LOAD, "--name", f"{box.name}-b",
                                  "--cgroup", other)
        assert_refuses(done, 1, "no instance here", "bpftool link")
        assert len(attached(box.clients if where == ".." else box.cgroup)) == len(HOOKS)
        box.unload()


@case
def an_instance_without_its_configuration_still_counts():
    with Sandbox(proxy=None) as box:
        (box.pins / "map_config").unlink()
        done = run([LOAD, "--name", f"{box.name}-b", "--cgroup", box.clients], check=False)
        assert_refuses(done, 1, f"instance {box.name} is attached")


@case
def instances_on_separate_cgroups_live_side_by_side():
    with Sandbox(proxy=None) as one, Sandbox(load=("--port", "18001"), proxy=None) as two:
        assert attached(one.cgroup) == attached(two.cgroup) != []


def make_foreign_map(path, name="map_socks"):
    run(["bpftool", "map", "create", path, "type", "array", "key", "4", "value", "4",
         "entries", "1", "name", name])


@case_for({"a map of ours in name only": ("map_socks", "map_socks"),
           "another kind of map": ("map_config", "other"),
           "a map where a program should be": ("prog_connect4", "x"),
           "something else": ("garbage", "x")})
def a_foreign_object_in_the_directory(pin, name):
    with Sandbox(load=None) as box:
        box.pins.mkdir(mode=0o700)
        make_foreign_map(box.pins / pin, name)
        done = box.load(check=False)
        assert_refuses(done, 1, box.pins, pin)
        assert attached(box.cgroup) == []
        box.unload(check=False)
        assert (box.pins / pin).exists(), "--unload removed what is not ours"
        (box.pins / pin).unlink()
        box.load()
        assert_whole(box)


@case
def a_directory_in_the_directory():
    with Sandbox(load=None) as box:
        box.pins.mkdir(mode=0o700)
        (box.pins / "map_socks").mkdir()
        assert_refuses(box.load(check=False), 1, box.pins, "map_socks")


@case
def a_symbolic_link_is_not_followed():
    with Sandbox(load=None) as box:
        elsewhere = BPFFS / f"{box.name}-x"
        elsewhere.mkdir(mode=0o700)
        box.pins.symlink_to(elsewhere)
        assert_refuses(box.load(check=False), 1, box.pins)
        assert not list(elsewhere.iterdir())


@case
def a_set_of_another_abi_is_replaced():
    with Sandbox(proxy=None) as box:
        before = object_ids(box)
        pretend_another_abi(box)
        assert "another version" in box.load("--check").stderr
        assert object_ids(box) == before
        assert "another version" in box.load().stderr
        assert_whole(box)
        assert not before.items() & object_ids(box).items()


def in_mount_namespace(script, *words):
    """Runs a shell script, then tproxy-load, where mounts are the script's own."""
    shell = ["unshare", "--mount", "sh", "-euc", script + '\nexec "$@"', "sh"]
    return run([*shell, *words], check=False)


@case
def without_cgroup2_it_says_how_to_mount_it():
    with Sandbox(load=None) as box:
        done = in_mount_namespace("findmnt -rn -t cgroup2 -o TARGET | xargs -r -n1 umount",
                                  LOAD, "--name", box.name)
        assert_refuses(done, 1, "cgroup2", "mount -t cgroup2")


@case
def a_missing_bpffs_is_mounted():
    with Sandbox(load=None) as box:
        script = "while mountpoint -q /sys/fs/bpf; do umount /sys/fs/bpf; done"
        load = f"{LOAD} --name {box.name}"
        done = in_mount_namespace(script, "sh", "-euc", f"{load} --cgroup {box.cgroup}\n"
                                  f"ls /sys/fs/bpf/{box.name}\n{load} --unload")
        assert done.returncode == 0, done.stderr
        assert "mounted a bpffs" in done.stderr, done.stderr
        assert "map_socks" in done.stdout, done.stdout


@case_for({"they do": ("", "", True),
           "process 1 sees them, too": ("mount -n --bind /proc/$$/mountinfo /proc/1/mountinfo", "", False),
           "a run, which ends before": ("", f"{TPROXY} run -- true", False)})
def hooks_that_go_with_a_mount_namespace_are_warned_of(before, instead, warns):
    with Sandbox(load=None) as box:
        script = f"while mountpoint -q /sys/fs/bpf; do umount /sys/fs/bpf; done\n{before}"
        load = f"{LOAD} --name {box.name} --cgroup {box.cgroup}\n{LOAD} --name {box.name} --unload"
        done = in_mount_namespace(script, "sh", "-euc", instead or load)
        assert done.returncode == 0, done.stderr
        assert ("mount namespace" in done.stderr) == ("nsenter" in done.stderr) == warns, done.stderr


# --- unload and check -----------------------------------------------------------------------------

@case
def unload_leaves_nothing():
    with Sandbox(proxy=None) as box:
        box.unload()
        assert_nothing(box)
        assert box.unload().returncode == 0  # nothing to do is no failure


@case
def unload_works_while_a_proxy_serves():
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        box.unload()
        assert_nothing(box)
        with box.connect(server.address) as client:
            line(client)
            assert not redirected(client)
        assert box.proxy.stop() == 0


@case_for({"a map": ("map_*",), "the configuration": ("map_config",), "programs": ("prog_*",),
           "links": ("link_c*",), "all but the links": ("[mp]*",)})
def unload_works_where_something_is_missing(pattern):
    with Sandbox(proxy=None) as box:
        for pin in box.pins.glob(pattern):
            pin.unlink()
        box.unload()
        assert_nothing(box)


@case
def unload_needs_no_configuration_file():
    with Sandbox(proxy=None) as box, tmpdir() as directory:
        _, done = with_config(box, directory, "[loader]\nport = 70000\n", "--unload")
        assert done.returncode == 0, done.stderr
        assert_nothing(box)


@case
def unload_knows_only_its_own_instance():
    with Sandbox(proxy=None) as one, Sandbox(load=("--port", "18001"), proxy=None) as two:
        before = object_ids(two)
        one.unload()
        assert object_ids(two) == before


@case
def check_changes_nothing():
    with Sandbox(load=None) as box:
        done = box.load("--check")
        assert box.name in done.stdout + done.stderr
        assert_nothing(box)
        box.load()
        before, config = object_ids(box), box.config()
        box.load("--check", "--port", "18009")
        assert (object_ids(box), box.config()) == (before, config)


@case
def check_says_why_it_could_not_be_done():
    with Sandbox(load=None) as box:
        done = box.loader("--cgroup", "/tmp", "--check", check=False)
        assert done.returncode == 3, (done.returncode, done.stderr)
        assert "/tmp" in done.stdout + done.stderr
        done = box.load("--check", check=False, prefix=NO_CAPABILITIES)
        assert done.returncode == 3, (done.returncode, done.stderr)


@case
def the_pins_show_our_field_names():
    """What the documentation promises of bpftool map dump."""
    with Sandbox() as box, Server("10.77.0.1", echo) as server, box.connect(server.address):
        wait_for(box.records, "a record")
        text = run(["bpftool", "map", "dump", "pinned", box.pins / "map_socks"]).stdout
        for field in ("cookie", "netns", "cgroup_id", "start_ns", "dst", "src", "pid", "uid", "gid",
                      "proxy_port", "comm", "ip", "port", "family"):
            assert f'"{field}":' in text, (field, text)
        assert f'"port": {server.port}' in text, text


main()
