# SPDX-License-Identifier: BSD-2-Clause
"""
The services on a machine that has booted them: from the first connection to the last. Runs under
systemd in a guest, as units/boottest.service; see boot.

The steps build on each other and run in the order of the file. One load runs through most of them.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import traffic
from harness import Failed, Server, bpftool, echo, redirected, run
from steps import run_all, step, step_for

PINS = pathlib.Path("/sys/fs/bpf/tproxy")
CONFIG = pathlib.Path("/etc/tproxy/tproxy.conf")
HERE = "10.77.0.1"
SERVICES = ("tproxy-load", "tproxyd")
LONG = 8  # sessions that last
DRAIN = "2s"

# A machine that is emulated, on one that has other things to do.
DEADLINE = 120


def wait_for(condition, what):
    """Calls condition() now and then until it gives something true: most start programs to look."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"still waiting for: {what}")
        time.sleep(0.1)
    return value


# --- the services ---------------------------------------------------------------------------------

def systemctl(*words, **options):
    return run(["systemctl", *words], **options).stdout.strip()


def show(unit, name):
    return systemctl("show", "--property", name, "--value", unit)


def main_pid():
    return int(show("tproxyd", "MainPID"))


def children(pid):
    try:
        return [int(word) for word in
                pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def worker(other_than=None):
    """The worker, once it is registered, and is another one than that."""
    def look():
        config = bpftool("map", "dump", "pinned", PINS / "map_config")[0]["formatted"]["value"]
        registered = [proxy["tgid"] for proxy in config["proxies"] if proxy["tgid"]]
        found = children(main_pid())
        return found and found == registered and found[0] != other_than and found[0]
    return wait_for(look, "a registered worker")


def journal(*words):
    """Messages of tproxyd: [{"MESSAGE": ..., "PRIORITY": ...}, ...]."""
    done = run(["journalctl", "--quiet", "--boot", "--unit", "tproxyd", "--output", "json", *words])
    return [json.loads(text) for text in done.stdout.splitlines()]


def said(text, times=1):
    """Waits until tproxyd has said something that often since the boot."""
    wait_for(lambda: sum(text in entry["MESSAGE"] for entry in journal("--grep", text)) >= times,
             f"tproxyd to say {text}")


def since(death, text):
    """Milliseconds from a moment (time.time()) to the last message that holds the text."""
    last = max(int(entry["__REALTIME_TIMESTAMP"]) for entry in journal("--grep", text))
    return last / 1000 - 1000 * death


def counter(name):
    dump = bpftool("map", "dump", "pinned", PINS / "map_stats")
    return sum(cpu["value"][name] for cpu in dump[0]["formatted"]["values"])


def is_served():
    """Whether a new connection is intercepted."""
    with Server(HERE, echo) as server, socket.create_connection(server.address, DEADLINE) as client:
        client.sendall(b"?")
        assert client.recv(1) == b"?"
        assert client.getpeername() == server.address
        return redirected(client)


def figure(text):
    print(f"probe - {text}", flush=True)


# --- load -----------------------------------------------------------------------------------------

class Load:
    """Sessions that last, and a client that makes short ones, with pauses in which others get to work."""

    def __init__(self):
        self.server = Server(HERE, echo)
        self.long, self.failures, self.made = [], [], 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._short_ones, daemon=True)
        self.fill()
        self.thread.start()

    def fill(self):
        """Makes as many sessions that last as there should be."""
        while len(self.long) < LONG:
            client = socket.create_connection(self.server.address, DEADLINE)
            self.long.append(client)
            self._ask(client)
            assert redirected(client), "a session that is none"

    @staticmethod
    def _ask(client):
        client.sendall(b"still")
        answer = client.recv(5, socket.MSG_WAITALL)
        assert answer == b"still", answer

    def _short_ones(self):
        while not self.over.is_set():
            try:
                with socket.create_connection(self.server.address, DEADLINE) as client:
                    client.sendall(b"hello")
                    client.shutdown(socket.SHUT_WR)
                    answer = client.recv(6, socket.MSG_WAITALL)
                    assert answer == b"hello", answer
                self.made += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
            time.sleep(0.02)

    def more(self, count=10):
        """Waits for short ones that began after the call."""
        want = self.made + len(self.failures) + count
        wait_for(lambda: self.made + len(self.failures) >= want, "short connections")

    def unharmed(self):
        """Every session that lasts goes on, and no short one has failed."""
        self.more()
        for client in self.long:
            self._ask(client)
        failures, self.failures = self.failures, []
        assert not failures, failures[:5]

    def lose(self):
        """The sessions that last end. Returns how many by a reset."""
        resets = 0
        for client in self.long:
            try:
                while client.recv(64):
                    pass
            except ConnectionResetError:
                resets += 1
            client.close()
        self.long = []
        return resets

    def end(self):
        self.over.set()
        self.thread.join(DEADLINE)
        for client in self.long:
            client.close()
        self.server.close()


