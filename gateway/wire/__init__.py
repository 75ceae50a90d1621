"""The wire, sans-I/O: bytes in, values out, and back. No socket, no clock, no randomness."""
