import json
import re
import sys
import time
from pathlib import Path

from outlier_features.code_version import code_version as version_of
from outlier_features.code_version import file_hashes
from outlier_features.cores import wait_without_spinning
from outlier_features.dump.dumps import CORPUS as DUMP
from outlier_features.dump.dumps import Dump, dump_files
from outlier_features.errors import InputError
from outlier_features.run.config import (
    fetched_name,
    read_schema,
    require_files,
    resolve_config,
    turned_off,
)
from outlier_features.run.config_files import require_config_file
from outlier_features.run.failure import failure_line, missing_lines
from outlier_features.run.recovery import begin_run, require_working_directory
from outlier_features.rules.configured import counted_at, scaled_at, the_rule
from outlier_features.rules.kinds import rules_of, sources_of
from outlier_features.scan.counted_at import serving, serving_scales

ROOT = Path(workflow.basedir)
START = time.time()

wait_without_spinning()  # what jobs inherit

try:
    require_working_directory(Path.cwd())
    require_config_file(ROOT / "config.yaml")
except InputError as error:
    sys.exit(f"error: {error}")


configfile: f"{workflow.basedir}/config.yaml"


try:
    CONFIG = resolve_config(
        config, read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    )
    require_files(CONFIG)
    MODELS = CONFIG["catalog"]["models"]
    DUMPS = {
        name: Dump.open(source) for name, source in MODELS.items() if "dump" in source
    }
    # The rules that stages of their own apply.
    LOCATION, SUPER_WEIGHT, SUPER_EXPERT = (
        the_rule(CONFIG["rules"], kind)
        for kind in ("location", "super_weight", "super_expert")
    )
    # Kinds that other packages bring are code that their rules run.
    KINDS = file_hashes(sources_of(rules_of(CONFIG["rules"])))
except InputError as error:
    sys.exit(f"error: {error}")

RESULTS = CONFIG["results"]
RESOURCES = CONFIG["resources"]
RUN = f"{RESULTS}/{{model}}/{{corpus}}"
SITES = sorted(
    {*CONFIG["sites"], *(site for dump in DUMPS.values() for site in dump.sites)}
)
# Of a job that runs a model: `auto` takes a GPU where there is one, and on a cluster a job sees only what it asked for.
GPUS = int(CONFIG["extract"]["device"] in ("auto", "cuda"))
TEXT_CORPORA = "|".join(map(re.escape, CONFIG["corpora"]))


# Of a job that runs a model or reads activations on a cluster, where --cores says nothing.
CLUSTER_THREADS = 4


def threads_of(section):
    """Cores that a job of this section asks for; with `auto` all that there are for the run."""
    asked = CONFIG[section]["threads"]
    if asked != "auto":
        return asked
    return workflow.resource_settings.cores or CLUSTER_THREADS


# By model, the name that it is fetched under: both halves of an encoder-decoder model are fetched once.
FETCHED = {name: fetched_name(name, source) for name, source in MODELS.items()}


def code_version(script):
    return version_of(ROOT / "scripts" / f"{script}.py")


def off(analysis):
    """Why an analysis is left out, or None."""
    return turned_off(CONFIG, analysis)


def sites(wildcards):
    """Sites of a run: of a dump those that its keys name."""
    return sorted(
        DUMPS[wildcards.model].sites if wildcards.model in DUMPS else CONFIG["sites"]
    )


def sample(wildcards):
    return CONFIG["catalog"]["corpora"][wildcards.corpus]["sample"]


def ranges(wildcards):
    """First sequence and one past the last of each chunk of a run, in order; known before anything runs."""
    if wildcards.model in DUMPS:
        return [(part.start, part.stop) for part in DUMPS[wildcards.model].chunks()]
    count, size = sample(wildcards)["sequences"], CONFIG["extract"]["chunk_sequences"]
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def chunks(wildcards):
    """Names of a run's chunks, `first-last` sequence, in order."""
    found = ranges(wildcards)
    width = len(str(found[-1][1] - 1))
    return [f"{first:0{width}}-{last - 1:0{width}}" for first, last in found]


def dump_range(wildcards):
    """Where in a dump a chunk lies; None for other runs."""
    if wildcards.model not in DUMPS:
        return None
    index = chunks(wildcards).index(wildcards.chunk)
    return vars(DUMPS[wildcards.model].chunks()[index])


def whole_dump(wildcards):
    """All sequences of a dump; None for other runs."""
    return vars(DUMPS[wildcards.model].whole) if wildcards.model in DUMPS else None


def activations(wildcards):
    """The file, or of a dump the files, that hold a chunk's activations."""
    found = dump_range(wildcards)
    if found:
        return DUMPS[wildcards.model].files_of(found["start"], found["stop"])
    return f"{RUN}/activations/{{chunk}}.safetensors"


def all_activations(wildcards):
    """The files that hold a run's activations."""
    if wildcards.model in DUMPS:
        return DUMPS[wildcards.model].files
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
        return DUMPS[wildcards.model].files_of(0, 1)
    return f"{RUN}/activations/{chunks(wildcards)[0]}.safetensors"


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


def counted(wildcards):
    """Where a chunk's hits are too many to be listed, they are counted for the rules; what was counted may serve."""
    wanted = counted_at(CONFIG["rules"])
    statistics = f"{RUN}/statistics/{{chunk}}.safetensors".format(**wildcards)
    return serving(wanted, Path(statistics))


def scaled(wildcards):
    """By site of a run and scale, from where on scaled values are listed; what was listed may serve."""
    wanted = scaled_at(CONFIG["rules"], sites(wildcards))
    statistics = f"{RUN}/statistics/{{chunk}}.safetensors".format(**wildcards)
    return serving_scales(wanted, Path(statistics))


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


