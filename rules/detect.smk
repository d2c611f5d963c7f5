rule detect_outliers:
    input:
        activations=activations,
        first_chunk=first_activations,
        tokens=f"{RUN}/tokens.safetensors",
    output:
        **DETECTION,
    log:
        f"{RESULTS}/logs/detect_outliers/{{model}}/{{corpus}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/detect_outliers/{{model}}/{{corpus}}/{{chunk}}.tsv"
    wildcard_constraints:
        corpus=f"{DUMP}|{KEPT_CORPORA}",
    threads: threads_of("detect")
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        floors=FLOORS,
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


rule detect_in_passes:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
    output:
        **DETECTION,
        losses=f"{RUN}/losses/{{chunk}}.safetensors",
        neurons=f"{RUN}/neurons/{{chunk}}.safetensors",
        channels=f"{RUN}/channels/{{chunk}}.safetensors",
    log:
        f"{RESULTS}/logs/detect_in_passes/{{model}}/{{corpus}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/detect_in_passes/{{model}}/{{corpus}}/{{chunk}}.tsv"
    wildcard_constraints:
        corpus=UNKEPT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=ranking_mb,
        runtime=model_minutes(120),
        gpu=model_gpus,
    params:
        start=lambda wildcards: chunk_range(wildcards)[0],
        stop=lambda wildcards: chunk_range(wildcards)[1],
        first_stop=first_stop,
        sites=sites,
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        sample=sample,
        ranking=ranking,
        recording=recording,
        scoring=scoring,
        floors=FLOORS,
        max_density=CONFIG["detect"]["max_density"],
        counted=counted,
        scaled=scaled,
        code=code_version("detect_in_passes"),
    message:
        "Run {wildcards.model} on sequences {wildcards.chunk} of {wildcards.corpus} and detect outliers in its passes"
    script:
        "../scripts/detect_in_passes.py"


rule summarize_layers:
    input:
        chunks=of_chunks(f"{RUN}/statistics/{{chunk}}.safetensors"),
    output:
        statistics=f"{RUN}/statistics.safetensors",
        layers=f"{RUN}/layers.parquet",
        distribution=f"{RUN}/distribution.parquet",
        site_positions=f"{RUN}/site_positions.parquet",
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
