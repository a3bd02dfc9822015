"""A segment's bytes, in the arena and in the swap file alike: a header, its tokens, and llama.cpp's state of them.

The checksum (CRC-32 over all of it) travels beside it: a worker computes it when it saves, and a worker compares it
when it restores. That the tokens before are the same is told by a hash of them.
"""

from __future__ import annotations  # array[int] exists for the type checker only

import ctypes
import struct
import zlib
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from llmasos_edge.errors import Panic

MAGIC: Final = b"LKVS"
VERSION: Final = 1
ALIGNMENT: Final = 64
_HEADER: Final = struct.Struct(
    "<4sIII8sQ"
)  # magic, version, first position, tokens, hash of those before, state's size
_TOKEN: Final = 4


class Segment:
    """What a room holds, once its header is found to be sound."""

    def __init__(self, start: int, before: bytes, tokens: array[int], state: memoryview) -> None:
        self._start, self._before, self._tokens, self.state = start, before, tokens, state

    def agreed(self, tokens: array[int], end: int) -> int:
        """Of a task's tokens up to `end`: how far this is their state."""
        if self._before != _hash(tokens[: self._start]):
            return self._start
        return self._start + common(self._tokens, tokens[self._start : end])


def write(room: memoryview, tokens: array[int], start: int, size: int, save: Callable[[int, int], int]) -> int:
    """Write the segment of tokens from `start` on, whose state `save(address, bytes)` copies and takes `size` bytes.

    How many bytes that are; 0: more than the room has.
    """
    count = len(tokens) - start
    at = _state_at(count)
    if at + size > len(room):
        return 0
    header = _HEADER.pack(MAGIC, VERSION, start, count, _hash(tokens[:start]), size)
    told = header + tokens[start:].tobytes()
    room[:at] = told.ljust(at, b"\0")
    if save(ctypes.addressof(ctypes.c_char.from_buffer(room, at)), size) != size:
        raise Panic(f"segment.write: the state does not have the {size} bytes that it was said to have")
    return at + size


def read(room: memoryview, start: int) -> Segment | None:
    """None: it is no segment of this format that begins at this token."""
    if len(room) < _HEADER.size:
        return None
    *told, count, before, size = _HEADER.unpack_from(room)
    at = _state_at(count)
    if told != [MAGIC, VERSION, start] or at + size != len(room):
        return None
    tokens = array("i", bytes(room[_HEADER.size : _HEADER.size + _TOKEN * count]))
    return Segment(start, before, tokens, room[at:])


def checksum(room: memoryview) -> int:
    return zlib.crc32(room)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(at for at in range(length) if one[at] != other[at])


def _state_at(count: int) -> int:
    return -(-(_HEADER.size + _TOKEN * count) // ALIGNMENT) * ALIGNMENT


def _hash(tokens: array[int]) -> bytes:
    return blake2b(tokens.tobytes(), digest_size=8).digest()
