"""Small real servers that keep the rules of the outside ones, for tests."""
