"""Tables of rows: CSV, JSON lines, Parquet, or a folder of pictures, here or at an address that fsspec knows.

Every row comes as it stands, with the problem that makes it unreadable beside it. No text is taken whole into memory
that is longer than a row may be.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec

LONGEST = 2**20  # bytes of a row: pictures are named, not written into the table
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class TableError(ValueError):
    """A table that can't be read at all."""


@dataclass
class Line:
    """A row of the table: its number, counted from 1, its values by column, and what is wrong with it."""

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


TOO_LONG = f"The row is longer than {LONGEST // 2**20} MB: shorten its texts, and name pictures by their paths."

UNCLOSED = 'A quotation mark opens in this row and never closes, so that the table ends with it: write " or "" for one.'


def read(url: str, column: str | None = None) -> Iterator[Line]:
    """The rows of a table. A folder gives a row for each picture in it, under the key of its name; `column` is where
    the picture goes. TableError where nothing of it can be read."""
    fs, path = fsspec.url_to_fs(url)
    if fs.isdir(path):
        yield from _folder(fs, path, column)
        return
    if not fs.exists(path):
        raise TableError(f"There is no table {url}.")
    kinds = {".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    end = "." + path.rpartition(".")[2].lower()
    if end not in kinds:
        raise TableError(f"{url} is no table: it must end in {', '.join(kinds)}, or be a folder of pictures.")
    with io.BufferedReader(fs.open(path, "rb")) as file:  # an object store's own file reads no bounded lines
        yield from kinds[end](file)


def _folder(fs, path: str, column: str | None) -> Iterator[Line]:
    names = sorted(p.rpartition("/")[2] for p in fs.ls(path, detail=False))
    names = [name for name in names if name.lower().endswith(PICTURES)]
    if not names:
        raise TableError(f"There is no picture in {path}: it may hold {', '.join(PICTURES)}.")
    if column is None:
        raise TableError("A folder of pictures needs a workflow with exactly one Load Image: write a table instead.")
    for number, name in enumerate(names, 1):
        yield Line(number, {"key": name, column: name})


class _Bounded:
    """The lines of a text file. Of what is too long only its quotation marks are kept, so that the table goes on
    behind it; `cut` tells that it happened."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.cut = file, 0, False

    def next_row(self) -> None:
        self.size, self.cut = 0, False

    def __iter__(self) -> _Bounded:
        return self

    def __next__(self) -> str:
        kept, quotes, piece = b"", 0, b""
        while not piece.endswith(b"\n"):
            piece = self.file.readline(2**16)
            if not piece:
                break
            self.size += len(piece)
            if self.size <= LONGEST:
                kept += piece
            else:
                self.cut = True
                quotes += piece.count(b'"')
        if not kept and not self.cut:
            raise StopIteration
        if self.cut:
            kept = kept.rstrip(b"\r\n") + b'"' * (quotes % 2) + b"\n"
        return kept.decode("utf-8", errors="replace")


def _csv(file: BinaryIO) -> Iterator[Line]:
    lines = _Bounded(file)
    csv.field_size_limit(4 * LONGEST)
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise TableError("The table is empty: its first line must name the columns.") from None
    except csv.Error as error:
        raise TableError(f"The table's first line, which names the columns, can't be read: {error}.") from None
    header[0] = header[0].lstrip("\ufeff")
    if len(header) == 1 and ";" in header[0]:
        raise TableError("The table's columns are separated by semicolons: save it with commas between them.")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise TableError(f"The table has more than one column {', '.join(twice)}.")
    number = 0
    while True:
        lines.next_row()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            open_end = str(error).startswith("unexpected end")
            told = UNCLOSED if open_end else TOO_LONG if lines.cut else f"The row can't be read: {error}."
            yield Line(number, problem=told)
            continue
        if not values and not lines.cut:
            continue  # an empty line
        number += 1
        if lines.cut:
            yield Line(number, problem=TOO_LONG)
        elif len(values) != len(header):
            yield Line(number, problem=f"The row has {len(values)} values for {len(header)} columns.")
        elif any("\ufffd" in value or "\0" in value for value in values):
            yield Line(number, problem="The row is not UTF-8 text: save the table as UTF-8.")
        else:
            yield Line(number, dict(zip(header, values)))


def _json_lines(file: BinaryIO) -> Iterator[Line]:
    lines, number = _Bounded(file), 0
    while True:
        lines.next_row()
        try:
            text = next(lines)
        except StopIteration:
            return
        if not text.strip() and not lines.cut:
            continue
        number += 1
        if lines.cut:
            yield Line(number, problem=TOO_LONG)
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Line(number, problem=f"The row is not JSON: {error}.")
            continue
        if isinstance(values, dict):
            yield Line(number, values)
        else:
            yield Line(number, problem='The row is no JSON object: write {"column": value, ...}.')


def _parquet(file: BinaryIO) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(batch_size=64):
            for i in range(batch.num_rows):
                number += 1
                row = batch.slice(i, 1)
                if row.get_total_buffer_size() > LONGEST and row.nbytes > LONGEST:
                    yield Line(number, problem=TOO_LONG)
                    continue
                (values,) = row.to_pylist()
                yield Line(number, {key: value for key, value in values.items() if value is not None})
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"The Parquet file can't be read: {error}") from None
