"""A folder of results, here or at any address that fsspec knows (s3://, gs://): files appear whole or not at all.

On a local disk a file is written under a temporary name, flushed to the disk and renamed. An object store makes an
object visible when its last byte is there, so there one write is enough.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

PARTS = ".parts"  # files that are being written; what a killed process left there is swept
OLD_SECONDS = 3600.0


def plain(text: str, length: int = 60) -> str:
    """A text as a part of a file name: letters, digits, dots, - and _."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:length].strip("._") or "_"


class Store:
    """The folder at `url`, made if missing. Names inside it are relative, with forward slashes."""

    def __init__(self, url: str):
        self.url = url
        self.fs, root = fsspec.url_to_fs(url)
        self.root = root.rstrip("/")
        self.local = Path(self.root) if isinstance(self.fs, LocalFileSystem) else None
        self.fs.makedirs(self.root, exist_ok=True)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, content: bytes, lasting: bool = True) -> None:
        """Put a file there, in place of one of that name. `lasting`: it is on the disk before it has its name."""
        if self.local is None:
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.path(name), content)
            return
        with self.file(name, lasting) as part, open(part, "wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def file(self, name: str, lasting: bool = True) -> Iterator[Path]:
        """A path to write at; it becomes `name` at the end of the block, and is dropped if the block fails."""
        folder = self.local / PARTS if self.local else Path(tempfile.gettempdir())
        folder.mkdir(exist_ok=True)
        part = folder / f"{uuid.uuid4().hex}.part"
        try:
            yield part
            if self.local is None:
                self.fs.put_file(str(part), self.path(name))
                return
            if lasting:
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        return self.fs.cat_file(self.path(name))

    def there(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder; none if there is no such folder."""
        self.fs.invalidate_cache()
        try:
            return {path.rpartition("/")[2] for path in self.fs.ls(self.path(folder), detail=False)}
        except FileNotFoundError:
            return set()

    def sweep(self) -> None:
        """Remove what killed processes left half written."""
        if self.local is None:
            return
        for part in (self.local / PARTS).glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > OLD_SECONDS:
                    part.unlink()
