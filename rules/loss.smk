rule measure_loss:
    input:
        chunks=of_chunks(f"{RUN}/losses/{{chunk}}.safetensors"),
        tokens=f"{RUN}/tokens.safetensors",
    output:
        loss=f"{RUN}/loss.parquet",
        token_losses=f"{RUN}/token_losses.safetensors",
    log:
        f"{RESULTS}/logs/measure_loss/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_loss/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        off=off("loss"),
        code=code_version("measure_loss"),
    message:
        "Measure the loss of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/measure_loss.py"
