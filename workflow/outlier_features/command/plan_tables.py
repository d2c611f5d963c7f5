"""A plan as tables to read."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from outlier_features.command.output import make_table
from outlier_features.wording import count

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def plan_parts(plan: Mapping[str, Any]) -> Iterator[Table | str]:
    yield from _models(plan["models"])
    yield from _runs(plan["runs"])
    jobs = ", ".join(f"{rule} {count}" for rule, count in plan["jobs"].items())
    yield f"{sum(plan['jobs'].values())} jobs where nothing is there yet: {jobs}"
    loads = "not known, since a model is not" if plan["loads"] is None else plan["loads"]
    yield f"loads of models: {loads}"
    yield from _times(plan["runs"])


def _models(models: Mapping[str, Any]) -> Iterator[Table | str]:
    known = {name: one for name, one in models.items() if "parameters" in one}
    if known:
        columns = ("model", "parameters", "active", "weights", "files", *(f"memory, {n}" for n in _placements(known)))
        rows = [
            (
                name + (f", {count(len(one['revisions']), 'revision')}" if "revisions" in one else ""),
                f"{one['parameters']:,}",
                _or_unknown(one["active_parameters"], "{:,}"),
                f"{in_bytes(one['bytes_of_weights'])} in {one['dtype']}",
                in_bytes(one["bytes_of_files"]),
                *(_need(need) for need in one["needs"].values()),
            )
            for name, one in known.items()
        ]
        size = in_bytes(next(iter(known.values()))["gpu_bytes"])
        yield make_table(
            "Models", columns, rows, f"Memory of a job that runs the model: CPU; with GPUs of {size} each, theirs too"
        )
    for name, one in models.items():
        if "unknown" in one:
            yield f"{name}: {one['unknown']}"
        elif "dump" in one:
            yield f"{name}: a dump of {in_bytes(one['bytes_of_files'])}, no model is run"


def _placements(known: Mapping[str, Any]) -> list[str]:
    return [*next(iter(known.values()))["needs"]]


def _need(need: Mapping[str, int]) -> str:
    return f"{in_bytes(need['memory'])}; GPU {need['gpus']} x {in_bytes(need['gpu_memory'])}"


def _runs(runs: list[Mapping[str, Any]]) -> Iterator[Table | str]:
    columns = (
        "run",
        "sequences",
        "FLOPs",
        "activations",
        "hits, bound",
        "neurons",
        "channels",
        "tables",
        "jobs",
        "loads",
    )
    rows = [
        (
            one["run"],
            f"{one['sequences']:,} x {one['tokens']:,}",
            _or_unknown(one["flops"].get("total"), "{:.3g}"),
            _activations(one["activations"]),
            in_bytes(one["activations"].get("hits_bytes")),
            _neurons(one["neurons"]),
            _channels(one["channels"]),
            in_bytes(one["tables_bytes"]),
            str(sum(one["jobs"].values())),
            _or_unknown(one["loads"], "{}"),
        )
        for one in runs
    ]
    yield make_table("Runs", columns, rows)
    if formula := next((one["flops"]["formula"] for one in runs if "formula" in one["flops"]), None):
        yield f"FLOPs of one forward pass of a run's tokens: {formula}"
    for one in runs:
        for what in ("flops", "activations"):
            if "unknown" in one[what]:
                yield f"{one['run']}: {what}: {one[what]['unknown']}"
        if left_out := one["activations"].get("uncounted"):
            yield f"{one['run']}: activations of {', '.join(left_out)} are not counted: only a pass tells their width"
    yield (
        "neurons: what a run keeps of them, a store and tables, and the store that each chunk leaves beside them, "
        "of the usual two classes of positions"
    )
    yield (
        "channels: of the inputs of linear layers, the run's statistics and what each chunk leaves beside them, at most"
    )
    yield (
        "hits: of values above fixed floors, at most, by detect.max_density and before compression; values that are "
        "large against a scale are not counted; tables: of an earlier run, not known before one"
    )


def _activations(found: Mapping[str, Any]) -> str:
    if "bytes" not in found:
        return "not known"
    text = in_bytes(found["bytes"]) if found["exact"] else f"at most {in_bytes(found['bytes'])}"
    return text if found.get("kept", True) else f"{text}, not written"


def _neurons(found: Mapping[str, Any]) -> str:
    if "count" not in found:
        return "not ranked" if found["unknown"].startswith("not ranked") else "not known"
    kept = in_bytes(found["bytes_of_store"] + found["bytes_of_tables"])
    return f"{found['count']:,}: {kept}, {found['chunks']} x {in_bytes(found['bytes_of_chunk'])}"


def _channels(found: Mapping[str, Any]) -> str:
    if "count" not in found:
        return "not recorded" if found["unknown"].startswith("not recorded") else "not known"
    kept, of_chunk = in_bytes(found["bytes_of_statistics"]), in_bytes(found["bytes_of_chunk"])
    return f"{found['count']:,}: {kept}, {found['chunks']} x {of_chunk}"


def _times(runs: list[Mapping[str, Any]]) -> Iterator[str]:
    for one in runs:
        expected = one["expected"]
        if expected is None:
            yield f"{one['run']}: hours are not known before a run has left benchmarks in these results"
            continue
        text = f"{one['run']}: about {expected['hours']:.2g} hours here, one job after the other"
        earlier = expected["measured"]
        text += f", in proportion to what {earlier} took" if expected["scaled"] else ", as it took before"
        yield text + (f"; without {', '.join(expected['unknown'])}" if expected["unknown"] else "")


def in_bytes(size: int | None) -> str:
    """With three digits and a decimal unit."""
    if size is None:
        return "not known"
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"


def _or_unknown(value: Any, form: str) -> str:
    return "not known" if value is None else form.format(value)
