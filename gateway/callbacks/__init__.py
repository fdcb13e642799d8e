"""Callbacks: messages of trainers that send HTTP requests instead of using the SDK."""
