rule compare_runs:
    input:
        tables=[
            table
            for run in RUNS
            for name, table in tables_of(*run).items()
            if name in ("dims", "locations")
        ],
    output:
        comparison=f"{RESULTS}/comparison/dims.parquet",
        common_dims=f"{RESULTS}/comparison/common_dims.parquet",
    log:
        f"{RESULTS}/logs/compare_runs.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_runs.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        runs=[f"{RESULTS}/{model}/{corpus}" for model, corpus in RUNS],
        code=code_version("compare_runs"),
    message:
        "Compare the runs"
    script:
        "../scripts/compare_runs.py"


rule compare_models:
    input:
        of_runs("summary.json"),
        of_runs("tokens.safetensors"),
        of_runs("texts.parquet"),
        [
            table
            for run in RUNS
            for name, table in tables_of(*run).items()
            if name
            in (
                "layers",
                "pairs",
                "positions",
                "massive",
                "loss",
                "sinks",
                "ablation_sequences",
            )
        ],
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
        runs=[f"{RESULTS}/{model}/{corpus}" for model, corpus in RUNS],
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
        tables=[
            table
            for model, corpus in RUNS
            if model in REVISIONS
            for name, table in tables_of(model, corpus).items()
            if name in ("dims", "locations")
        ],
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
        runs=[
            f"{RESULTS}/{model}/{corpus}"
            for model, corpus in RUNS
            if model in REVISIONS
        ],
        code=code_version("compare_revisions"),
    message:
        "Compare the revisions of each model"
    script:
        "../scripts/compare_revisions.py"
