"""What of a notebook its exercises need: the rest tells the story, and grading need not run it.

An exercise needs a cell if names that it uses get their values there, or if what they name is visibly changed there.
Of such a cell it needs what mentions any of these names. What a function in another cell does beside returning a value
is not seen; the tests of all exercises are run this way, and would fail where that mattered.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Collection, Iterator, Sequence

COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}
GIVING = (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
IMPORT = (ast.Import, ast.ImportFrom)
Names = set[str]


def needed(cells: Sequence[str], exercises: Collection[int]) -> list[str]:
    """Of each cell what is needed, as source; nothing of many cells.

    Args:
        cells: the sources of the code cells, in order.
        exercises: the places of answers and tests among them, which are needed for themselves, and whole.
    """
    parsed = [_statements(source) for source in cells]
    fixed = set(dir(builtins))  # and what is imported: nobody changes these
    for statements in parsed:
        for statement in statements or []:
            fixed |= _table(statement)[0] if isinstance(statement, IMPORT) else set()
    late = Names()  # used by functions, which look a name up when they are called: any cell may give it its value
    while True:
        wanted, before, kept = set(late), set(late), list[str]()
        for place in reversed(range(len(cells))):
            statements, whole = parsed[place], place in exercises
            if statements is None:  # IPython's magic: nobody can tell
                kept.append(cells[place])
                continue
            if not whole and not Flow(statements, fixed).given & (wanted | late):
                kept.append("")
                continue
            pieces = []
            for statement in reversed(statements):
                flow, mentioned = Flow([statement], fixed), _mentioned(statement)
                setting = isinstance(statement, ast.Expr) and mentioned <= fixed  # such as a seed
                if whole or setting or (flow.given | mentioned - fixed) & (wanted | late):
                    pieces.append(_source(cells[place], statement))
                    wanted = (wanted - flow.surely) | flow.used
                    late |= flow.late
            kept.append(cells[place] if whole else "\n".join(reversed(pieces)))
        if late == before:
            return kept[::-1]


def _statements(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return None


def _source(cell: str, statement: ast.stmt) -> str:
    first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
    return "\n".join(cell.split("\n")[first - 1 : statement.end_lineno])


class Flow:
    """What statements do with names.

    Attributes:
        used: names whose values they take from earlier ones.
        late: names that functions in them use.
        given: names that they may give a value to.
        surely: names that they give a value to in any case.
    """

    def __init__(self, statements: list[ast.stmt], fixed: Names) -> None:
        self.fixed = fixed
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
                self.given |= _changed(statement) - self.fixed
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
        changed = _changed(node) - self.fixed
        self.given |= changed
        return used | late | changed


def _changed(node: ast.AST) -> Names:
    """Names whose objects are changed in place: x += 1, x[0] = 1, x.a = 1, and x.method() or f(x) for its own sake."""
    found = Names()
    for part in _outside_of_functions(node):
        targets: list[ast.expr] = []
        if isinstance(part, ast.Assign):
            targets = [target for target in part.targets if isinstance(target, ast.Subscript | ast.Attribute)]
        elif isinstance(part, ast.AugAssign):
            targets = [part.target]
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            targets = [*([part.value.func] if isinstance(part.value.func, ast.Attribute) else []), *part.value.args]
        for target in targets:
            while isinstance(target, ast.Subscript | ast.Attribute):
                target = target.value
            if isinstance(target, ast.Name):
                found.add(target.id)
    return found


def _outside_of_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from _outside_of_functions(child)


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
