"""Definitions, Agreement: the same numbers whatever the chunks, the batch, the cores, the order and what is kept.

Runs, compared cell by cell and bit by bit; moments to 1e-9, in another order to 1e-6. Each table of
`public_tables` is among them.
"""

import json
import random
import struct
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest

from outlier_features.compare.failures_schema import FAILURES
from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.models_schema import MODELS
from outlier_features.dims.comparison_schema import COMPARED_DIMS, COMPARISON
from outlier_features.files.tables import public_tables
from outlier_features.files.tensorfile import TensorFile
from outlier_features.run.costs_schema import COSTS

# Sums of floats, whose last bit depends on the order of additions.
MOMENTS = {"mean", "rms", "std", "kurtosis", "kurtosis_flat_excess", "kurtosis_token", "kurtosis_channel_rms"}
COMPARED = {"comparison/dims", "comparison/compared_dims", "comparison/models"}
COMPARISONS = {COMPARISON.name, COMPARED_DIMS.name, MODELS.name, FAILURES.name, FIRST_STEPS.name}
ON_REQUEST = {
    "knock_outs",
    "knock_out_dims",
    "spikes",
    "triggers",
    "logit_attribution",
    "logit_attribution_tokens",
    "quantization_loss",
    "quantization_loss_sequences",
    "quantization_sensitivity",
    "quantization_signals",
    "prefix_trial",
}  # which the project's own run has not
PUBLIC = set(public_tables()) - {COSTS.name}  # what a run cost is another each time
# Beside the project's own run of Snakemake: chunks of 4, 2 cores, batches of 3. These run on one.
SETTINGS = {
    "one": {"chunk_sequences": 1, "batch_size": 8, "keep_activations": False},
    "all": {"chunk_sequences": 16, "batch_size": 1, "keep_activations": True},
}


