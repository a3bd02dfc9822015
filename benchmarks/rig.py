"""A worker without a daemon: its WorkerHost, and every message of it with the moment at which it came."""

import os
import queue
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

from benchmarks.node import MODEL, model_file
from llmasos_edge.engine.host import WorkerHost
from llmasos_edge.engine.protocol import Answer, Command, Load, Message, Prepare, Program, Sampling
from llmasos_edge.errors import Panic
from llmasos_edge.kernel.hal import Died, Loaded, Piece, Prepared, Quantum, Report, Save, Saved, Slot
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, Extent
from llmasos_edge.kernel.units import Bytes, Milliseconds, ModelId, SegmentId, SequenceId, TaskId, Tokens

ARENA: Final = Bytes(64 << 20)
PATIENCE_S: Final = 120.0
ENDLESS_MS: Final = 3_600_000
STEP: Final = 512  # prompt tokens of a step
M = TypeVar("M")


class Rig:
    """A context: a loaded worker inside it. Times are seconds of time.perf_counter()."""

    def __init__(self, cells: int = 8192, sequences: int = 16) -> None:
        self.threads = len(os.sched_getaffinity(0))
        self._load = Load(
            model=ModelId(MODEL),
            path=str(model_file()),
            context=4096,
            cells=cells,
            sequences=sequences,
            kv="q8_0",
            exact=False,
            threads=self.threads,
        )
        self._told: queue.SimpleQueue[tuple[float, Answer | Command]] = queue.SimpleQueue()
        self._numbers = 0

    def __enter__(self) -> Self:
        self._memory = os.memfd_create("arena")
        os.ftruncate(self._memory, CONTROL_PAGE + ARENA)
        self.host = WorkerHost(self._load, self._memory, _no_programs, lambda _, message: self._hear(message))
        self.wait(Loaded)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.host.stop()
        self.host.join()
        os.close(self._memory)

    def _hear(self, message: Answer | Command) -> None:
        self._told.put((time.perf_counter(), message))

    def wait(self, kind: type[M], fits: Callable[[M], bool] = lambda _: True) -> tuple[float, M]:
        """The next message of a kind that `fits`, and when it came; what comes before it is dropped."""
        while True:
            try:
                moment, message = self._told.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise Panic(f"Rig.wait: no {kind.__name__} in {PATIENCE_S:.0f} s") from None
            if isinstance(message, Died):
                raise Panic(f"Rig.wait: the worker died: {message.why}")
            if isinstance(message, kind) and fits(message):
                return moment, message

    # ---- tasks

    def prepare(self, name: str, prompt: str, system: str = "") -> tuple[float, int]:
        """Have a greedy task made, a conversation if it has a system prompt, whose owner is then the same for all: how
        long it took, and the tokens of its prompt.
        """
        sampling, most = Sampling(temperature=0.0), 100_000
        if system:
            messages = (Message("system", system), Message("user", prompt))
            program = Program(sampling, most, messages=messages, owner="all")
        else:
            program = Program(sampling, most, prompt=prompt, owner=name)
        sent = time.perf_counter()
        self.host.command(Prepare(TaskId(name), program))
        moment, prepared = self.wait(Prepared, lambda it: it.task == name)
        return moment - sent, prepared.prompt_tokens

    def switch_in(self, name: str, sequence: int, *pieces: Piece) -> None:
        self.host.switch_in(TaskId(name), SequenceId(sequence), pieces)

    def save(self, name: str, start: int, extent: Extent) -> tuple[float, Piece]:
        """Take a task's sequence away, with its state from a token on saved: how long it took, and what that is."""
        sent = time.perf_counter()
        self.host.switch_out(TaskId(name), Save(SegmentId(1), Tokens(start), extent))
        moment, it = self.wait(Saved)
        return moment - sent, Piece(it.segment, extent, it.size, it.start, it.end, it.checksum)

    def grant(self, *names: str, decode: int = 100_000, ms: int = ENDLESS_MS) -> int:
        """A lease for these tasks, of any prefill; its number."""
        self._numbers += 1
        slots = tuple(Slot(TaskId(name), Tokens(STEP * 100), Tokens(decode)) for name in names)
        self.host.grant(Quantum(self._numbers, slots, Tokens(STEP), Milliseconds(ms), self.threads))
        return self._numbers

    def compute(self, *names: str, decode: int) -> tuple[float, str]:
        """Run a lease to its end: seconds from the grant, and the text that came of it."""
        sent, text = time.perf_counter(), ""
        number = self.grant(*names, decode=decode)
        while True:
            moment, report = self.wait(Report)
            text += "".join(text for progress in report.progress for text in progress.text)
            if report.idle and report.number == number:
                return moment - sent, text

    def settle(self) -> float:
        """Until the worker has done all that was commanded so far, with no lease left; seconds."""
        return self.compute(decode=0)[0]

    def first_token(self, name: str) -> float:
        """The moment at which a report tells of a task's first token."""
        return self.wait(Report, lambda it: any(p.task == name and p.generated for p in it.progress))[0]

    def forget(self, *names: str) -> None:
        for name in names:
            self.host.forget(TaskId(name))


def _no_programs(_: object) -> Program:
    raise Panic("Rig: tasks are prepared by their programs here")


def prompt_of(rig: Rig, tokens: int) -> str:
    """A plain text of just so many tokens."""
    text = " ".join(f"Day {day}: the keeper saw {day} ships." for day in range(tokens // 15))
    found = rig.prepare("measured", text)[1]
    rig.forget("measured")
    return text + " sea" * (tokens - found)
