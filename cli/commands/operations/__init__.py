"""Commands that inspect and operate the servers: deliveries, dead letters, retention, alerts, checks."""
