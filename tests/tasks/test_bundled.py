"""The bundled files: all there, unchanged, with licence and origin; the splits."""

import hashlib
import json
import shutil

import pytest
from tiny_models import byte_level_bpe

from distill_helpers import data
from distill_helpers.tasks import bundled, prose

DATA = bundled.data_root()
MANIFEST = json.loads((DATA / "MANIFEST.json").read_text(encoding="utf-8"))["files"]


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def test_the_manifest_and_the_folder_agree():
    there = {
        path.relative_to(DATA).as_posix()
        for path in DATA.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    licences = {name for name in there if "/" not in name and name[:7] == "LICENSE"}
    assert there - licences - {"MANIFEST.json"} == set(MANIFEST) - licences


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_every_file_is_the_one_in_the_manifest(name):
    digest = hashlib.sha256((DATA / name).read_bytes()).hexdigest()
    assert digest == MANIFEST[name]["sha256"]
    assert bundled.data_path(name) == DATA / name


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_every_file_has_licence_and_origin(name):
    assert MANIFEST[name]["licence"].strip()
    assert MANIFEST[name]["origin"].strip()


@pytest.mark.parametrize("name", ["tiny_prose", "tiny_sums"])
def test_the_tiny_teachers_are_bundled_whole(name):
    files = {file.partition("/")[2] for file in MANIFEST if file.startswith(name)}
    needed = {"config.json", "model.safetensors", "tokenizer.json"}
    assert needed | {"tokenizer_config.json"} <= files
    assert bundled.data_folder(name) == DATA / name


def test_wordnet_licence_travels_with_the_glosses():
    assert "LICENSE.wordnet" in MANIFEST["wordnet_glosses.jsonl"]["licence"]
    text = (DATA / "LICENSE.wordnet").read_text(encoding="utf-8")
    assert "WordNet" in text
    assert "Princeton" in text


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of a part of the data folder that may be damaged."""
    root = tmp_path / "data"
    (root / "austen").mkdir(parents=True)
    for name in ("MANIFEST.json", "three_sums_test.jsonl", "austen/emma.txt"):
        shutil.copy(DATA / name, root / name)
    monkeypatch.setattr(bundled, "data_root", lambda: root)
    return root


@pytest.mark.parametrize("name", ["austen/emma.txt", "three_sums_test.jsonl"])
def test_a_changed_byte_names_the_file(copied, name):
    assert bundled.data_path(name) == copied / name
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=r"not the file that was shipped") as error:
        bundled.data_path(name)
    assert str(path) in str(error.value)
    assert MANIFEST[name]["sha256"][:12] in str(error.value)


def test_a_changed_byte_is_found_through_a_folder(copied):
    (copied / "austen" / "emma.txt").write_text("Emma", encoding="utf-8")
    with pytest.raises(data.DataError, match=r"emma\.txt is not the file"):
        bundled.data_folder("austen")


def test_a_missing_file_is_named(copied):
    (copied / "austen" / "emma.txt").unlink()
    with pytest.raises(data.DataError, match=r"emma\.txt is missing; install"):
        bundled.data_path("austen/emma.txt")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(data.DataError, match=r"'austen/sanditon.txt' is not.*emma"):
        bundled.data_path("austen/sanditon.txt")
    with pytest.raises(data.DataError, match=r"'bronte' is not a bundled folder"):
        bundled.data_folder("bronte")


def test_a_path_out_of_the_folder_is_refused():
    with pytest.raises(data.DataError, match="is not a bundled file"):
        bundled.data_path("../pyproject.toml")


@pytest.mark.parametrize("content", [None, "{", '{"other": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "MANIFEST.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(bundled, "data_root", lambda: tmp_path)
    with pytest.raises(data.DataError, match=r"MANIFEST\.json is missing or damaged"):
        bundled.data_path("austen/emma.txt")


def test_a_missing_data_folder_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bundled, "__file__", str(tmp_path / "package" / "tasks" / "bundled.py")
    )
    with pytest.raises(data.DataError, match="install the package again"):
        bundled.data_root()
    with pytest.raises(data.DataError, match="folder results/"):
        bundled.results_root()


def test_the_wheel_s_own_copy_comes_first(monkeypatch, tmp_path):
    package = tmp_path / "package"
    monkeypatch.setattr(bundled, "__file__", str(package / "tasks" / "bundled.py"))
    (tmp_path / "data").mkdir(parents=True)
    assert bundled.data_root() == tmp_path / "data"
    (package / "_data").mkdir(parents=True)
    assert bundled.data_root() == package / "_data"


@pytest.fixture(scope="module")
def splits():
    return {name: prose.austen(name) for name in ("train", "validation", "test")}


def test_the_splits_share_no_passage(splits):
    texts = {name: set(rows["text"]) for name, rows in splits.items()}
    assert not texts["train"] & texts["validation"]
    assert not (texts["train"] | texts["validation"]) & texts["test"]
    assert all(len(texts[name]) == len(splits[name]) for name in texts)


def test_the_sixth_novel_is_in_none_but_test(splits):
    novels = {name: set(rows["novel"]) for name, rows in splits.items()}
    assert novels["test"] == {"persuasion"}
    assert novels["train"] == novels["validation"] == set(prose.TRAINING_NOVELS)
    assert "persuasion" not in prose.TRAINING_NOVELS
    hero = "Wentworth"  # a name of Persuasion alone
    assert any(hero in text for text in splits["test"]["text"])
    for name in ("train", "validation"):
        assert not any(hero in text for text in splits[name]["text"])


def test_the_splits_hold_every_word_once(splits):
    words = sum(len(text.split()) for rows in splits.values() for text in rows["text"])
    files = [
        DATA / "austen" / f"{n}.txt" for n in (*prose.TRAINING_NOVELS, "persuasion")
    ]
    assert words == sum(len(f.read_text(encoding="utf-8").split()) for f in files)


def test_validation_is_about_a_twentieth(splits):
    train, validation = (
        sum(map(len, splits[name]["text"])) for name in ("train", "validation")
    )
    assert 0.04 < validation / (train + validation) < 0.06


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "4d48a74d615b80b2ee5e4ebb0f7303b1d2b54ded380810531965dff38fa1ef44"),
        (
            "validation",
            "139fa0aec60feb14137c35ad9167f320f38e137cff0ded7ff763916251a5dc73",
        ),
        ("test", "aec7d255bde3e81a2484e7aba6f949bd6b083e8027106da49084b1bf86e87803"),
    ],
)
def test_the_passages_that_all_results_rest_on(splits, split, expected):
    rows = splits[split]
    content = json.dumps([rows["text"][:], rows["novel"][:]]).encode()
    assert hashlib.sha256(content).hexdigest() == expected


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='dev' must be 'train'"):
        prose.austen("dev")


def test_glosses():
    glosses = prose.glosses()
    assert glosses.column_names == ["word", "supersense", "gloss"]
    assert len(glosses) == 11_254
    assert len(set(glosses["supersense"])) == 12
    assert all(25 <= len(gloss) <= 160 for gloss in glosses["gloss"])
    assert all(word.strip() for word in glosses["word"])


def test_hard_line_breaks_are_undone(splits):
    passage = splits["train"][0]["text"]
    assert len(passage) >= 4000
    assert max(map(len, passage.split("\n"))) > 200  # a line is a paragraph now


def test_the_novels_are_read_as_prose(splits):
    found = data.load_corpus(DATA / "austen" / "persuasion.txt")
    assert "\n".join(found["text"]) == "\n".join(splits["test"]["text"])
