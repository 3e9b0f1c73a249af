# SPDX-License-Identifier: BSD-2-Clause
"""The life of a tproxyd: start, restart, limits, end."""

import contextlib
import os
import pathlib
import signal
import socket
import threading
import time

from harness import (NO_SHARES, UNHELD, Failed, Sandbox, Server, banner, case, case_for, echo, in_netns,
                     line, main, new_netns, redirected, run, silent, wait_for)
from harness.load import registered
from harness.pins import pretend_another_abi
from harness.system import children


def ping(client, word=b"ping"):
    client.sendall(word)
    assert client.recv(len(word), socket.MSG_WAITALL) == word


def assert_proxied(box, server):
    with box.connect(server.address) as client:
        line(client)
        assert redirected(client), "the connection went direct"


# --- start and restart ----------------------------------------------------------------------------

@case_for({"SIGTERM": (signal.SIGTERM, 0), "SIGKILL": (signal.SIGKILL, -9)})
def a_restart_leaves_the_hooks_as_they_are(how, code):
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        links = box.links()
        assert len(links) == 9, links
        for _ in range(3):
            assert_proxied(box, server)
            assert box.proxy.stop(how) == code
            box.proxy = box.start_proxy()
        assert_proxied(box, server)
        assert box.links() == links
        assert registered(box) == [box.proxy.worker]


@case
def in_a_pid_namespace_it_registers_the_pid_that_the_kernel_sees():
    """With its own getpid() registered, its upstream connections would come back to it for ever."""
    with Sandbox(proxy=None) as box, Server("10.77.0.1", banner) as server:
        proxy = box.start_proxy(prefix=["unshare", "--pid", "--fork", "--kill-child"])
        master = proxy.worker  # of unshare
        found = children(master)
        assert registered(box) == found[:1], (registered(box), found)
        before = box.counters()
        assert_proxied(box, server)
        after = box.counters()
        assert after["redirected"] - before["redirected"] == 1, after
        assert after["own_connection"] - before["own_connection"] == 1, after
        proxy.stop(signal.SIGKILL)  # unshare passes nothing else on; with its init the rest goes


def failing_start(box, words, where=None):
    """Starts a tproxyd that must end with code 1 and one sentence that holds the words."""
    proxy = box.start_proxy(ready=False, cgroup=where)
    assert proxy.wait_exit() == 1, proxy.log()
    for word in words:
        assert word in proxy.log(), f"no '{word}' in: {proxy.log()}"
    assert len(proxy.log().splitlines()) == 1, f"more than one sentence: {proxy.log()}"


@case
def a_second_one_refuses_and_the_first_goes_on():
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        failing_start(box, ["18000", box.name, "ss -ltnp"])
        assert registered(box) == [box.proxy.worker]
        assert_proxied(box, server)


@case
def without_hooks_it_says_how_to_load_them():
    with Sandbox(load=None) as box:
        failing_start(box, [f"/sys/fs/bpf/{box.name}/map_config", f"tproxy-load --name {box.name}"])


@case
def outside_of_the_hooked_cgroups_it_refuses():
    """Its accepted sockets would run no hooks: no record, no original destination."""
    with Sandbox(proxy=None) as box, Sandbox(load=None) as outside:
        failing_start(box, ["cgroup", "tproxy status"], where=outside.servers)
        assert not registered(box)


@case
def hooks_of_another_abi_are_refused():
    with Sandbox(proxy=None) as box:
        pretend_another_abi(box)
        failing_start(box, ["version 99", "tproxy doctor"])


@case
def a_squatter_on_its_port_is_named():
    with Sandbox(proxy=None) as box, Server("127.0.0.1", silent, port=18000):
        failing_start(box, ["127.0.0.1:18000", "another process"])
        assert not registered(box)


@case
def it_serves_ipv4_where_there_is_no_ipv6():
    with Sandbox(proxy=None) as box, new_netns() as other, in_netns(other):
        pathlib.Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("1")
        box.start_proxy().wait_log("IPv4 only")
        with Server("10.77.0.1", banner) as server:
            assert_proxied(box, server)


