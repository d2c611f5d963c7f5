rule locate_outliers:
    input:
        chunks=all_activations,
        tokens=f"{RUN}/tokens.safetensors",
    output:
        locations=f"{RUN}/locations.json",
    log:
        f"{RESULTS}/logs/locate_outliers/{{model}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/locate_outliers/{{model}}/{{corpus}}.tsv"
    threads: threads_of("detect")
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        sites=located_sites,
        location=LOCATION,
        dump=whole_dump,
        code=code_version("locate_outliers"),
    message:
        "Locate outliers of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/locate_outliers.py"
