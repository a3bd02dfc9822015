"""The figures as people read them: a row for each policy, and a row for each class under it."""

from collections.abc import Mapping, Sequence

from llmasos_edge.cli.render import Column, Row, duration, line, table
from llmasos_edge.services.workload import Workload
from llmasos_edge.simulate.statistics import ClassFigures, Figures, Times


def show(workload: Workload, results: Sequence[Figures], took: Mapping[str, float]) -> None:
    machine = workload.header.machine
    names = ", ".join(f"{model.name} ({model.sequences} sequences)" for model in machine.models)
    line(f"{len(workload.arrivals)} tasks · {workload.header.made_by}")
    line(f"{machine.cores} cores · {machine.budget >> 20} MiB · {names}")
    line("")
    table(POLICIES, [{"figures": each, "took": took[each.policy]} for each in results], "nothing was replayed")
    line("")
    rows = [
        {"policy": each.policy, "class": name, "figures": mine}
        for each in results
        for name, mine in (*each.classes.items(), ("all", each.all))
    ]
    table(CLASSES, rows, "no task came")


def _pair(title: str, times: str) -> Column:
    def value(row: Row) -> str:
        found: Times = getattr(_all(row["figures"]), times)
        return f"{duration(found.mean)}, {duration(found.p99)}"

    return Column(title, value, right=True)


def _all(figures: Figures | ClassFigures) -> ClassFigures:
    return figures.all if isinstance(figures, Figures) else figures


def _fairness(row: Row) -> str | None:
    found: float | None = row["figures"].fairness
    return None if found is None else f"{found:.2f}"


POLICIES = (
    Column("POLICY", lambda row: row["figures"].policy),
    Column("MAKESPAN", lambda row: duration(row["figures"].makespan_ms), right=True),
    _pair("TURNAROUND mean, p99", "turnaround"),
    Column("MISSED", lambda row: row["figures"].all.missed, right=True),
    Column("REFUSED", lambda row: row["figures"].all.unpromised, right=True),
    Column("FAILED", lambda row: row["figures"].all.failed, right=True),
    Column("FAIRNESS", _fairness, right=True),
    Column("PREEMPTED", lambda row: row["figures"].preemptions, right=True),
    Column("PARKED", lambda row: row["figures"].parked, right=True),
    Column("RESTORED", lambda row: row["figures"].restored, right=True),
    Column("SWAP out, in", lambda row: f"{row['figures'].swapped_out}, {row['figures'].swapped_in}", right=True),
    Column("LOADS", lambda row: row["figures"].loads, right=True),
    Column("REPLAYED IN", lambda row: f"{row['took']:.1f} s", right=True),
)
CLASSES = (
    Column("POLICY", lambda row: row["policy"]),
    Column("CLASS", lambda row: row["class"]),
    Column("TASKS", lambda row: row["figures"].tasks, right=True),
    _pair("TURNAROUND mean, p99", "turnaround"),
    _pair("WAITING mean, p99", "waiting"),
    _pair("RESPONSE mean, p99", "response"),
    Column("MISSED", lambda row: row["figures"].missed, right=True),
    Column("REFUSED", lambda row: row["figures"].unpromised, right=True),
)
