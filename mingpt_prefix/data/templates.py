"""A text of the user's own around a table's values: `"{title} by {author}"`.

    text_format = template_format("{title} by {author}")     # what is saved with a prefix
    fill(text_format, {"title": "Emma", "author": "Austen"})  # "Emma by Austen"

Fields are plain names in braces, looked up among the table's slots; `{{` and `}}` are braces. There
are no format specifications, attributes or indices: a template may come with a stranger's file.
"""

import string
import unicodedata
from collections.abc import Mapping

from mingpt_prefix.errors import ConfigError, TableError, printable

TEMPLATE_FORMAT = "template-v1:"
MAX_TEMPLATE_CHARS = 1_000
TEXT_FORMAT = "bar-v1"  # the form of the paper, where there is no template


def template_format(template: str) -> str:
    """The name of the text format that this template is.

    Raises:
        ConfigError: for a template that cannot be read.
    """
    text_format = TEMPLATE_FORMAT + template
    template_fields(text_format)
    return text_format


def text_format_of(template: str) -> str:
    """The name of the text format of a run: that of its template, or without one the paper's.

    Raises:
        ConfigError: for a template that cannot be read.
    """
    return template_format(template) if template else TEXT_FORMAT


def template_fields(text_format: str) -> tuple[str, ...]:
    """The names of the fields, each once, in the order of their first appearance.

    Raises:
        ConfigError: for a template that cannot be read.
    """
    return tuple(dict.fromkeys(name for _, name in _parts(text_format) if name is not None))


def fill(text_format: str, values: Mapping[str, str]) -> str:
    """The template's text with a value for each field.

    Raises:
        ConfigError: for a template that cannot be read.
        TableError: for a field that has no value.
    """
    text = ""
    for literal, name in _parts(text_format):
        text += literal
        if name is None:
            continue
        if name not in values:
            what = f"the table has no '{printable(name)}', which the template has a field for"
            raise TableError(what, 0)
        text += values[name]
    return text


def _parts(text_format: str) -> list[tuple[str, str | None]]:
    """(text, the name of the field after it or None) of all parts."""
    template = text_format.removeprefix(TEMPLATE_FORMAT)
    called = f"template '{printable(template)}'"
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ConfigError(f"{called}: longer than {MAX_TEMPLATE_CHARS:,} characters")
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in template):
        raise ConfigError(f"{called}: control characters and line ends cannot stand in it")
    parts = []
    try:
        for literal, name, specification, conversion in string.Formatter().parse(template):
            if specification or conversion:
                raise ValueError("a field is a plain name, with neither ':' nor '!'")
            if name is not None and not name.strip():
                raise ValueError("a field has no name")
            parts.append((literal, name if name is None else name.strip()))
    except ValueError as error:
        raise ConfigError(f"{called}: {error}") from None
    if all(name is None for _, name in parts):
        raise ConfigError(f"{called}: no field in it, as {{name}} would be one")
    return parts
