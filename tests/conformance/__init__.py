# SPDX-License-Identifier: BSD-2-Clause
"""
The client cannot tell: scenarios that are run twice, directly and through the proxy, and whose
transcripts must be equal.

	stage.py	what a scenario acts on: sockets, addresses, the transcript
	registry.py	the list of scenarios and of the families and modes they run for
	connecting.py, failing.py, names.py, ends.py, urgent.py, options.py: the scenarios
	torture.py	random sessions
	worlds.py	the two network namespaces and the workers in them
	reflector.py	hosts behind a TUN device that answer a SYN as a far host or router does
	uring.py	connect() by io_uring
	run.py		comparison

What is not compared, because two connections in a row cannot be one:

- that an established connection fails with ETIMEDOUT (TCP_USER_TIMEOUT, keepalive) when its server
  falls silent: the client's packets are acknowledged by the proxy, and no packet can make an
  established socket fail with anything but ECONNRESET;
- SIOCOUTQ and SO_LINGER as a proof that the server has everything, for the same reason;
- whether TCP Fast Open saves a round trip: data goes with the SYN only where there is a cookie of
  that server, and through the proxy it follows the handshake;
- TCP_MD5SIG and TCP-AO, whose keys are bound to the address of the peer;
- the moment at which an ICMP error of this host's own firewall is told (failing.py).
"""
