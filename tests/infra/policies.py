"""IAM policies, evaluated: an explicit deny wins over an allow, and what nobody allows is denied.

Only what the files in ``infra/aws/policies`` use is known; any other element, operator or variable is an error, so that
a policy which this cannot judge is never taken for a safe one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "aws" / "policies"
PLACEHOLDERS = {
    "INPUT_BUCKET": "prompts-bucket",
    "INPUT_PREFIX": "prompts",
    "OUTPUT_BUCKET": "answers-bucket",
    "OUTPUT_PREFIX": "answers",
    "ACCOUNT": "111122223333",
}
_ELEMENTS = frozenset({"Sid", "Effect", "Action", "Resource", "Condition", "Principal"})


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to S3 as a policy sees it.

    Attributes:
        context: condition keys that the request has; one that it has not is left out.
    """

    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()


def load(name: str, values: Mapping[str, str] = PLACEHOLDERS) -> dict[str, Any]:
    """A policy file with its placeholders filled in."""
    text = (FOLDER / f"{name}.json").read_text()
    for placeholder, value in values.items():
        text = re.sub(rf"\b{placeholder}\b", value, text)
    policy: dict[str, Any] = json.loads(text)
    assert set(policy) == {"Version", "Statement"}, name
    return policy


def allows(policies: Sequence[dict[str, Any]], ask: Ask) -> bool:
    """Whether policies of one account, those of the role and of the bucket together, let a request through."""
    effects = {
        statement["Effect"] for policy in policies for statement in policy["Statement"] if _applies(statement, ask)
    }
    assert effects <= {"Allow", "Deny"}, effects
    return effects == {"Allow"}


def _applies(statement: Mapping[str, Any], ask: Ask) -> bool:
    unknown = set(statement) - _ELEMENTS
    assert not unknown, f"cannot judge {unknown}"
    assert statement.get("Principal", "*") == "*", "cannot judge a principal"
    return (
        any(_like(pattern.lower(), ask.action.lower()) for pattern in _listed(statement["Action"]))
        and any(_like(pattern, ask.resource) for pattern in _listed(statement["Resource"]))
        and all(
            _holds(operator, key, _listed(values), dict(ask.context))
            for operator, block in statement.get("Condition", {}).items()
            for key, values in block.items()
        )
    )


def _holds(operator: str, key: str, values: list[str], context: Mapping[str, str]) -> bool:
    found = context.get(key)
    if operator == "Null":
        return (found is None) == (values == ["true"])
    if operator.endswith("IfExists"):
        if found is None:
            return True
        operator = operator.removesuffix("IfExists")
    if operator == "ArnNotLike":  # like every negated operator, true where there is no such key
        return found is None or not any(_like(value, found) for value in values)
    if found is None:
        return False
    match operator:
        case "StringEquals" | "Bool":
            return found in values
        case "StringLike" | "ArnLike":
            return any(_like(value, found) for value in values)
    raise AssertionError(f"cannot judge the operator {operator}")


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _like(pattern: str, text: str) -> bool:
    return _pattern(pattern).fullmatch(text) is not None


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    assert "${" not in pattern, f"cannot judge the variable in {pattern}"
    pieces = {"*": ".*", "?": "."}
    return re.compile("".join(pieces.get(char, re.escape(char)) for char in pattern), re.DOTALL)
