"""Commands that list, show, change, copy or delete jobs."""
