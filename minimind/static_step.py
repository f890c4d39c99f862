"""A decode step in which nothing but tensors changes from one position to the next: what a CUDA graph can replay.

    cache = model.new_cache(kind="prealloc", batch_size=1, max_length=64)
    model(prompt_ids, cache=cache)
    step = StaticStep(model, cache)       # GraphedStep(model, cache) captures it on CUDA and replays it
    logits_B1V = step(token_ids_B1)       # as model(token_ids_B1, cache=cache).logits

Legend: B batch, M max_length of the cache, K key/value heads, D head_dim, V vocab_size.
The position is a tensor: the rotation is looked up with it, keys and values are written with index_copy_, and attention
runs over all M positions of the buffer behind a mask, so every step costs what the last one does. The model's own
attention, norms and feed-forwards run, whatever they are; the mask reaches attention as a padding mask does.

Refused: caches other than `PreallocCache`, mixtures of experts under a graph (they ask the device who has work), and
more positions than the rotary tables or the cache hold (ValueError).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from minimind.cache import CacheError, KeyValueCache, PreallocCache, check_room
from minimind.model import MiniMindForCausalLM

WARM_UP_STEPS = 3


class _WrittenAt:
    """A cache as one layer sees it in a static step: it writes at a position tensor and shows the whole buffer."""

    def __init__(self, cache: PreallocCache, position_1: Tensor) -> None:
        self.cache, self.position_1 = cache, position_1

    def update(self, layer_index: int, k_B1KD: Tensor, v_B1KD: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new position's keys and values in place; returns all M positions, [B, M, K, D] each."""
        keys_BKMD, values_BKMD = self.cache.buffers(layer_index)
        for new_B1KD, buffer_BKMD in ((k_B1KD, keys_BKMD), (v_B1KD, values_BKMD)):
            buffer_BKMD.index_copy_(2, self.position_1, new_B1KD.transpose(1, 2).to(buffer_BKMD.dtype))
        return keys_BKMD.transpose(1, 2), values_BKMD.transpose(1, 2)


class StaticStep:
    """One decode step of one model with one cache; see the module docstring."""

    def __init__(self, model: MiniMindForCausalLM, cache: KeyValueCache) -> None:
        if not isinstance(cache, PreallocCache):
            raise CacheError(f"a static step writes into fixed buffers: it needs a prealloc cache, not {cache.kind}")
        rotary = model.model.rotary
        if cache.max_length > rotary.max_positions:
            raise ValueError(
                f"the cache's max_length {cache.max_length} exceeds max_position_embeddings, {rotary.max_positions}; "
                "make a shorter cache"
            )
        self.model, self.cache = model, cache
        device = rotary.cos_RD.device
        batch_size = cache.buffers(0)[0].shape[0]
        # As the cache's buffers: written inside and outside inference mode.
        with torch.inference_mode(False):
            self.ids_B1 = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
            self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
            self._order_M = torch.arange(cache.max_length, device=device)

    def compute(self) -> Tensor:
        """Logits [B, 1, V] of `ids_B1` at `position_1`, keys and values written there; no host value is read."""
        trunk = self.model.model
        x_B1E = trunk.dropout(trunk.embed_tokens(self.ids_B1))
        cos_11D, sin_11D = (
            table.index_select(0, self.position_1).unsqueeze(1) for table in (trunk.rotary.cos_RD, trunk.rotary.sin_RD)
        )
        seen_BM = (self._order_M <= self.position_1).to(x_B1E.dtype).expand(len(self.ids_B1), -1)
        kind = x_B1E.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_B1E.dtype
        visibility = trunk.attention.prepare(1, self.cache.max_length - 1, seen_BM, dtype, x_B1E.device)
        view = cast(KeyValueCache, _WrittenAt(self.cache, self.position_1))
        for layer in trunk.layers:
            x_B1E, _ = layer(x_B1E, (cos_11D, sin_11D), visibility, view)
        logits: Tensor = self.model.lm_head(trunk.norm(x_B1E))
        return logits

    def place(self, ids_B1: Tensor) -> None:
        """Set the inputs of the next `compute`. Raises CacheError where the cache is full or the batch another."""
        if ids_B1.shape != self.ids_B1.shape:
            raise CacheError(f"the step was made for ids of shape {[*self.ids_B1.shape]}, not {[*ids_B1.shape]}")
        check_room(self.cache.length, 1, self.cache.max_length)
        self.ids_B1.copy_(ids_B1)
        self.position_1.fill_(self.cache.length)

    @torch.no_grad()
    def __call__(self, ids_B1: Tensor) -> Tensor:
        """Logits [B, 1, V] of the next position; the cache grows by one."""
        self.place(ids_B1)
        logits_B1V = self.compute()
        self.cache.advance(1)
        return logits_B1V


class GraphedStep(StaticStep):
    """A static step that is captured once as a CUDA graph and then replayed: one launch instead of hundreds."""

    def __init__(self, model: MiniMindForCausalLM, cache: KeyValueCache) -> None:
        super().__init__(model, cache)
        if self.ids_B1.device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, and the model is on {self.ids_B1.device}")
        if model.config.use_moe:
            raise ValueError("a mixture of experts asks the device which experts have work: no CUDA graph can hold it")
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_B1V = torch.empty(0)
        self.replays = 0

    def _capture(self) -> None:
        """Warm up on a side stream, then record; all of it writes the position that the first replay writes again."""
        # NOTE: a cast of a weight that autocast keeps from before would not be in the graph, and would later be freed.
        kind = self.ids_B1.device.type
        autocast = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with autocast:
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_STEPS):
                    self.compute()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._logits_B1V = self.compute()
        self._graph = graph

    @torch.no_grad()
    def __call__(self, ids_B1: Tensor) -> Tensor:
        """See `StaticStep.__call__`. The logits are a copy: the graph writes its own tensor again at every replay."""
        self.place(ids_B1)
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()
        self.replays += 1
        self.cache.advance(1)
        return self._logits_B1V.clone()
