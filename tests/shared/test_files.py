"""Laws of pipeline.shared.files: a write is whole, durable and follows no link; a lock excludes and follows none."""

import os
import stat
from pathlib import Path

import pytest

from pipeline.shared.files import AlreadyLocked, atomic_write, locked, write
from pipeline.shared.storage import Location


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Another's file, to which links point."""
    path = tmp_path / "target"
    path.write_bytes(b"theirs")
    return path


def test_a_link_is_replaced_and_not_followed(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to(target)
    write(path, b"ours")
    assert (path.read_bytes(), target.read_bytes(), path.is_symlink()) == (b"ours", b"theirs", False)


def test_a_temporary_name_that_is_taken_is_not_written(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if somebody guesses the random name and puts a link there."""
    monkeypatch.setattr("pipeline.shared.files.secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".file.guessed").symlink_to(target)
    with pytest.raises(FileExistsError):
        write(tmp_path / "file", b"ours")
    assert target.read_bytes() == b"theirs"


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Nor do those in two containers, each of which is process 1."""
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        first.write(b"first")
        second.write(b"the second")
    assert (tmp_path / "file").read_bytes() in (b"first", b"the second")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_content_and_name_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if is_folder else "content")
        fsync(descriptor)

    def record_replace(path: Path, to: Path) -> Path:
        done.append("rename")
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write(tmp_path / "file", b"content")
    assert done == ["content", "rename", "folder"]


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path: Path, target: Path) -> None:
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"), locked(tmp_path / ".lock"):
        pass
    assert target.read_bytes() == b"theirs"
    assert (tmp_path / ".lock").is_symlink()


def test_a_lock_excludes_and_leaves_no_file(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"), pytest.raises(AlreadyLocked), locked(tmp_path / ".lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_upload_is_staged_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can own its folder, or swap the file before it is uploaded."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    where = Location.of("memory://staging/file")
    with where.atomic_write() as file:
        file.write(bytes(20 << 20))
        file.flush()
        assert list(tmp_path.iterdir()) == []
    assert len(where.read_bytes()) == 20 << 20
    where.remove()
