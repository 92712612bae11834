"""Words become ids and hashes: an index of the vocabulary, in compiled code that reads Arrow's buffers.

V words, S = 2^k > V slots of the index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shared.compiled import compiled
from pipeline.shared.draws import sequence_keys
from pipeline.shared.randomness import U64
from pipeline.text.tokens import num_set

_MULTIPLIER = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(32)


class Words(NamedTuple):
    """Words as compiled code takes them: word i is ``data[offsets[i] : offsets[i + 1]]``, with a 64-bit hash.

    The hash is the same on every machine, because sequence keys are made from it.
    """

    offsets: npt.NDArray[np.int32]
    data: npt.NDArray[np.uint8]
    hashes: U64

    @classmethod
    def of(cls, words: pa.StringArray) -> "Words":
        """The words of an Arrow array without nulls. Copies nothing."""
        offsets, data, hashes = np.zeros(1, np.int32), np.zeros(0, np.uint8), np.empty(len(words), np.uint64)
        if len(words):
            _, offset_buffer, data_buffer = words.buffers()
            offsets = np.frombuffer(offset_buffer, np.int32)[words.offset : words.offset + len(words) + 1]
            if data_buffer is not None and data_buffer.size:
                data = np.frombuffer(data_buffer, np.uint8)
        _hash_all(offsets, data, hashes)
        return cls(offsets, data, hashes)


class WordIndex:
    """Finds the ids of a vocabulary's words, by hash and then byte by byte.

    Needs memory for the words' bytes, and 20 to 28 bytes more per word.
    """

    ARRAYS = (*Words._fields, "slots")

    def __init__(self, vocab: pa.StringArray):
        self._vocab = Words.of(vocab)
        self._slots = np.full(2 << max(1, len(vocab).bit_length()), -1, np.int32)
        _build(self._vocab.hashes, self._slots)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By the names in ARRAYS, from which ``of_arrays`` makes the same index."""
        return {**self._vocab._asdict(), "slots": self._slots}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "WordIndex":
        index = cls.__new__(cls)  # nothing is left to be built
        index._vocab = Words(*(arrays[name] for name in Words._fields))
        index._slots = arrays["slots"]
        return index

    def ids(self, words: Words) -> npt.NDArray[np.int32]:
        """The id of each word; 0 for a word that is not in the vocabulary."""
        ids = np.zeros(words.hashes.size, np.int32)
        _find(self._slots, self._vocab, words, ids)
        return ids


@dataclass(frozen=True)
class Encoded:
    """Sequences of known ids end to end, with a key each: ``ids`` int32, ``lengths`` int64 >= 2, ``keys`` uint64."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    keys: U64


def encode(words: pa.StringArray, lengths: npt.NDArray[np.int64], index: WordIndex) -> Encoded:
    """The ids of the known words of every sequence. Leaves out sequences with fewer than two known words.

    A sequence's key is a hash of all its *words*, including unknown ones, so it is the same under every vocabulary: a
    line that is held out today is still held out when the corpus has grown.
    """
    dictionary = words.dictionary_encode()
    distinct = Words.of(dictionary.dictionary)
    token = dictionary.indices.to_numpy()
    keys = sequence_keys(distinct.hashes[token], lengths)
    ids = index.ids(distinct)[token]
    known = ids > 0
    num_known = num_set(known, lengths)
    enough = num_known >= 2
    return Encoded(ids=ids[known & np.repeat(enough, lengths)], lengths=num_known[enough], keys=keys[enough])


@compiled
def _hash_all(offsets: npt.NDArray[np.int32], data: npt.NDArray[np.uint8], hashes: U64) -> None:
    """Mixes in eight bytes at a time, by multiplications and shifts (after MurmurHash3's finaliser)."""
    for word in range(hashes.size):
        start, stop = offsets[word], offsets[word + 1]
        state = np.uint64(stop - start) * _MULTIPLIER
        for at in range(start, stop, 8):
            piece = np.uint64(0)
            for place in range(min(8, stop - at)):
                piece |= np.uint64(data[at + place]) << np.uint64(8 * place)
            state = (state ^ piece) * _MULTIPLIER
            state = (state ^ (state >> _SHIFT)) * _MULTIPLIER
            state ^= state >> _SHIFT
        hashes[word] = state


@compiled
def _build(hashes: U64, slots: npt.NDArray[np.int32]) -> None:
    """Open addressing: fills ``slots``, which all hold -1, with ids."""
    mask = np.uint64(slots.size - 1)
    for word in range(hashes.size):
        slot = hashes[word] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = word


@compiled
def _find(slots: npt.NDArray[np.int32], vocab: Words, words: Words, ids: npt.NDArray[np.int32]) -> None:
    """Writes the ids of the words that are in the vocabulary; the ids of others stay 0."""
    mask = np.uint64(slots.size - 1)
    for word in range(ids.size):
        slot = words.hashes[word] & mask
        start = words.offsets[word]
        length = words.offsets[word + 1] - start
        while slots[slot] >= 0:
            known = slots[slot]
            at = vocab.offsets[known]
            if vocab.hashes[known] == words.hashes[word] and vocab.offsets[known + 1] - at == length:
                same = True
                for place in range(length):
                    if vocab.data[at + place] != words.data[start + place]:
                        same = False
                        break
                if same:
                    ids[word] = known
                    break
            slot = (slot + np.uint64(1)) & mask
