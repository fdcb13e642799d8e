"""The transports to the streams: a connection to Redis, and HTTPS requests to the gateway."""
