# SPDX-License-Identifier: BSD-2-Clause
"""The scenarios: each is one function, run for every family and mode that it is registered for."""

FAMILIES = ("v4", "v6", "mapped")
MODES = ("blocking", "non-blocking")

scenarios, needed = {}, {}


def scenario(families=FAMILIES, modes=MODES, needs=None):
    """
    Registers a function of a Stage; its name, with spaces, is the scenario's name. `needs`: a probe of
    what not every kernel has.
    """
    def register(function):
        name = function.__name__.replace("_", " ")
        assert name not in scenarios, name
        scenarios[name] = (function, families, modes)
        if needs:
            needed[name] = needs
        return function
    return register


def scenario_for(rows, families=FAMILIES, modes=MODES):
    """Registers a scenario for each row {name: arguments}."""
    def register(function):
        for label, arguments in rows.items():
            name = f"{function.__name__.replace('_', ' ')}, {label}"
            assert name not in scenarios, name
            scenarios[name] = (lambda stage, arguments=arguments: function(stage, *arguments),
                               families, modes)
        return function
    return register


def runs():
    """(name, family, mode) of every run."""
    return [(name, family, mode) for name, (_, families, modes) in scenarios.items()
            for family in families for mode in modes]
