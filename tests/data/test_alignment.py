"""Two tokenizers and one text: common ends, and what stands for no text."""

import itertools
import json
import logging
import time
from functools import cache, lru_cache

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS, bpe_json, byte_level_bpe
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill_helpers import data
from distill_helpers.data import AlignedRow, Chunk, DataError, NotAligned
from distill_helpers.labels import learn_answers, own_labels

BYTES = [f"<0x{number:02X}>" for number in range(256)]
MORE = "Größe über alles? Ça coûte 5 €,  高い 🐦. مرحبا Привет e\u0301"


def fast(backend, **names):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def sentencepiece_bpe(scheme):
    """BPE that writes ▁ for a space and <0x…> for what it does not have."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="never" if scheme == "normaliser" else scheme
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *BYTES],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if scheme == "normaliser":  # as Llama 2: a ▁ before every text
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.pre_tokenizer = None
    # The bytes are tokens of the model, and none that is added.
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(state))
    return fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(*, fallback):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(TEXTS, trainer)
    if fallback:
        pieces = json.loads(backend.to_str())["model"]["vocab"]
        pieces = [tuple(piece) for piece in pieces] + [(one, -20.0) for one in BYTES]
        backend.model = models.Unigram(pieces, unk_id=0, byte_fallback=True)
    return fast(backend, eos_token="</s>", unk_token="<unk>")


def byte_level(*, prefix=False, normalizer=None, vocabulary=300):
    backend = Tokenizer.from_str(bpe_json(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if normalizer is not None:
        backend.normalizer = normalizer
    return fast(backend, eos_token="<end>")


KINDS = {
    "byte-level": byte_level,
    "byte-level, larger": lambda: byte_level(vocabulary=420),
    "byte-level, space first": lambda: byte_level(prefix=True),
    "BPE, first": lambda: sentencepiece_bpe("first"),
    "BPE, never": lambda: sentencepiece_bpe("never"),
    "BPE, normaliser": lambda: sentencepiece_bpe("normaliser"),
    "Unigram": lambda: unigram(fallback=True),
}
tokenizer = lru_cache(lambda kind: KINDS[kind]())


@cache
def alignment(student, teacher):
    return data.align_tokenizers(tokenizer(student), tokenizer(teacher))


def spelled(side, ids, place):
    return b"".join(side.bytes_of[token] for token in ids[place])


def brute_force(student, teacher):
    """Every pair of places where the same bytes have been read, one by one."""
    pairs = [
        (i, j)
        for i in range(len(student) + 1)
        for j in range(len(teacher) + 1)
        if sum(student[:i]) == sum(teacher[:j])
    ]
    return list(itertools.pairwise(pairs))


# --- the core -----------------------------------------------------------------------


def test_chunks_by_hand():
    # The same eight bytes, with no common end between; then with two.
    assert data.chunks([2, 4, 2], [3, 4, 1]) == [Chunk(slice(0, 3), slice(0, 3))]
    assert data.chunks([2, 4, 1], [2, 1, 3, 1]) == [
        Chunk(slice(0, 1), slice(0, 1)),
        Chunk(slice(1, 2), slice(1, 3)),
        Chunk(slice(2, 3), slice(3, 4)),
    ]
    assert data.chunks([], []) == []
    # A token of no bytes: with what comes first, or what it stands behind.
    assert data.chunks([0, 2, 0, 1], [3]) == [Chunk(slice(0, 4), slice(0, 1))]
    assert data.chunks([0, 2, 0, 1], [2, 1]) == [
        Chunk(slice(0, 3), slice(0, 1)),
        Chunk(slice(3, 4), slice(1, 2)),
    ]
    with pytest.raises(ValueError, match=r"student stands for 3 bytes in 2 tokens"):
        data.chunks([1, 2], [4])


sizes = st.lists(st.integers(1, 5), max_size=12)


@settings(max_examples=300, deadline=None)
@given(sizes, sizes)
def test_chunks_are_the_shortest(student, teacher):
    gap = sum(student) - sum(teacher)
    (teacher if gap > 0 else student).extend([abs(gap)] * (gap != 0))
    found = data.chunks(student, teacher)
    expected = brute_force(student, teacher)
    assert found == [Chunk(slice(i, k), slice(j, m)) for (i, j), (k, m) in expected]
    assert data.chunks(student, student) == [
        Chunk(slice(i, i + 1), slice(i, i + 1)) for i in range(len(student))
    ]


# --- real tokenizers ----------------------------------------------------------------

# U+2581 is what SentencePiece writes for a space, and reads back as one.
words = [*MORE.split(), "👩‍👩‍👧", "e\u0301\u0323", "שלום", " ", "  ", "\n", "a"]
texts = st.one_of(
    st.text(st.characters(exclude_characters="▁\0"), min_size=1, max_size=40),
    st.lists(st.sampled_from(words), min_size=1, max_size=12).map(" ".join),
)


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
@settings(max_examples=20, deadline=None)
@given(text=texts)
def test_a_text_is_covered_by_chunks_of_equal_bytes(student, teacher, text):
    pair = alignment(student, teacher)
    row = pair.align_text(text)
    assert row.chunks
    ends = [(0, 0)]
    for number, chunk in enumerate(row.chunks):
        assert (chunk.student.start, chunk.teacher.start) == ends[-1]
        ends.append((chunk.student.stop, chunk.teacher.stop))
        ours = spelled(pair.student, row.student_ids, chunk.student)
        theirs = spelled(pair.teacher, row.teacher_ids, chunk.teacher)
        if number in row.untyped:
            assert ours == b" " + theirs or theirs == b" " + ours
        else:
            assert ours == theirs
    assert ends[-1] == (len(row.student_ids), len(row.teacher_ids))
    whole = spelled(pair.student, row.student_ids, slice(None)).decode()
    text = data.whole_characters(text)  # lone surrogates are among the characters
    assert text in (whole, whole.removeprefix(" "), " " + whole)
    # What is left of each pair has no common end inside: nothing is shorter.
    for number, chunk in enumerate(row.chunks):
        if number not in row.untyped:
            ours = [
                len(pair.student.bytes_of[i]) for i in row.student_ids[chunk.student]
            ]
            theirs = [
                len(pair.teacher.bytes_of[i]) for i in row.teacher_ids[chunk.teacher]
            ]
            assert len(brute_force(ours, theirs)) == 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(text=texts)
def test_equal_tokenizers_are_aligned_one_to_one(kind, text):
    row = alignment(kind, kind).align_text(text)
    assert row.teacher_ids == row.student_ids
    assert not row.untyped
    assert row.numbers() == ([*range(len(row.student_ids))],) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_half_an_emoji_is_replaced(kind):
    row = alignment(kind, "byte-level").align_text("a \ud83d b")
    assert (
        alignment(kind, "byte-level").teacher.tokenizer.decode(row.teacher_ids)
        == "a \ufffd b"
    )


@settings(max_examples=60, deadline=None)
@given(text=texts, start=st.integers(0, 30), length=st.integers(1, 30))
def test_a_row_may_be_cut_in_mid_character(text, start, length):
    """Every token that stands for whole characters of the row is in a chunk."""
    pair = alignment("byte-level", "BPE, never")
    ids = tokenizer("byte-level")(data.whole_characters(text))["input_ids"]
    ids = ids[start % len(ids) :][:length]
    row = pair.align(ids)
    raw = spelled(pair.student, ids, slice(None))
    whole = raw.decode(errors="ignore")
    assert tokenizer("BPE, never").decode(row.teacher_ids) is not None
    theirs = spelled(pair.teacher, row.teacher_ids, slice(None))
    assert theirs.decode() == whole
    before = raw.index(theirs)
    cut = {0, *itertools.accumulate(len(pair.student.bytes_of[i]) for i in ids)}
    inner = [end for end in cut if before <= end <= before + len(theirs)]
    covered = sum(
        len(spelled(pair.student, ids, chunk.student)) for chunk in row.chunks
    )
    # From the first to the last token's end that both can have.
    assert covered <= len(theirs)
    if before in cut and before + len(theirs) in cut:
        assert covered == len(theirs)
    assert bool(covered) <= (len(inner) > 1)
    for chunk in row.chunks:
        assert spelled(pair.student, ids, chunk.student) == spelled(
            pair.teacher, row.teacher_ids, chunk.teacher
        )


def test_an_added_word_stands_for_itself():
    student = byte_level()
    student.add_tokens(["Straße"])
    pair = data.align_tokenizers(student, tokenizer("BPE, first"))
    row = pair.align_text("Eine Straße 12")
    added = student.convert_tokens_to_ids("Straße")
    (chunk,) = [c for c in row.chunks if added in row.student_ids[c.student]]
    assert row.student_ids[chunk.student] == (added,)
    assert spelled(pair.teacher, row.teacher_ids, chunk.teacher) == "Straße".encode()
    assert pair.twins[added] == -1


# --- what stands for no text --------------------------------------------------------


def with_specials(kind, template=None, **names):
    made = KINDS[kind]()
    made.add_special_tokens(names)
    made.chat_template = template
    return made


def test_beginnings_and_ends_go_together_by_their_role():
    student = with_specials("byte-level", bos_token="<begin>", pad_token="<pad>")
    pair = data.align_tokenizers(student, tokenizer("BPE, first"))
    teacher = pair.teacher.tokenizer
    text = student("Good.")["input_ids"]
    bos, eos = student.bos_token_id, student.eos_token_id
    assert pair.twins[[bos, eos, student.pad_token_id]].tolist() == [
        teacher.bos_token_id, teacher.eos_token_id, -1
    ]  # fmt: skip
    row = pair.align([bos, *text, eos, *text, eos])
    theirs = teacher("Good.", add_special_tokens=False)["input_ids"]
    end = teacher.eos_token_id
    assert row.teacher_ids == (teacher.bos_token_id, *theirs, end, *theirs, end)
    # The beginning is in no chunk: nothing predicts it. The ends are.
    assert row.chunks[0].student.start == row.chunks[0].teacher.start == 1
    ends = [c for c in row.chunks if row.student_ids[c.student] == (eos,)]
    assert [row.teacher_ids[c.teacher] for c in ends] == [(end,), (end,)]
    assert row.untyped  # the teacher's first space of either text


def test_a_teacher_that_begins_every_text_does_so_here():
    teacher = tokenizer("byte-level, larger")
    made = with_specials("byte-level, larger", bos_token="<begin>")
    from tokenizers.processors import TemplateProcessing

    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", made.bos_token_id)]
    )
    pair = data.align_tokenizers(tokenizer("byte-level"), made)
    row = pair.align_text("Emma")
    assert row.teacher_ids == (made.bos_token_id, *teacher("Emma")["input_ids"])
    assert row.chunks[0].teacher.start == 1
    # And reads back what is already there.
    again = pair.align(row.student_ids, row.teacher_ids)
    assert again == row


CHAT = (
    "{% for m in messages %}<turn>{{ m['role'] + '\\n' + m['content'] }}<over>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\\n' }}{% endif %}"
)
OTHER = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def test_answers_are_aligned_behind_unequal_templates(caplog):
    names = {"extra_special_tokens": ["<turn>", "<over>"]}
    student = with_specials("byte-level", CHAT, **names)
    teacher = KINDS["BPE, never"]()
    teacher.chat_template = OTHER
    pair = data.align_tokenizers(student, teacher)
    labels = own_labels(["Who?", "What?"], ["Emma Woodhouse.", "A truth 🐦"])
    rows = learn_answers(labels, student)
    done = data.align_rows(rows, pair, learn_answers(labels, teacher))
    assert done["refused"][:] == ["", ""]
    for row, answer in zip(done, labels["answer"], strict=True):
        learned = [n for n, one in enumerate(row["labels"]) if one != -100]
        inside = [n for n, number in enumerate(row["chunks"]) if number >= 0]
        assert inside == learned
        theirs = [
            token
            for token, number in zip(
                row["teacher_input_ids"], row["teacher_chunks"], strict=True
            )
            if number >= 0
        ]
        assert theirs[-1] == teacher.eos_token_id  # for <over>
        assert spelled(pair.teacher, theirs, slice(None)).decode() == answer
        assert max(row["chunks"]) == max(row["teacher_chunks"])
    # Without the teacher's own rows, its tokenizer cannot write the template.
    with caplog.at_level(logging.WARNING):
        alone = data.align_rows(rows, pair)
    assert all("special token '<turn>'" in why or "teacher_rows" in why
               for why in alone["refused"])  # fmt: skip
    assert "2 of 2 rows cannot be aligned" in caplog.text
    assert alone["teacher_input_ids"][:] == [[], []]
    with pytest.raises(DataError, match="1 teacher_rows"):
        data.align_rows(rows, pair, rows.select([0]))


def test_what_looks_like_a_special_token_in_a_text_is_text():
    pair = alignment("byte-level", "BPE, never")
    row = pair.align_text("an </s> end")
    assert pair.teacher.tokenizer.eos_token_id not in row.teacher_ids
    assert spelled(pair.teacher, row.teacher_ids, slice(None)) == b"an </s> end"


# --- what cannot be aligned ---------------------------------------------------------

CHANGING = {
    "lower case": normalizers.Lowercase(),
    "NFKC": normalizers.NFKC(),
    "both": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_tokenizers_that_change_texts_are_refused(kind):
    changing, plain = byte_level(normalizer=CHANGING[kind]), byte_level()
    for who, pair in (("teacher", (plain, changing)), ("student", (changing, plain))):
        with pytest.raises(DataError, match=rf"the {who}'s.*normalised=True"):
            data.align_tokenizers(*pair)


@pytest.mark.parametrize("kind", CHANGING)
def test_normalised_texts_are_aligned_if_asked(kind):
    changing, plain = byte_level(normalizer=CHANGING[kind]), tokenizer("BPE, first")
    text = "It’s ½ of Emma’s ﬁne…"
    normal = data.normalised_text(text, changing)
    assert normal != text
    for pair in ((plain, changing), (changing, plain)):
        found = data.align_tokenizers(*pair, normalised=True)
        row = found.align_text(normal)
        ours = spelled(found.student, row.student_ids, slice(None)).decode()
        assert ours.removeprefix(" ") == normal
        assert row.chunks[-1].teacher.stop == len(row.teacher_ids)
    keeps_all = data.align_tokenizers(plain, changing, normalised=True)
    with pytest.raises(NotAligned, match="changes the text"):
        keeps_all.align_text(text)


def test_a_text_is_normalised_as_its_tokenizer_does():
    assert data.normalised_text("Emma A", byte_level()) == "Emma A"
    lower = byte_level(normalizer=normalizers.Lowercase())
    assert data.normalised_text(" Emma A", lower) == " emma a"
    assert data.normalised_text("Emma A", sentencepiece_bpe("normaliser")) == "Emma A"


def test_a_tokenizer_that_drops_spaces_is_refused_in_any_case():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    dropping = fast(backend, unk_token="<unk>")
    for normalised in (False, True):
        with pytest.raises(DataError, match=r"cannot be told.*hard labels"):
            data.align_tokenizers(byte_level(), dropping, normalised=normalised)


def test_a_composing_tokenizer_aligns_composed_texts():
    composing = byte_level(normalizer=normalizers.NFC())
    pair = data.align_tokenizers(byte_level(), composing)
    assert pair.align_text("\u00e9t\u00e9").chunks
    with pytest.raises(NotAligned, match="changes the text"):
        pair.align_text("e\u0301te\u0301")
    squeezing = byte_level(normalizer=normalizers.Replace(Regex("[0-9]{9}"), "9"))
    pair = data.align_tokenizers(byte_level(), squeezing)
    with pytest.raises(NotAligned, match="changes the text"):
        pair.align_text("call 123456789")


def test_rows_that_cannot_be_aligned_are_counted(caplog):
    student, teacher = tokenizer("byte-level"), unigram(fallback=False)
    pair = data.align_tokenizers(student, teacher)
    written = [student(text)["input_ids"] for text in (TEXTS[0], "Ω", "in want")]
    rows = Dataset.from_dict({"input_ids": [*written, []]})
    with caplog.at_level(logging.WARNING):
        done = data.align_rows(rows, pair)
    assert "1 of 4 rows cannot be aligned" in caplog.text
    assert "unknown token" in caplog.text
    assert [bool(why) for why in done["refused"]] == [False, True, False, False]
    again = data.align_rows(Dataset.from_list([done[1]] * 1001 + [done[0]]), pair)
    assert len(again[1001]["teacher_input_ids"]) > 1
    refused, empty = done[1], done[3]
    assert refused["teacher_input_ids"] == []
    assert set(refused["chunks"]) == {-1}
    assert empty["chunks"] == empty["teacher_chunks"] == []
    for ids, why in (
        ([999], "no token of the id 999"),
        ([student.convert_tokens_to_ids("Ã")] * 2 + [5, 6], "no UTF-8"),
    ):
        with pytest.raises(NotAligned, match=why):
            pair.align(ids)


def test_rows_of_unequal_texts_are_not_aligned():
    pair = alignment("byte-level", "BPE, never")
    ours, theirs = pair.student.tokenizer, pair.teacher.tokenizer
    mine = ours("want")["input_ids"]
    for text, why in (("won't", "changes the text"), ("", "more text")):
        other = theirs(text, add_special_tokens=False)["input_ids"]
        with pytest.raises(NotAligned, match=why):
            pair.align(mine, other)
    with pytest.raises(NotAligned, match="more text than the student's"):
        pair.align([], theirs("want", add_special_tokens=False)["input_ids"])
    both = slice(0, 1)
    with pytest.raises(NotAligned, match="special token of the other"):
        pair.align_spans(mine[:1], [theirs.eos_token_id], [(both, both)])


def test_packed_examples_are_refused():
    rows = Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, 6]}] * 2)
    packed = data.pack_examples(rows, 4)
    with pytest.raises(DataError, match=r"position_ids.*one to a row"):
        data.align_rows(packed, alignment("byte-level", "BPE, first"))


def test_a_teacher_s_prompt_in_the_student_s_tokens_is_refused():
    rows = [{"input_ids": [5, 6], "labels": [-100, 6], "teacher_prompt_ids": [7]}]
    with pytest.raises(DataError, match=r"teacher_prompt_ids.*pass teacher_rows"):
        data.align_rows(Dataset.from_list(rows), alignment("byte-level", "BPE, first"))


# --- twins --------------------------------------------------------------------------


def test_twins_have_the_same_bytes():
    pair = alignment("byte-level", "BPE, first")
    student, teacher = pair.student, pair.teacher
    assert pair.twins.shape == (len(student.bytes_of),)
    found = 0
    for token, twin in enumerate(pair.twins.tolist()):
        if token in student.special:
            continue
        same = [
            i
            for i, one in enumerate(teacher.bytes_of)
            if one == student.bytes_of[token]
        ]
        assert (twin in same) if same else (twin == -1)
        found += twin >= 0
    used = pair.twins[pair.twins >= 0]
    assert len(used) == len(used.unique()) > 100
    assert found > 100
    # Of a character and its byte, what is written; of a byte alone, the byte.
    names = teacher.tokenizer.convert_ids_to_tokens
    assert names(int(pair.twins[student.tokenizer.convert_tokens_to_ids("a")])) == "a"
    assert (
        names(int(pair.twins[student.tokenizer.convert_tokens_to_ids("ð")])) == "<0xF0>"
    )


@pytest.mark.parametrize("student", ["byte-level", "BPE, first", "BPE, normaliser"])
def test_a_piece_is_what_the_student_writes_behind_a_text(student):
    """Not what stands at a text's beginning, where some put a space of their own."""
    pair = alignment(student, "byte-level, larger")
    side, words = pair.student, 0
    for token, spelled in enumerate(pair.teacher.bytes_of):
        if token in pair.twins or spelled[:1] != b" " or not spelled[1:].isalpha():
            continue
        ids = side.tokenizer("a" + spelled.decode(), add_special_tokens=False)
        first = next(one for one in ids["input_ids"][1:] if b" " in side.bytes_of[one])
        assert int(pair.first_pieces[token]) == first, spelled
        words += 1
    assert words > 10


