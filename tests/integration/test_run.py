# SPDX-License-Identifier: BSD-2-Clause
"""tproxy run: a proxy for one command, and nothing left behind."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import time

from harness import (TPROXY, UNPRIVILEGED, Server, banner, case, case_for, hello, main, run,
                     wait_for)
from harness.pins import directories
from harness.system import cgroup2_root, has_ended

PYTHON_CLIENT = ("import socket, sys; s = socket.create_connection(({!r}, {})); "
                 "print(s.recv(100).decode().strip(), flush=True); sys.stdin.read()")


started = set()  # pids of every `tproxy run` of this file


def traces():
    """What those have made and is still there, by name: run-PID-START is in each."""
    cgroups = [path.name for path in cgroup2_root().glob("tproxy-run-*")]
    locks = [path.name for path in pathlib.Path("/run/tproxy-load").glob("run-*")]
    return [name for name in cgroups + locks + directories()
            if int(name.removeprefix("tproxy-").split("-")[1]) in started]


def start(*command, options=()):
    process = subprocess.Popen([TPROXY, "run", *options, "--", *map(str, command)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    started.add(process.pid)
    return process


def tproxy_run(*command, options=(), stdin=""):
    process = start(*command, options=options)
    out, err = process.communicate(stdin)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def client_of(server):
    """A command that connects, says what it got, and lives until its stdin ends."""
    return "/usr/bin/python3", "-c", PYTHON_CLIENT.format(*server.address)


def comm_of(pid):
    return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()


def parent_of(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes(comm):
    """Pids of this network namespace's processes of that name, their own children not counted."""
    here = os.readlink("/proc/self/ns/net")
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (comm_of(entry.name) == comm and os.readlink(entry / "ns/net") == here
                    and comm_of(parent_of(entry.name)) != comm):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@case_for({"IPv4": ("10.77.0.1", "10.77.0.1"), "IPv6": ("fd77::1", "[fd77::1]")})
def a_command_goes_through_the_proxy(address, host):
    with Server(address, hello) as server:
        done = tproxy_run("curl", "-sSg", f"http://{host}:{server.port}/")
        assert done.returncode == 0, done
        assert done.stdout == f"hello from {address} {server.port}\n", done.stdout
        assert f"dst={host}:{server.port} " in done.stderr and 'comm="curl"' in done.stderr, done
    assert traces() == []


@case_for({"success": ("exit 0", 0), "failure": ("exit 7", 7), "a signal": ("kill -9 $$", 137)})
def the_exit_code_is_the_commands(script, code):
    done = tproxy_run("sh", "-c", script)
    assert done.returncode == code, done
    assert traces() == []


@case_for({"not found": ("/nonexistent/program", 127), "not executable": ("/etc/passwd", 126)})
def a_command_that_cannot_run(path, code):
    done = tproxy_run(path)
    assert done.returncode == code and path in done.stderr, done
    assert traces() == []


@case
def quiet_leaves_the_output_to_the_command():
    done = tproxy_run("sh", "-c", "cat; echo err >&2", options=["--quiet"], stdin="in")
    assert (done.stdout, done.stderr) == ("in", "err\n"), done


@case
def json_reports_the_end():
    with Server("10.77.0.1", hello) as server:
        done = tproxy_run("curl", "-sS", f"http://10.77.0.1:{server.port}/",
                          options=["--json", "--log", "/dev/null"])
        assert done.returncode == 0, done
        report = json.loads(done.stderr)
        assert report["exit_code"] == 0 and report["proxy_died"] is False, report
        assert report["counters"]["redirected"] == 1, report
        assert report["command"][0] == "curl", report


@case
def json_has_stderr_for_itself():
    with open("/run/tproxy-load/load.lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = start("sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &",
                        options=["--json", "--log", "/dev/null"])
        time.sleep(2)  # it would have said by now that it waits
    said = waiting.communicate()[1]
    assert json.loads(said)["exit_code"] == 0, said


@case
def two_at_once_do_not_meet():
    with Server("10.77.0.1", banner) as server:
        both = [start(*client_of(server)) for _ in range(2)]
        for one in both:
            assert one.stdout.readline() == f"10.77.0.1 {server.port}\n"
        assert len(processes("tproxyd")) == 2
        for one in both:
            messages = one.communicate()[1]
            assert one.returncode == 0, messages
            assert messages.count(f"dst=10.77.0.1:{server.port} ") == 1, messages
    assert traces() == []


