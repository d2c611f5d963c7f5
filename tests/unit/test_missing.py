"""What a stage leaves in the place of an analysis that cannot be had, and what stops it all the same."""

import errno

import pytest
import torch

from fake_run import OUTPUTS, FakeRun, leave_out
from outlier_features.attention.kept_patterns import AttentionMaps
from outlier_features.errors import ConfigError, DamagedFile, InputError, stage
from outlier_features.files.artifacts import read_json
from outlier_features.files.missing import ANALYSES, MissingInput, optional, require_had
from outlier_features.files.tables import public_tables, read_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.run.config import turned_off
from outlier_features.run.failure import missing_lines
from outlier_features.run.verify_artifacts import verify_artifacts
from outlier_features.summary.summarize_run import summarize_run

RULES = {name: {"kind": name} for name in ("super_weight", "super_expert")}
TABLES = {f"{table.name}.parquet": table for table in public_tables().values()}
LOG = "results/logs/rule/tiny/text.log"


def provenance_in(path):
    return TensorFile(path).provenance if path.suffix == ".safetensors" else read_table(path, TABLES[path.name])[1]


def rows_in(path):
    """Rows of a table, or tensors."""
    return len(TensorFile(path).entries if path.suffix == ".safetensors" else read_table(path, TABLES[path.name])[0])


def summarized(folder, **options):
    tables = {path.stem: path for path in folder.glob("*.parquet") if path.name in TABLES}
    summarize_run(folder / "tokens.safetensors", folder / "model.json", folder / "corpus.json", tables,
                  folder / "summary.json", **options)  # fmt: skip
    return read_json(folder / "summary.json")


@pytest.mark.parametrize(
    ("why", "cause", "reason"),
    [
        ("`skip` names it", "off", "`skip` names it"),
        (InputError("block 0 has none", "leave it out"), "model", "block 0 has none"),
        (AttributeError("no 'heads'"), "fault", "AttributeError: no 'heads' at line "),
        (RuntimeError("size of tensor a (128)"), "fault", "RuntimeError: size of tensor a (128) at line "),
    ],
)
def test_valid_empty_files_say_why(tmp_path, why, cause, reason):
    run = FakeRun(experts=4, knock_outs=True, attribution=True, losses=True).write(tmp_path / "tiny/text")
    outputs = [(analysis, run / name) for analysis, names in OUTPUTS.items() for name in names]
    before = {path: provenance_in(path) for _, path in outputs}
    for analysis in ANALYSES:
        leave_out(analysis, why, run)
    for analysis, path in outputs:
        provenance = provenance_in(path)
        found = provenance["missing"]
        assert (found["analysis"], found["cause"]) == (analysis, cause) and found["reason"].startswith(reason)
        for key in ("model_revision", "tokens_sha256", "dtype", "rules"):
            assert provenance[key] == before[path][key]
        assert not rows_in(path)
    bad = {verdict.path for verdict in verify_artifacts([tmp_path]) if verdict.found}
    assert bad.isdisjoint(path for _, path in outputs)
    summary = summarized(run)
    assert list(summary["missing"]) == list(ANALYSES) == list(OUTPUTS)
    for analysis, facts in summary["missing"].items():
        assert facts["cause"] == cause and (analysis not in summary or summary[analysis] is None)
        tables = {name for name in OUTPUTS[analysis] if name.endswith(".parquet")}
        assert {f"{name}.parquet" for name in facts["tables"]} == tables
    assert len(list(missing_lines(run / "summary.json"))) == (0 if cause == "off" else len(ANALYSES))