# --- end ------------------------------------------------------------------------------------------

@case
def sigterm_lets_sessions_end_and_takes_no_new_ones():
    with Sandbox() as box, Server("10.77.0.1", echo) as server:
        with box.connect(server.address) as client:
            ping(client)
            box.proxy.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "STOPPING=1" in box.proxy.notified(), "STOPPING=1")
            with box.connect(server.address) as late:
                ping(late)
                assert not redirected(late), "still redirected"
            ping(client, b"still here")
            assert box.proxy.process.poll() is None
        assert box.proxy.wait_exit() == 0
        assert not registered(box)


@case
def the_drain_deadline_resets_what_is_left():
    with Sandbox(proxy=("--drain-timeout", "100ms")) as box, Server("10.77.0.1", echo) as server:
        with box.connect(server.address) as client:
            ping(client)
            assert box.proxy.stop() == 0
            try:
                raise Failed(f"no reset, but {client.recv(1)!r}")
            except ConnectionResetError:
                pass
            assert "end=drained" in box.proxy.log()


@case
def a_second_sigterm_ends_at_once():
    with Sandbox(proxy=("--drain-timeout", "1h")) as box, Server("10.77.0.1", echo) as server:
        with box.connect(server.address) as client:
            ping(client)
            box.proxy.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "STOPPING=1" in box.proxy.notified(), "STOPPING=1")
            assert box.proxy.stop() == 0


# --- limits ---------------------------------------------------------------------------------------

