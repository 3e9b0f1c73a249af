# SPDX-License-Identifier: BSD-2-Clause
"""The bench: what a connection costs through the proxy, its peers, and directly."""
