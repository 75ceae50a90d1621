"""The admin port: pages for finance, the admin API, probes and metrics. No script is needed."""
