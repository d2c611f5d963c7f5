rule export_tables:
    input:
        unpack(exported_tables),
    output:
        directory=report(
            directory(f"{RESULTS}/{{run}}/export"),
            patterns=["{table}.csv"],
            caption="../workflow/report/captions/tables.rst",
            category="Tables",
            labels={"run": "{run}", "table": "{table}"},
        ),
    log:
        f"{RESULTS}/logs/export_tables/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_tables/{{run}}.tsv"
    wildcard_constraints:
        run="|".join(["comparison", *(f"{model}/{corpus}" for model, corpus in RUNS)]),
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_version("export_tables"),
    message:
        "Export the tables of {wildcards.run}"
    script:
        "../scripts/export_tables.py"


rule summarize_costs:
    input:
        TABLES,
    output:
        costs=report(
            f"{RESULTS}/costs.csv",
            caption="../workflow/report/captions/costs.rst",
            category="Costs",
        ),
    log:
        f"{RESULTS}/logs/summarize_costs.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_costs.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        benchmarks=f"{RESULTS}/benchmarks",
        outputs=lambda wildcards: output_patterns(),
        code=code_version("summarize_costs"),
    message:
        "Add up what the jobs took"
    script:
        "../scripts/summarize_costs.py"
