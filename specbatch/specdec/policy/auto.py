"""The policy that chooses each row's drafts from what this job has measured.

Every round: survivals of all drafts that the rows could have (``survival``), seconds of the pieces of a round
(``step_times``), and the drafts with the most tokens per second (``choice``). Decoding plainly is always one
of the choices, and the one taken in doubt. While the draft model is not used it is looked at now and then
(``probe``). At the tail of a job, when few rows are left, scoring more tokens costs little and the same
arithmetic gives them more drafts.

Everything is decided by numbers that are handed in; the text cannot depend on it.

Shape letters: B rows, K drafts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from specbatch.specdec.accept import BoolArray
from specbatch.specdec.policy.choice import (
    Candidates,
    Choice,
    Costs,
    candidates_of,
    has_suffix_drafts,
    tokens_and_seconds,
)
from specbatch.specdec.policy.probe import (
    LOOK_BUDGET,
    LOOK_EVERY_ROUNDS,
    SUFFIX_BUDGET,
    TRIAL_BUDGET,
    TRIAL_EVERY_ROUNDS,
    TRIAL_OPTIMISM,
    TRIAL_ROUNDS,
    Budget,
    Look,
    suffix_probe,
)
from specbatch.specdec.policy.step_times import FloatArray, StepTimes
from specbatch.specdec.policy.surroundings import Surroundings
from specbatch.specdec.policy.survival import ModelSurvival, SuffixSurvival
from specbatch.specdec.policy.types import STEADY_LACK, RoundMeasure, RoundPlan, RoundView

# Drafts must promise so much more than plain decoding: in doubt the simpler way.
_PLAIN_ADVANTAGE = 1.01
# Another choice must promise so much more than the present one; estimates move by about as much from round to round.
_HYSTERESIS = 1.01
# Relative noise ascribed to a profile taken at start. Its shape is good; its level is doubted, since its contexts are
# not those of the job.
_PROFILE_NOISE = 0.05
# Where the first look leaves doubts, the draft model is used while feeding it costs nothing yet: for so many rounds
# what is not known well is taken to be better than it seems, by so many standard deviations.
_EARLY_ROUNDS = 20
_EARLY_OPTIMISM = 1.0
# Rounds over which feeding a row has to pay: rows last for a hundred or more, but some are near their end.
_CATCH_UP_ROUNDS = 32
# The memory of the draft model may go after so many rounds and looks in vain while there were rows to fill it with.
_GIVE_UP_ROUNDS = 1000
_GIVE_UP_LOOKS = 5
# A suffix index that was not used for so many rounds is asked only every so often.
_SUFFIX_IDLE_ROUNDS = 200
_SUFFIX_ASK_EVERY = 8


class AdaptivePolicy:
    """The drafts with the most tokens per second, by this job's own measurements."""

    def __init__(self, max_draft_length: int, *, has_draft: bool = True, has_suffix: bool = False) -> None:
        self.max_draft_length = max_draft_length
        self.uses_model = has_draft
        self.samples_plain_rounds = True
        self._has_suffix = has_suffix
        self._score, self._other = StepTimes(), Surroundings()
        self._draft_step, self._catch_up = StepTimes(), StepTimes()
        self._model, self._suffix = ModelSurvival(max_draft_length), SuffixSurvival(max_draft_length)
        self._choice = Choice(num_steps=0, cut=math.inf, tokens_per_second=0.0)
        self._look: Look | None = Look(expected_acceptance=None) if has_draft else None
        self._look_budget, self._trial_budget = Budget(LOOK_BUDGET), Budget(TRIAL_BUDGET)
        self._suffix_budget = Budget(SUFFIX_BUDGET)
        self._last_look = 0
        self._is_plain_known = False
        self._num_rounds = 0
        self._num_rounds_without_model = 0
        self._num_looks_in_vain = 0
        self._num_rounds_without_suffix = 0

    @property
    def uses_suffix(self) -> bool:
        """Whether the suffix index should be asked before the next round; seldom after it was of no use for long."""
        is_idle = self._num_rounds_without_suffix > _SUFFIX_IDLE_ROUNDS
        return self._has_suffix and (not is_idle or self._num_rounds % _SUFFIX_ASK_EVERY == 0)

    @property
    def wants_draft(self) -> bool:
        """False while the draft model is not used: prompts need not run through it then."""
        is_first_look = self._look is not None and self._look.is_first
        return self.uses_model and (self._choice.num_steps > 0 or is_first_look)

    @property
    def is_draft_given_up(self) -> bool:
        """True while the draft model has lost for so long, with rows waiting, that its memory serves better elsewhere.

        Nothing here depends on what the caller does about it: while rows still have room for the draft model's
        proposals they go on being tried.
        """
        is_long = self._num_rounds_without_model >= _GIVE_UP_ROUNDS
        return self.uses_model and is_long and self._num_looks_in_vain >= _GIVE_UP_LOOKS

    def learn_times(
        self, score: Mapping[int, float], draft_step: Mapping[int, float], *, in_buckets: bool = False
    ) -> None:
        """Seconds from a profile at start; measurements of the job soon outweigh them."""
        self._score, self._draft_step = StepTimes(in_buckets=in_buckets), StepTimes(in_buckets=in_buckets)
        for times, points in ((self._score, score), (self._draft_step, draft_step)):
            for size in sorted(points):
                times.add(size, points[size], relative_noise=_PROFILE_NOISE)
            times.doubt()
        self._is_plain_known = self._score.is_known

    def plan(self, view: RoundView) -> RoundPlan:
        """Drafts of the next round: the best by estimate, a plain round early on, or a look at what is not used."""
        B = len(view.room_B)
        self._num_rounds += 1
        if B == 0 or (self._num_rounds > 1 and not self._is_plain_known):
            # Nothing can be compared before the cost of a plain round is known.
            return RoundPlan(draft_length_B=np.zeros(B, dtype=np.int64), is_model_B=np.zeros(B, dtype=np.bool_))
        costs = self._costs(view)
        position_K = np.arange(self.max_draft_length)
        model_BK = self._model.of_rows(view) if self.uses_model else None
        if self._look is None and self.uses_model and self._choice.num_steps == 0:
            self._start_look(view, costs)
        is_model_able_BK = position_K < np.minimum(view.room_B, view.draft_room_B)[:, None]
        if model_BK is not None:
            if self._num_rounds <= _EARLY_ROUNDS:
                model_BK = self._model.optimistic(_EARLY_OPTIMISM)
                costs = self._optimistic(costs, size=B, deviations=_EARLY_OPTIMISM)
            model_BK = model_BK * (is_model_able_BK & (self._look is None))
        suffix_BK = None
        if self._has_suffix:
            suffix_BK = self._suffix.of_rows(view.match_B)
            suffix_BK *= position_K < np.minimum(view.room_B, view.suffix_length_B)[:, None]
        candidates = candidates_of(model_BK, suffix_BK, costs)
        self._choice = self._choose(candidates)
        plan = candidates.plan(self._choice)
        self._count_use(view, plan)
        if self._look is not None:
            look_B = self._look.drafts(view)
            plan = RoundPlan(np.where(look_B > 0, look_B, plan.draft_length_B), look_B > 0)
        elif model_BK is not None and self._num_rounds % TRIAL_EVERY_ROUNDS < TRIAL_ROUNDS:
            plan = self._try_another(plan, model_BK, is_model_able_BK, suffix_BK, costs)
        return self._with_suffix_probe(view, plan, costs) if suffix_BK is not None else plan

    def observe(self, measure: RoundMeasure) -> None:
        """Learn from a round, whoever chose its drafts."""
        for budget in (self._look_budget, self._trial_budget, self._suffix_budget):
            budget.earn(measure.seconds)
        if measure.is_typical:
            self._learn_seconds(measure)
        if measure.num_catch_up_tokens > 0:
            self._catch_up.add(measure.num_catch_up_tokens, measure.catch_up_seconds)
        if measure.num_model_rows > 0:
            self._model.add(measure)
            if self._look is not None:
                self._settle_look(self._look, measure)
        if self._has_suffix:
            self._suffix.add(measure)

    def _learn_seconds(self, measure: RoundMeasure) -> None:
        self._score.add(measure.num_scored, measure.score_seconds)
        other_seconds = measure.other_seconds
        if measure.num_draft_steps > 0:
            self._draft_step.add(measure.num_model_rows, measure.propose_seconds / measure.num_draft_steps)
        else:
            other_seconds += measure.propose_seconds
        self._other.add(measure, other_seconds)
        self._is_plain_known = self._is_plain_known or measure.num_scored == measure.num_rows

    def _choose(self, candidates: Candidates) -> Choice:
        """The best choice, unless the present one is about as good; plain unless drafts are clearly better."""
        best, plain, present = candidates.best(), candidates.plain, candidates.evaluate(self._choice)
        least = _PLAIN_ADVANTAGE * plain.tokens_per_second
        if best.tokens_per_second < least:
            return plain
        if present.is_plain:
            return best if best.tokens_per_second > _HYSTERESIS * least else plain
        is_enough = present.tokens_per_second >= least
        return present if is_enough and present.tokens_per_second * _HYSTERESIS >= best.tokens_per_second else best

    def _costs(self, view: RoundView) -> Costs:
        B = len(view.room_B)
        least, most = B + view.num_riding, B * (self.max_draft_length + 1) + view.num_riding
        score = self._score.between(least, most) + self._other.between(least, most)
        draft_step = self._draft_step.between(0, B) if self._draft_step.is_known else None
        landing = 0.0 if view.num_riding else self._other.landing(B)  # rounds with prompts in them land in any case
        return Costs(score, draft_step, self._catch_up_seconds(view) / _CATCH_UP_ROUNDS, landing)

    def _optimistic(self, costs: Costs, size: int, deviations: float) -> Costs:
        """The same if all sizes but one took less than it seems, by so many standard deviations."""
        B = len(costs.catch_up_B)
        doubt = self._score.doubt_between(B, B + len(costs.score) - 1, reference=size)
        return replace(costs, score=costs.score * np.exp(-deviations * doubt))

    def _catch_up_seconds(self, view: RoundView) -> FloatArray:
        """Float64 [B]: feeding each row to the draft model, at the price per token of feeding all that is lacking."""
        lacking_B = np.where(view.lacking_B > STEADY_LACK, view.lacking_B, 0)
        num_lacking = int(lacking_B.sum())
        # A forward over many tokens of one row costs about what one over as many rows does, until it has been seen.
        times = self._catch_up if self._catch_up.is_known else self._draft_step
        if not num_lacking or not times.is_known:
            return np.zeros(len(lacking_B))
        seconds_B: FloatArray = lacking_B * (times.at(num_lacking) / num_lacking)
        return seconds_B

    def _try_another(
        self, plan: RoundPlan, model_BK: FloatArray, is_able_BK: BoolArray, suffix_BK: FloatArray | None, costs: Costs
    ) -> RoundPlan:
        """The plan that would be best if all that is not known well were better than it seems, if that is affordable.

        A size that was measured once, on a bad day, or a draft whose first few proposals were unlucky would otherwise
        never be tried again.
        """
        if costs.draft_step is None:
            return plan
        size = len(plan.draft_length_B) + int(plan.draft_length_B.sum())
        optimistic = self._optimistic(costs, size, TRIAL_OPTIMISM)
        better_BK = self._model.optimistic(TRIAL_OPTIMISM) * is_able_BK
        candidates = candidates_of(better_BK, suffix_BK, optimistic)
        trial = candidates.plan(candidates.best())
        if np.array_equal(trial.draft_length_B, plan.draft_length_B):
            return plan
        tokens, seconds = tokens_and_seconds(plan, model_BK, suffix_BK, costs)
        whole = replace(costs, catch_up_B=costs.catch_up_B * _CATCH_UP_ROUNDS)
        trial_tokens, trial_seconds = tokens_and_seconds(trial, model_BK, suffix_BK, whole)
        lost_seconds = trial_seconds - trial_tokens * seconds / tokens
        if not self._trial_budget.allows(lost_seconds):
            return plan
        self._trial_budget.lose(lost_seconds)
        return trial

    def _start_look(self, view: RoundView, costs: Costs) -> None:
        """Begin to look at the unused draft model, if some row can have its drafts and the budget allows the loss."""
        look = Look(expected_acceptance=float(self._model.job_rates()[0]))
        drafts_B = look.drafts(view)
        num_rows = int(drafts_B.sum())
        if not num_rows or costs.draft_step is None or self._num_rounds - self._last_look < LOOK_EVERY_ROUNDS:
            return
        a_round = float(costs.draft_step[num_rows] + costs.score[num_rows] - costs.score[0])
        feeding = float((costs.catch_up_B * drafts_B).sum()) * _CATCH_UP_ROUNDS
        if self._look_budget.allows(feeding + look.num_rounds(num_rows) * a_round):
            self._look = look
            self._model.doubt()
            self._draft_step.doubt()

    def _settle_look(self, look: Look, measure: RoundMeasure) -> None:
        """Book what a round of a look has lost; estimates rather than clocks, which hiccup."""
        rows, num_drafts = measure.num_rows, int((measure.draft_length_B * measure.is_model_B).sum())
        num_right = int(measure.matched_B[measure.is_model_B].sum())
        look.count(num_drafts, num_right)
        plain = self._score.at(rows) + self._other.at(rows)
        extra = self._score.at(rows + num_drafts) - self._score.at(rows)
        extra += measure.num_draft_steps * self._draft_step.at(measure.num_model_rows)
        if measure.num_catch_up_tokens > 0:
            extra += self._catch_up.at(measure.num_catch_up_tokens)
        self._look_budget.lose(extra - num_right / rows * plain)
        if look.is_over:
            self._look = None
            self._last_look = self._num_rounds
            self._num_looks_in_vain += 1
            if look.is_contradiction:
                self._model.forget()

    def _count_use(self, view: RoundView, plan: RoundPlan) -> None:
        if self._choice.num_steps > 0:
            self._num_rounds_without_model = self._num_looks_in_vain = 0
        elif view.num_waiting > 0:
            self._num_rounds_without_model += 1
        if self._has_suffix:
            self._num_rounds_without_suffix = 0 if has_suffix_drafts(plan) else self._num_rounds_without_suffix + 1

    def _with_suffix_probe(self, view: RoundView, plan: RoundPlan, costs: Costs) -> RoundPlan:
        """Let one row try the suffix index where its kind of match is not known yet, if the budget allows."""
        probe = None if self._look is not None else suffix_probe(view, plan, self._suffix.evidence(view.match_B), costs)
        if probe is None or not self._suffix_budget.allows(probe[1]):
            return plan
        self._suffix_budget.lose(probe[1])
        return probe[0]
