# SPDX-License-Identifier: BSD-2-Clause
"""Test suites of other projects, run directly and through the proxy; see docs/suites.md."""
