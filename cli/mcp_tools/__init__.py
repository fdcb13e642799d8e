"""The read-only tools of `trainwire mcp` (docs/mcp.md)."""
