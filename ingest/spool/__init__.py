"""The spool: files on the trainer's disk that hold messages until they are acknowledged."""
