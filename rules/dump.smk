rule describe_dump:
    input:
        source=model_source,
        labels=lambda wildcards: [
            file
            for file in [MODELS[wildcards.model].get("labels", "")]
            if file.endswith(".json")
        ],
    output:
        tokens=f"{RESULTS}/{{model}}/{DUMP}/tokens.safetensors",
        texts=f"{RESULTS}/{{model}}/{DUMP}/texts.parquet",
    log:
        f"{RESULTS}/logs/describe_dump/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/describe_dump/{{model}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        source=lambda wildcards: dump_source(MODELS[wildcards.model]),
        first_token=lambda wildcards: MODELS[wildcards.model]["first_token"],
        labels=lambda wildcards: MODELS[wildcards.model].get("labels"),
        tokenizer=lambda wildcards: MODELS[wildcards.model].get("tokenizer"),
        code=code_version("describe_dump"),
    message:
        "Describe the dump {wildcards.model}"
    script:
        "../scripts/describe_dump.py"


rule check_dump_norms:
    input:
        dump=lambda wildcards: DUMPS[wildcards.model].files[0],
        dims=f"{RESULTS}/{{model}}/{DUMP}/dims.parquet",
    output:
        norms=f"{RESULTS}/{{model}}/{DUMP}/norms.parquet",
        gains=f"{RESULTS}/{{model}}/{DUMP}/gains.parquet",
    log:
        f"{RESULTS}/logs/check_dump_norms/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_dump_norms/{{model}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        gain_keys=lambda wildcards: MODELS[wildcards.model].get("gains", {}),
        code=code_version("check_dump_norms"),
    message:
        "Check the norms of the dump {wildcards.model}"
    script:
        "../scripts/check_dump_norms.py"
