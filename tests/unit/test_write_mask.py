"""mask.json says what was planted, by its schema."""

import json
from pathlib import Path

import jsonschema
import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.dims.write_mask import write_mask
from outlier_features.errors import InputError
from outlier_features.files.tables import read_table, write_table
from outlier_features.run.verify_artifacts import verify_artifacts

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/mask.schema.json"


def mask_of(directory, *, super_weights=True):
    write_mask(
        directory / "tokens.safetensors",
        directory / "dims.parquet",
        directory / "massive.parquet",
        directory / "super_weights.parquet" if super_weights else None,
        directory / "mask.json",
        schema=SCHEMA,
    )
    mask = json.loads((directory / "mask.json").read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(mask)
    return mask


def part(mask, rule, population):
    return next(one for one in mask["masks"] if (one["rule"], one["population"]) == (rule, population))


def everything_in(schema):
    """Every object of a schema, at any depth."""
    if isinstance(schema, dict):
        yield from ([schema] if "properties" in schema else [])
        for sub in schema.values():
            yield from everything_in(sub)
    elif isinstance(schema, list):
        for sub in schema:
            yield from everything_in(sub)


def test_the_schema_is_closed_and_describes_every_key():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = list(everything_in(schema))
    assert len(found) > 6
    for one in found:
        assert one["additionalProperties"] is False
        assert set(one["required"]) == set(one["properties"]) - {"content_crc32"}
        assert all(sub["description"].endswith(".") for sub in one["properties"].values())


def test_dims_are_those_that_were_planted(tmp_path):
    run = FakeRun(outliers=(5, 9), massive=(7, 5), hits=(1,))
    mask = mask_of(run.write(tmp_path / "tiny" / "text"))
    assert (mask["version"], mask["model"], mask["blocks"], mask["d_model"]) == (1, "tiny", 4, 64)
    assert mask["positions"] == {"first_or_special": 2, "other": 10}
    assert [(one["rule"], one["population"]) for one in mask["masks"]] == [
        ("dettmers", "all"), ("dettmers", "without_first"), ("massive", "all"), ("massive", "without_first"),
    ]  # fmt: skip
    for population in ("all", "without_first"):
        outliers = part(mask, "dettmers", population)
        assert {row["dim"] for row in outliers["dims"]} == {5, 9}
        assert (outliers["sites"], outliers["basis"]) == (["attn_norm", "mlp_norm"], "residual")
        assert outliers["massive"] is None
    massive = part(mask, "massive", "all")
    assert {row["dim"] for row in massive["dims"]} == {7, 5}
    sizes = [row["max_abs"] for row in massive["dims"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {row["step_up"] for row in massive["dims"]} == {1}
    assert {row["dim"]: row["step_down"] for row in massive["dims"]} == {7: 3, 5: None}
    assert [(row["layer"], row["row"], row["col"]) for row in mask["super_weights"]] == [(1, 7, 30)]
    assert [verdict.found for verdict in verify_artifacts([tmp_path]) if verdict.path.name == "mask.json"] == [None]


@pytest.mark.parametrize("position", [0, 2])
def test_positions_and_tokens_of_massive_activations_are_counted(tmp_path, position):
    """Against loops over the table's rows."""
    directory = FakeRun(position=position).write(tmp_path / "tiny" / "text")
    mask = mask_of(directory)
    rows, _ = read_table(directory / "massive.parquet", MASSIVE)
    for population in ("all", "without_first"):
        members = [row for row in rows.to_dicts() if row[f"massive_{population}"]]
        found = part(mask, "massive", population)["massive"]
        assert found["activations"] == len(members)
        places = {(row["sequence"], row["token"], row["excluded"]) for row in members}
        assert found["positions"] == parts(places)
        assert {(one["token_id"], one["token_text"]): one["positions"] for one in found["tokens"]} == {
            token: parts({(r["sequence"], r["token"], r["excluded"]) for r in members if name(r) == token})
            for token in {name(row) for row in members}
        }
        assert {(one["layer"], one["dim"]): one["positions"] for one in found["locations"]} == {
            place: parts(
                {(r["sequence"], r["token"], r["excluded"]) for r in members if (r["layer"], r["dim"]) == place}
            )
            for place in {(row["layer"], row["dim"]) for row in members}
        }
    everywhere = part(mask, "massive", "all")["massive"]["positions"]
    assert everywhere == ({"first_or_special": 2, "other": 0} if position == 0 else {"first_or_special": 0, "other": 2})


def name(row):
    return row["token_id"], row["token_text"]


def parts(places):
    excluded = sum(flag for *_, flag in places)
    return {"first_or_special": excluded, "other": len(places) - excluded}


def test_a_run_without_sites_or_a_search_says_so(tmp_path):
    directory = FakeRun(sites=("resid_post",), outliers=()).write(tmp_path / "tiny" / "text")
    mask = mask_of(directory, super_weights=False)
    assert {one["rule"] for one in mask["masks"]} == {"massive"}
    assert mask["super_weights"] is None


def test_another_runs_table_is_refused(tmp_path):
    directory = FakeRun().write(tmp_path / "tiny" / "text")
    frame, provenance = read_table(directory / "massive.parquet", MASSIVE)
    write_table(directory / "massive.parquet", frame, MASSIVE, {**provenance, "tokens_sha256": "0" * 64})
    with pytest.raises(InputError, match=r"massive\.parquet: its tokens_sha256 is .* belongs to another run"):
        mask_of(directory)
    assert not (directory / "mask.json").exists()


def test_the_sign_is_that_of_at_least_95_percent_of_the_hits(tmp_path):
    directory = FakeRun().write(tmp_path / "tiny" / "text")
    dims = pl.read_parquet(directory / "dims.parquet").filter("selected", rule="massive", population="all")
    signs = {row["dim"]: row["sign"] for row in part(mask_of(directory), "massive", "all")["dims"]}
    for row in dims.to_dicts():
        share = row["positive"] / (row["positive"] + row["negative"])
        assert signs[row["dim"]] == ("positive" if share >= 0.95 else "negative" if share <= 0.05 else "both")
