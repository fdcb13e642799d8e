"""Everything that trainers and servers exchange (docs/wire-format.md): messages, heartbeats, stop requests."""
