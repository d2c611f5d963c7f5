rule tokenize_corpus:
    input:
        model=model_source,
        corpus=of_corpus("source.json"),
        documents=of_corpus("documents.parquet"),
    output:
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
    log:
        f"{RESULTS}/logs/tokenize_corpus/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tokenize_corpus/{{model}}/{{corpus}}.tsv"
    wildcard_constraints:
        corpus=TEXT_CORPORA,
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        sample=sample,
        part=of_model("part"),
        code=code_version("tokenize_corpus"),
    message:
        "Tokenize {wildcards.corpus} for {wildcards.model}"
    script:
        "../scripts/tokenize_corpus.py"
