"""The losses that `make bench` compares: ours, the plain way, and the libraries'.

Each takes ``(student_hidden, student_head, teacher_hidden, teacher_head, labels,
divergence)`` and returns the mean divergence over the labels that count, T = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from distill_helpers.losses import Hidden, soft_label_loss

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


def ours(*tensors: torch.Tensor, divergence: str) -> torch.Tensor:
    """The fused loss of this package."""
    hidden, head, teacher_hidden, teacher_head, labels = tensors
    return soft_label_loss(
        Hidden(hidden, head),
        Hidden(teacher_hidden, teacher_head),
        labels,
        divergence=divergence,
        shift=False,
    ).loss


def naive(
    hidden: torch.Tensor,
    head: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    labels: torch.Tensor,
    *,
    divergence: str,
) -> torch.Tensor:
    """What one writes first: both logits, two log-softmaxes, ``kl_div``."""
    counted = labels != -100
    log_s = (hidden[counted] @ head.T).log_softmax(-1)
    with torch.no_grad():
        log_t = (teacher_hidden[counted] @ teacher_head.T).log_softmax(-1)
    if divergence == "forward_kl":
        value = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    elif divergence == "reverse_kl":
        value = F.kl_div(log_t, log_s, reduction="sum", log_target=True)
    else:
        log_m = torch.logaddexp(log_s, log_t) - math.log(2)
        value = (
            F.kl_div(log_m, log_t, reduction="sum", log_target=True)
            + F.kl_div(log_m, log_s, reduction="sum", log_target=True)
        ) / 2
    return value / counted.sum()


def trl_static(
    hidden: torch.Tensor,
    head: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    labels: torch.Tensor,
    *,
    divergence: str,
) -> torch.Tensor:
    """TRL's ``GKDTrainer.generalized_jsd_loss`` on logits."""
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher_logits = teacher_hidden @ teacher_head.T
    return GKDTrainer.generalized_jsd_loss(
        (hidden @ head.T).unsqueeze(0),
        teacher_logits.unsqueeze(0),
        labels=labels.unsqueeze(0),
        beta=BETA[divergence],
    )


def trl_chunked(
    hidden: torch.Tensor,
    head: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    labels: torch.Tensor,
    *,
    divergence: str,
) -> torch.Tensor:
    """TRL's ``ChunkedDivergenceFunction`` on the rows that count."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    counted = labels != -100
    per_token, _ = ChunkedDivergenceFunction.apply(
        hidden[counted],
        head,
        None,
        teacher_hidden[counted],
        teacher_head,
        None,
        BETA[divergence],
        1.0,
    )
    return per_token.mean()


def liger(
    *tensors: torch.Tensor,
    divergence: str,
    chunk_size: int = 1024,
    compiled: bool = False,
) -> torch.Tensor:
    """Liger's fused linear JSD."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=BETA[divergence],
        compiled=compiled,
        chunk_size=chunk_size,
    )
    return loss(*tensors)


@dataclass(frozen=True)
class Loss:
    """One way to compute the loss, and how it is run here.

    Attributes:
        call: Takes ``make_inputs``'s tensors and ``divergence``.
        mode: How it is run, in words.
        rows: Which rows it multiplies with the heads: ``"counted"``, or ``"all"``.
        filled: The gradients are there already, as in accumulation, and are added to.
        compiled: It compiles itself when it meets a new shape.
    """

    call: Callable[..., torch.Tensor]
    mode: str
    rows: str
    filled: bool = False
    compiled: bool = False


_PLAIN = "two logits, two log-softmaxes, `kl_div`"
LOSSES: dict[str, Loss] = {
    "ours": Loss(ours, "`soft_label_loss` of hidden states and heads", "counted"),
    "ours, onto a gradient": Loss(
        ours, "the same, as the second of two accumulated batches", "counted", True
    ),
    "naive PyTorch": Loss(naive, _PLAIN, "counted"),
    "naive, onto a gradient": Loss(
        naive, "the same, as the second of two accumulated batches", "counted", True
    ),
    "TRL static": Loss(trl_static, "`GKDTrainer.generalized_jsd_loss`", "all"),
    "TRL chunked": Loss(
        trl_chunked,
        "`ChunkedDivergenceFunction`, made for a GPU: here its way for CPUs",
        "counted",
    ),
    "Liger": Loss(liger, "`LigerFusedLinearJSDLoss(compiled=False)`", "all"),
    "Liger, chunks of 64": Loss(
        partial(liger, chunk_size=64), "the same with `chunk_size=64`", "all"
    ),
    "Liger, compiled": Loss(
        partial(liger, compiled=True),
        "with its default `compiled=True`; compiling is not timed",
        "all",
        compiled=True,
    ),
}


def make_inputs(tokens: int, width: int, vocabulary: int, *, seed: int = 0) -> Tensors:
    """Hidden states and heads with logits of deviation 2; a quarter is ignored."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[torch.randperm(tokens, generator=generator)[: tokens // 4]] = -100
    return (
        draw(tokens, width).requires_grad_(),
        draw(vocabulary, width, scale=2 / width**0.5).requires_grad_(),
        draw(tokens, width),
        draw(vocabulary, width, scale=2 / width**0.5),
        labels,
    )


def matrix_products(
    hidden: torch.Tensor,
    head: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """The four products of the plain way, on the rows that count."""
    counted = labels != -100
    with torch.no_grad():
        inputs = hidden[counted]
        logits = inputs @ head.T
        _ = teacher_hidden[counted] @ teacher_head.T
        _ = logits @ head
        _ = logits.T @ inputs
