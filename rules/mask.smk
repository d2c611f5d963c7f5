rule write_mask:
    input:
        tokens=f"{RUN}/tokens.safetensors",
        dims=f"{RUN}/dims.parquet",
        massive=f"{RUN}/massive.parquet",
        super_weights=of_model_runs(f"{RUN}/super_weights.parquet"),
        schema=local(f"{ROOT}/workflow/schemas/mask.schema.json"),
    output:
        mask=report(
            f"{RUN}/mask.json",
            caption="../workflow/report/captions/mask.rst",
            category="Summaries",
            labels={"model": "{model}", "corpus": "{corpus}", "file": "mask"},
        ),
    log:
        f"{RESULTS}/logs/write_mask/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_mask/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        code=code_version("write_mask"),
    message:
        "Write the mask of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/write_mask.py"
