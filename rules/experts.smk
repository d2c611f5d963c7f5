rule rank_experts:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        massive=f"{RUN}/massive.parquet",
        dims=f"{RUN}/dims.parquet",
        published=local(f"{ROOT}/workflow/published/super_experts.csv"),
    output:
        experts=f"{RUN}/experts.parquet",
        routing=f"{RUN}/routing.parquet",
        expert_load=f"{RUN}/expert_load.parquet",
        expert_balance=f"{RUN}/expert_balance.parquet",
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


rule prune_experts:
    input:
        source=model_source,
        tokens=f"{RUN}/tokens.safetensors",
        experts=f"{RUN}/experts.parquet",
    output:
        expert_ablation=f"{RUN}/expert_ablation.parquet",
        expert_ablation_sequences=f"{RUN}/expert_ablation_sequences.parquet",
    log:
        f"{RESULTS}/logs/prune_experts/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prune_experts/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    threads: threads_of("extract")
    resources:
        mem_mb=model_mb,
        runtime=model_minutes(60),
        gpu=model_gpus,
    params:
        rule=SUPER_EXPERT and SUPER_EXPERT["name"],
        sequences=CONFIG["ablate"]["sequences"],
        length=CONFIG["ablate"]["tokens"],
        seeds=CONFIG["ablate"]["seeds"],
        cost=CONFIG["ablate"]["cost"],
        loading=loading,
        batch_size=CONFIG["extract"]["batch_size"],
        off=off("expert_ablation"),
        code=code_version("prune_experts"),
    message:
        "Prune the super experts of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/prune_experts.py"
