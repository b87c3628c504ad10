"""The tables of README and docs say what the committed results say."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_report():
    sys.path.insert(0, str(ROOT / "bench"))  # as for a script that lies there
    try:
        return importlib.import_module("report")
    finally:
        sys.path.pop(0)


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


def test_a_table_of_attention_shows_who_takes_how_much_longer() -> None:
    shape = {"name": "E2E, B 10", "prefix": 5, "heads": 12}
    common = {"shape": shape, "pass": "both", "eager": [2e-5, 3e-5, 4e-5], "tflops": 12.34,
              "share_of_ceiling": 0.5, "bytes_moved": 2e6, "peak_bytes": 3e6}  # fmt: skip
    decode = {"batch": 8, "context": 64, "eager": [1e-5] * 3, "bytes_moved": 1e6, "peak_bytes": 1}
    record = {
        "date": "2000-01-01", "machine": "m", "command": "c", "dtype": "bfloat16",
        "attention": [
            {**common, "method": "ours", "replay": [1e-5, 2e-5, 3e-5]},
            {**common, "method": "cat + SDPA", "replay": [4e-5, 5e-5, 6e-5]},
            {"shape": shape, "method": "FlexAttention", "failed": "no"},
        ],
        "one_token": [
            {**decode, "method": "ours", "replay": [1e-5] * 3},
            {**decode, "method": "cat + SDPA", "replay": [3e-5] * 3},
        ],
    }  # fmt: skip
    text = load_report().attention_table(record)
    wanted = "| E2E, B 10 | 5 | 12 | both | 10 / 20 / 30 | 30 | 12.3 | 50 | 2 | 3 | 2.50 | – | – |"
    assert wanted in text
    assert "| B 8 | 64 | 10 / 10 / 10 | 10 | 1 | 3.00 |" in text
    assert "- FlexAttention at E2E, B 10, P 5, H 12: no" in text
    assert text.endswith("Measured 2000-01-01: bfloat16, D 64; m; `c`.")


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    text = "<!-- table: attention -->\nold\n<!-- end -->"
    assert "Not measured yet." in load_report().rendered(text, tmp_path)
