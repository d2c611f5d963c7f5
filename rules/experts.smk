rule rank_experts:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        massive=f"{RUN}/massive.parquet",
        dims=f"{RUN}/dims.parquet",
        published=f"{workflow.basedir}/workflow/published/super_experts.csv",
    output:
        experts=f"{RUN}/experts.parquet",
        routing=f"{RUN}/routing.parquet",
    log:
        f"{RESULTS}/logs/rank_experts/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/rank_experts/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(60),
        gpu=model_gpus,
    params:
        sequences=CONFIG["experts"]["sequences"],
        rule=SUPER_EXPERT,
        loading=loading,
        off=off("experts"),
        code=code_version("rank_experts"),
    message:
        "Rank the experts of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/rank_experts.py"
