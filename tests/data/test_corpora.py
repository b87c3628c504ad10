"""WebNLG's XML and DART's JSON, written by hand in the official forms; files of the user's own."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

import train
from mingpt_prefix.data.datasets import load_split
from mingpt_prefix.data.parsing import LeftOut, told_left_out
from mingpt_prefix.data.readers import read_csv, read_examples
from mingpt_prefix.data.rows import USUAL, Columns
from mingpt_prefix.data.tables import Example, Table, linearize, parse_table
from mingpt_prefix.errors import DataError

AARHUS = """<?xml version="1.0" encoding="UTF-8"?>
<benchmark>
  <entries>
    <entry category="Airport" eid="Id1" size="2">
      <originaltripleset>
        <otriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"@en</otriple>
        <otriple>Aarhus_Airport | runway | 10/28</otriple>
      </originaltripleset>
      <modifiedtripleset>
        <mtriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"</mtriple>
        <mtriple>Aarhus_Airport | runwayName | 10/28 &amp; more</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">Aarhus Airport serves Aarhus.</lex>
      <lex comment="bad" lid="Id2">It flies.</lex>
      <lex comment="" lid="Id3" lang="en">Aarhus is served by
        an airport.</lex>
      <lex comment="good" lid="Id4" lang="ru">Аэропорт Орхуса.</lex>
    </entry>
    <entry category="Airport" eid="Id2" size="1">
      <modifiedtripleset><mtriple>A | b | C</mtriple></modifiedtripleset>
    </entry>
  </entries>
</benchmark>
"""
LEFT_OUT = {
    "sentences not marked good": 1,
    "sentences in other languages": 1,
    "entries without a sentence": 1,
}
# The enriched release has mtriple in some versions, otriple in others.
ENRICHED = """<benchmark><entries>
<entry category="Airport" eid="Id1" size="1">
  <originaltripleset><otriple>A | b_original | C</otriple></originaltripleset>
  <modifiedtripleset><TRIPLE>A | b | "C"</TRIPLE><TRIPLE>A | d | E</TRIPLE></modifiedtripleset>
  <entitymap><entity>AGENT-1 | A</entity></entitymap>
  <lex comment="good" lid="Id1">
    <sortedtripleset><sentence ID="1"><striple>A | b | "C"</striple></sentence></sortedtripleset>
    <references><reference entity="A" tag="AGENT-1">It</reference></references>
    <text>It is C.</text>
    <template>AGENT-1 is C .</template>
  </lex>
  <lex comment="toFix" lid="Id2"><text>It are C.</text></lex>
  <lex comment="good" lid="Id3"><text/><template/></lex>
