"""Location: a local file or folder, or one in an object store.

Local paths and every URI that pyarrow knows (``s3://``, ``gs://``, ``abfs://``, ``hdfs://``) go through pyarrow, so an
executor needs only pyarrow for them; any other scheme goes through fsspec. Credentials and endpoints come from where
these libraries look for them (for S3: AWS_* variables, ~/.aws, the machine's role).

A ``file:`` URI is a path on this machine, percent-encoded, as ``Path.as_uri()`` writes it. The path of any other URI is
the name of an object, letter for letter, as AWS and Hadoop take it. What would have to be dropped is refused.
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
from urllib.parse import parse_qsl, unquote_to_bytes

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import atomic_write, make_folder
from pipeline.shared.redact import has_credentials, redacted

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|:/)|file:", re.IGNORECASE)
_URI = re.compile(r"(?P<scheme>[^:]+):(//(?P<host>[^/?#]*))?(?P<path>[^?#]*)(?P<query>\?[^#]*)?(#.*)?", re.DOTALL)
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_S3_OF_HADOOP = ("s3a", "s3n")
_WITH_HOST = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_COPY_BYTES = 8 << 20
_S3_ATTEMPTS = 4
_S3_CONNECT_TIMEOUT_S = 10
_S3_SILENCE_S = 5
"""The longest silence of a server. With all attempts and pauses, the error comes within half a minute."""


@dataclass(frozen=True)
class Location:
    """A file or folder; ``location / "name"`` is one inside it. Methods raise OSError.

    Printed as the user wrote it; a ``file:`` URI is printed as its path.
    """

    shown: str
    path: str
    """Its path in ``filesystem``."""

    @classmethod
    def of(cls, where: "str | Path | Location") -> "Location":
        """The location of a path or URI.

        Raises InputError if no installed library knows the URI's scheme, and as ``local_path`` does.
        """
        if isinstance(where, Location):
            return where
        path = local_path(str(where))
        try:
            if path is not None:  # pyarrow takes UTF-8 whatever the locale
                return cls(str(path), os.fsencode(path.absolute()).decode())
            str(where).encode()
        except UnicodeError:
            raise InputError(f"{where}: found a name that is not UTF-8, expected UTF-8; rename it") from None
        base, name = _split(str(where))
        shown, mark, query = str(where).partition("?")
        return cls(f"{shown.rstrip('/')}{mark}{query}", _filesystem(base)[1] + name)

    @property
    def local(self) -> Path | None:
        """The path on this machine; None for a remote location."""
        return Path(os.fsdecode(self.path.encode())) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    @property
    def filesystem(self) -> pafs.FileSystem:
        return _filesystem(_split(self.shown)[0])[0] if is_uri(self.shown) else _LOCAL

    def reader(self) -> Callable[[int, int], bytes]:
        """``read(offset, num_bytes)`` of the file: one request without retries; safe for several threads at once.

        Returns fewer bytes at the end of the file. Opening asks an object store once whether the file exists.
        """
        filesystem = _filesystem(_split(self.shown)[0], s3_attempts=1)[0] if is_uri(self.shown) else _LOCAL
        if isinstance(filesystem, pafs.PyFileSystem):
            return partial(_read_through_fsspec, filesystem.handler.fs, self.path)
        file = filesystem.open_input_file(self.path)
        return lambda offset, num_bytes: file.read_at(num_bytes, offset)

    def absolute(self) -> "Location":
        """The same location, independent of the working directory."""
        return self if is_uri(self.shown) else Location(str(self.local), self.path)

    def __truediv__(self, name: str) -> "Location":
        base, mark, query = self.shown.partition("?") if is_uri(self.shown) else (self.shown, "", "")
        return Location(f"{base}/{name}{mark}{query}", f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.shown

    def open(self) -> pa.NativeFile:
        """The file, open for random access.

        Read Parquet from such a file, never from a file or bytes of Python's: one of pyarrow's threads may still hold
        them when Python ends, and then ends the process by SIGABRT.
        """
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
    """Returns True for a URI and False for a path. ``C:/`` is a path."""
    return _SCHEME.match(where) is not None


def local_path(where: str) -> Path | None:
    """The path on this machine that a path or a ``file:`` URI names; None for any other URI.

    Raises InputError for a URI with credentials, for one of which a part would have to be dropped, and for one that
    names no file or object.
    """
    if not is_uri(where):
        return Path(re.sub("^//+", "/", where))  # Hadoop would take the first name after // for a host
    refuse_credentials(where)
    scheme, host, path, _ = _parts(where)
    if scheme in ("http", "https"):
        raise InputError(f"{where}: found a web address, expected a path, or a URI such as s3://...; download it first")
    if scheme == "file":
        return _path_of_file_uri(where, host, path)
    if path.startswith(":"):
        raise InputError(f"{where}: found a chain of URIs, expected one URI; name the place itself")
    if "#" in where:
        raise InputError(f"{where}: found #, expected none in a URI; rename what has it in its name")
    # A file system may read a//b as a/b, and an object store has both.
    if odd := {"", ".", ".."} & {*path.removesuffix("/").split("/")[1:]}:
        raise InputError(f"{where}: found /{min(odd)}/, expected a name between any two slashes")
    return None


def _path_of_file_uri(uri: str, host: str, path: str) -> Path:
    if host.lower() not in ("", "localhost"):
        raise InputError(f"{uri}: found the host {host}, expected none; write file:///PATH for a path on this machine")
    if not path.startswith("/"):
        raise InputError(f"{uri}: found no absolute path, expected file:///PATH; or give the path without file:")
    for mark, escape in (("?", "%3F"), ("#", "%23")):
        if mark in uri:
            raise InputError(f"{uri}: found {mark}, expected only a path; in a name, write {escape} for {mark}")
    if "%" in _ESCAPES.sub("", path):
        raise InputError(f"{uri}: found % without two digits of base 16, expected them; in a name, write %25 for %")
    if "%00" in path:
        raise InputError(f"{uri}: found %00, expected a path; no name has a zero byte")
    decoded = _ESCAPES.sub(lambda escapes: os.fsdecode(unquote_to_bytes(escapes[0])), path)
    return Path(f"/{decoded.lstrip('/')}")


def refuse_credentials(where: str) -> None:
    """Raises InputError for a URI that contains credentials: they would be printed and stored with it."""
    if is_uri(where) and has_credentials(where):
        raise InputError(
            f"{redacted(where)}: found credentials in the URI, expected them in environment variables (such as "
            f"AWS_ACCESS_KEY_ID), in ~/.aws, or as the machine's role; take them out"
        )


def _split(uri: str) -> tuple[str, str]:
    """What determines the file system (scheme, host or bucket, and query), and the path in it. Raises InputError."""
    scheme, host, path, query = _parts(uri)
    scheme, path = "s3" if scheme in _S3_OF_HADOOP else scheme, path.rstrip("/")
    if not host and (not path or scheme in _WITH_HOST):
        hint = "; `hdfs getconf -confKey fs.defaultFS` prints it" if scheme == "hdfs" else ""
        raise InputError(f"{uri}: found no host or bucket, expected {scheme}://NAME/...{hint}")
    if query and len(dict(parse_qsl(query[1:]))) <= query.count("&"):
        raise InputError(f"{uri}: found {query}, expected options with values, each once, as in ?region=eu-west-1")
    return f"{scheme}://{host or '/'}{query}", path


def _parts(uri: str) -> tuple[str, str, str, str]:
    """The scheme in lower case, the host or bucket, the path, and the query with its question mark."""
    parts = _URI.fullmatch(uri)
    assert parts is not None, uri
    return parts["scheme"].lower(), parts["host"] or "", parts["path"], parts["query"] or ""


@lru_cache(maxsize=16)
def _filesystem(base: str, s3_attempts: int = _S3_ATTEMPTS) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI without its path, and the prefix of its paths."""
    try:
        if base.startswith("s3:"):
            return _s3(base, s3_attempts), _bucket(base)
        filesystem, path = pafs.FileSystem.from_uri(base)
        return filesystem, str(path).rstrip("/")
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        if "Unrecognized filesystem type" not in str(error):
            raise InputError(f"{base}: cannot be used ({one_line(error)})") from None
    return _through_fsspec(base)