load = None


# --- from the boot on -----------------------------------------------------------------------------

def reached(unit):
    """Seconds since the kernel's start."""
    return int(show(unit, "ActiveEnterTimestampMonotonic")) / 1e6


@step
def the_machine_comes_up_and_no_unit_has_failed():
    state = systemctl("is-system-running", "--wait", check=False, timeout=300)
    assert state == "running", systemctl("--failed", "--plain", "--no-legend")
    units = ("tproxy-load.service", "tproxyd.service", "network-pre.target", "multi-user.target")
    figure("seconds from the kernel's start: "
           + ", ".join(f"{unit} {reached(unit):.1f}" for unit in units))


@step
def both_services_are_enabled_and_active():
    for unit in SERVICES:
        assert systemctl("is-enabled", unit) == "enabled"
        assert systemctl("is-active", unit) == "active"


@step
def systemd_finds_nothing_wrong_with_the_units():
    done = run(["systemd-analyze", "verify", "--man=no", "tproxy-load.service", "tproxyd.service"],
               check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    rated = run(["systemd-analyze", "security", "--no-pager", *SERVICES], check=False).stdout
    figure("; ".join(text for text in rated.splitlines() if "Overall" in text))


@step_for({"among the first services that have a network": ("early", "system.slice/"),
           "any service": ("ordinary", "system.slice/"),
           "who logs in": ("login", "user.slice/user-1000.slice/session-")})
def intercepted_from_the_start(name, cgroup):
    report = json.loads((traffic.REPORTS / name).read_text())
    assert cgroup in report["cgroup"], report
    assert report["redirected"], report
    assert tuple(report["peer"]) == traffic.HERE, report
    assert "{} {}".format(*report["own"]) == report["seen"], report
    said(f"pid={report['pid']} ")


@step
def no_connection_went_by_until_the_proxy_was_there():
    assert counter("passed_by_policy") == 0, counter("passed_by_policy")
    figure(f"connections of the boot: {counter('redirected')} redirected, 0 passed")


@step
def messages_arrive_with_their_priorities():
    entries = journal()
    for text, priority in (("serving instance", "5"), ("session dst=", "6")):
        found = [entry["PRIORITY"] for entry in entries if text in entry["MESSAGE"]]
        assert found and set(found) == {priority}, (text, found)
    ours = [entry for entry in entries if entry["_TRANSPORT"] == "stdout"]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in ours} == {"tproxyd"}, ours
    assert not [entry for entry in ours if int(entry["PRIORITY"]) < 5], ours


# --- deaths ---------------------------------------------------------------------------------------

@step
def a_reload_brings_new_settings_and_every_session_goes_on():
    global load
    load = Load()
    main, old = main_pid(), worker()
    CONFIG.write_text(f"[proxy]\ndrain-timeout = {DRAIN}\n")
    systemctl("reload", "tproxyd")
    worker(other_than=old)
    assert main_pid() == main
    load.unharmed()
    said("reloading: becoming")


