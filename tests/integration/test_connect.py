# SPDX-License-Identifier: BSD-2-Clause
"""Connections through the hooks and tproxyd: who reaches whom, and what either sees."""

import contextlib
import ctypes
import errno
import os
import pathlib
import signal
import socket
import struct

from harness import (PROXY_PORT, PROXY_PORTS, UNHELD, Failed, Sandbox, Server, UNPRIVILEGED, banner, case,
                     case_for, echo, free_port, hello, in_netns, line, main, new_netns, redirected,
                     refusal, run, silent, wait_for)

V4, V6 = socket.AF_INET, socket.AF_INET6

# Kind of connection -> (server's address, address the client dials, client's family).
KINDS = {
    "IPv4": ("10.77.0.1", "10.77.0.1", V4),
    "IPv6": ("fd77::1", "fd77::1", V6),
    "v4-mapped": ("10.77.0.1", "::ffff:10.77.0.1", V6),
    "IPv4 loopback": ("127.0.0.1", "127.0.0.1", V4),
    "IPv6 loopback": ("::1", "::1", V6),
}


@case_for(KINDS)
def a_client_reaches_its_server_through_the_proxy(serves, dials, family):
    with Sandbox() as box, Server(serves, banner) as server:
        with box.connect((dials, server.port), family) as client:
            assert line(client) == f"{serves} {server.port}"
            assert client.getpeername()[:2] == (dials, server.port)
            session = box.records()[0]
            assert session["dst"]["port"] == server.port
        shown = f"[{serves}]" if ":" in serves else serves
        ended = box.proxy.wait_log(f"dst={shown}:{server.port}")
        assert f"pid={os.getpid()} " in ended and "uid=0 " in ended, ended
        counters = box.counters()
        assert counters["redirected"] == counters["accepted"], counters
        box.wait_no_records()


@case_for({"IPv4": ("10.77.0.2", "10.77.0.2"), "IPv6": ("fd77::2", "[fd77::2]"),
           "v4-mapped": ("10.77.0.2", "[::ffff:10.77.0.2]")})
def curl(serves, host):
    with Sandbox() as box, Server(serves, hello) as server:
        got = box.run(["curl", "-sS", "-g", f"http://{host}:{server.port}/"]).stdout
        assert got == f"hello from {serves} {server.port}\n", got
        ended = box.proxy.wait_log('comm="curl"')
        assert f":{server.port} " in ended, ended


@case_for({"IPv4": ("10.77.0.", 4), "IPv6": ("fd77::", 6)})
def two_source_addresses_with_one_port_reach_each_their_own_server(network, _version):
    one, two = Server(f"{network}8", banner), Server(f"{network}9", banner)
    with Sandbox() as box, one, two:
        clients = []
        for source, server in ((f"{network}1", one), (f"{network}2", two)):
            client = box.socket(V6 if ":" in network else V4)
            client.bind((source, 5555))
            client.connect(server.address)
            clients.append((client, server))
        assert len(box.map("ports")) == 2
        for client, server in clients:
            assert line(client) == "{} {}".format(*server.address)
            client.close()


@case
def the_record_says_who_connects_to_where():
    with Sandbox() as box, Server("10.77.0.3", silent) as server:
        client = box.popen([*UNPRIVILEGED, "curl", "-sS", f"http://10.77.0.3:{server.port}"])
        record = wait_for(lambda: [one for one in box.records() if one["src"]["port"]],
                          "curl's connection, and its port")[0]
        assert record["pid"] == client.pid, record
        assert record["uid"] == record["gid"] == 65534, record
        assert record["comm"] == "curl", record
        assert record["cgroup_id"] == os.stat(box.clients).st_ino, record
        assert record["dst"] == {"ip": [0] * 10 + [255, 255, 10, 77, 0, 3], "port": server.port,
                                 "family": V4}, record
        assert record["src"]["family"] == V4, record
        assert record["proxy_port"] - PROXY_PORT in range(PROXY_PORTS), record
        client.kill()
        client.wait()
        box.wait_no_records()


@case
def a_process_outside_of_the_cgroup_is_untouched():
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        before = box.counters()
        with socket.create_connection(server.address) as client:
            line(client)
            assert not redirected(client)
        assert box.counters() == before


@case
def another_network_namespace_in_the_cgroup_is_untouched():
    """Its loopback has no listener of ours: redirecting there would cut it off."""
    with Sandbox() as box, new_netns() as other:
        with in_netns(other):
            server = Server("10.77.0.1", banner)
        before = box.counters()
        with server, in_netns(other), box.connect(server.address) as client:
            assert line(client) == f"10.77.0.1 {server.port}"
            assert not redirected(client)
        after = box.counters()
        assert after["redirected"] == before["redirected"], after
        assert after["no_listener"] == before["no_listener"] + 1, after


