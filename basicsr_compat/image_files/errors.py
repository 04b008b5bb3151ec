"""What a file fails with that cannot be used as an image."""


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message says why."""
