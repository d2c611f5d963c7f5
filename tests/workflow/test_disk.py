"""What a run leaves on disk beside its tables: figures, exported tables, the mask, costs, Snakemake's own report."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import polars as pl
import pytest
import torch
from gguf import GGUFReader
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from outlier_features.command.main import main
from outlier_features.summary.report_run import OF_THE_GALLERY

ROOT = Path(__file__).parents[2]
RUN = "results/tiny/text"


@pytest.fixture(scope="module")
def disk(project):
    """The finished project with figures and exported tables, which the other tests find removed."""
    run = project.run("figures", "export")
    assert run.status == 0, run.output
    done = set(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", run.output, re.MULTILINE))
    assert done == {"draw_figures", "export_tables", "summarize_costs", "figures", "export"}
    yield project
    for name in ("figures", "export"):
        shutil.rmtree(project.folder / RUN / name, ignore_errors=True)
    for name in ("results/costs.csv", "report.zip"):
        (project.folder / name).unlink(missing_ok=True)


def test_nothing_is_done_twice(disk):
    assert disk.run("all", "figures", "export").nothing_to_do


def test_another_width_draws_the_figures_and_no_more(disk):
    planned = disk.run("all", "figures", "export", "--dry-run", "--nocolor", figures__width_mm=178)
    assert planned.jobs() - {"figures", "export"} == {"draw_figures"}


def test_every_table_is_exported_as_it_is(disk):
    run = disk.folder / RUN
    names = {path.stem for path in run.glob("*.parquet")} - {"texts"} - OF_THE_GALLERY
    assert {path.stem for path in (run / "export").glob("*.csv")} == names and len(names) > 15
    assert {path.stem for path in (run / "export").glob("*.json")} == names | {"tables"}
    for name in names:
        table = pl.read_parquet(run / f"{name}.parquet")
        records = json.loads((run / f"export/{name}.json").read_text())
        assert_frame_equal(pl.DataFrame(records, schema=table.schema), table, check_exact=True)
        if pl.List not in {type(dtype) for dtype in table.schema.values()}:
            back = pl.read_csv(run / f"export/{name}.csv", schema=table.schema)
            assert_frame_equal(back, table, check_exact=True)


def test_costs_are_those_of_the_jobs_and_their_files(disk):
    costs = {row["rule"]: row for row in pl.read_csv(disk.folder / "results/costs.csv").to_dicts()}
    chunks = list((disk.folder / RUN / "activations").glob("*.safetensors"))
    beside = [
        path for name in ("losses", "neurons", "channels") for path in (disk.folder / RUN / name).glob("*.safetensors")
    ]
    extract = costs["extract_activations"]
    assert extract["jobs"] == len(chunks) == 2 and extract["seconds"] > extract["seconds_max"] > 0
    assert extract["output_bytes"] == sum(path.stat().st_size for path in [*chunks, *beside])
    assert costs["write_mask"]["output_bytes"] == (disk.folder / RUN / "mask.json").stat().st_size
    assert {"fetch_model", "detect_outliers", "render_report"} <= costs.keys()


def test_what_quantizers_read_has_the_runs_numbers(disk):
    folder = disk.folder / RUN
    channels = load_file(folder / "channel_stats.safetensors")
    absmax = {name.removesuffix(".absmax"): values for name, values in channels.items() if name.endswith(".absmax")}
    scales = load_file(folder / "quantization/smoothquant_scales.safetensors")
    assert scales.keys() == absmax.keys() and all(torch.equal(scales[name], absmax[name]) for name in scales)
    query = "model.layers.1.self_attn.q_proj"
    tensors = {tensor.name: tensor.data.ravel() for tensor in GGUFReader(folder / "quantization/imatrix.gguf").tensors}
    sums, counts = (tensors[f"blk.1.attn_q.weight.{part}"] for part in ("in_sum2", "counts"))
    assert counts.tolist() == channels[f"{query}.count"].tolist()
    assert sums / counts == pytest.approx(channels[f"{query}.mean_square"].numpy(), rel=1e-6)
    recipe = (folder / "quantization/llmcompressor_recipe.yaml").read_text()
    assert "SmoothQuantModifier" in recipe and "lm_head" in recipe
    assert json.loads((folder / "quantization/bitsandbytes.json").read_text())["llm_int8_skip_modules"] == ["lm_head"]
    assert json.loads((folder / "quantization/prefix.json").read_text())["prefixed_tokens"] is not None


def test_the_mask_holds_what_was_planted(disk):
    mask = json.loads((disk.folder / RUN / "mask.json").read_text())
    dims = {(one["rule"], one["population"]): {row["dim"] for row in one["dims"]} for one in mask["masks"]}
    assert dims["dettmers", "all"] == {5} and 7 in dims["massive", "all"]
    assert mask["super_weights"] == []
    massive = next(one["massive"] for one in mask["masks"] if (one["rule"], one["population"]) == ("massive", "all"))
    at_z = [one for one in massive["tokens"] if one["token_text"] == "z"]
    assert len(at_z) == 1 and at_z[0]["positions"]["other"] > 0


def test_the_example_of_the_docs_does_what_it_says(disk, monkeypatch):
    """On the run's own activations: the dims that it leaves out are exact, and the others are quantized far better."""
    text = (ROOT / "docs/mask_example.py").read_text()
    assert text in (ROOT / "docs/mask.md").read_text()
    monkeypatch.chdir(disk.folder)
    example: dict = {}
    exec(text.replace("results/smollm2-135m/python-docs", RUN), example)
    keep = example["keep"]
    assert len(keep) == 32 and not keep[5] and not keep[7]
    assert example["skip_first_and_special"] is False  # z is no first token
    file = sorted((disk.folder / RUN / "activations").glob("*.safetensors"))[0]
    x = load_file(file)["attn_norm.3"]
    without, with_all = example["quantized"](x, keep), example["quantized"](x, torch.ones_like(keep))
    assert torch.equal(without[..., ~keep], x[..., ~keep])
    error = [(one - x)[..., keep].square().mean() for one in (without, with_all)]
    assert 0 < 4 * error[0] < error[1]


