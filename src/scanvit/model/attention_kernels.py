"""Attention with folded weights as two Triton kernels: what an image's heads share is read once, and no score leaves the processor.

Imported where a kernel is launched, and not before: Triton comes with PyTorch for CUDA alone.

A sequence is the [CLS] token and P patches, P a power of two. The patches fill the tiles of the matrix units to the last row. The [CLS] token
would be a tile of its own for a single row: as a key it is a vector product beside each tile, and as a query its few rows are left to
PyTorch (``_cls_forward``, ``_cls_backward``).

Of one head, with x the tokens (N, D), A and O its folded weights (D, D), and the scale of the scores within A:

    q = x A^T,  s = q x^T,  p = softmax(s),  m = p x,  y = sum over heads of m O^T

    g = dy O,  dp = g x^T,  ds = p * (dp - rowsum(g * m)),  t = ds x
    dx = p^T g + ds^T q + t A  (summed over heads),  dA = t^T x,  dO = dy^T m

The backward kernel makes s and p again from the logarithm of the sum of exponentials. m and t pass through memory, for the products over
all tokens of a batch: dA, dO. So do the two columns of p and ds that belong to the [CLS] token as a key: its slope is a sum over all queries.
Both kernels hold scores in float32 and multiply in the type of x.

How they are cut was measured, against other ways, on an H200 at 256 patches (docs/performance.md); fewer patches take smaller tiles.

Shapes: B images, N = 1 + P tokens, D dim, h heads; R rows of a tile of queries, K keys of a piece.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .assembler import assembler

# Read by Triton whenever it compiles.
if found := assembler():
    os.environ["TRITON_PTXAS_PATH"] = found

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Loads in a loop over heads run one head ahead.
_STAGES: tl.constexpr = tl.constexpr(2)

_FORWARD_ROWS = 64
_FORWARD_WARPS = 4
_BACKWARD_ROWS = 128
_BACKWARD_WARPS = 8
# An image's patches are one or two pieces of keys, and a program holds the slopes of both.
_KEYS = 128


@triton.jit
def _load_row(start, width: tl.constexpr):
    return tl.load(start + tl.arange(0, width)).to(tl.float32)


@triton.jit
def _tile(start, rows: tl.constexpr, width: tl.constexpr, stride):
    """Where the elements of a tile lie: (rows, width)."""
    return start + tl.arange(0, rows)[:, None] * stride + tl.arange(0, width)[None, :]


@triton.jit
def _attend(q, patches, top, total, mixed):
    """The patches as keys, for queries (R, D): the running maximum and sum (R,), and what is mixed so far, (R, D)."""
    scores = tl.dot(q, tl.trans(patches))
    new_top = tl.maximum(tl.max(scores, 1) * _LOG2_E, top)
    probs = tl.exp2(scores * _LOG2_E - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    mixed = tl.dot(probs.to(patches.dtype), patches, mixed * shrink[:, None])
    return new_top, total * shrink + tl.sum(probs, 1), mixed


@triton.jit
def _forward(
    x, to_scores, to_output, y, mixed, lse,
    HEADS: tl.constexpr, PATCHES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program: one tile of an image's patches as queries, all heads. What is the [CLS] token's in ``y`` and ``mixed`` is left to the caller."""
    TILES: tl.constexpr = PATCHES // ROWS
    TOKENS: tl.constexpr = PATCHES + 1
    image = (tl.program_id(0) // TILES).to(tl.int64)
    first = tl.program_id(0) % TILES * ROWS
    tokens = x + image * TOKENS * DIM
    means = mixed + (image * TOKENS + 1 + first) * HEADS * DIM
    totals = lse + image * HEADS * PATCHES + first + tl.arange(0, ROWS)
    cls = _load_row(tokens, DIM)
    patches = tl.load(_tile(tokens + DIM, PATCHES, DIM, DIM))
    rows = tl.load(_tile(tokens + (1 + first) * DIM, ROWS, DIM, DIM))
    out = tl.zeros((ROWS, DIM), tl.float32)
    for head in tl.range(HEADS, num_stages=_STAGES):
        scores_weight = tl.load(_tile(to_scores + head * DIM * DIM, DIM, DIM, DIM))
        output_weight = tl.load(_tile(to_output + head * DIM * DIM, DIM, DIM, DIM))
        q = tl.dot(rows, tl.trans(scores_weight))
        # The [CLS] token is the first key.
        top = tl.sum(q * cls[None, :], 1) * _LOG2_E
        total = tl.full((ROWS,), 1.0, tl.float32)
        mean = tl.zeros((ROWS, DIM), tl.float32) + cls[None, :]
        top, total, mean = _attend(q.to(rows.dtype), patches, top, total, mean)
        mean = (mean / total[:, None]).to(rows.dtype)
        out = tl.dot(mean, tl.trans(output_weight), out)
        tl.store(_tile(means + head * DIM, ROWS, DIM, HEADS * DIM), mean)
        tl.store(totals + head * PATCHES, top + tl.log2(total))
    tl.store(_tile(y + (image * TOKENS + 1 + first) * DIM, ROWS, DIM, DIM), out.to(rows.dtype))


@triton.jit
def _slopes(q, g, delta, lse, keys, d_keys):
    """What queries (R, D) add to the slopes of a piece of the keys (K, D), and the slopes of their scores (R, K)."""
    probs = tl.exp2(tl.dot(q, tl.trans(keys)) * _LOG2_E - lse[:, None])
    d_keys = tl.dot(tl.trans(probs.to(keys.dtype)), g, d_keys)
    d_scores = (probs * (tl.dot(g, tl.trans(keys)) - delta[:, None])).to(keys.dtype)
    d_keys = tl.dot(tl.trans(d_scores), q, d_keys)
    return d_keys, d_scores


@triton.jit(do_not_specialize=["images"])
def _backward(
    x, to_scores, to_output, mixed, lse, dy, d_keys, t, cls_columns,
    images, HEADS: tl.constexpr, PATCHES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program: an image, all heads; its patches as keys are one or two pieces of ``KEYS``.

    Written: the slopes of the patches as keys, of the patches as queries, ``d_keys`` (B, N, D); ``t`` (B, N, h, D); p and ds of the [CLS] token as
    a key, ``cls_columns`` (2, B, h, N). What is the [CLS] token's own in them is left to the caller.
    """
    TOKENS: tl.constexpr = PATCHES + 1
    PIECES: tl.constexpr = PATCHES // KEYS
    image = tl.program_id(0).to(tl.int64)
    tokens = x + image * TOKENS * DIM
    slopes = dy + image * TOKENS * DIM
    columns = cls_columns + image * HEADS * TOKENS + 1 + tl.arange(0, ROWS)
    more_columns = columns + images.to(tl.int64) * HEADS * TOKENS
    cls = _load_row(tokens, DIM)
    keys = tl.load(_tile(tokens + DIM, KEYS, DIM, DIM))
    d_key = tl.zeros((KEYS, DIM), tl.float32)
    if PIECES == 2:
        more_keys = tl.load(_tile(tokens + (1 + KEYS) * DIM, KEYS, DIM, DIM))
        more_d_key = tl.zeros((KEYS, DIM), tl.float32)
    for tile in range(PATCHES // ROWS):
        first = tile * ROWS
        rows = tl.load(_tile(tokens + (1 + first) * DIM, ROWS, DIM, DIM))
        slope = tl.load(_tile(slopes + (1 + first) * DIM, ROWS, DIM, DIM))
        means = mixed + (image * TOKENS + 1 + first) * HEADS * DIM
        totals = lse + image * HEADS * PATCHES + first + tl.arange(0, ROWS)
        ts = t + (image * TOKENS + 1 + first) * HEADS * DIM
        for head in tl.range(HEADS, num_stages=_STAGES):
            mean = tl.load(_tile(means + head * DIM, ROWS, DIM, HEADS * DIM))
            log_total = tl.load(totals + head * PATCHES)
            scores_weight = tl.load(_tile(to_scores + head * DIM * DIM, DIM, DIM, DIM))
            output_weight = tl.load(_tile(to_output + head * DIM * DIM, DIM, DIM, DIM))
            g = tl.dot(slope, output_weight)
            q = tl.dot(rows, tl.trans(scores_weight))
            delta = tl.sum(g * mean.to(tl.float32), 1)
            prob_cls = tl.exp2(tl.sum(q * cls[None, :], 1) * _LOG2_E - log_total)
            d_score_cls = prob_cls * (tl.sum(g * cls[None, :], 1) - delta)
            tl.store(columns + head * TOKENS + first, prob_cls.to(keys.dtype))
            tl.store(more_columns + head * TOKENS + first, d_score_cls.to(keys.dtype))
            moved = d_score_cls[:, None] * cls[None, :]
            g = g.to(keys.dtype)
            q = q.to(keys.dtype)
            d_key, d_scores = _slopes(q, g, delta, log_total, keys, d_key)
            moved = tl.dot(d_scores, keys, moved)
            if PIECES == 2:
                more_d_key, d_scores = _slopes(q, g, delta, log_total, more_keys, more_d_key)
                moved = tl.dot(d_scores, more_keys, moved)
            tl.store(_tile(ts + head * DIM, ROWS, DIM, HEADS * DIM), moved.to(keys.dtype))
    d_tokens = d_keys + (image * TOKENS + 1) * DIM
    tl.store(_tile(d_tokens, KEYS, DIM, DIM), d_key.to(keys.dtype))
    if PIECES == 2:
        tl.store(_tile(d_tokens + KEYS * DIM, KEYS, DIM, DIM), more_d_key.to(keys.dtype))


def forward(x: Tensor, to_scores: Tensor, to_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, 1 + P, D) and the folded weights (h, D, D) -> y (B, N, D), m (B, N, h, D), log2 of the patches' sums of exponentials (B, h, P) in float32."""
    (batch, tokens, dim), heads = x.shape, len(to_scores)
    patches = tokens - 1
    rows = min(_FORWARD_ROWS, patches)
    y, mixed = torch.empty_like(x), x.new_empty(batch, tokens, heads, dim)
    lse = x.new_empty(batch, heads, patches, dtype=torch.float32)
    _forward[(batch * (patches // rows),)](x, to_scores, to_output, y, mixed, lse, HEADS=heads, PATCHES=patches, DIM=dim, ROWS=rows, num_warps=_FORWARD_WARPS)
    with torch.autocast(x.device.type, enabled=False):
        mixed[:, 0] = _cls_forward(x, to_scores)
        y[:, 0] = torch.mm(mixed[:, 0].flatten(1), to_output.transpose(1, 2).reshape(heads * dim, dim))
    return y, mixed, lse


def backward(dy: Tensor, x: Tensor, to_scores: Tensor, to_output: Tensor, mixed: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The slopes of x, ``to_scores`` and ``to_output``, from that of y and what ``forward`` returned."""
    (batch, tokens, dim), heads = x.shape, len(to_scores)
    patches = tokens - 1
    t, d_keys, cls_columns = torch.empty_like(mixed), torch.empty_like(x), x.new_empty(2, batch, heads, tokens)
    _backward[(batch,)](
        x, to_scores, to_output, mixed, lse, dy, d_keys, t, cls_columns,
        batch, HEADS=heads, PATCHES=patches, DIM=dim, ROWS=min(_BACKWARD_ROWS, patches), KEYS=min(_KEYS, patches), num_warps=_BACKWARD_WARPS,
    )  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        d_cls_query = _cls_backward(dy, x, to_scores, to_output, t, cls_columns)
        d_keys[:, 0] = _cls_key_slope(dy, x, to_scores, to_output, cls_columns)
        flat_t, flat_x = t.view(-1, heads * dim), x.view(-1, dim)
        d_queries = torch.mm(flat_t, to_scores.view(heads * dim, dim)).view(x.shape)
        d_x = torch.baddbmm(d_queries + d_keys, *d_cls_query)
        d_scores = torch.mm(flat_t.t(), flat_x)
        d_output = torch.mm(mixed.view(-1, heads * dim).t(), dy.view(-1, dim))
    return d_x, d_scores.view(heads, dim, dim), d_output.view(heads, dim, dim).transpose(1, 2).contiguous()


def _cls_forward(x: Tensor, to_scores: Tensor) -> Tensor:
    """m of the [CLS] token: (B, h, D) in float32."""
    exact = x.float()
    scores = torch.bmm(_cls_queries(x, to_scores).float(), exact.transpose(1, 2))
    return torch.bmm(scores.softmax(-1), exact)


def _cls_backward(dy: Tensor, x: Tensor, to_scores: Tensor, to_output: Tensor, t: Tensor, cls_columns: Tensor) -> tuple[Tensor, Tensor]:
    """The [CLS] token as a query: its rows of ``t`` are written; those of ``cls_columns`` are zero, since the product below counts them.

    Returns two factors, (B, N, 2h) and (B, 2h, D), whose product is what it adds to the slopes of all tokens as keys.
    """
    dim, heads = x.shape[2], len(to_scores)
    q = _cls_queries(x, to_scores)
    g = torch.mm(dy[:, 0], to_output.transpose(0, 1).reshape(dim, heads * dim)).view(q.shape)
    exact = x.float()
    scores, d_probs = torch.bmm(torch.cat((q, g), 1).float(), exact.transpose(1, 2)).chunk(2, 1)
    probs = scores.softmax(-1)
    d_scores = probs * (d_probs - (probs * d_probs).sum(-1, keepdim=True))
    t[:, 0] = torch.bmm(d_scores, exact)
    cls_columns[..., 0] = 0
    return torch.cat((probs, d_scores), 1).to(x.dtype).transpose(1, 2), torch.cat((g, q), 1)


def _cls_key_slope(dy: Tensor, x: Tensor, to_scores: Tensor, to_output: Tensor, cls_columns: Tensor) -> Tensor:
    """The slope of the [CLS] token as a key, of the patches' p and ds: (B, D). Sums over queries come before the products with the weights."""
    of_probs, of_scores = torch.bmm(cls_columns[0], dy).flatten(1), torch.bmm(cls_columns[1], x).flatten(1)
    dim = x.shape[2]
    return torch.mm(of_probs, to_output.view(-1, dim)) + torch.mm(of_scores, to_scores.transpose(1, 2).reshape(-1, dim))


def _cls_queries(x: Tensor, to_scores: Tensor) -> Tensor:
    """The [CLS] token's queries of all heads: (B, h, D)."""
    return torch.mm(x[:, 0], to_scores.view(-1, x.shape[-1]).t()).view(len(x), *to_scores.shape[:2])
