"""The contract of all processes: messages, their wire format, Redis keys and tables. Imports no other folder."""
