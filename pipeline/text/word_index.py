"""From words to ids and hashes, a distinct word at a time: an index of the vocabulary in Arrow's own bytes.

V words, S = 2^k > V slots of the index.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shared.compiled import compiled
from pipeline.shared.draws import sequence_keys
from pipeline.shared.randomness import U64
from pipeline.text.tokens import num_set

_MULTIPLIER = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(32)


class WordIndex:
    """Finds the ids of a vocabulary's words, by hash and then byte by byte; each Python worker builds it once.

    Needs memory for the words' bytes, and 16 to 32 bytes a word more.
    """

    def __init__(self, words: pa.StringArray):
        self._offsets, self._bytes = _parts(words)
        self._hashes = word_hashes(words)
        self._slots = self._slots_of(self._hashes)

    @staticmethod
    def _slots_of(hashes: U64) -> npt.NDArray[np.int32]:
        slots = np.full(2 << max(1, hashes.size.bit_length()), -1, np.int32)
        _build(hashes, slots)
        return slots

    def ids(self, words: pa.StringArray, hashes: U64) -> npt.NDArray[np.int32]:
        """The id of each of ``words``, whose ``word_hashes`` are given; 0 for a word that is not in the vocabulary."""
        ids = np.zeros(hashes.size, np.int32)
        _find(self._slots, self._hashes, self._offsets, self._bytes, hashes, *_parts(words), ids)
        return ids


def word_hashes(words: pa.StringArray) -> U64:
    """A 64-bit hash of every word's bytes; the same on every machine, because sequence keys are made from it."""
    hashes = np.empty(len(words), np.uint64)
    _hash_all(*_parts(words), hashes)
    return hashes


def _parts(words: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets (len + 1) and bytes of an Arrow string array without nulls, without copying them."""
    if len(words) == 0:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    _, offsets, data = words.buffers()
    found = np.frombuffer(offsets, np.int32)[words.offset : words.offset + len(words) + 1]
    return found, np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Encoded:
    """Sequences of known ids end to end, with a key each: ``ids`` int32, ``lengths`` int64 >= 2, ``keys`` uint64."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    keys: U64


def encode(words: pa.StringArray, lengths: npt.NDArray[np.int64], index: WordIndex) -> Encoded:
    """Ids of the known words of every sequence; sequences with fewer than two known words are left out.

    A sequence's key is a hash of all its *words*, including unknown ones, so it is the same under every vocabulary: a
    line that is held out today is still held out when the corpus has grown.
    """
    dictionary = words.dictionary_encode()
    hash_D = word_hashes(dictionary.dictionary)
    id_D = index.ids(dictionary.dictionary, hash_D)
    token = dictionary.indices.to_numpy()
    keys = sequence_keys(hash_D[token], lengths)
    ids = id_D[token]
    known = ids > 0
    num_known = num_set(known, lengths)
    enough = num_known >= 2
    return Encoded(ids=ids[known & np.repeat(enough, lengths)], lengths=num_known[enough], keys=keys[enough])


@compiled
def _hash_all(offsets: npt.NDArray[np.int32], data: npt.NDArray[np.uint8], hashes: U64) -> None:
    """Eight bytes at a time, each mixed in by a multiplication and a fold (after MurmurHash3's finaliser)."""
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
    """Open addressing: a slot holds an id, or -1, which all slots hold before."""
    mask = np.uint64(slots.size - 1)
    for word in range(hashes.size):
        slot = hashes[word] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = word


@compiled
def _find(
    slots: npt.NDArray[np.int32],
    hashes: U64,
    offsets: npt.NDArray[np.int32],
    data: npt.NDArray[np.uint8],
    asked_hashes: U64,
    asked_offsets: npt.NDArray[np.int32],
    asked_data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int32],
) -> None:
    """Writes the ids of the words that are in the vocabulary; the ids of others stay 0."""
    mask = np.uint64(slots.size - 1)
    for asked in range(ids.size):
        slot = asked_hashes[asked] & mask
        start = asked_offsets[asked]
        length = asked_offsets[asked + 1] - start
        while slots[slot] >= 0:
            word = slots[slot]
            at = offsets[word]
            if hashes[word] == asked_hashes[asked] and offsets[word + 1] - at == length:
                same = True
                for place in range(length):
                    if data[at + place] != asked_data[start + place]:
                        same = False
                        break
                if same:
                    ids[asked] = word
                    break
            slot = (slot + np.uint64(1)) & mask
