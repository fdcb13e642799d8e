"""HTTP around the routes: limits, origins, proxies, time-outs, problem documents."""
