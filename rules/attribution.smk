rule attribute_logits:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
    output:
        attribution=f"{RUN}/logit_attribution.parquet",
        attribution_tokens=f"{RUN}/logit_attribution_tokens.parquet",
    log:
        f"{RESULTS}/logs/attribute_logits/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/attribute_logits/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(60),
        gpu=model_gpus,
    params:
        sequences=CONFIG["gallery"]["sequences"],
        loading=loading,
        off=off("attribution"),
        code=code_version("attribute_logits"),
    message:
        "Attribute logits of {wildcards.model} on {wildcards.corpus} to heads and neurons"
    script:
        "../scripts/attribute_logits.py"
