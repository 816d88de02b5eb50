"""Profiles on disk: found by what they hold for, refused with the difference, never half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_profiles import HERE, make_profile, make_step

from specbatch.jobs.profiles.store import cache_path, differences, find_profile, read_profile, save_profile
from specbatch.jobs.profiles.use import use_profile
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import ExecutionSpec
from specbatch.specdec.models.ledger import Entry, Ledger
from specbatch.specdec.models.memory import MemoryPlan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "specbatch" / "profiles"


def test_a_profile_survives_the_disk(cache: Path) -> None:
    profile = make_profile()
    path = cache_path(profile.key)
    assert path == cache / f"{profile.key}.json"
    save_profile(profile, path)
    assert read_profile(path) == profile
    assert [file.name for file in cache.iterdir()] == [path.name]
    assert json.loads(path.read_text())["format"] == "specbatch/profile/1"


def test_auto_takes_that_of_this_pair_on_this_machine_and_no_other() -> None:
    profile = make_profile()
    path = cache_path(profile.key)
    assert path is not None
    assert find_profile("auto", HERE) is None
    save_profile(profile, path)
    assert find_profile("auto", HERE) == (profile, path)
    assert find_profile("none", HERE) is None
    assert find_profile("auto", HERE.model_copy(update={"num_threads": 4})) is None


def test_a_damaged_or_foreign_cache_is_no_profile_and_no_error() -> None:
    path = cache_path(HERE.key)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert find_profile("auto", HERE) is None
    save_profile(make_profile(circumstances=HERE.model_copy(update={"dtype": "float64"})), path)
    assert find_profile("auto", HERE) is None


def test_a_named_profile_of_other_circumstances_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    theirs = HERE.model_copy(update={"device_name": "Another processor", "draft_sha256": None})
    save_profile(make_profile(circumstances=theirs), path)
    with pytest.raises(SpecbatchError) as caught:
        find_profile(str(path), HERE)
    assert caught.value.code is ErrorCode.JOB_CONFIG
    assert "device name: Another processor there, A processor here" in caught.value.message
    assert "draft: none there, bbbbbbbbbbbb here" in caught.value.message
    assert "\n" not in caught.value.message
    assert find_profile(str(path), theirs) is not None


def test_every_circumstance_counts() -> None:
    for name, value in HERE.model_dump().items():
        other = HERE.model_copy(update={name: value + 1 if isinstance(value, int) else f"{value}x"})
        assert other.key != HERE.key
        assert len(differences(other, HERE)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("not json", "Invalid JSON"),
        ("{}", "Field required"),
        ('{"format": "specbatch/profile/99"}', "Field required"),
        ('{"' + "x" * 9_000_000 + '": 1}', "larger than"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecbatchError) as caught:
        find_profile(str(path), HERE)
    assert caught.value.code is ErrorCode.JOB_CONFIG
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_a_profile_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(make_profile().model_copy(update={"format": "specbatch/profile/99"}), path)
    with pytest.raises(SpecbatchError, match="specbatch/profile/99"):
        read_profile(path)


@pytest.mark.parametrize("field", ["seconds", "overhead"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, field: str, value: float) -> None:
    path = tmp_path / "profile.json"
    document = make_profile().model_dump(mode="json")
    document["trial"][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(SpecbatchError):
        read_profile(path)


def test_a_table_without_plain_steps_and_more_accepted_than_judged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for change in (
        {"steps": [make_step(8, 2, seconds=0.1).model_dump()]},
        {"acceptance": [{"reached": 1, "accepted": 2}]},
    ):
        path.write_text(json.dumps({**make_profile().model_dump(mode="json"), **change}))
        with pytest.raises(SpecbatchError, match="must"):
            read_profile(path)


def test_a_profile_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecbatchError) as caught:
        save_profile(make_profile(), tmp_path / "file" / "profile.json")
    assert caught.value.code is ErrorCode.JOB_OUTPUT_UNWRITABLE


def memory(batch_size: int, num_rows: int) -> MemoryPlan:
    """A plan in which so many rows fit."""
    ledger = Ledger(
        available_bytes=100 + num_rows * 10,
        memory_fraction=1.0,
        fixed=(Entry("weights", 100),),
        kv=(Entry("KV", 1),),
        row_bytes=0,
        row_tokens=10,
        batch_size=batch_size,
    )
    return MemoryPlan(None, ledger, False, None)


STEPS = [make_step(8, 0, seconds=0.1), make_step(16, 0, seconds=0.1), make_step(32, 0, seconds=0.4)]


def test_a_job_takes_the_batch_size_that_was_clearly_faster() -> None:
    profile = make_profile(steps=STEPS)
    path = cache_path(HERE.key)
    assert path is not None
    save_profile(profile, path)

    def taken(execution: ExecutionSpec, plan: MemoryPlan | None) -> int | None:
        used = use_profile(execution, HERE, speculation="auto", memory=plan)
        assert used is not None
        assert used.document()["key"] == profile.key
        return used.batch_size

    assert taken(ExecutionSpec(), memory(32, 1000)) == 16
    assert taken(ExecutionSpec(), memory(16, 1000)) is None  # it would be taken anyway
    assert taken(ExecutionSpec(), memory(12, 12)) is None  # 16 do not fit, and 8 are slower
    assert taken(ExecutionSpec(batch_size=32), memory(32, 1000)) is None  # the user has decided
    assert taken(ExecutionSpec(), None) is None  # the memory cannot be seen from here
    assert use_profile(ExecutionSpec(profile="none"), HERE, speculation="auto", memory=memory(32, 99)) is None


def test_a_job_that_goes_on_elsewhere_does_without_its_profile(tmp_path: Path) -> None:
    gone = ExecutionSpec(profile=str(tmp_path / "gone.json"))
    assert use_profile(gone, HERE, speculation="auto", memory=None, is_stored=True) is None
    with pytest.raises(SpecbatchError, match=r"gone\.json"):
        use_profile(gone, HERE, speculation="auto", memory=None)


def test_a_cluster_takes_no_profile_of_this_machine_by_itself() -> None:
    path = cache_path(HERE.key)
    assert path is not None
    save_profile(make_profile(steps=STEPS), path)
    on_cluster = ExecutionSpec(address="head:6379")
    assert use_profile(on_cluster, HERE, speculation="auto", memory=None) is None
    named = ExecutionSpec(address="head:6379", profile=str(path))
    assert use_profile(named, HERE, speculation="auto", memory=None) is not None
