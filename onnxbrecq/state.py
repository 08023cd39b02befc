"""A reconstruction's state on disk: what each finished block decided.

    DIR/lock                   held while a run is at work here; says which process
    DIR/key.json               what the state belongs to: model, data, recipe, versions
    DIR/block-0003-1f...plan   the decisions of block 3 (`onnxbrecq.plan`), at certain bits
    DIR/block-0003-1f...json   what happened in it; written last, it vouches for the plan
    DIR/table-0003.json        what the block loses at other bits (mixed precision), with its hash
    DIR/draft/                 the model, until it is validated: only then it gets its place

A block that another run decided, or that was damaged since, is not taken: it is learned anew.
Every file appears whole or not at all: whenever a run is killed, it loses at most the block at
work, and since a block's random choices follow from the seed and its number alone, the resumed run
ends with the same bytes.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxbrecq.data.dataset import Samples
from onnxbrecq.errors import OutputError, PlanError
from onnxbrecq.output import write_atomically
from onnxbrecq.plan import QuantPlan

_KEY, _LOCK, _DRAFT = "key.json", "lock", "draft"

Facts = dict[str, Any]


@dataclass(frozen=True)
class State:
    """The finished blocks of one reconstruction, in `folder`; `run` is the hash of its key."""

    folder: Path
    run: str

    @contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """Within the context: where a file of that name is, until it is fit for its place.

        Raises:
            OutputError: there is no room for a folder.
        """
        folder = self.folder / _DRAFT
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
        try:
            yield folder / name
        finally:
            self._discard_draft()

    def recall(self, block: str) -> tuple[QuantPlan, Facts] | None:
        """What the block decided and its facts; None if it is not finished, or was damaged."""
        try:
            told = json.loads(self._path(block, "json").read_bytes())
            plan = self._path(block, "plan").read_bytes()
            if told["vouches"] != self._vouched(plan, told["facts"]):
                return None
            return QuantPlan.load(self._path(block, "plan")), told["facts"]
        except (OSError, ValueError, KeyError, TypeError, PlanError):
            return None

    def keep(self, block: str, decisions: QuantPlan, facts: Facts) -> None:
        """Writes what the block decided.

        Raises:
            OutputError: it cannot be written.
        """
        plan = decisions.as_bytes()
        told = {"vouches": self._vouched(plan, facts), "facts": facts}
        write_atomically(self._path(block, "plan"), plan)
        write_atomically(self._path(block, "json"), json.dumps(told).encode())

    def recall_table(self, block: str) -> Facts | None:
        """What the block was found to lose; None if that is not known, or was damaged."""
        try:
            told = json.loads((self.folder / f"table-{block}.json").read_bytes())
            found: Facts = told["found"]
            return found if told["vouches"] == self._vouched(b"", found) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_table(self, block: str, found: Facts) -> None:
        """Writes what the block was found to lose.

        Raises:
            OutputError: it cannot be written.
        """
        told = {"vouches": self._vouched(b"", found), "found": found}
        write_atomically(self.folder / f"table-{block}.json", json.dumps(told).encode())

    def discard(self) -> None:
        """Removes the state, and its folder if nothing else is in it."""
        for path in self._files():
            path.unlink(missing_ok=True)
        self._discard_draft()
        (self.folder / _LOCK).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _discard_draft(self) -> None:
        shutil.rmtree(self.folder / _DRAFT, ignore_errors=True)

    def _vouched(self, plan: bytes, facts: Facts) -> str:
        """The hash that ties a block's files to each other and to the run."""
        found = hashlib.sha256(self.run.encode())
        found.update(json.dumps(facts, sort_keys=True).encode())
        found.update(plan)
        return found.hexdigest()

    def _path(self, block: str, kind: str) -> Path:
        return self.folder / f"block-{block}.{kind}"

    def _files(self) -> list[Path]:
        kinds = ("block-*.plan", "block-*.json", "table-*.json")
        found = [path for kind in kinds for path in self.folder.glob(kind)]
        return [*found, *self.folder.glob(".onnxbrecq-*.tmp"), self.folder / _KEY]


@contextmanager
def opened(folder: Path, key: Mapping[str, object], *, resume: bool) -> Iterator[State]:
    """The state in `folder`, locked; empty unless it belongs to `key` and `resume` is wished.

    Raises:
        OutputError: the folder cannot be used: it holds other things, or a run is at work in it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give another --work-dir")
    if folder.is_dir() and not (folder / _LOCK).exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds other files; give another --work-dir")
    text = json.dumps(dict(key), sort_keys=True)
    state = State(folder, hashlib.sha256(text.encode()).hexdigest())
    with _locked(folder):
        if not resume or _read(folder / _KEY) != text:
            for path in state._files():
                path.unlink(missing_ok=True)
            state._discard_draft()
            write_atomically(folder / _KEY, text.encode())
        yield state


def digest(arrays: Mapping[str, Samples]) -> str:
    """SHA-256 of named arrays: names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        for i in range(len(array)):
            found.update(np.array(array[i : i + 1], order="C").data)
    return found.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within the context no other process holds `folder`."""
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / _LOCK).open("a+", encoding="ascii")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{folder}: process {_read(folder / _LOCK) or 'unknown'} is at work here; wait "
                "for it, or give another --work-dir"
            ) from error
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
        yield


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
