"""What losses between tokenizers say of a piece of text, and of some of the tokens.

Taught in notebook 10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# A text that is certain: the logarithm of 1 - p is not to be infinite.
_CERTAIN, _IMPOSSIBLE = -1e-7, -1e4


def binary_kl(
    log_p: torch.Tensor, log_q: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL between "this text comes" and "another comes", of p^(1/T) and q^(1/T).

    Args:
        log_p: The teacher's log-probability of each text.
        log_q: The student's, of the same shape.
        temperature: ``T > 0``. A long text has a small probability, and at T = 1 the
            KL hardly sees it; a large T brings long and short ones nearer.

    Returns:
        The KL in nats, of the same shape.

    Taught in notebook 10. Paper: Minixhofer et al. 2025 (arXiv:2503.20083).
    """
    a, b = ((one / temperature).clamp(_IMPOSSIBLE, _CERTAIN) for one in (log_p, log_q))
    p = a.exp()
    not_p, not_q = -torch.expm1(a), -torch.expm1(b)
    return p * (a - b) + not_p * (not_p.log() - not_q.log())


def words_of(
    begun: tuple[torch.Tensor, torch.Tensor],
    numbers: tuple[torch.Tensor, torch.Tensor],
    teacher_ids: torch.Tensor,
    starts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Join chunks to words.

    Args:
        begun: Where each chunk begins, among all of the student's places and all of
            the teacher's.
        numbers: The chunk of each token of both, ``[rows, positions]``; -1 for none.
        teacher_ids: The teacher's tokens.
        starts: Those that only the start of a word can bring.

    Returns:
        The word of each chunk, with one ``-1`` more for tokens of no chunk; whether
        each word has such a start, without which it follows a token of no chunk or
        begins a row; and whether another word follows it at once.
    """
    opens = torch.isin(teacher_ids.flatten()[begun[1]], starts.to(teacher_ids.device))
    alone = torch.zeros_like(opens)
    for places, chunks in zip(begun, numbers, strict=True):
        alone |= F.pad(chunks[:, :-1], (1, 0), value=-1).flatten()[places] < 0
    first = opens | alone
    followed = ~F.pad(alone[first][1:], (0, 1), value=True)[: int(first.sum())]
    return F.pad(first.cumsum(0) - 1, (0, 1), value=-1), opens[first], followed


def check_starts(starts: torch.Tensor, vocabulary: int) -> None:
    """Raise ``ValueError`` unless a model has these tokens, and there are some."""
    if not len(starts) or int(starts.max()) >= vocabulary:
        raise ValueError(
            f"word_starts holds {len(starts)} tokens, ids up to "
            f"{int(starts.max()) if len(starts) else None}, and the head has "
            f"{vocabulary} outputs; make them of these models' own tokenizers "
            "(data.align_tokenizers)"
        )


def starts_log_prob(
    starts: torch.Tensor, logits: torch.Tensor, _: torch.Tensor
) -> torch.Tensor:
    """The log-probability, per row of logits, that one of these tokens comes."""
    return logits[:, starts].logsumexp(-1) - logits.logsumexp(-1)


def parted(
    logits: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of some tokens, and of all others together, if there are any.

    Summed, not 1 - sum: what is left may be tiny.
    """
    log_p = logits.log_softmax(-1)
    if len(ids) == logits.shape[-1]:
        return log_p[:, ids], None
    tail = log_p.index_fill(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return log_p[:, ids], tail


def summed_log_probs(
    log_p: torch.Tensor, group: torch.Tensor, number: int
) -> torch.Tensor:
    """Log-probabilities ``[rows, groups]`` of groups of tokens.

    Args:
        log_p: ``[rows, vocabulary]`` of each token.
        group: ``[vocabulary]`` the group of each; none of them is empty.
        number: How many groups there are.
    """
    # Beside the likeliest of its group a token may be tiny, and no group is zero. A
    # group that is ruled out has the lowest number there is, and no gradient.
    least = torch.finfo(log_p.dtype)
    spread = group.expand_as(log_p)
    most = log_p.detach().new_full((len(log_p), number), least.min / 2)
    most = most.scatter_reduce(1, spread, log_p.detach(), "amax")
    beside = (log_p - most.gather(1, spread)).exp()
    found = beside.new_zeros(most.shape).index_add(1, group, beside)
    return most + found.clamp(min=least.tiny).log()
