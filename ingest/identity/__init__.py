"""The number and the name of a job without chosen ones, and how child processes find them."""
