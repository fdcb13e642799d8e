"""Messages of trainers that use HTTP instead of the SDK."""
