"""Rounding, value by value, against formulas written down anew: tables of the small formats, loops for the integers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outlier_features.quantize.remedies import Rotation, Treatment, smoothing
from outlier_features.quantize.schemes import SCHEMES, Seen, to_float

ROWS, WIDTH = 7, 160  # a group of 128 and a rest of 32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def e4m3_values():
    """All that are not negative, from their bits; 0x7F is no number."""
    found = []
    for bits in range(0x7F):
        exponent, mantissa = bits >> 3, bits & 7
        found.append(2.0**-6 * mantissa / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8))
    return np.array(found)


def nearest(x, table):
    """Of non-negative numbers whose index in the table is their bits: the nearest, at a tie the even one."""
    distance = np.abs(np.abs(x).astype(np.float64)[..., None] - table)
    is_nearest = distance == distance.min(axis=-1, keepdims=True)
    even = is_nearest & (np.arange(len(table)) % 2 == 0)
    found = table[np.where(even.any(-1), even.argmax(-1), is_nearest.argmax(-1))]
    return np.copysign(found, x)


def by_hand(name, x, static):
    """A scheme's rounding of x (n, width) float32."""
    x = x.astype(np.float32)

    def to_int(values, largest, most):
        scale = np.float32(largest) / np.float32(most)
        return np.clip(np.round(values / scale), -most, most) * scale if scale else np.zeros_like(values)

    def rows(values, rounded):
        return np.stack([rounded(row) for row in values])

    if name.startswith("int8_tensor"):
        return to_int(x, static if name.endswith("static") else np.abs(x).max(), 127)
    if name in ("int8_token", "int8_vector", "int4_token"):
        most = 7 if name == "int4_token" else 127
        return rows(x, lambda row: to_int(row, np.abs(row).max(), most))
    if name == "llm_int8":
        kept = (np.abs(x) < 6).all(0)
        found = x.copy()
        found[:, kept] = rows(x[:, kept], lambda row: to_int(row, np.abs(row).max(), 127))
        return found
    if name.startswith("fp8"):
        largest = np.full((len(x), 1), static, np.float32) if name == "fp8_tensor" else np.abs(x).max(1, keepdims=True)
        scale = largest.astype(np.float32) / np.float32(448)
        return nearest(np.clip(x / scale, -448, 448), e4m3_values()) * scale
    found = np.empty_like(x)
    size = 128 if name == "int4_group128" else 32
    for row in range(len(x)):
        for start in range(0, x.shape[1], size):
            part = x[row, start : start + size]
            if size == 128:
                found[row, start : start + size] = to_int(part, np.abs(part).max(), 7)
            else:
                scale = 2.0 ** (np.floor(np.log2(np.abs(part).max())) - 2)
                found[row, start : start + size] = nearest(np.clip(part / scale, -6, 6), E2M1) * scale
    return found


def sample(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (ROWS, WIDTH)).astype(np.float32)
    x[:, 3] *= 30
    x[0] *= 100
    return x


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_as_written_down(name, seed):
    x = sample(seed)
    static = float(np.abs(x).max()) * 1.5
    seen = Treatment("none").seen(torch.from_numpy(x), torch.full((WIDTH,), static), None, [SCHEMES[name]])
    found = SCHEMES[name](torch.from_numpy(x), seen).numpy()
    np.testing.assert_allclose(found, by_hand(name, x, static), rtol=1e-6, atol=1e-30)
    assert not np.array_equal(found, x)


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_stay(name):
    x = torch.zeros(3, WIDTH)
    assert torch.equal(SCHEMES[name](x, Seen(0.0, 0.0, torch.ones(1, WIDTH))), x)
    assert torch.equal(SCHEMES[name].weight(x), x)


def test_eight_bits_of_float_are_torchs_own():
    x = torch.cat([torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 10.0**e for e in range(-4, 4)])
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(to_float(x, 3, -6, 448.0), expected)


