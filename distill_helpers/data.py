"""Texts that the course trains on, and how they become rows of token ids.

The bundled texts live in ``data/`` (inside the wheel: ``_data``) with their licences,
origin and checksums in ``MANIFEST.json``. A learner's own file goes through the same
door: :func:`load_corpus`.

Used from notebook 00 on; packing and masking are taught in notebook 02.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
# Columns of other tools that say which tokens count, with 1: of apply_chat_template,
# TRL, llm-foundry and NeMo, and verl.
_COUNTING_MASKS = (
    "assistant_masks",
    "assistant_mask",
    "completion_mask",
    "loss_mask",
    "response_mask",
)
# Columns of other tools that say where in a row another example begins.
_BORDERS = (
    "seq_lengths",
    "cu_seqlens",
    "cu_seq_lens_q",
    "seq_idx",
    "segment_ids",
    "sequence_ids",
)
# What goes with the tokens, one by one, beside the masks.
_TOKEN_COLUMNS = ("input_ids", "labels", "position_ids", "token_type_ids")
TEST_NOVEL = "persuasion"
TRAINING_NOVELS = (
    "emma",
    "mansfield_park",
    "northanger_abbey",
    "pride_and_prejudice",
    "sense_and_sensibility",
)
# Every twentieth passage of the five novels is kept back for validation.
_VALIDATION_EVERY = 20
_PASSAGE_CHARACTERS = 4000
# Tokens of either kind, ASCII or not, that a tokenizer is tried with.
_TRIALS = 48
# Nobody wraps prose at fewer characters, and most verse is shorter.
_LEAST_WIDTH = 36
_ITEM = re.compile(r"\s*([-*+•|>#]|\d+[.)]\s|```|//)")


class DataError(ValueError):
    """A bundled file is missing or damaged, or a learner's file cannot be used."""


def data_root() -> Path:
    """Folder of the bundled data: inside the wheel, or ``data/`` of a clone."""
    return _bundled("_data", "data")


def results_root() -> Path:
    """Folder of the studies' results: inside the wheel, or ``results/`` of a clone."""
    return _bundled("_results", "results")


def _bundled(in_wheel: str, in_clone: str) -> Path:
    package = Path(__file__).resolve().parent
    for candidate in (package / in_wheel, package.parent / in_clone):
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"the folder {in_clone}/ of distill_helpers is missing; install the package "
        "again, or run from a full clone of the repository"
    )


def data_path(name: str) -> Path:
    """Path of a bundled file, after its bytes have been checked.

    Args:
        name: Relative to the data folder, such as ``"austen/emma.txt"``.

    Raises:
        DataError: If the file is unknown, missing or not the one that was shipped.
    """
    root = data_root()
    manifest = _manifest(root)
    if name not in manifest:
        known = ", ".join(sorted(manifest))
        raise DataError(f"{name!r} is not a bundled file; there are: {known}")
    path = root / name
    if not path.is_file():
        raise DataError(f"{path} is missing; install distill_helpers again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != manifest[name]["sha256"]:
        raise DataError(
            f"{path} is not the file that was shipped: its sha256 is {found[:12]}…, "
            f"expected {manifest[name]['sha256'][:12]}…; restore it with git or "
            "install distill_helpers again"
        )
    return path


def data_folder(name: str) -> Path:
    """Path of a bundled folder, after every file in it has been checked.

    Args:
        name: Relative to the data folder, such as ``"tiny_prose"``.

    Raises:
        DataError: As :func:`data_path`.
    """
    root = data_root()
    files = [file for file in _manifest(root) if file.startswith(f"{name}/")]
    if not files:
        raise DataError(f"{name!r} is not a bundled folder")
    for file in files:
        data_path(file)
    return root / name


@lru_cache
def _manifest(root: Path) -> dict[str, dict[str, str]]:
    path = root / "MANIFEST.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is missing or damaged; restore it with git or install "
            "distill_helpers again"
        ) from error


