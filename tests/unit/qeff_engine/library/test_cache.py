import multiprocessing
import os
import types

import pytest

from qeff_engine import pipeline, spec, stage
from qeff_engine.errors import CompilerError, Infrastructure
from qeff_engine.library import cache
from tests.unit.qeff_engine.library import counting_stage

COMPILE = spec.CompileSpec(num_cores=8)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "STAGES", types.MappingProxyType(dict.fromkeys(spec.Stage, counting_stage.__name__)))
    counting_stage.runs.clear()
    counting_stage.fails_with.clear()
    return cache.StageCache(tmp_path / "cache")


@pytest.fixture
def graph(store, tmp_path):
    directory = tmp_path / "graph"
    directory.mkdir()
    (directory / "a.onnx").write_text("one")
    return store.adopt(directory)


def test_the_same_work_is_done_once(store, graph):
    first = store.run(COMPILE, inputs={stage.ONNX: graph})
    second = store.run(COMPILE, inputs={stage.ONNX: graph})
    assert counting_stage.runs == ["compile"]
    assert (first.cached, second.cached) == (False, True)
    assert second.directory == first.directory
    assert second.figures["num_runs"] == 1
    assert (second.directory / "whole.txt").read_text() == "whole"


def test_other_spec_input_or_toolchain_is_other_work(store, graph, tmp_path, monkeypatch):
    keys = {store.run(COMPILE, inputs={stage.ONNX: graph}).key}
    keys.add(store.run(spec.CompileSpec(num_cores=14), inputs={stage.ONNX: graph}).key)
    (graph.directory / "a.onnx").write_text("two")
    changed = store.adopt(graph.directory)
    keys.add(store.run(COMPILE, inputs={stage.ONNX: changed}).key)
    monkeypatch.setattr(cache.toolchain, "versions", lambda *_, **__: {"engine": "another"})
    keys.add(store.run(COMPILE, inputs={stage.ONNX: changed}).key)
    assert len(keys) == len(counting_stage.runs) == 4


def test_the_same_content_at_another_path_is_the_same_work(store, graph, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "a.onnx").write_text("one")
    store.run(COMPILE, inputs={stage.ONNX: graph})
    assert store.run(COMPILE, inputs={stage.ONNX: store.adopt(other)}).cached


def test_a_source_is_known_by_its_fingerprint_and_not_by_its_path(store):
    first = store.run(spec.ResolveSpec(source="/a", kind="directory", fingerprint="f"))
    assert store.run(spec.ResolveSpec(source="/b", kind="directory", fingerprint="f")).key == first.key
    assert store.run(spec.ResolveSpec(source="/a", kind="directory", fingerprint="g")).key != first.key
    hub = {store.run(spec.ResolveSpec(source=name, kind="hub", fingerprint="f")).key for name in ("a/b", "c/d")}
    assert len(hub) == 2


def test_two_snapshots_of_one_content_have_one_digest(store):
    first = store.run(spec.ResolveSpec(source="/a", kind="directory", fingerprint="f"))
    second = store.run(spec.ResolveSpec(source="/a", kind="directory", fingerprint="g"))
    assert first.digest == second.digest


def test_a_failed_stage_leaves_nothing_and_is_tried_again(store, graph):
    counting_stage.fails_with.append(counting_stage.refused())
    with pytest.raises(CompilerError, match="No such operator"):
        store.run(COMPILE, inputs={stage.ONNX: graph})
    left = [path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []
    assert not store.run(COMPILE, inputs={stage.ONNX: graph}).cached


def test_the_remains_of_a_killed_process_are_not_taken_for_a_result(store, graph):
    key = store.run(COMPILE, inputs={stage.ONNX: graph}).key
    home = store.root / "compile" / key
    home.rename(home.with_suffix(".partial"))
    again = store.run(COMPILE, inputs={stage.ONNX: graph})
    assert not again.cached
    assert not home.with_suffix(".partial").exists()


def test_a_file_rewritten_in_place_makes_the_stage_run_again(store, graph):
    entry = store.run(COMPILE, inputs={stage.ONNX: graph})
    path = entry.directory / "whole.txt"
    path.write_text("WHOLE")
    os.utime(path, ns=(1, 1))
    again = store.run(COMPILE, inputs={stage.ONNX: graph})
    assert not again.cached
    assert (again.directory / "whole.txt").read_text() == "whole"


def test_processes_that_ask_at_once_share_one_run(store, graph):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()

    def ask():
        barrier.wait()
        results.put(store.run(COMPILE, inputs={stage.ONNX: graph}).cached)

    processes = [context.Process(target=ask) for _ in range(3)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == [False, True, True]


def test_a_cache_that_cannot_be_written_says_where_and_what_to_do(tmp_path, graph):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Infrastructure, match=r"file cannot be written.*QEFF_HOME"):
        cache.StageCache(file).run(COMPILE, inputs={stage.ONNX: graph})


def test_placing_links_the_artifact_and_leaves_a_complete_one_alone(store, graph, tmp_path):
    entry = store.run(COMPILE, inputs={stage.ONNX: graph})
    target = cache.place(entry, directory=tmp_path / "mine", name="qpc-1")
    assert target == tmp_path / "mine" / "qpc-1"
    assert (target / "whole.txt").samefile(entry.directory / "whole.txt")
    (target / "note.txt").write_text("of the user's")
    assert cache.place(entry, directory=tmp_path / "mine", name="qpc-1") == target
    assert (target / "note.txt").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["qpc-1"]


def test_the_home_variable_wins_over_the_cache_directory_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(cache.HOME_VARIABLE, raising=False)
    assert cache.default_root() == tmp_path / "xdg" / "qeff_engine"
    monkeypatch.setenv(cache.HOME_VARIABLE, str(tmp_path / "home"))
    assert cache.default_root() == tmp_path / "home"
