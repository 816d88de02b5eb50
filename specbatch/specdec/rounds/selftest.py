"""Whether the device still computes what it computed at start.

A row whose logits are not finite may have met damaged weights, or a device that has begun to lie; the two call for
opposite answers. So one short prefix is evaluated alone when the engine is made, and again behind every such row. The
shapes are the same, so the bits must be: where they differ, nothing that this device says can be trusted any more.

Shape letters: T tokens of the prefix, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.output import SequenceOutput

_NUM_TOKENS = 8


class SelfTest:
    """The target's answer to a fixed prefix, taken when it is made."""

    def __init__(self, target: Decoder) -> None:
        self._target = target
        self._expected_V = self._evaluate()

    def check(self) -> None:
        """Ask again.

        Raises:
            SpecbatchError: JOB_DEVICE; the answer is another one.
        """
        if not _is_same(self._evaluate(), self._expected_V):
            raise SpecbatchError(
                ErrorCode.JOB_DEVICE,
                f"the device {self._target.device} no longer computes what it computed at start; its results since "
                "then are not used. Take it out of service and run the job again elsewhere",
            )

    def trusted(self, outputs: list[SequenceOutput]) -> list[SequenceOutput]:
        """Behind a row whose logits were not finite the device must prove itself, or nothing more is given out.

        Raises:
            SpecbatchError: JOB_DEVICE, as ``check``.
        """
        if any(output.error_code == ErrorCode.ROW_NUMERIC for output in outputs):
            self.check()
        return outputs

    def _evaluate(self) -> Tensor:
        token_T = torch.arange(_NUM_TOKENS, device=self._target.device) % self._target.vocab_size
        return self._target.canonical_logits(token_T).cpu()


def _is_same(left_V: Tensor, right_V: Tensor) -> bool:
    """Bit for bit; NaN equals NaN, because weights may be damaged from the start."""
    return bool(((left_V == right_V) | (left_V.isnan() & right_V.isnan())).all())