</entry></entries></benchmark>
"""
ONE = AARHUS.replace("Aarhus_Airport", "{name}")
DART = [
    {
        "tripleset": [
            ["[TABLECONTEXT]", "Name", "M. Borgarelli d'Ison"],
            ["M. Borgarelli\u00a0d'Ison", "PERIOD_from", ""],
        ],
        "subtree_was_extended": True,
        "annotations": [
            {"source": "WikiTableQuestions_lily", "text": "The mayor was M. Borgarelli d'Ison."},
            {"source": "WikiTableQuestions_mturk", "text": "M. Borgarelli d'Ison was mayor."},
            {"source": "WikiTableQuestions_mturk", "text": " "},
        ],
    },
    {
        "tripleset": [["The Mill", "eatType", "pub"]],
        "subtree_was_extended": False,
        "annotations": [{"source": "e2e", "text": "The Mill is a pub."}],
    },
]


def refused(path: Path, columns: Columns = USUAL) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, columns)
    said = str(caught.value)
    assert said.isprintable() and said.startswith(str(path)) and len(said) < len(str(path)) + 250
    return said


# WebNLG


def test_webnlg(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(AARHUS, encoding="utf-8")
    left_out: LeftOut = {}
    for _ in range(2):  # the counts are those of the file, however often it is read
        first, second = read_examples(path, left_out=left_out)
    assert left_out == {(str(path), why): count for why, count in LEFT_OUT.items()}
    assert first.text == "Aarhus Airport serves Aarhus." and second.text.startswith("Aarhus is")
    assert first.table == second.table
    assert linearize(first.table) == (
        ' | Aarhus_Airport : cityServed : "Aarhus, Denmark"'
        " | Aarhus_Airport : runwayName : 10/28 & more"
    )
    path.write_text(AARHUS.replace("UTF-8", "UTF-16"), encoding="utf-16")
    assert read_examples(path) == [first, second]


@pytest.mark.parametrize("tag", ["mtriple", "otriple"])
def test_enriched_webnlg(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(ENRICHED.replace("TRIPLE", tag), encoding="utf-8")
    left_out: LeftOut = {}
    (example,) = read_examples(path, left_out=left_out)
    assert example == Example(Table((("A", "b", '"C"'), ("A", "d", "E"))), "It is C.")
    whys = ("sentences not marked good", "empty sentences")
    assert left_out == {(str(path), why): 1 for why in whys}


def write_release(folder: Path) -> None:
    """The layout of the 2017 challenge: a folder a split, below it one a size, below it files."""
    for split, number, kind in (
        ("train", 1, "Airport"), ("train", 1, "City"), ("train", 2, "Airport"), ("dev", 1, "City"),
    ):  # fmt: skip
        path = folder / split / f"{number}triples" / f"{number}triples_{kind}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ONE.format(name=f"{kind}_{split}_{number}"), encoding="utf-8")
    (folder / "test").mkdir()
    for name in ("testdata_with_lex", "testdata_unseen_with_lex"):
        (folder / "test" / f"{name}.xml").write_text(ONE.format(name=name), encoding="utf-8")
    no_lex = "".join(line for line in AARHUS.splitlines(True) if "lex" not in line)
    (folder / "test" / "testdata_no_lex.xml").write_text(no_lex, encoding="utf-8")


def test_a_webnlg_release_is_a_folder_of_files_for_each_split(tmp_path: Path) -> None:
    write_release(tmp_path)
    subjects = {
        split: [example.table.slots[0][0] for example in load_split([str(tmp_path)], split)]
        for split in ("train", "dev", "test")
    }
    assert subjects["train"][::2] == ["Airport_train_1", "City_train_1", "Airport_train_2"]
    assert subjects["dev"] == ["City_dev_1"] * 2
    assert subjects["test"] == ["testdata_with_lex"] * 2


LAUGHS = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "not valid XML"),
        ("{}", "not valid XML"),
        (AARHUS[:300], "not valid XML"),
        (AARHUS.replace("serves", "&b;"), "not valid XML: undefined entity"),
        (LAUGHS + "<benchmark>&b;</benchmark>", "a document type or entities"),
        (OUTSIDE + "<benchmark>&x;</benchmark>", "a document type or entities"),
        ('<!DOCTYPE b SYSTEM "http://x.invalid/a.dtd"><benchmark/>', "a document type"),
        (AARHUS.replace("UTF-8", "x-none"), "not valid XML"),
        ("<html><body/></html>", "not WebNLG's XML: <html>"),
        ("<benchmark><entries/></benchmark>", "no examples in it"),
        (
            AARHUS.replace("<lex", "<lax").replace("</lex", "</lax"),
            r"no examples in it; left out: entries without a sentence \(2\)",
        ),
        (
            AARHUS.replace('"good"', '"bad"').replace('comment=""', 'comment="toFix"'),
            r"no examples in it; left out: sentences not marked good \(3\), sentences in other",
        ),
        (AARHUS.replace("A | b | C", "A, b, C"), r"entry 2 \(Id2\): 'A, b, C' is not"),
        (AARHUS.replace("mtriple>", "m>"), r"entry 1 \(Id1\): the table is empty"),
        (AARHUS.replace(">Aarhus Airport serves Aarhus.<", "> <"), r"entry 1 .*text is empty"),
    ],
)
def test_bad_xml(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=what):
        read_examples(path)
    refused(path)


# DART


def test_dart(tmp_path: Path) -> None:
    for split, items in (("train", DART), ("dev", DART[1:]), ("test", DART[:1])):
        path = tmp_path / f"dart-v1.1.1-full-{split}.json"
        path.write_text(json.dumps(items, indent=2), encoding="utf-8")
    train = load_split([str(tmp_path)], "train")
    assert [example.text for example in train] == [
        "The mayor was M. Borgarelli d'Ison.",
        "M. Borgarelli d'Ison was mayor.",
        "The Mill is a pub.",
    ]
    assert linearize(train[0].table) == (
        " | [TABLECONTEXT] : name : M. Borgarelli d'Ison | M. Borgarelli d'Ison : period_from : "
    )
    (dev,) = load_split([str(tmp_path)], "dev")
    assert dev == Example(Table((("The Mill", "eattype", "pub"),)), "The Mill is a pub.")
    assert len(load_split([str(tmp_path)], "test")) == 2


def dart_xml(items: list[dict]) -> str:
    """The same in DART's own XML, which marks sentences by their source and has no empty ones."""
    entries = ""
    for number, item in enumerate(items, 1):
        triples = "".join(f"<mtriple>{escape(' | '.join(t))}</mtriple>" for t in item["tripleset"])
        sentences = "".join(
            f'<lex comment="{said["source"]}" lid="Id1">{escape(said["text"])}</lex>'
            for said in item["annotations"]
            if said["text"].strip()
        )
        triples = f"<modifiedtripleset>{triples}</modifiedtripleset>"
        entries += f'<entry category="MISC" eid="Id{number}">{triples}{sentences}</entry>'
    return f"<benchmark><entries>{entries}</entries></benchmark>"


