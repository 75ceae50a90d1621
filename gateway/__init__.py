"""Tollhouse: an AI gateway. Start with ``gateway/README.md``."""

__version__ = "0.1.0"