def model_source(wildcards):
    """What a model's fetch left."""
    return f"{RESOURCES}/models/{FETCHED[wildcards.model]}/source.json"


def loading(wildcards):
    """How a model is loaded: as its catalog entry says, else as `extract` does."""
    own = {
        key: of_model(key)(wildcards)
        for key in ("dtype", "attention", "trust_remote_code", "part")
    }
    return own | {key: CONFIG["extract"][key] for key in ("device", "threads")}


# Each model on each corpus; a dump has one of its own.
RUNS = [
    (model, corpus)
    for model in CONFIG["models"]
    for corpus in ([DUMP] if model in DUMPS else CONFIG["corpora"])
]


# Tables of every run, and those that need the model itself.
RUN_TABLES = [
    "layers",
    "distribution",
    "dims",
    "emergence",
    "pairs",
    "sensitivity",
    "massive",
    "positions",
    "surface",
]
ORIGIN_TABLES = ["lifecycle", "origin", "origin_neurons", "origin_weights"]
ABLATION_TABLES = ["super_weights", "ablation", "ablation_sequences"]
MODEL_TABLES = [
    "loss",
    "norms",
    "gains",
    "sinks",
    *ORIGIN_TABLES,
    "experts",
    "routing",
    *ABLATION_TABLES,
]


DUMP_TABLES = {
    name: (["norms", "gains"] if "gains" in MODELS[name] or dump.has_gains else [])
    for name, dump in DUMPS.items()
}


def tables_of(model, corpus):
    """The tables of a run by name."""
    names = RUN_TABLES + (DUMP_TABLES[model] if model in DUMPS else MODEL_TABLES)
    files = {name: f"{name}.parquet" for name in names}
    if LOCATION and (model in DUMPS or LOCATION["sites"]):
        files["locations"] = "locations.json"
    return {name: f"{RESULTS}/{model}/{corpus}/{file}" for name, file in files.items()}


def of_runs(name):
    """A file of every run."""
    return [f"{RESULTS}/{model}/{corpus}/{name}" for model, corpus in RUNS]


# Templates, style and scripts of every page.
PAGE = sorted(
    str(path) for path in (ROOT / "workflow/outlier_features/report/page").iterdir()
)

# By name; two runs or more have something to compare.
COMPARISON = {
    "models": f"{RESULTS}/comparison/models.parquet",
    "comparison": f"{RESULTS}/comparison/dims.parquet",
    "common_dims": f"{RESULTS}/comparison/common_dims.parquet",
}
COMPARISON = COMPARISON if len(RUNS) > 1 else {}

# What papers and repositories printed.
PUBLISHED = sorted(str(path) for path in (ROOT / "workflow/published").glob("*.csv"))

TABLES = [
    *(file for run in RUNS for file in tables_of(*run).values()),
    *of_runs("summary.json"),
    *COMPARISON.values(),
]


def run_tables(wildcards):
    """The tables of a run by name."""
    return tables_of(wildcards.model, wildcards.corpus)


def exported_tables(wildcards):
    """The Parquet tables of a run or, where that is `comparison`, of the comparison."""
    if wildcards.run == "comparison":
        return COMPARISON
    tables = tables_of(*wildcards.run.split("/"))
    return {name: file for name, file in tables.items() if name != "locations"}


def output_patterns():
    """Per rule the paths of its outputs, with `*` for what varies."""
    return {
        one.name: sorted({re.sub(r"{.*?}", "*", str(path)) for path in one.output})
        for one in workflow.rules
        if len(one.output)
    }


def of_model_runs(pattern):
    """An input function: `pattern` for the run of a model, nothing for a dump."""
    return lambda wildcards: [] if wildcards.model in DUMPS else pattern


def begin():
    try:
        begin_run(Path.cwd(), Path(RESULTS), Path(RESOURCES))
    except InputError as error:
        sys.exit(f"error: {error}")


def outcome():
    """What runs are missing, and where the end product is."""
    made = {job.rule.name for job in workflow.dag.jobs}
    for job in workflow.dag.jobs:
        if job.rule.name == "summarize_run":
            for line in missing_lines(Path(job.output.summary)):
                print(line, file=sys.stderr)
    if "render_report" in made:
        return f"The report is {RESULTS}/report.html"
    if "draw_figures" in made:
        return f"The figures are in {RESULTS}/<model>/<corpus>/figures"
    return f"The tables are in {RESULTS}"


def print_failures():
    """A line on stderr for each job that failed."""
    for failed in getattr(workflow.scheduler, "failed", ()):
        for job in failed if failed.is_group() else [failed]:
            print(failure_line(job.rule.name, job.log, START), file=sys.stderr)


def local_files(source):
    """Files of a model or corpus that lies on this machine: an edit to them is a reason to run again."""
    if "dump" in source:
        return dump_files(source)
    if "pypi" in source or "hub" in source or "stdlib" in source:
        return []
    if "files" in source:
        return source["files"]
    folder = Path(source["path"])
    if folder.is_file():
        return [str(folder)]
    return sorted(
        str(path)
        for path in folder.glob("*")
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".txt")
        and not set("{}") & set(path.name)
        and path.is_file()  # an input that is missing would have Snakemake go on with what was fetched before
    )


def model_mb(wildcards, input, attempt):
    """Memory for the weights (the size of their files, twice: bfloat16 may be widened) and a batch of activations."""
    try:
        files = json.loads(Path(input.source).read_text())["files"]
        weights = sum(
            file["bytes"]
            for name, file in files.items()
            if name.endswith(".safetensors")
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        weights = 0  # not there yet, or damaged, as the job will say
    return (4000 + 2 * weights // 10**6) * attempt
