rule compare_runs:
    input:
        dims=of_runs(RUNS, "dims.parquet"),
        locations=of_runs(LOCATED_RUNS, "locations.json"),
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
