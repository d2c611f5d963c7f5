rule check_norms:
    input:
        source=model_source,
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
    threads: 1
    resources:
        mem_mb=model_mb,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        trust_remote_code=of_model("trust_remote_code"),
        part=of_model("part"),
        placement=of_model("placement"),
        off=off("norms"),
        code=code_version("check_norms"),
    message:
        "Check the norms of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/check_norms.py"
