"""Two tokenizers and one text: which tokens of the one stand for which of the other.

Every token stands for some bytes. Where the bytes up to a token of the one end where
those up to a token of the other do, both have read the same: a common end. What lies
between two common ends is a chunk, and :func:`chunks`, the core of this file, finds
them all. The rest is to know the bytes of a token (``byte_counts``), what stands for
no text at all (the beginning, the end, a chat template), and what cannot be aligned.

Taught in notebook 10. Papers: Minixhofer et al. 2025 (arXiv:2503.20083) for chunks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch

from distill_helpers.data.base import DataError, whole_characters
from distill_helpers.data.byte_counts import ByteCount, byte_count, is_byte

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NotAligned(DataError):
    """The two sequences of a row do not stand for one text; the message says why."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of both sides that stand for the same bytes, as few as can be.

    Attributes:
        student: Where they are in the student's row: ``ids[chunk.student]``.
        teacher: Where they are in the teacher's row.
    """

    student: slice
    teacher: slice


def chunks(student: Sequence[int], teacher: Sequence[int]) -> list[Chunk]:
    """Cut two sequences of tokens of one text at all of their common ends.

    Args:
        student: How many bytes each of the student's tokens stands for.
        teacher: The same of the teacher's tokens.

    Returns:
        Chunks that follow one another and hold every token once. None can be cut in
        two. A token of no bytes goes with what stands before it.

    Raises:
        ValueError: If the two do not stand for equally many bytes.

    Taught in notebook 10.
    """
    ours, theirs = list(accumulate(student)), list(accumulate(teacher))
    if ours[-1:] != theirs[-1:]:
        raise ValueError(
            f"student stands for {sum(student)} bytes in {len(ours)} tokens and "
            f"teacher for {sum(teacher)} in {len(theirs)}; pass tokens of one text"
        )
    found, i, j = [], 0, 0
    for end in sorted({*ours} & {*theirs} - {0}):
        k, m = bisect_right(ours, end), bisect_right(theirs, end)
        found.append(Chunk(slice(i, k), slice(j, m)))
        i, j = k, m
    return found


@dataclass(frozen=True)
class AlignedRow:
    """The tokens of both sides for one text, and how they go together.

    Attributes:
        student_ids: The student's row.
        teacher_ids: The teacher's.
        chunks: In the order of the text. What is in no chunk stands for no text that
            both read: a beginning, a template, half a character where a row was cut.
        untyped: Numbers of the chunks where one side has a space that nobody typed
            and the other has not. The two stand before different bytes there, so
            these chunks are not compared.
    """

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    untyped: frozenset[int] = frozenset()

    def numbers(self) -> tuple[list[int], list[int]]:
        """The number of the chunk that each token is in, of both sides.

        The chunks that are compared count from 0, and ``-1`` means none.
        """
        ours, theirs = [-1] * len(self.student_ids), [-1] * len(self.teacher_ids)
        compared = [c for n, c in enumerate(self.chunks) if n not in self.untyped]
        for number, chunk in enumerate(compared):
            for row, place in ((ours, chunk.student), (theirs, chunk.teacher)):
                row[place] = [number] * (place.stop - place.start)
        return ours, theirs


@dataclass(frozen=True)
class Side:
    """What a tokenizer's tokens stand for.

    Attributes:
        tokenizer: The tokenizer.
        bytes_of: The bytes of each id; none for special tokens.
        special: Ids that stand for no text.
        unknown: Ids that stand for whatever the tokenizer cannot write.
        spaced: Whether it puts a space before a text.
        doubled: Whether it does so before a text that begins with one, too.
    """

    tokenizer: PreTrainedTokenizerBase
    bytes_of: tuple[bytes, ...]
    special: frozenset[int]
    unknown: frozenset[int]
    spaced: bool
    doubled: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, count: ByteCount) -> Side:
        """Take what is known of a tokenizer's bytes."""
        special = frozenset(count.special.nonzero().flatten().tolist()) - count.unknown
        twice = tokenizer("  ", add_special_tokens=False)["input_ids"]
        return cls(
            tokenizer,
            tuple(
                b"" if nameless else one
                for one, nameless in zip(
                    count.spelling, count.special.tolist(), strict=True
                )
            ),
            special,
            count.unknown,
            spaced=bool(count.opening.any()),
            doubled=b"".join(count.spelling[token] for token in twice) == b"   ",
        )

    @cached_property
    def prefix(self) -> list[int]:
        """Special tokens that the tokenizer itself puts before a text."""
        with_them = self.tokenizer("a")["input_ids"]
        return with_them[: _leading(with_them, self.special)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as a text to be read; special ones by their names."""
        return [
            str(self.tokenizer.convert_ids_to_tokens(token))
            if token in self.special
            else self.bytes_of[token].decode(errors="backslashreplace")
            for token in ids
        ]

    def spelled(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for.

        Raises:
            NotAligned: For unknown tokens, and ids that the tokenizer does not have.
        """
        for token in ids:
            if token in self.unknown:
                raise NotAligned("a tokenizer cannot write the text (unknown token)")
            if not 0 <= token < len(self.bytes_of):
                raise NotAligned(f"the tokenizer has no token of the id {token}")
        return b"".join([self.bytes_of[token] for token in ids])

    def items(self, ids: Sequence[int]) -> Iterator[tuple[int, int, bytes | None]]:
        """Where texts begin and end, with their bytes; special tokens one by one."""
        start = 0
        for special, group in groupby(ids, self.special.__contains__):
            end = start + len(list(group))
            if special:
                yield from ((i, i + 1, None) for i in range(start, end))
            else:
                yield start, end, self.spelled(ids[start:end])
            start = end


@dataclass(frozen=True)
class Alignment:
    """Two tokenizers that can be aligned; :func:`align_tokenizers` makes it.

    Attributes:
        student: The student's side.
        teacher: The teacher's side.
        twins: For each of the student's ids the teacher's id with the same bytes, or
            with the same role or name if it is special; ``-1`` where there is none.
            ``[student's highest id + 1]``, int64. No two have one twin.
    """

    student: Side
    teacher: Side
    twins: torch.Tensor

    @cached_property
    def first_pieces(self) -> torch.Tensor:
        """The student's token that each of the teacher's tokens begins with.

        A twin, where there is one; else the first of the tokens into which the student
        cuts the same bytes; ``-1`` for special tokens that the student has not, for
        bytes that are no whole characters, and inside words where the student's
        tokenizer puts a space before every text. ``[teacher's highest id + 1]``, int64.

        Taught in notebook 10.
        """
        found = torch.full((len(self.teacher.bytes_of),), -1)
        ours = (self.twins >= 0).nonzero().squeeze(-1)
        found[self.twins[ours]] = ours
        texts = {}
        for token in (found < 0).nonzero().flatten().tolist():
            spelled = self.teacher.bytes_of[token]
            if spelled and _whole(spelled) == (0, spelled, 0):
                text = spelled.decode(errors="replace")
                # That space is put there by itself, and a second time if it is typed.
                typed = self.student.doubled and text[0] == " " != text
                texts[token] = text[1:] if typed else text
        cut = self.student.tokenizer(
            list(texts.values()) or [""],
            add_special_tokens=False,
            split_special_tokens=True,
        )["input_ids"]
        for token, ids in zip(texts, cut, strict=False):
            # A space that nobody typed would make it another text.
            begins = self.student.bytes_of[ids[0]] if ids else b""
            if begins and self.teacher.bytes_of[token].startswith(begins):
                found[token] = ids[0]
        return found

    @cached_property
    def beginnings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The number of the shared token that each token begins with.

        A shared token, which has a twin, counts for itself. Any other counts for what
        its first piece in the other's tokens counts for: pieces get shorter, until one
        is shared. The student's tokens that come to none are numbered by where they
        stop, and the teacher's are ``-1``. ``([student's highest id + 1], [teacher's
        highest id + 1])``, int64; the student's numbers are 0, 1, … without a gap.

        Taught in notebook 10.
        """
        ours = (self.twins >= 0).nonzero().squeeze(-1)
        back = torch.full((len(self.teacher.bytes_of),), -1)
        back[self.twins[ours]] = ours
        turned = Alignment(self.teacher, self.student, back)
        to_student, to_teacher = self.first_pieces, turned.first_pieces
        token = torch.arange(len(self.twins))
        stays = (self.twins >= 0) | (to_teacher < 0)
        step = token.where(stays, to_student[to_teacher])
        step = token.where(step < 0, step)
        for _ in range(16):  # twice as many steps each time: no token is that long
            step = step[step]
        numbers = step.unique(return_inverse=True)[1]
        return numbers, numbers[to_student].where(to_student >= 0, -1)

    @property
    def word_starts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the student's, and of the teacher's, tokens that end a word before.

        They begin with a space, a tab or a new line, or are special. Most tokenizers
        let no other token hold one of these behind a letter.

        Taught in notebook 10.
        """
        ours, theirs = (
            [
                token
                for token, spelled in enumerate(side.bytes_of)
                if spelled[:1].isspace() or token in side.special
            ]
            for side in (self.student, self.teacher)
        )
        return torch.tensor(ours), torch.tensor(theirs)

    def align_text(self, text: str) -> AlignedRow:
        """Write a text in both tokenizers' tokens, and align them.

        Args:
            text: Any; lone surrogates (half an emoji) become U+FFFD.

        Raises:
            NotAligned: If one of the tokenizers cannot write it, or changes it.
        """
        return self.align(_encode(self.student, whole_characters(text)))

    def align(
        self, student_ids: Sequence[int], teacher_ids: Sequence[int] | None = None
    ) -> AlignedRow:
        """Align a row of the student with one of the teacher.

        Special tokens that a row begins with are in no chunk, for nothing predicts
        them. The others are a chunk with the teacher's token of the same role or name.

        Args:
            student_ids: The student's row. It may be cut anywhere, in mid-character
                too.
            teacher_ids: The teacher's row of the same text; ``None`` takes
                :meth:`teacher_row`.

        Raises:
            NotAligned: If they do not stand for the same text.
        """
        if teacher_ids is None:
            teacher_ids = self.teacher_row(student_ids)
        ours = slice(_leading(student_ids, self.student.special), len(student_ids))
        theirs = slice(_leading(teacher_ids, self.teacher.special), len(teacher_ids))
        return self.align_spans(student_ids, teacher_ids, [(ours, theirs)])

    def teacher_row(self, student_ids: Sequence[int]) -> list[int]:
        """The text of a student's row in the teacher's tokens.

        A row begins with whatever the teacher's tokenizer puts before a text, or with
        the teacher's twin of the student's beginning. A text that looks like a special
        token stays a text.

        Raises:
            NotAligned: If the row holds a special token that the teacher has not (a
                chat template that it does not know), or bytes that are no text.
        """
        begun = _leading(student_ids, self.student.special)
        twins = [self._twin(token) for token in student_ids[:begun]]
        row = self.teacher.prefix or [token for token in twins if token >= 0]
        row = list(row)
        for start, _, spelled in self.student.items(student_ids[begun:]):
            if spelled is not None:
                row += _encode(self.teacher, self._text(spelled))
                continue
            special = student_ids[begun + start]
            if self._twin(special) < 0:
                name = self.student.tokenizer.convert_ids_to_tokens(special)
                raise NotAligned(
                    f"the teacher has no twin of the special token {name!r}; pass "
                    "teacher_rows, the same answers in the teacher's chat template"
                )
            row.append(self._twin(special))
        return row

    def align_spans(
        self,
        student_ids: Sequence[int],
        teacher_ids: Sequence[int],
        spans: Sequence[tuple[slice, slice]],
    ) -> AlignedRow:
        """Align parts of two rows, such as the answers behind unequal prompts.

        Args:
            student_ids: The student's row.
            teacher_ids: The teacher's row.
            spans: Pairs of places in the two rows that stand for the same text. A
                special token goes with the one at the same place, such as the two
                that end a turn; what one side alone has at the end is in no chunk.

        Raises:
            NotAligned: If a pair does not stand for the same text.
        """
        found: list[Chunk] = []
        untyped: set[int] = set()
        for ours, theirs in spans:
            mine = self.student.items(student_ids[ours])
            others = self.teacher.items(teacher_ids[theirs])
            for start, end, spelled in mine:
                if spelled is not None and not _whole(spelled)[1]:
                    continue  # half a character
                other = next(others, None)
                if other is None and spelled is None:
                    break
                if other is None:
                    raise NotAligned(
                        "the student's row has more text than the teacher's"
                    )
                place = slice(ours.start + start, ours.start + end)
                place_of_other = slice(theirs.start + other[0], theirs.start + other[1])
                if spelled is None and other[2] is None:
                    found.append(Chunk(place, place_of_other))
                    continue
                if spelled is None or other[2] is None:
                    raise NotAligned(
                        "a text of the one is a special token of the other"
                    )
                new, first_untyped = self._text_chunks(
                    student_ids[place], teacher_ids[place_of_other], spelled, other[2]
                )
                if first_untyped:
                    untyped.add(len(found))
                found += [
                    Chunk(
                        _moved(c.student, place.start),
                        _moved(c.teacher, place_of_other.start),
                    )
                    for c in new
                ]
            if any(spelled is not None for *_, spelled in others):
                raise NotAligned("the teacher's row has more text than the student's")
        return AlignedRow(
            tuple(student_ids), tuple(teacher_ids), tuple(found), frozenset(untyped)
        )

    def _text_chunks(
        self,
        student_ids: Sequence[int],
        teacher_ids: Sequence[int],
        ours: bytes,
        theirs: bytes,
    ) -> tuple[list[Chunk], bool]:
        """Chunks of one text, and whether the first has a space that nobody typed."""
        before, whole, after = _whole(ours)
        mine = [len(self.student.bytes_of[token]) for token in student_ids]
        others = [len(self.teacher.bytes_of[token]) for token in teacher_ids]
        untyped = whole != theirs
        if untyped and self.teacher.spaced and theirs == b" " + whole:
            others[0] -= 1
        elif untyped and self._untyped_space(ours) and whole == b" " + theirs:
            mine[0] -= 1
        elif untyped:
            raise NotAligned(
                "a tokenizer changes the text (lower case, other characters, spaces)"
            )
        # Half a character, which only the student has, stands as one more token there.
        ends = [before] * bool(before), [after] * bool(after)
        found = chunks(mine, ends[0] + others + ends[1])
        if before:
            found = [Chunk(c.student, _moved(c.teacher, -1)) for c in found[1:]]
        return (found[:-1] if after else found), untyped

    def _text(self, spelled: bytes) -> str:
        """The text of some bytes, without a space that nobody typed."""
        whole = _whole(spelled)[1]
        if self._untyped_space(spelled):
            whole = whole[1:]
        try:
            return whole.decode()
        except UnicodeDecodeError:
            raise NotAligned("a row holds bytes that are no UTF-8 text") from None

    def _untyped_space(self, spelled: bytes) -> bool:
        """Whether a text begins with a space that may be the tokenizer's own."""
        if not self.student.spaced or spelled[:1] != b" ":
            return False
        return self.student.doubled or spelled[1:2] not in (b" ", b"")

    def _twin(self, token: int) -> int:
        return int(self.twins[token])


