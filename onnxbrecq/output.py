"""Where results are written: claimed before the work starts, and written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from onnxbrecq.errors import OutputError


def claim(path: Path, *, force: bool, sources: Sequence[Path] = ()) -> None:
    """Refuses a `path` that could not, or must not, be written when the work is done.

    Args:
        path: the file to be written.
        force: an existing file may be replaced.
        sources: files that are read, which are never replaced.

    Raises:
        OutputError: says what is in the way.
    """
    with _telling(path):
        if path.is_dir():
            raise OutputError(f"{path} is a directory; give the path of a file")
        if path.exists() and any(s.exists() and path.samefile(s) for s in sources):
            raise OutputError(f"{path} is the input itself; give another path")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file; give another path")
        if path.exists() and not force:
            raise OutputError(f"{path} exists already; pass --force to replace it")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: {path.parent} is no directory; make it, or give another")
        temporary = _temporary(path)
        temporary.touch(exist_ok=False)
        temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` under another name in the same folder, and renames it to `path` when whole.

    Raises:
        OutputError: it cannot be written, say on a full disk; then nothing is left behind.
    """
    write_together({path: [data]})


def write_together(files: Mapping[Path, Iterable[bytes]]) -> None:
    """Writes all files under other names, and renames them when all are whole, in their order.

    Raises:
        OutputError: one cannot be written; then nothing is left behind.
    """
    temporary = {path: _temporary(path) for path in files}
    try:
        for path, parts in files.items():
            with _telling(path), temporary[path].open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            with _telling(path):
                temporary[path].replace(path)
    finally:
        for part_path in temporary.values():
            part_path.unlink(missing_ok=True)


def claim_folder(folder: Path, mark: str, *, force: bool) -> None:
    """Refuses a `folder` that could not, or must not, be written when the work is done.

    Args:
        folder: to be made.
        mark: a file that tells a folder of this kind; nothing else is ever replaced.
        force: a folder of this kind may be replaced.

    Raises:
        OutputError: says what is in the way.
    """
    with _telling(folder):
        if folder.exists() and not (folder / mark).is_file():
            raise OutputError(f"{folder} exists already, and has no {mark}; give another path")
        if folder.exists() and not force:
            raise OutputError(f"{folder} exists already; pass --force to replace it")
        if not folder.absolute().parent.is_dir():
            raise OutputError(
                f"{folder}: {folder.parent} is no directory; make it, or give another"
            )
        temporary = _temporary(folder.absolute())
        temporary.mkdir()
        temporary.rmdir()


def write_folder(folder: Path, files: Mapping[str, Iterable[bytes]], *, force: bool) -> None:
    """Writes a folder under another name, and renames it when it is whole.

    Args:
        folder: to be made.
        files: path within it, with slashes → content.
        force: what is there is replaced.

    Raises:
        OutputError: it cannot be written; then nothing is left behind.
    """
    folder = folder.absolute()
    temporary, old = _temporary(folder), _temporary(folder)
    try:
        with _telling(folder):
            temporary.mkdir()
            for name, parts in files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
            if force and folder.exists():
                folder.replace(old)
            temporary.replace(folder)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A new name in the folder of `path`; short, as that of `path` may be as long as names get."""
    return path.with_name(f".onnxbrecq-{secrets.token_hex(6)}.tmp")


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
