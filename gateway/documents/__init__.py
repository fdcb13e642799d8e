"""The JSON documents of the HTTP API: their types, their examples, and how those of jobs are made."""
