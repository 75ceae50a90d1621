"""What a tenant's own people see of the books: what they are charged, and never what we pay.

Cost is left out, and so is what it could be told from: a saving is the baseline less the cost, so
theirs is measured at their own tariff instead. Pure. Does not know who is asking.
"""

import msgspec

from gateway.ledger.reports import Summary
from gateway.money import scale_half_even
from gateway.policy.snapshot import Charging

_PPM = 1_000_000


def as_charged(figures: Summary, charging: Charging | None) -> Summary:
    """The same sums without our cost, and savings by the tenant's charge.

    charging: the tenant's terms today; None: it has none any more, and no savings are told.
    """
    if charging is None:
        return msgspec.structs.replace(
            figures, cost_pico=0, baseline_pico=0, saved_cache_pico=0, saved_routing_pico=0,
            overhead_pico=0, possible_cost_pico=0,
        )  # fmt: skip
    factor = _PPM + charging.markup_ppm
    return msgspec.structs.replace(
        figures,
        cost_pico=0,
        baseline_pico=scale_half_even(figures.baseline_pico, factor, _PPM),
        # A hit costs nothing and is charged its share of the baseline.
        saved_cache_pico=scale_half_even(
            figures.saved_cache_pico, factor - charging.cache_hits_ppm, _PPM
        ),
        saved_routing_pico=scale_half_even(figures.saved_routing_pico, factor, _PPM),
        overhead_pico=0,  # deciding is our expense
        possible_cost_pico=0,
    )
