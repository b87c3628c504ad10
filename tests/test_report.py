"""The tables of README and docs say what the committed results say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "bench" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_rendered_from_the_results() -> None:
    report, tables = load_report(), 0
    for page in report.PAGES:
        text = page.read_text(encoding="utf-8")
        tables += text.count("<!-- table: ")
        assert report.rendered(text) == text, f"{page.name}: run python bench/report.py"
    assert tables >= 3


def test_a_table_shows_mean_and_spread() -> None:
    scores = {"bleu": 0.5, "nist": 8.0, "meteor": 0.4, "rouge_l": 0.7, "cider": 2.0}
    row = {
        "method": "prefix", "lr": 0.001, "slot_errors": 0.02, "trained": 4000, "kept": 1000,
        "seconds": 9.6, "peak_memory": 2_000_000, "scores": scores,
    }  # fmt: skip
    record = {
        "date": "2000-01-01", "machine": "m", "command": "c", "model": "tiny", "data": "sample",
        "tables": 7, "beams": 5, "rows": [row, {**row, "scores": {**scores, "bleu": 0.6}}],
    }  # fmt: skip
    lines = load_report().methods_table(record).splitlines()
    assert lines[2] == (
        "| prefix | 0.001 | 2 | 55.0 ± 7.1 | 8.00 ± 0.00 | 40.0 ± 0.0 | 70.0 ± 0.0 | 2.00 ± 0.00"
        " | 2.0 ± 0.0 | 4,000 | 1,000 | 10 ± 0 | 2 ± 0 |"
    )
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[-1] == "Measured 2000-01-01: tiny on sample, 7 test tables, beam 5; m; `c`."
