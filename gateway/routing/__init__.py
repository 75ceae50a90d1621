"""Routing: which request is easy enough for the small model.

Knows texts, vectors and quality targets. Does not know HTTP, tenants, money or models' names.
"""

from gateway.routing.router import Router, Score

__all__ = ["Router", "Score"]
