"""The language in which jobs are filtered, sorted and shown by column."""
