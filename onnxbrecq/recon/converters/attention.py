"""Scaled dot-product attention and rotary embeddings."""

import math

import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator
from onnxbrecq.recon.converters.types import torch_dtype


@operator("Attention", since=23)
def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None,
    past_key: Tensor | None = None, past_value: Tensor | None = None,
    valid: Tensor | None = None, *, is_causal: int = 0, kv_num_heads: int = 0,
    left_window_size: int = -1, q_num_heads: int = 0, qk_matmul_output_mode: int = 0,
    right_window_size: int = -1, scale: float | None = None, softcap: float = 0.0,
    softmax_precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """softmax(softcap(Q K^T * scale) + bias) V, per head.

    Inputs are [N, heads, S, D], or [N, S, heads * D] with the numbers of heads as attributes; fewer
    heads of K and V are each read by a group of Q's. Causal and window masks count positions from
    the first valid key; a query that may see no key yields zeros. Also returned are the present
    keys and values, and the product at the stage that `qk_matmul_output_mode` names.
    """
    flat = query.ndim == 3
    if flat:
        query = _heads(query, q_num_heads)
        key, value = _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    length = query.shape[2]
    offset = torch.zeros(1, dtype=torch.int64)
    if past_key is not None and past_value is not None:
        offset = offset + past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    elif valid is not None:
        offset = valid.to(torch.int64) - length
    group = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(group, 1) if group > 1 else key
    values = value.repeat_interleave(group, 1) if group > 1 else value
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    raw = (query * root) @ (keys * root).transpose(-1, -2)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    seen = _visible(
        length, key.shape[2], offset, valid, is_causal=bool(is_causal), left=left_window_size,
        right=right_window_size,
    )  # fmt: skip
    scores = _biased(capped, mask, seen)
    kind = torch_dtype(softmax_precision) if softmax_precision else scores.dtype
    blind = torch.isneginf(scores).all(-1, keepdim=True)
    weights = torch.softmax(scores.to(kind).masked_fill(blind, 0), -1).masked_fill(blind, 0)
    weights = weights.to(query.dtype)
    made = weights @ values
    if flat:
        made = made.transpose(1, 2).flatten(2)
    return made, key, value, (raw, capped, scores, weights)[qk_matmul_output_mode]


def _heads(x: Tensor, count: int) -> Tensor:
    """[N, S, heads * D] as [N, heads, S, D]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _visible(
    queries: int, keys: int, offset: Tensor, valid: Tensor | None, *, is_causal: bool, left: int,
    right: int,
) -> Tensor:  # fmt: skip
    """[N or 1, 1, queries, keys]: which key a query may see."""
    place = torch.arange(queries)[:, None] + offset.reshape(-1, 1, 1, 1)
    j = torch.arange(keys)
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if is_causal:
        seen = seen & (j <= place)
    if left >= 0:
        seen = seen & (j >= place - left)
    if right >= 0:
        seen = seen & (j <= place + right)
    return seen if valid is None else seen & (j < valid.reshape(-1, 1, 1, 1))


def _biased(scores: Tensor, mask: Tensor | None, seen: Tensor) -> Tensor:
    """The scores plus the mask, -inf where nothing may be seen."""
    if mask is not None:
        short = scores.shape[-1] - mask.shape[-1]
        if mask.dtype == torch.bool:
            seen = seen & torch.nn.functional.pad(mask, (0, short))
        else:
            scores = scores + torch.nn.functional.pad(mask, (0, short), value=-math.inf)
    return scores.masked_fill(~seen, -math.inf)


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None, *,
    interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Pairs of each head's first elements turned by the position's angle.

    Pairs are halves of the rotated part, or neighbours if `interleaved`.
    """
    flat = x.ndim == 3
    heads = _heads(x, num_heads) if flat else x  # [N, heads, S, D]
    width = rotary_embedding_dim or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cosine, sine = cosines[:, None], sines[:, None]  # [N, 1, S, width / 2]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    real, imaginary = a * cosine - b * sine, a * sine + b * cosine
    if interleaved:
        turned = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], -1)
    made = torch.cat([turned, rest], -1)
    return made.transpose(1, 2).flatten(2) if flat else made
