"""The tables of README and docs say what the committed results say."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
    assert len(lines) == 5
    record["rows"] = [{**row, "trained_together": 2} for row in record["rows"]]
    assert "The prefixes of 2 seeds were trained in one run" in load_report().methods_table(record)


def test_a_table_of_attention_shows_who_takes_how_much_longer() -> None:
    shape = {"name": "E2E, B 10", "prefix": 5, "heads": 12}
    common = {"shape": shape, "pass": "both", "eager": [2e-5, 3e-5, 4e-5], "tflops": 12.34,
              "share_of_ceiling": 0.5, "in_cache": True, "bytes_moved": 2e6,
              "peak_bytes": 3e6}  # fmt: skip
    decode = {"batch": 8, "context": 64, "eager": [1e-5] * 3, "bytes_moved": 1e6, "peak_bytes": 1}
    record = {
        "date": "2000-01-01", "machine": "m", "command": "c", "dtype": "bfloat16",
        "attention": [
            {**common, "method": "ours", "replay": [1e-5, 2e-5, 3e-5]},
            {**common, "method": "cat + SDPA", "replay": [4e-5, 5e-5, 6e-5]},
        ],
        "failed": [{"part": "E2E, B 10, P 5, H 12, FlexAttention", "why": "no"}],
        "one_token": [
            {**decode, "method": "ours", "replay": [1e-5] * 3},
            {**decode, "method": "cat + SDPA", "replay": [3e-5] * 3},
        ],
    }  # fmt: skip
    text = load_report().attention_table(record)
    wanted = "| E2E, B 10 | 5 | 12 | both | 10 / 20 / 30 | 30 | 12.3 | 50* | 2 | 3 | 2.50 | – | – |"
    assert wanted in text
    assert "| B 8 | 64 | 10 / 10 / 10 | 10 | 1 | 3.00 |" in text
    assert "\\* by the rate of memory, which means nothing here" in text
    assert "- failed: E2E, B 10, P 5, H 12, FlexAttention: no" in text
    assert text.endswith("Measured 2000-01-01: bfloat16, D 64; m; `c`.")


def test_a_table_of_a_gpu_shows_graphs_beside_eager_steps_and_memory_that_is_reserved() -> None:
    common = {"tokens_per_second": 100.0, "utilisation": 0.5, "optimizer_bytes": 2e6, "flops": 1.0,
              "poster_minutes": 3.0, "peak_memory": 4e9, "reserved_memory": 5e9}  # fmt: skip
    rows = [
        {**common, "method": "prefix", "seconds": [0.01] * 3, "shares": None,
         "graphs": {"count": 7, "seconds": 2.5}},
        {**common, "method": "prefix, eager", "seconds": [0.02] * 3,
         "shares": {"forward": 0.3, "backward": 0.6, "optimizer": 0.1}},
        {"method": "fine-tuning", "seconds": [0.03], "tokens_per_second": 1.0, "utilisation": 0.1,
         "poster_minutes": 3.0, "flops": 1.5},  # as a time limit leaves it
        {**common, "method": "transformers fine-tuning, compiled", "seconds": [0.06] * 3,
         "compile_seconds": 41.2},
    ]  # fmt: skip
    shape = {"model": "gpt2", "dtype": "bf16", "attention": "triton", "batch_size": 10,
             "prefix_length": 5, "peers_keep_memory": None, "rows": rows}  # fmt: skip
    failed = [{"part": "gpt2, PEFT prefix", "why": "ImportError: no"}]
    record = {"date": "2000-01-01", "machine": "m", "command": "c", "failed": failed}
    text = load_report().speed_table({**record, "shapes": [shape]})
    assert "| prefix, graphs | 10 / 10 / 10 | – | 100 | 50 | 4,000 (5,000 reserved) |" in text
    assert "| prefix, eager | 20 / 20 / 20 | 30 / 60 / 10 | 100 | 50 |" in text
    assert "| fine-tuning | 30 / 30 / 30 | – | 1 | 10 | – | – | 3.0 |" in text
    assert "- prefix, eager / prefix: 2.00 (2.00 to 2.00)" in text
    assert "- transformers fine-tuning, compiled / fine-tuning: 2.00 (2.00 to 2.00)" in text
    assert "- prefix: steps are CUDA graphs, 7 of them, captured in 2.5 s before" in text
    assert "- transformers fine-tuning, compiled: compiled in 41 s before" in text
    assert "- failed: gpt2, PEFT prefix: ImportError: no\n\nMeasured" in text


def test_a_table_of_decoding_names_its_models_and_does_without_a_peer() -> None:
    record = {
        "date": "2000-01-01", "machine": "m", "command": "c", "model": "gpt2, gpt2-medium",
        "dtype": "bf16", "attention": "triton", "batch_size": 8, "new_tokens": 40,
        "prefix_length": 5, "decoding": [
            {"model": "gpt2", "method": "ours", "beams": 1, "seconds": [1.0, 1.0]},
            {"model": "gpt2", "method": "PEFT", "beams": 1, "seconds": [2.0, 2.0]},
            {"model": "gpt2-medium", "method": "ours", "beams": 1, "seconds": [2.0, 2.0]},
        ],
        "checks": [{"model": "gpt2", "beams": 1, "against": "reference", "equal_tokens": 0.93,
                    "first_difference": 6}],
    }  # fmt: skip
    text = load_report().decode_table(record)
    assert "| gpt2 | 1 | ours | 1 / 1 / 1 | 320 | 2.00 |" in text
    assert "| gpt2-medium | 1 | ours | 2 / 2 / 2 | 160 | – |" in text
    found = (
        "- gpt2, beam 1: ours and reference agree in 93.0 % of the tokens, the first that differs"
    )
    assert f"{found} is token 7 of a row\n\nMeasured" in text


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    text = "<!-- table: attention -->\nold\n<!-- end -->"
    assert "Not measured yet." in load_report().rendered(text, tmp_path)
