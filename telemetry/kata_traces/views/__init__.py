"""Ways to look at a trace."""