def _bucket(base: str) -> str:
    return base.removeprefix("s3://").partition("?")[0]


def _s3(base: str, attempts: int) -> pafs.FileSystem:
    """S3 with short timeouts. pyarrow's default timeouts add up to minutes if no server answers.

    The query may hold pyarrow's options, as in ``s3://b/p?endpoint_override=host:port``.
    """
    values: dict[str, Any] = {"true": True, "false": False}
    options = {name: values.get(value, value) for name, value in parse_qsl(base.partition("?")[2])}
    endpoint = options.pop("endpoint_override", None) or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint_override"] = endpoint
        options.setdefault("region", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    elif "region" not in options:
        options["region"] = pafs.resolve_s3_region(_bucket(base))
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
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{base}: cannot be used ({one_line(error)})") from None
    if "?" in path:
        raise InputError(f"{base}: found options after ?, expected none: {type(filesystem).__name__} knows no such")
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path.rstrip("/")


def _read_through_fsspec(filesystem: Any, path: str, offset: int, num_bytes: int) -> bytes:
    """One request for exactly these bytes; an open file of fsspec would read ahead."""
    try:
        return bytes(filesystem.cat_file(path, start=offset, end=offset + num_bytes))
    except OSError:
        raise
    except Exception as error:  # each of fsspec's libraries has exceptions of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
