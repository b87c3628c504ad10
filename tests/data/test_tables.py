"""Tables: the bracket form, JSON objects, and the text a model is given."""

import json

import pytest

from mingpt_prefix.data.spellings import table_from_line
from mingpt_prefix.data.tables import (
    MAX_TABLE_CHARS,
    TEXT_FORMAT,
    Table,
    format_table,
    linearize,
    parse_bars,
    parse_table,
    table_from_json,
    target_text,
)
from mingpt_prefix.data.templates import TEMPLATE_FORMAT, template_fields, template_format
from mingpt_prefix.errors import ConfigError, MingptPrefixError, TableError, printable

MILL = Table((("name", "The Mill"), ("eatType", "pub")))


@pytest.mark.parametrize(
    "text",
    [
        "name[The Mill], eatType[pub]",
        "name[The Mill],eatType[pub]",
        "  name [ The Mill ] ,\teatType[pub]\r\n",
        "name[The Mill],\n  eatType[pub]",
        "name[The Mill], eatType[pub], ...",
        "name[The Mill], eatType[pub], …",
        "name[The Mill], eatType[pub],...",
        "name[The Mill], eatType[pub] ...",
        "name[The Mill], eatType[pub]…  ",
    ],
)
def test_one_table_written_in_many_ways(text: str) -> None:
    assert parse_table(text) == MILL
    assert format_table(parse_table(text)) == "name[The Mill], eatType[pub]"


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("wingspan in m[2.5]", (("wingspan in m", "2.5"),)),
        ("name[Fish, Chips & Co.]", (("name", "Fish, Chips & Co."),)),
        ("name[...]", (("name", "..."),)),
        ("a[b], …[c]", (("a", "b"), ("…", "c"))),
        ("名前[水車], price[£20-25]", (("名前", "水車"), ("price", "£20-25"))),
        ("name[<|endoftext|> | x : y]", (("name", "<|endoftext|> | x : y"),)),
        ("Name[a], name[b]", (("Name", "a"), ("name", "b"))),
    ],
)
def test_any_slot_names_and_values(text: str, slots: tuple[tuple[str, str], ...]) -> None:
    table = parse_table(text)
    assert table.slots == slots
    assert format_table(table) == text
    assert table_from_json(dict(slots)) == table


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("name", 4, "'[' is missing"),
        ("name, food[Thai]", 4, "'[' is missing"),
        ("name]", 4, "'[' is missing"),
        ("name[", 4, "']' is missing"),
        ("name[The Mill, food", 4, "']' is missing"),
        ("name[]", 5, "value of slot 'name' is empty"),
        ("name[ \n ]", 5, "value of slot 'name' is empty"),
        ("name[The [old] Mill]", 9, "'[' inside a value"),
        ("name[[The Mill]]", 5, "'[' inside a value"),
        ("name[The Mill, food[Thai]", 19, "'[' inside a value"),
        ("[The Mill]", 0, "slot name is missing"),
        ("name[The Mill], [Thai]", 16, "slot name is missing"),
        ("name[The Mill], , food[Thai]", 16, "slot name is missing"),
        (", name[The Mill]", 0, "slot name is missing"),
        ("name[The Mill],", 15, "slot name is missing"),
        ("...", 3, "'[' is missing"),
        ("name[a], food[b], name[c]", 18, "slot 'name' is repeated"),
        ("name[a], name [a]", 9, "slot 'name' is repeated"),
        ("name[a] food[b]", 8, "comma is missing"),
        ("name[a]; food[b]", 7, "comma is missing"),
        ("name[a] and so on", 8, "text after"),
        ("name[a]]", 7, "text after"),
        ("name[a], ....", 13, "'[' is missing"),
        ("name[The\x00Mill]", 8, "control character"),
        ("name[The\tMill]", 8, "control character"),
        ("name[The\nMill]", 8, "control character"),
        ("na\nme[The Mill]", 2, "control character"),
        ("name[a],\x0bfood[b]", 8, "control character"),
        ("\x1b[31mname[a]", 0, "control character"),
        ("name[a\x7f]", 6, "control character"),
        ("name[a\x9b]", 6, "control character"),
        ("name[a\u2028b]", 6, "control character"),
        ("name[a\udc80]", 6, "control character"),
        ("name[" + "x" * 9_994 + "]", MAX_TABLE_CHARS, "longer than 8,000"),
        ("x" * 10_000, MAX_TABLE_CHARS, "longer than 8,000"),
        ("name[" + "x" * 5_000, 4, "']' is missing"),
    ],
)
def test_bad_text(text: str, position: int, what: str) -> None:
    with pytest.raises(TableError) as caught:
        parse_table(text)
    assert caught.value.position == position
    assert what in str(caught.value)
    assert f"at character {position}" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_table_has_no_place_to_show(text: str) -> None:
    with pytest.raises(TableError, match="^the table is empty$"):
        parse_table(text)


