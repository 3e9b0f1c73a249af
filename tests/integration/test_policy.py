# SPDX-License-Identifier: BSD-2-Clause
"""No proxy to take a connection: the instance's failure policy decides."""

import signal
import socket

from harness import (Sandbox, Server, banner, case, case_for, line, main, redirected, refusal,
                     wait_for)

SERVERS = {"IPv4": ("10.77.0.1", socket.AF_INET, "10.77.0.1"),
           "IPv6": ("fd77::1", socket.AF_INET6, "fd77::1"),
           "v4-mapped": ("10.77.0.1", socket.AF_INET6, "::ffff:10.77.0.1")}


def assert_direct(box, server, dials, family):
    with box.connect((dials, server.port), family) as client:
        line(client)
        assert not redirected(client)
        assert client.getpeername()[:2] == (dials, server.port)


def assert_refused(box, server, dials, family):
    with box.socket(family) as client:
        assert client.connect_ex((dials, server.port)) == refusal()
        assert not server.peers, "the server was reached"


@case_for(SERVERS)
def direct_goes_out_untouched(serves, family, dials):
    with Sandbox(proxy=None) as box, Server(serves, banner) as server:
        assert_direct(box, server, dials, family)
        counters = box.counters()
        assert counters["passed_by_policy"] == counters["no_listener"] == 1, counters
        assert not box.map("socks")


@case_for(SERVERS)
def refuse_refuses(serves, family, dials):
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=None) as box:
        with Server(serves, banner) as server:
            assert_refused(box, server, dials, family)
        counters = box.counters()
        assert counters["refused_by_policy"] == counters["no_listener"] == 1, counters
        assert not box.map("socks")


@case_for({"stopped": (signal.SIGTERM,), "killed": (signal.SIGKILL,)})
def the_policy_holds_after_the_proxy_was(how):
    with Sandbox(load=("--on-proxy-down", "refuse")) as box:
        with Server("10.77.0.1", banner) as server:
            box.proxy.stop(how)
            assert_refused(box, server, "10.77.0.1", socket.AF_INET)
            box.load("--on-proxy-down", "direct")
            assert_direct(box, server, "10.77.0.1", socket.AF_INET)


@case
def a_squatter_changes_nothing_under_refuse():
    with Sandbox(load=("--on-proxy-down", "refuse"), proxy=None) as box:
        with Server("10.77.0.1", banner) as server, Server("127.0.0.1", banner, port=18000):
            assert_refused(box, server, "10.77.0.1", socket.AF_INET)
        assert box.counters()["untrusted_listener"] == 1


@case
def no_room_for_a_record_follows_the_policy():
    with Sandbox(load=("--max-connections", "2", "--on-proxy-down", "refuse")) as box:
        with Server("10.77.0.1", banner) as server:
            kept = [box.connect(server.address) for _ in range(2)]
            for client in kept:
                line(client)
            with box.socket() as third:
                assert third.connect_ex(server.address) == refusal()
            assert box.counters()["no_record_space"] == 1
            kept.pop().close()
            wait_for(lambda: len(box.map("socks")) == 1, "one record to go")
            with box.connect(server.address) as again:
                line(again)
            kept.pop().close()


@case
def a_killed_proxys_pid_exempts_nobody():
    """Its registration outlives it, but without a trusted listener nothing depends on it; the next
    proxy of the namespace takes its place."""
    with Sandbox() as box:
        old = [p["tgid"] for p in box.config()["proxies"] if p["tgid"]]
        assert old == [box.proxy.worker], old
        box.proxy.stop(signal.SIGKILL)
        new = box.start_proxy()
        assert [p["tgid"] for p in box.config()["proxies"] if p["tgid"]] == [new.worker]
        assert new.stop() == 0
        assert not [p for p in box.config()["proxies"] if p["tgid"]], "still registered"


main()
