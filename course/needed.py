"""Which cells of a notebook its exercises need: the others tell the story, and grading need not run them.

An exercise needs a cell if names that it uses get their values there, or if what they name is visibly changed there.
What a function does to its arguments is not seen; the tests of all exercises are run this way, and would fail where
that mattered.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Collection, Sequence

COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}
GIVING = (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
Names = set[str]


def needed(cells: Sequence[str], exercises: Collection[int]) -> list[bool]:
    """Whether each cell is needed.

    Args:
        cells: the sources of the code cells, in order.
        exercises: the places of answers and tests among them, which are needed for themselves.
    """
    flows = [flow(source) for source in cells]
    late: Names = set()  # used by functions, which look a name up when they are called: any cell may give it its value
    while True:
        keep, wanted, before = [], set(late), set(late)
        for place, found in reversed(list(enumerate(flows))):
            keep.append(place in exercises or found is None or bool(found.given & (wanted | late)))
            if keep[-1] and found is not None:
                wanted = (wanted - found.surely) | found.used
                late |= found.late
        if late == before:
            return keep[::-1]


class Flow:
    """What a cell does with names.

    Attributes:
        used: names whose values it takes from earlier cells.
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


def flow(source: str) -> Flow | None:
    """What a cell does with names; None if that cannot be told, as of IPython's magic."""
    try:
        return Flow(ast.parse(source).body)
    except SyntaxError:
        return None


def _changed(node: ast.AST) -> Names:
    """Names whose objects are changed in place: x += 1, x[0] = 1, x.a = 1, and x.method() for its own sake."""
    found = Names()
    for part in ast.walk(node):
        targets: list[ast.expr] = []
        if isinstance(part, ast.Assign):
            targets = [target for target in part.targets if isinstance(target, ast.Subscript | ast.Attribute)]
        elif isinstance(part, ast.AugAssign):
            targets = [part.target]
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            targets = [part.value.func] if isinstance(part.value.func, ast.Attribute) else []
        for target in targets:
            while isinstance(target, ast.Subscript | ast.Attribute):
                target = target.value
            if isinstance(target, ast.Name):
                found.add(target.id)
    return found


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
