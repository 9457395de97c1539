"""What the losses compare: hidden states with their head, and stored distributions.

Both stand for logits ``[..., positions, vocabulary]`` that are never held in full.

Taught in notebook 04.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: ``cap(scale * (h @ weight.T + bias))``.

    Attributes:
        weight: ``[vocabulary, width]``.
        bias: ``[vocabulary]``.
        scale: Factor on the logits (Cohere's ``logit_scale``; 1 / Granite's
            ``logits_scaling``).
        soft_cap: ``cap * tanh(logits / cap)`` (Gemma 2's ``final_logit_softcapping``,
            RecurrentGemma's ``logits_soft_cap``); ``None`` leaves them.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(
        self, hidden: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply out the logits ``[..., vocabulary]``.

        Args:
            hidden: ``[..., width]``.
            out: Where to write them, at least as many rows as ``hidden`` ``[rows,
                width]`` has, of its dtype: without gradients, but no new memory.
        """
        weight = self.weight.to(hidden.dtype)
        if out is None:
            bias = None if self.bias is None else self.bias.to(hidden.dtype)
            logits = F.linear(hidden, weight, bias)
            if self.scale != 1:
                logits = logits * self.scale
            if self.soft_cap is None:
                return logits
            return self.soft_cap * torch.tanh(logits / self.soft_cap)
        logits = torch.mm(hidden, weight.T, out=out[: len(hidden)])
        if self.bias is not None:
            logits.add_(self.bias)
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits

    def cut(self, vocabulary: int) -> Head:
        """Return the head without the outputs that only pad it."""
        if vocabulary >= len(self.weight):
            return self
        bias = None if self.bias is None else self.bias[:vocabulary]
        return replace(self, weight=self.weight[:vocabulary], bias=bias)


@dataclass(frozen=True)
class Hidden:
    """A model's logits that nobody has multiplied out yet.

    The losses take it in place of logits and multiply a few tokens at a time, so that
    no tensor ``[tokens, vocabulary]`` is ever held.

    Attributes:
        states: ``[..., positions, width]``, what goes into the head.
        head: The :class:`Head`, or its weights ``[vocabulary, width]`` alone.
        outputs: How many of the head's outputs count; the others only pad it.
            ``None``: all of them.

    Taught in notebook 04.
    """

    states: torch.Tensor
    head: Head
    outputs: int | None = None

    def __init__(
        self,
        states: torch.Tensor,
        head: Head | torch.Tensor,
        outputs: int | None = None,
    ) -> None:
        given = head if isinstance(head, Head) else Head(head)
        for name, value in (("states", states), ("head", given), ("outputs", outputs)):
            object.__setattr__(self, name, value)

    @property
    def vocabulary(self) -> int:
        """Number of outputs that count."""
        every = len(self.head.weight)
        return every if self.outputs is None else min(every, self.outputs)

    def cut(self, vocabulary: int) -> Hidden:
        """Return the same with no more outputs than these; the weights stay whole."""
        return replace(self, outputs=min(self.vocabulary, vocabulary))

    def logits(self) -> torch.Tensor:
        """Multiply out the logits ``[..., positions, vocabulary]``."""
        return self.head.cut(self.vocabulary).logits(self.states)


def cut_outputs(
    outputs: torch.Tensor | Hidden, vocabulary: int
) -> torch.Tensor | Hidden:
    """Leave out what a model says of ids from ``vocabulary`` on.

    Args:
        outputs: Logits ``[..., width]``, or hidden states with their head.
        vocabulary: Number of ids that count; a narrower head stays as it is.
    """
    if isinstance(outputs, Hidden):
        return outputs.cut(vocabulary)
    return outputs[..., :vocabulary]


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's distribution at every position, as a cache gives it back.

    The losses check targets that were made by hand, at the positions that count: see
    :meth:`check`.

    Attributes:
        ids: Token ids ``[positions, k]``. One may come twice only where ``entropy`` is
            known and there is no tail, as draws do; their weights then add up.
        weights: Their probabilities ``[positions, k]``, fp32. A place that is not
            needed holds the weight 0 and, if there is a tail, a token of its own.
        tail: Probability ``[positions]`` of all other tokens together, where that is
            a class of its own (the tail bucket); else ``None``, and the weights sum
            to 1.
        entropy: The entropy of the teacher's full distribution ``[positions]``, in
            nats; makes the value comparable with the full loss. ``None`` takes the
            entropy of what is stored.
        temperature: That the teacher's softmax was taken at.
        checked: Whether whoever made them has seen to all this, as a cache's writer
            does.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    tail: torch.Tensor | None
    entropy: torch.Tensor | None
    temperature: float
    checked: bool = False

    def select(self, rows: torch.Tensor | slice) -> SparseTargets:
        """The targets of some positions."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str) -> SparseTargets:
        """The same on another device."""
        return self._each(lambda column: column.to(device))

    @property
    def known_entropy(self) -> torch.Tensor:
        """The stored entropy ``[positions]``, or that of what is stored."""
        if self.entropy is not None:
            return self.entropy
        entropy = -torch.xlogy(self.weights, self.weights).sum(-1)
        if self.tail is not None:
            entropy = entropy - torch.xlogy(self.tail, self.tail)
        return entropy

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SparseTargets:
        return SparseTargets(
            change(self.ids),
            change(self.weights),
            None if self.tail is None else change(self.tail),
            None if self.entropy is None else change(self.entropy),
            self.temperature,
            self.checked,
        )

    def check(self, vocabulary: int) -> None:
        """Refuse what is no distribution over the vocabulary, if nobody has looked yet.

        Raises:
            ValueError: Naming the column, what it holds, and what it should.
        """
        if self.checked or not self.ids.numel():
            return
        ids, weights = self.ids, self.weights
        if ids.shape != weights.shape or ids.is_floating_point():
            raise ValueError(
                f"ids has shape {tuple(ids.shape)} and dtype {ids.dtype}, weights "
                f"{tuple(weights.shape)}: there must be one whole number per weight"
            )
        if bool(weights.isnan().any()):
            raise ValueError(
                "weights holds NaN where a label counts: nothing is known of the "
                "teacher there, as of the prompts of a served teacher; label that -100"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"ids holds the token {low if low < 0 else high}, outside the "
                f"vocabulary of {vocabulary}; compare the two tokenizers"
            )
        used = ids
        if self.tail is None:  # then a place that is not used does nothing
            used = ids.where(weights > 0, -1 - torch.arange(ids.shape[1]).to(ids))
        order = used.sort(-1).values
        again = order[:, 1:] == order[:, :-1]
        # Draws may come twice: they add up, and their entropy is known.
        drawn = self.tail is None and self.entropy is not None
        if not drawn and bool(again.any()):
            raise ValueError(
                f"ids names token {int(order[:, 1:][again][0])} twice at one position; "
                "add its weights up (unused places need tokens of their own, with "
                "weight 0)"
            )
        columns = {"weights": weights}
        total = weights.sum(-1)
        if self.tail is not None:
            columns["tail"] = self.tail
            total = total + self.tail
        for name, column in columns.items():
            # Not "any below 0", which NaN would pass.
            if not bool((column >= 0).all()):
                raise ValueError(
                    f"{name} holds {column.min().item():.4g}; it must hold "
                    "probabilities (of log-probabilities, pass the exp())"
                )
        worst = total[(total - 1).abs().argmax()].item()
        if not abs(worst - 1) < 0.01:
            raise ValueError(
                f"weights and tail sum to {worst:.4g} at a position, and a "
                "distribution to 1: pass tail=1 - weights.sum(-1) for the "
                "probability of all other tokens, or divide the weights by their sum"
            )
