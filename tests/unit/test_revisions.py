"""A model over its training: what grows and when, against plain hooks on each checkpoint."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from fake_run import FakeRun
from hub_server import running_hub
from outlier_features.command.main import main
from outlier_features.compare.compare_models import compare_models
from outlier_features.compare.compare_revisions import compare_revisions
from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.models_schema import MODELS
from outlier_features.compare.published_numbers import published_numbers
from outlier_features.compare.revisions import revisions_of, same_weights
from outlier_features.dims.compare_runs import compare_runs
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.training import training_figures
from outlier_features.files.artifacts import read_json, write_json
from outlier_features.files.tables import read_table
from outlier_features.report.render_report import render_report, section
from outlier_features.run.config import read_schema, resolve_config
from outlier_features.summary.report_run import Run
from outlier_features.tokens.tokens import Tokens
from rule_jobs import plans, run_jobs
from rule_process import run_rules
from training import BLOCKS, train

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "workflow/published"
SCHEMA = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
STEPS = (0, 50, 100, 150)
ANALYSES = ["surface", "norms", "origin", "experts", "attention_maps", "super_weights", "ablation"]


def trained_run(folder, steps, *targets, **changes):
    """The results of a run over all checkpoints, and over `main`, which has the weights of the last."""
    (folder / "run").mkdir()
    text = train(folder / "run", steps)
    (folder / "text.txt").write_text(text[:4000])
    shutil.copytree(folder / "run" / f"step{steps[-1]}", folder / "run/main")
    listed = ["main", *(f"step{step}" for step in reversed(steps))]
    config = {
        "models": ["tiny"],
        "corpora": ["text"],
        "catalog": {
            "models": {"tiny": {"path": "run/{revision}", "revisions": listed}},
            "corpora": {"text": {"files": ["text.txt"]}},
        },
        "sample": {"sequences": 3, "tokens": 40},
        "attention_maps": {"sequences": 1},
        **changes,
    }
    [jobs] = plans({folder: config}, targets)
    assert run_jobs(jobs, folder) is None
    return folder / "results"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    targets = ["results/comparison/first_steps.parquet", "results/comparison/figures"]
    return trained_run(tmp_path_factory.mktemp("training"), STEPS, *targets, skip=ANALYSES)


def models_of(results):
    return read_table(results / "comparison/models.parquet", MODELS)[0]


class Checkpoint:
    """A checkpoint, run on a run's tokens with plain hooks: |x| (blocks, sequences, tokens, dims) by site."""

    def __init__(self, folder: Path, ids: torch.Tensor):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        seen: dict[str, list[torch.Tensor]] = {"attn_norm": [], "mlp_norm": [], "resid_post": []}

        def keep(site):
            def hook(module, inputs, output):
                seen[site].append((output[0] if isinstance(output, tuple) else output).detach().abs())

            return hook

        for block in model.model.layers:
            block.input_layernorm.register_forward_hook(keep("attn_norm"))
            block.post_attention_layernorm.register_forward_hook(keep("mlp_norm"))
            block.register_forward_hook(keep("resid_post"))
        with torch.no_grad():
            self.nll = float(model(ids, labels=ids).loss)
        self.values = {site: torch.stack(found).double() for site, found in seen.items()}

    def dettmers(self) -> set[int]:
        hits = (self.values["attn_norm"] >= 6) | (self.values["mlp_norm"] >= 6)
        return _passing(hits)

    def token_rms(self) -> set[int]:
        stream = self.values["resid_post"]
        return _passing(stream >= 6 * stream.square().mean(-1, keepdim=True).sqrt())

    def ratios(self) -> list[float]:
        each = self.values["resid_post"].flatten(2)  # blocks, sequences, values
        return (each.max(-1).values.mean(1) / each.quantile(0.5, dim=-1).mean(1)).tolist()


def _passing(hits: torch.Tensor) -> set[int]:
    """Dims that in some sequence are hit in 25 % of the blocks, and at 6 % of the positions."""
    layers, positions = hits.any(2).double().mean(0), hits.any(0).double().mean(1)
    return set(((layers >= 0.25) & (positions >= 0.06)).any(0).nonzero().flatten().tolist())