def align_tokenizers(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    normalised: bool = False,
) -> Alignment:
    """Say how two tokenizers cut the same text; refuse those of which nobody can.

    Right for tokenizers that keep all of a text: see
    :func:`~distill_helpers.data.token_bytes`, which finds out by trying.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's.
        normalised: Whether to take a tokenizer that changes texts too (lower case,
            NFKC). Rows are aligned then if their text is as that tokenizer leaves it:
            write it with ``data.normalised_text`` before you make the rows.

    Returns:
        An :class:`Alignment`, for single texts and rows; ``data.align_rows`` aligns a
        dataset.

    Raises:
        DataError: If the bytes of a text cannot be told from one's tokens.

    Taught in notebook 10.
    """
    sides = []
    for who, tokenizer in (("student", student), ("teacher", teacher)):
        try:
            count = byte_count(tokenizer, normalised=normalised)
        except DataError as error:
            remedy = (
                ""
                if normalised
                else (
                    "; if it writes in lower case or other characters (NFKC), pass "
                    "normalised=True and texts from data.normalised_text"
                )
            )
            raise DataError(
                f"the {who}'s tokenizer cannot be aligned: {str(error).split(';')[0]}"
                f"{remedy}; else learn the teacher's answers as text (hard labels)"
            ) from error
        sides.append(Side.of(tokenizer, count))
    return Alignment(sides[0], sides[1], _twins(*sides))


