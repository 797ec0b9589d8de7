"""The same cleaning through datatrove: the same bytes, and the rules as a step with the same reasons."""

import contextlib
import fcntl
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from data.cleaning.datatrove_pipeline import datatrove_executor, rules_step
from data.cleaning.gopher import GopherQuality
from data.cleaning.pipeline import clean
from data.cleaning.settings import CleanConfig
from data.errors import DataError
from data.sources.read import read_documents
from tests.data.cleaning.corpora import Least, Without, corpus, numbers, records, source, tree, write_corpus


@pytest.fixture
def executors():
    pytest.importorskip("datatrove")
    pytest.importorskip("datasketch")
    from loguru import logger

    logger.remove()  # datatrove tells the terminal of every task
    return datatrove_executor


def totals(path: Path) -> dict[str, int]:
    """The statistics of the one step that has some; datatrove writes a plain count as a number."""
    (stats,) = (step["stats"] for step in json.loads(path.read_text()) if step["stats"])
    return {name: value["total"] if isinstance(value, dict) else value for name, value in stats.items()}


def test_tasks_write_the_same_bytes_as_one_process(executors, tmp_path):
    write_corpus(tmp_path)
    sources, settings = corpus(tmp_path)
    clean(sources, tmp_path / "one", settings)
    last = executors("local", sources, tmp_path / "many", settings, tasks=3, workers=1)
    last.run()
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    assert numbers(tmp_path / "many") == numbers(tmp_path / "one")
    stages = (tmp_path / "many.logs").iterdir()
    assert sorted(path.name for path in stages) == ["1_rules", "2_duplicates", "3_final", "4_publish"]
    said = totals(tmp_path / "many.logs/3_final/stats.json")
    counted = {name: count for name, count in said.items() if name.startswith("dropped_")}
    gone = Counter(f"dropped_{one['rule']}/{one['reason']}" for one in records(tmp_path / "one", "dropped"))
    assert counted == dict(gone) and len(gone) >= 4
    last.run()  # finished: nothing is done again, and nothing breaks
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


@pytest.mark.slow
def test_tasks_in_processes_write_the_same_bytes(executors, tmp_path):
    write_corpus(tmp_path)
    sources, settings = corpus(tmp_path)
    clean(sources, tmp_path / "one", settings)
    executors("local", sources, tmp_path / "many", settings, tasks=2, workers=2).run()
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


def test_sources_are_shared_out_where_they_are_many(executors, tmp_path):
    sources = [source(tmp_path / f"{name}.jsonl", [f"{name} says {n}" for n in range(5)]) for name in "abcde"]
    settings = CleanConfig(rules=(Least(),), chunk_documents=2)
    executors("local", sources, tmp_path / "many", settings, tasks=2, workers=1).run()
    clean(sources, tmp_path / "one", settings)
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    tasks = sorted((tmp_path / "many.logs/1_rules/stats").iterdir())
    assert [totals(path)["documents_in"] for path in tasks] == [15, 10]


kept: list[tuple[str, str]] = []
gone: list[tuple[str, str, str]] = []


def keep(data, rank, world_size):
    kept.extend((document.id, document.text) for document in data)


class Excluded(contextlib.nullcontext):
    """What datatrove's writers are to a filter."""

    def __enter__(self):
        return self

    def write(self, document, rank):
        gone.append((document.id, document.metadata["filter_reason"], document.metadata["filter_detail"]))


def test_the_rules_are_a_step_of_any_pipeline(executors, tmp_path):
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor

    given = source(tmp_path / "in.jsonl", ["tiny", "a text to keep", " strip me please ", "qqqqqqqqqqqqqq", "small"])
    rules = (Least(), Without("q"))
    documents = [Document(text=document.text, id=document.id) for document in read_documents(given)]
    kept.clear()
    gone.clear()
    step = rules_step(rules, Excluded())
    LocalPipelineExecutor([documents, step, keep], logging_dir=str(tmp_path / "logs"), workers=1).run()
    clean([given], tmp_path / "out", CleanConfig(rules=rules, exact_duplicates=False))
    assert kept == [(one["id"], one["text"]) for one in records(tmp_path / "out", "documents")]
    assert gone == [
        (one["id"], f"{one['rule']}/{one['reason']}", one["detail"]) for one in records(tmp_path / "out", "dropped")
    ]
    said = totals(tmp_path / "logs/stats.json")
    said = {name: count for name, count in said.items() if name.startswith(("dropped", "changed", "forwarded"))}
    assert said == {
        "dropped": 3,
        "dropped_least/short": 2,
        "dropped_without/empty": 1,
        "forwarded": 2,
        "changed_least": 1,
    }


def test_the_step_travels_to_other_processes(executors):
    dill = pytest.importorskip("dill")
    from datatrove.data import Document

    step = dill.loads(dill.dumps(rules_step((GopherQuality(min_words=2, min_stop_words=0),))))
    kept = step.run([Document(text="one", id="1"), Document(text="one two three", id="2")])
    assert [document.id for document in kept] == ["2"]


def test_what_cannot_be_run_is_refused(executors, tmp_path, monkeypatch):
    given = source(tmp_path / "in.jsonl", ["text"])
    with pytest.raises(DataError, match="no executor 'spark': use one of local, slurm, ray"):
        executors("spark", [given], tmp_path / "out", CleanConfig(), tasks=1)
    with pytest.raises(DataError, match="tasks 0 must be 1 or more"):
        executors("local", [given], tmp_path / "out", CleanConfig(), tasks=0)
    monkeypatch.setitem(sys.modules, "datatrove.executor.local", None)
    with pytest.raises(DataError, match=r"pip install 'tessera-lm\[cluster\]'"):
        executors("local", [given], tmp_path / "out", CleanConfig(), tasks=1)
    assert not Path(tmp_path / "out").exists()


def test_a_run_of_one_process_keeps_the_tasks_out(executors, tmp_path):
    given = source(tmp_path / "in.jsonl", ["text"])
    settings = ([given], tmp_path / "out", CleanConfig())
    executor = executors("local", *settings, tasks=2, workers=1)
    work = tmp_path / "out/.work"
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is cleaning into"):
            executor.run()
    assert not list((work / "rules").iterdir())
    executors("local", *settings, tasks=2, workers=1).run()
    assert len(records(tmp_path / "out", "documents")) == 1


def test_a_slurm_chain_waits_for_each_stage(executors, tmp_path):
    given = source(tmp_path / "in.jsonl", ["text"])
    options = {"time": "1:00:00", "partition": "cpu"}
    executor = executors("slurm", [given], tmp_path / "out", CleanConfig(), tasks=7, **options)
    widths = []
    while executor:
        widths.append(executor.tasks)
        executor = executor.depends
    assert widths == [1, 7, 1, 7]
