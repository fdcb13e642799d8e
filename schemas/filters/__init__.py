"""The query language that filters and sorts jobs and selects their columns."""
