"""One function for each benchmark: it measures, and prints a table in Markdown."""
