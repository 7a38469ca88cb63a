"""What makes the prefix cache right under steering: blocks computed under another steering have another hash.

The default slot needs no key: its table is changed only while nothing runs, and the cache is emptied then. A slot that
a request names is part of the hashes of all its blocks. Where steering depends on positions, so is the end of the
prompt for every block from there on: the same tokens as part of a longer prompt are steered otherwise.
"""

from __future__ import annotations

from typing import Any

from personality.serving.plugin import settings


def keys_of(request: Any, begin: int, end: int, positional: bool) -> list[tuple[str, Any]]:
    """Keys of the block of a request's tokens `begin` to `end` (exclusive).

    Args:
        request: of vLLM's scheduler; its `sampling_params` and `num_prompt_tokens` are read.
        begin, end: positions.
        positional: whether steering may depend on positions.
    """
    keys: list[tuple[str, Any]] = []
    slot = settings.slot_of(request.sampling_params)
    if begin == 0 and slot != settings.DEFAULT:
        # The blocks after it carry it along: each one's hash contains its predecessor's.
        keys.append(("persona", slot))
    last = request.num_prompt_tokens - 1
    if positional and begin <= last < end:
        keys.append(("persona-end", last))
    return keys


def extend(utils: Any) -> None:
    """Add these keys to those of vLLM (`vllm.v1.core.kv_cache_utils`).

    The function that is replaced is looked up by name at every call, by the one that all users of hashes call.
    """
    own = utils._gen_prompt_embeds_extra_hash_keys
    positional = settings.positions()

    def with_steering(request: Any, begin: int, end: int) -> list[tuple[str, Any]]:
        return [*own(request, begin, end), *keys_of(request, begin, end, positional)]

    utils._gen_prompt_embeds_extra_hash_keys = with_steering
