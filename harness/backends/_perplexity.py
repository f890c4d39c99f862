"""Quality on held-out text: what a variant predicts beside the reference, and a sample of what it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from harness.backends._sessions import TorchEngine, TorchSession, greedy
from harness.core import CaseFailed, Iteration, Workload
from harness.texts import decoded

SAMPLE_TOKENS = 24  # of the prompt's end that is shown, and of what is written after it


class PerplexitySession(TorchSession):
    """Teacher-forced held-out text through the cache, beside the reference on the same tokens.

    Scoring, `step` and `sample` run the same two shapes, a prompt of `cut` tokens and a step, on caches of one size:
    what compiles compiles nothing more for the facts.
    """

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        self.ids, self.fingerprint = engine.held_out(workload["batch"], workload["length"])
        self.cut = min(workload["prefill"], workload["length"] - 1)

    def _empty_state(self, engine: TorchEngine) -> Any:
        """A cache for the text, and for the sample where that is longer."""
        batch, length = self.ids.shape
        return engine.new_state(batch, max(length, self.cut + SAMPLE_TOKENS))

    def _logits(self, engine: TorchEngine) -> Iterator[torch.Tensor]:
        """Next-token logits in float64, [B, n, V] pieces that together cover positions 0 to T-2."""
        state = self._empty_state(engine)
        steps = range(self.cut, self.ids.shape[1] - 1)
        pieces = [self.ids[:, : self.cut], *(self.ids[:, place : place + 1] for place in steps)]
        for piece in pieces:
            with engine.computing():
                logits = engine.forward(piece, state)
            yield logits.double()

    @torch.inference_mode()
    def quality(self) -> dict[str, float]:
        """ppl of the variant; kl and top1_agreement against the reference, over all scored positions."""
        nll, kl, agree, position = 0.0, 0.0, 0, 0
        reference = self.engine.reference()
        for own, other in zip(self._logits(self.engine), self._logits(reference), strict=True):
            width = own.shape[1]
            targets = self.ids[:, position + 1 : position + 1 + width]
            own_log, other_log = own.log_softmax(-1), other.log_softmax(-1)
            nll -= own_log.gather(-1, targets.unsqueeze(-1)).sum().item()
            kl += (other_log.exp() * (other_log - own_log)).sum().item()
            agree += int((own.argmax(-1) == other.argmax(-1)).sum().item())
            position += width
        scored = self.ids.shape[0] * position
        if not math.isfinite(nll) or not math.isfinite(kl):
            raise CaseFailed("the variant's logits are not finite on held-out text", status="wrong")
        return {"ppl": math.exp(nll / scored), "kl": max(kl / scored, 0.0), "top1_agreement": agree / scored}

    def iterate(self) -> Iteration:
        """Not a timed workload."""
        raise CaseFailed("perplexity is measured in the solo pass, not in timed blocks")

    @torch.inference_mode()
    def step(self) -> None:
        """One prefill and one decode step."""
        state = self._empty_state(self.engine)
        with self.engine.computing():
            self.engine.forward(self.ids[:, : self.cut], state)
            self.engine.forward(self.ids[:, self.cut : self.cut + 1], state)

    @torch.inference_mode()
    def sample(self) -> dict[str, str]:
        """The end of the first sequence's prompt and what the variant, choosing greedily, writes after it."""
        state = self._empty_state(self.engine)
        tokens = [self.ids[:, : self.cut]]
        with self.engine.computing():
            for _ in range(SAMPLE_TOKENS):
                tokens.append(greedy(self.engine.forward(tokens[-1], state)))
        written = torch.cat(tokens[1:], dim=1)[0].tolist()
        prompt = tokens[0][0, -SAMPLE_TOKENS:].tolist()
        source = self.engine.source
        return {"sample_prompt": decoded(source, prompt), "sample_text": decoded(source, written)}

    def facts(self) -> dict[str, Any]:
        """As every session, with the fingerprint of the scored tokens and a sample of text."""
        scored = {"data_fingerprint": self.fingerprint, "scored_tokens": self.ids[:, 1:].numel()}
        return {**super().facts(), **scored, **self.sample()}
