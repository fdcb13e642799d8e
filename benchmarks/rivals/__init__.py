"""The same training and the same faults with trainwire and with other trackers: docs/certificate.md."""
