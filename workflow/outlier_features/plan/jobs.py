"""Jobs of a whole run by rule: what `snakemake` plans where nothing is there yet."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from outlier_features.dump.dumps import CORPUS, Dump
from outlier_features.model_name import split_name
from outlier_features.rules.configured import the_rule
from outlier_features.run.config import fetched_name, turned_off
from outlier_features.run.run_places import corpus_of
from outlier_features.run.stages import STAGES

GALLERY = "render_gallery"  # whose files lie beside the runs


def runs_of(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each model on each corpus, by its label where it has one (`run_places`); a dump has a corpus of its own."""
    models, labels = config["catalog"]["models"], config.get("labels", {})
    return [
        (model, labels.get(f"{model}/{corpus}", corpus))
        for model in config["models"]
        for corpus in ([CORPUS] if "dump" in models[model] else config["corpora"])
    ]


def jobs_of_run(config: Mapping[str, Any], model: str, corpus: str, dump: Dump | None) -> Counter[str]:
    """Jobs of a run of a model on a corpus, or of a dump, by rule; an analysis that is left out has its job too."""
    location, kept = the_rule(config["rules"], "location"), config["extract"]["keep_activations"]
    gains = dump is not None and ("gains" in config["catalog"]["models"][model] or dump.has_gains)
    asked = {
        "extract_activations": kept,
        "detect_in_passes": not kept,
        "detect_outliers": dump or kept,
        "rerun_largest": not kept and turned_off(config, "surface") is None,
        "locate_outliers": location and (dump or (location["sites"] and kept)),
        "check_dump_norms": gains,
        "rate_triggers": config["ablate"]["knock_outs"],
        "knock_out": config["ablate"]["knock_outs"],
        "quantize_model": config["quantize"]["losses"],
        "attribute_logits": config["gallery"]["attribution"],
    }
    stages = [stage for stage in STAGES.values() if stage.of in ("any", "dump" if dump else "model")]
    chunks = len(chunk_ranges(config, corpus, dump))
    jobs = {stage.rule: chunks if stage.has_chunks else 1 for stage in stages if asked.get(stage.rule, True)}
    return Counter(jobs | {GALLERY: 1} if has_gallery(config, corpus) else jobs)


def has_gallery(config: Mapping[str, Any], corpus: str) -> bool:
    """Whether pages are made of a run on this corpus; of a dump there are none."""
    return corpus != CORPUS and turned_off(config, "gallery") is None


def jobs_beside(config: Mapping[str, Any]) -> Counter[str]:
    """Jobs that are of no run: what fetches, compares and writes the report."""
    models = config["catalog"]["models"]
    runs = runs_of(config)
    fetched = {fetched_name(name, models[name]): models[name] for name in config["models"]}
    evicted = [name for name, source in fetched.items() if "hub" in source and config["fetch"]["evict"]]
    jobs = Counter(
        {
            "fetch_model": len(fetched),
            "fetch_corpus": len({corpus_of(corpus) for _, corpus in runs} - {CORPUS}),
            "evict_weights": len(evicted),
            "compare_models": int(len(runs) > 1),
            "compare_runs": int(len(runs) > 1),
            "compare_revisions": int(len(runs) > 1 and any(split_name(model)[1] for model, _ in runs)),
            "render_report": 1,
            "list_galleries": int(any(has_gallery(config, corpus) for _, corpus in runs)),
        }
    )
    return +jobs


def chunk_ranges(config: Mapping[str, Any], corpus: str, dump: Dump | None) -> dict[str, tuple[int, int]]:
    """By name of each chunk of a run, `first-last` sequence, its first sequence and one past its last; in order, and
    known before anything runs."""
    if dump:
        found = [(part.start, part.stop) for part in dump.chunks()]
    else:
        count, size = sample_of(config, corpus)["sequences"], config["extract"]["chunk_sequences"]
        found = [(start, min(start + size, count)) for start in range(0, count, size)]
    width = len(str(found[-1][1] - 1))
    return {f"{first:0{width}}-{stop - 1:0{width}}": (first, stop) for first, stop in found}


def sample_of(config: Mapping[str, Any], corpus: str) -> Mapping[str, Any]:
    """Sequences and tokens of each: at most so many, since a text may be shorter."""
    sample: Mapping[str, Any] = config["catalog"]["corpora"][corpus]["sample"]
    return sample
