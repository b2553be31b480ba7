"""The table of faults: what is broken when, and what whoever runs a container is told (docs/faults.md)."""
