"""Bundled texts and their checksums, a learner's own files, packing and masking."""

import json
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset, Features, IterableDataset, List, Value
from tiny_models import TEXTS, bpe_json, byte_level_bpe
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from distill_helpers import data
from distill_helpers.data import Collator, DataError, pack_examples
from distill_helpers.models import heads
from distill_helpers.tasks import bundled, prose, three_sums
from distill_helpers.trainers import HardLabels

FEATURES = Features({"input_ids": List(Value("int64"))})
DATA = bundled.data_root()


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def test_load_corpus_txt(tmp_path):
    path = tmp_path / "mine.txt"
    paragraphs = [f"Paragraph {i},\nbroken in two. Grüße!" for i in range(400)]
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    corpus = data.load_corpus(path)
    assert corpus.column_names == ["text"]
    assert len(corpus) > 1
    joined = "\n".join(corpus["text"])
    assert joined.split("\n") == [p.replace("\n", " ") for p in paragraphs]


def test_load_corpus_txt_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfHello")
    assert data.load_corpus(str(path))["text"][:] == ["Hello"]


PROSE = (
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy "
    "disposition, seemed to unite some of the best blessings of existence; and had "
    "lived nearly twenty-one years in the world with very little to distress or vex "
    "her. She was the youngest of the two daughters of a most affectionate father."
)
GERMAN = (
    "Der Vater hatte das Haus am Fluss gebaut, als die Kinder noch klein waren. Im "
    "Sommer standen die Fenster offen, und der Wind trug das Rauschen der Blätter "
    "bis in die Küche, wo die Mutter am Abend das Brot für den nächsten Tag buk."
)
# The same but for a few words, whose lines break before other ones.
OTHER_GERMAN = GERMAN.replace(
    "als die Kinder noch klein waren", "und die Kinder waren noch klein"
).replace("standen die Fenster offen", "waren die Fenster weit auf")
SHOUTED = (
    "Chapter Two. Mr. Knightley met Miss Bates at Box Hill on Tuesday, and Mrs. Weston "
    "took Harriet Smith to Highbury with Frank Churchill; Miss Taylor stayed at "
    "Hartfield until Mr. Elton came from Bath with Augusta Hawkins on Friday."
)
KEPT = {
    "code": "def f(x):\n    if x:\n        return 1\n\n\n    return 2",
    "flat code": "import os\nimport sys\nx = 1\ny = os.getcwd() + sys.argv[x]\nf(y)",
    "shell": "set -e\ncd /tmp\nmake all\nmake install PREFIX=/usr/local",
    "quatrain": (
        "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal "
        "hand or eye,\nCould frame thy fearful symmetry?"
    ),
    "long lines": (
        "Once upon a midnight dreary, while I pondered, weak and weary,\nOver many a "
        "quaint and curious volume of forgotten lore—\nWhile I nodded, nearly "
        "napping, suddenly there came a tapping,\nAs of some one gently rapping, "
        "rapping at my chamber door.\n“’Tis some visitor,” I muttered, “tapping at my "
        "chamber door—\nOnly this and nothing more.”"
    ),
    "list": "apples\nbread\nmilk\ntwo pounds of butter",
    "table": "name,age,city\nAnn,31,Oslo\nBob,7,Rome",
    "Chinese": "床前明月光\n疑是地上霜\n举头望明月\n低头思故乡",
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_text_that_is_no_wrapped_prose_keeps_its_lines(tmp_path, kind):
    path = tmp_path / "mine.txt"
    path.write_text(KEPT[kind] + "\n", encoding="utf-8")
    assert data.load_corpus(path)["text"][:] == [KEPT[kind]]


def test_a_line_of_spaces_is_blank(tmp_path):
    text = "\n\n".join(textwrap.fill(one, 60) for one in TEXTS * 20)
    files = {"mine.txt": text, "theirs.txt": text.replace("\n\n", "\n \t\n")}
    found = []
    for name, written in files.items():
        (tmp_path / name).write_text(written, encoding="utf-8")
        found.append(data.load_corpus(tmp_path / name)["text"][:])
    assert found[0] == found[1]


def test_what_is_no_text_is_named(bpe):
    with pytest.raises(DataError, match="text 1 is None, no string"):
        data.pack(["a", None], bpe, 4)


def test_a_row_without_a_mask_keeps_its_tokens():
    rows = Dataset.from_dict(
        {"input_ids": [[5, 6, 0], [7]], "attention_mask": [[1, 1, 0], None]}
    )
    assert data.strip_padding(rows)["input_ids"][:] == [[5, 6], [7]]


def test_long_code_is_cut_at_blank_lines_and_loses_none(tmp_path):
    source = Path(heads.__file__).read_text(encoding="utf-8")
    path = tmp_path / "mine.txt"
    path.write_text(source, encoding="utf-8")
    passages = data.load_corpus(path)["text"][:]
    assert len(passages) > 3
    lines = [line for line in source.split("\n") if line]
    assert [line for text in passages for line in text.split("\n") if line] == lines


@pytest.mark.parametrize("width", [*range(40, 100, 4), 100])
@pytest.mark.parametrize("prose", [PROSE, GERMAN, OTHER_GERMAN, SHOUTED])
def test_prose_that_was_wrapped_is_joined(tmp_path, width, prose):
    path = tmp_path / "mine.txt"
    wrapped = textwrap.fill(prose, width)
    assert wrapped.count("\n") > 1
    path.write_text(f"{wrapped}\n\n{wrapped}\n", encoding="utf-8")
    assert data.load_corpus(path)["text"][:] == [f"{prose}\n{prose}"]


@pytest.mark.parametrize(
    "block",
    [
        "* first\n* second",
        "1. first\n2. second\n3. third",
        "for x in y:\n    print(x)",
        "  My first displays the wealth\n    and pomp of kings",
        "|a|b|\n|-|-|\n|1|2|",
    ],
)
def test_lists_and_code_amid_prose_keep_their_lines(tmp_path, block):
    path = tmp_path / "mine.txt"
    wrapped = "\n\n".join([textwrap.fill(PROSE, 72)] * 4)
    path.write_text(f"{wrapped}\n\n{block}\n\n{wrapped}", encoding="utf-8")
    lines = "\n".join([*[PROSE] * 4, block, *[PROSE] * 4])
    assert data.load_corpus(path)["text"][:] == [lines]


@pytest.mark.parametrize("half", ["\ud83d", "\udc26\ud83d"])
def test_half_a_character_is_read_as_the_replacement_character(tmp_path, bpe, half):
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"text": text}) for text in ("fine 🐦", f"cut off {half}")]
    path.write_text("\n".join(lines), encoding="utf-8")
    mended = "cut off " + "\ufffd" * len(half)
    assert data.load_corpus(path)["text"][:] == ["fine 🐦", mended]
    assert (
        data.pack([f"cut off {half}"] * 3, bpe, 4)["input_ids"][:]
        == data.pack([mended] * 3, bpe, 4)["input_ids"][:]
    )


