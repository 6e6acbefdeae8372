"""The index of a batch: one line for each row of the table that has an end, as Parquet and as CSV, made of the rows'
records; and the rows that failed once more by themselves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from .plan import Plan
from .store import Store
from .worker import DONE, FAILED

PARQUET, CSV, ERRORS = "index.parquet", "index.csv", "errors.csv"
TEXTS = ("key", "inputs", "outputs", "report", "figures", "worker", "server", "error")
SCHEMA = pa.schema(
    [("row", pa.int64()), ("tries", pa.int64()), ("seconds", pa.float64())] + [(name, pa.string()) for name in TEXTS]
)
COLUMNS = ["row", "key", "inputs", "outputs", "figures", "report", "seconds", "tries", "worker", "server", "error"]
READERS, CHUNK = 16, 512


def finished(store: Store) -> tuple[set[str], set[str]]:
    """Ids of the rows that are done, and of those that failed."""
    done, failed = ({name.removesuffix(".json") for name in store.names(folder)} for folder in (DONE, FAILED))
    return done, failed - done


def records(store: Store, plan: Plan) -> Iterator[dict]:
    """A record for each row of the table that has an end, in the order of the table."""
    done, failed = finished(store)
    problems = {p.row: p for p in plan.problems}

    def rows() -> Iterator[tuple[int, str | None, str]]:
        waiting = sorted(problems)
        for text in plan.rows:
            row = json.loads(text)
            while waiting and waiting[0] < row["row"]:
                yield waiting.pop(0), None, ""
            if row["id"] in done or row["id"] in failed:
                yield row["row"], f"{DONE if row['id'] in done else FAILED}/{row['id']}.json", row["key"]
        for number in waiting:
            yield number, None, ""

    def read(item: tuple[int, str | None, str]) -> dict:
        number, name, key = item
        if name is None:
            return {"row": number, "key": problems[number].key, "error": problems[number].error}
        record = json.loads(store.read(name))
        return {**record, "row": number, "key": key, "inputs": record["id"]}

    source = rows()
    with ThreadPoolExecutor(READERS) as pool:
        while part := list(islice(source, CHUNK)):
            yield from pool.map(read, part)


def _line(record: dict) -> dict:
    """A record as a line of the index: tables and lists as JSON, nothing for what is empty."""
    line = {}
    for name in COLUMNS:
        value = record.get(name)
        value = json.dumps(value) if isinstance(value, dict | list) and value else value or None
        line[name] = value.encode(errors="replace").decode() if isinstance(value, str) else value
    line["row"] = record["row"]
    return line


def write(store: Store, plan: Plan) -> tuple[int, int]:
    """Make the three files anew; (lines, lines with an error)."""
    lines = failed = 0
    with (
        store.file(PARQUET) as parquet,
        store.file(CSV) as table,
        store.file(ERRORS) as errors,
        open(table, "w", newline="", encoding="utf-8") as every,
        open(errors, "w", newline="", encoding="utf-8") as bad,
    ):
        all_lines, bad_lines = csv.DictWriter(every, COLUMNS), csv.DictWriter(bad, ["row", "key", "error", "tries"])
        all_lines.writeheader()
        bad_lines.writeheader()
        with pq.ParquetWriter(parquet, SCHEMA) as out:
            source = map(_line, records(store, plan))
            while part := list(islice(source, CHUNK)):
                out.write_table(pa.Table.from_pylist(part, SCHEMA))
                all_lines.writerows(part)
                wrong = [{name: line[name] for name in bad_lines.fieldnames} for line in part if line["error"]]
                bad_lines.writerows(wrong)
                lines, failed = lines + len(part), failed + len(wrong)
    return lines, failed


def read(store: Store) -> list[dict]:
    """The lines of the index."""
    return pq.read_table(io.BytesIO(store.read(PARQUET))).to_pylist()
