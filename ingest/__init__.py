"""The trainer's side: takes values from a run, spools them to the disk, and sends them until acknowledged."""
