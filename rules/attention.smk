rule map_attention:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        layers=f"{RUN}/layers.parquet",
    output:
        sinks=f"{RUN}/sinks.parquet",
        attention=f"{RUN}/attention.safetensors",
    log:
        f"{RESULTS}/logs/map_attention/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/map_attention/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(60),
        gpu=model_gpus,
    params:
        **CONFIG["attention_maps"],
        loading=loading,
        off=off("attention_maps"),
        code=code_version("map_attention"),
    message:
        "Map the attention of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/map_attention.py"
