"""The spool: messages on the trainer's disk until they are acknowledged."""