def test_load_corpus_jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    texts = ["Eins.", "Zwei\u2028mit Zeilentrenner.", "  ", "Drei 🙂"]
    lines = [json.dumps({"text": t, "n": 1}, ensure_ascii=False) for t in texts]
    path.write_text("\n".join([*lines, "", ""]), encoding="utf-8")
    corpus = data.load_corpus(path)
    assert corpus.column_names == ["text"]
    assert corpus["text"][:] == [texts[0], texts[1], texts[3]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"missing\.txt does not exist"),
        ("empty.txt", b"", r"empty\.txt holds no text"),
        ("blank.txt", b" \n\n \n", r"blank\.txt holds no text"),
        ("empty.jsonl", b"", r"empty\.jsonl holds no text"),
        ("blank.jsonl", b'{"text": " "}\n', r"blank\.jsonl holds no text"),
        ("latin.txt", "Grüße".encode("latin-1"), r"latin\.txt is not UTF-8.*byte 2"),
        ("latin.jsonl", b'{"text": "\xff"}', r"latin\.jsonl is not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{text}\n', r"bad\.jsonl, line 2 is no JSON"),
        ("other.jsonl", b'{"content": "a"}', r"other\.jsonl, line 1: no string under"),
        ("number.jsonl", b'\n{"text": 3}', r"number\.jsonl, line 2: no string"),
        ("list.jsonl", b'["text"]', r"list\.jsonl, line 1: no string"),
        ("table.csv", b"text\na\n", r"table\.csv ends in '\.csv'; use \.txt or"),
        ("none", b"text", r"none ends in ''; use \.txt or \.jsonl"),
    ],
)
def test_bad_corpora_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.load_corpus(tmp_path / name)


