"""Tables: every row comes, and what is wrong with it beside it."""

import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nulltext.batch import table


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


ROWS = [{"key": "a", "Edit.seed": "1", "text": 'two\nlines, "quoted"'}, {"key": "b", "Edit.seed": "2", "text": ""}]


def test_csv_json_lines_and_parquet_give_the_same_rows(write, tmp_path):
    said = 'key,Edit.seed,text\na,1,"two\nlines, ""quoted"""\n\nb,2,\n'
    found = [list(table.read(write("t.csv", "\ufeff" + said)))]
    found.append(list(table.read(write("t.jsonl", "\n".join(map(json.dumps, ROWS))))))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    found.append(list(table.read(str(tmp_path / "t.parquet"))))
    for lines in found:
        assert [line.values for line in lines] == ROWS
        assert [line.number for line in lines] == [1, 2] and not any(line.problem for line in lines)


class Bucket(fsspec.AbstractFileSystem):
    """One table on what reads as an object store does: by ranges of bytes, through fsspec's own buffer."""

    protocol, content = "bucket", b""

    def info(self, path, **_):
        return {"name": path, "size": len(self.content), "type": "file"}

    def _open(self, path, mode="rb", **_):
        return Ranges(self, path, mode, size=len(self.content))


class Ranges(fsspec.spec.AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.content[start:end]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_in_an_object_store(kind, write, tmp_path):
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
        Bucket.content = (tmp_path / "t.parquet").read_bytes()
    else:
        csv = 'key,Edit.seed,text\r\na,1,"two\nlines, ""quoted"""\nb,2,\n'
        Bucket.content = (csv if kind == "csv" else "\n".join(map(json.dumps, ROWS))).encode()
    assert [line.values for line in table.read(f"bucket://place/t.{kind}")] == ROWS


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
def test_a_huge_text_is_refused_without_being_taken_into_memory_and_the_rest_goes_on(write, quoted, breaks):
    import tracemalloc

    huge = ("x" * 99 + ("\n" if breaks and quoted else "y")) * 400_000  # 40 MB
    text = f'"{huge}"' if quoted else huge
    path = write("t.csv", f'key,text\na,one\nb,{text}\nc,"th""ree"\n')
    tracemalloc.start()
    lines = list(table.read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [line.problem for line in lines] == [None, table.TOO_LONG, None]
    assert lines[2].values == {"key": "c", "text": 'th"ree'}
    assert peak < 12 * 2**20


def test_a_huge_text_in_json_lines_and_in_parquet(write, tmp_path):
    rows = [{"text": "one"}, {"text": "x" * 3_000_000}, {"text": "three"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for path in (write("t.jsonl", "\n".join(map(json.dumps, rows))), str(tmp_path / "t.parquet")):
        lines = list(table.read(path))
        assert [line.problem for line in lines] == [None, table.TOO_LONG, None]
        assert lines[2].values == rows[2]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("t.csv", "key,text\na\nb,2\n", "1 values for 2 columns"),
        ("t.csv", b"key,text\na,\xff\xfe\nb,2\n", "UTF-8"),
        ("t.csv", b"key,text\na,\x00\nb,2\n", "UTF-8"),
        ("t.csv", 'key,text\na,"o"ne\nb,2\n', "can't be read"),
        ("t.jsonl", '{"key": \n{"key": "b", "text": "2"}', "not JSON"),
        ("t.jsonl", '[1]\n{"key": "b", "text": "2"}', "no JSON object"),
        ("t.jsonl", "[" * 100_000 + '\n{"key": "b", "text": "2"}', "not JSON"),
    ],
)
def test_an_unreadable_row_is_told_and_the_rest_goes_on(write, name, content, words):
    lines = list(table.read(write(name, content)))
    assert len(lines) == 2 and words in lines[0].problem
    assert lines[1].problem is None and lines[1].values == {"key": "b", "text": "2"}


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("t.csv", "", "empty"),
        ("t.csv", "a,b,a\n1,2,3", "more than one column a"),
        ("t.parquet", "no", "Parquet"),
        ("t.txt", "a", "must end in"),
    ],
)
def test_a_table_that_is_none_is_refused(write, name, content, words):
    with pytest.raises(table.TableError, match=words):
        list(table.read(write(name, content)))


def test_a_quotation_mark_that_never_closes_is_told(write):
    lines = list(table.read(write("t.csv", 'key,text\na,one\nb,"two\nc,three\nd,four\n')))
    assert [line.problem for line in lines] == [None, table.UNCLOSED]
    with pytest.raises(table.TableError, match="first line"):
        list(table.read(write("t.csv", 'key,"text\na,one\n')))


def test_a_folder_gives_a_row_for_each_picture(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    lines = list(table.read(str(tmp_path), "Source picture.image"))
    assert [line.values for line in lines] == [{"key": n, "Source picture.image": n} for n in ("a.JPG", "b.png")]
    with pytest.raises(table.TableError, match="exactly one Load Image"):
        list(table.read(str(tmp_path)))
    with pytest.raises(table.TableError, match="no table"):
        list(table.read(str(tmp_path / "missing.csv")))


def test_semicolons_are_told(tmp_path):
    (tmp_path / "t.csv").write_text("key;image\na;b\n")
    with pytest.raises(table.TableError, match="with commas"):
        list(table.read(str(tmp_path / "t.csv"), None))
