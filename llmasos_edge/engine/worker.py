"""A worker process: one model, a compute thread (the main one), and a front thread for prompts and formats."""

import ctypes
import mmap
import os
import signal
import socket
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Final

from llmasos_edge.engine import sandbox
from llmasos_edge.engine.answer_text import AnswerText
from llmasos_edge.engine.chat import ChatTemplate, Prompt
from llmasos_edge.engine.gang import Gang
from llmasos_edge.engine.grammar import grammar_of, parse_answer
from llmasos_edge.engine.kv_pool import PREFIX_MIN, KvPool
from llmasos_edge.engine.llama import STEP_TOKENS, L, LlamaModel, buffers
from llmasos_edge.engine.load_progress import LoadProgress
from llmasos_edge.engine.mailbox import Mailbox
from llmasos_edge.engine.protocol import (
    Answer,
    Command,
    Forget,
    Frames,
    Load,
    Prepare,
    Program,
    Resize,
    SwitchIn,
    SwitchOut,
    send,
)
from llmasos_edge.engine.sampling import Sampler
from llmasos_edge.engine.stepper import Stepper
from llmasos_edge.engine.switcher import Switcher
from llmasos_edge.engine.work import Work
from llmasos_edge.errors import LLMasOSError, Panic
from llmasos_edge.kernel.hal import Died, Finished, Loaded, Loading, Prepared, Quantum, Refused, Resized
from llmasos_edge.kernel.units import TaskId, Tokens

SWITCH_INTERVAL_S: Final = 0.0005  # the front thread gives the GIL back to the compute thread this soon
PR_SET_PDEATHSIG: Final = 1  # prctl(2)
WARM_UP_TOKENS: Final = 32  # 128 of them would take a minute on the slowest boards, more than a load may
STEPS_MEASURED: Final = 4
OOM_SCORE: Final = "500"  # the kernel kills a worker before the daemon (proc_pid_oom_score_adj(5))


class Worker:
    def __init__(self, connection: socket.socket, arena: mmap.mmap, load: Load, closed: str) -> None:
        """`closed` says what its sandbox is made of. Raises EngineFailed if the model or its context can't be made."""

        self._connection, self._arena, self._load, self._closed = connection, arena, load, closed
        self._sending = threading.Lock()
        self._works: dict[TaskId, Work] = {}
        self._progress = LoadProgress(lambda fraction: self._send(Loading(load.model, fraction)))
        self._progress.read(Path(load.path))
        self._model = LlamaModel(Path(load.path), repack=load.repack)
        self._memory = _memory()
        bos, eos = (int(f(self._model.vocabulary)) for f in (L.llama_vocab_bos, L.llama_vocab_eos))
        names = {"bos": self._model.special_text(bos), "eos": self._model.special_text(eos)}
        self._chat = ChatTemplate(self._model.chat_template, **names)
        self._pool = KvPool(self._model, load, arena)
        self._gang = Gang()
        self._switcher = Switcher(self._pool, arena, self._send)
        self._stepper = Stepper(self._model, self._pool, self._gang, self._switcher.proceed, self._send, self._finish)
        self._mailbox = Mailbox(connection, closed=lambda: os._exit(0))

    def _send(self, message: Answer) -> None:
        with self._sending:
            try:
                send(self._connection, message)
            except BrokenPipeError:  # the daemon's end is closed; while the model is loaded, only this tells it
                os._exit(0)

    # ---- compute thread

    def run(self) -> None:
        self._send(Loaded(self._load.model, self._warm_up()))
        self._mailbox.start()
        threading.Thread(target=self._front, name="front", daemon=True).start()
        while True:
            self._arena[0] = 0  # first: an interrupt from here on comes with a command that is not yet taken
            for command in self._mailbox.commands(wait=not self._stepper.leased):
                self._obey(command)
            self._stepper.step()

    def _warm_up(self) -> dict[str, object]:
        """Compute a chunk and a few single tokens: touches every buffer, and measures what a step costs.

        The first step reads the weights, and lets the gang see whether all its threads have a core.
        """
        self._warm_up_step(0, STEPS_MEASURED)
        prefill = self._warm_up_step(STEPS_MEASURED, WARM_UP_TOKENS)
        start = STEPS_MEASURED + WARM_UP_TOKENS
        steps = [self._warm_up_step(position, 1) for position in range(start, start + STEPS_MEASURED)]
        context = self._pool.context
        context.clear()
        return {
            "prefill_ms": prefill * 1000 / WARM_UP_TOKENS,
            "step_ms": median(steps) * 1000,
            "cells": context.cells,
            "deterministic": "yes" if self._load.exact else "approximate",
            "step_tokens": STEP_TOKENS,
            "sandbox": self._closed,
            "attention": self._model.attention,
            "memory": self._memory | {"buffers": _buffer_bytes("compute", "output")},
        }

    def _warm_up_step(self, position: int, count: int) -> float:
        """Seconds that so many tokens from a position on took."""
        started = time.perf_counter()
        self._pool.context.use_threads(self._gang.threads(self._load.threads))
        self._pool.context.decode([(0, [1] * count, position, True)])
        took = time.perf_counter() - started
        self._gang.ran(took, self._load.threads)
        self._progress.warmed_up((position + count) / (WARM_UP_TOKENS + 2 * STEPS_MEASURED))
        return took

    def _obey(self, command: Command | Answer) -> None:
        match command:
            case Quantum():
                self._stepper.lease(command, self._works)
            case SwitchIn():
                self._switcher.switch_in(self._works[command.task], command.sequence, command.pieces)
            case SwitchOut():
                work = self._works[command.task]
                self._stepper.remove(work)
                self._switcher.switch_out(work, command.save)
            case Forget():
                self._forget(command.task)
            case Resize():
                started = time.perf_counter()
                self._pool.rebuild(command.cells)
                took_ms = (time.perf_counter() - started) * 1000
                self._send(Resized(self._load.model, Tokens(self._pool.context.cells), took_ms))
            case _:
                raise Panic(f"Worker._obey: a {type(command).__name__}")

    def _forget(self, task: TaskId) -> None:
        work = self._works.pop(task, None)
        if work is None:
            self._mailbox.front.put(Forget(task))  # it is still being prepared, or was refused
            return
        self._stepper.remove(work)
        self._switcher.leave(work)
        work.sampler.close()

    def _finish(self, work: Work, reason: str) -> None:
        whole = reason == "stop" and not work.answer.stopped
        if work.program.format is not None and whole:
            self._mailbox.front.put(work)  # checking it may take long: other tasks' steps must not wait
        else:
            self._send(Finished(work.task, reason))

    # ---- front thread

    def _front(self) -> None:
        while True:
            item = self._mailbox.front.get()
            if isinstance(item, Prepare):
                self._admit(item)
            elif isinstance(item, Forget):
                unwanted = self._works.pop(item.task, None)
                if unwanted is not None:
                    unwanted.sampler.close()
            elif item.program.format is not None:
                value, error = parse_answer(item.answer.whole, item.program.format)
                self._send(Finished(item.task, "stop", value, error.wire() if error else None))

    def _admit(self, prepare: Prepare) -> None:
        try:
            work = self._prepare(prepare)
        except LLMasOSError as error:
            self._send(Refused(prepare.task, error.wire()))
            return
        self._works[work.task] = work
        self._send(Prepared(work.task, Tokens(work.prompt), work.prefix, Tokens(work.shared)))

    def _prepare(self, prepare: Prepare) -> Work:
        program = prepare.program
        prefix, shared = 0, 0
        if program.messages is not None:
            prompt = self._chat.prompt(program.messages, self._model)
            tokens, (prefix, shared) = prompt.tokens, _prefix(prompt, program)
        else:
            tokens = self._model.tokenize(program.prompt or "", special=False, begin=True)
        if not tokens:
            tokens = self._model.tokenize("\n", special=False)
        sampler = Sampler(self._model, program.sampling, grammar_of(program.format))
        limit = min(program.max_tokens, self._load.context - len(tokens))
        answer = AnswerText(program.sampling.stop)
        return Work(prepare.task, program, tokens, limit, sampler, answer, len(tokens), prefix, shared)


