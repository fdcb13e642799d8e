"""`trainwire top`: periodic snapshots of streams, sinks, workers and jobs, shown as tables."""
