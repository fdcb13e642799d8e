"""What trainwire costs and what it reaches, as ratios of one run: `make bench`."""
