from snakemake.utils import min_version

min_version("9.20")


include: "rules/common.smk"
include: "rules/ending.smk"


wildcard_constraints:
    model=MODELS_BEFORE_CORPORA,
    corpus=f"{TEXT_CORPORA}|{DUMP}",
    chunk=r"\d+-\d+",


onstart:
    begin()
    tell_jobs_when_it_began()


onsuccess:
    put_back(Path(RESULTS))
    print_missing()
    print(outcome(), file=sys.stderr)


onerror:
    print_missing()
    end_with_failures()
    put_back(Path(RESULTS))


rule all:
    default_target: True
    input:
        TABLES,
        EVICTED,
        of_runs("tokens.safetensors"),
        of_runs("texts.parquet"),
        of_runs("mask.json"),
        of_runs_of_models(*QUANTIZER_FILES.values()),
        f"{RESULTS}/report.html",
        f"{RESULTS}/gallery/index.html" if GALLERIES else [],


rule tables:
    input:
        TABLES,
        EVICTED,


rule report:
    input:
        f"{RESULTS}/report.html",
        EVICTED,


rule figures:
    input:
        of_runs("figures"),
        EVICTED,
        [f"{RESULTS}/comparison/figures"] if COMPARISON else [],


rule gallery:
    input:
        f"{RESULTS}/gallery/index.html" if GALLERIES else [],
        EVICTED,


rule export:
    input:
        of_runs("export"),
        EVICTED,
        [f"{RESULTS}/comparison/export"] if COMPARISON else [],
        f"{RESULTS}/costs.csv",


include: "rules/fetch.smk"
include: "rules/tokenize.smk"
include: "rules/dump.smk"
include: "rules/extract.smk"
include: "rules/detect.smk"
include: "rules/locate.smk"
include: "rules/filter.smk"
include: "rules/emergence.smk"
include: "rules/surface.smk"
include: "rules/norms.smk"
include: "rules/loss.smk"
include: "rules/neurons.smk"
include: "rules/channels.smk"
include: "rules/quantize.smk"
include: "rules/compare.smk"
include: "rules/attention.smk"
include: "rules/origin.smk"
include: "rules/experts.smk"
include: "rules/ablate.smk"
include: "rules/gallery.smk"
include: "rules/attribution.smk"
include: "rules/report.smk"
include: "rules/mask.smk"
include: "rules/figures.smk"
include: "rules/export.smk"


if EVICTED:
    # A model's weights are made use of before those of another are fetched.
    for name, one in own_rules().items():
        one.priority = int(name != "fetch_model")
