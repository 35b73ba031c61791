"""The mutants of a source file: its decisions, each changed in one way. Knows nothing of tests.

mutmut's operators, one replacement per place, and a few more. Left alone is what decides nothing:
messages, annotations, decorators, assertions for the type checker, `strict=` of zip.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

Change = tuple[cst.CSTNode, cst.CSTNode]
TRUE, FALSE = cst.Name("True"), cst.Name("False")
OPPOSITES = {"min": "max", "minimum": "maximum"}
OPPOSITES |= {new: old for old, new in OPPOSITES.items()}
SKIPPED = (cst.Annotation, cst.Decorator, cst.Raise, cst.Assert, cst.Import, cst.ImportFrom)
MESSAGES = {"__repr__", "__str__"}
# In place of -1, +1 is the same axis of a matrix, and None is as false as False.
SAME = m.UnaryOperation(m.Minus(), m.Integer()) | m.Lambda(body=m.Name("False"))
LOGS = ("debug", "info", "warning", "warn")
NOTHING = (
    m.SimpleStatementLine([m.Expr(m.Call(m.Attribute(attr=m.OneOf(*map(m.Name, LOGS)))))])
    | m.SimpleStatementLine([m.Assign([m.AssignTarget(m.Name("__all__"))])])
    | m.If(m.Name("TYPE_CHECKING"))
)


def conditions(node: cst.If | cst.While | cst.IfExp | cst.CompIf) -> Iterator[Change]:
    """Always and never. A loop that never ends would only cost time."""
    if not isinstance(node, cst.While):
        yield node.test, TRUE
    if not isinstance(node, cst.CompIf):
        yield node.test, FALSE


def returns(node: cst.Return) -> Iterator[Change]:
    """None in place of a value."""
    if node.value is not None and not m.matches(
        node.value, m.OneOf(*(m.Name(name) for name in ("None", "True", "False")))
    ):
        yield node, node.with_changes(value=None, whitespace_after_return=cst.SimpleWhitespace(""))


def left_out(node: cst.SimpleStatementLine) -> Iterator[Change]:
    """Calls, and assignments that change what was there before."""
    for statement in node.body:
        if m.matches(statement, m.Expr(m.Call()) | m.AugAssign() | m.Del()) or _changes(statement):
            yield statement, cst.Pass()


def _changes(statement: cst.BaseSmallStatement) -> bool:
    if isinstance(statement, cst.AnnAssign):
        return statement.value is not None and not isinstance(statement.target, cst.Name)
    if not isinstance(statement, cst.Assign):
        return False
    target = statement.targets[0].target
    if isinstance(target, cst.Name):
        return bool(m.findall(statement.value, m.Name(target.value)))
    return isinstance(target, cst.Attribute | cst.Subscript)


def calls(node: cst.Call) -> Iterator[Change]:
    """A keyword is dropped, two positions are swapped, or the opposite is called."""
    name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
    called = name.value if isinstance(name, cst.Name) else ""
    if called in OPPOSITES:
        yield name, cst.Name(OPPOSITES[called])
        return
    args = node.args
    for i, arg in enumerate(args):
        if arg.keyword is not None and arg.keyword.value != "strict":
            kept = [*args[:i], *args[i + 1 :]]
            if kept and i == len(args) - 1:
                kept[-1] = kept[-1].with_changes(comma=arg.comma)
            yield node, node.with_changes(args=kept)
    if len(args) > 1 and called != "isinstance" and not any(a.keyword or a.star for a in args[:2]):
        first, second = args[0].value, args[1].value
        swapped = [args[0].with_changes(value=second), args[1].with_changes(value=first)]
        yield node, node.with_changes(args=[*swapped, *args[2:]])


def _whole(operator: Callable[[Any], Iterable[cst.CSTNode]]) -> Callable[[Any], Iterator[Change]]:
    """mutmut's operators replace the node that they are given."""

    def changes(node: cst.CSTNode) -> Iterator[Change]:
        if not m.matches(node, SAME):
            yield from ((node, new) for new in operator(node))

    return changes


