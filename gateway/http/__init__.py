"""Everything between a socket and the routes: timeouts, proxies, limits, origins, responses and problems."""