def test_dart_s_xml_is_its_json(tmp_path: Path) -> None:
    path = tmp_path / "dart-v1.1.1-full-train.json"
    path.write_text(json.dumps(DART), encoding="utf-8")
    left_out: LeftOut = {}
    splits = ("dev", "train")
    expected = [load_split([str(tmp_path)], split, left_out=left_out) for split in splits]
    assert list(left_out.values()) == [1] and "empty sentences" in told_left_out(left_out)
    path.unlink()
    path.with_suffix(".xml").write_text(dart_xml(DART), encoding="utf-8")
    left_out.clear()
    found = [load_split([str(tmp_path)], split, left_out=left_out) for split in splits]
    assert found == expected and not left_out


def test_a_run_says_what_is_left_out(tmp_path: Path, small_model: Path, capsys) -> None:
    for name in ("A", "B", "C"):
        text = ONE.replace("{name}", name)
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{name}.xml").write_text(text, encoding="utf-8")
    flags = f"--mode finetune --model {small_model} --data {tmp_path} --max-steps 1 --device cpu"
    assert train.main([*flags.split(), "--out", str(tmp_path / "run")]) == 0
    told = ", ".join(f"{why} (3)" for why in LEFT_OUT)
    assert f"\nOf the data left out: {told}.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ({"tripleset": []}, "tripleset.*annotations.* is expected"),
        ({"tripleset": {}, "annotations": []}, "tripleset.*annotations.* is expected"),
        ({"tripleset": [], "annotations": []}, "the table is empty"),
        ({"tripleset": [["a", "b"]], "annotations": []}, "a triple must be"),
        ({"tripleset": [["a", "b", 1]], "annotations": []}, "must be text"),
        ({"tripleset": [["a", "b", "c"]], "annotations": ["x"]}, "an annotation must be"),
        ({"tripleset": [["a", "b", "c"]], "annotations": [{"text": 1}]}, "an annotation must be"),
    ],
)
def test_bad_dart(tmp_path: Path, item: dict, what: str) -> None:
    path = tmp_path / "dart.json"
    path.write_text(json.dumps([DART[0], item]), encoding="utf-8")
    with pytest.raises(DataError, match=f"item 2: .*{what}"):
        read_examples(path)
    refused(path)


# Columns and fields of the user's own

BOOKS = 'id,title,author,blurb\n1,"The  [old]\nsea",Ann Lee,A book.\n2,Emma,,"Another, fine."\n'
SEA = {"title": "The [old] sea", "author": "Ann Lee"}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_any_columns(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": 1, **SEA, "blurb": "A book."},
        {"id": 2, "title": "Emma", "author": None, "blurb": "Another, fine."},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    content = {"a.csv": BOOKS, "a.jsonl": lines, "a.json": json.dumps(rows)}[name]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    assert read_examples(path, Columns(text="blurb")) == [
        Example(Table((("id", "1"), *SEA.items())), "A book."),
        Example(Table((("id", "2"), ("title", "Emma"))), "Another, fine."),
    ]
    titles = read_examples(path, Columns(("title",), "blurb"))
    assert [example.table.slots for example in titles] == [
        (("title", "The [old] sea"),),
        (("title", "Emma"),),
    ]
    where = "item 2" if name == "a.json" else "line 2" if name == "a.jsonl" else "line 4"
    assert f"{where}: 'author' is missing" in refused(path, Columns(("title", "author"), "blurb"))
    assert "'year'" in refused(path, Columns(("year",), "blurb"))
    assert "'text'" in refused(path, Columns(("title",)))
    refused(path)


def test_the_usual_files_go_with_a_template_too(tmp_path: Path) -> None:
    mill = Example(parse_table("name[The Mill], food[Thai]"), "The Mill is Thai.")
    path = tmp_path / "a.csv"
    path.write_text('mr,ref\n"name[The Mill], food[Thai]",The Mill is Thai.\n', encoding="utf-8")
    assert read_examples(path, Columns(("food", "name"))) == [mill]
    assert "line 2: the table has no 'area'" in refused(path, Columns(("area",)))
    path = tmp_path / "a.jsonl"
    item = {"table": dict(mill.table.slots), "said": mill.text}
    path.write_text(json.dumps(item), encoding="utf-8")
    assert read_examples(path, Columns(("food",), "said")) == [mill]
    item = {"table": [["The Mill", "food", "Thai"]], "text": mill.text}
    path.write_text(json.dumps(item), encoding="utf-8")
    assert read_examples(path)[0].table.is_triples
    assert "line 1: the table has no 'food'" in refused(path, Columns(("food",)))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            "title,blurb,title\nA,B,C\n",
            "several columns 'title'; the columns are title, blurb, title",
        ),
        ("title,blurb\nA,B,C\n", "line 2: 3 fields under 2 columns"),
        ("title,blurb\nA, \n", "line 2: the text is empty"),
        ("title,blurb\n,B\n", "line 2: the table is empty"),
        ("title,,blurb\nA,,B\nA,x,B\n", "line 3: slot '': a slot name is missing"),
        ("title,blurb\n" + "x" * 9_000 + ",B\n", "line 2: .*longer than 8,000"),
        ("title,blurb\nA\x01,B\n", "line 2: slot 'title': control character"),
    ],
)
def test_bad_columns(content: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        read_csv(content.encode(), "a.csv", Columns(text="blurb"))
