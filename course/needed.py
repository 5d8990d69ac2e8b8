"""What of a notebook its exercises need: the rest tells the story, and grading need not run it.

An exercise needs a statement if names that it uses get their values there, or if what they name is visibly changed
there. What a function does to its arguments beside returning a value is not seen; the tests of all exercises are run
this way, and would fail where that mattered.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Collection, Sequence
from dataclasses import dataclass

COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}
GIVING = (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
Names = set[str]


def needed(cells: Sequence[str], exercises: Collection[int]) -> list[str]:
    """Of each cell what is needed, as source; nothing of many cells.

    Args:
        cells: the sources of the code cells, in order.
        exercises: the places of answers and tests among them, which are needed for themselves, and whole.
    """
    pieces = [piece for place, source in enumerate(cells) for piece in _pieces(place, source, place in exercises)]
    late: Names = set()  # used by functions, which look a name up when they are called: any piece may give it its value
    while True:
        keep, wanted, before = [], set(late), set(late)
        for piece in reversed(pieces):
            if piece.flow is None or piece.whole or piece.flow.given & (wanted | late):
                keep.append(piece)
                if piece.flow is not None:
                    wanted = (wanted - piece.flow.surely) | piece.flow.used
                    late |= piece.flow.late
        if late == before:
            kept = [[piece.source for piece in reversed(keep) if piece.place == place] for place in range(len(cells))]
            return ["\n".join(sources) for sources in kept]


@dataclass(frozen=True)
class Piece:
    """A statement of a cell, or all of it.

    Attributes:
        place: of the cell.
        source: of the piece.
        flow: what it does with names; None if that cannot be told, as of IPython's magic.
        whole: whether it is the cell of an exercise.
    """

    place: int
    source: str
    flow: Flow | None
    whole: bool


def _pieces(place: int, source: str, whole: bool) -> list[Piece]:
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return [Piece(place, source, None, whole)]
    if whole:
        return [Piece(place, source, Flow(statements), whole)]
    lines, found = source.split("\n"), []
    for statement in statements:
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
        found.append(Piece(place, "\n".join(lines[first - 1 : statement.end_lineno]), Flow([statement]), whole))
    return found


class Flow:
    """What a piece does with names.

    Attributes:
        used: names whose values it takes from earlier ones.
        late: names that functions in it use.
        given: names that it may give a value to.
        surely: names that it gives a value to in any case.
    """

    def __init__(self, statements: list[ast.stmt]) -> None:
        self.late: Names = set()
        self.given: Names = set()
        self.surely: Names = set()
        self.used = self._read(statements, self.surely)

    def _read(self, statements: list[ast.stmt], have: Names) -> Names:
        """Names that are used before they have a value; ``have`` gets those that have one in the end."""
        used: Names = set()
        for statement in statements:
            if isinstance(statement, ast.With):
                for item in statement.items:
                    used |= self._names(item.context_expr) - have
                    have |= self._targets(item.optional_vars)
                used |= self._read(statement.body, have)
            elif isinstance(statement, ast.For):
                self.given |= _changed(statement)
                used |= self._names(statement.iter) - have
                used |= self._read([*statement.body, *statement.orelse], have | self._targets(statement.target))
            else:
                used |= self._names(statement) - have
                if isinstance(statement, GIVING):
                    have |= _table(statement)[0]
        return used

    def _targets(self, target: ast.expr | None) -> Names:
        found = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)} if target else set()
        self.given |= found
        return found

    def _names(self, node: ast.AST) -> Names:
        given, used, late = _table(node)
        self.given |= given
        self.late |= late
        changed = _changed(node)
        self.given |= changed
        return used | late | changed


def _changed(node: ast.AST) -> Names:
    """Names whose objects are changed in place: x += 1, x[0] = 1, x.a = 1, and x.method() or f(x) for its own sake.

    A loop that calls something for its own sake, such as an optimizer's step, may change all that it mentions.
    """
    found, loop = Names(), False
    for part in ast.walk(node):
        targets: list[ast.expr] = []
        if isinstance(part, ast.Assign):
            targets = [target for target in part.targets if isinstance(target, ast.Subscript | ast.Attribute)]
        elif isinstance(part, ast.AugAssign):
            targets = [part.target]
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            targets = [*([part.value.func] if isinstance(part.value.func, ast.Attribute) else []), *part.value.args]
            loop = loop or isinstance(node, ast.For | ast.While)
        for target in targets:
            while isinstance(target, ast.Subscript | ast.Attribute):
                target = target.value
            if isinstance(target, ast.Name):
                found.add(target.id)
    return _mentioned(node) if loop else found


def _mentioned(node: ast.AST) -> Names:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _table(node: ast.AST) -> tuple[Names, Names, Names]:
    """Names that get a value, that are used now, and that are used by functions later."""
    given, used, late = Names(), Names(), Names()

    def collect(table: symtable.SymbolTable, deep: bool, top: bool) -> None:
        for symbol in table.get_symbols():
            if top or symbol.is_global():
                if symbol.is_referenced():
                    (late if deep else used).add(symbol.get_name())
                if symbol.is_assigned() or symbol.is_imported():
                    given.add(symbol.get_name())
        for child in table.get_children():
            now = child.get_type() == "class" or child.get_name() in COMPREHENSIONS
            collect(child, deep or not now, top=False)

    collect(symtable.symtable(ast.unparse(node), "cell", "exec"), deep=False, top=True)
    return given, used, late
