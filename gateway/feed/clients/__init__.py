"""Routes of the live feed: WebSocket and server-sent events."""
