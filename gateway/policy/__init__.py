"""Policies: YAML in, one immutable ``Policy`` out. Swapped whole, never edited in place."""
