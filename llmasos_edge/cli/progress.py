"""How far a long call has come, on stderr: one moving line on a terminal, a line per stage in a log."""

import sys
from types import TracebackType
from typing import Any, Self

import click

from llmasos_edge.cli.render import size
from llmasos_edge.cli.terminal import harmless

BAR_CELLS = 24


class Progress:
    """Shows the `progress` events of one call: {stage, done, total}, in bytes, or {stage, fraction}."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage: str | None = None
        self._moving = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moving and self._stage is not None:
            click.echo(err=True)

    def show(self, progress: dict[str, Any]) -> None:
        stage = harmless(str(progress["stage"]))
        if self._moving:
            click.echo(f"\r\033[K{self._name}: {stage} {self._amount(progress)}", err=True, nl=False)
        elif stage != self._stage:
            click.echo(f"{self._name}: {stage}", err=True)
        self._stage = stage

    def _amount(self, progress: dict[str, Any]) -> str:
        done, total = progress.get("done") or 0, progress.get("total")
        fraction = progress.get("fraction", done / total if total else None)
        if fraction is None:
            return size(done) if done else ""
        cells = min(BAR_CELLS, int(fraction * BAR_CELLS))
        share = f"[{'█' * cells}{'·' * (BAR_CELLS - cells)}] {int(100 * fraction)} %"
        return f"{share} of {size(total)}" if total else share
