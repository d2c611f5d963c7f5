"""The plan of all runs of a configuration, as a document."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlier_features.channels import channel_sizes
from outlier_features.dump.dumps import CORPUS, Dump
from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.loading import Wanted
from outlier_features.model.memory import GPU, need_of
from outlier_features.model_name import split_name
from outlier_features.neurons import store_size
from outlier_features.plan.disk import Activations, activations_of_dump, activations_of_model
from outlier_features.plan.hours import Measured, Work, expected_time, measured_runs, seconds_of_run
from outlier_features.plan.jobs import jobs_beside, jobs_of_run, runs_of, sample_of
from outlier_features.plan.model_config import FoundConfig, find_config
from outlier_features.run.config import turned_off
from outlier_features.run.loads import rules_that_load

_POPULATIONS = 3  # of the tables of neurons
_PLACEMENTS: tuple[Wanted, ...] = ("one", "spread", "layerwise")
Document = dict[str, Any]


def plan_run(config: Mapping[str, Any]) -> Document:
    """What is known of a resolved configuration's runs; what is not is None, with the reason beside it.

    Raises `InputError` where a dump is not as its entry says, or a benchmark is damaged.
    """
    models: Mapping[str, Mapping[str, Any]] = config["catalog"]["models"]
    resources = Path(config["resources"])
    # The hub's library is told to be offline once transformers is imported, so configs are looked for first.
    first = _first_revisions(name for name in config["models"] if "dump" not in models[name])
    configs = {name: _config(name, models[name], resources) for name in dict.fromkeys(first.values())}
    dumps = {name: Dump.open(models[name]) for name in config["models"] if "dump" in models[name]}
    of_first = {name: _Sized.of(found, models[name], config) for name, found in configs.items()}
    sized = {name: of_first[one] for name, one in first.items()}
    runs = [_Run.of(config, model, corpus, sized.get(model), dumps.get(model)) for model, corpus in runs_of(config)]
    earlier = _earlier(config, sized, dumps)
    described = [_describe(run, config, earlier) for run in runs]
    jobs = jobs_beside(config) + sum((run.jobs for run in runs), Counter[str]())
    loads = [one["loads"] for one in described]
    return {
        "models": dict(_documents(first, of_first))
        | {name: {"dump": True, "bytes_of_files": _bytes(dump)} for name, dump in dumps.items()},
        "runs": described,
        "jobs": dict(sorted(jobs.items())),
        "loads": sum(loads) if all(one is not None for one in loads) else None,
    }


def _first_revisions(names: Iterable[str]) -> dict[str, str]:
    """By name of each model the first revision of it, whose config stands for all: training changes weights alone."""
    first: dict[str, str] = {}
    return {name: first.setdefault(split_name(name)[0], name) for name in names}


def _documents(first: Mapping[str, str], of_first: Mapping[str, "_Sized"]) -> Iterator[tuple[str, Document]]:
    for name, one in of_first.items():
        revisions = [revision for other in first if first[other] == name and (revision := split_name(other)[1])]
        yield split_name(name)[0], one.document | ({"revisions": revisions} if revisions else {})


def _config(name: str, source: Mapping[str, Any], resources: Path) -> FoundConfig | str:
    try:
        return find_config(name, source, resources)
    except InputError as error:
        return str(error)


@dataclass(frozen=True)
class _Sized:
    """A model on the meta device, its size, and what is told of it; `model` is None where it is not known."""

    model: Any
    size: Any
    no_loss: str | None
    document: Document

    @classmethod
    def of(cls, found: FoundConfig | str, source: Mapping[str, Any], config: Mapping[str, Any]) -> "_Sized":
        if isinstance(found, str):
            return cls(None, None, None, {"unknown": found})
        from outlier_features.model.models import empty_model
        from outlier_features.plan.model_size import size_of

        dtype = source.get("dtype", config["extract"]["dtype"])
        trust = bool(source.get("trust_remote_code", config["extract"].get("trust_remote_code", False)))
        try:
            model, no_loss = empty_model(found.folder, dtype=dtype, trust_remote_code=trust, part=source.get("part"))
        except InputError as error:
            return cls(None, None, None, {"unknown": str(error)})
        size = size_of(model)
        document = {
            "config": found.origin,
            "dtype": dtype,
            "parameters": size.parameters,
            "active_parameters": size.active,
            "bytes_of_weights": size.weights.total,
            "bytes_of_files": found.bytes_of_files,
            "placement": source.get("placement", config["extract"]["placement"]),
            "gpu_bytes": GPU,
            "needs": {placement: asdict(need_of(placement, size.weights)) for placement in _PLACEMENTS},
        }
        return cls(model, size, no_loss, document)


@dataclass(frozen=True)
class _Run:
    name: str
    sequences: int
    tokens: int
    jobs: Counter[str]
    flops: Document
    activations: Activations | str
    neurons: Document
    channels: Document
    loads: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any], model: str, corpus: str, sized: _Sized | None, dump: Dump | None) -> "_Run":
        density = config["detect"]["max_density"]
        jobs = jobs_of_run(config, model, corpus, dump)
        if dump:
            found = activations_of_dump(dump, density)
            no_run = _unknown("a dump is not run")
            return cls(f"{model}/{corpus}", len(dump.lengths), dump.tokens, jobs, no_run, found, no_run, no_run, 0)
        assert sized is not None
        sample = sample_of(config, corpus)
        sequences, tokens = sample["sequences"], sample["tokens"]
        part = config["catalog"]["models"][model].get("part")
        flops, activations = _work_of(sized, sequences, tokens, config["sites"], density, part)
        loads = None if sized.model is None else _loads(config, sized, jobs)
        neurons = _neurons_of(sized, sequences, config)
        channels = _channels_of(sized, sequences, tokens, config)
        return cls(f"{model}/{corpus}", sequences, tokens, jobs, flops, activations, neurons, channels, loads)

    @property
    def work(self) -> Work:
        values = None if isinstance(self.activations, str) else self.activations.values
        return Work(self.flops.get("total"), values)


def _work_of(
    sized: _Sized, sequences: int, tokens: int, sites: list[str], max_density: float, part: Any
) -> tuple[Document, Activations | str]:
    """FLOPs of a run's forward pass, and its activations, or why that is not known."""
    if sized.model is None:
        return _unknown(sized.document["unknown"]), sized.document["unknown"]
    from outlier_features.plan.flops import FORMULA, forward_flops

    size, attending, only_attention = sized.size, None, False
    try:
        one = forward_flops(sized.model, size, tokens, part)
        attending = one.softmaxes
        only_attention = not one.convolves and one.softmaxes >= (size.blocks or one.softmaxes + 1)
        flops: Document = {"weights": sequences * one.weights, "head": sequences * one.head}
        flops |= {"attention": sequences * one.attention, "total": sequences * one.total, "formula": FORMULA}
    except InputError as error:
        flops = _unknown(str(error))
    if size.blocks is None or size.width is None:
        return flops, "its config does not say how many blocks it has, or how wide they are"
    found = activations_of_model(
        sites, sequences * tokens, size.width, size.blocks, attending, only_attention, sized.document["dtype"],
        max_density,
    )  # fmt: skip
    return flops, found


