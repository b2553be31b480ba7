"""Benchmarks: two things in one run, taking turns, compared as a ratio."""
