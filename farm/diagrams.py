"""Writes docs/states.md and docs/schema.md from the code: ``python -m farm.diagrams`` (``make docs``).

The meaning of a table, a column, a state or a transition is the comment at its place in the source.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import inspect
import io
import sys
import tokenize
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from farm import states
from farm.models import _control, _fleet, _work
from farm.models._base import TIME, metadata
from farm.states import FINAL, TRANSITIONS, JobState

DOCS = Path(__file__).parents[1] / "docs"
_MODELS = (_work, _fleet, _control)
_ORDER = tuple(JobState)
_MOVES = frozenset({"move", "move_all", "move_each"})  # of farm.lifecycle.transitions
_NOTE = "<!-- Written by `make docs` from `{source}`; change that. -->\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comments:
    """The comments of a module's source.

    Attributes:
        beside: by line: the comment behind code.
        alone: by line: a comment that has its line for itself.
    """

    beside: Mapping[int, str]
    alone: Mapping[int, str]

    @classmethod
    def of(cls, module: types.ModuleType) -> Comments:
        """Those of a module."""
        beside: dict[int, str] = {}
        alone: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(module)).readline):
            if token.type == tokenize.COMMENT:
                own_line = not token.line[: token.start[1]].strip()
                (alone if own_line else beside)[token.start[0]] = token.string.lstrip("# ")
        return cls(beside=beside, alone=alone)

    def beside_of(self, node: ast.expr | ast.stmt) -> str:
        """The comment behind any line of a piece of code, or nothing."""
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        return " ".join(self.beside[line] for line in lines if line in self.beside)

    def alone_in(self, node: ast.expr | ast.stmt, *, until: int) -> str:
        """The comment that stands alone between the beginning of a piece of code and a line, or nothing."""
        return " ".join(self.alone[line] for line in range(node.lineno, until) if line in self.alone)


def states_page() -> str:
    """The page about the states of a job, in Markdown."""
    by_way: dict[tuple[JobState, JobState], list[str]] = collections.defaultdict(list)
    for source, name, target in _sorted_transitions():
        by_way[source, target].append(name)
    diagram = ["stateDiagram-v2", "    [*] --> waiting: submit"]
    diagram += [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in by_way.items()]
    diagram += [f"    {state} --> [*]" for state in _ORDER if state in FINAL]
    doers = _doers()
    notes = _transition_comments()
    rows = [
        (str(source), f"`{name}`", str(target), notes.get((source, name, target), ""), _code(doers[source, name]))
        for source, name, target in _sorted_transitions()
    ]
    parts = [
        "# States of a job\n",
        _NOTE.format(source="farm/states.py") + (inspect.getdoc(states) or ""),
        _mermaid(diagram),
        "## States\n",
        _table(("state", "meaning", "who moves it on", "after a crash"), [_state_row(state) for state in _ORDER]),
        "## Transitions\n",
        "Whoever finds a job in another state than the first, or at another attempt, changes nothing.\n",
        _table(("from", "transition", "to", "when", "done by"), rows),
    ]
    return "\n".join(parts)


def schema_page() -> str:
    """The page about the tables, in Markdown."""
    tables = [table for module in _MODELS for table in _tables_of(module)]
    notes = _table_comments()
    missing = set(metadata.tables) - {table.name for table in tables}
    if missing:
        raise AssertionError(f"the tables {sorted(missing)} are in no module of {[one.__name__ for one in _MODELS]}")
    diagram = ["erDiagram"]
    for table in tables:
        keys = [column for column in table.c if column.primary_key or column.foreign_keys]
        diagram.append(f"    {table.name} {{")
        diagram += [f"        {_type(column)} {column.name} {_key(column)}" for column in keys]
        diagram.append("    }")
    for table in tables:
        for other, names in _references(table):
            diagram.append(f'    {other} ||--o{{ {table.name} : "{names}"')
    parts = [
        "# Tables\n",
        _NOTE.format(source="farm/models")
        + "The same on SQLite and on PostgreSQL. Times are seconds since the epoch by "
        "the database's clock.\n",
        _mermaid(diagram),
    ]
    for table in tables:
        parts += _table_section(table, notes=notes)
    return "\n".join(parts)


def _table_section(table: sa.Table, *, notes: Mapping[tuple[str, str], str]) -> Iterator[str]:
    yield f"## {table.name}\n"
    if notes.get((table.name, "")):
        yield notes[table.name, ""] + "\n"
    rows = []
    for column in table.c:
        default = column.server_default
        value = default.arg if isinstance(default, sa.DefaultClause) else ""
        words = "" if default is None else f"`{value}`" if str(value) else "empty"
        null = "" if not column.nullable else "may be NULL"
        rows.append((f"`{column.name}`", _type(column), null, words, notes.get((table.name, column.name), "")))
    yield _table(("column", "type", "", "default", "meaning"), rows)
    found = [f"- key: `{', '.join(table.primary_key.columns.keys())}`"]
    for constraint in sorted(table.constraints, key=lambda one: str(one.name)):
        if isinstance(constraint, sa.UniqueConstraint):
            found.append(f"- unique: `{', '.join(constraint.columns.keys())}`")
        elif isinstance(constraint, sa.CheckConstraint):
            found.append(f"- check: `{constraint.sqltext}`")
    for index in sorted(table.indexes, key=lambda one: str(one.name)):
        names = ", ".join(str(getattr(one, "name", one)) for one in index.expressions)
        where = index.info.get("where")
        found.append(f"- {'unique ' if index.unique else ''}index: `{names}`" + (f" where `{where}`" if where else ""))
    yield "\n".join(found) + "\n"


def _tables_of(module: types.ModuleType) -> list[sa.Table]:
    return [value for value in vars(module).values() if isinstance(value, sa.Table)]


def _table_comments() -> dict[tuple[str, str], str]:
    """By table and column, or by table and nothing: what the source says."""
    found = {}
    for module in _MODELS:
        comments = Comments.of(module)
        for statement in ast.parse(inspect.getsource(module)).body:
            if not (isinstance(statement, ast.Assign) and _is_call(statement.value, "Table")):
                continue
            assert isinstance(statement.value, ast.Call)
            name, _, *columns = statement.value.args
            table = str(ast.literal_eval(name))
            found[table, ""] = comments.alone_in(statement, until=columns[0].lineno)
            for column in columns:
                if _is_call(column, "Column"):
                    assert isinstance(column, ast.Call)
                    found[table, str(ast.literal_eval(column.args[0]))] = comments.beside_of(column)
    return found


def _is_call(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name


def _state_row(state: JobState) -> tuple[str, str, str, str]:
    """The state, and the sentences about it."""
    comments = Comments.of(states)
    body = next(node for node in ast.parse(inspect.getsource(states)).body if isinstance(node, ast.ClassDef))
    line = next(
        node for node in body.body if isinstance(node, ast.Assign) and ast.literal_eval(node.value) == str(state)
    )
    meaning, who, crash = [*comments.beside_of(line).split(". "), "", ""][:3]
    return f"`{state}`", meaning, who, crash


def _transition_comments() -> dict[tuple[JobState, str, JobState], str]:
    comments = Comments.of(states)
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(states))):
        if isinstance(node, ast.Tuple) and len(node.elts) == 3 and isinstance(node.elts[1], ast.Constant):
            source, name, target = node.elts
            assert isinstance(source, ast.Name)
            assert isinstance(target, ast.Name)
            key = (getattr(states, source.id), str(ast.literal_eval(name)), getattr(states, target.id))
            found[key] = comments.beside_of(node)
    return found


def _doers() -> dict[tuple[JobState, str], list[str]]:
    """By the state that it leads from and its name: the functions that take a transition."""
    ways = {(source, name) for source, name, _ in TRANSITIONS}
    found: dict[tuple[JobState, str], list[str]] = collections.defaultdict(list)
    for path in sorted((Path(__file__).parent / "lifecycle").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        own = {name: _sources(function) for name, function in functions.items()}
        words = {name: _words(function) for name, function in functions.items()}
        moving = _moving(functions)
        for name in moving:
            called = _named(functions[name]) & set(functions)
            # One that leaves the move to another of its module leads from where that one does.
            sources = own[name] or {source for other in called for source in own[other]} or set(JobState)
            # One that asks another what to do takes the transitions that this one names.
            names = words[name].union(*(words[other] for other in called - moving))
            for way in ways:
                if way[0] in sources and way[1] in names:
                    found[way].append(f"farm.lifecycle.{path.stem}.{name}")
    return {way: sorted(names) for way, names in found.items()}


def _moving(functions: Mapping[str, ast.FunctionDef]) -> set[str]:
    """The functions of a module that move jobs, or leave that to another of the module."""
    found: set[str] = set()
    while more := {name for name, function in functions.items() if _named(function) & (_MOVES | found)} - found:
        found |= more
    return found


def _named(function: ast.FunctionDef) -> set[str]:
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}


def _words(function: ast.FunctionDef) -> set[str]:
    return {str(node.value) for node in ast.walk(function) if isinstance(node, ast.Constant)}


def _sources(function: ast.FunctionDef) -> set[JobState]:
    """The states that a function says outright it moves jobs from: where it names them, or asserts which they are."""
    found: set[JobState] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.keyword) and node.arg == "source":
            found |= _states_in([node.value])
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).strip("()").split(", ")[0] == "source":
            found |= _states_in(node.value.elts[:1] if isinstance(node.value, ast.Tuple) else [node.value])
        elif isinstance(node, ast.Assert) and ast.unparse(node.test).startswith("source in "):
            assert isinstance(node.test, ast.Compare)
            found |= _states_in(ast.walk(node.test.comparators[0]))
    return found


def _states_in(nodes: Iterable[ast.AST]) -> set[JobState]:
    return {
        JobState[node.attr]
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == JobState.__name__
    }


def _sorted_transitions() -> list[tuple[JobState, str, JobState]]:
    return sorted(TRANSITIONS, key=lambda way: (_ORDER.index(way[0]), _ORDER.index(way[2]), way[1]))


def _references(table: sa.Table) -> list[tuple[str, str]]:
    """The tables that one refers to, with the columns that do."""
    return sorted(
        (constraint.referred_table.name, ", ".join(constraint.column_keys))
        for constraint in table.foreign_key_constraints
    )


def _type(column: sa.Column[object]) -> str:
    return "time" if column.type is TIME else str(column.type).lower()


def _key(column: sa.Column[object]) -> str:
    return ", ".join([*(["PK"] if column.primary_key else []), *(["FK"] if column.foreign_keys else [])])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _mermaid(lines: Iterable[str]) -> str:
    return "\n".join(("", "```mermaid", *lines, "```", ""))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)


PAGES = {"states.md": states_page, "schema.md": schema_page}


def main() -> int:
    """Command line."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"{DOCS / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
