"""`trace serve`: many traces in a browser, from this machine alone."""
