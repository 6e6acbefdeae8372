"""The files that a row names: found inside one folder, refused outside of it, known by their content."""

from __future__ import annotations

import hashlib
import os
import posixpath
from functools import lru_cache
from pathlib import PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .store import plain
from .table import PICTURES

#: a file to upload: where it lies, its name on the server, and the folder there ("" for none)
File = tuple[str, str, str]


class Pictures:
    """The folder that paths of a table are relative to."""

    def __init__(self, url: str):
        self.fs, root = fsspec.url_to_fs(url)
        self.root, self.local = root.rstrip("/"), isinstance(self.fs, LocalFileSystem)
        self._hash = lru_cache(2**16)(self._hash_of)

    def place(self, path: str) -> str:
        """The address of a path inside the folder. ValueError outside of it."""
        bare = path.removeprefix(self.fs.unstrip_protocol(self.root) + "/")
        whole = posixpath.normpath(posixpath.join(self.root, bare))
        if "://" in bare or "\0" in bare or not whole.startswith(self.root + "/"):
            raise ValueError(f"{path!r} lies outside of {self.root}: name pictures by their paths inside that folder.")
        if self.local:
            real, root = PurePosixPath(_real(whole)), PurePosixPath(_real(self.root))
            if root not in real.parents:
                raise ValueError(f"{path!r} is a link that leaves {self.root}: copy the picture into that folder.")
        return whole

    def picture(self, path: str) -> tuple[str, File]:
        """(name on the server, the file to upload) of a picture. ValueError if it is missing or empty."""
        whole = self.place(path)
        if not self.fs.isfile(whole):
            raise ValueError(f"There is no picture {path!r} in {self.root}.")
        mark = self._hash(whole)
        stem, _, end = whole.rpartition("/")[2].rpartition(".")
        name = f"{plain(stem or end)}-{mark[:12]}" + (f".{end.lower()}" if stem else "")
        return name, (self.fs.unstrip_protocol(whole), name, "")

    def folder(self, path: str) -> tuple[str, list[File]]:
        """(name on the server, the files to upload) of a folder of pictures with their captions, and of its folders."""
        whole = self.place(path)
        if not self.fs.isdir(whole):
            raise ValueError(f"There is no folder {path!r} in {self.root}.")
        found = [p for p in sorted(self.fs.find(whole)) if p.lower().endswith((*PICTURES, ".txt"))]
        if not any(p.lower().endswith(PICTURES) for p in found):
            raise ValueError(f"The folder {path!r} holds no picture.")
        for p in found:
            self.place(p[len(self.root) :].lstrip("/"))  # no link in it leads out
        inner = [p[len(whole) :].strip("/") for p in found]
        marks = "".join(f"{name}\n{self._hash(p)}\n" for name, p in zip(inner, found))
        name = f"{plain(whole.rpartition('/')[2])}-{hashlib.sha256(marks.encode()).hexdigest()[:12]}"
        files = []
        for place, part in zip(found, inner):
            head, _, last = part.rpartition("/")
            files.append((self.fs.unstrip_protocol(place), last, f"{name}/{head}".rstrip("/")))
        return name, files

    def _hash_of(self, whole: str) -> str:
        """Of a local file's content; of a remote one what its store tells, so that nothing is fetched to plan."""
        info = self.fs.info(whole)
        if not info.get("size"):
            raise ValueError(f"{whole.rpartition('/')[2]!r} is empty (0 bytes): copy the picture again.")
        if self.local:
            with open(whole, "rb") as file:
                return _digest(file)
        told = [info.get(key) for key in ("ETag", "etag", "md5Hash", "checksum", "LastModified", "mtime", "created")]
        return hashlib.sha256(repr((info["size"], *told)).encode()).hexdigest()


def _digest(file) -> str:
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


@lru_cache(2**12)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _real(path: str) -> str:
    head, tail = os.path.split(path)
    return os.path.realpath(os.path.join(_real_folder(head), tail))
