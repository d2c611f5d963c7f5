"""Rule extract_activations: one forward pass over a chunk of sequences, its activations and token losses to files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from outlier_features.extract.block_by_block import place_beside
from outlier_features.extract.passes import Passes
from outlier_features.extract.request import Request
from outlier_features.files.layer_keys import GAIN
from outlier_features.files.tensorfile import TensorFileWriter
from outlier_features.model.loading import Loading
from outlier_features.neurons.ranked_at import Ranking


def extract_activations(
    source: Path,
    tokens: Path,
    activations: Path,
    losses: Path,
    neurons: Path,
    channels: Path,
    *,
    start: int,
    stop: int,
    sites: list[str],
    batch_size: int,
    sample: Mapping[str, Any] | None = None,
    ranking: Ranking | None = None,
    recording: bool = False,
    scoring: bool = True,
    log: Path | None = None,
    **loading: Unpack[Loading],
) -> None:
    """Run the sequences from `start` to before `stop` through a model.

    source       the model's source.json
    tokens       the run's tokens.safetensors: N sequences of T tokens, padded on the right
    sites        names of `bases.SITES`; one that the model lacks is named in the provenance (`absent`) and on stderr
    batch_size   sequences in a pass on a GPU; a CPU takes one at a time
    sample       how the tokens must have been sampled, as the config says it; any way will do if None
    ranking      how neurons are ranked: sequences in a list (`examples`) and `high_norm` (see `position_classes`);
                 None: they are not
    recording    whether the inputs of linear layers are recorded
    scoring      whether the losses of tokens are computed
    log          of the job, for whoever looks into why the norms could not be found

    A chunk that begins after the last sequence, of a text shorter than the sample, gets files without tensors and costs
    no pass.

    Writes `activations`, a tensor `{site}.{block}` (stop - start, T, H) in the model's dtype for each site and block
    that has it and `gain.{site}` float32 (L, H), what the norms that make a site multiply by (see `site_gains`);
    `losses`, `nll` float32 (stop - start, T) in nats where the model predicts a next token; `neurons`, see
    `kept_neurons`; and `channels`, see `kept_channels`. All carry the same provenance. The run's first `losses` hold
    the norms of the model too (see `kept_norms`). Memory does not grow with the number of sequences.

    Raises `InputError` where the model cannot be used, its vocabulary or positions do not fit the tokens, a site is
    not what its name says, or an activation is not finite.
    """
    request = Request.read(source, tokens, start=start, stop=stop, sites=sites, sample=sample)
    if request.start == request.stop:
        request.write_nothing(activations, losses, neurons, channels)
        return
    passes = Passes.of_fetched(
        request,
        batch_size=batch_size,
        kept=place_beside(activations),
        log=log or losses,
        ranking=ranking,
        recording=recording,
        scoring=scoring,
        **loading,
    )
    gains = {GAIN + site: values for site, values in passes.gains.items()}
    shapes = passes.shapes | {name: ("F32", values.shape) for name, values in gains.items()}
    with (
        TensorFileWriter(activations, shapes, passes.provenance) as activation_file,
        passes.loss_file(losses) as loss_file,
    ):
        for name, values in gains.items():
            activation_file.write(name, 0, values)
        passes.run(activation_file.write, loss_file.write)
    passes.write_beside(neurons, channels)
    passes.finish()
