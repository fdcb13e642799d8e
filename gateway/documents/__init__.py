"""The JSON documents that the gateway sends."""
