"""Requests of the SDK over HTTPS: decoding, checks of jobs and tokens, and execution in Redis."""
