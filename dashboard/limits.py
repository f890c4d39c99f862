"""Where the gates of a suite would turn red in a history: the bound on one metric of one case, in its unit.

    limit_of(newest, "higher", level=48.0)      # 46.56: the suite lets 3% less pass; None where no gate judges it

Gates are those that the suite declares. A statistical one, and a bound that is relative, count from the level given;
exact gates have no limit to draw.
"""

from __future__ import annotations

from dashboard.rows import SummaryLine
from harness import registry
from harness.core import Better, UsageError, Workload
from harness.gate_rules import declared_limit
from harness.gates import applicable


def limit_of(line: SummaryLine, better: Better, level: float) -> float | None:
    """The bound of the gate that judges this line's metric; `level`: what a change is relative to."""
    registry.load_all()
    suite = registry.SUITES.get(line.suite)
    if suite is None or better == "neither":
        return None
    try:
        workload = Workload.parse(line.workload)
    except UsageError:  # a workload that is not of our form: no gate can name it
        return None
    gate = applicable(suite.gates, workload, line.model, line.variant).get(line.metric)
    if gate is None or gate.kind == "exact":
        return None
    if gate.kind == "bound" and gate.limit is not None:
        return gate.limit
    change = gate.margin if gate.kind == "bound" else declared_limit(gate)
    upwards = (better == "lower") == (gate.fails != "better")
    return None if change is None else level * (1 + change if upwards else 1 - change)