def test_snakemakes_own_report_carries_the_figures(disk):
    run = disk.run("all", "figures", "export", "--report", "report.zip")
    assert run.status == 0, run.output
    with zipfile.ZipFile(disk.folder / "report.zip") as archive:
        names = archive.namelist()
        page = archive.read("report/report.html").decode()
    carried = {Path(name).name for name in names}
    assert {path.name for path in (disk.folder / RUN / "figures").rglob("[!.]*") if path.is_file()} <= carried
    beside = disk.folder / "results/report"
    files = {str(path.relative_to(beside)) for path in beside.rglob("[!.]*") if path.is_file()}
    assert len(files) > 50 and all(any(name.endswith(f"/{file}") for name in names) for file in files)
    assert {"index.html", "summary.json", "mask.json", "costs.csv", "dims.csv", "massive.csv"} <= carried
    assert "a view for each population and the data that are drawn" in page  # the figures' caption
    for text in ("Figures", "Summaries", "Tables", "Costs"):
        assert text in page
    assert not re.search(r'<(script|link)[^>]* (src|href)="?https?:', page)


@pytest.mark.slow  # the sentence itself is in tests/unit/test_draw_figures.py
def test_images_without_a_chrome_end_in_one_line(disk, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(disk.folder / "no-chrome"))
    failed = disk.run("figures", figures__formats=["pdf"])
    assert failed.status == 1
    last = [line for line in failed.output.splitlines() if line.startswith("rule draw_figures failed: ")]
    assert len(last) == 1 and "figures.formats asks for pdf, which needs a Chrome" in last[0]
    assert "Traceback" not in failed.output


def test_a_wrong_format_is_refused_by_name(disk):
    failed = disk.run("figures", "--dry-run", figures__formats=["eps"])
    assert (
        failed.status == 1
        and "error: config: figures.formats.0 is 'eps', expected one of svg, pdf, png" in failed.output
    )


def test_show_prints_the_run(disk, capsys):
    assert main(["show", str(disk.folder / "results"), "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tiny,text,all,dettmers,attn_norm+mlp_norm,5,") for line in lines)
