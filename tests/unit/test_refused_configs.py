"""Each mistake in a configuration is refused in one sentence: where, what was found, what was expected.

In this process, by what Snakemake's rules call first; tests/workflow/test_mistakes.py has a few from end to end.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from snakemake.utils import update_config

from outlier_features.errors import InputError
from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import read_schema, require_files, resolve_config
from outlier_features.run.config_files import require_arguments, require_config_file
from outlier_features.run.local_models import LocalModels

ROOT = Path(__file__).parents[2]
SCHEMA = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
CATALOG = read_catalog(ROOT / "workflow/catalog.yaml")
LLAMA, TEXT = "catalog__models__tiny", "catalog__corpora__text"
OVERLAY = {
    "models": ["tiny"],
    "corpora": ["text"],
    "sample": {"sequences": 6, "tokens": 48},
    "extract": {"chunk_sequences": 4, "batch_size": 3},
    "catalog": {"models": {"tiny": {"path": "llama"}}, "corpora": {"text": {"files": ["text.txt"]}}},
}


def dump(name: str, **keys: Any) -> dict[str, Any]:
    return {LLAMA: {"dump": f"{name}.safetensors", "keys": {"attn_norm": "attn"}, **keys}}


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key, nearest": (
        {"rules__dettmers__treshold": 6},
        ("unknown key 'treshold' in rules.dettmers", "'threshold'"),
    ),
    "unknown key in the catalog": ({"catalog__model": {}}, ("unknown key 'model' in catalog", "'models'")),
    "text for a number": ({"sample__sequences": "6"}, ("sample.sequences is '6', expected integer",)),
    "half a sequence": ({"sample__sequences": 1.5}, ("sample.sequences is 1.5, expected integer",)),
    "a number for a section": ({"rules": 3}, ("rules is 3, expected mapping",)),
    "nothing for a list": ({"models": None}, ("models is None, expected list",)),
    "a list for a catalog": ({"catalog": [1]}, ("catalog is [1], expected mapping",)),
    "zero": ({"extract__chunk_sequences": 0}, ("extract.chunk_sequences is 0, expected at least 1",)),
    "negative": ({"extract__batch_size": -8}, ("extract.batch_size is -8, expected at least 1",)),
    "huge": ({"trace_origin__dims": [10**30]}, ("trace_origin.dims.0 is 1000", "expected a finite number")),
    "too many chunks": (
        {"sample__sequences": 10**9},
        ("make 250000000 chunks of extract.chunk_sequences", "at most 100000"),
    ),
    "not a number": ({"rules__dettmers__threshold": float("nan")}, ("rules.dettmers.threshold is nan", "finite")),
    "infinite": ({"rules__massive__ratio": float("inf")}, ("rules.massive.ratio is inf", "finite")),
    "a share above 1": (
        {"rules__dettmers__position_share": 6},
        ("rules.dettmers.position_share is 6, expected at most 1",),
    ),
    "a share below 0": ({"detect__max_density": -0.1}, ("detect.max_density is -0.1, expected at least 0",)),
    "a floor above a threshold": (
        {"detect__floors": {"mlp_norm": 7}},
        ("rules.dettmers.threshold is 6", "detect.floors.mlp_norm: 7"),
    ),
    "unknown model": ({"models": ["tinny"]}, ("models names 'tinny'", "did you mean 'tiny'")),
    "unknown corpus": ({"corpora": ["test"]}, ("corpora names 'test'", "did you mean 'text'")),
    "a model twice": ({"models": ["tiny", "tiny"]}, ("models is ['tiny', 'tiny'], expected each entry once",)),
    "a name that goes up": ({"models": ["../up"]}, ("models.0 is '../up', expected a match",)),
    "an absolute name": ({"corpora": ["/etc"]}, ("corpora.0 is '/etc', expected a match",)),
    "a name with a line break": ({"models": ["tiny\n"]}, ("models.0 is 'tiny\\n'", "without control characters")),
    "a name with NUL": ({"models": ["a\0b"]}, ("models.0 is 'a\\x00b'", "without control characters")),
    "a name of 300 letters": ({"models": ["abc" * 100]}, ("models.0 is 'abc", "at most 128 characters")),
    "unknown site": ({"sites": ["residual"]}, ("sites.0 is 'residual', expected one of resid_pre",)),
    "unknown dtype": ({"extract__dtype": "fp32"}, ("extract.dtype is 'fp32', expected one of float32",)),
    "unknown device": ({"extract__device": "gpu"}, ("extract.device is 'gpu', expected one of auto",)),
    "two sources": (
        {LLAMA: {"path": "llama", "hub": "a/b"}},
        ("catalog.models.tiny.path: llama is no .gguf file, expected one of the repository",),
    ),
    "no source": ({TEXT: {"column": "text"}}, ("catalog.corpora.text has no source, expected one of",)),
    "no such directory": ({LLAMA: {"path": "none"}}, ("catalog.models.tiny.path: none is not a directory",)),
    "no such text": ({TEXT: {"files": ["none.txt"]}}, ("catalog.corpora.text.files: none.txt is not a file",)),
    "a directory for a text": (
        {TEXT: {"files": ["folder.txt"]}},
        ("catalog.corpora.text.files: folder.txt is not a file",),
    ),
    "braces in the path of a text": ({TEXT: {"files": ["a{b}.txt"]}}, ("files: 'a{b}.txt' has braces",)),
    "braces in the path of a model": ({LLAMA: {"path": "my{model}"}}, ("path: 'my{model}' has braces",)),
    "a text of another kind": (
        {TEXT: {"files": ["text.docx"]}},
        ("files: text.docx is of no known kind, expected .txt",),
    ),
    "a hub id that is a path": (
        {LLAMA: {"hub": "../../etc/passwd"}},
        ("catalog.models.tiny.hub is '../../etc/passwd'",),
    ),
    "an option for a wheel": (
        {LLAMA: {"pypi": "--pre==1", "path": "x", "sha256": "0" * 64}},
        ("tiny.pypi is '--pre==1'",),
    ),
    "results in a file": ({"results": "text.txt/x"}, ("results is 'text.txt/x', but text.txt is a file",)),
    "results as a pattern": ({"results": "{model}"}, ("results is '{model}', expected a path without braces",)),
    "results are resources": ({"results": "x", "resources": "./x/"}, ("results and resources are both 'x'",)),
    "a dump without its key": (dump("a", keys={"attn_norm": "atn"}), ("has no tensor 'atn', nearest: attn",)),
    "a dump of an unknown site": (dump("a", keys={"attention": "attn"}), ("catalog.models.tiny.keys",)),
    "a dump that is not there": (dump("no"), ("dump: no.safetensors is not a file",)),
    "a dump cut at its end": (dump("cut"), ("cut.safetensors: expected a whole safetensors file",)),
    "a dump of three axes": (dump("flat"), ("attn has shape [4, 5, 32]", "expected layout to say which")),
    "a dump with a layout": (dump("a", layout="NLHT"), ("layout is 'NLHT', expected one of NLTH",)),
    "a dump that is a model": (dump("a", path="llama"), ("catalog.models.tiny has path and dump, expected one of",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model's directory, a text, and dumps."""
    folder: Path = tmp_path_factory.mktemp("mistakes")
    (folder / "llama").mkdir()
    (folder / "folder.txt").mkdir()
    (folder / "text.txt").write_text("A text.")
    x = np.random.default_rng(3).standard_normal((4, 4, 5, 32)).astype(np.float32)
    save_file({"attn": x, "mlp": x}, folder / "a.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-100])
    save_file({"attn": x[0]}, folder / "flat.safetensors")
    return folder


def check(changes: dict[str, Any]) -> None:
    """What stands before the rules, on the shipped configuration with an overlay, of which keys are set."""
    overlay: dict[str, Any] = copy.deepcopy(OVERLAY)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = overlay
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    update_config(config, overlay)
    resolved = resolve_config(with_catalog(config, CATALOG), SCHEMA)
    require_files(resolved)
    LocalModels.of(resolved["catalog"]["models"])


def test_a_model_that_is_not_there_leaves_the_others(tmp_path: Path) -> None:
    save_file({"attn": np.ones((2, 3, 4, 8), np.float32)}, tmp_path / "whole.safetensors")
    dump = {"dump": str(tmp_path / "whole.safetensors"), "keys": {"attn_norm": "attn"}}
    wrong = {
        "nowhere": {"path": str(tmp_path / "nowhere")},
        "gone": {**dump, "dump": str(tmp_path / "gone.safetensors")},
    }
    found = LocalModels.of({**wrong, "saved": dump, "hub": {"hub": "org/name"}})
    assert [*found.dumps] == ["saved"] and found.refused.keys() == wrong.keys()
    with pytest.raises(InputError, match=r"catalog\.models\.nowhere\.path"):
        LocalModels.of(wrong)


def sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


def test_without_a_mistake_there_is_no_error(folder, monkeypatch):
    monkeypatch.chdir(folder)
    check({})
    check(dump("a"))


@pytest.mark.parametrize("case", CONFIGS)
def test_a_mistake_in_the_configuration(folder, monkeypatch, case):
    monkeypatch.chdir(folder)
    changes, words = CONFIGS[case]
    with pytest.raises(InputError) as error:
        check(changes)
    missing = [word for word in words if word not in sentence(error)]
    assert not missing, (missing, str(error.value))


OVERLAYS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "not closed": (b"models: [tiny\ncorpora: [text]\n", ("bad.yaml, line 2", "expected YAML")),
    "a tab": (b"sample:\n\ttokens: 8\n", ("bad.yaml, line 2, column 1", "'\\t'")),
    "a key twice": (b"models: [tiny]\nmodels: [tiny]\n", ("bad.yaml, line 2", "'models' twice")),
    "a key twice, deep": (b"a:\n  b: {c: 1, c: 2}\n", ("bad.yaml, line 2", "'c' twice")),
    "a key twice in JSON": (b'{"models": [], "models": []}', ("bad.yaml", "'models' twice")),
    "a list": (b"- models\n", ("bad.yaml: found a list", "expected keys")),
    "empty": (b"# nothing\n", ("bad.yaml: found nothing", "expected keys")),
    "another encoding": ("models: [tiny]".encode("utf-16"), ("bad.yaml: expected UTF-8, found byte 0xff",)),
    "a Python object": (b"a: !!python/name:os.system\n", ("bad.yaml, line 1", "python/name:os.system")),
    "a template": (b"__use_yte__: true\na: ?open('ran', 'w')\n", ("bad.yaml", "__use_yte__")),
}  # fmt: skip


@pytest.mark.parametrize("case", OVERLAYS)
def test_a_file_that_is_no_configuration(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, words = OVERLAYS[case]
    Path("bad.yaml").write_bytes(content)
    with pytest.raises(InputError) as error:
        require_config_file("bad.yaml")
    assert all(word in sentence(error) for word in words), str(error.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--configfile", "none.yaml"), ("none.yaml: cannot be read, No such file",)),
        (("--configfile", "folder.txt"), ("folder.txt: cannot be read, Is a directory",)),
        (("--config", "rules"), ("--config: found 'rules', expected key=value",)),
        (("--config", "sample.tokens=3"), ("--config: found 'sample.tokens=3'", "a key of the top level")),
    ],
)
def test_a_mistake_on_the_command_line(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as error:
        require_arguments(["--dry-run", *arguments])
    assert all(word in sentence(error) for word in words), str(error.value)
