"""The gateway: what Postgres knows of jobs, and what happens to them, over HTTP, WebSocket and a page."""
