"""Markdown of a record of bench/attention.py."""

PEERS = ("cat + SDPA", "FlexAttention", "flash, concatenated")


def attention_table(record: dict) -> str:
    """A line a shape and pass: ours, and how many times as long the others take."""
    heads = ("shape", "P", "H", "pass", "ours, replayed p20 / p50 / p80 (µs)", "eager (µs)",
             "TFLOP/s", "of the ceiling (%)", "moved (MB)", "peak (MB)",
             *(f"{peer} / ours" for peer in PEERS))  # fmt: skip
    lines = [_line(heads), "|---" * len(heads) + "|"]
    found = {_key(row): row for row in record["attention"]}
    for row in record["attention"]:
        shown = row["method"] == "ours" and (row["pass"] == "both" or "E2E" in row["shape"]["name"])
        if shown:
            shape = row["shape"]
            others = [found.get(_key({**row, "method": peer})) for peer in PEERS]
            lines.append(_line((
                shape["name"], str(shape["prefix"]), str(shape["heads"]), row["pass"],
                _micros(row["replay"]), f"{1e6 * row['eager'][1]:.3g}", f"{row['tflops']:.3g}",
                f"{100 * row['share_of_ceiling']:.0f}", f"{row['bytes_moved'] / 1e6:,.3g}",
                f"{row['peak_bytes'] / 1e6:,.3g}",
                *("–" if o is None else f"{_ratio(o, row):.2f}" for o in others),
            )))  # fmt: skip
    failed = [row for row in record["attention"] if "failed" in row]
    notes = [
        f"- {row['method']} at {row['shape']['name']}, P {row['shape']['prefix']},"
        f" H {row['shape']['heads']}: {row['failed']}"
        for row in failed
    ]
    measured = f"{record['dtype']}, D 64; {record['machine']}; `{record['command']}`."
    parts = ["\n".join(lines), one_token_table(record), "\n".join(notes)]
    return "\n\n".join([*filter(None, parts), f"Measured {record['date']}: {measured}"])


def one_token_table(record: dict) -> str:
    """Decoding: a line a batch and context."""
    heads = ("decoding", "context", "ours, replayed p20 / p50 / p80 (µs)", "eager (µs)",
             "moved (MB)", "cat + SDPA / ours")  # fmt: skip
    lines = [_line(heads), "|---" * len(heads) + "|"]
    rows = {(r["batch"], r["context"], r["method"]): r for r in record["one_token"]}
    for (batch, context, method), row in rows.items():
        if method == "ours":
            other = rows[batch, context, "cat + SDPA"]
            lines.append(_line((
                f"B {batch}", str(context), _micros(row["replay"]), f"{1e6 * row['eager'][1]:.3g}",
                f"{row['bytes_moved'] / 1e6:.3g}", f"{_ratio(other, row):.2f}",
            )))  # fmt: skip
    return "\n".join(lines)


def _key(row: dict) -> tuple:
    return *row["shape"].values(), row.get("pass"), row["method"]


def _micros(seconds: list[float]) -> str:
    return " / ".join(f"{1e6 * s:.3g}" for s in seconds)


def _ratio(other: dict, own: dict) -> float:
    return other["replay"][1] / own["replay"][1]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
