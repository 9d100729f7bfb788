"""Packs float weights into llama.cpp's K-quants: for each group of values the scale and minimum of least error.

A group's scale is searched for as llama.cpp searches: a grid of scales a little wider and narrower than the one that
just spans the values; for each, the integers that are nearest, then the scale and minimum that fit these integers best
(weighted least squares), of all of which the one of least error is kept. Method and constants: `quantize_row_q4_K_ref`,
`quantize_row_q6_K_ref`, `make_qkx2_quants` and `make_qx_quants` of llama.cpp (ggml-quants.c).
Layouts: see k_quants, which reads what this writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

BLOCK = 256
_TINY = 1e-15  # groups of nothing larger are zeros
_LEVELS = 15  # of Q4_K


def _q4_k(blocks: Tensor) -> Tensor:
    """float32 [n, 256] -> uint8 [n, 144]: eight groups, each with a scale and a minimum."""
    groups = blocks.view(-1, 8, 32)
    scales, minima = _scales_and_minima(groups.reshape(-1, 32).t().contiguous())
    d, small_scales = _six_bits(scales.view(-1, 8))
    d_min, small_minima = _six_bits(minima.view(-1, 8))
    step = (d.float() * small_scales).unsqueeze(2)
    shifted = groups + (d_min.float() * small_minima).unsqueeze(2)
    values = torch.where(step == 0, 0.0, shifted / step).round_().clamp_(0, _LEVELS).to(torch.uint8)
    fields = _six_bit_fields(small_scales, small_minima)
    return torch.cat((d.view(torch.uint8), d_min.view(torch.uint8), fields, _nibble_pairs(values, 32)), dim=1)


def _q6_k(blocks: Tensor) -> Tensor:
    """float32 [n, 256] -> uint8 [n, 210]."""
    groups = blocks.view(-1, 16, 16)
    scales = _symmetric_scales(groups.reshape(-1, 16).t().contiguous()).view(-1, 16)
    largest = scales.gather(1, scales.abs().argmax(1, keepdim=True))  # with its sign
    inverse = torch.where(largest.abs() < _TINY, 0.0, -128.0 / largest)
    small_scales = (scales * inverse).round_().clamp_(max=127)
    d = torch.where(inverse == 0, 0.0, 1.0 / inverse).half()
    step = (d.float() * small_scales).unsqueeze(2)
    values = torch.where(step == 0, 0.0, groups / step).round_().clamp_(-32, 31).add_(32).to(torch.uint8)
    high = torch.zeros((len(blocks), 2, 32), dtype=torch.uint8)
    for group, bits in enumerate((values >> 4).reshape(-1, 2, 4, 32).unbind(2)):
        high |= bits << (2 * group)
    low = _nibble_pairs(values & 15, 64)
    return torch.cat((low, high.flatten(1), small_scales.to(torch.int8).view(torch.uint8), d.view(torch.uint8)), dim=1)


K_QUANTIZERS: Mapping[GGMLQuantizationType, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        GGMLQuantizationType.Q4_K: _q4_k,
        GGMLQuantizationType.Q6_K: _q6_k,
    }
)


def _six_bits(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Factors [n, 8], none negative -> one float16 [n, 1] and uint8 [n, 8] up to 63, whose products they are about."""
    largest = factors.amax(1, keepdim=True)
    inverse = torch.where(largest > 0, 63.0 / largest, 0.0)
    return (largest / 63.0).half(), (factors * inverse).round_().clamp_(0, 63).to(torch.uint8)


def _six_bit_fields(scales: Tensor, minima: Tensor) -> Tensor:
    """uint8 [n, 8] each -> uint8 [n, 12]: the inverse of k_quants' reading."""
    low_scales, high_scales = scales[:, :4], scales[:, 4:]
    low_minima, high_minima = minima[:, :4], minima[:, 4:]
    return torch.cat(
        (
            low_scales | (high_scales >> 4) << 6,
            low_minima | (high_minima >> 4) << 6,
            (high_scales & 15) | (high_minima & 15) << 4,
        ),
        dim=1,
    )


