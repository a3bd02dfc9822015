"""Tests of a real node that records its workload: lengths and times are there, not a word of what was said."""

from pathlib import Path

from llmasos_edge.services.workload import read
from llmasos_edge.simulate.replay import Replay
from tests.integration.conftest import MakeNode

SECRET = "The heron sleeps under the copper bridge"


def test_a_node_records_what_it_was_asked(make_node: MakeNode, tmp_path: Path) -> None:
    """Each task with its lengths, the machine with its measured rates; a replay ends every task."""
    node, file = make_node(), tmp_path / "node.workload"
    node.config.write_text(node.config.read_text().replace("spec:\n", f"spec:\n  scheduler: {{record: {file}}}\n"))
    node.start()
    reply = node.ask(SECRET, max_tokens=12)
    node.ask(f"{SECRET} and wakes", max_tokens=5, **{"class": "interactive"})
    process = node.process
    assert process is not None
    process.terminate()
    assert process.wait(30) == 0

    workload = read(file)
    first, second = workload.arrivals
    usage = reply["usage"]
    assert (first.prompt, first.output, first.max_tokens) == (usage["prompt_tokens"], usage["completion_tokens"], 12)
    assert second.priority == "interactive"
    assert first.outcome is not None
    assert 0 < (first.outcome.response_ms or 0) <= first.outcome.turnaround_ms
    (model,) = workload.header.machine.models
    assert model.rates.step_ms + model.rates.generate_ms > 0
    assert model.load_ms > 0
    assert b"heron" not in file.read_bytes()
    assert reply["output"]["text"].encode() not in file.read_bytes()
    assert [life.ended for life in Replay(workload, "priority").run().lives] == ["ok", "ok"]
