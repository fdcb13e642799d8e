"""HTTP layer between sockets and routes: timeouts, proxies, limits, origins, responses and problem documents."""