def austen(split: str = "train") -> Dataset:
    """Prose of Jane Austen, in passages of about 4,000 characters.

    Args:
        split: ``"train"`` and ``"validation"`` come from five novels (every
            twentieth passage validates), ``"test"`` is the whole sixth,
            *Persuasion*, which no model of the course has seen.

    Returns:
        A ``datasets.Dataset`` with the columns ``text`` and ``novel``.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split={split!r} must be 'train', 'validation' or 'test'")
    novels = (TEST_NOVEL,) if split == "test" else TRAINING_NOVELS
    rows = []
    for novel in novels:
        text = data_path(f"austen/{novel}.txt").read_text(encoding="utf-8")
        for index, passage in enumerate(_passages(text)):
            validates = index % _VALIDATION_EVERY == _VALIDATION_EVERY - 1
            if split == "test" or validates == (split == "validation"):
                rows.append({"text": passage, "novel": novel})
    return _dataset(rows)


def _passages(text: str) -> Iterable[str]:
    """Undo the hard line breaks and cut at paragraphs."""
    passage: list[str] = []
    size = 0
    for block in text.split("\n\n"):
        paragraph = " ".join(block.split())
        if not paragraph:
            continue
        passage.append(paragraph)
        size += len(paragraph)
        if size >= _PASSAGE_CHARACTERS:
            yield "\n".join(passage)
            passage, size = [], 0
    if passage:
        yield "\n".join(passage)


def _passages_of_file(text: str) -> list[str]:
    """As :func:`_passages`, where line breaks are a matter of layout; else with them.

    Prose that was wrapped at a column has its breaks undone, all but those of blocks
    that are lists, tables, verse or code. A file that is no such prose keeps every
    line, blank ones included: its passages, joined by blank lines, are the file.
    """
    blocks = [block.split("\n") for block in text.split("\n\n")]
    width = _wrapped_at(blocks)
    breaks = [one for block in blocks for one in _breaks(block, width)]
    within = _capitals_within(blocks)
    if breaks and (_explained(breaks) < 0.8 or _is_verse(breaks, within, doubt=10)):
        return _gathered(text.split("\n\n"), "\n\n")
    paragraphs = [
        "\n".join(block).strip("\n")
        if _keeps_its_lines(block, width, within)
        else " ".join(" ".join(block).split())
        for block in blocks
    ]
    return _gathered([one for one in paragraphs if one.strip()], "\n")


def _gathered(blocks: Iterable[str], between: str) -> list[str]:
    """Blocks in passages of about 4,000 characters, without those that are blank."""
    passages = []
    passage: list[str] = []
    size = 0
    for block in blocks:
        passage.append(block)
        size += len(block)
        if size >= _PASSAGE_CHARACTERS:
            passages.append(passage)
            passage, size = [], 0
    texts = [between.join(one).strip("\n") for one in [*passages, passage]]
    return [text for text in texts if text.strip()]


def _wrapped_at(blocks: Sequence[Sequence[str]]) -> int:
    """The column that explains most line breaks: the word after each did not fit."""
    room = collections.Counter[int]()
    for line, following in itertools.chain(*map(itertools.pairwise, blocks)):
        words = following.split()
        if " " in line.strip() and words:
            # A column of `length` holds the line, one of `unfilled` also the word.
            length = len(line.rstrip())
            unfilled = length + 1 + len(words[0])
            if unfilled > _LEAST_WIDTH:
                room[max(length, _LEAST_WIDTH)] += 1
                room[unfilled] -= 1
    best, most, explained = 0, 0, 0
    for column in sorted(room):
        explained += room[column]
        if explained > most:
            best, most = column, explained
    return best


@dataclass(frozen=True)
class _Break:
    """A line break within a block.

    Attributes:
        explained: Layout explains it: the next word would not have fitted, or it
            stands in the middle of a sentence.
        stop: A punctuation mark stands before it.
        capital: A capital letter follows it.
    """

    explained: bool
    stop: bool
    capital: bool


def _breaks(lines: Sequence[str], width: int) -> list[_Break]:
    """The line breaks of a block, of text that was wrapped at ``width``, if any was.

    No column explains a break after a line without a space (Chinese, one word each).
    """
    begins_sentence = not lines[0].lstrip()[:1].islower()
    found = []
    for line, following in itertools.pairwise(lines):
        words, written = following.split(), line.rstrip()
        if not written or not words:
            continue
        first = next((one for one in following if one.isalpha()), "")
        fills = len(written) <= width < len(written) + 1 + len(words[0])
        filled = fills and " " in line.strip()
        continues = begins_sentence and words[0][0].islower()
        stop = not written[-1].isalnum()
        found.append(_Break(filled or continues, stop, first.isupper()))
    return found


def _explained(breaks: Sequence[_Break]) -> float:
    return sum(one.explained for one in breaks) / max(1, len(breaks))


def _capitals_within(blocks: Iterable[Sequence[str]]) -> float:
    """The share of words within lines that begin with a capital."""
    words = [word for lines in blocks for line in lines for word in line.split()[1:]]
    return sum(word[0].isupper() for word in words) / max(1, len(words))


def _is_verse(breaks: Sequence[_Break], within: float, *, doubt: float) -> bool:
    """Whether these are ``doubt`` times likelier in verse than in wrapped prose.

    Nearly every line of verse begins with a capital and half of them end with a mark.
    In wrapped prose, a line begins with one as often as a word within a line does:
    seldom in English, at each noun in German.
    """
    chance = min(max(within, 0.1), 0.6)
    odds = 0.0
    for one in breaks:
        # In verse : in prose, by rule of thumb.
        for found, verse, prose in (
            (one.capital, 0.95, chance),
            (one.stop, 0.55, 0.15),
            (one.explained, 0.4, 0.95),
        ):
            odds += math.log(verse / prose if found else (1 - verse) / (1 - prose))
    return odds > math.log(doubt)


def _keeps_its_lines(lines: Sequence[str], width: int, within: float) -> bool:
    """Whether a block amid wrapped prose is a list, a table, verse or code."""
    indents = {len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()}
    first = len(lines[0]) - len(lines[0].lstrip())
    if len(indents) > 1 or any(indent > first for indent in indents):
        return True
    if any(_ITEM.match(line) for line in lines[1:]):
        return True
    breaks = _breaks(lines, width)
    if len(breaks) >= 3 and _explained(breaks) < 0.5:
        return True
    # The text around it is prose, and has thousands of blocks.
    return _is_verse(breaks, within, doubt=10_000)


def glosses() -> Dataset:
    """11,254 noun glosses of WordNet 3.0 with the columns word, supersense, gloss."""
    lines = data_path("wordnet_glosses.jsonl").read_text(encoding="utf-8").splitlines()
    return _dataset([json.loads(line) for line in lines])


def load_corpus(path: str | Path) -> Dataset:
    """Read a learner's own text.

    Args:
        path: A ``.txt`` file or a ``.jsonl`` file with one object per line and its
            text under ``"text"``. The blocks of a ``.txt`` file, which blank lines
            part, are gathered into passages of about 4,000 characters. Where it is
            prose that was wrapped at a column, the line breaks in its paragraphs are
            undone; code, verse, lists and all other text keep their lines. Half a
            character, such as an emoji that was cut in two, is read as ``U+FFFD``.

    Returns:
        A ``datasets.Dataset`` with the column ``text``.

    Raises:
        DataError: If the file is missing, not UTF-8, empty, of another kind, or a
            line cannot be read; the message names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path and the folder")
    content = read_utf8(path)
    if path.suffix == ".txt":
        texts = _passages_of_file(content)
    elif path.suffix == ".jsonl":
        texts = _jsonl_texts(path, content)
    else:
        raise DataError(f"{path} ends in {path.suffix!r}; use .txt or .jsonl")
    if not texts:
        raise DataError(f"{path} holds no text")
    return _dataset([{"text": text} for text in texts])


