"""Upstreams: whoever can answer a request. One file per dialect, behind ``base.Upstream``."""
