rule record_examples:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
        dims=f"{RUN}/dims.parquet",
        neurons=f"{RUN}/neurons.parquet",
        statistics=f"{RUN}/neuron_statistics.parquet",
        origin_neurons=f"{RUN}/origin_neurons.parquet",
    output:
        gallery_neurons=f"{RUN}/gallery_neurons.parquet",
        gallery_examples=f"{RUN}/gallery_examples.parquet",
        gallery_values=f"{RUN}/gallery_values.parquet",
        gallery_dims=f"{RUN}/gallery_dims.parquet",
    log:
        f"{RESULTS}/logs/record_examples/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/record_examples/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=lambda wildcards, input, attempt: 2000
        + model_mb(wildcards, input, attempt),
        runtime=model_minutes(120),
        gpu=model_gpus,
    params:
        **CONFIG["gallery"],
        loading=loading,
        off=off("gallery"),
        code=code_version("record_examples"),
    message:
        "Record examples of neurons and dims of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/record_examples.py"
