"""Files from strangers: whatever they hold, a clean read or one of the project's own errors.

Each check runs on a few hundred cases, and in the slow suite on 10,000.
"""

import dataclasses
import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mingpt_prefix.adapters.prefix_file import PrefixInfo, load_prefix, save_prefix
from mingpt_prefix.checkpoints.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.checkpoints.run_folder import read_run
from mingpt_prefix.data.corpora import read_webnlg
from mingpt_prefix.data.readers import (
    read_bars,
    read_csv,
    read_json,
    read_jsonl,
)
from mingpt_prefix.data.spellings import iter_tables, table_from_line
from mingpt_prefix.data.tables import format_table, linearize, parse_table
from mingpt_prefix.errors import (
    CheckpointError,
    DataError,
    MingptPrefixError,
    PrefixError,
    TableError,
)

BRACKETS = st.text(
    st.sampled_from("name[],… .The Mill\\\"'{}:|\n\t\x00\x7f\u2028é£\ud800"), max_size=60
)
# What a table, a CSV and a JSON line are made of, in any order.
PIECES = st.lists(
    st.sampled_from(
        ["name", "[", "]", ",", "...", "…", " ", "The Mill", '"', "\n", "mr", "ref", "mr,ref\n",
         "name[x]", "{", "}", '{"table": ', '"text": "a"', ":", "null", "1e999", "NaN", "[[", "\\u",
         '{"table": {"name": "x"}, "text": "a"}', "\x00", "\ufeff", "\ud83d", "-1", "true"]
    ),
    max_size=24,
).map("".join)  # fmt: skip
# Mostly right: slots with any characters in names and values, and separators that may be off.
PLAIN = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="[],"),
    min_size=1,
    max_size=8,
)
SLOTS = st.lists(
    st.tuples(
        PLAIN, PLAIN | st.text(max_size=4),
        st.sampled_from(["[{}]"] * 12 + ["[{}", "{}]", "[[{}]]"]),
        st.sampled_from([", "] * 12 + [",", " ", ",,", "\n,\t", ", ..."]),
    ),
    min_size=1, max_size=6,
).map(
    lambda slots: "".join(name + form.format(value) + end for name, value, form, end in slots)
    .removesuffix(", ")
)  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat"]), st.integers(0, 2**31),
              st.integers(0, 255)),
    min_size=1, max_size=4,
)  # fmt: skip
Check = Callable[..., None]


def cases(strategy: st.SearchStrategy) -> Callable[[Check], Check]:
    """The check on a few hundred cases, and as a slow test on 10,000."""

    def decorate(check: Check) -> Check:
        @pytest.mark.parametrize(
            "count", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids="{:,} cases".format
        )
        def test(count: int, tmp_path: Path) -> None:
            quiet = settings(
                max_examples=count,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            quiet(given(strategy)(lambda case: check(case, tmp_path)))()

        return test

    return decorate


def mutated(data: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    for kind, where, value in mutations:
        at = where % max(1, len(data))
        if kind == "flip":
            data = (
                data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :] if data else data
            )
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + bytes([value]) * (1 + value % 9) + data[at:]
        else:
            data = data[:at] + data[at : at + value] * 2 + data[at + value :]
    return data


@cases(BRACKETS | PIECES | SLOTS)
def test_tables(text: str, _: Path) -> None:
    try:
        table = parse_table(text)
    except TableError as error:
        assert str(error).isprintable() and 0 <= error.position <= len(text)
        return
    assert table_from_line(format_table(table)) == table
    assert linearize(table).startswith(" ")


@cases(st.binary(max_size=80) | PIECES.map(lambda text: text.encode(errors="surrogatepass")))
def test_data_files(data: bytes, _: Path) -> None:
    for read in (read_csv, read_jsonl, read_json, read_webnlg, read_bars):
        for content in (data, b"mr,ref\n" + data, b"<benchmark>" + data, b"a : b||" + data):
            try:
                for example in read(content, "file"):
                    assert example.text.strip()
                    assert table_from_line(format_table(example.table)) == example.table
            except DataError as error:
                assert str(error).startswith("file") and str(error).isprintable()
                assert not str(error).startswith("file: file")


@cases(st.lists(BRACKETS | PIECES | SLOTS, max_size=5))
def test_table_lines(lines: list[str], _: Path) -> None:
    found = list(iter_tables(lines))
    for _, table in found:
        if not isinstance(table, TableError):
            assert table_from_line(format_table(table)) == table
            assert linearize(table).startswith(" ")
    if "mr" not in "".join(lines[:2]):  # the header of CSV, whose rows are not lines
        assert [number for number, _ in found] == list(range(1, len(lines) + 1))


INFO = PrefixInfo("tiny", "0a" * 32, 3, "bar-v1", "prefix", {"lr": 0.1})


def prefix_bytes(folder: Path) -> bytes:
    path = folder / "whole.safetensors"
    if not path.exists():
        save_prefix(path, torch.randn(2, 2, 3, 2, 4), INFO)
    return path.read_bytes()


@cases(MUTATIONS)
def test_prefix_files_that_were_damaged(mutations, folder: Path) -> None:
    whole, path = prefix_bytes(folder), folder / "prefix.safetensors"
    path.write_bytes(mutated(whole, mutations))
    try:
        prefix = load_prefix(path)
    except PrefixError as error:
        assert str(error).isprintable()
        return
    assert torch.equal(prefix.kv, load_prefix(folder / "whole.safetensors").kv)


# Headers that say what is not so: shapes, offsets and types of all sizes.
NUMBERS = st.integers(-2, 4) | st.sampled_from([2**31, 2**63, 2**64, 10**30])
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "prefix_kv": st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "X", ""]),
                "shape": st.lists(NUMBERS, max_size=6),
                "data_offsets": st.lists(NUMBERS, max_size=3),
            }
        ),
        "other": st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
        "__metadata__": st.dictionaries(
            st.sampled_from(["mingpt_prefix", "x"]),
            st.text(max_size=5)
            | st.fixed_dictionaries(
                {name: NUMBERS | st.text(max_size=3) for name in vars(INFO)}
            ).map(json.dumps)
            | st.just(json.dumps(dataclasses.asdict(INFO))),
            max_size=2,
        ),
    },
)