def _twins(student: Side, teacher: Side) -> torch.Tensor:
    ours, theirs = _ids_by_bytes(student), _ids_by_bytes(teacher)
    twins = torch.full((len(student.bytes_of),), -1)
    for spelled in ours.keys() & theirs.keys():
        twins[ours[spelled]] = theirs[spelled]
    names = {
        str(teacher.tokenizer.convert_ids_to_tokens(i)): i for i in teacher.special
    }
    for token in student.special:
        twins[token] = names.get(
            str(student.tokenizer.convert_ids_to_tokens(token)), -1
        )
    for role in ("pad_token_id", "bos_token_id", "eos_token_id"):  # the last counts
        token = getattr(student.tokenizer, role)
        other = getattr(teacher.tokenizer, role)
        if token is not None and other is not None:
            twins[twins == other] = -1
            twins[token] = other
    return twins


def _ids_by_bytes(side: Side) -> dict[bytes, int]:
    """One id for each spelling: the token that is written, not the one for a byte."""
    names = side.tokenizer.convert_ids_to_tokens(list(range(len(side.bytes_of))))
    found: dict[bytes, int] = {}
    for token, spelled in enumerate(side.bytes_of):
        if not spelled or token in side.unknown:
            continue
        if spelled not in found or not is_byte(str(names[token])):
            found[spelled] = token
    return found


def _encode(side: Side, text: str) -> list[int]:
    if not text:
        return []
    found: list[int] = side.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    return found


def _leading(ids: Sequence[int], special: frozenset[int]) -> int:
    """How many special tokens ids begin with."""
    return next((i for i, token in enumerate(ids) if token not in special), len(ids))


def _moved(place: slice, by: int) -> slice:
    return slice(place.start + by, place.stop + by)


def _whole(spelled: bytes) -> tuple[int, bytes, int]:
    """Bytes without the halves of characters at their ends, and how long those are."""
    before = 0
    while before < min(3, len(spelled)) and spelled[before] & 0xC0 == 0x80:
        before += 1
    whole = spelled[before:]
    for after in range(1, min(3, len(whole)) + 1):
        lead = whole[-after]
        if lead < 0x80:
            break
        if lead >= 0xC0:  # says how many bytes its character has
            wanted = 2 + (lead >= 0xE0) + (lead >= 0xF0)
            if wanted > after:
                return before, whole[:-after], after
            break
    return before, whole, 0