def public(folder: Path) -> dict[str, pl.DataFrame]:
    """The public tables below a directory, by their place; chunks of one table are joined."""
    found: dict[str, list[pl.DataFrame]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        table = pl.read_parquet_metadata(path)["table"]
        if table in PUBLIC:
            place = path.relative_to(folder).with_suffix("")
            key = place.parent if place.name[0].isdecimal() else place
            found.setdefault(str(key), []).append(pl.read_parquet(path))
    return {key: pl.concat(frames) for key, frames in found.items()}


def moments(place: str) -> set[str]:
    """Columns of a table that are such sums; those by position have one order of additions."""
    return set() if place.endswith("site_positions") else MOMENTS


def bits(column: pl.Series) -> list[object]:
    """Values that are equal where they are the same bit by bit; NaN equals NaN, and -0.0 is not 0.0."""
    if column.dtype.is_float():
        return [None if value is None else struct.pack("<d", value) for value in column]
    if isinstance(column.dtype, pl.List):
        return [None if row is None else bits(row) for row in column]
    return column.to_list()


def differing(one: pl.DataFrame, other: pl.DataFrame, close: Iterable[str], tolerance: float) -> list[str]:
    """Columns whose cells differ: by more than `tolerance`, relative, in those of `close`, at all in others."""
    if one.schema != other.schema or len(one) != len(other):
        return [f"{len(one)} rows and {len(other)} rows, or other columns"]
    found = []
    for name in one.columns:
        pairs = zip(one[name].to_list(), other[name].to_list(), strict=True)
        if name in close:
            same = all(
                x == y or (x is not None and y is not None and x == pytest.approx(y, rel=tolerance)) for x, y in pairs
            )
        else:
            same = bits(one[name]) == bits(other[name])
        if not same:
            found.append(name)
    return found


@pytest.fixture(scope="module")
def runs(project) -> dict[str, Path]:
    for name, extract in SETTINGS.items():
        project.run_here("tables", models=["tiny", "tiny-moe"], results=f"same-{name}", extract=extract,
                         ablate__knock_outs=True, gallery__attribution=True, quantize__losses=True)  # fmt: skip
    return {name: project.folder / f"same-{name}" for name in SETTINGS}


def test_every_public_table_is_compared(project, runs):
    """What stands in the others' way is nothing: no table is missing, and those that can find something found it."""
    found = public(runs["all"])
    names = {key.split("/")[2] if key.count("/") > 1 else key for key in found}
    assert names == PUBLIC - COMPARISONS | {key for key in found if key.startswith("comparison/")}
    assert {pl.read_parquet_metadata(path)["table"] for path in runs["all"].rglob("*.parquet")} >= PUBLIC - {
        FIRST_STEPS.name
    }
    for table in ("dims", "pairs", "massive", "emergence", "gains", "sinks", "lifecycle", "origin", "ablation", "loss"):
        assert len(found[f"tiny/text/{table}"]), table
    for table in ("experts", "routing", "expert_load", "expert_balance", "expert_ablation"):
        assert len(found[f"tiny-moe/text/{table}"]), table


def test_chunks_batches_and_kept_activations_change_no_cell(runs):
    assert not list(runs["one"].glob("*/*/activations")) and list(runs["all"].glob("*/*/activations/*"))
    assert not list(runs["one"].glob("*/*/largest.safetensors"))
    one, other = public(runs["one"]), public(runs["all"])
    # What keeps no activations locates nothing, so nothing is compared by that rule.
    other |= {key: frame.filter(pl.col("rule") != "location") for key, frame in other.items() if key in COMPARED}
    assert one.keys() == other.keys()
    assert {key: found for key in one if (found := differing(one[key], other[key], moments(key), 1e-9))} == {}


def test_neither_do_chunks_of_four_and_two_cores(project, runs):
    """The project's own run."""
    one, other = public(project.folder / "results"), public(runs["all"])
    assert {key: found for key in one if (found := differing(one[key], other[key], moments(key), 1e-9))} == {}
    there = {key for key in other if key.split("/")[-1] not in ON_REQUEST}
    assert set(one) == {key for key in there if key.startswith("tiny/")}


def test_neither_does_counting_the_hits(project):
    """Of all sequences here. What was counted serves other rules, as far as it goes."""
    counting = {"detect__max_density": 0.0, "models": ["tiny"], "results": "same-dense"}
    counting |= {"extract": {"chunk_sequences": 3}, "resources": "same-dense/resources"}
    project.run_here("tables", **counting)
    project.record("tables", **counting)
    one, other = public(project.folder / "same-dense"), public(project.folder / "results")
    hits = {key for key in one if {"hits", "counted_pairs", "counted_positions"} & {*key.split("/")}}
    compared = one.keys() - hits
    assert {key: found for key in compared if (found := differing(one[key], other[key], moments(key), 1e-9))} == {}
    assert all(len(one[f"tiny/text/counted_{name}"]) for name in ("pairs", "positions"))
    dense = json.loads((project.folder / "same-dense/tiny/text/summary.json").read_text())["sites"]["dense"]
    assert {site: found["sequences"] for site, found in dense.items()} == dict.fromkeys(
        ("attn_norm", "mlp_norm", "resid_post"), 6
    )
    assert project.planned(**counting, sensitivity__thresholds=[5.0, 6.0]).jobs_with_other_parameters() == {
        "Select systematic"
    }
    for changes in ({"rules__dettmers__threshold": 5.5}, {"rules__massive__ratio": 500.0}):
        planned = project.planned(**counting, **changes)
        assert "Detect outliers" in planned.jobs_with_other_parameters(), changes
        assert {"detect_outliers", "filter_systematic"} <= planned.jobs(), changes  # the one's outputs are new as well


def test_other_artifacts_are_the_same(project, runs):
    """Locations, attention patterns, and the origins in words."""
    places = [project.folder / "results/tiny/text", *(run / "tiny/text" for run in runs.values())]
    texts = [(place / "origin.txt").read_text() for place in places]
    files = [place / "locations.json" for place in places]
    located = [json.loads(file.read_text())["populations"] for file in files if file.exists()]
    patterns = [TensorFile(place / "attention.safetensors") for place in places]
    assert len(located) == 2 and located[0] == located[1]  # what keeps no activations locates nothing
    for n in (1, 2):
        assert texts[n] == texts[0]
        assert patterns[n].entries == patterns[0].entries
        assert all(patterns[n].array(key).tobytes() == patterns[0].array(key).tobytes() for key in patterns[0].entries)


# By sequence: the same rows in another order. Over sequences: counts and extremes the same, means up to rounding.
OVER_SEQUENCES = {
    "layers": {"top1", "top2", "top3", "median"}, "dims": set(), "sensitivity": set(), "emergence": set(),
    "site_positions": {"mean_square"},
}  # fmt: skip
BY_SEQUENCE = {"pairs": {"kurtosis"}, "massive": set(), "loss": set()}


def test_the_order_of_the_sequences_changes_no_number(project):
    """Documents of different lengths, and so with padding, in two orders.

    Moments to 1e-6: the first sequence is another one, whose means are the pilot that values are subtracted from in
    float32.
    """
    rng = random.Random(4)
    letters = "abcdefghij klmnopqrstuvw. xyz"
    texts = ["".join(rng.choices(letters, k=rng.randint(20, 60))) + "z" for _ in range(6)]
    order = [3, 0, 5, 1, 4, 2]
    found = {}
    for name, documents in (("straight", texts), ("turned", [texts[n] for n in order])):
        path = project.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        folder = f"order-{name}/tiny/docs"
        names = [*OVER_SEQUENCES, *BY_SEQUENCE]
        project.run_here(
            *(f"{folder}/{table}.parquet" for table in names), corpora=["docs"], results=f"order-{name}",
            resources=f"order-{name}/resources", sample={"sequences": 6, "tokens": 48, "pack": "documents"},
            catalog__corpora__docs={"files": [path.name]},
        )  # fmt: skip
        found[name] = {table: pl.read_parquet(project.folder / folder / f"{table}.parquet") for table in names}
    for table, frame in found["turned"].items():
        straight = found["straight"][table]
        assert len(frame), table
        if table in BY_SEQUENCE:  # sequence n of the turned corpus is sequence order[n] of the straight one
            frame = frame.with_columns(
                pl.col("sequence").replace_strict(dict(enumerate(order)), return_dtype=frame.schema["sequence"])
            )
            keys = [name for name in frame.columns if not frame.schema[name].is_float() or name == "value"]
            frame, straight = frame.sort(keys), straight.sort(keys)
        means = {name for name in frame.columns if name.endswith(("_mean", "_median"))}
        means |= OVER_SEQUENCES.get(table, set())
        assert set(differing(frame, straight, means, 1e-9)) <= MOMENTS, table
        assert differing(frame, straight, means | MOMENTS, 1e-6) == [], table


def test_a_text_shorter_than_the_sample_changes_no_number(project):
    """Chunks that are cut or empty give what they would if the sample were as long as the text."""
    (project.folder / "short.txt").write_text("A zebra and a z. " * 19)  # 323 bytes, a token each
    names = [f"{table}.parquet" for table in ("layers", "distribution", "emergence", "loss", "surface")]
    names += ["positions.parquet", "site_positions.parquet"]
    found, folders = {}, {}
    for sequences in (6, 10):
        folders[sequences] = project.folder / f"short-{sequences}/tiny/short"
        project.run_here(
            *(f"short-{sequences}/tiny/short/{name}" for name in (*names, "locations.json")), corpora=["short"],
            results=f"short-{sequences}", sample={"sequences": sequences, "tokens": 48},
            catalog__corpora__short={"files": ["short.txt"]}, extract={"chunk_sequences": 4},
        )  # fmt: skip
        found[sequences] = public(project.folder / f"short-{sequences}")
    assert found[6].keys() == found[10].keys() and len(found[6]["tiny/short/massive"])
    for table, frame in found[6].items():
        assert differing(frame, found[10][table], moments(table), 1e-9) == [], table
    located = [json.loads((folder / "locations.json").read_text())["populations"] for folder in folders.values()]
    assert located[0] == located[1]
    notes = [TensorFile(folder / "tokens.safetensors").provenance["notes"] for folder in folders.values()]
    assert notes[0] == [] and "6 of the 10 sequences" in notes[1][0] and "a longer text" in notes[1][0]
    kept = sorted((folders[10] / "activations").iterdir())
    assert [(path.stem, bool(TensorFile(path).entries)) for path in kept] == [
        ("0-3", True),
        ("4-7", True),
        ("8-9", False),
    ]
