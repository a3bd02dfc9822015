"""Sampling: a llama.cpp sampler chain for each task, and a grammar that is checked only after the choice."""

import ctypes
import math
from typing import Any, Final

from llmasos_edge.engine.llama import L, LlamaContext, LlamaModel
from llmasos_edge.engine.protocol import Sampling
from llmasos_edge.errors import BadRequest


class Sampler:
    """Sample first, then check that one token against the grammar; only on a reject run the grammar over all.

    The second chain (grammar first: anywhere else it kills the process) has a sampler state of its own, so that
    what is chosen depends on the seed and the past tokens alone.
    """

    def __init__(self, model: LlamaModel, sampling: Sampling, grammar: str | None) -> None:
        """Raises BadRequest if llama.cpp can't compile the grammar."""
        self._chain: Final = _chain(sampling)
        self._greedy: Final = _Greedy(self._chain, model.vocabulary_size) if sampling.temperature <= 0 else None
        self._constrained = None
        if grammar is not None:
            rules = L.llama_sampler_init_grammar(model.vocabulary, grammar.encode(), b"root")
            if not rules:
                L.llama_sampler_free(self._chain)
                raise BadRequest("format: no grammar can be made of this schema: simplify it")
            self._constrained = _chain(sampling, rules)
            self._rules = L.llama_sampler_chain_get(self._constrained, 0)
        self._one = (L.llama_token_data * 1)()
        self._candidate = L.llama_token_data_array(self._one, 1, -1, False)

    def sample(self, context: LlamaContext, index: int) -> int:
        """The next token from the logits of batch position `index`."""
        if self._greedy is not None:
            token = self._greedy.sample(context, index)
        else:
            token = int(L.llama_sampler_sample(self._chain, context.pointer, index))
        if self._constrained is None:
            return token
        if not self._allows(token):
            return int(L.llama_sampler_sample(self._constrained, context.pointer, index))
        L.llama_sampler_accept(self._rules, token)
        return token

    def _allows(self, token: int) -> bool:
        self._one[0].id, self._one[0].logit, self._one[0].p = token, 1.0, 0.0
        self._candidate.size, self._candidate.selected, self._candidate.sorted = 1, -1, False
        L.llama_sampler_apply(self._rules, ctypes.byref(self._candidate))
        return not math.isinf(self._one[0].logit)

    def close(self) -> None:
        L.llama_sampler_free(self._chain)
        if self._constrained is not None:
            L.llama_sampler_free(self._constrained)


class _Greedy:
    """The token of the greatest logit, without a list of all candidates, whose making takes longer than the choice.

    A candidate is (id, logit, p), of 12 bytes, and the greedy sampler reads its logit alone: over the bare row of
    logits, 4 bytes each, it finds the greatest of every third one. Three looks find that of all; of equals the first.
    """

    def __init__(self, sampler: object, vocabulary: int) -> None:
        self._sampler, self._vocabulary = sampler, vocabulary
        self._row = L.llama_token_data_array(None, 0, -1, False)

    def sample(self, context: LlamaContext, index: int) -> int:
        logits = context.logits(index)
        return max((self._third(logits, first) for first in range(3)), key=lambda token: (logits[token], -token))

    def _third(self, logits: Any, first: int) -> int:
        """The greatest of tokens `first`, `first` + 3, ..."""
        address = ctypes.addressof(logits.contents) + 4 * first - L.llama_token_data.logit.offset
        self._row.data = ctypes.cast(address, ctypes.POINTER(L.llama_token_data))
        self._row.size, self._row.selected = (self._vocabulary - first + 2) // 3, -1
        L.llama_sampler_apply(self._sampler, ctypes.byref(self._row))
        return first + 3 * int(self._row.selected)


def _chain(sampling: Sampling, first: object = None) -> object:
    """[grammar,] top-k, top-p, min-p, temperature, distribution; or greedy at temperature 0."""
    chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    if first is not None:
        L.llama_sampler_chain_add(chain, first)
    if sampling.temperature <= 0:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_greedy())
        return chain
    for sampler in (
        L.llama_sampler_init_top_k(sampling.top_k),
        L.llama_sampler_init_top_p(sampling.top_p, 1),
        L.llama_sampler_init_min_p(sampling.min_p, 1),
        L.llama_sampler_init_temp(sampling.temperature),
        L.llama_sampler_init_dist(sampling.seed & 0xFFFFFFFF),
    ):
        L.llama_sampler_chain_add(chain, sampler)
    return chain
