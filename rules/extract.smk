def first_sequence(wildcards):
    return int(wildcards.chunk.split("-")[0])


def model_mb(wildcards, input, attempt):
    """Memory for the weights (their files' size, twice: bfloat16 may be widened) and a batch of activations."""
    source = Path(input.source)
    weights = (
        0
        if not source.exists()
        else sum(p.stat().st_size for p in source.parent.glob("*.safetensors"))
    )
    return (4000 + 2 * weights // 10**6) * attempt


rule extract_activations:
    input:
        source=f"{RESOURCES}/models/{{model}}/source.json",
        tokens=f"{RUN}/tokens.safetensors",
    output:
        activations=(
            f"{RUN}/activations/{{chunk}}.safetensors"
            if CONFIG["extract"]["keep_activations"]
            else temp(f"{RUN}/activations/{{chunk}}.safetensors")
        ),
        losses=f"{RUN}/losses/{{chunk}}.safetensors",
    log:
        f"{RESULTS}/logs/extract_activations/{{model}}/{{corpus}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/extract_activations/{{model}}/{{corpus}}/{{chunk}}.tsv"
    threads: CONFIG["extract"]["threads"]
    resources:
        mem_mb=model_mb,
        runtime=lambda wildcards, attempt: 120 * attempt,
        gpu=1 if CONFIG["extract"]["device"] == "cuda" else 0,
    params:
        start=first_sequence,
        stop=lambda wildcards: int(wildcards.chunk.split("-")[1]) + 1,
        sites=SITES,
        dtype=of_model("dtype"),
        device=CONFIG["extract"]["device"],
        attention=of_model("attention"),
        batch_size=CONFIG["extract"]["batch_size"],
        threads=CONFIG["extract"]["threads"],
        trust_remote_code=of_model("trust_remote_code"),
        code=code_version("extract_activations"),
    message:
        "Run {wildcards.model} on sequences {wildcards.chunk} of {wildcards.corpus}"
    script:
        "../scripts/extract_activations.py"
