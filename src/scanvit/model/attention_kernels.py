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

Shapes: B images, N = 1 + P tokens, D dim, h heads; R rows of a tile of queries, K keys of a program.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fused_attention import assembler

# Read by Triton whenever it compiles.
if found := assembler():
    os.environ["TRITON_PTXAS_PATH"] = found

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_row(start, width: tl.constexpr):
    return tl.load(start + tl.arange(0, width)).to(tl.float32)


@triton.jit
def _tile(start, rows: tl.constexpr, width: tl.constexpr, stride):
    """Where the elements of a tile lie: (rows, width)."""
    return start + tl.arange(0, rows)[:, None] * stride + tl.arange(0, width)[None, :]


@triton.jit
def _attend_piece(q, patches, top, total, mixed):
    """One more piece of the patches, for queries (R, D): the running maximum and sum (R,), and what is mixed so far, (R, D)."""
    scores = tl.dot(q, tl.trans(patches))
    new_top = tl.maximum(tl.max(scores, 1) * _LOG2_E, top)
    probs = tl.exp2(scores * _LOG2_E - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    mixed = tl.dot(probs.to(patches.dtype), patches, mixed * shrink[:, None])
    return new_top, total * shrink + tl.sum(probs, 1), mixed


@triton.jit
def _forward(
    x, to_scores, to_output, y, mixed, lse,
    HEADS: tl.constexpr, PATCHES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program: one tile of an image's patches as queries, all heads. What is the [CLS] token's in ``y`` and ``mixed`` is left to the caller."""
    TILES: tl.constexpr = PATCHES // ROWS
    TOKENS: tl.constexpr = PATCHES + 1
    PIECE: tl.constexpr = PATCHES // PIECES
    image = (tl.program_id(0) // TILES).to(tl.int64)
    first = tl.program_id(0) % TILES * ROWS
    tokens = x + image * TOKENS * DIM
    means = mixed + (image * TOKENS + 1 + first) * HEADS * DIM
    totals = lse + image * HEADS * PATCHES + first + tl.arange(0, ROWS)
    cls = _load_row(tokens, DIM)
    patches = tl.load(_tile(tokens + DIM, PIECE, DIM, DIM))
    if PIECES == 2:
        more_patches = tl.load(_tile(tokens + (1 + PIECE) * DIM, PIECE, DIM, DIM))
    rows = tl.load(_tile(tokens + (1 + first) * DIM, ROWS, DIM, DIM))
    out = tl.zeros((ROWS, DIM), tl.float32)
    for head in tl.range(HEADS, num_stages=STAGES):
        scores_weight = tl.load(_tile(to_scores + head * DIM * DIM, DIM, DIM, DIM))
        output_weight = tl.load(_tile(to_output + head * DIM * DIM, DIM, DIM, DIM))
        q = tl.dot(rows, tl.trans(scores_weight))
        # The [CLS] token is the first key.
        top = tl.sum(q * cls[None, :], 1) * _LOG2_E
        total = tl.full((ROWS,), 1.0, tl.float32)
        mean = tl.zeros((ROWS, DIM), tl.float32) + cls[None, :]
        q = q.to(rows.dtype)
        top, total, mean = _attend_piece(q, patches, top, total, mean)
        if PIECES == 2:
            top, total, mean = _attend_piece(q, more_patches, top, total, mean)
        mean = (mean / total[:, None]).to(rows.dtype)
        out = tl.dot(mean, tl.trans(output_weight), out)
        tl.store(_tile(means + head * DIM, ROWS, DIM, HEADS * DIM), mean)
        tl.store(totals + head * PATCHES, top + tl.log2(total))
    tl.store(_tile(y + (image * TOKENS + 1 + first) * DIM, ROWS, DIM, DIM), out.to(rows.dtype))


@triton.jit
def _slopes(q, g, delta, lse, keys, d_keys, KEYS_FIRST: tl.constexpr, KEY_SIDE: tl.constexpr):
    """What queries (R, D) add to the slopes of a piece of the keys (K, D), and the slopes of their scores (R, K).

    ``KEYS_FIRST``: scores stand as (K, R), and the products with q and g take them from the registers; otherwise the product with the keys does.
    """
    if KEYS_FIRST:
        probs = tl.exp2(tl.dot(keys, tl.trans(q)) * _LOG2_E - lse[None, :])
        if KEY_SIDE:
            d_keys = tl.dot(probs.to(keys.dtype), g, d_keys)
        d_scores = (probs * (tl.dot(keys, tl.trans(g)) - delta[None, :])).to(keys.dtype)
        if KEY_SIDE:
            d_keys = tl.dot(d_scores, q, d_keys)
        d_scores = tl.trans(d_scores)
    else:
        probs = tl.exp2(tl.dot(q, tl.trans(keys)) * _LOG2_E - lse[:, None])
        if KEY_SIDE:
            d_keys = tl.dot(tl.trans(probs.to(keys.dtype)), g, d_keys)
        d_scores = (probs * (tl.dot(g, tl.trans(keys)) - delta[:, None])).to(keys.dtype)
        if KEY_SIDE:
            d_keys = tl.dot(tl.trans(d_scores), q, d_keys)
    return d_keys, d_scores


@triton.jit(do_not_specialize=["images"])
def _backward(
    x, to_scores, to_output, mixed, lse, dy, d_queries, d_keys, t, cls_columns,
    images, HEADS: tl.constexpr, PATCHES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PIECES: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, KEYS_FIRST: tl.constexpr, KEY_SIDE: tl.constexpr, QUERY_SIDE: tl.constexpr, QUERY_SUM: tl.constexpr,
):  # fmt: skip
    """A program: one or two ``PIECES`` of ``KEYS`` patches of an image as keys, all heads, a share of its patches as queries (one in ``SPLITS``).

    Partial sums, for the caller to add up, all of them but for the [CLS] token: ``d_keys`` (SPLITS, B, N, D) with ``KEY_SIDE``;
    ``t`` (parts, B, N, h, D), where a part is the keys of a program, with ``QUERY_SIDE``; ``d_queries`` (parts, B, N, D) with ``QUERY_SUM``.
    With ``QUERY_SIDE``, ``cls_columns`` (2, B, h, N) too: p and ds of the [CLS] token as a key.
    """
    TOKENS: tl.constexpr = PATCHES + 1
    PARTS: tl.constexpr = PATCHES // KEYS // PIECES
    TILES: tl.constexpr = PATCHES // ROWS // SPLITS
    image = (tl.program_id(0) // (PARTS * SPLITS)).to(tl.int64)
    part = tl.program_id(0) // SPLITS % PARTS
    split = tl.program_id(0) % SPLITS
    # The [CLS] token as a key belongs to the first part.
    own = tl.where(part == 0, 1.0, 0.0)
    tokens = x + image * TOKENS * DIM
    slopes = dy + image * TOKENS * DIM
    columns = cls_columns + image * HEADS * TOKENS + 1 + tl.arange(0, ROWS)
    more_columns = columns + images.to(tl.int64) * HEADS * TOKENS
    is_own = (part + tl.zeros((ROWS,), tl.int32)) == 0
    first_key = 1 + part * PIECES * KEYS
    cls = _load_row(tokens, DIM)
    keys = tl.load(_tile(tokens + first_key * DIM, KEYS, DIM, DIM))
    d_key = tl.zeros((KEYS, DIM), tl.float32)
    if PIECES == 2:
        more_keys = tl.load(_tile(tokens + (first_key + KEYS) * DIM, KEYS, DIM, DIM))
        more_d_key = tl.zeros((KEYS, DIM), tl.float32)
    for tile in range(TILES):
        first = (split * TILES + tile) * ROWS
        rows = tl.load(_tile(tokens + (1 + first) * DIM, ROWS, DIM, DIM))
        slope = tl.load(_tile(slopes + (1 + first) * DIM, ROWS, DIM, DIM))
        means = mixed + (image * TOKENS + 1 + first) * HEADS * DIM
        totals = lse + image * HEADS * PATCHES + first + tl.arange(0, ROWS)
        ts = t + ((part * images + image) * TOKENS + 1 + first) * HEADS * DIM
        d_query = tl.zeros((ROWS, DIM), tl.float32)
        for head in tl.range(HEADS, num_stages=STAGES):
            mean = tl.load(_tile(means + head * DIM, ROWS, DIM, HEADS * DIM))
            log_total = tl.load(totals + head * PATCHES)
            scores_weight = tl.load(_tile(to_scores + head * DIM * DIM, DIM, DIM, DIM))
            output_weight = tl.load(_tile(to_output + head * DIM * DIM, DIM, DIM, DIM))
            g = tl.dot(slope, output_weight)
            q = tl.dot(rows, tl.trans(scores_weight))
            delta = tl.sum(g * mean.to(tl.float32), 1)
            if QUERY_SIDE:
                prob_cls = tl.exp2(tl.sum(q * cls[None, :], 1) * _LOG2_E - log_total)
                d_score_cls = prob_cls * (tl.sum(g * cls[None, :], 1) - delta)
                tl.store(columns + head * TOKENS + first, prob_cls.to(keys.dtype), mask=is_own)
                tl.store(more_columns + head * TOKENS + first, d_score_cls.to(keys.dtype), mask=is_own)
                moved = (d_score_cls * own)[:, None] * cls[None, :]
            g = g.to(keys.dtype)
            q = q.to(keys.dtype)
            d_key, d_scores = _slopes(q, g, delta, log_total, keys, d_key, KEYS_FIRST, KEY_SIDE)
            if QUERY_SIDE:
                moved = tl.dot(d_scores, keys, moved)
            if PIECES == 2:
                more_d_key, d_scores = _slopes(q, g, delta, log_total, more_keys, more_d_key, KEYS_FIRST, KEY_SIDE)
                if QUERY_SIDE:
                    moved = tl.dot(d_scores, more_keys, moved)
            if QUERY_SIDE:
                moved_low = moved.to(keys.dtype)
                tl.store(_tile(ts + head * DIM, ROWS, DIM, HEADS * DIM), moved_low)
                if QUERY_SUM:
                    d_query = tl.dot(moved_low, scores_weight, d_query)
        if QUERY_SUM:
            tl.store(_tile(d_queries + ((part * images + image) * TOKENS + 1 + first) * DIM, ROWS, DIM, DIM), d_query.to(keys.dtype))
    if KEY_SIDE:
        d_tokens = d_keys + ((split * images + image) * TOKENS + first_key) * DIM
        tl.store(_tile(d_tokens, KEYS, DIM, DIM), d_key.to(keys.dtype))
        if PIECES == 2:
            tl.store(_tile(d_tokens + KEYS * DIM, KEYS, DIM, DIM), more_d_key.to(keys.dtype))


@dataclass(frozen=True, kw_only=True)
class ForwardPlan:
    """How the forward kernel is cut: ``rows`` queries a program, the keys in one or two ``pieces``, ``warps`` of 32 threads, loads ``stages`` heads ahead.

    ``registers`` of a thread at most; fewer let more programs share a processor.
    """

    rows: int = 64
    pieces: int = 1
    warps: int = 4
    stages: int = 2
    registers: int | None = None


@dataclass(frozen=True, kw_only=True)
class BackwardPlan:
    """How the backward kernel is cut: ``rows`` queries a tile, one or two ``pieces`` of ``keys`` a program, the queries over ``splits`` programs.

    ``keys_first``: how scores stand in the registers. ``query_sum``: t A is summed over heads in the kernel, not by the caller.
    ``key_side``, ``query_side``: which slopes it makes; a plan that lacks one needs another plan that makes it.
    """

    rows: int = 128
    keys: int = 128
    pieces: int = 1
    splits: int = 1
    warps: int = 8
    stages: int = 2
    registers: int | None = None
    keys_first: bool = True
    key_side: bool = True
    query_side: bool = True
    query_sum: bool = False


def forward(x: Tensor, to_scores: Tensor, to_output: Tensor, plan: ForwardPlan = ForwardPlan()) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, 1 + P, D) and the folded weights (h, D, D) -> y (B, N, D), m (B, N, h, D), log2 of the patches' sums of exponentials (B, h, P) in float32."""
    (batch, tokens, dim), heads = x.shape, len(to_scores)
    rows = min(plan.rows, tokens - 1)
    y, mixed = torch.empty_like(x), x.new_empty(batch, tokens, heads, dim)
    lse = x.new_empty(batch, heads, tokens - 1, dtype=torch.float32)
    _forward[(batch * ((tokens - 1) // rows),)](
        x, to_scores, to_output, y, mixed, lse,
        HEADS=heads, PATCHES=tokens - 1, DIM=dim, ROWS=rows, PIECES=min(plan.pieces, (tokens - 1) // 16),
        STAGES=plan.stages, num_warps=plan.warps, maxnreg=plan.registers,
    )  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        mixed[:, 0] = _cls_forward(x, to_scores)
        y[:, 0] = torch.mm(mixed[:, 0].flatten(1), to_output.transpose(1, 2).reshape(heads * dim, dim))
    return y, mixed, lse


def backward(
    dy: Tensor, x: Tensor, to_scores: Tensor, to_output: Tensor, mixed: Tensor, lse: Tensor, plans: tuple[BackwardPlan, ...] = (BackwardPlan(),)
) -> tuple[Tensor, Tensor, Tensor]:
    """The slopes of x, ``to_scores`` and ``to_output``, from that of y and what ``forward`` returned."""
    t, d_queries, d_keys, cls_columns = backward_tiles(dy, x, to_scores, to_output, mixed, lse, plans)
    with torch.autocast(x.device.type, enabled=False):
        d_cls_query = _cls_backward(dy, x, to_scores, to_output, t, cls_columns)
        d_keys[:, :, 0] = 0
        d_keys[0, :, 0] = _cls_key_slope(dy, x, to_scores, to_output, cls_columns)
        dim, heads = x.shape[2], len(to_scores)
        weight, summed = to_scores.view(heads * dim, dim), any(plan.query_sum for plan in plans)
        # Rows that the kernel left out: the [CLS] token's, or all.
        rows, out = (t[:, :, 0].flatten(2), d_queries[:, :, 0]) if summed else (t.view(len(t), -1, heads * dim), d_queries.view(len(t), -1, dim))
        for part, d_part in zip(rows, out, strict=True):
            torch.mm(part, weight, out=d_part)
        d_x = d_queries[0] + d_keys[0] if len(d_queries) + len(d_keys) == 2 else torch.cat((d_queries, d_keys)).sum(0)
        d_x = torch.baddbmm(d_x, *d_cls_query)
        flat_x, flat_dy = x.view(-1, dim), dy.view(-1, dim)
        d_scores, *others = (torch.mm(part.view(-1, heads * dim).t(), flat_x) for part in t)
        for other in others:
            d_scores = d_scores + other
        d_output = torch.mm(mixed.view(-1, heads * dim).t(), flat_dy)
    return d_x, d_scores.view(heads, dim, dim), d_output.view(heads, dim, dim).transpose(1, 2).contiguous()


def backward_tiles(
    dy: Tensor, x: Tensor, to_scores: Tensor, to_output: Tensor, mixed: Tensor, lse: Tensor, plans: tuple[BackwardPlan, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel's partial sums: ``t``, ``d_queries``, ``d_keys``; and ``cls_columns``. What is the [CLS] token's in them is not written."""
    (batch, tokens, dim), heads = x.shape, len(to_scores)
    patches = tokens - 1
    cls_columns = x.new_empty(2, batch, heads, tokens)
    t = d_queries = d_keys = x
    for plan in plans:
        rows, keys = min(plan.rows, patches), min(plan.keys, patches)
        pieces, splits = min(plan.pieces, patches // keys), min(plan.splits, patches // rows)
        parts = patches // keys // pieces
        if plan.query_side:
            t, d_queries = x.new_empty(parts, *mixed.shape), x.new_empty(parts, *x.shape)
        if plan.key_side:
            d_keys = x.new_empty(splits, *x.shape)
        _backward[(batch * parts * splits,)](
            x, to_scores, to_output, mixed, lse, dy, d_queries, d_keys, t, cls_columns,
            batch, HEADS=heads, PATCHES=patches, DIM=dim, ROWS=rows, KEYS=keys, PIECES=pieces, SPLITS=splits,
            STAGES=plan.stages, KEYS_FIRST=plan.keys_first, KEY_SIDE=plan.key_side, QUERY_SIDE=plan.query_side, QUERY_SUM=plan.query_sum,
            num_warps=plan.warps, maxnreg=plan.registers,
        )  # fmt: skip
    return t, d_queries, d_keys, cls_columns


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
    t[:, :, 0] = 0
    t[0, :, 0] = torch.bmm(d_scores, exact)
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
