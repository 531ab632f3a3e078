"""Import directions that import-linter's contracts cannot say exactly."""

from __future__ import annotations

import grimp
import pytest

# The engine's words, and the cheap look at a checkpoint's files. All of them need the standard library only.
SHARED = {
    "qeff_engine.spec",
    "qeff_engine.errors",
    "qeff_engine.actions",
    "qeff_engine.checkpoint",
    "qeff_engine.compiler_flags.asking",
}
PACKAGES = ("farm", "workers", "qeff_engine")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom, imports inside functions included."""
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def members(graph: grimp.ImportGraph, package: str) -> set[str]:
    """The package and everything below it."""
    return {package} | graph.find_descendants(package)


def test_the_farm_knows_the_engines_words_and_nothing_else_of_it(graph: grimp.ImportGraph) -> None:
    imported = {
        target
        for module in members(graph, "farm")
        for target in graph.find_modules_directly_imported_by(module)
        if target.partition(".")[0] == "qeff_engine"
    }
    assert imported <= SHARED
    assert "qeff_engine.spec" in imported


def test_nobody_in_the_farm_or_the_engine_reaches_the_simulated_sdk(graph: grimp.ImportGraph) -> None:
    inside = members(graph, "qeff_engine.simulated_sdk")
    importers = {
        importer
        for module in inside
        for importer in graph.find_modules_that_directly_import(module)
        if importer not in inside
    }
    assert importers == set()


def test_the_simulated_sdk_stands_alone(graph: grimp.ImportGraph) -> None:
    inside = members(graph, "qeff_engine.simulated_sdk")
    imported = {target for module in inside for target in graph.find_modules_directly_imported_by(module)}
    assert {target for target in imported - inside if target.partition(".")[0] in PACKAGES} == set()
