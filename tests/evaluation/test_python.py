"""From Python, tables to text: the public pipeline, the example and the guide, and what a notebook
shows."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mingpt_prefix
import sample
from mingpt_prefix import (
    ConfigError,
    Pipeline,
    PrefixError,
    PrefixKV,
    TableError,
    load_model,
    load_pipeline,
    parse_table,
    tiny,
)
from mingpt_prefix.errors import CheckpointError

ROOT = Path(__file__).parents[2]
TABLE = "name[The Mill], eatType[pub]"
SPELLINGS = [
    TABLE,
    {"name": "The Mill", "eatType": "pub"},
    '{"name": "The Mill", "eatType": "pub"}',
    '{"table": {"name": "The Mill", "eatType": "pub"}}',
    parse_table(TABLE),
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(tiny.PREFIX, device="cpu")


def test_the_example_runs_and_says_what_sample_py_says(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, str(ROOT / "examples" / "tables_to_text.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 7 and lines[0].startswith("Pipeline(the shipped prefix ")
    table = "name[The Mill], eatType[pub], food[French], area[riverside]"
    assert sample.main(["--table", table, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{lines[1]}\n"
    assert "The Blue Door" in lines[2] and "']' is missing" in lines[-1]


def test_the_guide_s_example_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0], {})
    assert capsys.readouterr().out.count("The Mill") >= 3


def test_every_spelling_is_one_table(pipeline: Pipeline) -> None:
    said = pipeline([*SPELLINGS, [["The Mill", "type", "pub"]]], beams=1)
    assert len(said) == 6 and len(set(said[:5])) == 1 and "The Mill" in said[0]


def test_settings_are_those_of_decoding(pipeline: Pipeline) -> None:
    assert len(pipeline([TABLE], max_new_tokens=3)[0].split()) <= 3
    sampled = pipeline([TABLE] * 4, beams=1, temperature=1.5, seed=3)
    assert len(set(sampled)) > 1
    assert sampled == pipeline([TABLE] * 4, beams=1, temperature=1.5, seed=3)
    assert pipeline([]) == []


def test_bad_tables_are_named(pipeline: Pipeline) -> None:
    with pytest.raises(TableError, match="tables: number 1: .*is missing") as caught:
        pipeline([TABLE, "name[The Mill"])
    assert caught.value.position == 4
    for alone in (TABLE, SPELLINGS[1], SPELLINGS[-1]):
        with pytest.raises(ConfigError, match="pass a list of tables"):
            pipeline(alone)
    with pytest.raises(ConfigError, match="top-p need beams 1"):
        pipeline([TABLE], temperature=1.0)


def test_what_is_loaded(pipeline: Pipeline, small_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path(__file__).parents[1] / "kept"
    shutil.copytree(kept / "run-2", "run")
    with pytest.raises(CheckpointError, match="the run has not finished"):
        load_pipeline("run", str(kept / "base"))
    text = (Path("run") / "run.json").read_text().replace('"result": null', '"result": {}')
    (Path("run") / "run.json").write_text(text)
    assert "the prefix of run on" in repr(load_pipeline("run", str(kept / "base"), "cpu"))
    with pytest.raises(CheckpointError, match="this is a model's folder"):
        load_pipeline(small_model)
    with pytest.raises(PrefixError, match="no such file"):
        load_pipeline("nothing.safetensors")
    assert load_pipeline(model=str(small_model)).prefix is None


def test_what_a_notebook_shows(pipeline: Pipeline) -> None:
    assert repr(pipeline).startswith(f"Pipeline(the prefix {tiny.PREFIX} on tiny, on cpu (")
    bare = Pipeline(load_model("tiny", "cpu"), pipeline.tokenizer)
    assert repr(bare).startswith("Pipeline(GPT2(tiny: ")
    prefix = PrefixKV.from_tensor(torch.zeros(2, 2, 3, 4, 8))
    assert repr(prefix) == "PrefixKV(3 rows, 2 layers, 4 heads of 8)"
    assert "2 prefixes, 6 rows" in repr(PrefixKV.pack([prefix, prefix]))
    for each in (pipeline, bare.model, prefix, parse_table(TABLE), pipeline.tokenizer):
        assert len(repr(each)) < 250 and repr(each).isprintable()


def test_every_public_name_is_documented() -> None:
    for name in mingpt_prefix.__all__:
        found = getattr(mingpt_prefix, name)
        assert inspect.getdoc(found), name
        if inspect.isfunction(found):
            assert re.search("[Rr]aise", found.__doc__), name
