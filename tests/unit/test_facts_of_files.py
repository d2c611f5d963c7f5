"""What a stage says of its tables is read back as it was, from the file that has it or not at all."""

from dataclasses import fields

import polars as pl
import pytest

from outlier_features.attention.sinks_schema import SINKS, SinkSample
from outlier_features.errors import DamagedFile
from outlier_features.experts.experts_schema import EXPERTS, Ranking
from outlier_features.files.tables import provenance_of, write_table

SAMPLE = SinkSample(
    threshold=0.3, blocks=4, positions=8, sequences=3, short_sequences=1, layers_without_patterns=[0, 2]
)
RANKING = Ranking(has_experts=True, experts_sequences=2, experts_targets=5, active_parameters=7)
KEPT = [
    (SINKS, SAMPLE, {"threshold": 0.3, "blocks": 4, "positions": 8, "sequences": 3, "short_sequences": 1,
                     "layers_without_patterns": [0, 2]}),
    (EXPERTS, RANKING, {"has_experts": True, "experts_sequences": 2, "experts_targets": 5, "active_parameters": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("table", "facts", "kept"), KEPT, ids=["sinks", "experts"])
def test_facts_are_keys_of_the_provenance(table, facts, kept, tmp_path):
    path = tmp_path / f"{table.name}.parquet"
    write_table(path, pl.DataFrame(schema=table.schema), table, {"model": "m"} | facts.kept)
    found = provenance_of(path, table)
    assert found == {"model": "m"} | kept  # as files of earlier versions have them
    assert type(facts).of(found) == facts


@pytest.mark.parametrize(
    ("table", "facts", "name"), [(table, facts, field.name) for table, facts, _ in KEPT for field in fields(facts)]
)
def test_a_file_that_lacks_a_fact_is_named_in_a_sentence(table, facts, name, tmp_path):
    path = tmp_path / f"{table.name}.parquet"
    kept = {key.replace(name, f"{name}s"): value for key, value in facts.kept.items()}
    write_table(path, pl.DataFrame(schema=table.schema), table, kept)
    with pytest.raises(DamagedFile, match=rf"{table.name}\.parquet: its provenance names no {name}, "):
        type(facts).of(provenance_of(path, table))