def test_a_mistake_deep_inside_shows_its_surroundings() -> None:
    text = ", ".join(f"slot{i}[value {i}]" for i in range(50)) + " oops"
    with pytest.raises(TableError, match=r"value 49\] oops'$") as caught:
        parse_table(text)
    assert caught.value.position == text.index("oops")


def test_the_longest_table_is_read_and_one_more_character_is_not() -> None:
    text = "name[" + "x" * (MAX_TABLE_CHARS - 6) + "]"
    assert format_table(parse_table(text)) == text
    with pytest.raises(TableError):
        parse_table(text + " ")


@pytest.mark.parametrize("text", [" " * 8_000, "[" * 8_000, "a" * 8_000, "a[b]," * 1_600])
def test_hopeless_text_is_refused(text: str) -> None:
    with pytest.raises(TableError):
        parse_table(text)


def test_errors_are_value_errors_of_this_project() -> None:
    assert issubclass(TableError, MingptPrefixError)
    assert issubclass(MingptPrefixError, ValueError)


def test_mapping_keeps_order_and_takes_numbers() -> None:
    table = table_from_json({"b": " two ", "a": 1, "c": 2.5, "d": -(10**18)})
    assert table.slots == (("b", "two"), ("a", "1"), ("c", "2.5"), ("d", "-1000000000000000000"))
    assert parse_table(format_table(table)) == table


def test_what_json_has_beside_text_and_numbers() -> None:
    table = table_from_json({"name": "A", "near": None, "familyFriendly": True, "open": False})
    assert table.slots == (("name", "A"), ("familyFriendly", "true"), ("open", "false"))
    assert table_from_line('{"table": {"a": null, "b": true}, "text": "B."}').slots == (
        ("b", "true"),
    )


def test_the_form_a_model_is_given_is_read_back() -> None:
    table = parse_table("name[The Mill : old], eatType[pub], priceRange[£ 20 - 25], oddName[x|y]")
    line = linearize(table)
    assert parse_bars(line) == parse_bars(line.strip()) == table
    assert table_from_line(f"{line.strip()}||The Mill is a pub . ") == table
    # Brackets before the bars are a table's.
    assert table_from_line("name[a||b]").slots == (("name", "a||b"),)
    for bad, position in (("name The Mill", 0), ("a : b | c", 8), ("a : b | a : c", 8), ("", 0)):
        with pytest.raises(TableError, match="'name : value', each name once") as caught:
            parse_bars(bad)
        assert caught.value.position == position


@pytest.mark.parametrize(
    ("obj", "what"),
    [
        ({}, "empty"),
        ({"name": ""}, "empty"),
        ({"name": "  "}, "empty"),
        ({"": "The Mill"}, "slot name is missing"),
        ({"name": None, "food": None}, "empty"),
        ({"name": ["The Mill"]}, "list"),
        ({"name": {"first": "The Mill"}}, "dict"),
        ({1: "The Mill"}, "int"),
        ({"name": float("nan")}, "not finite"),
        ({"name": float("-inf")}, "not finite"),
        ({"name": 10**5_000}, "too large"),
        ({"name": "The\nMill"}, "control character"),
        ({"name": "\ud800"}, "control character"),
        ({"name": "a", " name": "b"}, "repeated"),
        ({"name": "x" * 10_000}, "longer than 8,000"),
        (["name", "The Mill"], "a triple must be"),
        ([["The Mill", "near"]], "a triple must be"),
        ([["The Mill", "rating", 5]], "must be text"),
        ([["", " ", ""]], "a triple is empty"),
        ([["a", "b", "c" * 10_000]], "longer than 8,000"),
        ([], "empty"),
        (3, "int"),
        ("name[The Mill]", "str"),
        (None, "NoneType"),
    ],
)
def test_bad_mapping(obj: object, what: str) -> None:
    with pytest.raises(TableError, match=what) as caught:
        table_from_json(obj)
    assert str(caught.value).isprintable()
    assert caught.value.position >= 0


