rule filter_systematic:
    input:
        unpack(hits),
        scaled_hits=of_chunks(f"{RUN}/scaled_hits/{{chunk}}.parquet"),
        counted_pairs=of_chunks(f"{RUN}/counted_pairs/{{chunk}}.parquet"),
        counted_positions=of_chunks(f"{RUN}/counted_positions/{{chunk}}.parquet"),
        statistics=f"{RUN}/statistics.safetensors",
        tokens=f"{RUN}/tokens.safetensors",
        texts=f"{RUN}/texts.parquet",
    output:
        pairs=f"{RUN}/pairs.parquet",
        sensitivity=f"{RUN}/sensitivity.parquet",
        massive=f"{RUN}/massive.parquet",
        positions=f"{RUN}/positions.parquet",
    log:
        f"{RESULTS}/logs/filter_systematic/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/filter_systematic/{{model}}/{{corpus}}.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        sites=sites,
        rules=CONFIG["rules"],
        grid=CONFIG["sensitivity"],
        code=code_version("filter_systematic"),
        kinds=KINDS,
    message:
        "Select systematic outliers of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/filter_systematic.py"
