"""Servers of the streams and of the broker: addresses, TLS and clients."""