@pytest.mark.parametrize(
    "obj",
    [
        {"name": "The [old] Mill"},
        {"name": "The Mill], food[Thai"},
        {"na[me": "The Mill"},
        {"name, food": "The Mill"},
        {"{name": "The Mill"},
        [["The Mill", "near", "Café Rouge"], ["[TABLECONTEXT]", "x", ""]],
    ],
)
def test_what_brackets_cannot_write_is_written_as_json(obj: object) -> None:
    table = table_from_json(obj)
    assert format_table(table) == json.dumps(obj, ensure_ascii=False)
    assert table_from_line(format_table(table)) == table


def test_a_mapping_s_position_counts_in_the_written_form() -> None:
    with pytest.raises(TableError) as caught:
        table_from_json({"name": "The Mill", "near": None, "food": []})
    assert caught.value.position == len("name[The Mill], ")


def test_linearize_prints_the_names_of_the_paper() -> None:
    table = parse_table(
        "name[The Mill], eatType[pub], food[Thai], priceRange[high], customer rating[5 out of 5], "
        "area[riverside], familyFriendly[yes], near[Café Rouge], wingSpan[2 m]"
    )
    expected = (
        " name : The Mill | Type : pub | food : Thai | price : high"
        " | customer rating : 5 out of 5 | area : riverside | family friendly : yes"
        " | near : Café Rouge | wingSpan : 2 m"
    )
    assert linearize(table) == linearize(table, TEXT_FORMAT) == expected


def test_triples_are_spelled_as_the_paper_s_code_does_webnlg_s() -> None:
    table = table_from_json(
        [["Aarhus_Airport", "cityServed", '"Aarhus,\n Denmark"'], ["a", "b", "c"]]
    )
    assert linearize(table) == ' | Aarhus_Airport : cityServed : "Aarhus, Denmark" | a : b : c'


TITLE = template_format("{title}, by { author } {{{author}}}")


def test_a_template_spells_a_table() -> None:
    table = Table((("author", "Ann {title} Lee"), ("title", "Sea"), ("year", "1850")))
    assert linearize(table, TITLE) == " Sea, by Ann {title} Lee {Ann {title} Lee}"
    assert template_fields(TITLE) == ("title", "author")
    for lacking in (Table((("title", "Sea"),)), table_from_json([["a", "b", "c"]])):
        with pytest.raises(TableError, match="has no '(author|title)', which the template"):
            linearize(lacking, TITLE)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("", "no field"),
        ("a book", "no field"),
        ("{{title}}", "no field"),
        ("{}", "no name"),
        ("{ }", "no name"),
        ("{title", "expected '}'"),
        ("title}", "Single '}'"),
        ("{title:>9999999999}", "plain name"),
        ("{title!r}", "plain name"),
        ("{title}\n", "line ends"),
        ("{t}" * 400, "longer than 1,000"),
    ],
)
def test_bad_templates(template: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        template_format(template)
    assert str(caught.value).isprintable()
    # So they are in a file that says so.
    with pytest.raises(ConfigError, match=what):
        linearize(MILL, TEMPLATE_FORMAT + template)


def test_a_field_is_a_name_and_reaches_nothing_else() -> None:
    table = table_from_json({"name.__class__": "a", "0[x]": "b"})
    assert linearize(table, template_format("{name.__class__}{0[x]}")) == " ab"
    with pytest.raises(TableError, match="no 'name.upper'"):
        linearize(MILL, template_format("{name.upper}"))


def test_what_a_template_may_hold() -> None:
    for text in ("می\u200cخواهم", "👩\u200d👧", "Zeit\u00adung"):
        assert linearize(MILL, template_format(f"{text} {{name}}")) == f" {text} The Mill"
    for text in ("a\nb", "\x1b[31m", "a\u2028b", "\ud800"):
        with pytest.raises(ConfigError, match="control characters and line ends"):
            linearize(MILL, template_format(text))


def test_target_text_is_one_line_after_one_space() -> None:
    assert target_text(" The Mill \r\n is  a\tpub.\n") == " The Mill is a pub."


@pytest.mark.parametrize("text_format", ["bar-v2", "", "bar-v1 "])
def test_unknown_text_format(text_format: str) -> None:
    with pytest.raises(ConfigError, match=TEXT_FORMAT):
        linearize(MILL, text_format)


def test_printable_cuts_and_escapes() -> None:
    assert printable("The Mill, £5") == "The Mill, £5"
    assert printable("a\nb\x1b\u202e\udc80") == r"a\nb\x1b\u202e\udc80"
    assert printable("x" * 41) == "x" * 39 + "…"
    assert len(printable("\x00" * 40)) == 40
