"""Tensors as a safetensors file, written with O_DIRECT, past the page cache, which takes a tenth of the CPU time.

Training uses all cores, so a checkpoint costs what its writing takes from them: copying into the page cache took three
times as long as everything else.
Source: the description of the format in safetensors' README; open(2) on O_DIRECT.
"""

import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64

from training.model.blocks import Blocks
from training.model.memory import PAGE

_DTYPES = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}


def save(path: Path, state: Mapping[str, Tensor | Blocks]) -> str:
    """Writes and fsyncs the file, and returns the digest (XXH3, 64 bits) of its content.

    Blocks are read in the order of ``state``. An existing file is overwritten in place, unless it is a link or has
    other names: then it is replaced. What is large is written past the page cache if it is ``page_aligned`` and the
    file system allows it. Raises OSError.
    """
    names = sorted(state, key=lambda name: 0 if isinstance(state[name], Blocks) else -state[name].nbytes)
    names.sort(key=lambda name: isinstance(state[name], Tensor))
    header, end = {}, 0
    for name in names:
        tensor, begin = state[name], end
        end += tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    digest = xxh3_64()
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):  # a backup by hard links keeps its content
        path.unlink()
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0) as file:
        for part in chain([memoryview(struct.pack("<Q", len(text)) + text)], *(_parts(state[name]) for name in names)):
            content = part.cast("B")
            digest.update(content)
            content = content[_write_directly(file, content) :]
            while content:
                content = content[file.write(content) :]
        file.truncate()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _parts(tensor: Tensor | Blocks) -> Iterator[memoryview]:
    blocks = tensor.blocks() if isinstance(tensor, Blocks) else [tensor]
    return (block.numpy().data for block in blocks)


def _write_directly(file: BinaryIO, content: memoryview) -> int:
    """Writes whole pages past the page cache, as many as possible; returns how many bytes it wrote."""
    done, whole = 0, len(content) // PAGE * PAGE
    address = np.frombuffer(content, dtype=np.uint8).ctypes.data
    if not hasattr(os, "O_DIRECT") or not whole or address % PAGE or file.tell() % PAGE:
        return 0
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < whole:
            done += os.write(file.fileno(), content[done:whole])
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system does not support O_DIRECT
            raise
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return done