def require_brute_force(results, steps):
    ids = torch.tensor(Tokens.read(results / "tiny@step0/text/tokens.safetensors").tokens, dtype=torch.long)
    found = {step: Checkpoint(results.parent / f"run/step{step}", ids) for step in steps}
    models = models_of(results).filter(population="all")
    first_steps = read_table(results / "comparison/first_steps.parquet", FIRST_STEPS)[0].filter(population="all")
    for rule in ("dettmers", "token_rms"):
        dims = {step: getattr(one, rule)() for step, one in found.items()}
        assert not dims[0] and dims[steps[-1]], dims
        expected = {}
        for dim in set().union(*dims.values()):
            passing = [step for step in steps if dim in dims[step]]
            before = [step for step in steps if step < passing[0]]
            expected[dim] = (passing[0], before[-1] if before else None, passing[-1], len(passing), len(steps))
        columns = ("dim", "first_step", "step_before", "last_step", "steps_passing", "steps")
        rows = first_steps.filter(rule=rule).select(columns).rows()
        assert {row[0]: row[1:] for row in rows} == expected and len(rows) == len(expected)
        counted = dict(models.filter(rule=rule).select("revision", "dims").rows())
        assert all(counted[f"step{step}"] == len(dims[step]) for step in steps)
    rows = {row["step"]: row for row in models.filter(rule="dettmers").to_dicts()}
    for step, one in found.items():
        ratios = one.ratios()
        assert rows[step]["largest_over_median"] == pytest.approx(max(ratios), rel=1e-5)
        assert rows[step]["largest_over_median_layer"] == ratios.index(max(ratios))
        assert math.log(rows[step]["perplexity"]) == pytest.approx(one.nll, rel=1e-5)


def test_the_first_steps_are_those_of_plain_hooks(results):
    require_brute_force(results, STEPS)


def test_revisions_with_the_same_weights_are_named_and_count_once(results):
    rows = models_of(results).unique("run", keep="first", maintain_order=True)
    assert set(rows["model"]) == {"tiny"} and rows["revision"][0] == "main"
    same = dict(rows.select("revision", "same_weights_as").rows())
    assert same == {f"step{step}": None for step in STEPS} | {"main": "step150"}
    steps = dict(rows.select("revision", "step").rows())
    assert steps == {f"step{step}": step for step in STEPS} | {"main": None}
    log = (results / "logs/compare_models.log").read_text()
    assert "tiny: main has the same weights as step150" in log


def test_the_figures_draw_the_steps(results):
    folder = results / "comparison/figures"
    drawn = pl.read_csv(folder / "training-steps.csv")
    rows = models_of(results).filter(pl.col("step").is_in(STEPS))
    assert (
        drawn.select("run", "rule", "population", "dims").rows()
        == rows.select("run", "rule", "population", "dims").rows()
    )
    layers = pl.read_csv(folder / "training-layers.csv")
    assert set(layers["step"]) == set(STEPS) and layers["layer"].n_unique() == BLOCKS
    # Sizes and depths are those of one revision.
    assert set(pl.read_csv(folder / "relative-depth.csv")["run"]) == {"tiny@main/text"}


