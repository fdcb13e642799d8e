"""The settings of a trainer; no other module of `ingest` reads their environment variables."""
