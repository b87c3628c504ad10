"""Markdown of a record of bench/bank.py."""

import statistics


def bank_table(record: dict) -> str:
    """Markdown of a record of bench/bank.py: a line a task, and in words the rest."""
    heads = ("task", "prefix rows", "tables", "right calls (%)", "BLEU, called by the model",
             "BLEU, chosen by hand")  # fmt: skip
    calls = record.get("calls", ())  # none where batches alone were timed
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"] if calls else []
    for row in calls:
        cells = [row["task"], str(row["rows"]), str(row["tables"])]
        shares = (row["right_calls"], row["bleu_called"], row["bleu_by_hand"])
        cells += [f"{100 * share:.1f}" for share in shares]
        lines.append(f"| {' | '.join(cells)} |")
    sizes = record["batches"]
    pairs = zip(sizes["seconds"]["many prefixes"], sizes["seconds"]["one prefix"], strict=True)
    ratios = [many / one for many, one in pairs]
    fifths = statistics.quantiles(ratios, n=5, method="inclusive")
    what = f"{sizes['batch_size']} rows over {sizes['prefixes']} prefixes of {sizes['rows']} rows"
    if prose := record.get("prose"):
        share = f"{100 * prose['false_calls']:.1f} % of {prose['prompts']} prompts"
        lines += ["", f"- plain English: {share} are followed by a call"]
    lines.append(
        f"- a batch of {what} on average takes {statistics.median(ratios):.2f}"
        f" ({fifths[0]:.2f} to {fifths[3]:.2f}) times as long as one whose rows share one prefix"
    )
    how = f"{record['model']}, {record['machine']}; `{record['command']}`"
    return "\n".join([*lines, "", f"Measured {record['date']}: {how}."])
