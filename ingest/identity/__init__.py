"""The number and the name of a job, where nobody chose them, and how child processes find them."""