def test_integers_are_those_of_torchs_kernel():
    x = torch.from_numpy(sample())
    largest = float(x.abs().max())
    own = SCHEMES["int8_tensor_dynamic"](x, Seen(None, largest))
    kernel = torch.fake_quantize_per_tensor_affine(x, largest / 127, 0, -127, 127)
    assert (own - kernel).abs().max() <= 1e-6 * largest


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(SCHEMES)))
def test_rows_do_not_depend_on_their_batch(seed, name):
    """But for what a sequence shares, which is told."""
    x = torch.from_numpy(sample(seed % 1000))
    seen = Treatment("none").seen(x, x.abs().amax(0), None, [SCHEMES[name]])
    whole = SCHEMES[name](x, seen)
    some = torch.tensor([5, 1, 3])
    told = Seen.joined([(seen, len(x))], x.device).at(some)
    assert torch.equal(SCHEMES[name](x[some], told), whole[some])


@pytest.mark.parametrize("name", ["int8_token", "int4_group128", "mxfp4", "fp8_token", "int8_tensor_dynamic"])
def test_exact_columns_count_for_no_scale(name):
    x = torch.from_numpy(sample())
    exact = torch.zeros(WIDTH, dtype=torch.bool)
    exact[3] = True
    treatment = Treatment("exact_dims", exact=exact)
    found = treatment.rounded(SCHEMES[name], x, treatment.seen(x, x.abs().amax(0), None, [SCHEMES[name]]))
    assert torch.equal(found[:, 3], x[:, 3])
    without = x.clone()
    without[:, 3] = 0
    alone = SCHEMES[name](without, Seen(None, float(without.abs().max())))
    np.testing.assert_allclose(found[:, ~exact], alone[:, ~exact], rtol=0, atol=0)


def test_exact_rows_count_for_no_scale():
    x = torch.from_numpy(sample())
    rows = torch.arange(ROWS) == 0
    treatment = Treatment("exact_positions", positions=True)
    found = treatment.rounded(
        SCHEMES["int8_tensor_dynamic"],
        x,
        treatment.seen(x, x.abs().amax(0), rows, [SCHEMES["int8_tensor_dynamic"]]),
        rows,
    )
    assert torch.equal(found[0], x[0])
    np.testing.assert_allclose(found[1:], by_hand("int8_tensor_dynamic", x[1:].numpy(), 0), rtol=1e-6)


@pytest.mark.parametrize("width", [1, 12, 64, 160, 96 * 5])
def test_a_rotation_is_hadamards(width):
    rotation = Rotation(width, 0, torch.device("cpu"))
    matrix = rotation(torch.eye(width)).double().numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-6)
    size = width & -width
    block = np.ones((1, 1))
    while len(block) < size:
        block = np.kron(np.array([[1, 1], [1, -1]]), block)
    expected = np.kron(np.eye(width // size), block / np.sqrt(size))
    signs = np.sign(matrix.sum(1) / expected.sum(1)) if size == 1 else np.sign((matrix * expected).sum(1))
    np.testing.assert_allclose(matrix, signs[:, None] * expected, atol=1e-6)
    x, w = torch.randn(5, width), torch.randn(4, width)
    np.testing.assert_allclose(rotation(x) @ rotation(w).T, x @ w.T, atol=1e-4)


def test_smoothing_moves_a_scale_and_leaves_the_product():
    x, w = torch.from_numpy(sample()), torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(1))
    x[:, 7] = 0
    divisor = smoothing(x.abs().amax(0), w.abs().amax(0), 0.5)
    treatment = Treatment("smooth", divisor=divisor)
    assert divisor[7] == 1
    np.testing.assert_allclose(divisor[3], (x[:, 3].abs().max() ** 0.5) / (w[:, 3].abs().max() ** 0.5), rtol=1e-6)
    product = treatment.input(x) @ treatment.weight(w).T
    np.testing.assert_allclose(product, x @ w.T, rtol=1e-4, atol=1e-2)


def test_clipping_takes_a_quantile_for_the_largest():
    x = torch.from_numpy(sample())
    treatment = Treatment("clip", quantile=0.9)
    seen = treatment.seen(x, x.abs().amax(0), None, [SCHEMES["int8_token"]])
    found = treatment.rounded(SCHEMES["int8_token"], x, seen)
    quantile = torch.from_numpy(np.sort(x.abs().numpy(), axis=1)[:, int(np.ceil(0.9 * WIDTH)) - 1])
    np.testing.assert_allclose(found.abs().amax(1), quantile, rtol=1e-6)
