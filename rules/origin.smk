rule rate_triggers:
    input:
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
        massive=f"{RUN}/massive.parquet",
    output:
        triggers=f"{RUN}/triggers.parquet",
    log:
        f"{RESULTS}/logs/rate_triggers/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/rate_triggers/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("rate_triggers"),
    message:
        "Rate what triggers massive activations of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/rate_triggers.py"


rule trace_origin:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
        dims=f"{RUN}/dims.parquet",
        massive=f"{RUN}/massive.parquet",
    output:
        lifecycle=f"{RUN}/lifecycle.parquet",
        shares=f"{RUN}/origin_shares.parquet",
        origin=f"{RUN}/origin.parquet",
        neurons=f"{RUN}/origin_neurons.parquet",
        weights=f"{RUN}/origin_weights.parquet",
        text=f"{RUN}/origin.txt",
    log:
        f"{RESULTS}/logs/trace_origin/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/trace_origin/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(120),
        gpu=model_gpus,
    params:
        dims=CONFIG["trace_origin"]["dims"],
        max_dims=CONFIG["trace_origin"]["max_dims"],
        loading=loading,
        off=off("origin"),
        code=code_version("trace_origin"),
    message:
        "Trace the massive activations of {wildcards.model} on {wildcards.corpus} to their origin"
    script:
        "../scripts/trace_origin.py"
