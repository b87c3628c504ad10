"""What the tables of all records are made with."""

from collections.abc import Iterable, Sequence

from measure.timing import quantiles


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of these cells."""
    lines = [heads, *rows]
    shown = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([shown[0], "|---" * len(heads) + "|", *shown[1:]])


def spread(values: Sequence[float], unit: float, form: str) -> str:
    """p20 / p50 / p80 of seconds, each times `unit`."""
    return " / ".join(f"{unit * value:{form}}" for value in quantiles(values))


def ending(record: dict, what: str = "") -> str:
    """What failed, if anything did, and how the record was made."""
    failed = [f"- failed: {each['part']}: {each['why']}" for each in record.get("failed", ())]
    how = f"{what}{record['machine']}; `{record['command']}`"
    return "\n".join([*failed, *([""] if failed else []), f"Measured {record['date']}: {how}."])