def _prefix(prompt: Prompt, program: Program) -> tuple[int, int]:
    """Number and length of what a conversation shares with others that begin alike: of everyone if it is the model's or
    the node's, else of its owner alone. The number is a hash of whose it is and what.
    """
    length = min(prompt.system, len(prompt.tokens) - 1)
    if length < PREFIX_MIN:
        return 0, 0
    owner = program.owner if prompt.written and not program.public else ""
    told = owner.encode() + b"\0" + prompt.tokens[:length].tobytes()
    return int.from_bytes(blake2b(told, digest_size=7).digest()), length


def _memory() -> dict[str, int]:
    """Once the model is loaded: bytes of repacked weights, and of all else that is this process's own (proc(5)).

    By way of a task of its own, which is what the sandbox leaves of /proc.
    """
    lines = Path(f"/proc/self/task/{os.getpid()}/status").read_text().splitlines()
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "VmPTE:")))
    repacked = _buffer_bytes("REPACK model")
    return {"repacked": repacked, "runtime": own - repacked}


def _buffer_bytes(*kinds: str) -> int:
    """Allocated, whether touched yet or not."""
    return sum(size for name, size in buffers().items() if name.endswith(kinds))


def _receive_load(connection: socket.socket) -> Load:
    """The first message; nothing follows it before the worker has answered."""
    frames = Frames()
    while True:
        data = connection.recv(1 << 16)
        if not data:
            sys.exit(0)
        for message in frames.feed(data):
            if isinstance(message, Load):
                return message
            raise Panic(f"_receive_load: a {type(message).__name__}")


def _die(failure: threading.ExceptHookArgs) -> None:
    """A worker that has lost one of its threads is of no use: the daemon makes another one."""
    threading.__excepthook__(failure)
    os._exit(1)


def main() -> None:
    """usage: python -m llmasos_edge.engine.worker SOCKET_FD ARENA_FD"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the daemon's to act on
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.excepthook = _die
    connection = socket.socket(fileno=int(sys.argv[1]))
    arena_fd = int(sys.argv[2])
    arena = mmap.mmap(arena_fd, os.fstat(arena_fd).st_size)
    load = _receive_load(connection)
    try:
        worker = Worker(connection, arena, load, sandbox.enter(Path(load.path)))
    except LLMasOSError as error:
        send(connection, Died(load.model, error.message))
        return
    worker.run()


if __name__ == "__main__":
    main()
