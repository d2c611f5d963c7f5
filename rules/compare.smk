rule compare_runs:
    input:
        tables=of_reported("dims", "layers", "locations"),
    output:
        comparison=f"{RESULTS}/comparison/dims.parquet",
        compared_dims=f"{RESULTS}/comparison/compared_dims.parquet",
    log:
        f"{RESULTS}/logs/compare_runs.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_runs.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("compare_runs"),
    message:
        "Compare the runs"
    script:
        "../scripts/compare_runs.py"


rule compare_models:
    input:
        of_reported(
            "tokens",
            "texts",
            "layers",
            "pairs",
            "positions",
            "massive",
            "loss",
            "sinks",
            "ablation_sequences",
        ),
        summaries=of_reported("summary"),
        published=PUBLISHED,
        sources=[fetched_record(model) for model in REVISIONS],
    output:
        models=f"{RESULTS}/comparison/models.parquet",
        failures=f"{RESULTS}/comparison/failures.parquet",
    log:
        f"{RESULTS}/logs/compare_models.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_models.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        revisions=REVISIONS,
        failed=FAILED,
        code=code_version("compare_models"),
    message:
        "Compare the models"
    script:
        "../scripts/compare_models.py"


rule compare_revisions:
    input:
        models=f"{RESULTS}/comparison/models.parquet",
        tables=of_reported(
            "dims",
            "layers",
            "locations",
            runs=[run for run in REPORTED if run[0] in REVISIONS],
        ),
    output:
        first_steps=f"{RESULTS}/comparison/first_steps.parquet",
    log:
        f"{RESULTS}/logs/compare_revisions.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_revisions.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("compare_revisions"),
    message:
        "Compare the revisions of each model"
    script:
        "../scripts/compare_revisions.py"
