rule detect_outliers:
    input:
        activations=activations,
        first_chunk=first_activations,
        tokens=f"{RUN}/tokens.safetensors",
    output:
        **{site: f"{RUN}/hits/{site}/{{chunk}}.parquet" for site in SITES},
        scaled_hits=f"{RUN}/scaled_hits/{{chunk}}.parquet",
        counted_pairs=f"{RUN}/counted_pairs/{{chunk}}.parquet",
        counted_positions=f"{RUN}/counted_positions/{{chunk}}.parquet",
        statistics=f"{RUN}/statistics/{{chunk}}.safetensors",
    log:
        f"{RESULTS}/logs/detect_outliers/{{model}}/{{corpus}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/detect_outliers/{{model}}/{{corpus}}/{{chunk}}.tsv"
    threads: threads_of("detect")
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        floors={site: CONFIG["detect"]["floors"][site] for site in SITES},
        dump=dump_range,
        max_density=CONFIG["detect"]["max_density"],
        counted=counted,
        scaled=scaled,
        gain_keys=lambda wildcards: MODELS[wildcards.model].get("gains", {}),
        code=code_version("detect_outliers"),
    message:
        "Detect outliers of {wildcards.model} in sequences {wildcards.chunk} of {wildcards.corpus}"
    script:
        "../scripts/detect_outliers.py"


rule summarize_layers:
    input:
        chunks=of_chunks(f"{RUN}/statistics/{{chunk}}.safetensors"),
    output:
        statistics=f"{RUN}/statistics.safetensors",
        layers=f"{RUN}/layers.parquet",
        distribution=f"{RUN}/distribution.parquet",
    log:
        f"{RESULTS}/logs/summarize_layers/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_layers/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_version("summarize_layers"),
    message:
        "Summarize the layers of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/summarize_layers.py"
