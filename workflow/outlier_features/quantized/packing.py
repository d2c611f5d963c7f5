"""Small integers packed into int32 words."""

from math import lcm

import torch


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers of `bits` bits from a stream of bits down each column, lowest first; 3 bits may cross words.

    words   int32 (R, C)

    Returns uint8 (R * 32 / bits, C).
    """
    period = lcm(32, bits)  # after which values begin at the start of a word again
    grouped = words.reshape(-1, period // 32, words.shape[1])
    values = torch.empty((len(grouped), period // bits, words.shape[1]), dtype=torch.uint8)
    for number in range(period // bits):
        word, shift = divmod(number * bits, 32)
        value = grouped[:, word] >> shift  # keeps the sign, whose copies the mask takes away, or the next word covers
        if (inside := 32 - shift) < bits:
            value = (value & ((1 << inside) - 1)) | (grouped[:, word + 1] << inside)
        values[:, number] = value & ((1 << bits) - 1)
    return values.reshape(-1, words.shape[1])
