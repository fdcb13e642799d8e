"""The trainer's side: takes what a run reports, keeps it on the disk, and sends it until it is acked."""
