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
        **{name: CONFIG["gallery"][name] for name in GALLERY_KEYS},
        loading=loading,
        off=off("gallery"),
        code=code_version("record_examples"),
    message:
        "Record examples of neurons and dims of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/record_examples.py"


rule render_gallery:
    input:
        unpack(gallery_tables),
        token_losses=f"{RUN}/token_losses.safetensors",
        page=GALLERY_PAGE,
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
        published=local(f"{ROOT}/workflow/published/gelu1l_neuron424.csv"),
    output:
        manifest=f"{RESULTS}/gallery/{{model}}/{{corpus}}/manifest.json",
    log:
        f"{RESULTS}/logs/render_gallery/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/render_gallery/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_version("render_gallery"),
    message:
        "Render the gallery of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/render_gallery.py"


rule list_galleries:
    input:
        galleries=GALLERIES,
        page=GALLERY_PAGE,
    output:
        index=f"{RESULTS}/gallery/index.html",
    log:
        f"{RESULTS}/logs/list_galleries.log",
    benchmark:
        f"{RESULTS}/benchmarks/list_galleries.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("list_galleries"),
    message:
        "List the galleries"
    script:
        "../scripts/list_galleries.py"