def test_a_folder_is_not_a_corpus(tmp_path):
    with pytest.raises(data.DataError, match=r"does not exist|is a folder"):
        data.load_corpus(tmp_path)


def test_pack_gives_rows_of_exactly_one_length_in_order(bpe):
    rows = data.pack(TEXTS, bpe, 16)
    assert rows.column_names == ["input_ids"]
    assert {len(row) for row in rows["input_ids"]} == {16}
    flat = [token for row in rows["input_ids"] for token in row]
    whole = []
    for text in TEXTS:
        whole += [*bpe(text)["input_ids"], bpe.eos_token_id]
    assert flat == whole[: len(whole) // 16 * 16]
    assert len(whole) - len(flat) < 16


def test_pack_puts_the_end_token_between_texts_and_round_trips(bpe):
    rows = data.pack(["Grüße 🙂", "two", "three"], bpe, 2)
    flat = [token for row in rows["input_ids"] for token in row]
    assert bpe.decode(flat).startswith("Grüße 🙂<end>two<end>three")
    # Nothing of it depends on a token that the tokenizer adds itself.
    assert flat.count(bpe.eos_token_id) <= 3


def test_pack_adds_no_special_tokens_of_the_tokenizer_s_own(bpe):
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_str(bpe_json())
    end = bpe.eos_token_id
    backend.post_processor = TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", end)]
    )
    chatty = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert (
        data.pack(TEXTS, chatty, 8)["input_ids"][:]
        == (data.pack(TEXTS, bpe, 8)["input_ids"][:])
    )


def test_pack_takes_a_dataset(bpe):
    corpus = prose.austen("validation").select(range(2))
    assert (
        data.pack(corpus, bpe, 32)["input_ids"][:]
        == (data.pack(corpus["text"][:], bpe, 32)["input_ids"][:])
    )


def test_pack_takes_a_stream(bpe):
    corpus = Dataset.from_dict({"text": list(TEXTS)})
    for some in (
        corpus.to_iterable_dataset(),
        IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS)),
    ):
        assert (
            data.pack(some, bpe, 8)["input_ids"]
            == data.pack(TEXTS, bpe, 8)["input_ids"]
        )
    with pytest.raises(DataError, match=r"corpus has the columns \['body'\]"):
        data.pack(corpus.rename_column("text", "body"), bpe, 8)


def test_pack_takes_a_corpus_of_exactly_one_row(bpe):
    length = len(bpe("one two three")["input_ids"]) + 1
    assert len(data.pack(["one two three"], bpe, length)) == 1
    with pytest.raises(data.DataError, match=f"{length} tokens, fewer than one row"):
        data.pack(["one two three"], bpe, length + 1)


def test_pack_errors(bpe):
    with pytest.raises(data.DataError, match="the corpus has 0 tokens"):
        data.pack([], bpe, 8)
    for length in (1, 0, -3):
        with pytest.raises(ValueError, match=f"length={length} must be at least 2"):
            data.pack(TEXTS, bpe, length)
    with pytest.raises(ValueError, match="pass a list of texts"):
        data.pack(TEXTS[0], bpe, 8)


def test_mask_prompts_learns_the_answer_and_its_end():
    tokenizer = three_sums.build_tokenizer()
    rows = data.mask_prompts(["1+2=", "10+20+30="], ["3", "60"], tokenizer)
    for row, prompt, answer in zip(
        rows, ["1+2=", "10+20+30="], ["3", "60"], strict=True
    ):
        learned = [i for i in row["labels"] if i != -100]
        assert tokenizer.decode(row["input_ids"]) == f"{prompt}{answer}<end>"
        assert tokenizer.decode(learned) == f"{answer}<end>"
        assert row["labels"][: len(prompt)] == [-100] * len(prompt)
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]


def test_mask_prompts_errors():
    tokenizer = three_sums.build_tokenizer()
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        data.mask_prompts(["1", "2"], ["3"], tokenizer)
    with pytest.raises(data.DataError, match="no prompts"):
        data.mask_prompts([], [], tokenizer)


def test_collator_pads_by_position_not_by_id():
    # Pad token 0 is the end token too, and stands in the rows.
    batch = data.Collator(0)([{"input_ids": [5, 6, 0]}, {"input_ids": [7, 0, 8, 9, 0]}])
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0, 0], [7, 0, 8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [
        [-100, 6, 0, -100, -100],
        [-100, 0, 8, 9, 0],
    ]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collator_keeps_given_labels():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 9]},
        {"input_ids": [4, 5], "labels": [4, 7]},
    ]
    batch = data.Collator(0)(rows)
    assert batch["labels"].tolist() == [[-100, -100, 9], [-100, 7, -100]]


