"""The kernel's units: a number or a name that can't be mistaken for another."""

from enum import IntEnum
from typing import NewType

TaskId = NewType("TaskId", str)  # "<boot>-<number>", unique over restarts
ModelId = NewType("ModelId", str)
SessionId = NewType("SessionId", str)
ClientId = NewType("ClientId", str)
SequenceId = NewType("SequenceId", int)  # a sequence of one model's context
SegmentId = NewType("SegmentId", int)  # of saved KV state, unique over restarts
Bytes = NewType("Bytes", int)
Tokens = NewType("Tokens", int)
Milliseconds = NewType("Milliseconds", int)  # durations, and moments on the kernel's monotonic clock


class Priority(IntEnum):
    """Priority classes; the greater value is the more urgent."""

    BATCH = 0
    NORMAL = 1
    INTERACTIVE = 2
    CRITICAL = 3
