"""What is asked of the engine, checked and resolved to sequences that wait for a slot. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.sampling import SamplingParams, check_vocabulary
from specbatch.schemas.seeds import prompt_seed
from specbatch.specdec.rows.slots import Request
from specbatch.specdec.rows.stops import StopMatcher
from specbatch.specdec.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Intake:
    """What every request is resolved with.

    Attributes:
        eos_ids: end a row unless its parameters ignore them.
        context_length: most tokens of prompt and completion together.
    """

    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    context_length: int

    def samples(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Request]:
        """Every sample of every prompt, each with its seed, under its number; as ``Engine.generate`` says.

        Raises:
            SpecbatchError: JOB_CONFIG where parameters are not one for each prompt; what ``request`` raises.
        """
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=prompt_seed(params.seed, index)) for index in range(len(prompts))]
        if len(params) != len(prompts):
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{len(params)} SamplingParams for {len(prompts)} prompts")
        encoded = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        requests: list[Request] = []
        for ids, row in zip(encoded, params, strict=True):
            for sample in range(row.num_samples):
                one = replace(row, num_samples=1, seed=prompt_seed(row.seed, sample))
                requests.append(self.request(len(requests), ids, one))
        return requests

    def request(self, key: Hashable, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """One sequence for the queue.

        Raises:
            SpecbatchError: ROW_PROMPT_EMPTY, ROW_TOO_LONG; JOB_CONFIG for ids outside the vocabulary.
        """
        ids = tuple(int(token) for token in prompt_ids)
        if not ids:
            raise SpecbatchError(ErrorCode.ROW_PROMPT_EMPTY, "the prompt has no tokens")
        if len(ids) >= self.context_length:
            raise SpecbatchError(
                ErrorCode.ROW_TOO_LONG,
                f"the prompt has {len(ids)} tokens; a context of {self.context_length} leaves no room for a completion",
            )
        vocab_size = self.tokenizer.vocab_size
        if not all(0 <= token < vocab_size for token in ids):
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"prompt ids must be from 0 to {vocab_size - 1}")
        stop_ids = params.stop_token_ids if params.ignore_eos else (*self.eos_ids, *params.stop_token_ids)
        check_vocabulary(params, stop_ids, vocab_size)
        return Request(
            key=key,
            prompt_ids=ids,
            params=params,
            stop_ids=tuple(dict.fromkeys(stop_ids)),
            num_new_tokens=min(params.max_new_tokens, self.context_length - len(ids)),
            matcher=StopMatcher(self.tokenizer, params.stop, params.min_new_tokens) if params.stop else None,
        )
