"""What a cluster's scheduler relies on, read from the rules themselves."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXTS = {path.name: path.read_text() for path in sorted((ROOT / "rules").glob("*.smk"))}
RULES = {
    name: body
    for text in TEXTS.values()
    for name, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
}
LOCAL = set(re.findall(r"^    (\w+),$", (ROOT / "Snakefile").read_text().split("localrules:")[1], re.MULTILINE))
PROFILE = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())


def grows_with_attempt(value: str) -> bool:
    """Whether a resource is `... * attempt`, in a lambda or in a function of common.smk."""
    if value.isidentifier():
        value = re.search(rf"^def {value}\(.*?(?=^\S)", TEXTS["common.smk"] + "\nend", re.DOTALL | re.MULTILINE)[0]
    return bool(re.search(r"\battempt\):|\battempt: ", value)) and value.rstrip().endswith("* attempt")


@pytest.mark.parametrize("rule", RULES)
def test_memory_and_time_grow_with_the_attempt(rule):
    resources = dict(re.findall(r"^        (mem_mb|runtime)=(.*),$", RULES[rule], re.MULTILINE))
    assert set(resources) == {"mem_mb", "runtime"}
    assert all(map(grows_with_attempt, resources.values())), resources


@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_is_asked_for_where_a_model_is_put_on_a_device(rule):
    on_device = re.search(r"^        (device|loading)=", RULES[rule], re.MULTILINE)
    assert re.findall(r"^        gpu=(.*),$", RULES[rule], re.MULTILINE) == (["GPUS"] if on_device else [])


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_is_grouped_or_counts_its_own_retries(rule):
    """A rule's own retries would be counted in the job once more, where the allocation is that of the first."""
    assert not re.search(r"^    (group|retries):", RULES[rule], re.MULTILINE)


def test_the_profile_groups_nothing_and_names_no_rule():
    assert not {"groups", "group-components", "set-resources", "set-threads", "slurm-array-jobs"} & set(PROFILE)


def test_what_fetches_is_local():
    assert LOCAL & set(RULES) == {"fetch_model", "fetch_corpus"}
