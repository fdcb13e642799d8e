"""What was said and is not yet acked, on the disk: it outlives its process and the stores it is meant for."""
