"""The parts of Parquet's data pages: a dictionary, bit-packed indices, runs, levels.

N rows of L places, of which the first ``num_real_N`` of each row are real and the others padding (0).
Sources: parquet-format Encodings.md, "Run Length Encoding / Bit-Packing Hybrid (RLE = 3)" and "Dictionary Encoding
(RLE_DICTIONARY = 8)". The arithmetic is on integers, so every machine writes the same bytes.
"""

import numpy as np
import numpy.typing as npt

from pipeline.dataset.thrift import varint
from pipeline.shared.compiled import compiled

Int32 = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


def dictionary(ids_NL: Int32, num_real_N: Int32) -> tuple[Int32, Int32]:
    """The ids that occur, in rising order after 0, which is always there; and the index of every id among them.

    Time and memory also grow with the largest id V: 5·V bytes.
    """
    present_V = np.zeros(int(ids_NL.max()) + 1, dtype=np.bool_)
    present_V[0] = True
    _mark(ids_NL, num_real_N, present_V)
    place_V = np.cumsum(present_V, dtype=np.int32) - np.int32(1)
    return np.flatnonzero(present_V).astype(np.int32), place_V


def packed(prefix: bytes, ids_NL: Int32, num_real_N: Int32, place_V: Int32, size: int) -> memoryview:
    """``prefix``, then indices into a dictionary of ``size`` entries in one bit-packed run, with padding as index 0.

    One run, because LZ4 saves what runs of zeros would save, and readers unpack one long run fastest.
    """
    bits = max(1, (size - 1).bit_length())
    num_groups = -(-ids_NL.size // 8)
    prefix += bytes([bits]) + varint(num_groups << 1 | 1)
    words = np.zeros(len(prefix) // 8 + num_groups * bits // 8 + 3, dtype="<u8")
    first = -(-len(prefix) // 8)  # the run begins at a word, and the prefix ends right before it
    _pack(ids_NL, num_real_N, place_V, bits, words[first:])
    page = words.view(np.uint8)[first * 8 - len(prefix) : first * 8 + num_groups * bits]
    page[: len(prefix)] = np.frombuffer(prefix, np.uint8)
    return page.data


def flags(num_ones_N: Int32, length: int) -> bytes:
    """Indices into the dictionary (0, 1): in every row a run of ``num_ones_N`` ones, then a run of zeros."""
    runs = np.empty(num_ones_N.size * 2 * (len(varint(length << 1)) + 1), dtype=np.uint8)
    return b"\1" + runs[: _write_flags(num_ones_N, length, runs)].tobytes()


def levels(num_rows: int, length: int) -> bytes:
    """Repetition and definition levels of lists that all have ``length`` values, none of them null.

    They are those of a data page of version 1, each preceded by its size ("Data Pages" in parquet-format's README).
    """
    row = varint(1 << 1) + b"\0" + (varint((length - 1) << 1) + b"\1" if length > 1 else b"")
    parts = row * num_rows, varint(num_rows * length << 1) + b"\1"
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


@compiled
def _mark(ids_NL: Int32, num_real_N: Int32, present_V: npt.NDArray[np.bool_]) -> None:
    for row in range(ids_NL.shape[0]):
        for place in range(num_real_N[row]):
            present_V[ids_NL[row, place]] = True


@compiled
def _pack(ids_NL: Int32, num_real_N: Int32, place_V: Int32, bits: int, words: npt.NDArray[np.uint64]) -> None:
    """Packs the real places into ``words``, which must be zero; padding stays 0."""
    for row in range(ids_NL.shape[0]):
        start = row * ids_NL.shape[1] * bits
        at = start >> 6
        used = start & 63
        word = words[at]
        for place in range(num_real_N[row]):
            value = np.uint64(place_V[ids_NL[row, place]])
            word |= value << np.uint64(used)
            used += bits
            if used >= 64:
                words[at] = word
                at += 1
                used -= 64
                word = value >> np.uint64(bits - used)
        words[at] = word


@compiled
def _write_flags(num_ones_N: Int32, length: int, runs: Bytes) -> int:
    end = 0
    for row in range(num_ones_N.size):
        for value in (1, 0):
            count = num_ones_N[row] if value else length - num_ones_N[row]
            if count > 0:
                header = count << 1
                while header >= 0x80:
                    runs[end] = header & 0x7F | 0x80
                    header >>= 7
                    end += 1
                runs[end] = header
                runs[end + 1] = value
                end += 2
    return end
