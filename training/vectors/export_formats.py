"""Word vectors in the formats of word2vec.c, gensim and TensorBoard's projector.

Files hold the center vectors without <unk>, the most frequent word first. D dimensions, B words of a chunk.
"""

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shared.errors import InputError
from pipeline.shared.files import atomic_write, os_errors
from training.vectors.cosine import chunks
from training.vectors.run_files import VECTORS, VOCAB
from training.vectors.word_vectors import Vectors

FORMATS = ("word2vec", "word2vec-binary", "projector")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
"""Readers such as gensim decompress files with these suffixes."""


def export(run: Path, form: str, output: Path, overwrite: bool = False, strict: bool = False) -> str:
    """Writes the vectors of ``run`` to ``output``, and for the projector the words beside it. Returns a summary.

    Writes atomically. Raises InputError for a run that is not finished, an output that cannot be used, and words that
    would be equal in the format.
    """
    metadata = output.with_name(f"{output.stem}.metadata.tsv") if form == "projector" and output.name else None
    for file in filter(None, (output, metadata)):
        check_output_file(file, run, overwrite)
    vectors = Vectors.load(run, strict)
    words, num_changed = without_space(vectors.words[1:])
    center_VD = vectors.center_VD[1:]
    with os_errors(f"--output {output}: cannot be written", "choose another file"):
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as vectors_file:
            if form == "projector":
                write_numbers(vectors_file, center_VD)
            elif form == "word2vec":
                write_word2vec(vectors_file, words, center_VD)
            else:
                write_word2vec_binary(vectors_file, words, center_VD)
            if metadata:
                with atomic_write(metadata) as metadata_file:
                    write_metadata(metadata_file, words, vectors.counts_V)
    changed = f", {num_changed:,} of them with _ for white space" if num_changed else ""
    files = f"{output} and {metadata}" if metadata else str(output)
    return f"{len(words):,} words{changed}, {center_VD.shape[1]} dimensions: {files}"


def check_output_file(file: Path, run: Path, overwrite: bool) -> None:
    """Raises InputError when ``file`` may not be written."""
    where = f"--output {file}"
    if file.suffix.lower() in PACKED:
        raise InputError(
            f"{where}: readers would unpack {file.suffix}, expected the name of a plain file; choose another"
        )
    with os_errors(f"{where}: cannot be used", "choose another file"):
        existing = next(place for place in (file, *file.absolute().parents) if place.exists())
        if existing == file and not file.is_file():
            raise InputError(f"{where}: is no file, expected one, new or to be replaced; name another")
        if existing != file and not existing.is_dir():
            raise InputError(f"{where}: {existing} is a file, expected a folder; choose another")
        if existing == file and run.exists() and file.samefile(run):
            raise InputError(f"{where}: is what is to be read; name another file")
        if run.resolve() in file.resolve().parents:
            raise InputError(f"{where}: lies in the run's folder, which holds its own files only; name one elsewhere")
    if existing == file and not overwrite:
        raise InputError(f"{where}: is there already; add --overwrite or name another file")


def write_word2vec(file: BinaryIO, words: pa.StringArray, center_VD: npt.NDArray[np.float32]) -> None:
    """word2vec.c's text format: a line with V and D, then a line for each word with its numbers."""
    file.write(b"%d %d\n" % center_VD.shape)
    for chunk in chunks(*center_VD.shape):
        write_lines(file, pc.binary_join_element_wise(words[chunk], number_lines(center_VD[chunk], " "), " "))


def write_word2vec_binary(file: BinaryIO, words: pa.StringArray, center_VD: npt.NDArray[np.float32]) -> None:
    """word2vec.c's binary format, without line ends, as gensim writes it; readers skip line ends."""
    file.write(b"%d %d\n" % center_VD.shape)
    for chunk in chunks(*center_VD.shape):
        rows_BD = center_VD[chunk].astype("<f4", copy=False)
        named = zip(words[chunk].to_pylist(), rows_BD, strict=True)
        file.write(b"".join(b"%b %b" % (word.encode(), row_D.tobytes()) for word, row_D in named))


def write_numbers(file: BinaryIO, center_VD: npt.NDArray[np.float32]) -> None:
    """A line for each word, with tabs between its numbers."""
    for chunk in chunks(*center_VD.shape):
        write_lines(file, number_lines(center_VD[chunk], "\t"))


def write_metadata(file: BinaryIO, words: pa.StringArray, counts_V: npt.NDArray[np.int64] | None) -> None:
    """A header, then a line for each word with its count. Without counts, words only.

    A single column has no header, since the projector would take it for a word.
    """
    if counts_V is None:
        return write_lines(file, words)
    write_lines(file, pa.array(["word\tcount"]))
    write_lines(file, pc.binary_join_element_wise(words, pc.cast(pa.array(counts_V[1:]), pa.string()), "\t"))


def number_lines(rows_BD: npt.NDArray[np.float32], mark: str) -> pa.StringArray:
    """Each row's numbers separated by ``mark``, with the fewest digits that read back as the same float32."""
    numbers = pc.cast(pa.array(rows_BD.reshape(-1)), pa.string())
    ends = np.arange(len(rows_BD) + 1, dtype=np.int32) * rows_BD.shape[1]
    return pc.binary_join(pa.ListArray.from_arrays(ends, numbers), mark)


def write_lines(file: BinaryIO, lines: pa.StringArray) -> None:
    text = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")
    file.write(text[0].as_buffer())
    file.write(b"\n")


def without_space(words: list[str]) -> tuple[pa.StringArray, int]:
    """The words with _ for white space, which separates words in these formats, and how many words that changed.

    Only sequences that came as arrays can have white space in words. Raises InputError when two words become equal.
    """
    plain = [re.sub(r"\s", "_", word) for word in words]
    changed = {written for word, written in zip(words, plain, strict=True) if written != word}
    word_of = {written: word for word, written in zip(words, plain, strict=True) if written in changed}
    for word, written in zip(words, plain, strict=True):
        if word_of.get(written, word) != word:
            raise InputError(
                f"found the words {word!r:.80} and {word_of[written]!r:.80}, expected words that differ without "
                f"white space, since both would be written {written:.80}; rename one in the corpus, or read the run's "
                f"own {VECTORS} and {VOCAB}"
            )
    return pa.array(plain, pa.string()), sum(map(str.__ne__, plain, words))
