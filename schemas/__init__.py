"""The shared contract: messages and their encoding, Redis keys, events, and Postgres tables."""
