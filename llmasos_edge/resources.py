"""Where the files that ship beside the code are, in a checkout and in an installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(folder: str) -> Path:
    """The folder `board` or `configs`: in the package where it was built into a wheel, else at the checkout's top."""
    packed = _PACKAGE / "data" / folder
    return packed if packed.is_dir() else _PACKAGE.parent / folder
