rule extract_activations:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
    output:
        activations=f"{RUN}/activations/{{chunk}}.safetensors",
        losses=f"{RUN}/losses/{{chunk}}.safetensors",
        neurons=f"{RUN}/neurons/{{chunk}}.safetensors",
        channels=f"{RUN}/channels/{{chunk}}.safetensors",
    log:
        f"{RESULTS}/logs/extract_activations/{{model}}/{{corpus}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/extract_activations/{{model}}/{{corpus}}/{{chunk}}.tsv"
    wildcard_constraints:
        corpus=KEPT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=ranking_mb,
        runtime=model_minutes(120),
        gpu=model_gpus,
    params:
        start=lambda wildcards: chunk_range(wildcards)[0],
        stop=lambda wildcards: chunk_range(wildcards)[1],
        sites=sites,
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        sample=sample,
        ranking=ranking,
        recording=recording,
        scoring=scoring,
        code=code_version("extract_activations"),
    message:
        "Run {wildcards.model} on sequences {wildcards.chunk} of {wildcards.corpus}"
    script:
        "../scripts/extract_activations.py"