def _nibble_pairs(values: Tensor, run: int) -> Tensor:
    """256 uint8 below 16 -> uint8 [n, 128]: runs by turns in the low and the high halves of bytes."""
    low, high = values.reshape(-1, BLOCK // (2 * run), 2, run).unbind(2)
    return (low | high << 4).flatten(1)


# The searches work on columns: groups side by side, so that sums over a group are sums of rows, which vectorise.


def _scales_and_minima(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum (as what is taken away) [m] of least weighted error for each column of float32 [32, m]."""
    weights = x.abs().add_(x.square().mean(0).sqrt_())  # large values count more
    sums = _LevelSums(x, weights)
    largest, minimum = x.amax(0), x.amin(0).clamp_(max=0)
    span = largest - minimum
    # A column of equal values, none positive, has no span: all of it is in the minimum.
    scale = span / _LEVELS
    least = sums.error(scale, minimum, *sums.of(minimum, _inverse(span, _LEVELS)))
    for tenths in range(-10, 11):
        # From the best minimum so far on.
        sum_l, sum_l2, sum_xl = sums.of(minimum, _inverse(largest - minimum, _LEVELS + 0.1 * tenths))
        determinant = sums.of_weights * sum_l2 - sum_l * sum_l
        new_scale = (sums.of_weights * sum_xl - sums.of_values * sum_l) / determinant
        new_minimum = (sum_l2 * sums.of_values - sum_l * sum_xl) / determinant
        # What is taken away is never negative: then the best scale without a minimum.
        positive = new_minimum > 0
        new_scale = torch.where(positive, sum_xl / sum_l2, new_scale)
        new_minimum.masked_fill_(positive, 0)
        error = sums.error(new_scale, new_minimum, sum_l, sum_l2, sum_xl)
        better = (determinant > 0) & (error < least)
        scale, minimum = torch.where(better, new_scale, scale), torch.where(better, new_minimum, minimum)
        least = torch.where(better, error, least)
    return scale, -minimum


class _LevelSums:
    """Weighted sums over each column of x [32, m] and of the integers l that are nearest to it for some scale."""

    def __init__(self, x: Tensor, weights: Tensor) -> None:
        self._x, self._weights = x, weights
        self._weighted = weights * x
        self._nearest, self._product = torch.empty_like(x), torch.empty_like(x)
        self.of_weights, self.of_values = weights.sum(0), self._weighted.sum(0)
        self._of_squares = (self._weighted * x).sum(0)

    def of(self, minimum: Tensor, inverse_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of w l, w l l and w x l, each [m]."""
        nearest, product = self._nearest, self._product
        torch.sub(self._x, minimum, out=nearest).mul_(inverse_scale).round_().clamp_(0, _LEVELS)
        sum_xl = torch.mul(self._weighted, nearest, out=product).sum(0)
        sum_l = torch.mul(self._weights, nearest, out=product).sum(0)
        return sum_l, product.mul_(nearest).sum(0), sum_xl

    def error(self, scale: Tensor, minimum: Tensor, sum_l: Tensor, sum_l2: Tensor, sum_xl: Tensor) -> Tensor:
        """The sum of w (scale l + minimum - x)^2, multiplied out."""
        of_levels = scale * (scale * sum_l2 + 2 * (minimum * sum_l - sum_xl))
        return of_levels + minimum * (minimum * self.of_weights - 2 * self.of_values) + self._of_squares


def _symmetric_scales(x: Tensor) -> Tensor:
    """Scale [m] of least error, weighted by x * x, for levels -32..31 of each column of float32 [16, m]."""
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]  # with its sign: it is one of the two ends
    weights = x.square()
    weighted = weights * x
    nearest, product = torch.empty_like(x), torch.empty_like(x)
    scale, gain = torch.zeros_like(largest), torch.zeros_like(largest)
    for tenths in (0, *range(-9, 0), *range(1, 10)):
        torch.mul(x, _inverse(largest, -(32 + 0.1 * tenths)), out=nearest).round_().clamp_(-32, 31)
        sum_xl = torch.mul(weighted, nearest, out=product).sum(0)
        sum_l2 = torch.mul(weights, nearest, out=product).mul_(nearest).sum(0)
        # The error of the best scale, sum_xl / sum_l2, is less by what this gains.
        better = (sum_l2 > 0) & (sum_xl * sum_xl > gain * sum_l2)
        new_scale = sum_xl / sum_l2
        scale = torch.where(better, new_scale, scale)
        gain = torch.where(better, new_scale * sum_xl, gain)
    return torch.where(largest.abs() < _TINY, 0.0, scale)


def _inverse(span: Tensor, levels: float) -> Tensor:
    """levels / span; 0 where there is no span."""
    return torch.where(span == 0, 0.0, levels / span)
