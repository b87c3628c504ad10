"""Markdown of the records of bench/speed.py, bench/decode.py and bench/sweep.py."""

import statistics

from measure.timing import quantiles

from reports.render import ending, spread, table

RATIOS = (
    ("fine-tuning", "prefix"),
    ("prefix, eager", "prefix"),
    ("fine-tuning, eager", "fine-tuning"),
    ("PEFT prefix", "prefix"),
    ("transformers fine-tuning", "fine-tuning"),
    ("transformers fine-tuning, compiled", "fine-tuning"),
)


def speed_table(record: dict) -> str:
    """A table a model, and what the methods' ratios are."""
    return "\n\n".join([*map(_shape, record["shapes"]), ending(record)])


def _shape(shape: dict) -> str:
    heads = ("method", "step p20 / p50 / p80 (ms)", "forward / backward / optimizer (%)",
             "tokens/s", "share of matmul rate (%)", "peak memory (MB)",
             "optimizer state (MB)", "the poster's 5 epochs (min)")  # fmt: skip
    what = f"{shape['model']}, {shape['dtype']}, {shape['attention']} attention"
    sizes = f"batches of {shape['batch_size']}, {shape['prefix_length']} prefix rows"
    rows = [row for row in shape["rows"] if row["seconds"]]
    methods = table(heads, map(_cells, rows))
    return f"**{what}**, {sizes}:\n\n" + "\n".join([methods, "", *_notes(shape, rows)])


def _cells(row: dict) -> tuple[str, ...]:
    split, peak = (row.get("shares") or {}).values(), row.get("peak_memory")
    memory = "–" if peak is None else f"{peak / 1e6:,.0f}"
    if reserved := row.get("reserved_memory"):
        memory += f" ({reserved / 1e6:,.0f} reserved)"
    state = row.get("optimizer_bytes")
    return (
        row["method"] + (", graphs" if row.get("graphs") else ""),
        spread(row["seconds"], 1e3, ",.4g"),
        " / ".join(f"{100 * share:.0f}" for share in split) or "–",
        f"{row['tokens_per_second']:,.0f}",
        f"{100 * row['utilisation']:.0f}",
        memory,
        "–" if state is None else f"{state / 1e6:,.1f}",
        f"{row['poster_minutes']:,.1f}",
    )


def _notes(shape: dict, rows: list[dict]) -> list[str]:
    by_name, notes = {row["method"]: row for row in rows}, []
    for slow, fast in RATIOS:
        if slow in by_name and fast in by_name:
            pairs = zip(by_name[slow]["seconds"], by_name[fast]["seconds"], strict=False)
            low, middle, high = quantiles([a / b for a, b in pairs])
            notes.append(f"- {slow} / {fast}: {middle:.2f} ({low:.2f} to {high:.2f})")
    if {"prefix", "fine-tuning"} <= set(by_name):
        floor = by_name["fine-tuning"]["flops"] / by_name["prefix"]["flops"]
        notes.append(f"- by the count of operations, fine-tuning / prefix would be {floor:.2f}")
    if (peers_too := shape.get("peers_keep_memory")) is not None:
        rest = "the peers do too, with a flag" if peers_too else "the peers' scripts do not"
        notes.append(f"- ours keep the memory they free (glibc's mallopt), and {rest}")
    for row in rows:
        if graphs := row.get("graphs"):
            notes.append(
                f"- {row['method']}: steps are CUDA graphs, {graphs['count']} of them, captured in"
                f" {graphs['seconds']:.1f} s before"
            )
        if seconds := row.get("compile_seconds"):
            notes.append(f"- {row['method']}: compiled in {seconds:.0f} s before")
    return notes


def decode_table(record: dict) -> str:
    """A line a model, number of beams and method."""
    rows, cells = record["decoding"], []
    models = {row.get("model", record["model"]) for row in rows}
    tokens = record["batch_size"] * record["new_tokens"]
    found = {(row.get("model"), row["beams"], row["method"]): row["seconds"] for row in rows}
    for (model, beams, method), seconds in found.items():
        peer = found.get((model, beams, "PEFT"))
        pairs = zip(peer or (), seconds, strict=peer is not None)
        ratio = f"{statistics.median(a / b for a, b in pairs):.2f}" if peer else "–"
        shown = (str(beams), method, spread(seconds, 1, ".3g"))
        speed = f"{tokens / statistics.median(seconds):,.0f}"
        cells.append(((model,) if len(models) > 1 else ()) + (*shown, speed, ratio))
    heads = ("beams", "method", "batch p20 / p50 / p80 (s)", "new tokens/s", "times PEFT")
    heads = ("model", *heads) if len(models) > 1 else heads
    sizes = f"batches of {record['batch_size']}, {record['new_tokens']} new tokens each"
    how = f"{record['dtype']}, {record['attention']} attention"
    what = f"{record['model']}, random weights, {how}, {record['prefix_length']} prefix rows"
    lines = [table(heads, cells), "", *map(_agreement, record.get("checks", ()))]
    return "\n".join(
        [*lines, *([""] if len(lines) > 2 else []), ending(record, f"{what}, {sizes}; ")]
    )


def _agreement(check: dict) -> str:
    """Of which tokens two ways to decode gave the same."""
    first = check["first_difference"]
    where = "" if first is None else f", the first that differs is token {first + 1} of a row"
    what = f"{check['model']}, beam {check['beams']}: ours and {check['against']}"
    return f"- {what} agree in {100 * check['equal_tokens']:.1f} % of the tokens{where}"


def sweep_table(record: dict) -> str:
    """A line per model and number of members."""
    cells = []
    for row in record["sweeps"]:
        ms = [f"{1e3 * row[name]:,.0f}" for name in ("step_seconds", "round_seconds")]
        speed = [f"{row['tokens_per_second']:,.0f}", f"{row['times_as_fast']:.2f}"]
        memory = "–" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:,.0f}"
        cells.append((row["model"], str(row["members"]), *ms, *speed, memory))
    heads = ("model", "prefixes", "a step of one (ms)", "a step of all (ms)", "tokens/s")
    heads += ("times as fast as one after the other", "peak memory (MB)")
    return f"{table(heads, cells)}\n\n{ending(record)}"