@pytest.mark.parametrize("student", ["byte-level", "BPE, first", "BPE, never"])
@pytest.mark.parametrize("teacher", ["byte-level, larger", "BPE, first"])
def test_a_token_goes_to_the_piece_that_it_begins_with(student, teacher):
    pair = alignment(student, teacher)
    pieces = pair.first_pieces
    assert pieces.shape == (len(pair.teacher.bytes_of),)
    longer = 0
    for token, piece in enumerate(pieces.tolist()):
        spelled = pair.teacher.bytes_of[token]
        if token in pair.teacher.special:
            assert piece < 0 or int(pair.twins[piece]) == token
        elif piece >= 0:
            begins = pair.student.bytes_of[piece]
            assert begins
            assert spelled.startswith(begins)
            longer += len(spelled) > len(begins)
    assert longer > 2 or student == teacher
    # What has a twin goes there; nearly all else that is text goes somewhere.
    with_twin = pair.twins >= 0
    assert torch.equal(pieces[pair.twins[with_twin]], with_twin.nonzero().flatten())
    texts = [one for one in pair.teacher.bytes_of if one and one.isascii()]
    lost = [
        one
        for one, piece in zip(pair.teacher.bytes_of, pieces.tolist(), strict=True)
        if one and one.isascii() and piece < 0
    ]
    assert len(lost) < 0.5 * len(texts)