def test_what_an_analysis_left_half_made_is_replaced(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    outputs = [str(run / name) for name in ("lifecycle.parquet", "origin.txt")]
    assert len(read_table(run / "lifecycle.parquet", TABLES["lifecycle.parquet"])[0])
    with optional("origin", outputs, LOG, of=str(run / "dims.parquet")):
        (run / "origin.txt").write_text("half")
        raise InputError("then it ended")
    assert read_table(run / "lifecycle.parquet", TABLES["lifecycle.parquet"])[0].is_empty()
    text = "The tracing of massive activations to their origin cannot be had: then it ended."
    assert (run / "origin.txt").read_text() == f"{text}\n"


def test_an_analysis_that_is_turned_off_is_not_begun_and_one_that_ends_well_is_left_alone(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    outputs, of = [str(run / "loss.parquet")], str(run / "dims.parquet")
    with optional("loss", outputs, LOG, of=of) as wanted:
        assert wanted
    assert "missing" not in provenance_in(run / "loss.parquet")
    with optional("loss", outputs, LOG, of=of, off="`skip` names loss") as wanted:
        assert not wanted
    assert provenance_in(run / "loss.parquet")["missing"]["log"] == "logs/rule/tiny/text.log"


@pytest.mark.parametrize(
    "error",
    [
        DamagedFile("dims.parquet", "is cut"),
        ConfigError("trace_origin.dims: found 900, expected dims below 64"),
        OSError(errno.ENOSPC, "No space left on device", "loss.parquet"),
        PermissionError(errno.EACCES, "Permission denied", "loss.parquet"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        KeyboardInterrupt(),
        SystemExit(143),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_stops_a_run_all_the_same(tmp_path, error):
    run = FakeRun().write(tmp_path / "run")
    before = (run / "loss.parquet").read_bytes()
    with pytest.raises(type(error)) as raised:
        leave_out("loss", error, run)
    assert raised.value is error and (run / "loss.parquet").read_bytes() == before


def test_a_place_that_cannot_be_written_stops_the_stage(tmp_path):
    run, log = FakeRun().write(tmp_path / "run"), tmp_path / "logs/x.log"

    outputs = [str(run / "dims.parquet/not/loss.parquet")]
    with (
        pytest.raises(SystemExit) as ended,
        stage(log),
        optional("loss", outputs, str(log), of=str(run / "dims.parquet")),
    ):
        raise InputError("it cannot be had")
    assert ended.value.code == 1
    assert log.read_text().splitlines()[-1].endswith("not a directory; expected a path that can be used")


def test_the_log_has_the_traceback_of_a_fault_and_what_to_send(tmp_path):
    run, log = FakeRun().write(tmp_path / "run"), tmp_path / "logs/x.log"
    with stage(log), optional("loss", [str(run / "loss.parquet")], str(log), of=str(run / "dims.parquet")):
        [][1]
    text = log.read_text()
    assert text.startswith("Traceback") and "\nIndexError: list index" in text
    assert "a fault of outlier-features" in text and f"torch {torch.__version__}" in text
    assert text.splitlines()[-1].startswith("missing: The loss is missing by a fault of outlier-features (IndexError")


def test_a_damaged_input_is_refused_even_where_the_analysis_is_turned_off(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    (run / "dims.parquet").write_bytes((run / "dims.parquet").read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=r"dims\.parquet"):
        leave_out("loss", "`skip` names loss", run)


def test_a_missing_file_makes_missing_what_needs_it(tmp_path):
    """Of a fault of rule rerun_largest the surface has the reason and the log."""
    run = FakeRun().write(tmp_path / "run")
    leave_out("attention_maps", KeyError("heads"), run)
    with pytest.raises(MissingInput, match="KeyError: 'heads'"):
        AttentionMaps.read(run / "attention.safetensors")

    with optional("surface", [str(run / "surface.parquet")], LOG, of=str(run / "dims.parquet")):
        require_had(TensorFile(run / "attention.safetensors").provenance)
    found = provenance_in(run / "surface.parquet")["missing"]
    assert (found["analysis"], found["cause"], found["log"]) == ("surface", "fault", "logs/attention_maps.log")


def test_strict_names_all_that_is_missing_and_not_what_is_turned_off(tmp_path):
    why = {"surface": "`skip` names surface", "loss": InputError("no head"), "origin": KeyError("x")}
    run = FakeRun(missing=why).write(tmp_path / "run")
    with pytest.raises(InputError, match=r"tiny on text: .*loss cannot be had: no head") as error:
        summarized(run, strict=True)
    assert "origin is missing by a fault" in str(error.value)
    assert "surface" not in str(error.value) and "`skip: [origin, loss]`" in str(error.value)
    leave_out("origin", "`skip` names origin", run)
    leave_out("loss", "`skip` names loss", run)
    assert summarized(run, strict=True)["missing"].keys() == {"surface", "origin", "loss"}


def test_every_analysis_has_a_key_to_turn_it_off():
    config = {"skip": [], "ablate": {"sequences": 2}, "trace_origin": {"dims": "auto"}, "rules": RULES}
    assert not any(turned_off(config, analysis) for analysis in ANALYSES)
    for analysis in ANALYSES:
        skipping = {**config, "skip": [analysis]}
        assert [one for one in ANALYSES if turned_off(skipping, one)] == [analysis]
    for changes, off in (
        ({"ablate": {"sequences": 0}}, ["super_weights", "ablation", "expert_ablation", "knock_outs"]),
        ({"trace_origin": {"dims": []}}, ["origin"]),
        ({"rules": {}}, ["experts", "super_weights", "expert_ablation"]),
    ):
        assert [one for one in ANALYSES if turned_off(config | changes, one)] == off
