"""What goes to the terminal beside results: notes, errors with hints and exit codes, and text made harmless."""

import json
import sys

import click

from llmasos_edge.errors import LLMasOSError

# Characters that a terminal obeys instead of showing: C0, DEL, C1, and changes of writing direction.
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
HIDDEN = (*range(0x20), *range(0x7F, 0xA0), *_BIDI)
_HARMLESS = {code: 0x2400 + code if code < 0x20 else 0xFFFD for code in HIDDEN if chr(code) not in "\t\n"}

EXIT_FAILED = 1
EXIT_CODES = {"unreachable": 3, "not_permitted": 4, "no_memory": 4, "queue_full": 4}
HINTS = {
    "deadline_exceeded": "give it more time with --deadline, or a higher --class",
    "engine_failed": "`llmasos dmesg` shows what happened; `llmasos model verify M` checks the model's file",
    "internal": "a bug: `llmasos dmesg` and the daemon's log (journalctl -u llmasosd) say more",
    "no_memory": "`llmasos mem` shows what takes the room; `llmasos model drop M` gives some back",
    "prompt_too_long": "shorten the text, or raise the model's `context` in the node file",
    "unknown_app": "`llmasos apps` lists the apps",
    "unknown_model": "`llmasos models` lists the models; `llmasos model pull M` gets one",
    "unknown_task": "`llmasos ps -a` lists the tasks",
    "unknown_session": "`llmasos sessions` lists them",
}


def harmless(text: str) -> str:
    """The text with visible stand-ins for everything that a terminal would obey."""
    return text.translate(_HARMLESS)


def note(message: str) -> None:
    """A line on stderr, so that stdout holds the answer alone."""
    click.echo(f"llmasos: {harmless(message)}", err=True)


def report(error: LLMasOSError, as_json: bool) -> int:
    """Tell an error: JSON on stdout for a program, words and a hint on stderr. Returns the exit code."""
    if as_json:
        click.echo(json.dumps({"status": "error", "error": error.wire()}))
    sys.stdout.flush()
    note(f"{error.code}: {error.message}")
    if error.code in HINTS:
        note(HINTS[error.code])
    if error.retry_after_ms is not None:
        note(f"try again in {error.retry_after_ms / 1000:g} s")
    return EXIT_CODES.get(error.code, EXIT_FAILED)
