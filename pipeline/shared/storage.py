"""Location: a local file or folder, or one in an object store.

Local paths and every URI that pyarrow knows (``s3://``, ``gs://``, ``abfs://``, ``hdfs://``, ``file://``) go through
pyarrow, so an executor needs only pyarrow for them; any other scheme goes through fsspec. Credentials and endpoints
come from where these libraries look for them (for S3: AWS_* variables, ~/.aws, the machine's role).
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import atomic_write, make_folder
from pipeline.shared.redact import has_credentials, redacted

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|:/)")
_COPY_BYTES = 8 << 20
_S3_ATTEMPTS = 4
_S3_CONNECT_TIMEOUT_S = 10
_S3_SILENCE_S = 5
"""The longest silence of a server. With all attempts and pauses, the error comes within half a minute."""


@dataclass(frozen=True)
class Location:
    """A file or folder; ``location / "name"`` is one inside it. Printed as the user wrote it. Methods raise OSError."""

    shown: str
    path: str
    """Its path in ``filesystem``."""

    @classmethod
    def of(cls, where: "str | Path | Location") -> "Location":
        """The location of a path or URI.

        Raises InputError if no installed library knows the URI's scheme, or if the URI contains credentials.
        """
        if isinstance(where, Location):
            return where
        refuse_credentials(str(where))
        if is_uri(str(where)):
            return cls(str(where).rstrip("/"), _filesystem(_base(str(where)))[1] + _below_base(str(where)))
        return cls(str(where), str(Path(where).absolute()))

    @property
    def local(self) -> Path | None:
        """The path on this machine; None for a remote location."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    @property
    def filesystem(self) -> pafs.FileSystem:
        return _filesystem(_base(self.shown))[0] if is_uri(self.shown) else _LOCAL

    def reader(self) -> Callable[[int, int], bytes]:
        """``read(offset, num_bytes)`` of the file: one request without retries; safe for several threads at once.

        Returns fewer bytes at the end of the file. Opening asks an object store once whether the file exists.
        """
        filesystem = _filesystem(_base(self.shown), s3_attempts=1)[0] if is_uri(self.shown) else _LOCAL
        if isinstance(filesystem, pafs.PyFileSystem):
            return partial(_read_through_fsspec, filesystem.handler.fs, self.path)
        file = filesystem.open_input_file(self.path)
        return lambda offset, num_bytes: file.read_at(num_bytes, offset)

    def absolute(self) -> "Location":
        """The same location, independent of the working directory."""
        return self if is_uri(self.shown) else Location(self.path, self.path)

    def __truediv__(self, name: str) -> "Location":
        base, mark, query = self.shown.partition("?") if is_uri(self.shown) else (self.shown, "", "")
        return Location(f"{base}/{name}{mark}{query}", f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.shown

    def open(self) -> pa.NativeFile:
        """The file, open for random access."""
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return bytes(file.read())

    def sizes(self, names: list[str]) -> list[int | None]:
        """The sizes in bytes of these files of this folder, in one request; None for a missing file."""
        infos = self.filesystem.get_file_info([f"{self.path}/{name}" for name in names])
        return [info.size if info.type == pafs.FileType.File else None for info in infos]

    def exists(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound)

    def entries(self) -> list[pafs.FileInfo]:
        """The files and folders directly in this folder; empty if it does not exist."""
        return list(self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True)))

    def files(self) -> list[pafs.FileInfo]:
        """All files in this folder and its subfolders; empty if it does not exist."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=True))
        return [info for info in found if info.type == pafs.FileType.File]

    def make_folder(self) -> None:
        """Creates a local folder, durably. Does nothing in an object store, which has no folders."""
        if self.local is not None:
            make_folder(self.local)

    @contextmanager
    def atomic_write(self) -> Iterator[IO[bytes]]:
        """Yields a temporary file, which becomes this file when the block ends. After an error, this file is unchanged.

        On a disk the temporary file is renamed, durably; otherwise it is uploaded.
        """
        if self.local is not None:
            with atomic_write(self.local) as file:
                yield file
            return
        with SpooledTemporaryFile(_COPY_BYTES) as temporary:
            yield temporary
            temporary.seek(0)
            with self.filesystem.open_output_stream(self.path) as target:
                shutil.copyfileobj(temporary, target, _COPY_BYTES)

    def put(self, content: bytes) -> None:
        """Writes the whole file atomically."""
        with self.atomic_write() as file:
            file.write(content)

    def remove(self) -> None:
        """Removes a file, or a folder with its content. Idempotent."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != pafs.FileType.NotFound:
            self.filesystem.delete_file(self.path)


_LOCAL = pafs.LocalFileSystem()


def is_uri(where: str) -> bool:
    """Returns True for a URI and False for a local path. ``C:/`` is a path."""
    return _SCHEME.match(where) is not None


def refuse_credentials(where: str) -> None:
    """Raises InputError for a URI that contains credentials: they would be printed and stored with it."""
    if is_uri(where) and has_credentials(where):
        raise InputError(
            f"{redacted(where)}: found credentials in the URI, expected them in environment variables (such as "
            f"AWS_ACCESS_KEY_ID), in ~/.aws, or as the machine's role; take them out"
        )


def _base(uri: str) -> str:
    """The part of a URI that determines the file system: scheme, host or bucket, and query."""
    parts = urlsplit(uri)
    return parts._replace(path="", fragment="").geturl()


def _below_base(uri: str) -> str:
    return urlsplit(uri).path.rstrip("/")


@lru_cache(maxsize=16)
def _filesystem(base: str, s3_attempts: int = _S3_ATTEMPTS) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI without its path, and the prefix of its paths."""
    scheme = urlsplit(base).scheme
    try:
        if scheme == "s3":
            return _s3(base, s3_attempts), urlsplit(base).netloc
        if scheme == "file":
            return _LOCAL, ""
        filesystem, path = pafs.FileSystem.from_uri(base)
        return filesystem, str(path)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        if "Unrecognized filesystem type" not in str(error):
            raise InputError(f"{base}: cannot be used ({one_line(error)})") from None
    return _through_fsspec(base)


def _s3(base: str, attempts: int) -> pafs.FileSystem:
    """S3 with short timeouts. pyarrow's default timeouts add up to minutes if no server answers.

    The query may hold pyarrow's options, as in ``s3://b/p?endpoint_override=host:port``.
    """
    parts = urlsplit(base)
    if not parts.netloc:
        raise InputError(f"{base}: expected s3://bucket/...")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    endpoint = options.pop("endpoint_override", None) or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint_override"] = endpoint
        options.setdefault("region", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    elif "region" not in options:
        options["region"] = pafs.resolve_s3_region(parts.netloc)
    return pafs.S3FileSystem(
        **options,
        connect_timeout=_S3_CONNECT_TIMEOUT_S,
        request_timeout=_S3_SILENCE_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def _through_fsspec(base: str) -> tuple[pafs.FileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(base)
    except (ImportError, ValueError) as error:
        raise InputError(f"{base}: no library for it ({one_line(error)})") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path.rstrip("/")


def _read_through_fsspec(filesystem: Any, path: str, offset: int, num_bytes: int) -> bytes:
    """One request for exactly these bytes; an open file of fsspec would read ahead."""
    try:
        return bytes(filesystem.cat_file(path, start=offset, end=offset + num_bytes))
    except OSError:
        raise
    except Exception as error:  # each of fsspec's libraries has exceptions of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
