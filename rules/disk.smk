rule write_mask:
    input:
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
        massive=f"{RUN}/massive.parquet",
        super_weights=of_model_runs(f"{RUN}/super_weights.parquet"),
        schema=f"{workflow.basedir}/workflow/schemas/mask.schema.json",
    output:
        mask=report(
            f"{RUN}/mask.json",
            caption="../workflow/report/captions/mask.rst",
            category="Summaries",
            labels={"model": "{model}", "corpus": "{corpus}", "file": "mask"},
        ),
    log:
        f"{RESULTS}/logs/write_mask/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_mask/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("write_mask"),
    message:
        "Write the mask of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/write_mask.py"


rule draw_figures:
    input:
        unpack(figure_tables),
        template=f"{workflow.basedir}/workflow/report/figures.html.j2",
        summary=f"{RUN}/summary.json",
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
        attention=of_model_runs(f"{RUN}/attention.safetensors"),
    output:
        directory=report(
            directory(f"{RUN}/figures"),
            htmlindex="index.html",
            caption="../workflow/report/captions/figures.rst",
            category="Figures",
            labels={"model": "{model}", "corpus": "{corpus}"},
        ),
    log:
        f"{RESULTS}/logs/draw_figures/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_figures/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        formats=CONFIG["figures"]["formats"],
        width_mm=CONFIG["figures"]["width_mm"],
        code=code_version("draw_figures"),
    message:
        "Draw the figures of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/draw_figures.py"


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
