"""kata-trace-forwarder: takes agents' spans from many guests and brings them to a collector. See docs/tracing.md."""
