rule draw_figures:
    input:
        unpack(run_tables),
        page=PAGE,
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


rule draw_comparison:
    input:
        of_reported("layers", "sinks"),
        page=PAGE,
        summaries=of_reported("summary"),
        models=f"{RESULTS}/comparison/models.parquet",
        published=PUBLISHED,
    output:
        directory=report(
            directory(f"{RESULTS}/comparison/figures"),
            htmlindex="index.html",
            caption="../workflow/report/captions/comparison.rst",
            category="Figures",
            labels={"model": "all", "corpus": "all"},
        ),
    log:
        f"{RESULTS}/logs/draw_comparison.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_comparison.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        formats=CONFIG["figures"]["formats"],
        width_mm=CONFIG["figures"]["width_mm"],
        code=code_version("draw_comparison"),
    message:
        "Draw the figures that compare the runs"
    script:
        "../scripts/draw_comparison.py"
