"""An answer's tokens where a model writes them, over tokenizers of all kinds."""

from functools import lru_cache

import pytest
from tiny_models import TEXTS, byte_level_bpe
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from distill_helpers import data
from distill_helpers.labels.rows import learn_answers, own_labels
from distill_helpers.labels.templates import prompt_ids

SPECIAL = ["<unk>", "<s>", "</s>", "<turn>"]
SIGNS = "<|user|>\n How much is 2 + 2 = 4? <|assistant|>\n The answer: un able."
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{{ '</s>\n' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PROMPT = "<|user|>\nHow much?\n<|assistant|>\n"


def wrapped(backend):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<turn>"],
    )


def bpe(*, before=(), byte_fallback=False):
    """A BPE of words; ``before`` are the parts that decide what stands before them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback))
    pieces = [f"<0x{number:02X}>" for number in range(256)] if byte_fallback else []
    for name, part in before:
        setattr(backend, name, part)
    backend.train_from_iterator(
        " ".join((*TEXTS, SIGNS)).split(),
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=SPECIAL + pieces,
            initial_alphabet=[] if pieces else pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return wrapped(backend)


def llama():
    """As Llama 2's: "▁" before every text, bytes for what is unknown."""
    return bpe(
        before=[
            (
                "normalizer",
                normalizers.Sequence(
                    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
                ),
            ),
            (
                "decoder",
                decoders.Sequence(
                    [
                        decoders.Replace("▁", " "),
                        decoders.ByteFallback(),
                        decoders.Fuse(),
                        decoders.Strip(" ", 1, 0),
                    ]
                ),
            ),
        ],
        byte_fallback=True,
    )


def prefixed():
    """A byte-level BPE with ``add_prefix_space``."""
    return bpe(
        before=[
            ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            ("decoder", decoders.ByteLevel()),
        ]
    )


def unigram(scheme):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator(
        [*TEXTS, SIGNS] * 2,
        trainers.UnigramTrainer(
            vocab_size=200,
            special_tokens=SPECIAL,
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return wrapped(backend)


def wordpiece():
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        [*TEXTS, SIGNS],
        trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=SPECIAL, show_progress=False
        ),
    )
    return wrapped(backend)


KINDS = {
    "llama": llama,
    "unigram always": lambda: unigram("always"),
    "unigram first": lambda: unigram("first"),
    "unigram never": lambda: unigram("never"),
    "prefix space": prefixed,
    "wordpiece": wordpiece,
    "byte-level": byte_level_bpe,
    "bytes": ByT5Tokenizer,  # written in Python
}


@lru_cache
def tokenizer_of(kind):
    return KINDS[kind]()


def ids_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def learned(row):
    return [token for token in row["labels"] if token != -100]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (PROMPT, "The answer: 4."),
        ("It is un", "able to be"),
        ("How much is 2 + 2 =", "4"),
        ("How much?", " The answer"),
        ("How much?\n", "\nThe answer"),
        ("How much?<turn>", "The answer"),  # a special token, to most of them
        ("How much?<turn>\n", "The answer"),
    ],
)
def test_a_row_is_the_whole_texts_tokens(kind, prompt, answer):
    tokenizer = tokenizer_of(kind)
    row = data.mask_prompts([prompt], [answer], tokenizer)[0]
    assert row["input_ids"][:-1] == ids_of(prompt + answer, tokenizer)
    given = ids_of(prompt, tokenizer)
    assert row["input_ids"][: len(given)] == given
    assert row["labels"] == [-100] * len(given) + row["input_ids"][len(given) :]
    assert row["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_so_is_a_conversation(kind):
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = TEMPLATE
    answer = "The answer: 4."
    row = learn_answers(own_labels(["How much?"], [answer]), tokenizer)[0]
    assert row["input_ids"][:-1] == ids_of(PROMPT + answer, tokenizer)
    given = prompt_ids([{"role": "user", "content": "How much?"}], tokenizer)
    assert row["labels"] == [-100] * len(given) + row["input_ids"][len(given) :]


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_merge_crosses_the_border_the_prompt_stays_as_it_is_given(kind):
    """ "2 + 2 = " and "4": with spaces, most tokenizers merge "▁4"."""
    tokenizer = tokenizer_of(kind)
    row = data.mask_prompts(["How much? "], ["The answer"], tokenizer)[0]
    given = ids_of("How much? ", tokenizer)
    assert row["input_ids"][: len(given)] == given
    text = tokenizer.decode(row["input_ids"][:-1]).lower()
    assert text == tokenizer.decode(ids_of("How much? The answer", tokenizer)).lower()


def test_a_space_before_the_end_of_a_turn_is_one():
    """Llama 2's template writes one on either side of an answer."""
    tokenizer = llama()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[' + m.content + ']' }}"
        "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
    )
    row = learn_answers(own_labels(["How much?"], ["The answer"]), tokenizer)[0]
    assert row["input_ids"] == ids_of("[How much?] The answer </s>", tokenizer)


