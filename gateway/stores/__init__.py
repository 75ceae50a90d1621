"""The only key-value I/O: keys, limits and small states. In-process, SQLite and Redis."""
