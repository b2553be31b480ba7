"""From the store to a collector."""
