"""Token generation: greedy and sampled, with upstream's order of filters.

    ids_BT = generate(model, prompt_ids_BT, max_new_tokens=24, temperature=0.0)

Legend: B rows, T positions so far, V vocabulary.
Refused with ValueError: empty or one-dimensional prompts, more positions than the model has, filters out of range.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minimind.model import MiniMindForCausalLM


def penalize_repetition(logits_BV: Tensor, seen_BT: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of tokens that occur in `seen_BT` (arXiv 1909.05858)."""
    if penalty == 1.0:
        return logits_BV
    seen_logits_BT = logits_BV.gather(1, seen_BT)
    penalized_BT = torch.where(seen_logits_BT > 0, seen_logits_BT / penalty, seen_logits_BT * penalty)
    # A token that occurs twice is written twice, with the same value.
    return logits_BV.scatter(1, seen_BT, penalized_BT)


def sampling_probabilities(
    logits_BV: Tensor,
    seen_BT: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """The distribution [B, V] to draw the next token from.

    In upstream's order: temperature, repetition penalty, top k (0: off; ties at the boundary all stay), top p (1: off;
    the most likely token always stays).
    """
    logits_BV = penalize_repetition(logits_BV / temperature, seen_BT, repetition_penalty)
    if top_k > 0:
        smallest_B1 = torch.topk(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -math.inf)
    if top_p < 1.0:
        sorted_BV, order_BV = torch.sort(logits_BV, descending=True)
        beyond_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) > top_p
        # Shifted by one: the token that crosses top_p is still in.
        beyond_BV = torch.cat((torch.zeros_like(beyond_BV[:, :1]), beyond_BV[:, :-1]), dim=1)
        logits_BV = logits_BV.masked_fill(beyond_BV.scatter(1, order_BV, beyond_BV), -math.inf)
    return logits_BV.softmax(dim=-1)


@torch.inference_mode()
def generate(
    model: MiniMindForCausalLM,
    prompt_ids: Tensor,
    max_new_tokens: int = 24,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    attention_mask: Tensor | None = None,
    num_return_sequences: int = 1,
    cache_kind: str = "cat",
    generator: torch.Generator | None = None,
    on_token: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Prompt and continuation [B * num_return_sequences, <= T + max_new_tokens]; rows are tiled, not interleaved.

    temperature 0 takes the most likely token. A row that has produced `eos_token_id` goes on producing it; generation
    ends when every row has. attention_mask [B, T] has 0 at the left padding of the prompt. `on_token` is called with
    each step's tokens [B, 1]. The prompt's logits are computed for its last position only.
    """
    _check_arguments(model, prompt_ids, max_new_tokens, temperature, top_k, top_p, repetition_penalty)
    ids = prompt_ids.repeat(num_return_sequences, 1)
    mask = None if attention_mask is None else attention_mask.repeat(num_return_sequences, 1)
    rows, num_prompt = ids.shape
    cache = model.new_cache(kind=cache_kind, batch_size=rows, max_length=num_prompt + max_new_tokens)
    finished_B1 = torch.zeros(rows, 1, dtype=torch.bool, device=ids.device)
    new_ids = ids
    for _ in range(max_new_tokens):
        logits_BV = model(new_ids, attention_mask=mask, cache=cache, logits_to_keep=1).logits[:, -1]
        if temperature == 0.0:
            new_ids = penalize_repetition(logits_BV, ids, repetition_penalty).argmax(dim=-1, keepdim=True)
        else:
            probabilities_BV = sampling_probabilities(
                logits_BV,
                ids,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
            )
            new_ids = torch.multinomial(probabilities_BV, num_samples=1, generator=generator)
        if eos_token_id is not None:
            new_ids = new_ids.masked_fill(finished_B1, eos_token_id)
            finished_B1 = finished_B1 | (new_ids == eos_token_id)
        ids = torch.cat((ids, new_ids), dim=1)
        if on_token is not None:
            on_token(new_ids)
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(rows, 1)), dim=1)
        if eos_token_id is not None and bool(finished_B1.all()):
            break
    return ids


def _check_arguments(
    model: MiniMindForCausalLM,
    prompt_ids: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
) -> None:
    if prompt_ids.ndim != 2 or prompt_ids.shape[0] == 0 or prompt_ids.shape[1] == 0:
        raise ValueError(f"prompt_ids must be [batch, length] with both above 0, not {list(prompt_ids.shape)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
    longest, needed = model.config.max_position_embeddings, prompt_ids.shape[1] + max_new_tokens
    if needed > longest:
        raise ValueError(f"prompt and new tokens make {needed} positions; max_position_embeddings is {longest}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 (0 is greedy), not {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 is off), not {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (1 is off), not {top_p}")
    if not repetition_penalty > 0:
        raise ValueError(f"repetition_penalty must be above 0 (1 is off), not {repetition_penalty}")
