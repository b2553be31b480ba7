"""`kata-runtime trace` and `metrics`."""
