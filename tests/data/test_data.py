"""Data sources: the E2E release and its download, the sample, files, folders, lines of tables."""

import csv
import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice, repeat
from pathlib import Path

import pytest

from mingpt_prefix.checkpoints.atomic_write import cache_dir
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.data import datasets as data
from mingpt_prefix.data.datasets import e2e_available, group_references, load_examples, load_split
from mingpt_prefix.data.encoding import encode_example
from mingpt_prefix.data.readers import read_csv, read_examples
from mingpt_prefix.data.rows import Columns
from mingpt_prefix.data.spellings import iter_tables
from mingpt_prefix.data.tables import Example, Table, format_table, linearize, parse_table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import ConfigError, DataError, TableError
from mingpt_prefix.model import GPT2
from mingpt_prefix.trainer import check_positions

ROWS = [(f"name[Place {i // 2}], eatType[pub]", f"Sentence {i}.") for i in range(200)]
EXAMPLES = [Example(parse_table(mr), ref) for mr, ref in ROWS]


def csv_bytes(rows: list[tuple[str, str]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([("mr", "ref"), *rows])
    return out.getvalue().encode()


def bars_bytes(rows: list[tuple[str, str]]) -> bytes:
    """As the prefix-tuning paper's repository has E2E."""
    tables = (linearize(parse_table(mr)).strip() for mr, _ in rows)
    return "".join(f"{t}||{ref} \n" for t, (_, ref) in zip(tables, rows, strict=True)).encode()


def jsonl_bytes(rows: list[tuple[str, str]]) -> bytes:
    items = ({"table": dict(parse_table(mr).slots), "text": ref} for mr, ref in rows)
    return "".join(json.dumps(item) + "\n" for item in items).encode()


def one_line_error(caught: pytest.ExceptionInfo[DataError]) -> str:
    assert str(caught.value).isprintable()
    return str(caught.value)


# E2E


@pytest.mark.skipif(not e2e_available(), reason="the cache folder does not hold e2e-dataset.zip")
def test_e2e_counts() -> None:
    counts = {"train": (42_061, 4_862), "dev": (4_672, 547), "test": (4_693, 630)}
    tables = []
    for split, (n_rows, n_tables) in counts.items():
        examples = load_examples("e2e", split, url="http://unused.invalid")
        groups = group_references(examples)
        assert (len(examples), len(groups)) == (n_rows, n_tables)
        assert sum(len(texts) for _, texts in groups) == n_rows
        tables += [table for table, _ in groups]
    assert len(set(tables)) == len(tables)
    names = {name for table in tables for name, _ in table.slots}
    assert names == {
        *("name", "eatType", "food", "priceRange"),
        *("customer rating", "area", "familyFriendly", "near"),
    }


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """A small release in the official layout, taken for the official one, and an empty cache."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for n_rows, name in ((6, "trainset"), (4, "devset"), (2, "testset_w_refs")):
            archive.writestr(f"e2e-dataset/{name}.csv", csv_bytes(ROWS[:n_rows]))
    monkeypatch.setattr(data, "E2E_SHA256", hashlib.sha256(out.getvalue()).hexdigest())
    monkeypatch.setenv("MINGPT_PREFIX_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return out.getvalue()


@pytest.fixture
def server(release: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            bodies = {
                "/good.zip": release,
                "/cut.zip": release[:-100],
                "/wrong.zip": b"x" * len(release),
                "/page.zip": b"<html>Log in first</html>",
            }
            self.send_response(200 if self.path in bodies else 404)
            body = bodies.get(self.path, b"gone")
            length = len(release) if self.path == "/cut.zip" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_download_fills_the_cache_once(server: str, release: bytes) -> None:
    assert not e2e_available()
    assert load_examples("e2e", "train", url=f"{server}/good.zip") == EXAMPLES[:6]
    assert e2e_available()
    assert [path.name for path in cache_dir().iterdir()] == ["e2e-dataset.zip"]
    assert (cache_dir() / "e2e-dataset.zip").read_bytes() == release
    assert load_examples("e2e", "dev", url=f"{server}/missing.zip") == EXAMPLES[:4]
    assert load_split(["e2e"], "test") == EXAMPLES[:2]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("cut.zip", "cut off|IncompleteRead"),
        ("wrong.zip", "SHA-256"),
        ("page.zip", "SHA-256"),
        ("missing.zip", "404"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    server: str, path: str, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        load_examples("e2e", "train", url=f"{server}/{path}")
    assert str(cache_dir() / "e2e-dataset.zip") in one_line_error(caught)
    assert f"{server}/{path}" in str(caught.value)
    assert not e2e_available()
    assert not cache_dir().exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/e2e.zip", "no url", "http://[/", "x://y"])
def test_no_server(release: bytes, url: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match="by hand") as caught:
        load_examples("e2e", "train", url=url.format(port=port))
    assert str(cache_dir()) in one_line_error(caught)


def test_a_damaged_cached_file_is_reported_and_kept(server: str, release: bytes) -> None:
    path = cache_dir() / "e2e-dataset.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(release[:-1])
    assert not e2e_available()
    with pytest.raises(DataError, match="not the official") as caught:
        load_examples("e2e", "train", url=f"{server}/good.zip")
    assert str(path) in one_line_error(caught)
    assert path.read_bytes() == release[:-1]


def test_a_cache_that_cannot_be_written(server: str) -> None:
    cache_dir().parent.parent.mkdir(exist_ok=True)
    cache_dir().parent.write_text("a file, where a folder is needed")
    with pytest.raises(DataError) as caught:
        load_examples("e2e", "train", url=f"{server}/good.zip")
    assert str(cache_dir()) in one_line_error(caught)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("MINGPT_PREFIX_CACHE", raising=False)
        else:
            monkeypatch.setenv("MINGPT_PREFIX_CACHE", value)
        assert cache_dir() == Path.home() / ".cache" / "mingpt-prefix"
    monkeypatch.setenv("MINGPT_PREFIX_CACHE", "/some/where")
    assert cache_dir() == Path("/some/where")


# The sample


def test_sample() -> None:
    splits = {split: load_examples("sample", split) for split in ("train", "dev", "test")}
    tables = {split: {example.table for example in found} for split, found in splits.items()}
    assert all(tables.values())
    assert not tables["train"] & tables["dev"] and not tables["train"] & tables["test"]


# Files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", csv_bytes(ROWS)),
        ("a.CSV", b"\xef\xbb\xbf" + csv_bytes(ROWS).replace(b"\r\n", b"\n")),
        ("a.csv", csv_bytes(ROWS).replace(b"\r\n", b"\r\n\r\n").replace(b"mr,ref", b" MR , Ref")),
        ("a.csv", csv_bytes(ROWS, ";")),
        ("a.csv", b"sep=;\r\n" + csv_bytes(ROWS, ";")),
        ("a.csv", b"\xef\xbb\xbfsep=\t\n" + csv_bytes(ROWS, "\t")),
        ("a.tsv", csv_bytes(ROWS, "\t")),
        ("a.TSV", b"\n" + csv_bytes(ROWS)),
        ("a.csv", csv_bytes(ROWS) + b",\r\n,\r\n , ,,\r\n"),
        ("a.csv", csv_bytes(ROWS).replace(b"\r\n", b",,\r\n") + b",,,\r\n"),
        ("a.csv", csv_bytes(ROWS, ";").replace(b"\r\n", b";;\n").replace(b";;", b"", 1)),
        ("src1_train.txt", bars_bytes(ROWS)),
        ("a.txt", b"\xef\xbb\xbf" + bars_bytes(ROWS).replace(b"\n", b"\r\n\r\n")),
        ("a.jsonl", jsonl_bytes(ROWS)),
        ("a.jsonl", b"\xef\xbb\xbf" + jsonl_bytes(ROWS).replace(b"\n", b"\r\n\r\n")),
        ("a.json", b"[" + b",".join(jsonl_bytes(ROWS).splitlines()) + b"]"),
    ],
)
def test_good_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_examples(tmp_path / name) == EXAMPLES


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl", "a.json"])
def test_the_longest_example_is_named_where_it_does_not_fit(tmp_path: Path, name: str) -> None:
    rows = [ROWS[0], ("name[B]", "word " * 100), ROWS[1]]
    items = b"[" + b",".join(jsonl_bytes(rows).splitlines()) + b"]"
    contents = {"a.csv": csv_bytes(rows), "a.txt": bars_bytes(rows), "a.jsonl": jsonl_bytes(rows)}
    path = tmp_path / name
    path.write_bytes(contents.get(name, items))
    encoded = [encode_example(load_tokenizer("tiny"), e) for e in read_examples(path)]
    model = GPT2(ModelConfig(1, 1, 2, vocab_size=4096, n_positions=64, eos_token_id=0))
    where = {"a.csv": "line 3", "a.json": "item 2"}.get(name, "line 2")
    with pytest.raises(ConfigError, match=rf"2 prefix rows .* tokens \({path}: {where}\) pass"):
        check_positions(2, encoded, model)
    check_positions(2, [encoded[0], encoded[2]], model)


def test_csv_columns_go_by_name_and_fields_may_hold_line_ends() -> None:
    content = 'id,ref,mr\n1,"A ""pub"",\nby the river.",name[The Mill]\n'
    assert read_csv(content.encode(), "x.csv") == [
        Example(Table((("name", "The Mill"),)), 'A "pub",\nby the river.')
    ]


GOOD_ROW = b"name[A],A pub.\n"
GOOD_ITEM = b'{"table": {"name": "A"}, "text": "A pub."}'


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"", "no examples"),
        ("a.csv", b"\n\n", "no examples"),
        ("a.csv", b"mr,ref\n", "no examples"),
        ("a.csv", b"table,text\n" + GOOD_ROW, "line 1: no columns 'mr' and 'ref', once each"),
        ("a.csv", b"mr\nname[A]\n", "line 1: no columns 'mr' and 'ref', once each"),
        ("a.csv", b"mr,ref,mr\n", "line 1: no columns 'mr' and 'ref', once each"),
        ("a.csv", GOOD_ROW, "line 1: no columns 'mr' and 'ref', once each"),
        ("a.csv", b"mr,ref\n" + GOOD_ROW + b"name[,A pub.\n", "line 3: .*character 4"),
        ("a.csv", b"mr,ref\n" + GOOD_ROW + b"\nname[A]\n", "line 3|line 4: 1 field"),
        ("a.csv", b"mr,ref\nname[A],A pub, cheap.\n", "line 2: 3 fields"),
        ("a.csv", b"mr,ref\nname[A],  \n", "line 2: the text is empty"),
        ("a.csv", b'mr,ref\nname[A],"A\n\npub."\nname,B\n', "line 5: "),
        ("a.csv", b"mr,ref\n" + GOOD_ROW + b'name[A],"A pub.\n' + GOOD_ROW * 9, "line 3: "),
        ("a.csv", b'mr,ref\nname[A],"A" pub.\n', "line 2: "),
        ("a.csv", b"mr,ref\nname[A],A p\x00b.\n", "line 2: a NUL byte"),
        ("a.csv", b"mr,ref\nname[A],A caf\xe9.\n", "line 2: byte 0xe9 is not UTF-8"),
        ("a.csv", "mr,ref\nname[A],A pub.\n".encode("utf-16"), "line 1: "),
        ("a.csv", b"mr,ref\nname[A]," + b"x" * 200_000 + b"\n", "line 2: field larger"),
        ("a.csv", b"mr,ref\nname[" + b"x" * 9_000 + b"],A pub.\n", "line 2: .*longer than 8,000"),
        ("a.jsonl", b"", "no examples"),
        ("a.jsonl", b" \n\n", "no examples"),
        ("a.jsonl", GOOD_ITEM + b'\n{"table": {"name": "A"}\n', "line 2: not valid JSON"),
        ("a.jsonl", b'["name"]', "line 1: an object"),
        ("a.jsonl", b'{"name": "A"}', "line 1: an object.*; for flat objects give --text"),
        ("a.jsonl", b'{"table": "name[A]", "text": "B"}', "line 1: a table must be an object"),
        ("a.jsonl", b'{"table": {"name": [1]}, "text": "B"}', "line 1: slot 'name'"),
        ("a.jsonl", b'{"table": {"a": "1", "a": "2"}, "text": "B"}', "line 1: 'a' is repeated"),
        ("a.jsonl", b'{"table": {"name": NaN}, "text": "B"}', "line 1: .*not finite"),
        ("a.jsonl", GOOD_ITEM.replace(b'"A pub."', b"3"), "line 1: text must be a string"),
        ("a.jsonl", GOOD_ITEM.replace(b"A pub.", b" "), "line 1: the text is empty"),
        ("a.jsonl", GOOD_ITEM.replace(b"A pub.", b"\\ud800"), "line 1: .*surrogate"),
        ("a.jsonl", b'{"table": {"a": ' + b"9" * 5_000 + b'}, "text": "B"}', "line 1: .*number"),
        ("a.jsonl", b"[" * 200_000, "line 1: not valid JSON"),
        ("a.jsonl", GOOD_ITEM + b"\n\xff\n", "line 2: byte 0xff is not UTF-8"),
        ("a.json", b"", "not valid JSON"),
        ("a.json", b"[]", "no examples"),
        ("a.json", GOOD_ITEM, "list of objects"),
        ("a.json", b"[" + GOOD_ITEM + b", {}]", "item 2: an object"),
        ("a.tsv", b'mr\tref\nname[A]\t"A" pub.\n', "line 2: "),
        ("a.csv", b"mr;ref\nname[A], food[B];A pub; cheap.\n", "line 2: 3 fields"),
        ("a.csv", b"mr,ref\n,\n,A pub.\n", "line 3: the table is empty"),
        ("a.csv", b"sep=;\nmr;ref\nname[A\n", "line 3: 1 fields under 2"),
        ("a.txt", GOOD_ROW, r"line 1: 'table\|\|sentence' is expected"),
        ("a.txt", b"name : A||A.\nname A||B.\n", "line 2: 'name : value'"),
        ("a.txt", b"name : A|| \n", "line 1: the text is empty"),
        ("trainset", GOOD_ROW, "must end in .csv, .tsv, .jsonl, .json"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        load_split([str(path)], "train")
    assert one_line_error(caught).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("source", ["", "no/such.csv", "E2E", "x\0.csv", "x\n.csv", "x" * 5_000])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_missing_sources(source: str, split: data.Split) -> None:
    with pytest.raises(DataError) as caught:
        load_examples(source, split)
    assert len(one_line_error(caught)) < 300


def test_a_folder_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match="a folder"):
        read_examples(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"no train.csv in it \(or .tsv, "):
        load_examples(str(tmp_path / "a.csv"), "train")


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train, dev, test"):
        load_examples("sample", "valid")


# Splits of files and folders


@pytest.mark.parametrize("reverse", [False, True])
def test_a_single_file_sets_tables_aside(tmp_path: Path, reverse: bool) -> None:
    rows = ROWS[::-1] if reverse else ROWS
    path = tmp_path / "a.csv"
    path.write_bytes(csv_bytes(rows))
    train, dev = load_split([str(path)], "train"), load_split([str(path)], "dev")
    tables = {example.table for example in dev}
    assert sorted(train + dev, key=repr) == sorted(EXAMPLES, key=repr)
    assert not tables & {example.table for example in train}
    digests = {
        table: hashlib.sha256(format_table(table).encode()).hexdigest()
        for table in {example.table for example in EXAMPLES}
    }
    # 5 % of 2**32 is 0x0ccccccc.
    assert tables == {table for table, digest in digests.items() if digest < "0ccccccc"}
    with pytest.raises(DataError, match="no test split"):
        load_split([str(path)], "test")


def test_about_one_table_in_twenty_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [(f"name[Place {i}]", "A place.") for i in range(4_000)]
    path.write_bytes(csv_bytes(rows))
    dev = load_split([str(path)], "dev")
    # Hashes fall as chance has it: 200 expected, standard deviation 14.
    assert 150 <= len(dev) <= 250
    # A table that comes later changes nothing for the others.
    path.write_bytes(csv_bytes(rows[:3_000]))
    kept = {example.table for example in load_split([str(path)], "dev")}
    assert kept == {example.table for example in dev} & {parse_table(mr) for mr, _ in rows[:3_000]}


@pytest.mark.parametrize("n_tables", [1, 2, 3])
def test_few_tables(tmp_path: Path, n_tables: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl_bytes(ROWS[: 2 * n_tables]))
    train, dev = load_split([str(path)], "train"), load_split([str(path)], "dev")
    assert len(dev) == (2 if n_tables > 1 else 0)
    assert len(train) == 2 * n_tables - len(dev)


@pytest.mark.parametrize(
    "names",
    [
        ("trainset.csv", "devset.csv", "testset_w_refs.csv"),
        ("train.csv", "dev.csv", "test.csv"),
        ("train.jsonl", "devset.csv", "test.jsonl"),
        ("train.tsv", "valid.csv", "testset_w_refs.csv"),
        ("src1_train.txt", "src1_valid.txt", "src1_test.txt"),
        ("train.csv", "validation.csv", "test.csv"),
    ],
)
def test_folder(tmp_path: Path, names: tuple[str, ...]) -> None:
    for start, name in enumerate(names):
        rows = ROWS[start * 10 : start * 10 + 10]
        write = {".jsonl": jsonl_bytes, ".txt": bars_bytes}.get(Path(name).suffix, csv_bytes)
        (tmp_path / name).write_bytes(write(rows))
    for start, split in enumerate(("train", "dev", "test")):
        found = load_examples(str(tmp_path), split)
        assert found == EXAMPLES[start * 10 : start * 10 + 10]


def test_a_folder_without_a_dev_file_is_split_as_a_single_file(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(ROWS))
    for split in ("train", "dev"):
        assert load_examples(str(tmp_path), split) == load_examples(str(path), split)
    with pytest.raises(DataError, match="no test.csv in it"):
        load_examples(str(tmp_path), "test")


def test_a_folder_with_two_files_for_a_split(tmp_path: Path) -> None:
    for name in ("train.csv", "trainset.csv"):
        (tmp_path / name).write_bytes(csv_bytes(ROWS))
    with pytest.raises(DataError, match=r"trainset.csv and train.csv are both train"):
        load_examples(str(tmp_path), "train")


def test_several_sources_follow_one_another_and_do_not_leak_dev_tables(tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "more.csv"
    folder.mkdir()
    (folder / "train.csv").write_bytes(csv_bytes(ROWS[:20]))
    (folder / "dev.csv").write_bytes(csv_bytes(ROWS[20:30]))
    path.write_bytes(csv_bytes(ROWS[20:]))
    sources = [str(folder), str(path)]
    dev = load_split(sources, "dev")
    assert dev == EXAMPLES[20:30] + load_examples(str(path), "dev")
    train = load_split(sources, "train")
    dev_tables = {example.table for example in dev}
    assert train == [example for example in EXAMPLES if example.table not in dev_tables]
    assert EXAMPLES[:20] == train[:20] and len(train) < 190


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:2]), ("dev", ROWS[:2])):
        (tmp_path / f"{name}.csv").write_bytes(csv_bytes(rows))
    with pytest.raises(DataError, match="no train examples"):
        load_split([str(tmp_path), str(tmp_path)], "train")


def test_group_references_keeps_first_appearance() -> None:
    a, b = EXAMPLES[0].table, EXAMPLES[2].table
    examples = [Example(b, "1"), Example(a, "2"), Example(b, "3"), Example(b, "1")]
    assert group_references(examples) == [(b, ["1", "3", "1"]), (a, ["2"])]
    assert group_references([]) == []


# One table a line


def test_iter_tables_goes_on_after_a_bad_line() -> None:
    lines = [
        "\ufeffname[A], food[Thai], ...\n",
        '{"name": "A", "food": "Thai"}\r\n',
        ' {"table": {"name": "A", "food": "Thai"}, "text": "ignored"}\n',
        "name[A\n",
        "\n",
        '{"name": "A"\n',
        '{"name": "A", "name": "B"}\n',
        '{"a": ' * 100_000 + "\n",
        '{"a": ' + "9" * 5_000 + "}\n",
        "{}\n",
        "name[\udce9]\n",
        '{"table": "oak", "legs": 4}\n',
        "name[A], food[Thai]",
    ]
    found = list(iter_tables(lines))
    assert [number for number, _ in found] == list(range(1, len(lines) + 1))
    good = {number: item for number, item in found if isinstance(item, Table)}
    thai = Table((("name", "A"), ("food", "Thai")))
    oak = Table((("table", "oak"), ("legs", "4")))
    assert good == {1: thai, 2: thai, 3: thai, 12: oak, 13: thai}
    errors = [item for _, item in found if not isinstance(item, Table)]
    assert all(type(error) is TableError and str(error).isprintable() for error in errors)
    assert errors[0].position == 4


def test_iter_tables_is_lazy() -> None:
    assert len(list(islice(iter_tables(repeat("name[A]\n")), 1_000))) == 1_000
    rows = chain(["mr,ref\n"], repeat('"name[A], food[B]",\n'))
    assert len(list(islice(iter_tables(rows), 1_000))) == 1_000


@pytest.mark.parametrize(
    "content",
    [
        "MR\n{}\n{}\n{}\n",
        '\ufeff"mr","ref"\r\n{},A.\r\n{},"B.\nC."\r\n{},\r\n,\r\n',
        "id;mr;ref\n1;{};x\n2;{};\n3;{};;;\n",
        "sep=\t\nmr\tref\n{}\t\n{}\t\n{}\t\n",
    ],
)
def test_iter_tables_reads_csv(content: str) -> None:
    mrs = [f'"name[Inn ""{n}""], food[Thai]"' for n in range(3)]
    lines = io.StringIO(content.format(*mrs), newline="")
    found = [item for _, item in iter_tables(lines)]
    expected = [Table((("name", f'Inn "{n}"'), ("food", "Thai"))) for n in range(3)]
    assert found == expected


@pytest.mark.parametrize("content", [",,\n,,\n", "sep=;\n\n", ',,\n,,\n"abc', "name[A\nname[B]\n"])
def test_iter_tables_takes_no_header_from_what_has_none(content: str) -> None:
    found = list(iter_tables(content.splitlines(keepends=True), Columns(("title",))))
    assert [number for number, _ in found] == list(range(1, len(content.splitlines()) + 1))
    assert isinstance(found[0][1], TableError)


@pytest.mark.parametrize(
    ("header", "what"), [("title,blurb,title", "several columns 'title'"), ("blurb", "no column")]
)
def test_iter_tables_refuses_a_header_that_training_refuses(header: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        list(iter_tables([f"{header}\n", "A,x,B\n"], Columns(("title",))))


def test_iter_tables_goes_on_after_a_bad_row() -> None:
    lines = ["mr,ref\n", '"name[A]\n', '", x\n', "name[A,x\n", "name[B],x,y\n", "name[C],\n", '"n']
    (first, good), *bad, (fourth, also), last = iter_tables(lines)
    assert (first, good.slots, fourth, also.slots) == (2, (("name", "A"),), 6, (("name", "C"),))
    assert [number for number, _ in bad] == [4, 5] and last[0] == 7
    whats = ("']' is missing", "3 fields under 2 columns", "unexpected end of data")
    for (_, error), what in zip([*bad, last], whats, strict=True):
        assert type(error) is TableError and what in str(error)
    # A table that is no row under a header, and a header alone, are tables that cannot be read.
    for line in ("mr", "mr[A]", "a, mr"):
        ((number, item),) = iter_tables([line])
        assert number == 1 and (isinstance(item, Table) == ("[" in line))
