"""A store as a trace: its stages, what is critical, what it costs beside others."""
