"""What the commands about traces tell the person at the keyboard."""

__all__ = ["TelemetryError"]


class TelemetryError(Exception):
    """Something that can't be done; the message says what, where, and what to do."""
