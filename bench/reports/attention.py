"""Markdown of a record of bench/attention.py."""

from reports.render import ending, table

PEERS = ("cat + SDPA", "FlexAttention", "flash, concatenated")


def attention_table(record: dict) -> str:
    """A line a shape and pass: ours, and how many times as long the others take."""
    heads = ("shape", "P", "H", "pass", "ours, replayed p20 / p50 / p80 (µs)", "eager (µs)",
             "TFLOP/s", "of the ceiling (%)", "moved (MB)", "peak (MB)",
             *(f"{peer} / ours" for peer in PEERS))  # fmt: skip
    lines = []
    found = {_key(row): row for row in record["attention"]}
    for row in record["attention"]:
        shown = row["method"] == "ours" and (row["pass"] == "both" or "E2E" in row["shape"]["name"])
        if shown:
            shape = row["shape"]
            others = [found.get(_key({**row, "method": peer})) for peer in PEERS]
            mark = "*" if row.get("in_cache") else ""
            lines.append((
                shape["name"], str(shape["prefix"]), str(shape["heads"]), row["pass"],
                _micros(row["replay"]), f"{1e6 * row['eager'][1]:.3g}", f"{row['tflops']:.3g}",
                f"{100 * row['share_of_ceiling']:.0f}{mark}", f"{row['bytes_moved'] / 1e6:,.3g}",
                f"{row['peak_bytes'] / 1e6:,.3g}",
                *("–" if o is None else f"{_ratio(o, row):.2f}" for o in others),
            ))  # fmt: skip
    marked = any(row.get("in_cache") for row in record["attention"])
    note = "\\* by the rate of memory, which means nothing here: all of it fits in the L2 cache"
    parts = [table(heads, lines), note * marked, one_token_table(record)]
    return "\n\n".join([*filter(None, parts), ending(record, f"{record['dtype']}, D 64; ")])


def one_token_table(record: dict) -> str:
    """Decoding: a line a batch and context."""
    heads = ("decoding", "context", "ours, replayed p20 / p50 / p80 (µs)", "eager (µs)",
             "moved (MB)", "cat + SDPA / ours")  # fmt: skip
    lines = []
    rows = {(r["batch"], r["context"], r["method"]): r for r in record["one_token"]}
    for (batch, context, method), row in rows.items():
        if method == "ours":
            other = rows.get((batch, context, "cat + SDPA"))
            lines.append((
                f"B {batch}", str(context), _micros(row["replay"]), f"{1e6 * row['eager'][1]:.3g}",
                f"{row['bytes_moved'] / 1e6:.3g}", f"{_ratio(other, row):.2f}" if other else "–",
            ))  # fmt: skip
    return table(heads, lines)


def _key(row: dict) -> tuple:
    return *row["shape"].values(), row["pass"], row["method"]


def _micros(seconds: list[float]) -> str:
    return " / ".join(f"{1e6 * s:.3g}" for s in seconds)


def _ratio(other: dict, own: dict) -> float:
    return other["replay"][1] / own["replay"][1]
