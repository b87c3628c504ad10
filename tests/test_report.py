"""README's tables say what the committed results say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "bench" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_rendered_from_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table: ") >= 1
    assert load_report().rendered(text) == text


def test_a_table_shows_mean_and_spread() -> None:
    row = {"method": "prefix", "lr": 0.001, "slot_errors": 0.02}
    record = {
        "date": "2000-01-01", "machine": "m", "torch": "2", "command": "c",
        "rows": [{**row, "bleu": 0.5}, {**row, "bleu": 0.6}],
    }  # fmt: skip
    table = load_report().methods_table(record)
    assert "| prefix | 0.001 | 2 | 55.0 ± 7.1 | 2.0 ± 0.0 |" in table.splitlines()
