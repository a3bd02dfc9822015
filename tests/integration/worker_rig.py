"""A real worker process behind its host, and what it told: for the tests of it."""

import os
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from llmasos_edge.engine.host import WorkerHost
from llmasos_edge.engine.protocol import (
    Answer,
    Command,
    Load,
    Message,
    Program,
    Sampling,
)
from llmasos_edge.kernel.hal import (
    Died,
    Finished,
    Piece,
    Prepared,
    Progress,
    Quantum,
    Report,
    Save,
    Saved,
    Slot,
)
from llmasos_edge.kernel.memory.extent import CONTROL_PAGE, Extent
from llmasos_edge.kernel.task import Submission, Task
from llmasos_edge.kernel.units import (
    ClientId,
    Milliseconds,
    ModelId,
    Priority,
    SegmentId,
    SequenceId,
    TaskId,
    Tokens,
)

PATIENCE_S = 60.0
EXTENT = Extent(4096, 4 << 20)
LONG = Milliseconds(60_000)
T = TypeVar("T")


def memfd() -> int:
    """A model's, as the daemon makes and keeps it."""
    memory = os.memfd_create("arena")
    os.ftruncate(memory, CONTROL_PAGE + (32 << 20))
    return memory


class Rig:
    """A worker with the 3-layer model, and what came from it."""

    def __init__(self, path: Path, context: int = 2048, module: str = "llmasos_edge.engine.worker") -> None:
        self.events: queue.SimpleQueue[Answer | Command] = queue.SimpleQueue()
        self.seen: list[Answer | Command] = []
        self._number = 0
        self.path = path
        load = Load(ModelId("tiny"), str(path), context, 4096, 16, "q8_0", False, 1)
        self.memory = memfd()
        self.host = WorkerHost(load, self.memory, self._program, lambda _model, event: self.events.put(event), module)

    def _program(self, task: Task) -> Program:
        assert isinstance(task.submission.program, Program)
        return task.submission.program

    def wait(self, kind: type[T], wanted: Callable[[T], bool] = lambda _: True) -> T:
        """The next event of a kind; others are passed over. The worker must not die meanwhile."""
        while True:
            event = self.events.get(timeout=PATIENCE_S)
            self.seen.append(event)
            if isinstance(event, kind) and wanted(event):
                return event
            assert not isinstance(event, Died), event.why

    def close(self) -> None:
        self.host.stop()
        self.host.join()
        os.close(self.memory)

    def prepare(
        self, name: str, text: str = "Tell me a story.", tokens: int = 12, system: str = "", **program: Any
    ) -> TaskId:
        sampling = Sampling(temperature=0.0, stop=program.pop("stop", ()))
        messages = (*([Message("system", system)] if system else []), Message("user", text))
        made = Program(sampling, tokens, messages=messages, **{"owner": name, **program})
        submission = Submission(ClientId("c"), ModelId("tiny"), made)
        self.host.prepare(Task(TaskId(name), submission, 0, Milliseconds(0), None, Priority.NORMAL))
        return TaskId(name)

    def start(self, name: str, sequence: int = 0, **program: Any) -> TaskId:
        task = self.prepare(name, **program)
        self.wait(Prepared, lambda event: event.task == task)
        self.host.switch_in(task, SequenceId(sequence), ())
        return task

    def save(self, task: TaskId, start: int = 0, extent: Extent = EXTENT) -> tuple[Piece, ...]:
        """Take the sequence away: what was saved of it."""
        self.host.switch_out(task, Save(SegmentId(1), Tokens(start), extent))
        self.host.interrupt()
        saved = self.wait(Saved)
        if not saved.size:
            return ()
        return (Piece(saved.segment, extent, saved.size, saved.start, saved.end, saved.checksum),)

    def progress(self, task: TaskId) -> Progress:
        """What was told of it last."""
        return [p for e in self.seen if isinstance(e, Report) for p in e.progress if p.task == task][-1]

    def run(self, *tasks: TaskId, decode: int) -> None:
        """A lease, to its end."""
        number = self.grant(*tasks, decode=decode)
        self.wait(Report, lambda event: event.idle and event.number == number)

    def grant(
        self, *tasks: TaskId, chunk: int = 512, decode: int = 4000, ms: Milliseconds = LONG, threads: int = 1
    ) -> int:
        slots = (Slot(task, Tokens(4000), Tokens(decode)) for task in tasks)
        return self.lease(*slots, chunk=chunk, ms=ms, threads=threads)

    def lease(self, *slots: Slot, chunk: int, ms: Milliseconds = LONG, threads: int = 1) -> int:
        self._number += 1
        self.host.grant(Quantum(self._number, slots, Tokens(chunk), ms, threads))
        return self._number

    def text(self, task: TaskId) -> str:
        parts = [part for event in self.seen if isinstance(event, Report) for part in event.progress]
        return "".join(text for part in parts if part.task == task for text in part.text)

    def finish(self, *tasks: TaskId) -> list[str]:
        """Wait for the ends of all, forget them, and give their texts."""
        left = set(tasks)
        while left:
            left.discard(self.wait(Finished).task)
        for task in tasks:
            self.host.forget(task)
        return [self.text(task) for task in tasks]

    def alone(self, name: str, **program: Any) -> str:
        """The text of an undisturbed run."""
        task = self.start(f"alone-{name}", **program)
        self.grant(task)
        return self.finish(task)[0]