def test_collator_leaves_the_rows_alone():
    row = {"input_ids": [1, 2], "labels": [1, 2]}
    data.Collator(0)([row])
    assert row == {"input_ids": [1, 2], "labels": [1, 2]}


def test_collator_for_falls_back_to_the_end_token(bpe):
    sums = three_sums.build_tokenizer()
    assert data.collator_for(sums).pad_token_id == sums.pad_token_id
    backend = Tokenizer.from_str(bpe_json())
    padless = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert data.collator_for(padless).pad_token_id == padless.eos_token_id


IDS = [5, 6, 7, 8, 9]
MASKS = (
    "assistant_masks",
    "assistant_mask",
    "completion_mask",
    "loss_mask",
    "response_mask",
)
FORMATS = (None, "torch", "numpy")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_another_tool_says_what_counts(name, kind):
    rows = Dataset.from_dict(
        {"input_ids": [IDS, IDS[:3]], name: [[0, 1, 0, 1, 1], [1, 1, 0]]}
    )
    batch = Collator(0)(list(rows.with_format(kind)))
    assert batch["labels"].tolist() == [
        [-100, 6, -100, 8, 9],
        [-100, 6, -100, -100, -100],
    ]
    packed = pack_examples(rows, 8)[0]
    assert packed["labels"] == [-100, 6, -100, 8, 9, -100, 6, -100]


def test_what_counts_in_all_masks_counts():
    row = {"input_ids": IDS, "completion_mask": [0, 0, 1, 1, 1]}
    row["assistant_masks"] = [True, True, True, False, True]
    assert data.row_labels(row).tolist() == [-100, -100, 7, -100, 9]
    row["loss_mask"] = None  # as Arrow fills up rows that have no such column
    assert data.row_labels(row).tolist() == [-100, -100, 7, -100, 9]


def test_labels_and_masks_that_agree_are_welcome():
    labels = [-100, -100, 7, 3, -100]  # another token than the text's is a label too
    row = {"input_ids": IDS, "labels": labels, "loss_mask": [1, 0, 1, 1, 0]}
    assert data.row_labels(row).tolist() == labels


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": IDS, "loss_mask": [0, 0, 1, 1, 1]}, "row 1: labels and loss_mask"),
        (
            {"labels": [-100] * 5, "completion_mask": [0, 0, 1, 1, 1]},
            "labels and completion_mask disagree",
        ),
        ({"completion_mask": [0, 1, 1]}, r"row 1: completion_mask .*\[3\].* 5 input"),
        ({"assistant_masks": [0, 1, 1, 1, 1, 1]}, r"row 1: assistant_masks .*\[6\]"),
        ({"labels": [-100, 2]}, r"row 1: labels .*\[2\].* 5 input_ids"),
        ({"labels": 1}, r"row 1: labels .*\[\]"),
        ({"loss_mask": [0.0, 0.5, 1.0, 1.0, 1.0]}, r"loss_mask holds .*0\.5"),
        ({"prompt_mask": [1, 1, 0, 0, 0]}, "row 1 has prompt_mask"),
        ({"token_weights": [0.1, 1.0, 1.0, 1.0, 1.0]}, "row 1 has token_weights"),
        ({"seq_lengths": [2, 3]}, "row 1 has seq_lengths.*pack_examples"),
        ({"segment_ids": [0, 0, 1, 1, 1]}, "row 1 has segment_ids"),
        ({"input_ids": None, "text": "a"}, "row 1 has no input_ids, only"),
        ({"input_ids": [IDS]}, r"input_ids of row 1 have the shape \[1, 5\]"),
    ],
)
def test_columns_that_would_change_what_is_learned_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        Collator(0)([{"input_ids": IDS}, {"input_ids": IDS} | columns])


