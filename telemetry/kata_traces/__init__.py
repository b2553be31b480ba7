"""Traces on the host: stored, sent, read, shown. Nothing of it is in the guest."""