@case
def a_second_proxy_serves_its_own_namespace():
    with Sandbox() as box, new_netns() as other:
        with in_netns(other):
            server = Server("10.77.0.1", banner)
            second = box.start_proxy()
        with server, in_netns(other), box.connect(server.address) as client:
            line(client)
            assert redirected(client) and server.peers == [client.getsockname()]
        second.wait_log(f"dst=10.77.0.1:{server.port}")
        assert f":{server.port} " not in box.proxy.log()


@case
def a_squatter_on_the_port_gets_nothing():
    """Nobody but a holder of map_listeners can make a listener that clients are sent to."""
    squatter = ("import socket; s = socket.create_server(('127.0.0.1', {0})); "
                "t = socket.create_server(('::1', {0}), family=socket.AF_INET6); "
                "print('ready', flush=True); s.accept(); print('caught', flush=True)")
    with Sandbox(proxy=None) as box, Server("10.77.0.1", banner) as server:
        thief = box.popen([*UNPRIVILEGED, "/usr/bin/python3", "-c", squatter.format(PROXY_PORT)],
                          stdout=-1)
        assert thief.stdout.readline() == b"ready\n"
        with box.connect(server.address) as client:
            assert line(client) == f"10.77.0.1 {server.port}"
            assert client.getpeername() == server.address
        assert box.counters()["untrusted_listener"] == 1
        assert box.counters()["redirected"] == 0
        thief.kill()
        assert b"caught" not in thief.communicate()[0]


def assert_resets(client, address):
    """The reset may come before connect() has returned."""
    try:
        client.connect(address)
        raise Failed(f"no reset, but {client.recv(1)!r}")
    except ConnectionResetError:
        pass


@case_for({"IPv4": ("127.0.0.1", V4), "IPv6": ("::1", V6), "v4-mapped": ("::ffff:127.0.0.1", V6)})
def a_direct_connection_to_the_proxy_port_is_reset(address, family):
    with Sandbox() as box:
        before = box.counters()
        with box.socket(family) as client:
            assert_resets(client, (address, PROXY_PORT))
        after = box.counters()
        assert after["to_proxy"] == before["to_proxy"] + 1, after
        assert after["accepted_unknown"] == before["accepted_unknown"] + 1, after
        assert after["own_connection"] == before["own_connection"], "the proxy dialled"


@case
def a_direct_connection_from_outside_is_reset():
    with Sandbox() as box:
        before = box.counters()
        with socket.socket() as client:
            assert_resets(client, ("127.0.0.1", PROXY_PORT))
        assert box.counters()["accepted_unknown"] == before["accepted_unknown"] + 1


@case
def udp_is_left_alone():
    with Sandbox() as box, socket.socket(V4, socket.SOCK_DGRAM) as server:
        server.bind(("10.77.0.1", 0))
        with box.socket(V4, socket.SOCK_DGRAM) as client:
            client.connect(server.getsockname())
            client.send(b"datagram")
            assert server.recv(100) == b"datagram"
            assert client.getpeername() == server.getsockname()
        assert box.counters()["not_tcp"] == 1


@case
def a_socket_bound_to_a_device_is_left_alone():
    with Sandbox() as box, Server("127.0.0.1", banner) as server:
        with box.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            client.connect(server.address)
            line(client)
            assert not redirected(client)
        assert box.counters()["bound_device"] == 1


IP_TRANSPARENT = 19
IPV6_FREEBIND = 78


@case
def a_transparent_socket_with_a_source_of_its_own_is_left_alone():
    """What answers come to it is told by routes and rules that know of it."""
    run(["ip", "route", "add", "local", "10.66.0.0/24", "dev", "lo"])
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        with box.socket() as client:
            client.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            client.bind(("10.66.0.5", 0))
            client.connect(server.address)
            line(client)
            assert not redirected(client)
            assert server.peers[-1][0] == "10.66.0.5"
        assert box.counters()["transparent"] == 1
        with box.socket() as client:
            client.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            client.connect(server.address)
            assert redirected(client)


@case
def a_source_that_no_interface_has_is_the_one_the_server_sees():
    run(["ip", "-6", "route", "add", "local", "fd66::/64", "dev", "lo"])
    with Sandbox() as box, Server("fd77::1", banner) as server:
        with box.socket(socket.AF_INET6) as client:
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            client.bind(("fd66::5", 0))
            client.connect(server.address)
            line(client)
            assert redirected(client)
            assert server.peers[-1][0] == "fd66::5"


def at_once(box, address):
    """What connect() says without waiting."""
    with box.socket(V6 if ":" in address[0] else V4) as client:
        client.setblocking(False)
        return client.connect_ex(address)