def read_utf8(path: Path) -> str:
    """A file's text, without a byte order mark; :class:`DataError` names the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each lone surrogate.

    JSON can hold half an emoji, and tools that cut texts at a length write it. No
    file, no tokenizer and no table can.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _jsonl_texts(path: Path, content: str) -> list[str]:
    texts = []
    # Not splitlines(): JSON strings may hold U+2028 and its like.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}); write one object "
                'per line, such as {"text": "…"}'
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(
                f'{path}, line {number}: no string under "text"; write one object '
                'per line, such as {"text": "…"}'
            )
        if row["text"].strip():
            texts.append(whole_characters(row["text"]))
    return texts


def pack(
    corpus: Dataset | Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Dataset:
    """Turn texts into rows of exactly ``length`` token ids, without padding.

    Texts are joined with the tokenizer's end-of-text token between them and cut into
    rows; the last, incomplete row is dropped.

    Args:
        corpus: A dataset with a ``text`` column, or a sequence of strings. Half a
            character in them is read as ``U+FFFD``.
        tokenizer: Of the models that will read the rows.
        length: Tokens per row, at least 2.

    Returns:
        A ``datasets.Dataset`` with the column ``input_ids``.

    Raises:
        ValueError: If ``length`` is below 2 or the corpus is too short for a row.
    """
    if length < 2:
        raise ValueError(f"length={length} must be at least 2: one token predicts one")
    if isinstance(corpus, str):
        raise ValueError("corpus is one string; pass a list of texts, or a dataset")
    ids = _joined(_texts(corpus), tokenizer)
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if not rows:
        raise DataError(
            f"the corpus has {len(ids)} tokens, fewer than one row of "
            f"length={length}; use more text or shorter rows"
        )
    return _dataset([{"input_ids": row} for row in rows])


def _texts(corpus: Dataset | Sequence[str]) -> list[str]:
    if not hasattr(corpus, "column_names"):
        return list(corpus)
    dataset: Any = corpus
    if dataset.column_names is None:  # a stream
        return [row["text"] for row in dataset]
    if "text" not in dataset.column_names:
        raise DataError(
            f"corpus has the columns {dataset.column_names}, and no text among them; "
            'rename the one that holds it: corpus.rename_column("…", "text")'
        )
    return list(dataset["text"])


def _joined(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of all texts in a row, with the end-of-text token behind each."""
    if not texts:
        return []  # a tokenizer refuses an empty list
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    try:
        whole = [whole_characters(text) for text in texts]
        found = tokenizer(whole, add_special_tokens=False)["input_ids"]
    except Exception as error:  # of tokenizers, which has no class of its own
        raise DataError(
            f"the tokenizer cannot read this text ({error}); was it made for another "
            "language or task?"
        ) from error
    return [token for ids in found for token in (*ids, *end)]


