# Compute nodes may have no network: what fetches runs where snakemake does.
rule fetch_model:
    input:
        lambda wildcards: [*map(local, local_files(fetched_source(wildcards)))],
    output:
        source=local(f"{RESOURCES}/models/{{model}}/source.json"),
    log:
        f"{RESULTS}/logs/fetch_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_model/{{model}}.tsv"
    wildcard_constraints:
        model="|".join(map(re.escape, FETCHED.values())),
    localrule: True
    threads: fetch_threads
    resources:
        downloads=lambda wildcards: downloads(fetched_source(wildcards)),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        source=what_is_fetched,
    message:
        "Fetch model {wildcards.model}"
    script:
        "../scripts/fetch_model.py"


rule fetch_corpus:
    input:
        lambda wildcards: [
            *map(local, local_files(CONFIG["catalog"]["corpora"][wildcards.corpus]))
        ],
    output:
        source=local(f"{RESOURCES}/corpora/{{corpus}}/source.json"),
        documents=local(f"{RESOURCES}/corpora/{{corpus}}/documents.parquet"),
    log:
        f"{RESULTS}/logs/fetch_corpus/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_corpus/{{corpus}}.tsv"
    wildcard_constraints:
        corpus="|".join(map(re.escape, CONFIG["corpora"])),
    localrule: True
    resources:
        downloads=lambda wildcards: downloads(
            CONFIG["catalog"]["corpora"][wildcards.corpus]
        ),
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        source=lambda wildcards: {
            key: value
            for key, value in CONFIG["catalog"]["corpora"][wildcards.corpus].items()
            if key != "sample"
        },
    message:
        "Fetch corpus {wildcards.corpus}"
    script:
        "../scripts/fetch_corpus.py"


rule evict_weights:
    input:
        tables_of_fetched,
        source=local(f"{RESOURCES}/models/{{model}}/source.json"),
    output:
        evicted=f"{RESULTS}/evicted/{{model}}.json",
    log:
        f"{RESULTS}/logs/evict_weights/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evict_weights/{{model}}.tsv"
    wildcard_constraints:
        model="|".join(map(re.escape, FETCHED.values())),
    localrule: True
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 15 * attempt,
    params:
        source=what_is_fetched,
    message:
        "Evict the weights of {wildcards.model}"
    script:
        "../scripts/evict_weights.py"
