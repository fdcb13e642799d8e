"""Sends messages until the workers acknowledge them: buffer, message bodies, outbox, sender and transports."""