def test_columns_that_change_nothing_are_left_out():
    row = {
        "input_ids": IDS,
        "labels": None,
        "special_tokens_mask": [1, 0, 0, 0, 1],
        "token_type_ids": [0] * 5,
        "text": "a text",
        "length": 5,
        "weight": 70.5,
        "mask": torch.tensor(1),
        "masks": ["one", "two"],
    }
    batch = Collator(0)([row])
    assert batch["labels"].tolist() == [[-100, *IDS[1:]]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_padding_is_taken_out_of_masks_as_well():
    row = {
        "input_ids": [0, 0, 5, 6, 7],
        "attention_mask": [0, 0, 1, 1, 1],
        "completion_mask": [0, 0, 0, 1, 1],
        "special_tokens_mask": [1, 1, 0, 0, 0],
        "token_type_ids": [3, 3, 0, 1, 2],
    }
    (stripped,) = data.strip_padding(Dataset.from_list([row]))
    assert stripped == {
        "input_ids": [5, 6, 7],
        "completion_mask": [0, 1, 1],
        "special_tokens_mask": [0, 0, 0],
        "token_type_ids": [0, 1, 2],
    }
    assert Collator(0)([stripped])["labels"].tolist() == [[-100, 6, 7]]
    with pytest.raises(DataError, match="a row has 5 input_ids and 2 numbers"):
        data.strip_padding(Dataset.from_list([row | {"attention_mask": [0, 1]}]))
    with pytest.raises(DataError, match=r"rows are a stream.*from_list"):
        data.strip_padding(IterableDataset.from_generator(lambda: iter([row])))


def test_packing_refuses_what_would_be_read_as_text():
    padded = {"input_ids": IDS, "labels": IDS, "attention_mask": [1, 1, 1, 1, 0]}
    with pytest.raises(DataError, match=r"data\.strip_padding"):
        pack_examples(Dataset.from_list([padded]), 8)
    with pytest.raises(DataError, match="pack_examples already"):
        pack_examples(pack_examples(examples(2, 3), 8), 8)


def test_examples_without_tokens_take_no_place():
    rows = Dataset.from_dict(
        {"input_ids": [[], [5, 6], []], "labels": [[], [5, 6], []]}
    )
    (row,) = pack_examples(rows, 4)
    assert row == {"input_ids": [5, 6], "labels": [-100, 6], "position_ids": [0, 1]}
    with pytest.raises(DataError, match="no examples"):
        pack_examples(rows.select([0, 2]), 4)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [[[]], [[], []], [[], [5, 6, 7]]])
def test_a_row_without_tokens_is_one_that_teaches_nothing(rows, kind):
    some = Dataset.from_dict({"input_ids": rows}, features=FEATURES).with_format(kind)
    batch = Collator(3)(list(some))
    width = max(1, *map(len, rows))
    assert {tensor.shape for tensor in batch.values()} == {(len(rows), width)}
    assert batch["attention_mask"].sum(1).tolist() == [max(1, len(r)) for r in rows]
    counted = [[-100] * width if not row else [-100, *row[1:]] for row in rows]
    assert batch["labels"].tolist() == counted


ARCHITECTURES = {
    "Llama": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Gemma2": {"head_dim": 8, "num_key_value_heads": 2},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mamba": {},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_rows_without_tokens_change_no_gradient(kind):
    shape = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape | ARCHITECTURES[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    full = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10]}]

    def learned(rows):
        model.zero_grad()
        loss = HardLabels()(model, Collator(0)(rows), None)["loss"]
        loss.backward()
        return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]

    loss, gradients = learned(full)
    beside, found = learned([full[0], {"input_ids": []}, full[1]])
    assert beside == pytest.approx(loss, rel=1e-5)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    nothing, none = learned([{"input_ids": []}])
    assert nothing == 0
    assert all(float(gradient.abs().max()) == 0 for gradient in none)


def test_a_tokenizer_without_pad_and_end_is_named():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe_json()))
    with pytest.raises(ValueError, match=r"neither a pad token.*tokenizer\.pad_token"):
        data.collator_for(bare)


@pytest.mark.parametrize(
    "text",
    [TEXTS[0], "Grüße an Łukasz – 東京 🙂", "tabs\tand\nlines  ", "\x00\x7f\xa0\u2028"],
)
def test_token_bytes_sum_to_the_text_s_bytes(bpe, text):
    sizes = data.token_bytes(bpe)
    ids = bpe(text)["input_ids"]
    assert sizes.shape == (len(bpe),)
    assert int(sizes[ids].sum()) == len(text.encode("utf-8"))


def test_special_tokens_stand_for_no_bytes(bpe):
    sizes = data.token_bytes(bpe)
    assert sizes[bpe.eos_token_id] == 0
    rest = torch.cat([sizes[: bpe.eos_token_id], sizes[bpe.eos_token_id + 1 :]])
    assert int(rest.min()) == 1


