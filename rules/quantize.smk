rule quantize_sites:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
        massive=f"{RUN}/massive.parquet",
        super_weights=f"{RUN}/super_weights.parquet",
        channel_stats=f"{RUN}/channel_stats.safetensors",
    output:
        quantization=f"{RUN}/quantization.parquet",
        weight_outliers=f"{RUN}/weight_outliers.parquet",
    log:
        f"{RESULTS}/logs/quantize_sites/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/quantize_sites/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(240),
        gpu=model_gpus,
    params:
        **{
            key: CONFIG["quantize"][key]
            for key in ("schemes", "remedied", "output_tokens", "seeds")
        },
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        off=off("quantization"),
        code=code_version("quantize_sites"),
    message:
        "Round what the linear layers of {wildcards.model} read on {wildcards.corpus}, and their weights"
    script:
        "../scripts/quantize_sites.py"


rule quantize_dump:
    input:
        activations=all_activations,
        tokens=f"{RESULTS}/{{model}}/{DUMP}/tokens.safetensors",
        dims=f"{RESULTS}/{{model}}/{DUMP}/dims.parquet",
        massive=f"{RESULTS}/{{model}}/{DUMP}/massive.parquet",
    output:
        quantization=f"{RESULTS}/{{model}}/{DUMP}/quantization.parquet",
    log:
        f"{RESULTS}/logs/quantize_dump/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/quantize_dump/{{model}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        **{key: CONFIG["quantize"][key] for key in ("schemes", "remedied", "seeds")},
        dump=whole_dump,
        off=off("quantization"),
        code=code_version("quantize_dump"),
    message:
        "Round what the linear layers behind the dump {wildcards.model} read"
    script:
        "../scripts/quantize_dump.py"


rule export_quantization:
    input:
        unpack(exported_to_quantizers),
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        channel_stats=f"{RUN}/channel_stats.safetensors",
    output:
        **{name: f"{RUN}/{file}" for name, file in QUANTIZER_FILES.items()},
    log:
        f"{RESULTS}/logs/export_quantization/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_quantization/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        scheme=CONFIG["quantize"]["loss_scheme"],
        off=off("channels"),
        code=code_version("export_quantization"),
    message:
        "Export the channels of {wildcards.model} on {wildcards.corpus} to quantizers"
    script:
        "../scripts/export_quantization.py"


rule quantize_model:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
        massive=f"{RUN}/massive.parquet",
        super_weights=f"{RUN}/super_weights.parquet",
        layers=f"{RUN}/layers.parquet",
        channel_stats=f"{RUN}/channel_stats.safetensors",
        prefix_tokens=f"{RUN}/prefix_tokens.parquet",
        quantization=f"{RUN}/quantization.parquet",
    output:
        quantization_loss=f"{RUN}/quantization_loss.parquet",
        quantization_loss_sequences=f"{RUN}/quantization_loss_sequences.parquet",
        quantization_sensitivity=f"{RUN}/quantization_sensitivity.parquet",
        quantization_signals=f"{RUN}/quantization_signals.parquet",
        prefix_trial=f"{RUN}/prefix_trial.parquet",
    log:
        f"{RESULTS}/logs/quantize_model/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/quantize_model/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(480),
        gpu=model_gpus,
    params:
        schemes=CONFIG["quantize"]["schemes"],
        remedied=CONFIG["quantize"]["remedied"],
        loss_scheme=CONFIG["quantize"]["loss_scheme"],
        budget=CONFIG["quantize"]["budget"],
        seeds=CONFIG["quantize"]["seeds"],
        sequences=CONFIG["quantize"]["sequences"],
        length=CONFIG["quantize"]["tokens"],
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        off=off("quantization_losses"),
        code=code_version("quantize_model"),
    message:
        "Measure the losses of {wildcards.model}, quantized, on {wildcards.corpus}"
    script:
        "../scripts/quantize_model.py"
