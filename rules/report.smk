rule summarize_run:
    input:
        tokens=f"{RUN}/tokens.safetensors",
        layers=f"{RUN}/layers.parquet",
        dims=f"{RUN}/dims.parquet",
        pairs=f"{RUN}/pairs.parquet",
        massive=f"{RUN}/massive.parquet",
        loss=f"{RUN}/loss.parquet",
        super_weights=f"{RUN}/super_weights.parquet",
        ablation=f"{RUN}/ablation.parquet",
        ablation_sequences=f"{RUN}/ablation_sequences.parquet",
        model_source=f"{RESOURCES}/models/{{model}}/source.json",
        corpus_source=f"{RESOURCES}/corpora/{{corpus}}/source.json",
    output:
        summary=f"{RUN}/summary.json",
    log:
        f"{RESULTS}/logs/summarize_run/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_run/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("summarize_run"),
    message:
        "Summarize {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/summarize_run.py"


rule render_report:
    input:
        template=f"{workflow.basedir}/workflow/report/report.html.j2",
        style=f"{workflow.basedir}/workflow/report/report.css",
        tables=of_runs(
            "summary.json",
            "layers.parquet",
            "dims.parquet",
            "emergence.parquet",
            "sensitivity.parquet",
            "massive.parquet",
            "tokens.safetensors",
            "texts.parquet",
        ),
    output:
        report=f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/render_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/render_report.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        runs=[
            f"{RESULTS}/{model}/{corpus}"
            for model in CONFIG["models"]
            for corpus in CONFIG["corpora"]
        ],
        code=code_version("render_report"),
    message:
        "Render the report"
    script:
        "../scripts/render_report.py"
