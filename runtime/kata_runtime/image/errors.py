"""What goes wrong with guest images."""

__all__ = ["ImageError"]


class ImageError(Exception):
    """The guest image can't be built or used. The message says what and where, `hint` what to do about it."""

    exit_code = 125

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
