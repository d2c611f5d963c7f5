rule summarize_run:
    input:
        unpack(run_tables),
        tokens=f"{RUN}/tokens.safetensors",
        model_source=model_source,
        corpus_source=of_corpus("source.json"),
    output:
        summary=report(
            f"{RUN}/summary.json",
            caption="../workflow/report/captions/summary.rst",
            category="Summaries",
            labels={"model": "{model}", "corpus": "{corpus}", "file": "summary"},
        ),
    log:
        f"{RESULTS}/logs/summarize_run/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_run/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        strict=CONFIG["strict"],
        code=code_version("summarize_run"),
    message:
        "Summarize {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/summarize_run.py"


rule render_report:
    input:
        page=PAGE,
        definitions=local(f"{ROOT}/docs/definitions.md"),
        tables=of_reported(),
        tokens=of_reported("tokens"),
        comparison=[*COMPARISON.values()],
        galleries=GALLERIES,
        for_quantizers=of_runs_of_models(*QUANTIZER_FILES.values()),
        published=PUBLISHED,
    output:
        report=f"{RESULTS}/report.html",
        beside=report(
            directory(f"{RESULTS}/report"),
            htmlindex="index.html",
            caption="../workflow/report/captions/report.rst",
            category="Report",
        ),
    log:
        f"{RESULTS}/logs/render_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/render_report.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        benchmarks=f"{RESULTS}/benchmarks",
        outputs=lambda wildcards: output_patterns(),
        code=code_version("render_report"),
    message:
        "Render the report"
    script:
        "../scripts/render_report.py"