def begins_with(side, other, bare, token):
    """The shared token, told from pieces alone: cut, and cut again."""
    while (spelled := side.bytes_of[token]) and token not in side.special:
        if token in bare(side):
            return spelled
        text = spelled.decode(errors="replace")
        ids = other.tokenizer(text, add_special_tokens=False)["input_ids"]
        first = other.bytes_of[ids[0]] if ids else b""
        if text.encode() != spelled or not first or not spelled.startswith(first):
            return None
        side, other, token = other, side, ids[0]
    return None


@pytest.mark.parametrize("student", ["byte-level", "BPE, first", "BPE, never"])
@pytest.mark.parametrize("teacher", ["byte-level, larger", "BPE, normaliser"])
def test_tokens_that_begin_alike_have_one_number(student, teacher):
    pair = alignment(student, teacher)
    ours, theirs = pair.beginnings
    assert ours.shape == pair.twins.shape
    assert theirs.shape == (len(pair.teacher.bytes_of),)
    assert torch.equal(ours.unique(), torch.arange(int(ours.max()) + 1))
    assert int(theirs.max()) <= int(ours.max())
    with_twin = (pair.twins >= 0).nonzero().flatten()
    assert torch.equal(theirs[pair.twins[with_twin]], ours[with_twin])
    # Of a number there is one shared token at most, and all others begin with it.
    assert len(ours[with_twin].unique()) == len(with_twin)
    shared = {int(ours[token]): token for token in with_twin.tolist()}
    longer = 0
    for side, numbers in ((pair.student, ours), (pair.teacher, theirs)):
        for token, number in enumerate(numbers.tolist()):
            if number in shared:
                begins = pair.student.bytes_of[shared[number]]
                assert side.bytes_of[token].startswith(begins)
                longer += len(side.bytes_of[token]) > len(begins)
    assert longer > 2 or "larger" not in teacher
    # As many times as pieces go on: found by cutting one token at a time.
    twins = {
        id(pair.student): {*with_twin.tolist()},
        id(pair.teacher): {*pair.twins[with_twin].tolist()},
    }
    found = 0
    sides = ((pair.student, pair.teacher, ours), (pair.teacher, pair.student, theirs))
    for side, other, numbers in sides:
        for token in range(0, len(numbers), 3):
            begins = begins_with(side, other, lambda one: twins[id(one)], token)
            if begins is not None and int(numbers[token]) in shared:
                found += 1
                root = shared[int(numbers[token])]
                assert pair.student.bytes_of[root] == begins
    assert found > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_its_own_twin(kind):
    pair = alignment(kind, kind)
    own = torch.arange(len(pair.twins))
    double = torch.tensor(
        [pair.student.bytes_of.count(one) > 1 for one in pair.student.bytes_of]
    )
    known = ~double
    assert torch.equal(pair.twins[known], own[known])


