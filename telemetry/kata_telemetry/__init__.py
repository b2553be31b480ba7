"""Spans, propagation, clock, store, export and views; the only importer of opentelemetry."""

__version__ = "0.1.0"
