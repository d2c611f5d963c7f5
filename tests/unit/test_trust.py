"""docs/trust.md, as far as it can be read off the source: nothing that came from outside is run."""

import ast
import pickle
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlier_features.errors import InputError
from outlier_features.model.model_files import model_files

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("workflow/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("docs/*.py")])
RULES = [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))]

NO_IMPORT = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "codeop"}
NO_NAME = {"eval", "exec", "compile", "__import__"}
NO_CALL = {
    "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pickle.load", "pickle.loads", "runpy.run_path",
    "pd.read_pickle", "pandas.read_pickle", "torch.hub.load", "zipfile.ZipFile.extractall", "tarfile.open",
}  # fmt: skip
# A module's name that is put together: of the standard library as the schema lists them, of our own commands, of our
# own tables' descriptions, of our own kinds of rules and of what the package itself offers.
IMPORTS_BY_NAME = {"__init__.py", "documents.py", "main.py", "tables.py", "kinds.py"}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "?")


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((one.value for one in call.keywords if one.arg == name), None)


def dangers(source: str, name: str) -> Iterator[str]:
    """What in a module may run what it is given."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for imported in [module] if module else [one.name for one in node.names]:
                if imported.split(".")[0] in NO_IMPORT:
                    yield f"imports {imported}"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        last = called.rpartition(".")[2]
        if called in NO_NAME or called in NO_CALL or last == "extractall":
            yield f"calls {called}"
        if last == "import_module" and not isinstance(node.args[0], ast.Constant) and name not in IMPORTS_BY_NAME:
            yield f"calls {called} with a name that is put together"
        if called == "torch.load" and not (
            isinstance(safe := keyword(node, "weights_only"), ast.Constant) and safe.value
        ):
            yield "calls torch.load without weights_only"
        if called in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is not None:
            yield "calls numpy.load with allow_pickle"
        if called == "yaml.load" and dotted(node.args[1]) not in ("_Strict", "yaml.SafeLoader", "yaml.CSafeLoader"):
            yield "calls yaml.load with a loader that makes objects"
        shell = keyword(node, "shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield f"calls {called} with a shell"
        if called.startswith("subprocess.") and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
            yield f"calls {called} with a line of text"
        trust = keyword(node, "trust_remote_code")
        if isinstance(trust, ast.Constant) and trust.value:
            yield f"calls {called} with trust_remote_code"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_is_given(path):
    assert list(dangers(path.read_text(encoding="utf-8"), path.name)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(x)", "os.system(x)", "subprocess.run(x, shell=True)",
        "subprocess.run(f'ls {x}')", "torch.load(x)", "torch.load(x, weights_only=False)", "yaml.load(x, yaml.Loader)",
        "np.load(x, allow_pickle=True)", "importlib.import_module(x)", "archive.extractall(x)", "yaml.unsafe_load(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(line):
    assert list(dangers(line, "x.py"))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_no_rule_runs_what_it_is_given(path):
    """Rules are Python with words of Snakemake's. That none has a shell, test_rule_resources.py asks of the jobs."""
    with path.open(encoding="utf-8") as file:
        names = {token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.NAME}
    assert not names & {*NO_NAME, *NO_IMPORT - {"code"}, "shell", "subprocess", "system", "popen", "import_module"}


@pytest.mark.parametrize(
    "name", ["../up.json", "a/../../up.json", "/etc/up.json", "a\\up.json", "a\nb.json", "a\0.json"]
)
def test_files_that_leave_their_directory_are_refused(name):
    names = ["config.json", "model.safetensors", name]
    with pytest.raises(InputError, match=r"^hub: m has a file .*, expected none that leaves its directory"):
        model_files(names, lambda name: "{}", "hub: m")


def test_code_and_pickles_are_not_among_a_model_s_files():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "own.py", "a/own.py", "training_args.bin"]
    assert model_files(names, lambda name: "{}", "m") == ["config.json", "model.safetensors"]
    assert model_files(names, lambda name: "{}", "m", True) == [
        "a/own.py",
        "config.json",
        "model.safetensors",
        "own.py",
    ]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_payload_is_one(tmp_path):
    """What the workflow's test puts into a pickle creates its file when it is unpickled."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_the_audit_says_what_it_could_not_ask(tmp_path):
    """Where there is no service it is not red, and one line says so."""
    lock = tmp_path / "requirements.lock"
    lock.write_text("tqdm==4.67.1\n")
    pytest.importorskip("pip_audit")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/audit_lock.py", lock], capture_output=True, text=True, check=False,
        env={"PATH": "", "HTTPS_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert "cannot be reached, so requirements.lock is not audited" in done.stdout