OPERATORS: list[tuple[Any, Callable[[Any], Iterator[Change]]]] = [
    (cst.If | cst.While | cst.IfExp | cst.CompIf, conditions),
    (cst.Return, returns),
    (cst.SimpleStatementLine, left_out),
    (cst.Call, calls),
    (cst.BaseNumber, _whole(mutators.operator_number)),
    (cst.Name, _whole(mutators.operator_name)),
    (cst.UnaryOperation, _whole(mutators.operator_remove_unary_ops)),
    (cst.Lambda, _whole(mutators.operator_lambda)),
    (cst.Call, _whole(mutators.operator_symmetric_string_methods_swap)),
    (cst.CSTNode, _whole(mutators.operator_keywords)),
    (cst.CSTNode, _whole(mutators.operator_swap_op)),
    (cst.Match, _whole(mutators.operator_match)),
]


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    `lines` are those of the statement up to the change; `around` those of the innermost function
    or class. `static`: runs when the module is imported.
    """

    id: str
    file: str
    scope: str
    lines: range
    around: range
    static: bool
    change: Change

    @property
    def line(self) -> int:
        return self.lines[-1]


class Source(cst.CSTVisitor):
    """A source file and its mutants."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, file: str, text: str) -> None:
        super().__init__()
        self.file, self.text = file, text
        self.mutants: list[Mutant] = []
        self._scopes: list[tuple[cst.CSTNode, str, range]] = []
        self._begin = 1  # of the statement that is visited
        self._seen: Counter[tuple[str, ...]] = Counter()
        wrapper = MetadataWrapper(cst.parse_module(text))
        self.module = wrapper.module
        wrapper.visit(self)

    def mutated(self, mutant: Mutant) -> str:
        """The text of the file with the change."""
        module = self.module.deep_replace(*mutant.change)
        assert isinstance(module, cst.Module)
        return module.code

    def difference(self, mutant: Mutant) -> tuple[str, str]:
        """The lines before and after, without their indentation."""
        changed = difflib.ndiff(self.text.splitlines(), self.mutated(mutant).splitlines())
        before: list[str] = []
        after: list[str] = []
        for line in changed:
            if line[:2] in ("- ", "+ "):
                (before if line[0] == "-" else after).append(line[2:].strip())
        return " ".join(before), " ".join(after)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.BaseCompoundStatement | cst.SimpleStatementLine):
            self._begin = self._range(node)[0]
        if _decides_nothing(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            name = ".".join([*(name for _, name, _ in self._scopes[-1:]), node.name.value])
            self._scopes.append((node, name, self._range(node)))
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                for change in operator(node):
                    self._add(change)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self._scopes and self._scopes[-1][0] is original_node:
            self._scopes.pop()

    def _range(self, node: cst.CSTNode) -> range:
        position = self.get_metadata(PositionProvider, node)
        return range(position.start.line, position.end.line + 1)

    def _add(self, change: Change) -> None:
        whole = range(1, self.text.count("\n") + 1)
        scope, name, around = self._scopes[-1] if self._scopes else (None, "", whole)
        lines = self._range(change[0])
        lines = range(min(self._begin, lines[0]), max(lines[-1], self._begin) + 1)
        body = scope.body if isinstance(scope, cst.FunctionDef) else None
        static = body is None or lines[-1] < self._range(body)[0]
        code = "\n".join(self.text.splitlines()[around[0] - 1 : around[-1]]) if name else ""
        told = (self.file, name, code, *(self.module.code_for_node(node) for node in change))
        self._seen[told] += 1
        key = hashlib.sha1("\0".join([*told, str(self._seen[told])]).encode()).hexdigest()[:16]
        self.mutants.append(Mutant(key, self.file, name, lines, around, static, change))


def _decides_nothing(node: cst.CSTNode) -> bool:
    if isinstance(node, SKIPPED):
        return True
    if isinstance(node, cst.FunctionDef):
        return node.name.value in MESSAGES
    if isinstance(node, cst.Arg):
        return node.keyword is not None and node.keyword.value == "strict"
    return m.matches(node, NOTHING)
