"""A simulated provider that speaks OpenAI's HTTP interface: for demos, load tests and our tests.

Deterministic: the same seed and request give the same answer, which says that it is simulated.
Faults can be asked for by name, per request or for a share of them. Counts exactly what it has
written, so that bookings can be reconciled with it. Knows no gateway.
"""

from gateway.simulator.faults import FAULTS
from gateway.simulator.server import Served, Simulator

__all__ = ["FAULTS", "Served", "Simulator"]
