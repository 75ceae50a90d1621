"""A simulated provider for demos, load tests and our tests. It speaks OpenAI's HTTP interfaces
(chat and responses, by Azure's paths too) and Anthropic's messages.

Deterministic: the same seed and request give the same answer, which says that it is simulated.
Faults can be asked for by name, per request or for a share of them. Counts exactly what it has
written, so that bookings can be reconciled with it. Knows no gateway.
"""

from gateway.simulator.faults import FAULTS
from gateway.simulator.server import Served, Simulator

__all__ = ["FAULTS", "Served", "Simulator"]
