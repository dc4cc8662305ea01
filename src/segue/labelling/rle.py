"""Label Studio's brush masks: the RGBA bytes of a canvas in the bit stream of ``@thi.ng/rle-pack``.

32 bits number of words, 5 bits word size - 1, 4 x 4 bits sizes of length fields - 1; then records: 1 bit repeat or
literal, 2 bits which length field, length - 1 in so many bits, one word to repeat or ``length`` literal ones. Most
significant bit first. Records of ours repeat, as a mask is all runs; those of browsers also hold literals (soft edges).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segue.labelling.job import LabellingError
from segue.labels import U8

WORD_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
HEADER_BITS = 32 + 5 + 4 * 4
CHANNELS = 4
RECORD_BITS = 1 + 2 + LENGTH_BITS[-1] + WORD_BITS

Mask = npt.NDArray[np.bool_]


def encode_mask(mask: Mask) -> list[int]:
    """(H, W) to the numbers that ``value.rle`` of a brush holds: 255 in all four channels where ``mask`` is."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs = CHANNELS * np.diff(ends, prepend=0)
    longest = 1 << LENGTH_BITS[-1]
    pieces = -(-runs // longest)
    lengths = np.full(int(pieces.sum()), longest, np.int64)
    last = np.cumsum(pieces) - 1
    lengths[last] = runs - (pieces - 1) * longest
    words = np.repeat(np.where(flat[ends - 1], 255, 0), pieces)
    which = np.searchsorted([1 << bits for bits in LENGTH_BITS], lengths)
    bits = np.array(LENGTH_BITS)[which]
    codes = (((4 | which) << bits) | (lengths - 1)) << WORD_BITS | words
    sizes = 1 + 2 + bits + WORD_BITS
    # each record as a row of bits, left-justified, of which its first ``sizes`` count
    rows = (codes << (RECORD_BITS - sizes))[:, None] >> np.arange(RECORD_BITS - 1, -1, -1) & 1
    body = rows[np.arange(RECORD_BITS) < sizes[:, None]].astype(np.uint8)
    out: list[int] = np.packbits(np.concatenate([_header(CHANNELS * flat.size), body])).tolist()
    return out


def decode_mask(numbers: Sequence[int], size: tuple[int, int]) -> Mask:
    """The pixels of an image of that size (H, W) that a brush covers; ``LabellingError`` when it is of another one.

    A soft edge counts from half of the brush's own opacity on.
    """
    try:
        data = bytes(numbers) if isinstance(numbers, list) else b""
    except (TypeError, ValueError):
        data = b""
    words = _decode(data, CHANNELS * size[0] * size[1])
    opacity = words[CHANNELS - 1 :: CHANNELS].reshape(size)
    strongest = int(opacity.max(initial=0))
    return (2 * opacity.astype(np.uint16) >= strongest) & (opacity > 0)


def _header(words: int) -> U8:
    bits = f"{words:032b}{WORD_BITS - 1:05b}{''.join(f'{n - 1:04b}' for n in LENGTH_BITS)}"
    return np.array([int(b) for b in bits], np.uint8)


def _decode(data: bytes, expected: int) -> U8:
    if 8 * len(data) < HEADER_BITS:
        raise LabellingError("a brush without a mask that can be read: export again")
    count = int.from_bytes(data[:4], "big")
    word_bits = (data[4] >> 3) + 1
    if count != expected or word_bits != WORD_BITS:
        raise LabellingError(
            f"a brush on {count // CHANNELS} pixels, the image has {expected // CHANNELS}: it is of another image"
        )
    sizes = [(int.from_bytes(data[4:7], "big") >> shift & 15) + 1 for shift in (15, 11, 7, 3)]
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    out = np.zeros(count, np.uint8)
    here, done = HEADER_BITS, 0
    while done < count:
        # 8 bytes hold a whole record's head from any bit on
        window = int.from_bytes(data[here >> 3 : (here >> 3) + 8].ljust(8, b"\0"), "big") << (here & 7)
        length_bits = sizes[window >> 61 & 3]
        length = (window >> (61 - length_bits) & ((1 << length_bits) - 1)) + 1
        repeats = bool(window >> 63 & 1)
        start = here + 3 + length_bits
        here = start + WORD_BITS * (1 if repeats else length)
        if here > bits.size or done + length > count:
            raise LabellingError("a brush whose mask ends early or is damaged: export again")
        words = np.packbits(bits[start:here])
        out[done : done + length] = words
        done += length
    return out
