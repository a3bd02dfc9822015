"""Every error that callers can see, and the two that only developers see.

LLMasOSError                 code                what it says
├── BadRequest               bad_request         names the field
├── UnknownModel             unknown_model
├── UnknownApp               unknown_app
├── UnknownTask              unknown_task
├── UnknownSession           unknown_session
├── NotPermitted             not_permitted
├── PromptTooLong            prompt_too_long     both counts
├── NoMemory                 no_memory           needed, budget, what would fit
├── QueueFull                queue_full          retry_after_ms
├── DeadlineExceeded         deadline_exceeded   the text so far, in details
├── Cancelled                cancelled
├── EngineFailed             engine_failed
├── ShuttingDown             shutting_down       retry_after_ms
├── StoreError               store               models on disk: hash, space, network
├── ConfigError              config              file, line, key, "did you mean"
├── Unreachable              unreachable         no daemon behind the socket
└── Internal                 internal
Panic                        a broken invariant: "function: fact"; never caught inside the kernel
"""

from collections.abc import Mapping
from typing import ClassVar


class LLMasOSError(Exception):
    """An error with a stable code, a message that says what to do, and optional details (JSON values)."""

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, object] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details) if details else None
        self.retry_after_ms = retry_after_ms

    def wire(self) -> dict[str, object]:
        """The `error` object of a reply."""
        shape: dict[str, object] = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            shape["retry_after_ms"] = self.retry_after_ms
        if self.details is not None:
            shape["details"] = self.details
        return shape


class BadRequest(LLMasOSError):
    code = "bad_request"


class UnknownModel(LLMasOSError):
    code = "unknown_model"


class UnknownApp(LLMasOSError):
    code = "unknown_app"


class UnknownTask(LLMasOSError):
    code = "unknown_task"


class UnknownSession(LLMasOSError):
    code = "unknown_session"


class NotPermitted(LLMasOSError):
    code = "not_permitted"


class PromptTooLong(LLMasOSError):
    code = "prompt_too_long"


class NoMemory(LLMasOSError):
    code = "no_memory"


class QueueFull(LLMasOSError):
    code = "queue_full"


class DeadlineExceeded(LLMasOSError):
    code = "deadline_exceeded"


class Cancelled(LLMasOSError):
    code = "cancelled"


class EngineFailed(LLMasOSError):
    code = "engine_failed"


class ShuttingDown(LLMasOSError):
    code = "shutting_down"


class StoreError(LLMasOSError):
    code = "store"


class ConfigError(LLMasOSError):
    code = "config"


class Unreachable(LLMasOSError):
    code = "unreachable"


class Internal(LLMasOSError):
    code = "internal"


class Panic(RuntimeError):
    """A broken invariant: a bug of ours, not of a caller. Its text is "function: fact"."""


BY_CODE: dict[str, type[LLMasOSError]] = {
    kind.code: kind
    for kind in (
        BadRequest,
        UnknownModel,
        UnknownApp,
        UnknownTask,
        UnknownSession,
        NotPermitted,
        PromptTooLong,
        NoMemory,
        QueueFull,
        DeadlineExceeded,
        Cancelled,
        EngineFailed,
        ShuttingDown,
        StoreError,
        ConfigError,
        Unreachable,
        Internal,
    )
}


def from_wire(shape: Mapping[str, object]) -> LLMasOSError:
    """The error that an `error` object of a reply stands for (an unknown code becomes Internal)."""
    kind = BY_CODE.get(str(shape.get("code")), Internal)
    details = shape.get("details")
    retry = shape.get("retry_after_ms")
    return kind(
        str(shape.get("message", "")),
        details=details if isinstance(details, Mapping) else None,
        retry_after_ms=retry if isinstance(retry, int) else None,
    )
