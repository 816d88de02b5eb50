"""What ``SamplingParams`` accepts, converts and refuses by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.sampling import SamplingParams, check_vocabulary


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0), ("max_new_tokens", 10**9), ("temperature", -1.0), ("temperature", math.nan),
        ("temperature", 0.001), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", math.nan), ("seed", -1),
        ("seed", 1 << 63), ("stop_token_ids", (-1,)), ("stop_token_ids", tuple(range(100))),
        ("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan), ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf), ("presence_penalty", 2.1), ("frequency_penalty", math.nan),
        ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}), ("logit_bias", {-1: 1.0}),
        ("logit_bias", ((1, 2.0), (1, 3.0))), ("logit_bias", {1.5: 1.0}), ("logit_bias", 7),
        ("logit_bias", dict.fromkeys(range(2000), 1.0)), ("banned_token_ids", (-1,)),
        ("banned_token_ids", (1.0,)), ("allowed_token_ids", ()), ("allowed_token_ids", (True,)),
        ("forced_token_ids", tuple(range(5000))), ("stop", ("",)), ("stop", ""), ("stop", (3,)),
        ("stop", tuple("abcdefghijklmnopqrstuvwxyz")), ("stop", ("x" * 300,)),
        ("stop", ("a\ud800",)), ("num_samples", 0),
        ("num_samples", 10**6), ("min_new_tokens", -1),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SpecbatchError, match=rf"^JOB_CONFIG: {field} is ") as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"min_new_tokens is 9; .* max_new_tokens \(8\)"),
        ({"num_samples": 2}, "num_samples is 2; .* temperature 0"),
        ({"forced_token_ids": (1, 2, 3), "max_new_tokens": 2}, "forced_token_ids .* no longer than"),
        ({"forced_token_ids": (1, 2), "banned_token_ids": (2,)}, r"forced_token_ids .* free of banned tokens \[2\]"),
        ({"forced_token_ids": (1, 2), "allowed_token_ids": (1,)}, r"forced_token_ids .* within allowed_token_ids"),
        ({"allowed_token_ids": (1, 2), "banned_token_ids": (2,)}, "allowed_token_ids .* free of banned"),
    ],
)
def test_conflicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecbatchError, match=message):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_bias": {50: 1.0}}, r"logit_bias is \[50\]; .* size, 50"),
        ({"banned_token_ids": (3, 99)}, r"banned_token_ids is \[99\]"),
        ({"allowed_token_ids": (50,)}, "allowed_token_ids"),
        ({"forced_token_ids": (77,)}, "forced_token_ids"),
        ({"forced_token_ids": (7, 1)}, "forced_token_ids .* stop id 7"),
        ({"forced_token_ids": (1, 7), "min_new_tokens": 2}, "forced_token_ids .* stop id 7"),
        ({"banned_token_ids": tuple(range(50))}, "banned_token_ids .* fewer"),
        ({"allowed_token_ids": (7,), "min_new_tokens": 1}, "min_new_tokens .* only stop ids"),
    ],
)
def test_what_no_token_can_satisfy_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecbatchError, match=message):
        check_vocabulary(SamplingParams(**settings), (7, 500), 50)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stop_token_ids": (1000,)},
        {"forced_token_ids": (1, 7)},
        {"forced_token_ids": (1,), "allowed_token_ids": (1, 7), "min_new_tokens": 1},
    ],
)
def test_what_some_token_satisfies_passes(settings: dict[str, Any]) -> None:
    check_vocabulary(SamplingParams(**settings), (7, 500), 50)


def test_lists_mappings_and_a_single_string_become_tuples() -> None:
    params = SamplingParams(
        logit_bias={"9": 1, 2: -0.5},  # type: ignore[arg-type]
        stop="END",  # type: ignore[arg-type]
        stop_token_ids=[1, 2],  # type: ignore[arg-type]
        allowed_token_ids=range(3),  # type: ignore[arg-type]
    )
    assert params.logit_bias == ((2, -0.5), (9, 1.0))
    assert (params.stop, params.stop_token_ids, params.allowed_token_ids) == (("END",), (1, 2), (0, 1, 2))
    assert params == SamplingParams(
        logit_bias=((9, 1.0), (2, -0.5)), stop=("END",), stop_token_ids=(1, 2), allowed_token_ids=(0, 1, 2)
    )
    assert len({params, SamplingParams()}) == 2, "hashable"


def test_another_seed_changes_nothing_else() -> None:
    """All fields set, so that one that is forgotten shows."""
    params = SamplingParams(
        max_new_tokens=9,
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        seed=1,
        ignore_eos=True,
        stop_token_ids=(4,),
        min_new_tokens=2,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=((5, 1.0),),
        banned_token_ids=(6,),
        allowed_token_ids=(5, 7),
        forced_token_ids=(7,),
        stop=("x",),
        num_samples=2,
        logprobs=True,
    )
    defaults = SamplingParams()
    assert all(getattr(params, field.name) != getattr(defaults, field.name) for field in dataclasses.fields(params))
    assert params.with_seed(8) == dataclasses.replace(params, seed=8)
    assert params.seed == 1
    with pytest.raises(SpecbatchError, match="seed is -1"):
        params.with_seed(-1)
