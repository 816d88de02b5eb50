"""Rebuild the demo pair from text that every Python installation has; no network, no accelerator.

    python examples/demo_pair/build_pair.py --out my-pair                 all stages, up to an hour, 2 cores
    python examples/demo_pair/build_pair.py --out my-pair --scale 0.002   all stages in a minute: a rehearsal
    python examples/demo_pair/build_pair.py --out my-pair --only measure  one stage

Stages, in order: `tokenizer` (byte-level BPE), `target` (next-token training on source code), `taught` (a
draft distilled from the target), `stranger` (a draft of the same shape that has read English prose only),
`measure`. Each writes its result whole or not at all, and a stage whose result exists is skipped unless
`--force` is given: an interrupted run continues with the stage that was cut off, and a folder that
already holds a `target/` gets its drafts, with the target's own tokenizer. `--force` without `--only`
starts from nothing; with `--only` it redoes that stage alone.

Needs torch, transformers, tokenizers and safetensors.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import measure_pair, table
from pair_text import CodeText, pack, read_code, read_prose, train_tokenizer
from pair_train import (
    TOKENS_PER_STEP,
    distil,
    held_out_loss,
    load,
    new_model,
    own_text,
    save,
    train_on_text,
    windows,
)
from tokenizers import Tokenizer

STAGES = ("tokenizer", "target", "taught", "stranger", "measure")
_RESULTS = {
    "tokenizer": "tokenizer.json",
    "target": "target",
    "taught": "draft-taught",
    "stranger": "draft-stranger",
    "measure": "measured.json",
}
# Steps of TOKENS_PER_STEP tokens at --scale 1, and peak learning rates.
_STEPS = {"target": 2600, "taught": 1800, "stranger": 600}
_RATES = {"target": 2.5e-3, "taught": 4e-3, "stranger": 3e-3}
_OWN_ROWS = 3000


@dataclass(frozen=True)
class Build:
    """One run over one folder."""

    out: Path
    seed: int
    scale: float

    @functools.cached_property
    def code(self) -> CodeText:
        """The standard library's source."""
        return read_code()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this folder, or that of a target that came here ready-made."""
        for path in (self.result("tokenizer"), self.result("target") / "tokenizer.json"):
            if path.is_file():
                return Tokenizer.from_file(str(path))
        raise SystemExit(f"{self.out}: no tokenizer yet; run the stage 'tokenizer' first")

    @functools.cached_property
    def code_stream(self) -> torch.Tensor:
        """The training text as one stream of token ids."""
        return pack(self.tokenizer, self.code.train)

    def steps(self, stage: str) -> int:
        """Training steps of a stage at this scale."""
        return max(2, round(_STEPS[stage] * self.scale))

    def result(self, stage: str) -> Path:
        """What a stage leaves behind."""
        return self.out / _RESULTS[stage]

    def exists(self, stage: str) -> bool:
        """Whether a stage need not run again; a target brings its tokenizer, figures are taken anew."""
        if stage == "measure":
            return False
        return self.result(stage).exists() or (stage == "tokenizer" and self.result("target").exists())

    def run(self, stage: str) -> None:
        """Run one stage; its random numbers depend on the seed and the stage, not on what ran before."""
        torch.manual_seed(1000 * self.seed + STAGES.index(stage))
        shutil.rmtree(self.out / f"{_RESULTS[stage]}.partial", ignore_errors=True)  # of a run cut off
        getattr(self, f"_{stage}")()

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(torch.initial_seed())

    def _tokenizer(self) -> None:
        tokenizer = train_tokenizer(self.code.train)
        tokenizer.save(str(self.result("tokenizer")))
        self.__dict__.pop("tokenizer", None)
        self._say(f"{tokenizer.get_vocab_size()} tokens from {self.code.train_bytes / 1e6:.1f} MB of source")

    def _target(self) -> None:
        model = new_model("target", self.tokenizer.get_vocab_size())
        batches = windows(self.code_stream, self._generator())
        train_on_text(model, batches, self.steps("target"), _RATES["target"], self._say)
        loss = held_out_loss(model, pack(self.tokenizer, self.code.held_out))
        self._say(f"loss on {len(self.code.held_out)} held-out files: {loss:.3f}")
        save(model, self.tokenizer, self.result("target"))

    def _taught(self) -> None:
        if not self.exists("target"):
            raise SystemExit(f"{self.out}: no target yet; run the stage 'target' first")
        target = load(self.result("target"))
        generator = self._generator()
        own = own_text(target, self.code_stream, max(8, round(_OWN_ROWS * self.scale)), generator, self._say)
        draft = new_model("draft-taught", self.tokenizer.get_vocab_size())
        batches = windows(self.code_stream, generator)
        distil(draft, target, batches, own, self.steps("taught"), _RATES["taught"], self._say)
        save(draft, self.tokenizer, self.result("taught"))

    def _stranger(self) -> None:
        prose = read_prose(self.code)
        stream = pack(self.tokenizer, prose)
        self._say(f"{len(stream)} tokens of prose in {len(prose)} documents")
        draft = new_model("draft-stranger", self.tokenizer.get_vocab_size())
        batches = windows(stream, self._generator())
        train_on_text(draft, batches, self.steps("stranger"), _RATES["stranger"], self._say)
        save(draft, self.tokenizer, self.result("stranger"))

    def _measure(self) -> None:
        if not self.exists("target"):
            raise SystemExit(f"{self.out}: no target yet; run the stage 'target' first")
        rehearsal = self.scale < 0.1
        figures = measure_pair(self.out, tokens=8 if rehearsal else 96, with_loss=not rehearsal)
        self.result("measure").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        self._say(table(figures))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Rebuild the demo pair from the standard library's source.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pair")
    parser.add_argument("--only", choices=STAGES, help="run this stage only")
    parser.add_argument("--scale", type=float, default=1.0, help=f"share of the full steps ({_STEPS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    parser.add_argument("--force", action="store_true", help="redo stages whose result exists")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    build = Build(options.out, options.seed, options.scale)
    stages = (options.only,) if options.only else STAGES
    for stage in stages:
        if build.exists(stage) and not options.force:
            print(f"[{stage}] is there, skipped", flush=True)
            continue
        size = f", {build.steps(stage)} steps of {TOKENS_PER_STEP} tokens" if stage in _STEPS else ""
        print(f"[{stage}]{size}", flush=True)
        build.run(stage)


if __name__ == "__main__":
    main()