def test_the_command_compares_revisions(results, capsys):
    assert main(["compare", "--results", str(results), "--rule", "dettmers", "--plot"]) == 0
    printed = capsys.readouterr().out
    assert "tiny: main has the same weights as step150" in printed
    steps = read_table(results / "comparison/first_steps.parquet", FIRST_STEPS)[0].filter(rule="dettmers")
    lines = [line for line in printed.splitlines() if "│ dettmers │" in line]
    assert len(lines) == steps.select("population", "first_step").n_unique()
    assert main(["compare", "--results", str(results), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["step"] for row in found} == {None, *STEPS}


def test_models_over_their_training_beside_one_another(tmp_path):
    """A revision that another stands for and one without a step are no points of the curves."""
    outliers = {"a@step0": (), "a@step10": (5,), "a@step2000": (5, 6), "a@step5": (5, 6), "b@step10": (9,), "b@end": ()}
    weights = {"a@step5": "2", "a@step2000": "2"}
    runs = {name: FakeRun(model=name, outliers=dims) for name, dims in outliers.items()} | {
        "plain": FakeRun(model="plain")
    }
    paths = [run.write(tmp_path / name / "text") for name, run in runs.items()]
    (tmp_path / "fetched").mkdir()
    sources = {
        name: record(tmp_path / "fetched", name, **{"model.safetensors": weights.get(name, name)}) for name in outliers
    }
    folder = comparison_of(paths, sources, tmp_path)
    rows = read_table(folder / "first_steps.parquet", FIRST_STEPS)[0].filter(rule="dettmers", population="all")
    columns = ("model", "dim", "first_step", "step_before", "last_step", "steps_passing", "steps")
    assert rows.select(columns).rows() == [
        ("a", 5, 10, 0, 2000, 2, 3),
        ("a", 6, 2000, 10, 2000, 1, 3),
        ("b", 9, 10, None, 10, 1, 1),
    ]
    models = read_table(folder / "models.parquet", MODELS)[0]
    layers = {f"{name}/text": pl.read_parquet(tmp_path / name / "text/layers.parquet") for name in runs}
    summaries = [read_json(path / "summary.json") for path in paths]
    compared = Compared.of(models, summaries, layers, {}, published_numbers(PUBLISHED))
    assert set(compared.models["run"]) == {"a@step2000/text", "b@step10/text", "plain/text"}
    curves, by_layer = training_figures(compared)
    first = [trace for trace in curves.views["all"].data if trace.yaxis in (None, "y")]
    assert [(trace.name, *(said[0] for said in trace.customdata)) for trace in first] == [
        ("a", "step0", "step10", "step2000"), ("b", "step10"),
    ]  # fmt: skip
    axis = curves.views["all"].layout.xaxis
    assert axis.type == "log" and axis.ticktext[0] == "0" and first[0].x[0] == axis.tickvals[0] < 10
    assert set(by_layer.data["revision"]) == {"step0", "step10", "step2000"}


def test_the_comparison_s_page_has_the_training(tmp_path):
    names = ("a@step5", "a@step2000")
    paths = [FakeRun(model=name).write(tmp_path / name / "text") for name in names]
    (tmp_path / "fetched").mkdir()
    sources = {name: record(tmp_path / "fetched", name, **{"model.safetensors": "1"}) for name in names}
    folder, report = comparison_of(paths, sources, tmp_path), tmp_path / "report.html"
    definitions = ROOT / "docs/definitions.md"
    render_report(paths, report, published=PUBLISHED, definitions=definitions, comparison=folder)
    page = report.read_text()
    assert "a: step5 has the same weights as step2000" in page
    assert all(f'id="comparison/{name}"' in page for name in ("training-steps", "training-layers", "first-steps"))


def test_what_was_published_is_of_the_trained_model(tmp_path):
    """It stands beside main, and beside no step before it, in the table and on the page of each."""
    names = ("m@step5", "m@main")
    runs = [FakeRun(model=name, origin="Qwen/Qwen3-8B") for name in names]
    paths = [run.write(tmp_path / run.model / "text") for run in runs]
    for path in paths:
        summary = read_json(path / "summary.json")
        (path / "summary.json").write_text(json.dumps({**summary, "model": {**summary["model"], "kind": "hub"}}))
    (tmp_path / "fetched").mkdir()
    sources = {name: record(tmp_path / "fetched", name, **{"model.safetensors": name}) for name in names}
    compare_models(paths, PUBLISHED, tmp_path / "models.parquet", sources)
    models = read_table(tmp_path / "models.parquet", MODELS)[0].filter(rule="dettmers", population="all")
    assert [bool(name) for name in models["published_model"]] == [False, True]
    assert [bool(section(Run.read(path), PUBLISHED, tmp_path / "data")["published"]) for path in paths] == [False, True]


def comparison_of(paths, sources, place):
    folder = place / "comparison"
    folder.mkdir()
    compare_models(paths, PUBLISHED, folder / "models.parquet", sources)
    compare_revisions(paths, folder / "models.parquet", folder / "first_steps.parquet")
    compare_runs(paths, folder / "dims.parquet", folder / "compared_dims.parquet")
    return folder


def test_without_revisions_there_are_no_curves(tmp_path):
    paths = [FakeRun(model=name).write(tmp_path / name / "text") for name in ("one", "other")]
    compare_models(paths, PUBLISHED, tmp_path / "models.parquet")
    models = read_table(tmp_path / "models.parquet", MODELS)[0]
    for name in ("revision", "step", "same_weights_as"):
        assert models[name].null_count() == len(models)
    layers = {f"{path.parent.name}/text": pl.read_parquet(path / "layers.parquet") for path in paths}
    summaries = [read_json(path / "summary.json") for path in paths]
    assert not training_figures(Compared.of(models, summaries, layers, {}, published_numbers(PUBLISHED)))


@pytest.mark.slow
def test_a_long_training_with_every_analysis(tmp_path):
    steps = tuple(range(0, 401, 50))
    results = trained_run(tmp_path, steps, "tables", "report", "figures")
    require_brute_force(results, steps)
    page = (results / "report.html").read_text()
    assert "tiny: main has the same weights as step400" in page


def record(folder, name, **files):
    (folder / name).mkdir()
    described = {file: {"bytes": 1, "sha256": sha} for file, sha in files.items()}
    write_json(folder / name / "source.json", {"location": ".", "files": described})
    return folder / name / "source.json"


def test_weights_are_the_same_where_all_their_files_are(tmp_path):
    """Neither a config nor another model counts; of equal revisions that of the latest step stands for all."""
    weights = {"a.safetensors": "1" * 64, "b.safetensors": "2" * 64}
    sources = {
        "m@main": record(tmp_path, "main", **weights),
        "m@step5": record(tmp_path, "5", **weights, **{"config.json": "3" * 64}),
        "m@step10": record(tmp_path, "10", **weights, **{"config.json": "4" * 64}),
        "m@step7": record(tmp_path, "7", **{"a.safetensors": "1" * 64}),
        "m@v1": record(tmp_path, "v1", **{"a.safetensors": "9" * 64}),
        "m@v2": record(tmp_path, "v2", **{"a.safetensors": "9" * 64}),
        "other@step99": record(tmp_path, "99", **weights),
    }
    found = revisions_of(["plain", *sources], sources)
    assert {name: one.same_weights_as for name, one in found.items()} == {
        "m@main": "step10", "m@step5": "step10", "m@step10": None, "m@step7": None, "m@v1": None, "m@v2": "v1",
        "other@step99": None,
    }  # fmt: skip
    sentences = same_weights((one.model, one.revision, one.same_weights_as) for one in found.values())
    assert [sentence.partition(", byte")[0] for sentence in sentences] == [
        "m: main and step5 have the same weights as step10",
        "m: v2 has the same weights as v1",
    ]


def test_branches_of_the_hub(tmp_path):
    """Each branch is fetched; for a plan one config stands for all, and no weights are fetched."""
    train(tmp_path / "run", (0, 1))
    files = [{path.name: path.read_bytes() for path in (tmp_path / "run" / f"step{step}").iterdir()} for step in (0, 1)]
    entry = {"hub": "org/trained", "revisions": [{"from": 0, "to": 2, "every": 1}, "main"]}
    config = {"models": ["far"], "corpora": ["text"], "catalog": {"models": {"far": entry}, "corpora": {}}}
    (tmp_path / "text.txt").write_text("text " * 500)
    config["catalog"]["corpora"]["text"] = {"files": ["text.txt"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    with running_hub() as hub:
        repository = hub.model("org/trained", files[1])
        for step, content in ((0, files[1]), (1, files[0]), (2, files[1])):
            repository.commit(content, f"step{step}")
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "outlier_features.command.main", "plan", "--configfile", "mine.yaml", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
        gets = {request.path for request in hub.downloads("config.json")}
        assert len(gets) == 1 and not hub.downloads("model.safetensors")
        revisions = ["step0", "step1", "step2", "main"]
        assert plan["models"]["far"]["revisions"] == revisions
        assert [run["run"] for run in plan["runs"]] == [f"far@{one}/text" for one in revisions]
        assert len({run["flops"]["total"] for run in plan["runs"]}) == 1
        assert (plan["jobs"]["fetch_model"], plan["jobs"]["compare_revisions"]) == (4, 1)
        models = resolve_config(config, SCHEMA)["catalog"]["models"]
        sources = {tmp_path / "models" / name: source for name, source in models.items()}
        assert [one.error for one in run_rules("fetch_model", sources, hub.url, tmp_path / "home")] == [""] * 4
        missing = {tmp_path / "models/far@step9": {"hub": "org/trained", "revision": "step9"}}
        [outcome] = run_rules("fetch_model", missing, hub.url, tmp_path / "home")
        assert "revision: 'step9' was not found in model 'org/trained'" in outcome.error
    records = {name: tmp_path / "models" / name / "source.json" for name in models}
    assert {name: json.loads(path.read_text())["revision"] for name, path in records.items()} == {
        f"far@{revision}": commit for revision, commit in repository.revisions.items()
    }
    found = revisions_of(models, records)
    assert {one.revision: one.same_weights_as for one in found.values()} == {
        "step0": "step2", "step1": None, "step2": None, "main": "step2",
    }  # fmt: skip
