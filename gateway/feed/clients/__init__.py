"""Clients of the feed: WebSocket and server-sent events."""
