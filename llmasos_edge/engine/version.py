"""The version of llama-cpp-python that all of this is written for: what is kept of its results is kept with it."""

from typing import Final

VERSION: Final = "0.3.36"  # structures pass by value: any other version corrupts memory
