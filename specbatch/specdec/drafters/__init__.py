"""Where drafts come from.

A drafter proposes, for a row of the batch, tokens that may follow its committed text. It can only change speed: a draft
counts as far as it is what the target itself says, whoever proposed it. There are four ways to fill a row's drafts:

none
    K = 0: the round scores one position of the row. Every policy may choose it for every row.
suffix index (``drafters.suffix``)
    Continuations of earlier occurrences of the row's last tokens, in its own text or in any other text that this worker
    has seen. No model, no device, nothing to load; good where text repeats itself, useless where it does not.
draft model
    A small model of the same vocabulary with a cache of its own. Each draft costs one of its steps.
combined, per row by expected value
    The policy (``policy``) sees what the suffix index offers each row before the round, and how long a context it
    found again, and knows what a draft of the model costs. It gives each row the source and the K that are expected
    to commit the most tokens per second.

What a drafter without a model must do, so that the rounds can treat it like the rest:

``open(slot, prompt_ids, max_new_tokens)``
    A row begins in a slot; called again if a row that was put off goes on elsewhere, with all its tokens as the prompt.
``propose(slots_B, max_drafts)``
    Drafts of the rows: ``token_BK``, how many of them there are (``length_B``, 0 to ``max_drafts``) and how much they
    are worth (``match_B``). It changes nothing, so the policy may take all of a proposal, its beginning, or none.
``append(slots_B, token_BT, num_committed_B)``
    What the rows have really said, whoever proposed it.
``move(source, destination)`` and ``close(slot)``
    Rows change slots and end.

Two promises hold for every drafter: what it proposes is a function of the calls made so far (no clock, no randomness),
and a round costs it some array operations over all rows, never Python work for each row or token.

Shape letters: B rows, K drafts, T tokens offered for commit.
"""
