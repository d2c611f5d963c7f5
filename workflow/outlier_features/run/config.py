"""The configuration: filled with the schema's defaults and checked, before any rule is built."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from stat import S_ISDIR
from typing import Any

import yaml
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError, best_match

from outlier_features.dump.dumps import CORPUS
from outlier_features.errors import InputError
from outlier_features.fetch.documents import file_kind
from outlier_features.files.layer_keys import LAYER
from outlier_features.model_name import HALVES, split_half
from outlier_features.rules.configured import (
    complete_rules,
    own_keys_schema,
    rules_schema,
    set_sensitivity,
    sites_of,
    thresholds_of,
)
from outlier_features.rules.kinds import rules_of
from outlier_features.run.revisions import with_revisions

Schema = Mapping[str, Any]

MAX_CHUNKS = 100_000  # each is a job or more, which Snakemake holds in memory
_LARGEST = 2**53  # of a number: beyond it not every integer is a float
_SHOWN = 100  # characters of a value in a message
_TYPES = {"array": "list", "object": "mapping", "string": "text"}  # as YAML's users call them
_PLACES = ("results", "resources")
# Keys of a model's catalog entry that say how it is loaded, or read: no reason to fetch it again.
_LOADING = {"dtype", "attention", "placement", "part", "first_token", "labels", "tokenizer", "gains"}


def read_schema(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    return dict(yaml.load(text, yaml.CSafeLoader) if yaml.__with_libyaml__ else yaml.safe_load(text))


def resolve_config(config: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """`config` with every default, and of the catalog only what is selected.

    A corpus' sample takes the keys it lacks from the top-level `sample`. Raises `InputError` with the key that is
    wrong, what was found and what was expected. An entry that is not selected is not looked at.
    """
    config = _with_halves(with_revisions(config))
    selected = {**config, "catalog": _selected_catalog(config)}
    _require_plain(selected, "the top level")
    if isinstance(selected.get("rules", {}), Mapping):
        rules = complete_rules(selected.get("rules", {}), schema["properties"]["rules"]["default"])
        _check(selected, _with_rules(schema, own_keys_schema(rules)))
        selected["rules"] = rules
        schema = _with_rules(schema, rules_schema(rules))
    _check(selected, schema)
    for kind in ("models", "corpora"):
        for name in selected[kind]:
            _require_known(kind, name, _entries(config, kind))
    if CORPUS in selected["corpora"]:
        raise InputError(f"config: corpora names {CORPUS!r}, expected another name, since that of dumps is {CORPUS!r}")
    complete = with_defaults(selected, schema, schema)
    for entry in complete["catalog"]["models"].values():
        entry.pop("revisions", None)
    for corpus, entry in complete["catalog"]["corpora"].items():
        own = selected["catalog"]["corpora"][corpus].get("sample", {})
        entry["sample"] = {**complete["sample"], **own}
        entry["sample"]["bos"] = {True: "always", False: "never"}.get(entry["sample"]["bos"], entry["sample"]["bos"])
    for key in _PLACES:
        complete[key] = _place(key, complete[key])
    _require_apart(complete)
    _set_rules(complete)
    _set_floors(complete, selected.get("detect", {}).get("floors", {}))
    _set_remedied(complete["quantize"], selected.get("quantize", {}).get("remedied"))
    _check_chunks(complete)
    return complete


def _with_rules(schema: Schema, rules: Schema) -> Schema:
    properties = schema["properties"]
    return {**schema, "properties": {**properties, "rules": {**properties["rules"], **rules}}}


def fetched_name(model: str, source: Mapping[str, Any]) -> str:
    """The name that a model is fetched under: that of the whole model."""
    return model.removesuffix(f".{source['part']}") if "part" in source else model


def source_alone(source: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model's catalog entry that say what is fetched."""
    return {key: value for key, value in source.items() if key not in _LOADING}