@case_for({"IPv4": ("10.67.0.1", "32"), "IPv6": ("fd67::1", "128")})
def a_destination_that_was_reached_is_looked_up_again_when_its_route_goes(address, bits):
    def change(what, check=True):
        run(["ip", "addr", what, f"{address}/{bits}", "dev", "lo"], check)

    change("add")
    try:
        with Sandbox() as box, Server(address, banner) as server:
            with box.connect(server.address) as client:
                assert redirected(client)
            assert any(entry["value"] for entry in box.map("checked"))
            for _ in range(2):
                assert at_once(box, server.address) == errno.EINPROGRESS
                change("del")
                wait_for(lambda: at_once(box, server.address) == errno.ENETUNREACH, "no route")
                change("add")
                wait_for(lambda: at_once(box, server.address) == errno.EINPROGRESS, "the route")
            assert box.counters()["no_route"] >= 2
    finally:
        change("del", check=False)


@case
def a_destination_that_was_reached_does_not_stand_for_another():
    """Nor one that differs by what changes of the routes add to the count of them."""
    others = [f"{low:x}00::ffff:a43:1" for low in range(1, 16)]
    for other in others:
        run(["ip", "addr", "add", f"{other}/128", "dev", "lo"])
    try:
        with Sandbox() as box:
            before = box.config()["changes"]
            for other in others:
                assert at_once(box, (other, 4242)) == errno.EINPROGRESS
            run(["ip", "addr", "add", "10.67.0.9/32", "dev", "lo"])
            wait_for(lambda: box.config()["changes"] > before, "the route to be known")
            assert at_once(box, ("10.67.0.1", 4242)) == errno.ENETUNREACH
            run(["ip", "addr", "del", "10.67.0.9/32", "dev", "lo"])
    finally:
        for other in others:
            run(["ip", "addr", "del", f"{other}/128", "dev", "lo"])


@case
def a_destination_that_was_reached_is_left_alone_once_it_has_failed():
    with Sandbox(proxy=(*UNHELD, "--native-retry", "1m")) as box:
        with Server("10.77.0.1", banner) as server:
            for _ in range(2):
                with box.connect(server.address) as client:
                    line(client)
        with contextlib.suppress(ConnectionResetError), box.connect(server.address) as client:
            raise Failed(f"no reset, but {client.recv(100)!r}")
        assert not box.counters()["failed_before"]
        box.proxy.wait_log("end=connect-failed")
        with box.socket() as client:
            assert client.connect_ex(server.address) == errno.ECONNREFUSED
        assert box.counters()["failed_before"] == 1


@case
def whom_a_failure_does_not_concern_leaves_it_to_others():
    """One that chose its source may have a local port where others have none."""
    with Sandbox() as box, Server("10.77.0.1", banner) as server:
        netns = box.config()["proxies"][0]["netns"]
        key = struct.pack("=Q12s4sHHI", netns, bytes(10) + b"\xff\xff",
                          socket.inet_aton("10.77.0.1"), server.port, 0, 0)
        value = struct.pack("=QII", 1 << 62, errno.EADDRNOTAVAIL, 0)
        run(["bpftool", "map", "update", "pinned", box.pins / "map_failed", "key", "hex",
             *key.hex(" ").split(), "value", "hex", *value.hex(" ").split()])
        for _ in range(2):
            with box.socket() as client:
                client.bind(("10.77.0.1", 0))
                client.connect(server.address)
                assert redirected(client)
        if refusal() == errno.EPERM:
            return  # before Linux 5.18 it cannot be told to anybody
        assert at_once(box, server.address) == errno.EADDRNOTAVAIL
        assert box.counters()["no_local_port"] == 1


@case
def a_socket_connects_again_after_af_unspec():
    with Sandbox() as box, Server("10.77.0.1", banner) as one, Server("10.77.0.2", banner) as two:
        with box.socket() as client:
            client.connect(one.address)
            assert line(client) == f"10.77.0.1 {one.port}"
            disconnect(client)
            client.connect(two.address)
            assert redirected(client)
            assert line(client) == f"10.77.0.2 {two.port}"
            assert client.getpeername() == two.address
        box.wait_no_records()


