rule analyze_emergence:
    input:
        pairs=f"{RUN}/pairs.parquet",
        statistics=f"{RUN}/statistics.safetensors",
    output:
        dims=f"{RUN}/dims.parquet",
        emergence=f"{RUN}/emergence.parquet",
    log:
        f"{RESULTS}/logs/analyze_emergence/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_emergence/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_version("analyze_emergence"),
    message:
        "Follow the selected dimensions of {wildcards.model} on {wildcards.corpus} over the blocks"
    script:
        "../scripts/analyze_emergence.py"
