"""Losses between two models that cut words differently: five bridges.

Student and teacher read the same text, each in its own tokens. Both rows say which
chunk of the text each token is in (``chunks``, ``teacher_chunks``; ``-1``: none), and
two rows hold the same chunks in the same order. At the ends of chunks, and only there,
both models have read the same bytes.

* :func:`chunk_likelihood_loss` compares how likely both call each chunk of the text;
* :func:`mapped_vocabulary_loss` compares what both expect next, over the tokens that
  both have, and the rest as one class;
* :func:`first_pieces_loss` compares the same over all of the student's tokens: each of
  the teacher's counts for the one that it begins with;
* :func:`shared_beginnings_loss` compares it over the tokens that both have, where each
  other token of either side counts for the one that it begins with;
* :func:`sorted_probabilities_loss` compares the sorted probabilities, whatever they
  stand for.

Each is zero where the two agree on what it compares, and never negative; what the third
and the fourth add is a loss on labels. Sums are divided by the labels that count, as in
:func:`~distill_helpers.losses.soft_label_loss`, so that one loss per chunk is still in
nats per token of the student. Logits are multiplied out a block of rows at a time, and
once more for the gradient.

Taught in notebook 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from distill_helpers.losses.arguments import (
    IGNORE_INDEX,
    check_temperature,
    refuse_bad_value,
)
from distill_helpers.losses.blocks import Rows, by_blocks, token_log_probs
from distill_helpers.losses.chunks import (
    chunk_probabilities,
    compared_of,
    count_items,
    groups_of,
    pairs_of,
)
from distill_helpers.losses.targets import Hidden, cut_outputs
from distill_helpers.losses.texts import (
    binary_kl,
    check_starts,
    parted,
    starts_log_prob,
    summed_log_probs,
    words_of,
)


@dataclass(frozen=True)
class CrossLoss:
    """What the losses of this file return.

    Attributes:
        loss: The number to call ``backward()`` on (scalar, at least fp32).
        compared: The share of the items that were compared; the others give no loss.
        covered: The teacher's probability, per item, that lies on tokens which both
            have, or that stand for one of the student's:
            :func:`mapped_vocabulary_loss`, :func:`first_pieces_loss` and
            :func:`shared_beginnings_loss` have it. It is never more than ``compared``,
            and divided by it the mean over what was compared.
        num_items: What the sums were divided by.
    """

    loss: torch.Tensor
    compared: torch.Tensor
    covered: torch.Tensor | None
    num_items: torch.Tensor | int | float


def chunk_likelihood_loss(
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden,
    labels: torch.Tensor,
    teacher_ids: torch.Tensor,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t: bool = True,
    num_items: torch.Tensor | int | float | None = None,
    word_starts: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> CrossLoss:
    """Compare how likely teacher and student call each chunk of the text.

    A chunk's probability is the product of its tokens'. Both models spread their
    probability over "this chunk" and "anything else", and :func:`binary_kl` compares
    the two.

    With one tokenizer every chunk is a token, and at T = 1 this is the forward KL of
    distributions over two classes, the text's token and the tail: what a cache gives
    with the text's own token and a tail bucket. Only the text's token is taught, so
    its gradient is not that of the whole forward KL. As T grows, ``T`` times the KL
    goes to ``a·log(a/b) - a + b`` with the two surprisals ``a = -log p, b = -log q``.

    Its limits: what the teacher thinks of other continuations is not learned. And the
    ends of tokens tell something: who writes "the" as one token has said that no "then"
    comes, who writes letters has not. So two models that give all texts the same
    probabilities differ in those of chunks, and are driven apart. With ``word_starts``,
    chunks are joined to words, and what is compared is that a word comes and ends,
    given that one begins: p(chunk) times the probability that a word starts after it,
    divided by the one before it. That is the same for both, if no token goes on over
    the start of a word. (ALM multiplies by the first factor alone.) A word that none
    follows, as at a row's end, is compared without its end.

    Args:
        student: Logits ``[rows, positions, vocabulary]`` or
            :class:`~distill_helpers.losses.Hidden`.
        teacher: The same of the teacher, at its own positions and over its own
            vocabulary; no gradient flows into it.
        labels: ``[rows, positions]`` the student's token ids, unshifted; ``-100`` does
            not count. A chunk counts if all of its tokens do, and if both models
            predict all of them: nothing predicts the first token of a row.
        teacher_ids: ``[rows, teacher's positions]`` token ids that the teacher reads.
        chunks: The number of the chunk that each token of the student is in, of the
            shape of ``labels``; ``-1`` for none.
        teacher_chunks: The same of the teacher's tokens.
        temperature: ``T`` of :func:`binary_kl`.
        scale_by_t: Multiply by T, for gradients get smaller by it.
        num_items: Divide the sum by this. Default: the labels that count here.
        word_starts: Ids of the student's and of the teacher's tokens that only the
            start of a word can bring (``Alignment.word_starts``). ``None`` compares
            chunks as they are.

    Returns:
        A :class:`CrossLoss`; ``compared`` is the share of the labels that are in
        chunks that count. If nothing counts, the loss is zero and keeps its graph.

    Raises:
        ValueError: For arguments out of range, shapes that do not fit, rows that do
            not hold the same chunks, or numbers that make the loss NaN or infinite.

    Taught in notebook 10. Paper: Minixhofer et al. 2025 (arXiv:2503.20083).
    """
    check_temperature(temperature)
    count = count_items(student, labels, num_items)
    begun = pairs_of(labels, teacher, teacher_ids, chunks, teacher_chunks)
    # Which chunk, of all rows' together; a chunk with a token that nothing predicts,
    # or that does not count, is left out. So is the last place, that of number -1.
    group, other_group = groups_of(chunks), groups_of(teacher_chunks)
    starts, other_starts = word_starts or (None, None)
    opens = begun[0]
    if other_starts is not None:
        words, opens, followed = words_of(
            begun, (chunks, teacher_chunks), teacher_ids, other_starts
        )
        group, other_group = words[group], words[other_group]
    whole = torch.ones(len(opens) + 1, dtype=torch.bool, device=labels.device)
    whole[-1] = False
    whole[group[labels == IGNORE_INDEX]] = False
    whole[group[:, 0]] = whole[other_group[:, 0]] = False

    def log_likelihood(
        model: torch.Tensor | Hidden,
        ids: torch.Tensor,
        number: torch.Tensor,
        starts: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each whole chunk; and the places of the tokens that they are of."""
        places = whole[number].flatten().nonzero().squeeze(-1)
        found = by_blocks(
            token_log_probs, [Rows.of(model, places - 1)], ids.flatten()[places]
        )
        at = number.flatten()[places]
        summed = found.new_zeros(len(whole)).index_add(0, at, found)[whole]
        if starts is None:
            return summed, places
        turns = at.diff(prepend=at.new_tensor([-1]), append=at.new_tensor([-1])) != 0
        ends = torch.cat([places[turns[:-1]] - 1, places[turns[1:]]])
        rows, back = ends.unique(return_inverse=True)
        read = Rows.of(model, rows)
        check_starts(starts, read.vocabulary)
        found = by_blocks(partial(starts_log_prob, starts), [read], rows)[back]
        before = found[: len(summed)].where(opens[whole[:-1]], 0)
        after = found[len(summed) :].where(followed[whole[:-1]], 0)
        return summed + after - before, places

    log_q, counting = log_likelihood(student, labels, group, starts)
    with torch.no_grad():
        log_p, _ = log_likelihood(teacher, teacher_ids, other_group, other_starts)
    values = binary_kl(log_p, log_q, temperature)
    loss = values.sum() * (temperature if scale_by_t else 1.0) / count
    refuse_bad_value(loss, counting - 1, student)
    return CrossLoss(loss, loss.new_tensor(len(counting)) / count, None, count)


def mapped_vocabulary_loss(
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden,
    labels: torch.Tensor,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    twins: torch.Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    num_items: torch.Tensor | int | float | None = None,
) -> CrossLoss:
    """Forward KL where a chunk begins, over the tokens that both models have.

    Tokens of the student that have a twin, one of the teacher's with the same bytes,
    are compared one by one; all others of either side are one more class, the tail.
    Where the student has no other tokens, the teacher's probabilities are divided by
    what lies on the twins.

    With one tokenizer every token is its own twin: value and gradient are those of the
    forward KL of :func:`~distill_helpers.losses.soft_label_loss`. Else the value is at
    most that of any finer comparison, for classes that are joined can only agree more.

    Its limits: inside a chunk nothing is compared. And the teacher's longer tokens are
    tail, although the student would begin to write them with tokens that it has:
    where ``covered`` is low, the student learns a distribution that nobody has.

    Args:
        student: Same as in :func:`chunk_likelihood_loss`, and so are ``teacher``,
            ``chunks`` and ``teacher_chunks``.
        labels: ``[rows, positions]`` the student's token ids, unshifted. A position
            counts if it predicts the first token of a chunk, for both models, and that
            token's label is not ``-100``.
        twins: ``[student's vocabulary]`` the teacher's id with the same bytes as each
            of the student's, ``-1`` where there is none. Outputs of the student's head
            from ``len(twins)`` on only pad it.
        temperature: ``T > 0`` of both softmaxes.
        scale_by_t2: Multiply by T².
        num_items: Divide the sum by this. Default: the labels that count here.

    Returns:
        A :class:`CrossLoss` with ``covered``; ``compared`` is the share of the labels
        whose position counts.

    Raises:
        ValueError: As in :func:`chunk_likelihood_loss`; and for twins outside the
            teacher's vocabulary.

    Taught in notebook 10. Paper: the hybrid loss of TRL's GOLD is of this kind.
    """
    check_temperature(temperature)
    count = count_items(student, labels, num_items)
    rows, others = compared_of(labels, teacher, None, chunks, teacher_chunks)
    models = [Rows.of(student, rows), Rows.of(teacher, others)]
    ids = (twins >= 0).nonzero().squeeze(-1).to(labels.device)
    other_ids = twins.to(labels.device)[ids]
    width, other_width = (model.vocabulary for model in models)
    if len(ids) and (int(ids.max()) >= width or int(other_ids.max()) >= other_width):
        raise ValueError(
            f"twins holds ids up to {int(ids.max())} and {int(other_ids.max())}, and "
            f"the heads have {width} and {other_width} outputs; make twins of these "
            "models' own tokenizers (data.align_tokenizers)"
        )

    def compare(z_s: torch.Tensor, z_t: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        log_q, q_tail = parted((z_s / temperature)[:, : len(twins)], ids)
        log_p, p_tail = parted(z_t.detach() / temperature, other_ids)
        covered = log_p.exp().sum(-1)
        if q_tail is None:
            log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        else:
            if p_tail is None:
                p_tail = torch.full_like(q_tail, -torch.inf)
            log_p, log_q = torch.cat([log_p, p_tail], 1), torch.cat([log_q, q_tail], 1)
        p = log_p.exp()
        gap = (log_p - log_q).where(p > 0, 0)
        return torch.stack([(p * gap).sum(-1), covered], -1)

    found = by_blocks(compare, models, rows)
    scale = temperature**2 if scale_by_t2 else 1.0
    loss = found[:, 0].sum() * scale / count
    refuse_bad_value(loss, rows, student)
    compared = loss.new_tensor(len(rows)) / count
    return CrossLoss(loss, compared, found[:, 1].detach().sum() / count, count)


def first_pieces_loss(
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden,
    labels: torch.Tensor,
    teacher_ids: torch.Tensor,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    pieces: torch.Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    num_items: torch.Tensor | int | float | None = None,
) -> CrossLoss:
    """Forward KL where a chunk begins, from the teacher in the student's tokens.

    Each of the teacher's tokens counts for the student's token that it begins with, and
    probabilities that meet there are added. So next to nothing is lost: a teacher that
    expects a long word tells the student to begin it. How the word goes on, inside a
    chunk, no such sum can say. There the text's own token is the label, as wherever
    else nothing is compared, and its cross-entropy is part of the loss.

    Where the student's token is the longer one, the teacher's first token stands for
    another that is only its beginning. There the teacher's probability of the whole
    chunk, the product of its tokens', is moved to the student's token of the text.

    With one tokenizer there is no inside: value and gradient are those of the forward
    KL of :func:`~distill_helpers.losses.soft_label_loss`.

    Its limits: a teacher hardly ever writes a word in short pieces, so that these get
    less probability than the texts that begin so would deserve; of the
    student's longer tokens that the text does not hold, only the beginning is said, so
    this is a loss for teachers with the larger vocabulary; and a row that could not be
    aligned learns its labels alone.

    Args:
        student: Same as in :func:`chunk_likelihood_loss`, and so are ``teacher``,
            ``teacher_ids``, ``chunks`` and ``teacher_chunks``.
        labels: Same as in :func:`mapped_vocabulary_loss`.
        pieces: ``[teacher's vocabulary]`` the student's token that each of the
            teacher's begins with, ``-1`` for none (``Alignment.first_pieces``). What
            stands on none is left out, and the rest divided by its sum. Outputs of the
            teacher's head from ``len(pieces)`` on only pad it.
        temperature: ``T > 0`` of both distributions over the student's tokens; labels
            are learned at 1.
        scale_by_t2: Multiply the KL by T².
        num_items: Divide the sum by this. Default: the labels that count here.

    Returns:
        A :class:`CrossLoss` with ``covered``; ``compared`` is the share of the labels
        whose position is compared.

    Raises:
        ValueError: As in :func:`chunk_likelihood_loss`; and for pieces outside the
            student's vocabulary.

    Taught in notebook 10. Paper: Sreenivas et al. 2026 (X-Token, arXiv:2605.21699),
    whose map is learned further.
    """
    check_temperature(temperature)
    count = count_items(student, labels, num_items)
    rows, others = compared_of(labels, teacher, teacher_ids, chunks, teacher_chunks)
    models = [Rows.of(student, rows), Rows.of(teacher, others)]
    width, other_width = (model.vocabulary for model in models)
    if len(pieces) > other_width or (len(pieces) and int(pieces.max()) >= width):
        raise ValueError(
            f"pieces maps {len(pieces)} tokens to ids up to {int(pieces.max())}, and "
            f"the heads have {other_width} and {width} outputs; make it of these "
            "models' own tokenizers (data.align_tokenizers)"
        )
    # What stands on none goes behind the last token, and is cut off there: to leave it
    # out beforehand would copy the teacher's whole distribution.
    standing = pieces.where(pieces >= 0, width).to(labels.device)
    meant = labels.flatten()[rows + 1]
    begun = standing[teacher_ids.flatten()[others + 1]]
    differs = meant != begun
    with torch.no_grad():
        likely = chunk_probabilities(
            teacher, teacher_ids, teacher_chunks, others[differs] + 1
        )
    moved = likely.new_zeros(len(rows)).masked_scatter(differs, likely)

    def compare(z_s: torch.Tensor, z_t: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        log_q = (z_s / temperature).log_softmax(-1)
        said = z_t.detach().softmax(-1)[:, : len(standing)]
        p = log_q.new_zeros(len(log_q), width + 1).index_add_(1, standing, said)
        mass = moved[at, None]
        p.scatter_add_(1, meant[at, None], mass).scatter_add_(1, begun[at, None], -mass)
        p = p[:, :width].clamp(min=0)  # what is moved was rounded
        return torch.stack(_tempered_kl(p, log_q, temperature), -1)

    found = by_blocks(compare, models, torch.arange(len(rows), device=labels.device))
    text, others = _text_elsewhere(student, labels, rows)
    scale = temperature**2 if scale_by_t2 else 1.0
    loss = (found[:, 0].sum() * scale + text) / count
    refuse_bad_value(loss, torch.cat([rows, others]), student)
    compared = loss.new_tensor(len(rows)) / count
    return CrossLoss(loss, compared, found[:, 1].detach().sum() / count, count)


def shared_beginnings_loss(
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden,
    labels: torch.Tensor,
    teacher_ids: torch.Tensor,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    beginnings: torch.Tensor,
    teacher_beginnings: torch.Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    num_items: torch.Tensor | int | float | None = None,
) -> CrossLoss:
    """Forward KL where a chunk begins, over the tokens that both models begin with.

    Every token counts for the token that both have and that it begins with, and
    probabilities that meet there are added, on both sides. So both distributions are
    over the same events, whichever vocabulary is the larger. Which of its own tokens
    with that beginning the student writes is the text's to say: the cross-entropy of
    the text's token, among those, is part of the loss. So is that of the text where
    nothing is compared, which is inside chunks, and where the text's own first tokens
    count for unequal beginnings.

    With one tokenizer every token is its own beginning, and nothing is inside: value
    and gradient are those of the forward KL of
    :func:`~distill_helpers.losses.soft_label_loss`.

    Its limits: where many tokens share a beginning the teacher says little, and the
    label says the rest. And the ends of tokens tell something, as in
    :func:`chunk_likelihood_loss`: a tokenizer may write what begins with a long shared
    token in a shorter one.

    Args:
        student: Same as in :func:`chunk_likelihood_loss`, and so are ``teacher``,
            ``teacher_ids``, ``chunks`` and ``teacher_chunks``.
        labels: Same as in :func:`mapped_vocabulary_loss`.
        beginnings: ``[student's vocabulary]`` the number of the beginning that each
            token counts for: 0, 1, … without a gap (``Alignment.beginnings`` has both).
        teacher_beginnings: ``[teacher's vocabulary]`` the same, of the same numbers;
            ``-1`` for none. What the teacher says there is left out, and the rest
            divided by its sum. Outputs of a head beyond these tokens only pad it.
        temperature: ``T > 0`` of both distributions over beginnings; labels are learned
            at 1.
        scale_by_t2: Multiply the KL by T².
        num_items: Divide the sum by this. Default: the labels that count here.

    Returns:
        A :class:`CrossLoss` with ``covered``; ``compared`` is the share of the labels
        whose position is compared.

    Raises:
        ValueError: As in :func:`chunk_likelihood_loss`; and for beginnings of other
            vocabularies.

    Taught in notebook 10.
    """
    check_temperature(temperature)
    ours, theirs = (one.to(labels.device) for one in (beginnings, teacher_beginnings))
    number = int(ours.max()) + 1
    widths = [
        one.vocabulary if isinstance(one, Hidden) else one.shape[-1]
        for one in (student, teacher)
    ]
    if len(ours) > widths[0] or len(theirs) > widths[1] or int(theirs.max()) >= number:
        raise ValueError(
            f"beginnings and teacher_beginnings hold {len(ours)} and {len(theirs)} "
            f"tokens with numbers up to {number - 1} and {int(theirs.max())}, and the "
            f"heads have {widths[0]} and {widths[1]} outputs; make both of these "
            "models' own tokenizers (data.align_tokenizers), and give a head to every "
            "token (resize_token_embeddings)"
        )
    student = cut_outputs(student, len(ours))
    count = count_items(student, labels, num_items)
    rows, others = compared_of(labels, teacher, teacher_ids, chunks, teacher_chunks)
    alike = (
        ours[labels.flatten()[rows + 1]] == theirs[teacher_ids.flatten()[others + 1]]
    )
    rows, others = rows[alike], others[alike]
    # What counts for none goes behind the last, as above.
    standing = theirs.where(theirs >= 0, number)

    def compare(
        z_s: torch.Tensor, z_t: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        log_q = z_s.log_softmax(-1)
        begun = summed_log_probs(log_q, ours, number)
        said = z_t.detach().softmax(-1)[:, : len(standing)]
        p = said.new_zeros(len(said), number + 1).index_add_(1, standing, said)
        p = p[:, :number]
        log_q_begun = (begun / temperature).log_softmax(-1)
        kl, covered = _tempered_kl(p, log_q_begun, temperature)
        among = begun.gather(1, ours[own, None]) - log_q.gather(1, own[:, None])
        return torch.stack([kl, covered, among.squeeze(1)], -1)

    models = [Rows.of(student, rows), Rows.of(teacher, others)]
    found = by_blocks(compare, models, labels.flatten()[rows + 1])
    text, elsewhere = _text_elsewhere(student, labels, rows)
    scale = temperature**2 if scale_by_t2 else 1.0
    loss = (found[:, 0].sum() * scale + found[:, 2].sum() + text) / count
    refuse_bad_value(loss, torch.cat([rows, elsewhere]), student)
    compared = loss.new_tensor(len(rows)) / count
    return CrossLoss(loss, compared, found[:, 1].detach().sum() / count, count)


def _tempered_kl(
    p: torch.Tensor, log_q: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of each row's p^(1/T) from a student that has its T; and the sum of p."""
    covered = p.sum(-1, keepdim=True)
    # From probabilities alone any temperature follows; 1e-30 where all are zero.
    p = (p / covered.clamp(min=1e-30)).pow(1 / temperature)
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-30)
    kl = (p * (p.log() - log_q).where(p > 0, 0)).sum(-1)
    return kl, covered.squeeze(-1)


def _text_elsewhere(
    student: torch.Tensor | Hidden, labels: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy of labels but at some positions; and where that is."""
    left = labels.flatten() != IGNORE_INDEX
    left[:: labels.shape[1]] = False  # nothing predicts the first token of a row
    left[rows + 1] = False
    places = left.nonzero().squeeze(-1)
    own = [Rows.of(student, places - 1)]
    found = by_blocks(token_log_probs, own, labels.flatten()[places])
    return -found.sum(), places - 1


def sorted_probabilities_loss(
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden,
    labels: torch.Tensor,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    *,
    temperature: float = 1.0,
    num_items: torch.Tensor | int | float | None = None,
) -> CrossLoss:
    """Compare the sorted probabilities where a chunk begins (ULD), for comparison.

    The distance is the sum of the differences between the likeliest, the second
    likeliest, … of both, in absolute value; the shorter vocabulary is filled up with
    zeros. It is Wasserstein's distance if any two unequal tokens are equally far apart
    and tokens may be renamed. It is never more than 2.

    Its limit is that renaming: a student is told how sure to be, and not of what. Two
    teachers that expect different things with equal shares teach the same. With one
    tokenizer, zero does not mean that the two agree, except on the sorted shares.

    Args:
        student: Same as in :func:`mapped_vocabulary_loss`, and so are ``teacher``,
            ``labels``, ``chunks`` and ``teacher_chunks``.
        temperature: ``T > 0`` of both softmaxes; the loss is not multiplied by it.
        num_items: Divide the sum by this. Default: the labels that count here.

    Returns:
        A :class:`CrossLoss`, as :func:`mapped_vocabulary_loss` without ``covered``.

    Raises:
        ValueError: As in :func:`chunk_likelihood_loss`.

    Taught in notebook 10. Paper: Boizard et al. 2024 (arXiv:2402.12030).
    """
    check_temperature(temperature)
    count = count_items(student, labels, num_items)
    rows, others = compared_of(labels, teacher, None, chunks, teacher_chunks)
    models = [Rows.of(student, rows), Rows.of(teacher, others)]
    width = min(model.vocabulary for model in models)

    def compare(z_s: torch.Tensor, z_t: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        q, p = ((z / temperature).softmax(-1) for z in (z_s, z_t.detach()))
        q_top, p_top = (one.topk(width, -1).values for one in (q, p))
        # What the longer has beyond that is compared with zeros, in whatever order.
        rest = q.sum(-1) - q_top.sum(-1) + p.sum(-1) - p_top.sum(-1)
        return (p_top - q_top).abs().sum(-1) + rest.clamp(min=0)

    loss = by_blocks(compare, models, rows).sum() / count
    refuse_bad_value(loss, rows, student)
    return CrossLoss(loss, loss.new_tensor(len(rows)) / count, None, count)
