"""WebNLG and DART, the paper's other tasks for GPT-2, in the formats they are released in.

WebNLG (Gardent et al., 2017; releases 2017 to 3.0) is XML, a folder of files for each split:
`<entry>` holds `<mtriple>subject | predicate | object</mtriple>` and its `<lex>` sentences, in the
enriched releases (Castro Ferreira et al., 2018) as a `<text>` among others. DART (Nan et al., 2021)
is a JSON list of `{"tripleset": [[subject, predicate, object]], "annotations": [{"text": ...}]}`,
or XML like WebNLG's, with the sources of sentences in place of their marks. Both are read as the
prefix-tuning paper's code does: WebNLG's modified triples as they stand, with sentences marked
good; DART's predicates in lower case.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mingpt_prefix.data.parsing import LeftOut, checked_example, located, not_empty
from mingpt_prefix.data.tables import Example, table_from_triples
from mingpt_prefix.errors import DataError, MingptPrefixError, printable

_WEBNLG_TEST = "testdata_with_lex.xml"
_TRIPLES = ("mtriple", "otriple")  # the second in some enriched files
_GOOD = ("good", "")
_MARKS = (*_GOOD, "bad", "tofix")


def read_webnlg(
    data: bytes, name: str, _columns: object = None, left_out: LeftOut | None = None
) -> list[Example]:
    """Read WebNLG's or DART's XML bytes; `name` is for messages. A document type, with which alone
    entities could be declared, is refused.

    Raises:
        DataError: naming the file, the entry and what is wrong.
    """
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException:
        raise DataError(f"{name}: a document type or entities in it, which are not read") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{name}: not valid XML: {printable(str(error), 100)}") from None
    if root.tag != "benchmark":
        found = f"<{printable(root.tag)}>"
        raise DataError(f"{name}: not WebNLG's XML: {found} stands where <benchmark> does there")
    marks = {lex.get("comment", "").lower() for lex in root.iter("lex")}
    is_dart = bool(marks) and marks.isdisjoint(_MARKS)
    examples, counts = [], Counter()
    for number, entry in enumerate(root.iter("entry"), 1):
        where = f"{name}: entry {number} ({printable(entry.get('eid', 'without eid'))})"
        try:
            examples += located(_entry_examples(entry, is_dart, counts), where)
        except MingptPrefixError as error:
            raise DataError(f"{where}: {error}") from None
    return not_empty(examples, name, counts, left_out)


def _entry_examples(entry: Element, is_dart: bool, left_out: Counter[str]) -> list[Example]:
    triples = []
    for element in entry.iterfind("modifiedtripleset/*"):
        if element.tag not in _TRIPLES:
            continue
        parts = [part.strip() for part in (element.text or "").split(" | ")]
        if len(parts) != 3:
            shown = printable(element.text or "")
            raise DataError(f"'{shown}' is not 'subject | predicate | object'")
        triples.append(_lower_predicate(parts) if is_dart else parts)
    table, examples, sentences = table_from_triples(triples), [], entry.findall("lex")
    left_out.update([] if sentences else ["entries without a sentence"])
    for element in sentences:
        enriched = element.find("text")
        if element.get("lang", "en") != "en":
            left_out["sentences in other languages"] += 1
        elif not is_dart and element.get("comment", "").lower() not in _GOOD:
            left_out["sentences not marked good"] += 1
        elif enriched is not None and not (enriched.text or "").strip():
            left_out["empty sentences"] += 1
        else:
            text = element.text if enriched is None else enriched.text
            examples.append(checked_example(table, text or ""))
    return examples


def webnlg_files(folder: Path) -> list[Path]:
    """The XML files of a split's folder, in a fixed order; none where there are none.

    The test folder of the 2017 release holds its sentences twice more, in part or left out.
    """
    if not folder.is_dir():
        return []
    if (folder / _WEBNLG_TEST).is_file():
        return [folder / _WEBNLG_TEST]
    return sorted(path for path in folder.rglob("*.xml") if path.is_file())


def dart_files(folder: Path, split: str) -> list[Path]:
    """The file of a split under its official name, as `dart-v1.1.1-full-train.json`, or as XML."""
    stem = f"dart-v*-full-{split}"
    return sorted(folder.glob(f"{stem}.json")) or sorted(folder.glob(f"{stem}.xml"))


def dart_examples(item: dict, left_out: Counter[str]) -> list[Example]:
    """The examples of one item of DART's list; a sentence that is empty is left out, and counted.

    Raises:
        DataError, TableError: saying what is wrong.
    """
    triples, annotations = item["tripleset"], item.get("annotations")
    if not isinstance(triples, list) or not isinstance(annotations, list):
        raise DataError('an object {"tripleset": [...], "annotations": [...]} is expected')
    table = table_from_triples([_lower_predicate(triple) for triple in triples])
    texts = [a.get("text") if isinstance(a, dict) else None for a in annotations]
    if not all(isinstance(text, str) for text in texts):
        raise DataError('an annotation must be an object {"text": "..."}')
    left_out["empty sentences"] += sum(not text.strip() for text in texts)
    return [checked_example(table, text) for text in texts if text.strip()]


def _lower_predicate(triple: object) -> Sequence[str]:
    if isinstance(triple, list) and len(triple) == 3 and isinstance(triple[1], str):
        return [triple[0], triple[1].lower(), triple[2]]
    return triple