def test_added_words_count_in_utf8():
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["Straße"])
    text = "Eine Straße."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("Straße") in ids
    assert int(data.token_bytes(tokenizer)[ids].sum()) == len(text.encode())


def test_a_tokenizer_is_tried_once_and_again_when_it_changes():
    tokenizer = byte_level_bpe()
    first = data.byte_count(tokenizer)
    assert data.byte_count(tokenizer) is first
    tokenizer.add_tokens(["Straße"])
    index = tokenizer.convert_tokens_to_ids("Straße")
    assert int(data.byte_count(tokenizer).sizes[index]) == 7
    tokenizer.add_special_tokens({"additional_special_tokens": ["Straße"]})
    assert int(data.byte_count(tokenizer).sizes[index]) == 0


BIRD = "Größe über alles? Ça coûte 5 €,  高い 🐦."


def fast(backend, **names):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def sentencepiece_like():
    """As Llama 2: ▁ before every text and for spaces, bytes for the unknown."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "▁"]
    pieces += [*"GrßebralsoutnihdfSEmIEPR?Ç,.", "高", "ö", "▁t"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            [("▁", "t")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(scheme):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS, BIRD], trainer)
    return fast(backend, eos_token="</s>", unk_token="<unk>")


def byte_level(*, prefix=False, normalizer=None):
    backend = Tokenizer.from_str(bpe_json())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if normalizer is not None:
        backend.normalizer = normalizer
    return fast(backend, eos_token="<end>")


def word_pieces(pre_tokenizer, normalizer=None):
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator([*TEXTS, BIRD], trainer)
    return fast(backend, eos_token="[SEP]", unk_token="[UNK]")


def words(pre_tokenizer, names=("the", "cat", "Ö", " "), normalizer=None):
    """Ids with a gap before the last."""
    vocabulary = {name: i for i, name in enumerate(["<unk>", *names])}
    backend = Tokenizer(models.WordLevel(vocabulary | {"<end>": 41}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    return fast(backend, eos_token="<end>", unk_token="<unk>")


def characters():
    return pre_tokenizers.Split(Regex("(?m)."), "isolated")


COUNTED = {
    "byte-level": (byte_level, BIRD),
    "byte-level, NFC": (lambda: byte_level(normalizer=normalizers.NFC()), BIRD),
    "byte-level, space first": (lambda: byte_level(prefix=True), BIRD),
    "SentencePiece": (sentencepiece_like, BIRD),
    "Unigram, always": (lambda: unigram("always"), BIRD),
    "Unigram, first": (lambda: unigram("first"), BIRD),
    "Unigram, never": (lambda: unigram("never"), BIRD),
    "WordPiece with ▁": (lambda: word_pieces(pre_tokenizers.Metaspace()), BIRD),
    "bytes (ByT5)": (ByT5Tokenizer, BIRD),
    "words and spaces": (
        lambda: words(pre_tokenizers.Split(" ", "isolated")),
        "the cat Ö the",
    ),
    "characters": (lambda: words(characters(), "abÖ 高"), "a高 bÖÖ"),
    "sums": (three_sums.build_tokenizer, "1+22=23"),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_tokens_stand_for_the_bytes_of_the_text(kind):
    make, text = COUNTED[kind]
    tokenizer = make()
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    counter = data.byte_count(tokenizer)
    highest = max(tokenizer.get_vocab().values())
    assert counter.sizes.shape == (highest + 1,)
    assert torch.equal(data.token_bytes(tokenizer), counter.sizes)
    # Behind an end-of-text token a space that the tokenizer adds is no text.
    end = tokenizer.eos_token_id
    start = ids[:1] if end is None else torch.tensor([end])
    before = torch.cat([start, ids[:-1]])
    assert counter.count(before, ids) == len(text.encode())
    if end is not None:
        assert counter.sizes[end] == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: word_pieces(pre_tokenizers.BertPreTokenizer()),
        lambda: word_pieces(
            pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
        ),
        lambda: words(pre_tokenizers.Whitespace(), ["the", "cat", "sat"]),
        lambda: words(pre_tokenizers.WhitespaceSplit(), ["the", "cat", "sat"]),
        lambda: words(characters(), "abö ", normalizers.Lowercase()),
        lambda: byte_level(normalizer=normalizers.Lowercase()),
        lambda: byte_level(normalizer=normalizers.NFKC()),
        lambda: byte_level(normalizer=normalizers.Replace(Regex(" {2,}"), " ")),
    ],
)
def test_tokenizers_that_change_texts_count_no_bytes(make):
    with pytest.raises(DataError, match="bytes of a text cannot be told"):
        data.token_bytes(make())


def test_unknown_tokens_stand_for_bytes_that_nobody_knows():
    tokenizer = unigram("always")
    ids = torch.tensor(tokenizer("man Ω", add_special_tokens=False)["input_ids"])
    assert tokenizer.unk_token_id in ids
    assert data.byte_count(tokenizer).count(ids, ids) is None
    # A byte-level tokenizer only names one, often its end-of-text token.
    named = byte_level()
    named.unk_token = "<end>"
    end = torch.tensor([named.eos_token_id])
    assert data.byte_count(named).count(end, end) == 0


def examples(*sizes):
    return Dataset.from_list(
        [
            {
                "input_ids": [10 * number + i for i in range(size)],
                "labels": [-100] + [10 * number + i for i in range(1, size)],
            }
            for number, size in enumerate(sizes, 1)
        ]
    )


def test_examples_are_packed_whole_and_positions_begin_anew():
    packed = pack_examples(examples(3, 5, 2), 8)
    assert sorted(map(len, packed["input_ids"])) == [2, 8]
    row = packed[0]
    assert row["input_ids"] == [20, 21, 22, 23, 24, 10, 11, 12]
    assert row["position_ids"] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row["labels"] == [-100, 21, 22, 23, 24, -100, 11, 12]


def test_packing_loses_nothing_and_wastes_little():
    sizes = [2 + (7 * i) % 29 for i in range(200)]
    packed = pack_examples(examples(*sizes), 64)
    assert sum(map(len, packed["input_ids"])) == sum(sizes)
    assert max(map(len, packed["input_ids"])) <= 64
    assert len(packed) <= 1.05 * sum(sizes) / 64 + 1


def test_the_first_token_of_an_example_is_never_learned():
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}] * 2)
    assert pack_examples(rows, 4)[0]["labels"] == [-100, 2, -100, 2]


def test_an_example_that_is_too_long_is_named():
    with pytest.raises(ValueError, match=r"length=4 is less than the 5 tokens"):
        pack_examples(examples(3, 5), 4)


def test_padding_of_packed_rows_is_an_example_of_its_own():
    batch = Collator(0)(list(pack_examples(examples(3, 5, 2), 8)))
    assert batch["position_ids"][1].tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    assert batch["labels"][1].tolist() == [-100, 31] + [-100] * 6


def test_stream_rows_are_those_of_pack(bpe, tmp_path):
    texts = [f"It was the {word} of times. " * 9 for word in ("best", "worst") * 90]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "train.jsonl").write_text(lines, encoding="utf-8")
    expected = data.pack(texts, bpe, 32)
    # Further than the first batch of 100 texts.
    count = len(expected) - 1
    rows = data.stream_rows(tmp_path, bpe, 32, count)
    assert rows["input_ids"] == expected["input_ids"][:count]
    with pytest.raises(data.DataError, match=f"only {len(expected)} rows"):
        data.stream_rows(tmp_path, bpe, 32, len(expected) + 1)
    with pytest.raises(ValueError, match="length=1"):
        data.stream_rows(tmp_path, bpe, 1, 5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_that_is_part_of_the_rows(side):
    text, pad = [5, 6, 7], [0, 0]
    row = {
        "input_ids": text + pad if side == "right" else pad + text,
        "attention_mask": [1, 1, 1, 0, 0] if side == "right" else [0, 0, 1, 1, 1],
    }
    row["labels"] = [-100 if one == 5 else one for one in row["input_ids"]]
    rows = Dataset.from_list([row])
    for some in ([row], list(rows.with_format("torch")), list(rows.with_format("np"))):
        with pytest.raises(DataError, match=r"data\.strip_padding"):
            Collator(0)(some)
    stripped = data.strip_padding(rows)
    assert list(stripped) == [{"input_ids": text, "labels": [-100, 6, 7]}]
    assert data.strip_padding(stripped) is stripped
    assert Collator(0)(list(stripped))["labels"].tolist() == [[-100, 6, 7]]


def test_a_mask_that_hides_nothing_is_welcome():
    row = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}
    assert Collator(0)([row])["attention_mask"].tolist() == [[1, 1, 1]]
