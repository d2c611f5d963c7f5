"""How large what is kept of neurons is, before a model has run: the plan says it, and the rules ask a cluster for it.

In bytes, of one neuron at the positions of one class (`position_classes`), by `examples`, the length of its lists.
Without numba and numpy, which planning has no need of; a test holds it to the arrays themselves.
"""

MOST_CLASSES = 4  # that a block can have positions of
USUAL_CLASSES = 2  # that most blocks have: SmolLM2's 30 have 67 on its default run
_HISTOGRAM = 64 * 4
_MERGING = 16  # times what is stored: 98,304 neurons in two chunks took 1.2 GB, with what is mapped of the files
# Of Parquet files, measured on SmolLM2-135M's default run, 16 examples of 3 populations.
ROW = 6.0  # of a row of `neurons`
STATISTICS_ROW = 89.0  # of a row of `neuron_statistics`


def stored(examples: int) -> int:
    """In a file: two lists of a value and a place, four moments, extremes, the count of active ones, a histogram."""
    return 2 * examples * (4 + 8) + 4 * 8 + 2 * 4 + 8 + _HISTOGRAM


def held(examples: int) -> int:
    """In memory while a model runs: also sixteen sequences that wait for the lists, the lists' ends, a pilot that sums
    are taken about, and how wide bins are."""
    return stored(examples) + 2 * 16 * (4 + 4) + 2 * 4 + 4 + 4 + 8


def held_while_ranking(neurons: int, examples: int) -> int:
    """At most, by the jobs that run the model."""
    return neurons * MOST_CLASSES * held(examples)


def held_while_merging(neurons: int, examples: int) -> int:
    """By the job that merges chunks and writes the tables, which takes one block at a time."""
    return neurons * _MERGING * stored(examples)


def written(neurons: int, examples: int) -> int:
    """A store, of a chunk or of a run, whose blocks have two classes of positions."""
    return neurons * USUAL_CLASSES * stored(examples)


def tables(neurons: int, examples: int, populations: int) -> int:
    """Both tables."""
    return round(neurons * populations * (2 * examples * ROW + STATISTICS_ROW))
