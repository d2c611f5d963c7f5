rule check_norms:
    input:
        losses=first_losses,
        dims=f"{RUN}/dims.parquet",
    output:
        norms=f"{RUN}/norms.parquet",
        gains=f"{RUN}/gains.parquet",
    log:
        f"{RESULTS}/logs/check_norms/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_norms/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        off=off("norms"),
        code=code_version("check_norms"),
    message:
        "Check the norms of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/check_norms.py"