# --- batches ------------------------------------------------------------------------


def test_batches_hold_what_both_read():
    student, teacher = tokenizer("byte-level"), tokenizer("BPE, never")
    pair = data.align_tokenizers(student, teacher)
    rows = Dataset.from_dict(
        {"input_ids": [student(t)["input_ids"] for t in ("Emma", "a truth", "")]}
    )
    collate = data.AlignedCollator(data.Collator(0), data.Collator(1))
    batch = collate(list(data.align_rows(rows, pair)))
    assert batch["chunks"].shape == batch["input_ids"].shape
    assert batch["teacher_chunks"].shape == batch["teacher_input_ids"].shape
    assert batch["teacher_attention_mask"].sum(1).tolist() == [
        len(teacher(t, add_special_tokens=False)["input_ids"]) or 1
        for t in ("Emma", "a truth", "")
    ]
    assert bool((batch["chunks"][2] == -1).all())
    for row, text in enumerate(("Emma", "a truth")):
        for name, side, ids in (
            ("chunks", pair.student, batch["input_ids"][row].tolist()),
            ("teacher_chunks", pair.teacher, batch["teacher_input_ids"][row].tolist()),
        ):
            inside = [
                t for t, n in zip(ids, batch[name][row].tolist(), strict=True) if n >= 0
            ]
            assert spelled(side, inside, slice(None)) == text.encode()
    with pytest.raises(DataError, match=r"no teacher_input_ids.*align_rows"):
        collate(list(rows))


