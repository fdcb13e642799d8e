"""Small real servers with the rules of the external ones, for tests."""
