"""The sandbox's own store of spans: one directory for each trace."""
