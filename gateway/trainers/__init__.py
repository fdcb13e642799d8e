"""Messages that trainers send over HTTPS with the SDK: checks, the names of jobs, and the streams."""