def _neurons_of(sized: _Sized, sequences: int, config: Mapping[str, Any]) -> Document:
    """What a run keeps of its model's neurons, in bytes, or why that is not known."""
    if (why := turned_off(config, "neurons")) is not None:
        return _unknown(f"not ranked: {why}")
    if sized.model is None:
        return _unknown(sized.document["unknown"])
    if not sized.size.neurons:
        return _unknown("the shapes of its weights do not say how many it has")
    of_chunk = min(sequences, config["extract"]["chunk_sequences"])
    examples = config["neurons"]["examples"]
    count, of_block, merged = sum(sized.size.neurons), max(sized.size.neurons), min(examples, sequences)
    in_chunk = min(examples, of_chunk)
    return {
        "count": count,
        "chunks": -(-sequences // of_chunk),
        "bytes_of_chunk": store_size.written(count, in_chunk),
        "bytes_of_store": store_size.written(count, merged),
        "bytes_of_tables": store_size.tables(count, merged, _POPULATIONS),
        "memory": store_size.held_while_ranking(count, in_chunk),
        "memory_layerwise": store_size.held_while_ranking(of_block, in_chunk),
    }


def _channels_of(sized: _Sized, sequences: int, tokens: int, config: Mapping[str, Any]) -> Document:
    """What a run keeps of what its model's linear layers read, in bytes and at most, or why that is not known."""
    if (why := turned_off(config, "channels")) is not None:
        return _unknown(f"not recorded: {why}")
    if sized.model is None:
        return _unknown(sized.document["unknown"])
    of_chunk = min(sequences, config["extract"]["chunk_sequences"])
    values = of_chunk * tokens * (sized.size.blocks or 0)
    return {
        "count": sized.size.channels,
        "chunks": -(-sequences // of_chunk),
        "bytes_of_chunk": channel_sizes.of_chunk(sized.size.channels, values),
        "bytes_of_statistics": channel_sizes.of_run(sized.size.channels),
    }


def _loads(config: Mapping[str, Any], sized: _Sized, jobs: Counter[str]) -> int:
    rules = rules_that_load(config, has_experts=sized.size.has_experts, has_loss=sized.no_loss is None)
    return sum(jobs[rule] for rule in rules)


def _earlier(config: Mapping[str, Any], sized: Mapping[str, _Sized], dumps: Mapping[str, Dump]) -> list[Measured]:
    """Runs that were measured into these results, of models that are known."""
    results, density = Path(config["results"]), config["detect"]["max_density"]
    found = []
    for model, corpus in measured_runs(results / "benchmarks"):
        if corpus == CORPUS:
            if model not in dumps:
                continue
            sequences = len(dumps[model].lengths)
            work = Work(None, activations_of_dump(dumps[model], density).values)
        else:
            one = sized[model] if model in sized else _fetched_before(model, config)
            shape = _tokens_of(results / model / corpus / "tokens.safetensors")
            if one is None or one.model is None or shape is None:
                continue
            sequences = shape[0]
            part = config["catalog"]["models"].get(model, {}).get("part")
            flops, activations = _work_of(one, *shape, config["sites"], density, part)
            work = Work(flops.get("total"), None if isinstance(activations, str) else activations.values)
        seconds = seconds_of_run(results / "benchmarks", model, corpus, sequences)
        found.append(Measured(f"{model}/{corpus}", work, seconds))
    return found


def _fetched_before(model: str, config: Mapping[str, Any]) -> _Sized | None:
    """A model that the configuration no longer names, if it is still there."""
    for part in ("encoder", "decoder"):
        if model.endswith(f".{part}"):
            return None  # which half a run was of, its name alone does not prove
    found = _config(model, {"path": ""}, Path(config["resources"]))
    return None if isinstance(found, str) else _Sized.of(found, {}, config)


def _tokens_of(path: Path) -> tuple[int, int] | None:
    """Sequences, and tokens of each, that a run had."""
    try:
        sequences, tokens = TensorFile(path).entries["tokens"].shape
    except (InputError, KeyError, ValueError):
        return None
    return sequences, tokens


def _describe(run: _Run, config: Mapping[str, Any], earlier: list[Measured]) -> Document:
    time = expected_time(run.name, run.work, sorted(run.jobs), earlier)
    if isinstance(run.activations, str):
        activations = _unknown(run.activations)
    else:
        activations = {**asdict(run.activations), "kept": config["extract"]["keep_activations"]}
    return {
        "run": run.name,
        "sequences": run.sequences,
        "tokens": run.tokens,
        "flops": run.flops,
        "activations": activations,
        "neurons": run.neurons,
        "channels": run.channels,
        "tables_bytes": _tables(Path(config["results"]) / run.name),
        "jobs": dict(sorted(run.jobs.items())),
        "loads": run.loads,
        "expected": time
        and {
            "hours": time.total / 3600,
            "measured": time.measured,
            "scaled": time.scaled,
            "seconds": dict(time.seconds),
            "unknown": list(time.unknown),
        },
    }


def _tables(folder: Path) -> int | None:
    """Bytes of the tables that an earlier run left; None before there is one."""
    files = [path for pattern in ("*.parquet", "*.json") for path in folder.glob(pattern)]
    return sum(file.stat().st_size for file in files) or None


def _unknown(why: str) -> Document:
    return {"unknown": why}


def _bytes(dump: Dump) -> int:
    return sum(Path(file).stat().st_size for file in dump.files)