def stream_rows(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    *,
    split: str = "train",
    column: str = "text",
) -> Dataset:
    """The first rows of a text that is too large to download, packed as it arrives.

    Args:
        source: A dataset on the hub, or a folder that holds one.
        tokenizer: As in :func:`pack`, and so is ``length``.
        length: See there.
        count: Rows wanted; reading stops when they are full.
        split: Of the dataset.
        column: That holds the text.

    Returns:
        As :func:`pack`.

    Raises:
        DataError: If the text ends before.
        ValueError: If ``length`` is below 2 or ``count`` below 1.
    """
    if length < 2 or count < 1:
        raise ValueError(f"length={length} must be at least 2, count={count} positive")
    from datasets import load_dataset

    rows: list[dict[str, list[int]]] = []
    ids: list[int] = []
    texts = load_dataset(str(source), split=split, streaming=True)
    for batch in texts.iter(batch_size=100):
        ids += _joined(batch[column], tokenizer)
        full = min(len(ids) // length, count - len(rows))
        rows += [{"input_ids": ids[i * length : (i + 1) * length]} for i in range(full)]
        if len(rows) == count:
            return _dataset(rows)
        del ids[: full * length]
    raise DataError(
        f"count={count}, but {source} holds only {len(rows)} rows of {length} tokens"
    )


def spread(rows: Dataset, count: int) -> Dataset:
    """``count`` rows at equal distances, so that every part of a text is there."""
    step = max(1, len(rows) // count)
    return rows.select(range(0, len(rows), step)[:count])


def mask_prompts(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Rows of prompt + answer + end-of-text in which only the answer is learned.

    Args:
        prompts: What the model is given; labelled ``-100``.
        answers: What it learns to write, in the tokens of :func:`encode_answers`; the
            end-of-text token is appended and learned too, or the student would never
            stop. Of an empty answer it is all that is learned.
        tokenizer: Of the student.

    Returns:
        A ``datasets.Dataset`` with ``input_ids`` and ``labels`` (unshifted).

    Raises:
        ValueError: If there is no answer for a prompt, or no end-of-text token; and
            see :func:`encode_answers`.
    """
    if len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: one answer per prompt"
        )
    if not prompts:
        raise DataError("there are no prompts to learn from")
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(
            "the tokenizer has no end-of-text token: the student could not learn to "
            "stop; set tokenizer.eos_token"
        )
    rows = []
    for prompt, answer in encode_answers(prompts, answers, tokenizer):
        learned = [*answer, end]
        rows.append(
            {
                "input_ids": prompt + learned,
                "labels": [IGNORE_INDEX] * len(prompt) + learned,
            }
        )
    return _dataset(rows)


# Texts behind which an answer is encoded to learn its tokens in mid-text. Which of them
# a tokenizer keeps apart from an answer depends on its merges and its vocabulary.
_ANCHORS = ("\n", ".", ":", "=", "a", "0")


def encode_answers(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[tuple[list[int], list[int]]]:
    """The token ids of each prompt, and of the answer as it goes on from there.

    A prompt's ids are those that a model is given at inference, without an answer,
    even where a tokenizer would merge the two across the border: nothing that is
    learned may stand in tokens that the model never begins from. What looks like a
    special token in an answer is text.

    Where the whole text's ids begin with the prompt's, the answer's are the rest of
    them. Where a merge crosses the border, the answer is encoded by itself. Some
    tokenizers put a space before whatever they encode (SentencePiece's ``▁``,
    ``add_prefix_space``) or tell the beginning of a word from its middle (WordPiece);
    if the two sequences then do not read as the whole text does, the answer is encoded
    behind a short text in whose place it reads the same. A tokenizer of whole words
    that forgets spaces cannot join a word to a prompt's last; nor does it add one.

    Args:
        prompts: What a model is given; lone surrogates (half an emoji) become U+FFFD.
        answers: One for each, treated alike.
        tokenizer: Of the model.

    Raises:
        ValueError: For a prompt without a token, for what is no string, and for an
            answer that the tokenizer cannot begin where the prompt ends; the message
            names the row.
    """
    for name, texts in (("prompts", prompts), ("answers", answers)):
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"{name}[{number}] is {text!r}, no string; leave the row out"
                )
    prompts = [whole_characters(text) for text in prompts]
    answers = [whole_characters(text) for text in answers]
    if not prompts:
        return []  # a tokenizer refuses an empty list
    given = _encode(prompts, tokenizer)
    apart = _encode(answers, tokenizer, split_special_tokens=True)
    together = _encode(
        [p + a for p, a in zip(prompts, answers, strict=True)], tokenizer
    )
    added = tokenizer.added_tokens_decoder.items()
    special = {token: mark.content for token, mark in added if mark.special}
    names = map(str, tokenizer.all_special_tokens)
    special |= dict(zip(tokenizer.all_special_ids, names, strict=True))
    special.pop(tokenizer.unk_token_id, None)  # which stands for any text
    found = []
    for number, ids in enumerate(given):
        if not ids:
            raise DataError(
                f"row {number}: the prompt {prompts[number]!r} is empty, in tokens; a "
                "model cannot go on from nothing. Begin it with some text, or leave "
                "the row out"
            )
        learned: list[int] | None = apart[number]
        if learned and ids + learned != together[number]:
            learned = _continued(
                prompts[number],
                ids,
                answers[number],
                learned,
                tokenizer,
                [mark for mark in special.values() if mark in answers[number]],
            )
        if learned is None and _forgets_spaces(
            f"{prompts[number]} {answers[number]}", tokenizer
        ):
            learned = apart[number]
        if learned is None:
            raise DataError(
                f"row {number}: this tokenizer cannot write the answer "
                f"{answers[number][:40]!r} where the prompt ends "
                f"({prompts[number][-40:]!r}) without a space between, or one less; "
                "end the prompt, or begin the answer, with a space or a line feed"
            )
        for token in special.keys() & set(learned):
            if special[token] in answers[number]:
                raise DataError(
                    f"row {number}: the answer {answers[number][:80]!r} holds "
                    f"{special[token]!r}, which this tokenizer cannot read as text; "
                    "leave the row out, or write it otherwise"
                )
        found.append((ids, learned))
    return found


def _continued(
    prompt: str,
    given: list[int],
    answer: str,
    apart: list[int],
    tokenizer: PreTrainedTokenizerBase,
    marks: list[str],
) -> list[int] | None:
    """An answer's ids behind a prompt's, so that both read as the whole text does."""
    # How an answer begins shows before its first mark, a text that looks like a special
    # token and would be one in the whole text.
    head = answer
    if marks:
        head = answer[: min(answer.index(mark) for mark in marks)].rstrip() or "a"
    whole = _encode([prompt + head], tokenizer)[0]
    rest = whole[len(given) :]
    if head == answer and rest and whole[: len(given)] == given:
        return rest
    text = _read(whole, tokenizer)

    def behind(anchor: str, part: str) -> list[int] | None:
        stem, both = _encode(
            [anchor, anchor + part], tokenizer, split_special_tokens=True
        )
        return both[len(stem) :] if both[: len(stem)] == stem else None

    def reads(ids: list[int] | None) -> bool:
        return ids is not None and _read(given + ids, tokenizer) == text

    if reads(_encode([head], tokenizer, split_special_tokens=True)[0]):
        return apart
    for anchor in (prompt, prompt[-1:], *_ANCHORS):
        if reads(behind(anchor, head)) and (ids := behind(anchor, answer)) is not None:
            return ids
    return None


def _forgets_spaces(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer splits at spaces and keeps none, as one of whole words does.

    Then no token says whether there was one, and none is added where texts meet.
    """
    ways = [text, f" {text}", text.replace(" ", "  ")]
    one, *others = _encode(ways, tokenizer)
    return all(other == one for other in others)


def _read(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    # A tokenizer may compose what a border separates.
    return unicodedata.normalize("NFC", str(tokenizer.decode(ids)))


def _encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, **options)
    found: list[list[int]] = encoded["input_ids"]
    return found


def pack_examples(rows: Dataset, length: int) -> Dataset:
    """Put several examples into each row, side by side and out of each other's sight.

    Unlike :func:`pack`, which cuts a text where a row ends, this keeps every example
    whole. Positions begin anew with each, from which ``transformers`` knows, with
    eager and sdpa attention, that none may attend to another. What it saves is
    padding: the examples of a batch need not be of one length.

    That holds for models whose attention asks for the positions, such as Llama, Qwen,
    Gemma and GPT-2. It does not hold for those that carry a state (Mamba, Qwen3-Next),
    write positions into a bias (BLOOM, MPT) or build their mask without them (OPT),
    nor for flash attention with several rows in a batch. The trainers find out by
    trying the model itself (:func:`~distill_helpers.heads.isolates_examples`), and
    refuse such rows rather than let examples read one another.

    Args:
        rows: With ``input_ids`` and ``labels``, such as from :func:`mask_prompts`.
        length: Most tokens in a row; at least those of the longest example.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``. The loss is that of the same
        examples one by one.
    """
    examples = [
        (torch.as_tensor(row["input_ids"]).tolist(), row_labels(row, number).tolist())
        for number, row in enumerate(_whole_examples(rows))
    ]
    # What has no tokens takes no place.
    examples = sorted((e for e in examples if e[0]), key=lambda e: -len(e[0]))
    if not examples:
        raise DataError("there are no examples to pack")
    if len(examples[0][0]) > length:
        raise ValueError(
            f"length={length} is less than the {len(examples[0][0])} tokens of the "
            "longest example; use longer rows, or leave long examples out"
        )
    # Longest first, each into the fullest row that has room.
    packed: list[dict[str, list[int]]] = []
    room: dict[int, list[int]] = {}  # free places to rows
    for ids, labels in examples:
        free = min((size for size in room if size >= len(ids)), default=None)
        if free is None:
            packed.append({"input_ids": [], "labels": [], "position_ids": []})
            free, index = length, len(packed) - 1
        else:
            index = room[free].pop()
            if not room[free]:
                del room[free]
        row = packed[index]
        row["input_ids"] += ids
        # An example's first token is not the previous one's next.
        row["labels"] += [IGNORE_INDEX, *labels[1:]]
        row["position_ids"] += range(len(ids))
        room.setdefault(free - len(ids), []).append(index)
    return _dataset(packed)


def _whole_examples(rows: Dataset) -> Iterator[Any]:
    for row in rows:
        if row.get("position_ids") is not None:
            raise DataError(
                "rows come from pack_examples already; pack the examples themselves"
            )
        if row.get("attention_mask") is not None:
            refuse_padding([row["attention_mask"]])
        yield row


def row_labels(row: Mapping[str, Any], number: int = 0) -> torch.Tensor:
    """What is to be learned at each token of a row, ``-100`` where nothing is.

    These are the row's ``labels``, or its tokens where there are none. Masks of other
    tools say which tokens count: ``assistant_masks`` (``apply_chat_template``),
    ``assistant_mask``, ``completion_mask`` (TRL), ``loss_mask`` (NeMo, llm-foundry),
    ``response_mask`` (verl). Where a row has several, what counts in all of them
    counts, as in TRL. Columns that are ``None`` are as good as absent.

    Args:
        row: With ``input_ids``, one row of token ids.
        number: Of the row, for messages.

    Returns:
        ``[tokens]``, int64, unshifted.

    Raises:
        DataError: If the row has no ``input_ids``; a column differs from it in length;
            labels and masks disagree; or a column would change what is learned in a
            way that is not known here: another mask, weights, borders of examples.
    """
    if row.get("input_ids") is None:
        raise DataError(
            f"row {number} has no input_ids, only {sorted(row)}; make rows of tokens "
            "first (data.pack, data.mask_prompts)"
        )
    ids = torch.as_tensor(row["input_ids"])
    if ids.dim() != 1:
        raise DataError(
            f"input_ids of row {number} have the shape {list(ids.shape)}; a row is "
            "one list of token ids"
        )
    ids = ids.long()
    labels = _along(row, "labels", ids, number)
    counts = None
    for name in row:
        if name in _COUNTING_MASKS:
            mask = _along(row, name, ids, number)
            if mask is not None:
                counts = mask if counts is None else counts & mask
        else:
            _refuse_unknown(row, name, len(ids), number)
    if counts is None:
        return ids if labels is None else labels
    if labels is None:
        return ids.masked_fill(counts == 0, IGNORE_INDEX)
    if not torch.equal((labels != IGNORE_INDEX)[1:], (counts == 1)[1:]):
        names = " and ".join(name for name in _COUNTING_MASKS if name in row)
        raise DataError(
            f"row {number}: labels and {names} disagree about which tokens count; "
            'leave one of them out: rows.remove_columns("labels")'
        )
    return labels


def _along(
    row: Mapping[str, Any], name: str, ids: torch.Tensor, number: int
) -> torch.Tensor | None:
    """A column with one whole number for each token, or ``None``."""
    if row.get(name) is None:
        return None
    column = torch.as_tensor(row[name])
    if column.shape != ids.shape:
        raise DataError(
            f"row {number}: {name} has the shape {list(column.shape)}, and there are "
            f"{len(ids)} input_ids; one for each token is needed (was one of them "
            "truncated or padded?)"
        )
    if name != "labels" and not ((column == 0) | (column == 1)).all():
        raise DataError(
            f"row {number}: {name} holds {column.unique().tolist()[:4]}, and tokens "
            "either count (1) or not (0); write labels instead, -100 where nothing is "
            "to be learned"
        )
    return column.long()


def _refuse_unknown(row: Mapping[str, Any], name: str, size: int, number: int) -> None:
    """Refuse a column that means something for the loss, but not here."""
    value = row[name]
    if value is None:
        return
    if name in _BORDERS and row.get("position_ids") is None:
        raise DataError(
            f"row {number} has {name}: it holds several examples, which would read "
            "each other; pass the examples one to a row, or pack them with "
            "data.pack_examples"
        )
    weighs = name.endswith(("mask", "masks", "weight", "weights"))
    harmless = name in ("attention_mask", "special_tokens_mask")
    if weighs and not harmless and size and _length(value) == size:
        raise DataError(
            f"row {number} has {name}, one for each token, and what it says would be "
            "ignored; write labels instead (-100 where nothing is to be learned), or "
            f'leave it out: rows.remove_columns("{name}")'
        )


def _length(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return len(value)
    shape = getattr(value, "shape", ())
    return int(shape[0]) if shape else None


@dataclass(frozen=True)
class Collator:
    """Make a batch of rows: pad on the right, mask, label.

    Rows without ``labels`` learn every token that the masks of other tools do not
    hide (:func:`row_labels`). The first label of a row is always ``-100``: nothing
    predicts it, and ``transformers`` must not count it. A row without tokens becomes
    one pad token that is read and not learned, so that it changes nothing, and a
    batch of such rows is one from which nothing is learned.

    Attributes:
        pad_token_id: Fills ``input_ids``; padded positions are labelled ``-100`` by
            their position, never by their id, so a pad token that is also the
            end-of-text token is still learned.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels``: ``[rows, length]``.

        And ``position_ids``, if the rows have them (:func:`pack_examples`).

        Raises:
            DataError: For rows that are padded already, and as :func:`row_labels`.
        """
        hidden = (row.get("attention_mask") for row in rows)
        refuse_padding(mask for mask in hidden if mask is not None)
        learned = [row_labels(row, number) for number, row in enumerate(rows)]
        packed = any(row.get("position_ids") is not None for row in rows)
        length = max(1, *map(len, learned))
        ids = torch.full((len(rows), length), self.pad_token_id)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE_INDEX)
        positions = torch.zeros_like(ids)
        for index, (row, wanted) in enumerate(zip(rows, learned, strict=True)):
            size = len(wanted)
            ids[index, :size] = torch.as_tensor(row["input_ids"])
            # Rows of which nothing can be seen are nan in some models.
            mask[index, : max(1, size)] = 1
            labels[index, :size] = wanted
            if packed:
                positions[index, :size] = self._positions(row, size)
                # The padding too is an example of its own.
                positions[index, size:] = torch.arange(length - size)
        labels[:, 0] = IGNORE_INDEX
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return batch | {"position_ids": positions} if packed else batch

    @staticmethod
    def _positions(row: Mapping[str, Any], size: int) -> torch.Tensor:
        """Of a row beside packed ones that has none: it is one example."""
        given = row.get("position_ids")
        return torch.arange(size) if given is None else torch.as_tensor(given)


def refuse_padding(masks: Iterable[Any]) -> None:
    """Raise :class:`DataError` if an ``attention_mask`` hides anything.

    Batches are padded as they are made. Padding that is part of the rows would be
    read, learned and stored as text.
    """
    for mask in masks:
        if 0 in mask:
            raise DataError(
                "rows are padded (zeros in attention_mask), and the padding would be "
                "learned as text; tokenize without padding, or take it out with "
                "data.strip_padding(rows)"
            )


def strip_padding(rows: Dataset) -> Dataset:
    """Take out what the rows' ``attention_mask`` hides, on either side.

    Args:
        rows: With ``input_ids`` and ``attention_mask``, as tokenizers give them; and
            with ``labels`` or a mask (:func:`row_labels`), if not all is learned.
            What else goes with the tokens is cut alike.

    Returns:
        The rows without the mask, each as long as its text. Rows without a mask are
        returned as they are.

    Raises:
        DataError: If a column is not as long as the mask, or rows are a stream.
    """
    if rows.column_names is None:
        raise DataError(
            "rows are a stream, whose columns are not known; collect them first: "
            "Dataset.from_list(list(rows))"
        )
    if "attention_mask" not in rows.column_names:
        return rows
    names = [
        name
        for name in rows.column_names
        if name in _TOKEN_COLUMNS or name.endswith(("mask", "masks"))
    ]
    names.remove("attention_mask")

    def text(row: dict[str, Any]) -> dict[str, list[int] | None]:
        return {name: None if row[name] is None else _seen(row, name) for name in names}

    return rows.map(text, remove_columns="attention_mask")


def _seen(row: Mapping[str, Any], name: str) -> list[int]:
    mask, column = row["attention_mask"], row[name]
    if len(mask) != len(column):
        raise DataError(
            f"a row has {len(column)} {name} and {len(mask)} numbers in its "
            "attention_mask; one for each token is needed"
        )
    return [int(one) for one, real in zip(column, mask, strict=True) if real]


def collator_for(tokenizer: PreTrainedTokenizerBase) -> Collator:
    """A :class:`Collator` that pads with the tokenizer's pad or end-of-text token.

    Raises:
        ValueError: If it has neither.
    """
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id
    if pad is None:
        raise ValueError(
            "the tokenizer has neither a pad token nor one that ends a text, so rows "
            "of different lengths cannot be padded; set tokenizer.pad_token to a "
            "token of the model"
        )
    return Collator(pad)


@dataclass(frozen=True)
class ByteCount:
    """How many bytes of text the tokens of a tokenizer stand for.

    Attributes:
        sizes: ``[highest id + 1]``, int64: see :func:`token_bytes`.
        opening: ``[highest id + 1]``, bool: tokens that begin with a space which,
            where a text begins, nobody typed: the tokenizer puts one before a text.
        special: ``[highest id + 1]``, bool: tokens behind which a text begins.
        unknown: Tokens that stand for whatever the tokenizer cannot write.
    """

    sizes: torch.Tensor
    opening: torch.Tensor
    special: torch.Tensor
    unknown: frozenset[int]

    def count(self, before: torch.Tensor, tokens: torch.Tensor) -> int | None:
        """Bytes of text that some tokens stand for.

        Args:
            before: The token before each, ``[tokens]``.
            tokens: Ids.

        Returns:
            ``None`` if some are unknown, and so is the text that they stand for.
        """
        if any(bool((tokens == one).any()) for one in self.unknown):
            return None
        # Whatever no tokenizer knows, such as a place that pads a head, is no text.
        known = before.clamp(max=len(self.special) - 1)
        untyped = self.opening[tokens] & self.special[known]
        return int(self.sizes[tokens].sum() - untyped.sum())


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """UTF-8 bytes of text that each token id stands for.

    Special tokens stand for none. Bits per byte make models with different
    tokenizers comparable, which losses per token do not.

    Right for tokenizers that keep all of a text: byte-level ones (GPT-2, Llama 3,
    Qwen, SmolLM2), those that write ``▁`` for a space and ``<0xE2>`` for a byte (Llama
    2, Mistral, Gemma), and vocabularies of characters or whole pieces. Which of them a
    tokenizer is, is found out by trying: a way to read tokens as bytes is taken if,
    for some texts of the tokenizer's own tokens and of several scripts, the tokens
    spell out the text.

    Args:
        tokenizer: Any; its ids may have gaps.

    Returns:
        ``[highest id + 1]``, int64.

    Raises:
        DataError: If no way of reading does: the tokenizer changes texts (lower case,
            other characters) or drops some of them (spaces, as BERT's does), so that
            the bytes of a text cannot be told from its tokens.
    """
    return byte_count(tokenizer).sizes


def byte_count(tokenizer: PreTrainedTokenizerBase) -> ByteCount:
    """:func:`token_bytes`, with what it takes to count the bytes of whole rows.

    Raises:
        DataError: As :func:`token_bytes`.
    """
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special}
    special.update(tokenizer.all_special_ids)
    # What was added stands for itself, unless it is also one of the model's tokens.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = {} if backend is None else backend.get_vocab(with_added_tokens=False)
    literal = {i: t.content for i, t in added.items() if t.content not in own}
    texts = _trial_texts(
        [t for t, i in vocabulary.items() if i not in special and i not in literal]
    )
    trials = list(zip(texts, _encoded(texts, tokenizer), strict=True))
    # Where nothing is unknown, the text can be compared.
    # Byte-level tokenizers name an unknown token, and never need it.
    unknown = _unknown_names(tokenizer, vocabulary).intersection(
        index for _, ids in trials for index in ids
    )
    unreadable = special | unknown
    trials = [(text, ids) for text, ids in trials if ids and not unreadable & {*ids}]
    for read in _readings(tokenizer):
        spelling = [b""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            spelling[index] = (
                literal[index].encode() if index in literal else read(token)
            )
        spelled = [
            (text.encode(), b"".join(spelling[index] for index in ids))
            for text, ids in trials
        ]
        if spelled and all(found in (text, b" " + text) for text, found in spelled):
            spaced = any(found != text for text, found in spelled)
            return _byte_count(spelling, special, unknown, spaced=spaced)
    raise DataError(
        f"the bytes of a text cannot be told from the tokens of this tokenizer "
        f"({type(tokenizer).__name__}): {_example(trials, tokenizer)}; bits per byte "
        "need one that keeps all of a text (byte-level, or with ▁ for spaces), so "
        "compare losses per token of models with this very tokenizer instead"
    )


def _unknown_names(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int]
) -> set[int]:
    """Tokens that a tokenizer calls unknown, whether it writes them or not."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = getattr(model, "unk_token", None)
    found = {tokenizer.unk_token_id, vocabulary.get(name or "")}
    return {index for index in found if index is not None}


def _byte_count(
    spelling: Sequence[bytes], special: set[int], unknown: set[int], *, spaced: bool
) -> ByteCount:
    is_special = torch.zeros(len(spelling), dtype=torch.bool)
    is_special[[index for index in special if index < len(spelling)]] = True
    sizes = torch.tensor([len(one) for one in spelling])
    opening = torch.tensor([spaced and one.startswith(b" ") for one in spelling])
    return ByteCount(
        sizes=sizes.masked_fill(is_special, 0),
        opening=opening & ~is_special,
        special=is_special,
        unknown=frozenset(unknown),
    )


def _example(
    trials: Sequence[tuple[str, list[int]]], tokenizer: PreTrainedTokenizerBase
) -> str:
    """What becomes of a text, for a message."""
    for text, ids in trials:
        tokens = tokenizer.convert_ids_to_tokens(ids)
        if "".join(tokens) != text:
            return f"{text!r} becomes {tokens}"
    return "it can write none of the texts that it was tried with"


def _readings(tokenizer: PreTrainedTokenizerBase) -> list[Callable[[str], bytes]]:
    """Ways to read a token as bytes, to be tried in this order."""
    # As in GPT-2's vocabulary: printable characters of Latin-1 stand for their own
    # bytes, and those from 256 on for the others, in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + place): byte for place, byte in enumerate(others)}
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    joins = getattr(model, "continuing_subword_prefix", None) or ""

    def byte_level(token: str) -> bytes:
        try:
            return bytes([table[one] for one in token])
        except KeyError:
            return token.encode()

    def pieces(token: str) -> bytes:
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.removeprefix(joins).replace("▁", " ").encode()

    def latin_1(token: str) -> bytes:  # ByT5
        return token.encode("latin-1", "ignore")

    return [byte_level, pieces, latin_1]


def _trial_texts(tokens: Sequence[str]) -> list[str]:
    """Texts that tell one kind of tokenizer from another: its own, and of many kinds.

    One and two tokens with and without a space between them, in capitals too; a
    tokenizer of few tokens can write nothing else.
    """
    texts = [
        "It's 12 o'clock, said Emma.",
        "Two  spaces, a\ttab\nand a line.",
        "ENDS IN Capitals",
        "Größe über alles? Ça coûte 5 €.",
        "½ …",
        "Привет",
        "高い",
        "مرحبا",
        "🐦",
        "\ue000",  # in no vocabulary: unknown, or bytes
    ]
    foreign = [token for token in tokens if not token.isascii()]
    for some in (foreign, [token for token in tokens if token.isascii()]):
        chosen = some[:: max(1, len(some) // _TRIALS)][:_TRIALS]
        plain = [token.replace("▁", " ").removeprefix("##") for token in chosen]
        texts += plain
        for one, other in itertools.pairwise(plain):
            texts += [one + other, f"{one} {other}", f"{one} {other}".upper()]
    # Composed, as texts are: many tokenizers compose what they read.
    return [unicodedata.normalize("NFC", text) for text in texts if text.strip()]


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The ids of each text; none where the tokenizer refuses it."""
    try:
        return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    except Exception:  # of tokenizers, which has no class of its own
        if len(texts) == 1:
            return [[]]
        return [_encoded([text], tokenizer)[0] for text in texts]


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset  # heavy: not at import

    return Dataset.from_list(rows)
