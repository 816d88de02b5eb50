"""The Markdown of a run: the aims first, then every cell, what was left out, and the checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gpu.plan import AUTO, AUTO_MODEL, BATCHED_PEERS, GENERATE_BATCH, PEER_BATCHES, PLAIN, UNCAPTURED

MOST_OVER_ROOF, LEAST_OVER_BATCH = 1.25, 2.5
ROOF_BATCHES = (1, 32)
Cell = tuple[str, int, int]
Cells = dict[Cell, dict[str, dict[str, Any]]]

_HEADER = (
    "| batch | side | tokens/s | rounds timed (left out for captures) | ms per round | roof, ms | round / roof "
    "| accepted per row and round | share of K | acceptance | / plain | / generate_batch | / best peer "
    "| equal rows | prompts, tokens/s | setting |"
)


def cells_of(results: Iterable[dict[str, Any]]) -> Cells:
    """Measured figures by cell and side."""
    cells: Cells = {}
    for result in results:
        if result["status"] == "measured" and not result["check"]:
            cells.setdefault((result["model"], result["batch"], result["context"]), {})[result["side"]] = result
    return cells


def over_roof(result: dict[str, Any]) -> float | None:
    """Seconds of a round over those that the memory needs for its bytes."""
    if not result.get("roof_seconds"):
        return None
    return float(result["round_seconds"] / result["roof_seconds"])


def aims(cells: Cells, acceptance: str) -> list[tuple[str, str]]:
    """(aim, verdict) with the number behind it."""
    near = [
        (ratio, f"{side}, {_name(cell)}")
        for cell, sides in cells.items()
        for side in (PLAIN, AUTO)
        if ROOF_BATCHES[0] <= cell[1] <= ROOF_BATCHES[1] and side in sides
        if (ratio := over_roof(sides[side])) is not None
    ]
    never_below = [
        (sides[AUTO]["tokens_per_second"] / max(plain), _name(cell))
        for cell, sides in cells.items()
        if AUTO in sides
        and (plain := [sides[s]["tokens_per_second"] for s in (PLAIN, PLAIN + UNCAPTURED) if s in sides])
    ]
    return [
        (
            f"up to batch {ROOF_BATCHES[1]}, `plain` and `auto` take at most {MOST_OVER_ROOF} of the roof of their "
            "rounds' bytes",
            _verdict(near, max, lambda ratio: ratio <= MOST_OVER_ROOF),
        ),
        ("`auto` is never below the best of `plain`", _verdict(never_below, min, lambda ratio: ratio >= 1.0)),
        *(
            (
                f"`{side}` gives at least {LEAST_OVER_BATCH} times {named} at batch {PEER_BATCHES[0]} to "
                f"{PEER_BATCHES[1]} (acceptance asked of the draft model: {acceptance})",
                _verdict(_ahead(cells, side, peers), min, lambda ratio: ratio >= LEAST_OVER_BATCH),
            )
            for side in (AUTO_MODEL, AUTO)
            for peers, named in (
                ((GENERATE_BATCH,), "`generate_batch`"),
                (BATCHED_PEERS, "the best batched peer of the cell"),
            )
        ),
    ]


def _ahead(cells: Cells, side: str, peers: Sequence[str]) -> list[tuple[float, str]]:
    """Ratios to the best of some peers, where one of them was measured."""
    return [
        (sides[side]["tokens_per_second"] / sides[best]["tokens_per_second"], f"{_name(cell)}, against {best}")
        for cell, sides in cells.items()
        if PEER_BATCHES[0] <= cell[1] <= PEER_BATCHES[1] and side in sides
        if (best := best_peer(sides, peers)) is not None
    ]


def best_peer(sides: dict[str, dict[str, Any]], peers: Sequence[str] = BATCHED_PEERS) -> str | None:
    """The fastest of some peers in a cell; None where none was measured."""
    return max((peer for peer in peers if peer in sides), key=lambda peer: _speed(sides[peer]), default=None)


def _speed(result: dict[str, Any]) -> float:
    return float(result["tokens_per_second"])


def _verdict(found: list[tuple[float, str]], worst_of: Any, is_met: Any) -> str:
    if not found:
        return "not measured"
    worst, where = worst_of(found)
    met = sum(is_met(ratio) for ratio, _ in found)
    return f"{'yes' if met == len(found) else '**no**'}: worst {worst:.2f} ({where}); {met} of {len(found)} meet it"


def _name(cell: Cell) -> str:
    return f"{cell[0]} batch {cell[1]} x {cell[2]}"


def render(document: dict[str, Any]) -> str:
    """The whole report."""
    recipe, results = document["recipe"], document["results"]
    cells = cells_of(results)
    hardware, roof = document["hardware"], document["roof"]
    lines = ["# Decoding against the memory roof", ""]
    lines += [f"- {aim}: {verdict}" for aim, verdict in aims(cells, recipe["acceptance"])]
    lines += ["", *_description(recipe, hardware, roof, document), ""]
    for model, context in dict.fromkeys((cell[0], cell[2]) for cell in cells):
        lines += [f"## {model}, prompts of {context} tokens", "", *_table(cells, model, context, roof), ""]
        lines += _drafts(cells, model, context)
    lines += [*_missing(results, document["not_reached"]), *_checks(results)]
    return "\n".join(lines).rstrip() + "\n"


def _description(
    recipe: dict[str, Any], hardware: dict[str, Any], roof: dict[str, float], document: dict[str, Any]
) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in hardware.get("versions", {}).items())
    yield (
        f"Device: {hardware.get('device', 'unknown')}{_memory(hardware)}, {hardware.get('cores')} cores, load before: "
        f"{hardware.get('load_average')}. Versions: {versions}. Flash kernels for the peers: "
        f"{', '.join(hardware.get('flash_kernels') or []) or 'none is installed'}. Date: {document['date']}. "
        f"{document['seconds']:.0f} s. Command: `{document['command']}`."
    )
    if roof:
        yield (
            f"Measured in the same run: copy {roof['copy_bytes_per_second'] / 1e9:.0f}, triad "
            f"{roof['triad_bytes_per_second'] / 1e9:.0f}, sum {roof['sum_bytes_per_second'] / 1e9:.0f} GB/s; the "
            f"roof is the best of them. A square product in {recipe['dtype']}: "
            f"{roof['flops_per_second'] / 1e12:.3g} TFLOP/s."
        )
    if recipe["acceptance"] == "own":
        how = "the draft is the bundled taught one, inflated: acceptance is the pair's own"
    else:
        how = (
            "the draft is synthetic: the small target with noise on its weights, as much as makes its first choice the "
            f"target's for about {recipe['acceptance']} of the tokens, inflated"
        )
    yield (
        f"Models: the bundled target inflated to the layer shapes named, {recipe['dtype']}; {how}. The target's text "
        "is its own. "
        + " ".join(
            f"{name}: target {shapes['target'] / 1e6:.0f} M, draft {shapes['draft'] / 1e6:.0f} M parameters."
            for name, shapes in recipe["parameters"].items()
        )
        + " The vocabulary stays the pair's 4,096."
    )
    yield (
        f"Greedy, {recipe['new_tokens']} new tokens a row, end of sequence ignored. A round's bytes: weights of the "
        "target and keys and values of all rows once, and the same for every draft step. The engine's speed is that of "
        f"at least {recipe['rounds']} rounds behind as many that warm up, all rows in flight; rounds that a graph was "
        "captured in are left out, and their number and seconds stand beside. A peer's is the difference between a "
        "whole run and one that ends with the first token. Equal rows: share that says what `plain` said, as far as "
        "both went."
    )


def _table(cells: Cells, model: str, context: int, roof: dict[str, float]) -> Iterator[str]:
    yield _HEADER
    yield "|" + " --- |" * (_HEADER.count("|") - 1)
    chosen = sorted(cell for cell in cells if (cell[0], cell[2]) == (model, context))
    for cell in chosen:
        sides = cells[cell]
        for side, result in sides.items():
            speed = result["tokens_per_second"]
            against = [
                _speed(sides[other]) if other is not None and other in sides else None
                for other in (PLAIN, GENERATE_BATCH, best_peer(sides))
            ]
            prompts = _number(result.get("prefill_tokens_per_second"), ".0f")
            if result.get("prefill_flops_per_second") and roof:
                prompts += (
                    f" ({result['prefill_flops_per_second'] / roof['flops_per_second']:.0%} of the product's FLOP/s)"
                )
            columns = [
                str(cell[1]),
                side,
                f"{speed:.1f}",
                _rounds(result),
                _number(result.get("round_seconds"), ".2f", 1e3),
                _number(result.get("roof_seconds"), ".2f", 1e3),
                _number(over_roof(result), ".2f"),
                _number(result.get("accepted_per_round") if result.get("acceptance") else None, ".2f"),
                _number(result.get("accepted_share"), ".0%"),
                _number(result.get("acceptance"), ".2f"),
                *(_number(speed / other if other else None, ".2f") for other in against),
                _number(result.get("equal_rows"), ".0%"),
                prompts,
                result.get("setting", ""),
            ]
            yield "| " + " | ".join(columns) + " |"


def _drafts(cells: Cells, model: str, context: int) -> Iterator[str]:
    """How often the synthetic draft's first choice was the target's, where there is one."""
    found = [
        result["draft_agreement"]
        for cell, sides in cells.items()
        for result in sides.values()
        if (cell[0], cell[2]) == (model, context) and result["draft_agreement"] is not None
    ]
    if found:
        yield from (f"Draft set to agree on {found[-1]:.2f} of the target's tokens behind these prompts.", "")


def _memory(hardware: dict[str, Any]) -> str:
    return f" with {hardware['memory_bytes'] / 2**30:.0f} GiB" if hardware.get("memory_bytes") else ""


def _rounds(result: dict[str, Any]) -> str:
    """How many rounds were timed, and what captures took of the same window."""
    if not result.get("captured_rounds"):
        return str(result.get("rounds", ""))
    return f"{result['rounds']} ({result['captured_rounds']}, {result['captured_seconds']:.2f} s)"


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def _missing(results: Iterable[dict[str, Any]], not_reached: Iterable[dict[str, Any]]) -> Iterator[str]:
    failed = [f"- {_task(result)}: {result['reason']}" for result in results if result["status"] == "failed"]
    failed += [
        f"- {_task(result)}, tried with {setting}: {reason}"
        for result in results
        for setting, reason in result.get("failed_settings", {}).items()
    ]
    if failed:
        yield from ("## Failed", "", *failed, "")
    left_out: dict[str, list[str]] = {}
    for result in results:
        if result["status"] == "left out":
            # What differs from task to task stands behind a colon.
            reason = result["reason"].split(": it takes about")[0]
            left_out.setdefault(reason, []).append(_task(result))
    if left_out:
        yield from ("## Left out", "")
        yield from (f"- {reason}: {'; '.join(tasks)}" for reason, tasks in left_out.items())
        yield ""
    waiting = [_task(result) for result in not_reached]
    if waiting:
        yield from ("## Not reached", "", f"The run has not ended, or was ended: {'; '.join(waiting)}", "")


def _task(result: dict[str, Any]) -> str:
    if result["check"]:
        return f"check {result['check']}"
    return f"{_name((result['model'], result['batch'], result['context']))}, {result['side']}"


def _checks(results: Iterable[dict[str, Any]]) -> Iterator[str]:
    done = [result for result in results if result["check"] and result["status"] == "measured"]
    if done:
        yield from ("## The engine on this device, bundled pair", "")
    for result in done:
        ended = "" if result["is_whole"] else " (ended early: no time)"
        if result["check"] == "bfloat16":
            yield from (f"Rows that differ in bfloat16 from batch 1 without drafts{ended}:", "")
            yield "| arithmetic | temperature | batch | K | rows | tokens | differing rows | seconds |"
            yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
            yield from (
                f"| {'bitwise' if e['bitwise'] else 'usual'} | {e['temperature']} | {e['batch']} | {e['K']} "
                f"| {e['rows']} | {e['tokens']} | {e['differing']:.0%} | {e['seconds']:.1f} |"
                for e in result["entries"]
            )
        else:
            entries = result["entries"]
            same = sum(entry["equal_to_twin"] == 1.0 for entry in entries)
            host = sum(entry["equal_to_host_twin"] == 1.0 for entry in entries)
            yield (
                f"{result['check']}{ended}: {same} of {len(entries)} settings (path, temperature, K, batch) say in "
                f"every row what the slow twin says on this device, {host} what it says on the host in float64."
            )
            yield from (
                f"- differs: {e['path']}, temperature {e['temperature']}, K = {e['K']}, batch {e['batch']}: "
                f"{e['equal_to_twin']:.0%} of the rows equal"
                for e in entries
                if e["equal_to_twin"] < 1.0
            )
        yield ""
