"""Upstreams: whoever can answer a request. Each provider dialect is one file behind ``base.Upstream``."""
