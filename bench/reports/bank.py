"""Markdown of a record of bench/bank.py."""

from measure.timing import quantiles

from reports.render import ending, table


def bank_table(record: dict) -> str:
    """A line a task, and in words the rest; batches alone may have been timed."""
    heads = ("task", "prefix rows", "tables", "right calls (%)", "BLEU, called by the model",
             "BLEU, chosen by hand")  # fmt: skip
    rows = []
    for row in record.get("calls", ()):
        shares = (row["right_calls"], row["bleu_called"], row["bleu_by_hand"])
        shown = (f"{100 * share:.1f}" for share in shares)
        rows.append((row["task"], str(row["rows"]), str(row["tables"]), *shown))
    lines = [table(heads, rows)] if rows else []
    if prose := record.get("prose"):
        share = f"{100 * prose['false_calls']:.1f} % of {prose['prompts']} prompts"
        lines += ["", f"- plain English: {share} are followed by a call"]
    if sizes := record.get("batches"):
        pairs = zip(sizes["seconds"]["many prefixes"], sizes["seconds"]["one prefix"], strict=True)
        low, middle, high = quantiles([many / one for many, one in pairs])
        what = f"{sizes['batch_size']} rows over {sizes['prefixes']} prefixes"
        lines.append(
            f"- a batch of {what} of {sizes['rows']} rows on average takes {middle:.2f}"
            f" ({low:.2f} to {high:.2f}) times as long as one whose rows share one prefix"
        )
    return "\n".join([*lines, "", ending(record, f"{record['model']}, ")])
