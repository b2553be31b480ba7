"""What the store says when it can't."""

__all__ = ["StoreError"]


class StoreError(Exception):
    """A trace that can't be opened, found or read; says which and what to do."""
