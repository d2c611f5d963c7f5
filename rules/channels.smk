rule merge_channels:
    input:
        chunks=of_chunks(f"{RUN}/channels/{{chunk}}.safetensors"),
        tokens=f"{RUN}/tokens.safetensors",
        source=model_source,
    output:
        channel_stats=f"{RUN}/channel_stats.safetensors",
        prefix_tokens=f"{RUN}/prefix_tokens.parquet",
    log:
        f"{RESULTS}/logs/merge_channels/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_channels/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        off=off("channels"),
        code=code_version("merge_channels"),
    message:
        "Merge what the linear layers of {wildcards.model} read on {wildcards.corpus}"
    script:
        "../scripts/merge_channels.py"
