"""The JSON documents of the HTTP API: types, examples, and the queries for documents of jobs."""
