"""What is reduced beside a chunk's passes: jobs that are broken off go on, and a fault costs nothing else."""

import pytest

from outlier_features.channels.kept_channels import RECORDED
from outlier_features.channels.record_channels import ChannelRecorder
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.files.missing import MISSING
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.record_in_passes import RecordInPasses
from outlier_features.neurons.record_neurons import NeuronRecorder
from test_extract_activations import SETTINGS, Run, bits

KINDS = ("activations", "losses", "neurons", "channels")
ASKED = {"ranking": {"examples": 3, "high_norm": 1.02}, "recording": True}


def extracted(run, folder, **settings):
    """By kind, the files of the run as one chunk."""
    folder.mkdir(exist_ok=True)
    paths = [folder / kind for kind in KINDS]
    extract_activations(run.source, run.tokens, *paths, start=0, stop=len(run.ids), **{**SETTINGS, **ASKED, **settings})
    return {kind: TensorFile(path) for kind, path in zip(KINDS, paths, strict=True)}


def broken_off(run, folder, monkeypatch):
    """Layer by layer, killed when block 2 has run and nothing of it is kept beside the activations."""
    keep = RecordInPasses.keep

    def dies(self, file):
        if file.name.startswith("00002"):
            raise KeyboardInterrupt
        keep(self, file)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RecordInPasses, "keep", dies)
        extracted(run, folder, placement="layerwise")


def fails_in_block_1(monkeypatch, analysis):
    take, receive = NeuronRecorder._take, ChannelRecorder._receive

    def no_neurons(self, index, output):
        assert index != 1, "planted"
        take(self, index, output)

    def no_channels(self, one, rows):
        assert one.name != "model.layers.1.self_attn.o_proj", "planted"
        receive(self, one, rows)

    if analysis == "neurons":
        monkeypatch.setattr(NeuronRecorder, "_take", no_neurons)
    else:
        monkeypatch.setattr(ChannelRecorder, "_receive", no_channels)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "llama", lengths=[24, 7, 24, 1, 13])


def test_a_layerwise_job_goes_on_from_the_last_block(run, tmp_path, monkeypatch, capfd):
    broken_off(run, tmp_path / "killed", monkeypatch)
    resumed = extracted(run, tmp_path / "killed", placement="layerwise")
    assert "2 of 4 were finished before" in capfd.readouterr().err
    whole = extracted(run, tmp_path / "whole")
    assert {kind: bits(file) for kind, file in resumed.items()} == {kind: bits(file) for kind, file in whole.items()}


@pytest.mark.parametrize("analysis", ["neurons", "channels"])
@pytest.mark.parametrize("job", ["one", "layerwise", "layerwise, broken off"])
def test_a_fault_costs_nothing_else(analysis, job, run, tmp_path, monkeypatch):
    """Broken off after the fault, the job that goes on knows of it."""
    with monkeypatch.context() as patched:
        fails_in_block_1(patched, analysis)
        if job.endswith("broken off"):
            broken_off(run, tmp_path / "failed", monkeypatch)
        else:
            failed = extracted(run, tmp_path / "failed", placement=job)
    if job.endswith("broken off"):
        failed = extracted(run, tmp_path / "failed", placement="layerwise")
    whole = extracted(run, tmp_path / "whole")
    for kind, file in failed.items():
        if kind == analysis:
            assert not file.entries
            assert (file.provenance[MISSING]["analysis"], file.provenance[MISSING]["cause"]) == (analysis, "fault")
        else:
            assert bits(file) == bits(whole[kind]) and MISSING not in file.provenance
    assert failed["channels"].provenance[RECORDED]
