"""The gateway: serves jobs and their live events over HTTP, WebSocket and a web page."""
