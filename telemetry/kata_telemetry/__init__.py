"""Spans, propagation, clock, store, export and views; the only importer of opentelemetry."""