def test_a_stream_is_aligned_as_it_comes():
    pair = alignment("byte-level", "BPE, never")
    ids = tokenizer("byte-level")("Emma")["input_ids"]
    stream = IterableDataset.from_generator(lambda: iter([{"input_ids": ids}]))
    (row,) = list(data.align_rows(stream, pair))
    assert row["chunks"] == pair.align(ids).numbers()[0]


def test_alignment_keeps_up():
    """50,000 tokens a second on one core; here with a margin for a busy machine."""
    pair = alignment("byte-level", "byte-level, larger")
    rows = [list(byte_level_bpe()(text * 2)["input_ids"]) for text in TEXTS] * 40
    pair.align(rows[0])
    start = time.process_time()
    for row in rows:
        assert isinstance(pair.align(row), AlignedRow)
    rate = sum(map(len, rows)) / (time.process_time() - start)
    assert rate > 20_000


def test_words_start_with_what_looks_empty_and_with_special_tokens():
    """By the tokens' own texts, and by what both tokenizers make of one text."""
    small, large = byte_level_bpe(300), byte_level_bpe(400)
    found = data.align_tokenizers(small, large).word_starts
    for tokenizer, starts in zip((small, large), found, strict=True):
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            starting = text[:1] in {" ", "\t", "\n", "\r", "\x0b", "\x0c"}
            special = token in tokenizer.all_special_ids
            assert (token in starts.tolist()) == (starting or special), text
        ids = tokenizer("a good fortune,\nmust be")["input_ids"]
        count = sum(token in starts.tolist() for token in ids)
        assert count == 4
