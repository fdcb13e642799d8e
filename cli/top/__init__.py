"""`trainwire top`: what is going on, looked at again and again."""
