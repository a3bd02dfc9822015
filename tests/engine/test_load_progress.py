"""Tests of a load's progress: the file's part, then the warm-up's, and not too often."""

from pathlib import Path

from llmasos_edge.engine.load_progress import EVERY_S, PIECE_BYTES, READING, LoadProgress


def test_it_grows_from_the_file_to_the_warm_up(tmp_path: Path) -> None:
    """In proportion to what is read, then to what is computed; the last word is Loaded's."""
    file, told, clock = tmp_path / "m.gguf", list[float](), iter(range(100))
    file.write_bytes(bytes(4 * PIECE_BYTES))
    progress = LoadProgress(told.append, clock=lambda: float(next(clock)))
    progress.read(file)
    progress.warmed_up(0.5)
    assert told == [round(READING * part / 4, 3) for part in (1, 2, 3, 4)] + [round((1 + READING) / 2, 3)]


def test_a_fast_load_tells_little(tmp_path: Path) -> None:
    """At most one word each tenth of a second."""
    file, told, moments = tmp_path / "m.gguf", list[float](), [0.0]
    file.write_bytes(bytes(50 * PIECE_BYTES))

    def clock() -> float:
        moments.append(moments[-1] + EVERY_S / 10)
        return moments[-1]

    LoadProgress(told.append, clock).read(file)
    assert 4 <= len(told) <= 5
