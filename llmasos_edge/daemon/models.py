"""The node's models on disk: listed, pulled, added, verified, removed; on worker threads."""

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec

from llmasos_edge.api.calls import Json, Progressed
from llmasos_edge.engine.gguf import read_header
from llmasos_edge.errors import Internal, LLMasOSError
from llmasos_edge.services.disk import Progress, Report
from llmasos_edge.services.store import ModelStore, StoredModel

log = logging.getLogger(__name__)


class NodeModels:
    def __init__(self, store: ModelStore, configured: Iterable[str]) -> None:
        self._store = store
        self.configure(configured)
        self._pulling = threading.Lock()

    def configure(self, names: Iterable[str]) -> None:
        """The models that the node file names."""
        self._configured = tuple(names)

    def listing(self) -> list[Json]:
        names = sorted({*self._configured, *self._store.names()})
        return [self._row(name) for name in names]

    def _row(self, name: str) -> Json:
        stored = self._store.find(name)
        if stored is None:
            return {"id": name, "state": "missing"}
        return _shape(stored) | {
            "licence": stored.licence,
            "source": stored.source,
            "selftest": stored.selftest,
            "memory": msgspec.to_builtins(stored.memory),
        }

    def missing(self) -> list[str]:
        """Configured models that are not on disk."""
        return [name for name in self._configured if self._store.find(name) is None]

    def pull(self, model: str, progress: Progressed) -> Json:
        with self._pulling:
            return _shape(self._store.pull(model, _report(progress)))

    def add(self, path: str, name: str, progress: Progressed) -> Json:
        """Raises StoreError for a file that is no GGUF, or not whole."""
        read_header(Path(path))
        return _shape(self._store.add(Path(path), name, report=_report(progress)))

    def verify(self, model: str, progress: Progressed) -> Json:
        return _shape(self._store.verify(model, _report(progress))) | {"state": "verified"}

    def remove(self, model: str) -> Json:
        self._store.remove(model)
        return {"id": model, "state": "removed"}


class Errands:
    """Slow work on threads of its own; what comes of it is told on the kernel's thread."""

    def __init__(self, post: Callable[[Callable[[], object]], None]) -> None:
        self._post = post
        self._threads: set[threading.Thread] = set()

    def run(
        self, work: Callable[[], object], done: Callable[[object], None], failed: Callable[[LLMasOSError], None]
    ) -> None:
        def errand() -> None:
            try:
                result = work()
            except LLMasOSError as error:
                self._post(partial(failed, error))
            except Exception as error:  # an edge: whatever one errand does, who waits for it must hear of it
                log.exception("an errand failed")
                self._post(partial(failed, Internal(f"{type(error).__name__}: {error}")))
            else:
                self._post(partial(done, result))

        self._begin(errand)

    def aside(self, work: Callable[[], object]) -> None:
        """Work that nobody waits for."""
        self.run(work, lambda _: None, lambda error: log.error("%s", error.message))

    def _begin(self, errand: Callable[[], None]) -> None:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        thread = threading.Thread(target=errand, name="errand", daemon=True)  # a download must not hold up the end
        self._threads.add(thread)
        thread.start()


def _shape(stored: StoredModel) -> Json:
    return {"id": stored.name, "sha256": stored.sha256, "size": stored.size}


def _report(progress: Progressed) -> Report:
    def report(at: Progress) -> None:
        progress({"stage": at.stage, "done": at.done, "total": at.total})

    return report
