rule ablate_dims:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
        published=local(f"{ROOT}/workflow/published/super_weights.csv"),
    output:
        super_weights=f"{RUN}/super_weights.parquet",
        ablation=f"{RUN}/ablation.parquet",
        ablation_sequences=f"{RUN}/ablation_sequences.parquet",
    log:
        f"{RESULTS}/logs/ablate_dims/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablate_dims/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(120),
        gpu=model_gpus,
    params:
        sequences=CONFIG["ablate"]["sequences"],
        length=CONFIG["ablate"]["tokens"],
        seeds=CONFIG["ablate"]["seeds"],
        cost=CONFIG["ablate"]["cost"],
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        rule=SUPER_WEIGHT,
        off={name: off(name) for name in ("super_weights", "ablation")},
        code=code_version("ablate_dims"),
    message:
        "Search {wildcards.model} for super weights and ablate them and outlier dims on {wildcards.corpus}"
    script:
        "../scripts/ablate_dims.py"


rule knock_out:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
        massive=f"{RUN}/massive.parquet",
        super_weights=f"{RUN}/super_weights.parquet",
    output:
        knock_outs=f"{RUN}/knock_outs.parquet",
        knock_out_dims=f"{RUN}/knock_out_dims.parquet",
        spikes=f"{RUN}/spikes.parquet",
    log:
        f"{RESULTS}/logs/knock_out/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/knock_out/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(240),
        gpu=model_gpus,
    params:
        sequences=CONFIG["ablate"]["sequences"],
        length=CONFIG["ablate"]["tokens"],
        cost=CONFIG["ablate"]["cost"],
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        off=off("knock_outs"),
        code=code_version("knock_out"),
    message:
        "Knock out sublayers, heads and super weights of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/knock_out.py"
