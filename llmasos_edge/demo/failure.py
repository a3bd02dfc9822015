"""How a step of the demo fails."""


class DemoFailed(Exception):
    """What went wrong, in words for the person who started the demo."""
