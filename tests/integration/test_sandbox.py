"""Tests of the sandbox from inside: attempts in a live worker that fail, and work that goes on all the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos_edge.engine import sandbox
from llmasos_edge.kernel.hal import Finished, Loaded, Refused
from tests.integration.captive import ATTEMPTS
from tests.integration.worker_rig import Rig

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}
MODEL = Path(os.environ["LLMASOS_MODELS"]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def captive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A worker with the default model, beside whose file another one lies, in a whole sandbox."""
    folder = tmp_path_factory.mktemp("captive")
    (folder / "model.gguf").hardlink_to(MODEL)
    (folder / "secret").write_text("of another model")
    rig = Rig(folder / "model.gguf", module="tests.integration.captive")
    made_of = rig.wait(Loaded).details["sandbox"]
    assert made_of == sandbox.FULL, f"this kernel has {made_of} only: what the rest denies can't be shown"
    yield rig
    rig.host.stop()
    rig.host.join()


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_it_fails(captive: Rig, attempt: str) -> None:
    """Landlock says EACCES, seccomp EPERM."""
    task = captive.prepare(attempt, attempt)
    assert captive.wait(Refused, lambda event: event.task == task).error["message"] in ("EACCES", "EPERM")
    captive.host.forget(task)


def test_the_worker_works(captive: Rig) -> None:
    """It answers, also by a schema, whose checker is imported only then."""
    for number in range(2):
        task = captive.start(f"schema-{number}", text="How many legs has a cat?", format=SCHEMA, tokens=60)
        captive.grant(task)
        finished = captive.wait(Finished)
        assert isinstance(finished.data, dict), finished
        assert finished.data["n"] >= 0
        captive.host.forget(task)
    assert len(captive.alone("text", text="Count from one to ten.", tokens=40)) > 20


@pytest.mark.parametrize(
    ("lacking", "left"),
    [
        ("sandbox.CREATE_RULESET = 9999", "seccomp"),  # no such system call: a kernel without Landlock
        ("seccomp.MACHINES = {}", "landlock"),
        ("sandbox.CREATE_RULESET = 9999; seccomp.MACHINES = {}", "none"),
    ],
)
def test_what_a_kernel_lacks_is_told(tmp_path: Path, lacking: str, left: str) -> None:
    """The rest closes all the same: nothing can be written under either of them."""
    program = f"""
from pathlib import Path
from llmasos_edge.engine import sandbox, seccomp
{lacking}
print(sandbox.enter(Path("model")))
try:
    Path({str(tmp_path / "made")!r}).touch()
except PermissionError:
    print("denied")
"""
    words = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert words == [left, *["denied"] * (left != "none")]
    assert (tmp_path / "made").exists() == (left == "none")


def test_a_worker_sees_how_long_its_threads_wait() -> None:
    """The gang goes by that (engine/gang.py), of its own process alone."""
    program = """
from pathlib import Path
from llmasos_edge.engine import sandbox
from llmasos_edge.engine.gang import waits
sandbox.enter(Path("model"))
print(len(waits()))
try:
    Path("/proc/1/task/1/schedstat").read_text()
except PermissionError:
    print("denied")
"""
    words = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert words == ["1", "denied"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel forgets on root's word only")
def test_it_still_sees_that_when_memory_was_short() -> None:
    """The kernel then forgets all names of /proc that nobody has open, and the rule was for what they stood for."""
    program = """
from pathlib import Path
from llmasos_edge.engine import sandbox
from llmasos_edge.engine.gang import waits
print(sandbox.enter(Path("model")), flush=True)
input()
print(len(waits()))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(4):  # what was used lately is spared in the first rounds
            Path("/proc/sys/vm/drop_caches").write_text("2")
        assert process.communicate("\n")[0] == "1\n"


def test_other_threads_would_stay_outside() -> None:
    """So a process that has some does not believe itself in the sandbox."""
    program = """
import threading
from pathlib import Path
from llmasos_edge.engine import sandbox
threading.Thread(target=threading.Event().wait, daemon=True).start()
sandbox.enter(Path("model"))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Panic: sandbox.enter" in answer.stderr