@cases(st.tuples(HEADERS, NUMBERS, st.integers(0, 300)))
def test_prefix_files_with_lying_headers(case, folder: Path) -> None:
    header, claimed, size = case
    text = json.dumps(header).encode()
    length = len(text) if claimed < 0 else min(claimed, 2**64 - 1)
    data = struct.pack("<Q", length) + text + bytes(size)
    path, checkpoint = folder / "prefix.safetensors", folder / "step-00000007.safetensors"
    for file, read in ((path, load_prefix), (checkpoint, lambda _: load_newest(folder))):
        file.write_bytes(data)
        try:
            read(file)
        except MingptPrefixError as error:
            assert str(error).isprintable()


KEPT = torch.arange(6.0)


@cases(MUTATIONS)
def test_checkpoints_that_were_damaged(mutations, folder: Path) -> None:
    runs = folder / "checkpoints"
    if not runs.exists():
        runs.mkdir()
        save_checkpoint(runs, 7, {"trained.x": KEPT}, {"best_loss": 1.0})
        (folder / "kept").write_bytes((runs / "step-00000007.safetensors").read_bytes())
    path = runs / "step-00000007.safetensors"
    path.write_bytes(mutated((folder / "kept").read_bytes(), mutations))
    try:
        checkpoint = load_newest(runs)
    except CheckpointError as error:
        assert str(error).isprintable()
        return
    # What was changed is noticed, but where it changes nothing that is read.
    assert checkpoint.step == 7 and checkpoint.state == {"best_loss": 1.0, "step": 7}
    assert torch.equal(checkpoint.tensors.pop("trained.x"), KEPT) and not checkpoint.tensors


@pytest.mark.parametrize(
    "state", ["[" * 100_000, '{"step": 7', "[7]", '"7"', '{"step": "7"}', "{}"]
)
def test_checkpoints_of_no_state(state: str, tmp_path: Path) -> None:
    data = save({"trained.x": KEPT}, {"mingpt_prefix": state})
    (tmp_path / "step-00000007.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_newest(tmp_path)


@cases(st.binary(max_size=60) | PIECES.map(lambda text: text.encode(errors="surrogatepass")))
def test_run_files(data: bytes, folder: Path) -> None:
    (folder / "run.json").write_bytes(data)
    try:
        assert isinstance(read_run(folder)["config"], dict)
    except CheckpointError as error:
        assert str(error).isprintable()


def test_huge_claims_take_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = json.dumps(dataclasses.asdict(dataclasses.replace(INFO, length=2**20)))
    entry = {"dtype": "F32", "shape": [48, 2, 2**20, 25, 64], "data_offsets": [0, 2**42]}
    header = json.dumps({"prefix_kv": entry, "__metadata__": {"mingpt_prefix": text}}).encode()
    path = tmp_path / "prefix.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(100))
    with pytest.raises(PrefixError):
        load_prefix(path)
    path.write_bytes(save({"prefix_kv": torch.zeros(1)}, {"mingpt_prefix": text}))
    with pytest.raises(PrefixError):
        load_prefix(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