def served(clients):
    """Which of them have got the server's banner."""
    got = []
    for client in clients:
        try:
            if client.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                got.append(client)
        except BlockingIOError:
            pass
    return got


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakeups(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def assert_not_spinning(pid):
    """Over some of its own wake-ups it uses little of the time that passes."""
    first, used, start = wakeups(pid), cpu_seconds(pid), time.monotonic()
    wait_for(lambda: wakeups(pid) > first + 5, "tproxyd to try again")
    share = (cpu_seconds(pid) - used) / (time.monotonic() - start)
    assert share < 0.5, f"it burns {share:.0%} of a CPU while it cannot accept"


def assert_backlog_waits(box, server, count):
    """So many clients are more than there is room for: the others are served as places get free."""
    with box.inside():
        clients = [socket.create_connection(server.address) for _ in range(count)]
    warning = box.proxy.wait_log("not accepting for now")
    room = int(warning.partition(" sessions are open")[0].split()[-1])
    assert 0 < room < count, warning
    wait_for(lambda: len(served(clients)) == room, f"{room} clients to be served")
    assert_not_spinning(box.proxy.worker)
    assert len(served(clients)) == room
    while clients:
        for client in wait_for(lambda: served(clients), "waiting clients to be served"):
            client.close()
            clients.remove(client)
    box.wait_no_records()
    return room


@case
def more_than_max_sessions_wait_in_the_backlog():
    with Sandbox(proxy=(*UNHELD, "--max-sessions", "3")) as box, Server("10.77.0.1", banner) as server:
        assert assert_backlog_waits(box, server, 10) == 3


@case
def without_descriptors_clients_wait_in_the_backlog():
    with Sandbox(proxy=None) as box, Server("10.77.0.1", banner) as server:
        box.proxy = box.start_proxy(*UNHELD, *NO_SHARES, prefix=["prlimit", "--nofile=100:100"])
        assert_backlog_waits(box, server, 50)


def jam(connection):
    """Sends until nobody takes any more."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(bytes(1 << 20))


def unjam(connection):
    """Ends its own direction, and takes all that the other end has sent."""
    connection.settimeout(20)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1 << 20):
        pass


@contextlib.contextmanager
def small_buffers():
    """
    Large ones take long to fill on an emulated machine; what does not get in meanwhile is sent again
    later and later, up to two minutes.
    """
    largest = {pathlib.Path(f"/proc/sys/net/ipv4/tcp_{kind}"): sizes
               for kind, sizes in (("rmem", "4096 131072 262144"), ("wmem", "4096 16384 262144"))}
    before = {path: path.read_text() for path in largest}
    for path, sizes in largest.items():
        path.write_text(sizes)
    try:
        yield
    finally:
        for path, sizes in before.items():
            path.write_text(sizes)


@case
def pipes_kept_for_reuse_keep_no_client_out():
    """Bytes stuck both ways take two pipes a session; once they have flowed these are spare."""
    begun, ended = threading.Event(), threading.Event()

    def stuck(connection):
        begun.wait()
        while not ended.wait(0.01):
            jam(connection)
        unjam(connection)

    with small_buffers(), Sandbox(proxy=None) as box, Server("10.77.0.1", stuck) as server:
        box.proxy = box.start_proxy(prefix=["prlimit", "--nofile=106:106"])
        clients = [box.connect(server.address) for _ in range(16)]
        begun.set()

        def pipes_in_use():
            for client in clients:
                jam(client)
            return len(os.listdir(f"/proc/{box.proxy.pid}/fd")) > 101

        wait_for(pipes_in_use, "pipes to be in use")
        ended.set()
        for client in clients:
            unjam(client)
            client.close()
        box.wait_no_records()
        with Server("10.77.0.1", banner) as other, box.connect(other.address) as late:
            assert line(late) == f"10.77.0.1 {other.port}"


@case
def emfile_backs_off_and_recovers():
    """The limit shrinks under a running tproxyd: accept4() itself fails."""
    with Sandbox(proxy=UNHELD) as box, Server("10.77.0.1", banner) as server:
        pid = box.proxy.worker
        limit = run(["prlimit", "--pid", pid, "--nofile", "--noheadings", "-o", "HARD"]).stdout
        used = len(os.listdir(f"/proc/{pid}/fd"))
        run(["prlimit", "--pid", pid, f"--nofile={used}:{limit.strip()}"])
        with box.connect(server.address) as client:
            box.proxy.wait_log("Too many open files")
            assert_not_spinning(pid)
            run(["prlimit", "--pid", pid, f"--nofile={limit.strip()}:{limit.strip()}"])
            assert line(client) == f"10.77.0.1 {server.port}"


@case
def a_start_that_waits_for_another_to_end_gets_what_that_had():
    """The port is free before that one has gone: it must take nothing away any more then."""
    with Sandbox(proxy=None) as box, Server("10.77.0.1", banner) as server:
        box.proxy = box.start_proxy()
        for _ in range(12):
            old, box.proxy = box.proxy, None
            old.process.send_signal(signal.SIGTERM)
            while not box.proxy:
                newcomer = box.start_proxy(ready=False)
                try:
                    box.proxy = newcomer.wait_ready()
                except Failed:
                    pass  # the other one has its port still
            assert old.wait_exit() == 0
            assert registered(box) == [box.proxy.worker]
        assert_proxied(box, server)


@case
def seventeen_proxies_are_one_too_many():
    """A slot a network namespace, and sixteen slots: the next one says so."""
    with contextlib.ExitStack() as stack:
        box = stack.enter_context(Sandbox(proxy=None))
        for _ in range(16):
            with in_netns(stack.enter_context(new_netns())):
                box.start_proxy()
        assert len(registered(box)) == 16
        failing_start(box, ["16 proxies", "tproxy status"])


@case
def session_lines_can_be_switched_off():
    with Sandbox(proxy=("--log-sessions", "no")) as box, Server("10.77.0.1", banner) as server:
        assert_proxied(box, server)
        box.wait_no_records()
        box.proxy.stop()
        assert "session dst=" not in box.proxy.log()


@case
def a_hostile_process_name_cannot_forge_a_line():
    """comm is the client's to choose; in the log it is escaped."""
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        script = ("import ctypes, socket; ctypes.CDLL(None).prctl(15, b'a\\nx=\"y\\\\'); "
                  f"socket.create_connection({server.address!r}).close()")
        box.run(["/usr/bin/python3", "-c", script])
        ended = box.proxy.wait_log(f":{server.port} ")
        assert 'comm="a\\x0ax=\\x22y\\x5c"' in ended, ended


main()
