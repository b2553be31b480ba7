"""OpenTelemetry's SDK at work: the one room that imports it as a whole, and is imported where spans are written."""
