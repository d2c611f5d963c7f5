rule rerun_largest:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        statistics=f"{RUN}/statistics.safetensors",
    output:
        activations=temp(f"{RUN}/largest.safetensors"),
    log:
        f"{RESULTS}/logs/rerun_largest/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/rerun_largest/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(60),
        gpu=model_gpus,
    params:
        loading=loading,
        off=off("surface"),
        code=code_version("rerun_largest"),
    message:
        "Run the sequence with the largest |x| of {wildcards.model} on {wildcards.corpus} again"
    script:
        "../scripts/rerun_largest.py"


rule record_surface:
    input:
        activations=surface_activations,
        statistics=f"{RUN}/statistics.safetensors",
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
        dims=f"{RUN}/dims.parquet",
    output:
        surface=f"{RUN}/surface.parquet",
    log:
        f"{RESULTS}/logs/record_surface/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/record_surface/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        dump=whole_dump,
        off=off("surface"),
        code=code_version("record_surface"),
    message:
        "Record the surface of the largest |x| of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/record_surface.py"
