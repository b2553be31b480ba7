"""What host and guest agree on, and what both need of Linux. Standard library only."""
