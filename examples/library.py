"""The engine as a library: no Ray, no job, no network. It uses the bundled pair and takes some seconds.

python examples/library.py
"""

from __future__ import annotations

from specbatch.specdec import Engine, SamplingParams, SequenceOutput


def main() -> None:
    """Complete a few prompts, reproduce one of them alone, then feed the engine step by step."""
    engine = Engine.from_pretrained(
        "code-pair/target", draft="code-pair/draft-taught", max_batch_size=8, speculation="auto"
    )
    print(f"{engine.model_path} path, {engine.dtype} on {engine.device}")
    outputs = complete(engine)
    reproduce_alone(outputs[0])
    stream(engine)


def complete(engine: Engine) -> list[SequenceOutput]:
    """Text or token ids, with parameters of their own; the samples of a prompt stand one after another."""
    sampled = SamplingParams(max_new_tokens=48, temperature=0.7, top_p=0.95, seed=3)
    greedy = SamplingParams(max_new_tokens=48, stop=("\n\n",), logprobs=True)
    both = SamplingParams(max_new_tokens=24, temperature=0.7, seed=5, num_samples=2)
    prompts: list[str | list[int]] = ["def add(a, b):\n", "def read(path):\n", [17, 4, 99]]
    outputs = engine.generate(prompts, [sampled, greedy, both])
    titles = ["sampled", "greedy, ends at a blank line", "token ids, first sample", "token ids, second sample"]
    for title, output in zip(titles, outputs, strict=True):
        stats = output.stats
        print(
            f"--- {title}: {len(output.token_ids)} tokens, {output.finish_reason}, "
            f"{stats.num_accepted_draft_tokens} of {stats.num_draft_tokens} drafts accepted"
        )
        print(output.text)
    logprobs = outputs[1].logprobs
    if logprobs:
        print(f"--- mean log-probability of the greedy tokens: {sum(logprobs) / len(logprobs):.2f}")
    return outputs


def reproduce_alone(output: SequenceOutput) -> None:
    """A row's seed and parameters give its tokens again: without a draft, without batch mates."""
    plain = Engine.from_pretrained("code-pair/target", max_batch_size=1, speculation="off")
    params = SamplingParams(max_new_tokens=48, temperature=0.7, top_p=0.95, seed=3)
    (alone,) = plain.generate(["def add(a, b):\n"], params)
    print(f"--- the first row decoded alone and plainly has the same tokens: {alone.token_ids == output.token_ids}")


def stream(engine: Engine) -> None:
    """Submit at any time; a step moves every row on by a round and returns the rows that ended."""
    for number, prompt in enumerate(["import os\n", "def main():\n", "for i in range(10):\n"]):
        ids = engine.tokenizer.encode(prompt)
        engine.submit(prompt, ids, SamplingParams(max_new_tokens=8 * (number + 1)))
    num_steps = 0
    while engine.num_queued or engine.num_active:
        num_steps += 1
        for output in engine.step():
            print(f"--- step {num_steps}: {output.key!r} ended with {len(output.token_ids)} tokens")


if __name__ == "__main__":
    main()
