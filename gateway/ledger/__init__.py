"""The ledger: every request is booked once, whatever dies in between."""