def _with_halves(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with an entry of its own for each half of an encoder-decoder model that is selected.

    `<name>.encoder` and `<name>.decoder` are the halves of `<name>`; the name alone means both, where the model lies in
    a directory that says so.
    """
    entries = _entries(config, "models")
    names: list[str] = []
    for name in _names(config, "models"):
        both = name in entries and _is_encoder_decoder(entries[name])
        names += [f"{name}.{half}" for half in HALVES] if both else [name]
    halves = {}
    for name in names:
        whole, half = split_half(name)
        if name not in entries and half and isinstance(entries.get(whole), Mapping):
            halves[name] = {**entries[whole], "part": half}
    if not halves:
        return config
    catalog = {**config["catalog"], "models": {**entries, **halves}}
    return {**config, "models": list(dict.fromkeys(names)), "catalog": catalog}


def _is_encoder_decoder(source: Any) -> bool:
    """Whether a model that lies on this machine says that it has an encoder and a decoder."""
    if not isinstance(source, Mapping) or {"pypi", "hub", "transformer_lens", "dump", "part"} & source.keys():
        return False
    try:
        config = json.loads((Path(str(source.get("path"))) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # as the fetch will say
    return isinstance(config, dict) and config.get("is_encoder_decoder") is True


def turned_off(config: Mapping[str, Any], analysis: str) -> str | None:
    """Why the configuration leaves out an analysis, one of `missing.ANALYSES`; None if it does not."""
    if analysis in config["skip"]:
        return f"`skip` names {analysis}"
    needed = {"super_weights": "super_weight", "experts": "super_expert", "expert_ablation": "super_expert"}
    for name, kind in needed.items():
        if analysis == name and not any(rule["kind"] == kind for rule in config["rules"].values()):
            return f"`rules` has none of kind {kind}"
    if analysis in ("super_weights", "ablation", "expert_ablation", "knock_outs") and not config["ablate"]["sequences"]:
        return "`ablate.sequences` is 0"
    if analysis == "origin" and config["trace_origin"]["dims"] == []:
        return "`trace_origin.dims` is empty"
    return None


def require_files(config: Mapping[str, Any]) -> None:
    """Raise `InputError` where a selected corpus's file is not there, a path cannot be used, or results cannot be.

    Of models that lie on this machine, `LocalModels` says whether they are there.
    """
    for key in _PLACES:
        _require_directory(key, Path(config[key]))
    for name, model in config["catalog"]["models"].items():
        _require_no_braces(f"catalog.models.{name}", model)
        if model.get("labels", "").endswith(".json") and not Path(model["labels"]).is_file():
            raise InputError(f"config: catalog.models.{name}.labels: {model['labels']} is not a file")
        if "tokenizer" in model and not Path(model["tokenizer"]).is_dir():
            raise InputError(f"config: catalog.models.{name}.tokenizer: {model['tokenizer']} is not a directory")
        if "tokenizer" in model and model["labels"].endswith(".json"):
            raise InputError(
                f"config: catalog.models.{name}.labels: {model['labels']} has texts, expected a key of token ids, "
                "whose text `tokenizer` says"
            )
        if "path" in model and "hub" in model and Path(model["path"]).suffix != ".gguf":
            raise InputError(
                f"config: catalog.models.{name}.path: {model['path']} is no .gguf file, expected one of the "
                "repository, or no path for all of it"
            )
    for name, corpus in config["catalog"]["corpora"].items():
        _require_no_braces(f"catalog.corpora.{name}", corpus)
        for file in corpus.get("files", []):
            try:
                file_kind(file)
            except InputError as error:
                raise InputError(f"config: catalog.corpora.{name}.{error}") from error
            if not Path(file).is_file():
                raise InputError(f"config: catalog.corpora.{name}.files: {file} is not a file")


def _require_no_braces(key: str, source: Mapping[str, Any]) -> None:
    """Snakemake takes a brace in the path of an input for a wildcard, and has no way to write one that is none."""
    for name in ("path", "files", "dump", "labels", "tokenizer"):
        paths = source.get(name, [])
        for path in [paths] if isinstance(paths, str) else paths:
            rest = path.replace(LAYER, "") if name == "dump" else path
            if "{" in rest or "}" in rest:
                raise InputError(
                    f"config: {key}.{name}: {_shown(path)} has braces, expected a path without (a link will do)"
                )


def with_defaults(value: Any, schema: Schema, root: Schema) -> Any:
    """`value` with the schema's defaults at every level; keys come in the schema's order."""
    schema = dereferenced(schema, root)
    if not isinstance(value, Mapping) or ("properties" not in schema and "additionalProperties" not in schema):
        return value
    filled = {}
    for key, sub in schema.get("properties", {}).items():
        sub = dereferenced(sub, root)
        if key in value:
            filled[key] = with_defaults(value[key], sub, root)
        elif "default" in sub and _applies(key, value, schema):
            filled[key] = with_defaults(sub["default"], sub, root)
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        filled |= {key: with_defaults(value[key], extra, root) for key in value if key not in filled}
    return filled


def dereferenced(schema: Schema, root: Schema) -> Schema:
    """`schema` with a `$ref` to the root's `$defs` put in its place; keys beside the `$ref` win."""
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _applies(key: str, value: Mapping[str, Any], schema: Schema) -> bool:
    """A default is not given where another key that it needs is absent (a revision without a hub id)."""
    return all(needed in value for needed in schema.get("dependentRequired", {}).get(key, []))


def _selected_catalog(config: Mapping[str, Any]) -> Any:
    """The catalog with the selected entries only; where it is no catalog, as it is."""
    catalog = config.get("catalog", {})
    if not isinstance(catalog, Mapping):
        return catalog
    selected = dict(catalog)
    for kind in ("models", "corpora"):
        if isinstance(catalog.get(kind), Mapping):
            names = _names(config, kind)
            selected[kind] = {name: entry for name, entry in catalog[kind].items() if name in names}
    return selected


def _entries(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    catalog = config.get("catalog") or {}
    entries = catalog.get(kind) if isinstance(catalog, Mapping) else None
    return entries if isinstance(entries, Mapping) else {}


def _names(config: Mapping[str, Any], kind: str) -> list[str]:
    names = config.get(kind)
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _require_known(kind: str, name: str, entries: Mapping[str, Any]) -> None:
    if name not in entries:
        nearest = difflib.get_close_matches(name, map(str, entries), 1)
        hint = f", did you mean {nearest[0]!r}" if nearest else ""
        raise InputError(f"config: {kind} names {name!r}, expected a name defined in catalog.{kind}{hint}")


def _require_plain(value: Any, key: str) -> None:
    """Raise `InputError` where a text has control characters, or a number is none that can be computed with."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _require_plain(name, f"a key in {key}")
            _require_plain(entry, str(name) if key == "the top level" else f"{key}.{name}")
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _require_plain(entry, f"{key}.{i}")
    elif isinstance(value, str) and not value.isprintable():
        raise InputError(f"config: {key} is {_shown(value)}, expected text without control characters")
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
        raise InputError(f"config: {key} is {_shown(value)}, expected a finite number of at most {_LARGEST}")


def _place(key: str, text: str) -> str:
    """The path of a directory as Snakemake takes it best: without `./`, `//` and a `/` at its end."""
    if text.startswith("~") or "{" in text or "}" in text:
        raise InputError(f"config: {key} is {_shown(text)}, expected a path without braces and without ~ at its start")
    return str(PurePath(text))


def _require_apart(config: Mapping[str, Any]) -> None:
    results, resources = (Path(config[key]).absolute() for key in _PLACES)
    if results == resources:
        raise InputError(f"config: results and resources are both {config['results']!r}, expected two directories")


def _require_directory(key: str, path: Path) -> None:
    for place in (path, *path.parents):
        try:
            is_directory = S_ISDIR(place.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(f"config: {key} is {_shown(str(path))}, which cannot be used: {error.strerror}") from error
        if not is_directory:
            raise InputError(f"config: {key} is {str(path)!r}, but {place} is a file, expected a directory")
        return


def _set_remedied(quantize: dict[str, Any], asked: list[str] | None) -> None:
    """Remedies are tried on schemes that are measured: of those of the default, if none is asked for, on these."""
    others = [scheme for scheme in quantize["remedied"] if scheme not in quantize["schemes"]]
    if asked is not None and others:
        raise InputError(
            f"config: quantize.remedied names {others[0]!r}, expected schemes that quantize.schemes names: "
            f"{', '.join(quantize['schemes'])}"
        )
    quantize["remedied"] = [scheme for scheme in quantize["remedied"] if scheme not in others]


def _check_chunks(config: Mapping[str, Any]) -> None:
    size = config["extract"]["chunk_sequences"]
    for name, corpus in config["catalog"]["corpora"].items():
        sequences = corpus["sample"]["sequences"]
        if (chunks := math.ceil(sequences / size)) > MAX_CHUNKS:
            raise InputError(
                f"config: {sequences} sequences of corpus {name!r} make {chunks} chunks of extract.chunk_sequences: "
                f"{size}, expected at most {MAX_CHUNKS}"
            )


# JSON's integers include 48.0, which counts nothing here.
_Validator: Any = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda checker, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def _check(config: Mapping[str, Any], schema: Schema) -> None:
    error = best_match(_Validator(schema).iter_errors(config))
    if error is not None:
        raise InputError(f"config: {_sentence(error)}")


def _sentence(error: ValidationError) -> str:
    key = ".".join(map(str, error.absolute_path)) or "the top level"
    found: Any = error.instance
    schema: Any = error.schema
    wanted: Any = error.validator_value
    if error.validator == "additionalProperties":
        unknown = next(name for name in found if name not in schema.get("properties", {}))
        nearest = difflib.get_close_matches(str(unknown), schema.get("properties", {}), 1)
        hint = f", did you mean {nearest[0]!r}" if nearest else ""
        return f"unknown key {unknown!r} in {key}{hint}"
    if "propertyNames" in error.schema_path:
        return f"{key} has the key {_shown(found)}, expected {_expected(error)}"
    if error.validator == "required":
        return f"{key} lacks the key {next(name for name in wanted if name not in found)!r}"
    if error.validator == "dependentRequired":
        name, needed = next((name, one) for name in found for one in wanted.get(name, ()) if one not in found)
        return f"{key} has the key {name!r}, expected {needed!r} beside it"
    if error.validator == "oneOf":
        sources = [choice["required"][0] for choice in wanted]
        named = [name for name in sources if name in found]
        return f"{key} has {' and '.join(named) or 'no source'}, expected one of {', '.join(sources)}"
    return f"{key} is {_shown(found)}, expected {_expected(error)}"


def _shown(value: Any) -> str:
    """As Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _expected(error: ValidationError) -> str:
    wanted: Any = error.validator_value
    schema: Any = error.schema
    match error.validator:
        case "type":
            return " or ".join(_TYPES.get(one, one) for one in ([wanted] if isinstance(wanted, str) else wanted))
        case "anyOf":
            return " or ".join(map(_kind, wanted))
        case "enum":
            return f"one of {_words(wanted)}"
        case "pattern":
            examples = schema.get("examples", ())
            return f"a match of {wanted}" + "".join(f", such as {example}" for example in examples)
    phrases = {
        "minimum": f"at least {wanted}",
        "maximum": f"at most {wanted}",
        "exclusiveMinimum": f"more than {wanted}",
        "minItems": f"at least {wanted} entries",
        "minLength": "a non-empty text",
        "maxLength": f"at most {wanted} characters",
        "uniqueItems": "each entry once",
    }
    return phrases.get(str(error.validator), error.message)


def _kind(choice: Schema) -> str:
    """One of the choices of an `anyOf`: some words, a list, or a number."""
    if "enum" in choice:
        return _words(choice["enum"])
    if "items" in choice:
        return f"a list of {choice['items']['type']}s"
    return f"an {choice['type']} from {choice['minimum']} to {choice['maximum']}"


def _words(values: Sequence[Any]) -> str:
    """As YAML writes them."""
    return ", ".join(value if isinstance(value, str) else json.dumps(value) for value in values)


def _set_rules(config: dict[str, Any]) -> None:
    """Check each rule as a whole, and extract the sites that the rules need."""
    config["rules"] = set_sensitivity(config["rules"], config["sensitivity"]["thresholds"])
    for rule in rules_of(config["rules"]).values():
        rule.require_sound()
    config["sites"] = [*config["sites"], *sorted(sites_of(config["rules"]) - {*config["sites"]})]


def _set_floors(config: dict[str, Any], chosen: Mapping[str, float]) -> None:
    """Lower floors to the thresholds that are applied there; one that was `chosen` above a threshold is an error."""
    floors = config["detect"]["floors"]
    dumped = {site for model in config["catalog"]["models"].values() for site in model.get("keys", {})}
    for key, threshold, site in thresholds_of(config["rules"], {*config["sites"], *dumped}):
        if threshold < floors[site]:
            if site in chosen:
                raise InputError(
                    f"config: {key} is {threshold:g}, below detect.floors.{site}: {chosen[site]:g}; expected a floor "
                    f"at most every threshold used there, or none set"
                )
            floors[site] = float(threshold)
