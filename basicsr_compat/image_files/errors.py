"""The error for files that cannot be used as images."""


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message says why."""
