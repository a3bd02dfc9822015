"""The kernel's thread: the only one that touches the kernel; everyone else posts to it."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from llmasos_edge.errors import LLMasOSError
from llmasos_edge.kernel.dispatcher import Dispatcher
from llmasos_edge.kernel.units import Milliseconds

log = logging.getLogger(__name__)
CALLS_A_ROUND: Final = 256
IDLE_S: Final = 60.0  # without work, timers or a watchdog the thread sleeps this long

Timer = tuple[Callable[[], Milliseconds | None], Callable[[Milliseconds], None]]  # when next, and what


def monotonic_ms() -> Milliseconds:
    return Milliseconds(time.monotonic_ns() // 1_000_000)


class KernelLoop:
    """`timers` are asked for their next moment after each round. `alive` is called every `alive_s`, from the loop."""

    def __init__(self, broken: Callable[[BaseException], None]) -> None:
        """`broken` is told of a Panic or any other bug of ours: the node must not go on."""
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._broken = broken
        self._thread = threading.Thread(target=self._run, name="kernel")
        self._dispatcher: Dispatcher | None = None
        self._timers: list[Timer] = []

    def start(self, dispatcher: Dispatcher, timers: list[Timer]) -> None:
        self._dispatcher = dispatcher
        self._timers = [(dispatcher.next_tick, dispatcher.tick), *timers]
        self._thread.start()

    def post(self, call: Callable[[], object]) -> None:
        """Have it called on the kernel's thread; from any thread, never blocks."""
        self._inbox.put(call)

    def ask(self, call: Callable[[], object]) -> None:
        """The same, and wait until it was called."""
        done = threading.Event()

        def run() -> None:
            try:
                call()
            finally:
                done.set()

        self.post(run)
        done.wait()

    def stop(self) -> None:
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told before the thread ends
            self._broken(error)

    def _round(self) -> bool:
        """Wait for something to do, do it, then dispatch once."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            return False
        more = True
        for call in self._calls():
            if call is None:
                more = False
                break
            try:
                call()
            except LLMasOSError:
                log.exception("a call to the kernel failed without a caller to tell")
        now = monotonic_ms()
        for due, tick in self._timers:
            moment = due()
            if moment is not None and moment <= now:
                tick(now)
        dispatcher.dispatch(now)
        return more

    def _calls(self) -> Iterator[Callable[[], object] | None]:
        """Wait until a timer is due or something is posted; then what there is, as long as dispatch is not held up."""
        moments = [moment for due, _ in self._timers if (moment := due()) is not None]
        timeout = IDLE_S if not moments else max(0.0, (min(moments) - monotonic_ms()) / 1000)
        with suppress(queue.Empty):
            yield self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
            for _ in range(CALLS_A_ROUND):
                yield self._inbox.get_nowait()