@case
def processes_left_in_the_background_end_with_it():
    done = tproxy_run("sh", "-c", "sleep 1000 & echo $!")
    assert done.returncode == 0, done
    assert has_ended(done.stdout.strip()), "sleep still runs"
    assert traces() == []


@case_for({"SIGTERM": (signal.SIGTERM,), "SIGINT": (signal.SIGINT,), "SIGHUP": (signal.SIGHUP,)})
def a_signal_is_passed_on(number):
    script = f"trap 'echo caught; exit 3' {int(number)}; echo ready; while :; do read -t 1 x; done"
    running = start("bash", "-c", script)
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    assert running.stdout.readline() == "caught\n"
    running.communicate()
    assert running.returncode == 3
    assert traces() == []


@case
def a_killed_run_leaves_no_process_and_is_swept_by_the_next():
    with Server("10.77.0.1", banner) as server:
        running = start(*client_of(server))
        running.stdout.readline()
        running.kill()
        running.communicate()
    wait_for(lambda: not processes("tproxyd"), "tproxyd to follow")
    assert traces(), "nothing to sweep: the test shows nothing"
    done = tproxy_run("true")
    assert done.returncode == 0 and "removed run-" in done.stderr, done
    assert traces() == []


@case
def a_killed_proxy_is_reported_and_the_command_goes_on():
    with Server("10.77.0.1", banner) as server:
        running = start(*client_of(server))
        running.stdout.readline()
        proxy, = processes("tproxyd")
        os.kill(proxy, signal.SIGKILL)
        wait_for(lambda: not processes("tproxyd"), "tproxyd to end")
        messages = running.communicate()[1]
        assert running.returncode == 0, messages
        assert "tproxyd ended" in messages and "go direct" in messages, messages
    assert traces() == []


@case
def a_living_run_is_not_swept():
    with Server("10.77.0.1", banner) as server:
        running = start(*client_of(server))
        running.stdout.readline()
        before = traces()
        assert tproxy_run("true").returncode == 0
        assert traces() == before
        running.communicate()
        assert running.returncode == 0
    assert traces() == []


@case_for({"its process lives": ("{pid}-{start}",), "its process is not to be seen": ("1-1",)})
def what_has_no_lock_here_is_not_swept(name):
    start = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    name = f"run-{name.format(pid=os.getpid(), start=start)}"
    cgroup = cgroup2_root() / f"tproxy-{name}"
    cgroup.mkdir()
    try:
        assert name not in tproxy_run("true").stderr
        assert cgroup.exists()
        found = json.loads(run([TPROXY, "doctor", "--json"], check=False).stdout)["findings"]
        assert all(one["result"] == "warning" for one in found if one["what"] == name), found
        assert any(one["what"] == name for one in found) == name.endswith("-1-1"), found
    finally:
        cgroup.rmdir()


@case_for({"SIGTERM": (signal.SIGTERM,), "SIGINT": (signal.SIGINT,)})
def behind_another_loader_it_says_so_and_can_be_stopped(number):
    with open("/run/tproxy-load/load.lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = start("true")
        said = waiting.stderr.readline()
        while "waiting for" not in said:
            said = waiting.stderr.readline()
            assert said, "it ended without a word"
        assert f"pid {os.getpid()}" in said, said
        waiting.send_signal(number)
        waiting.communicate()
        assert waiting.returncode == 128 + number
    assert traces() == []


@case
def an_ignored_sigchld_is_no_failure():
    words = ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", TPROXY, "run", "--", "sh", "-c", "exit 7"]
    done = run(words, check=False)
    assert done.returncode == 7, done


@case
def an_ordinary_user_is_told_to_be_root():
    done = run([*UNPRIVILEGED, TPROXY, "run", "--", "true"], check=False)
    assert done.returncode == 125, done
    assert len(done.stderr.splitlines()) == 1, done.stderr


@case
def a_run_inside_of_a_run_uses_the_inner_proxy_alone():
    with Server("10.77.0.1", hello) as server:
        url = f"http://10.77.0.1:{server.port}/"
        done = tproxy_run(TPROXY, "run", "--log", "/dev/stdout", "--", "curl", "-sS", url)
        assert done.returncode == 0, done
        assert f"dst=10.77.0.1:{server.port} " in done.stdout, done
        assert f"dst=10.77.0.1:{server.port} " not in done.stderr, done


main()