def disconnect(client):
    """connect(AF_UNSPEC), which Python's socket module cannot say."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(client.fileno(), bytes(16), 16):
        raise Failed(f"connect(AF_UNSPEC): {os.strerror(ctypes.get_errno())}")


@case
def a_refused_attempt_leaves_the_socket_usable():
    """getpeername must not answer from a record of the attempt that failed."""
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=None) as box:
        with Server("10.77.0.1", echo) as server, box.socket() as client:
            assert client.connect_ex(server.address) == refusal()
            box.start_proxy()
            client.connect(server.address)
            assert client.getpeername() == server.address
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"


ONE_PORT = ("--ports", "1")
PORT_RANGE = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")  # of this namespace


def connect_after_the_hook_fails(box, taken, wanted):
    """
    Two sockets with one port to choose from, for two servers: on the way to a port of the proxy's
    they are the same connection, so the second connect() fails between the hook and the SYN. Gives both sockets.
    """
    pair, before = [box.socket() for _ in range(2)], PORT_RANGE.read_text()
    port = free_port("10.77.0.1")
    PORT_RANGE.write_text(f"{port} {port}")
    try:
        pair[0].connect(taken)
        assert pair[1].connect_ex(wanted) == errno.EADDRNOTAVAIL
        assert len(box.map("socks")) == 2
    finally:
        PORT_RANGE.write_text(before)
    return pair


@case
def a_connect_that_fails_after_the_hook_leaves_no_record():
    with Sandbox(load=ONE_PORT) as box, Server("10.77.0.2", banner) as one, \
            Server("10.77.0.3", banner) as two:
        good, bad = connect_after_the_hook_fails(box, one.address, two.address)
        bad.close()
        wait_for(lambda: len(box.map("socks")) == 1, "the record of the failed attempt to go")
        assert line(good) == f"10.77.0.2 {one.port}"
        good.close()
        box.wait_no_records()


@case
def getpeername_does_not_answer_from_an_attempt_that_failed():
    with Sandbox(load=ONE_PORT) as box, Server("10.77.0.2", banner) as one, \
            Server("10.77.0.3", banner) as two:
        good, bad = connect_after_the_hook_fails(box, one.address, ("10.77.0.4", 80))
        box.proxy.stop(signal.SIGKILL)
        bad.connect(two.address)  # direct
        assert bad.getpeername() == two.address
        good.close()
        bad.close()


@case
def a_socket_made_before_joining_the_cgroup_is_untouched():
    with Sandbox() as box, Server("10.77.0.1", banner) as server, socket.socket() as client:
        before = box.counters()
        with box.inside():
            client.connect(server.address)
        assert line(client) == f"10.77.0.1 {server.port}"
        assert box.counters() == before


@case
def a_socket_made_inside_is_intercepted_outside():
    with Sandbox() as box, Server("10.77.0.1", banner) as server, box.socket() as client:
        client.connect(server.address)
        assert line(client) == f"10.77.0.1 {server.port}"
        assert redirected(client) and server.peers == [client.getsockname()]


@case
def connections_are_spread_over_the_ports():
    """One port to choose from, and a connection through each port of the proxy's."""
    with Sandbox() as box, Server("10.77.0.1", echo) as server, contextlib.ExitStack() as open_ones:
        ports = {}
        def all_met():
            client = open_ones.enter_context(box.connect(server.address))
            client.sendall(b"x")
            assert client.recv(1) == b"x" and redirected(client)
            for record in box.records():
                ports[record["proxy_port"]] = ports.get(record["proxy_port"], 0) + 1
            return set(ports) == set(range(PROXY_PORT, PROXY_PORT + PROXY_PORTS))
        wait_for(all_met, "a client at each port")


@case
def a_port_that_a_stranger_has_is_done_without():
    with Sandbox(proxy=None) as box, Server("10.77.0.1", banner) as server, \
            socket.create_server(("127.0.0.1", PROXY_PORT + 2)) as stranger:
        box.proxy = box.start_proxy()
        assert f"127.0.0.1:{PROXY_PORT + 2}" in box.proxy.log(), box.proxy.log()
        for _ in range(4 * PROXY_PORTS):
            with box.connect(server.address) as client:
                assert line(client) == f"10.77.0.1 {server.port}"
                assert redirected(client)
        stranger.setblocking(False)
        try:
            stranger.accept()
            raise Failed("the stranger got a client")
        except BlockingIOError:
            pass


@case
def an_attempt_that_the_kernel_refuses_leaves_no_record():
    """The hook has run by then; and the socket has the address of an earlier attempt."""
    wrong = struct.pack("=H", 0x7777) + struct.pack("!H4s8x", 80, socket.inet_aton("10.77.0.1"))
    with Sandbox() as box:
        with box.socket() as client:
            client.setblocking(True)  # else the error of one attempt is told to the next
            assert client.connect_ex(("127.0.0.2", 0)) == errno.ECONNREFUSED
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.connect(client.fileno(), wrong, len(wrong)) == -1
            assert ctypes.get_errno() == errno.EAFNOSUPPORT, ctypes.get_errno()
        box.wait_no_records()


main()
