rule rank_neurons:
    input:
        chunks=of_chunks(f"{RUN}/neurons/{{chunk}}.safetensors"),
        tokens=f"{RUN}/tokens.safetensors",
    output:
        neurons=f"{RUN}/neurons.parquet",
        neuron_statistics=f"{RUN}/neuron_statistics.parquet",
        store=f"{RUN}/neurons.safetensors",
    log:
        f"{RESULTS}/logs/rank_neurons/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/rank_neurons/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=merging_mb,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        examples=CONFIG["neurons"]["examples"],
        off=off("neurons"),
        code=code_version("rank_neurons"),
    message:
        "Rank the neurons of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/rank_neurons.py"
