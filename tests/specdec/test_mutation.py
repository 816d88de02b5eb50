"""Whoever changes the acceptance rule is caught: every small change to ``accept`` and ``commit`` fails the naive loop.

Each mutant is the module's own source with one node of its syntax tree changed. A mutant that gives the same results as
the loop on every case either shows that the cases are too weak, which fails here, or is the same function in other
words, which is written down in ``EQUIVALENT`` with the reason.
"""

from __future__ import annotations

import ast
import copy
import inspect
import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from test_accept import Round, every_offset, in_one_batch, token_by_token

from specbatch.specdec import accept as module
from specbatch.specdec.accept import NO_CUT

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq, ast.GtE, ast.LtE),
    ast.Lt: (ast.LtE, ast.GtE, ast.NotEq),
    ast.Is: (ast.IsNot,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
FUNCTIONS = {"minimum": "maximum", "cumprod": "cumsum", "any": "all", "argmax": "argmin", "sum": "max"}
DROPPED_TO_AN_ARGUMENT = ("minimum", "cumprod", "where")

EQUIVALENT = {
    "accept: np.arange(K) < draft_length_B[:, None] -> np.arange(K) != draft_length_B[:, None]": (
        "a mismatch right behind a row's drafts ends its run of matches like a mismatch everywhere behind them"
    ),
    "commit: string_B == num_committed_B -> string_B <= num_committed_B": "the committed tokens end at the cut at most",
    "commit: stop_B == num_committed_B -> stop_B <= num_committed_B": "the committed tokens end at the stop id at most",
    "commit: num_remaining_B == num_committed_B -> num_remaining_B <= num_committed_B": "never more than remain",
}


def cases() -> list[Round]:
    """Every terminator at every offset for small K, and random rounds over so few tokens that they collide."""
    generator = random.Random(7)
    rounds = every_offset(3)
    for _ in range(300):
        target = tuple(generator.randrange(4) for _ in range(generator.randint(1, 6)))
        drafts = tuple(token if generator.random() < 0.7 else generator.randrange(4) for token in target[:-1])
        stops = tuple(generator.sample(range(4), generator.choice((0, 1, 2))))
        cut = generator.choice((NO_CUT, generator.randint(1, 7)))
        rounds.append(Round(drafts, target, generator.randint(1, 8), stops, cut))
    return rounds


CASES = cases()
UNCUT = [r for r in CASES if r.cut == NO_CUT]
PLAIN = [r for r in CASES if not r.drafts]
EXPECTED = [[token_by_token(r) for r in rounds] for rounds in (CASES, UNCUT, PLAIN)]


def survives(source: ast.Module) -> bool:
    """The module does what the loop does. One that raises does not."""
    # The name is the real one because dataclasses look their module up.
    names = {"__name__": module.__name__}
    try:
        exec(compile(source, "<mutant>", "exec"), names)
        mutant = SimpleNamespace(**names)
        found = [in_one_batch(CASES, mutant), in_one_batch(UNCUT, mutant, with_cut=False), in_one_batch(PLAIN, mutant)]
    except Exception:
        return False
    return found == EXPECTED


def alternatives(node: ast.AST) -> Iterator[ast.expr | ast.Slice]:
    """Small changes of one node."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right):
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(left, [other()], right)
        case ast.BinOp(left=left, op=op, right=right):
            yield ast.BinOp(left, OPERATORS[type(op)](), right)
            yield left
            if isinstance(op, ast.BitAnd | ast.BitOr):
                yield right
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            yield operand
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Slice(lower=None, upper=ast.expr()):
            yield ast.Slice(ast.Constant(1), None)
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=arguments, keywords=keywords):
            if name in FUNCTIONS:
                yield ast.Call(ast.Attribute(owner, FUNCTIONS[name], ast.Load()), arguments, keywords)
            if name in DROPPED_TO_AN_ARGUMENT:
                yield from arguments
            if name == "where":
                yield ast.Call(node.func, [arguments[0], arguments[2], arguments[1]], keywords)


class Replace(ast.NodeTransformer):
    """Put a copy of another node in the place of one."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return copy.deepcopy(self.new) if node is self.old else super().generic_visit(node)


def mutants() -> Iterator[tuple[str, ast.Module]]:
    """Every change of every node in the bodies of the two functions, named by what it changes."""
    text = inspect.getsource(module)
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert names == ["accept", "commit"]
    for name in names:
        nodes = list(_expressions(ast.parse(text), name))
        for index, node in enumerate(nodes):
            for number, new in enumerate(alternatives(node)):
                description = f"{name}: {ast.unparse(node)} -> {ast.unparse(new)}"
                # A tree of its own, because a transformer changes in place and the alternatives share nodes.
                tree = ast.parse(text)
                place = list(_expressions(tree, name))[index]
                changed = Replace(place, list(alternatives(place))[number]).visit(tree)
                yield description, ast.fix_missing_locations(changed)


def _expressions(tree: ast.Module, function: str) -> Iterator[ast.AST]:
    body = next(node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    for statement in body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Return) else None
        if value is not None:
            yield from ast.walk(value)


def test_the_module_itself_survives_and_the_mutants_are_many() -> None:
    assert survives(ast.parse(inspect.getsource(module)))
    descriptions = [description for description, _ in mutants()]
    assert len(set(descriptions)) >= 60
    assert set(EQUIVALENT) <= set(descriptions), "a mutant that is said to be equivalent is none any more"


def test_no_mutant_of_the_acceptance_rule_survives() -> None:
    surviving = {description for description, tree in mutants() if survives(tree)}
    assert sorted(surviving - set(EQUIVALENT)) == []
    assert sorted(set(EQUIVALENT) - surviving) == [], "said to be equivalent, and is not"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_matched_B + 1, num", "num_matched_B + 0, num"),
        ("num_matched_B + 1, num", "num_matched_B + 2, num"),
        ("np.cumprod(is_match_BK, axis=1, dtype=np.int64)", "is_match_BK.astype(np.int64)"),
        ("target_BT[:, :K]", "target_BT[:, 1:]"),
        ("is_stop_BT.argmax(axis=1) + 1", "is_stop_BT.argmax(axis=1)"),
        ("np.minimum(num_candidates_B, np.minimum(stop_B, string_B))", "np.minimum(stop_B, string_B)"),
        ("np.minimum(num_matched_B + 1, num_remaining_B)", "num_matched_B + 1"),
        (" & ~is_stopped_B & ~is_cut_B", " & ~is_stopped_B"),
        (" & (np.arange(K) < draft_length_B[:, None])", ""),
        ("np.minimum(num_matched_B, num_committed_B)", "num_matched_B"),
        ("np.minimum(draft_length_B, num_committed_B)", "draft_length_B"),
    ],
)
def test_the_mistakes_of_other_engines_are_caught(old: str, new: str) -> None:
    """A token too few or too many, a match behind a refusal, a stop id behind a refusal, books that do not stop."""
    source = inspect.getsource(module)
    assert source.count(old) == 1
    assert not survives(ast.parse(source.replace(old, new)))