@step
def a_killed_worker_costs_nothing():
    main, old = main_pid(), worker()
    os.kill(old, signal.SIGKILL)
    worker(other_than=old)
    load.unharmed()
    assert main_pid() == main and show("tproxyd", "NRestarts") == "0"


@step
def a_worker_that_the_kernel_kills_for_want_of_memory_costs_nothing():
    """Another of the cgroup dies of it here: to systemd it is the service that has had it."""
    main = main_pid()
    cgroup = pathlib.Path("/sys/fs/cgroup/system.slice/tproxyd.service")
    systemctl("set-property", "--runtime", "tproxyd", "MemoryMax=100M")
    hog = subprocess.Popen(["python3", "-c", "input(); bytearray(1 << 28)"], stdin=subprocess.PIPE)
    (cgroup / "cgroup.procs").write_text(str(hog.pid))
    hog.communicate(b"\n", DEADLINE)
    assert hog.returncode == -signal.SIGKILL, hog.returncode
    wait_for(lambda: "OOM killer" in run(["journalctl", "--boot", "--unit", "tproxyd"]).stdout,
             "systemd to notice")
    systemctl("set-property", "--runtime", "tproxyd", "MemoryMax=infinity")
    load.unharmed()
    assert main_pid() == main and show("tproxyd", "NRestarts") == "0"


@step_for({"once": (), "again": ()})
def a_killed_master_costs_nothing():
    main, heir, death = main_pid(), worker(), time.time()
    os.kill(main, signal.SIGKILL)
    wait_for(lambda: main_pid() == heir, "the worker to be the main process")
    worker(other_than=heir)
    load.unharmed()
    assert systemctl("is-active", "tproxyd") == "active"
    assert show("tproxyd", "NRestarts") == "0" and is_served()
    figure(f"from the death of a master: its worker takes its place after "
           f"{since(death, 'takes its place'):.0f} ms, the next serves on after "
           f"{since(death, 'serving on as pid'):.0f} ms")


@step
def a_reload_is_refused_after_that():
    """A worker has given up the right to execute anything."""
    main, old = main_pid(), worker()
    systemctl("reload", "tproxyd")
    said("not reloaded")
    load.unharmed()
    assert (main_pid(), worker()) == (main, old)
    assert systemctl("is-active", "tproxyd") == "active"


@step
def both_killed_at_once_end_the_sessions_and_are_started_anew():
    """The documented cost: what was open. Everybody else goes on, by the policy or through it."""
    main, death = main_pid(), time.time()
    systemctl("kill", "--signal", "KILL", "tproxyd")
    started = time.monotonic()
    assert load.lose() == LONG, "some ended with a FIN"
    lost = time.monotonic() - started
    wait_for(lambda: main_pid() not in (0, main), "another main process")
    worker()
    figure(f"from the death of both: {LONG} sessions are reset within {1000 * lost:.0f} ms, the next "
           f"tproxyd serves after {since(death, 'serving instance'):.0f} ms")
    load.more()
    broken, load.failures = load.failures, []
    assert len(broken) <= 2, broken  # it makes one at a time
    assert show("tproxyd", "NRestarts") == "1" and is_served()
    load.fill()
    load.unharmed()


@step
def a_restart_drains():
    """New connections go direct meanwhile; who is not done by then is reset."""
    main = main_pid()
    systemctl("restart", "tproxyd")
    assert main_pid() != main
    load.lose()
    load.fill()
    load.unharmed()
    said("end=drained")


# --- the hooks ------------------------------------------------------------------------------------

def ids(kind):
    return {pin.name: bpftool(kind, "show", "pinned", pin)["id"] for pin in PINS.glob(f"{kind}_*")}


