"""The trainer's side of trainwire: takes values from a training, spools them, sends them until acknowledged."""