@pytest.mark.parametrize(
    "kind", ["llama", "prefix space", "wordpiece", "byte-level", "bytes"]
)
@pytest.mark.parametrize("answer", ["able%s obey", "%s obey"])
def test_what_looks_like_a_special_token_stays_text(kind, answer):
    tokenizer = tokenizer_of(kind)
    answer %= tokenizer.eos_token
    row = data.mask_prompts(["It is un"], [answer], tokenizer)[0]
    assert learned(row).count(tokenizer.eos_token_id) == 1
    # And there is no space before it that nobody typed.
    text = tokenizer.decode(row["input_ids"]).lower().lstrip()
    assert text.startswith("it is unable" if answer[0] == "a" else "it is un")
    if kind != "wordpiece":  # whose decoder writes spaces between signs
        assert text == ("It is un" + answer + tokenizer.eos_token).lower()


@pytest.mark.parametrize("kind", ["unigram always", "unigram first", "unigram never"])
def test_a_tokenizer_that_cannot_read_it_as_text_says_so(kind):
    with pytest.raises(ValueError, match=r"row 1: .*holds '</s>', .*leave the row"):
        data.mask_prompts(["It is"] * 2, ["rich", "un</s>able"], tokenizer_of(kind))


def of_words(words, splitter):
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}))
    backend.model.unk_token = "<unk>"
    backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )


def test_a_tokenizer_that_cannot_begin_in_a_word_says_so():
    """One of whole words that keeps spaces: "unable" is a word, or nothing."""
    words = ["<unk>", "</s>", "▁un", "▁able"]
    tokenizer = of_words(words, pre_tokenizers.Metaspace())
    with pytest.raises(ValueError, match=r"row 0: .*cannot write the answer 'able'"):
        data.mask_prompts(["un"], ["able"], tokenizer)
    row = data.mask_prompts(["un"], [" able"], tokenizer)[0]
    assert row["input_ids"] == [2, 3, 1]


@pytest.mark.parametrize("answer", ["able", " able", "  able"])
def test_a_tokenizer_that_forgets_spaces_adds_none(answer):
    words = ["<unk>", "</s>", "un", "able"]
    tokenizer = of_words(words, pre_tokenizers.Whitespace())
    row = data.mask_prompts(["un"], [answer], tokenizer)[0]
    assert row["input_ids"] == [2, 3, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_answer_is_its_end_and_an_empty_prompt_is_refused(kind):
    tokenizer = tokenizer_of(kind)
    row = data.mask_prompts(["It is"], [""], tokenizer)[0]
    assert row["input_ids"] == [*ids_of("It is", tokenizer), tokenizer.eos_token_id]
    assert learned(row) == [tokenizer.eos_token_id]
    with pytest.raises(ValueError, match=r"row 1: the prompt '' is empty"):
        data.mask_prompts(["It is", ""], ["a", "b"], tokenizer)


def test_a_tokenizer_without_an_end_and_an_answer_that_is_none_are_named():
    tokenizer = byte_level_bpe()
    with pytest.raises(ValueError, match=r"answers\[1\] is None"):
        data.mask_prompts(["a", "b"], ["c", None], tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        data.mask_prompts(["a"], ["b"], tokenizer)


@pytest.mark.parametrize("kind", ["llama", "byte-level"])
def test_half_an_emoji_is_a_sign_of_its_own(kind):
    tokenizer = tokenizer_of(kind)
    row = data.mask_prompts(["cut \ud83d"], ["off \udc26"], tokenizer)[0]
    assert tokenizer.decode(row["input_ids"][:-1]) == "cut \ufffdoff \ufffd"
    assert data.whole_characters("a \ud83d\udc26 \ud83d") == "a 🐦 \ufffd"