@step
def hooks_get_other_maps_under_load():
    programs, links, main = ids("prog"), ids("link"), main_pid()
    CONFIG.write_text(f"[loader]\nmax-connections = 5000\n[proxy]\ndrain-timeout = {DRAIN}\n")
    systemctl("reload", "tproxy-load")
    for kind, before in (("link", links), ("prog", programs)):
        after = ids(kind)
        assert after.keys() == before.keys() and not set(after.values()) & set(before.values()), after
    assert bpftool("map", "show", "pinned", PINS / "map_socks")["max_entries"] >= 5000
    load.unharmed()
    assert main_pid() == main and is_served()


def leftovers():
    """Programs, links and maps of ours in the kernel, and pins."""
    found = [f"pin {path}" for path in pathlib.Path("/sys/fs/bpf").glob("*tproxy*")]
    numbers = set()
    for kind, prefix in (("prog", "tp_"), ("map", "map_")):
        for entry in bpftool(kind, "show") or []:
            if entry.get("name", "").startswith(prefix):
                found.append(f"{kind} {entry['name']}")
                numbers.add(entry["id"])
    found += [f"link {link['id']}" for link in bpftool("link", "show") or []
              if link.get("prog_id") in numbers]
    tree = run(["bpftool", "cgroup", "tree"], check=False).stdout
    return found + [text for text in tree.splitlines() if " tp_" in text]


def nothing_is_left():
    wait_for(lambda: not leftovers(), "programs, links and maps to go")
    assert not leftovers(), leftovers()
    assert not is_served()
    for unit in SERVICES:
        assert systemctl("is-active", unit, check=False) == "inactive"


@step
def a_stop_of_both_leaves_nothing():
    assert leftovers(), "there is nothing that could be left"
    started = time.monotonic()
    systemctl("stop", *SERVICES)
    figure(f"stopped within {time.monotonic() - started:.1f} s, with {LONG} sessions open")
    load.lose()
    load.more()
    assert not load.failures, load.failures
    nothing_is_left()


@step
def a_start_brings_both_back():
    systemctl("start", "tproxyd")
    worker()
    assert is_served()
    load.fill()
    load.unharmed()


@step
def a_restart_of_the_hooks_brings_both_back():
    systemctl("restart", "tproxy-load")
    worker()
    load.lose()
    load.fill()
    load.unharmed()


@step
def two_parts_take_its_place_and_each_can_be_restarted():
    parts = ("tproxyd@1-2", "tproxyd@2-2")
    systemctl("start", *parts)
    assert systemctl("is-active", "tproxyd", check=False) == "inactive", "beside the whole"
    load.lose()
    load.fill()
    before = counter("passed_by_policy")
    for part in parts:
        assert systemctl("is-active", part) == "active"
        systemctl("restart", part)
        load.more()
        assert is_served()
    assert counter("passed_by_policy") == before
    assert 0 < load.lose() <= LONG  # what the first one drained, and the second
    systemctl("start", "tproxyd")
    assert systemctl("is-active", *parts, check=False).split() == ["inactive"] * 2
    worker()
    load.fill()
    load.unharmed()


@step
def disabled_they_stay_away():
    run(["systemctl", "disable", "--now", "--quiet", *SERVICES])
    load.lose()
    nothing_is_left()
    for unit in SERVICES:
        assert systemctl("is-enabled", unit, check=False) == "disabled"
    load.end()


@step
def enabled_they_serve_until_the_machine_goes_off():
    """The end of the machine is timed outside: a session is open then that nobody ends."""
    run(["systemctl", "enable", "--now", "--quiet", *SERVICES])
    worker()
    assert is_served()
    subprocess.Popen(["systemd-run", "--quiet", "--unit", "boottest-last", "/usr/bin/python3", "-B",
                      traffic.__file__, "stay"])
    wait_for(lambda: (traffic.REPORTS / "last").exists(), "the last client")


def main():
    print(f"vm: booted {os.uname().release}", flush=True)
    run_all()
    print("vm: done", flush=True)
    systemctl("poweroff")


if __name__ == "__main__":
    main()
