"""Integrations: one module per library. The import of one module never imports another (docs/integrations.md)."""
