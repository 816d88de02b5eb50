"""The engine without Ray and without a job: complete two prompts, one of them given as token ids.

python examples/library.py
"""

from __future__ import annotations

from specbatch.specdec import Engine, SamplingParams


def main() -> None:
    """Load the bundled pair, decode, show text and bookkeeping."""
    engine = Engine.from_pretrained(
        "code-pair/target", draft="code-pair/draft-taught", max_batch_size=8, speculation="auto"
    )
    params = SamplingParams(max_new_tokens=64, temperature=0.7, top_p=0.95, seed=3)
    for output in engine.generate(["def add(a, b):\n", [17, 4, 99]], params):
        print(f"--- {output.finish_reason}, {output.stats.num_accepted_draft_tokens} draft tokens accepted")
        print(output.text)


if __name__ == "__main__":
    main()
