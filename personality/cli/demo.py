"""`persona demo`."""


def demo() -> None:
    """Demo."""
