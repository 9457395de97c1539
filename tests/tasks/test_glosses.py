import pytest
from tiny_models import byte_level_bpe, tiny

from distill_helpers.tasks.glosses import (
    POOL,
    Gloss,
    glosses_of,
    judge,
    judge_answers,
    kinds,
    pool_labels,
    read_answer,
    splits,
)


def test_there_are_twelve_kinds():
    assert len(kinds()) == 12
    assert "animal" in kinds()


def test_the_splits_share_no_gloss():
    made = splits()
    parts = (made.labelled, made.pool, made.validation, made.test)
    assert [len(part) for part in parts[:1] + parts[2:]] == [600, 400, 2000]
    assert len(made.pool) > 8000
    texts = [gloss.gloss for part in parts for gloss in part]
    assert len(set(texts)) == len(texts)


def test_as_a_text_no_split_repeats_another():
    names = ("train", "validation", "test")
    parts = [{one.gloss for one in glosses_of(name)} for name in names]
    assert sum(map(len, parts)) == len(set().union(*parts)) > 11_000
    assert parts[2] == {one.gloss for one in splits().test}
    with pytest.raises(ValueError, match="split='tset' must be 'train'"):
        glosses_of("tset")


def test_every_split_has_every_kind():
    for part in (splits().labelled, splits().validation, splits().test):
        assert {gloss.kind for gloss in part} == set(kinds())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"kind": "animal"}', "animal"),
        (' {"kind":"animal"}\n', "animal"),
        ('{"kind": "beast"}', None),
        ('{"kind": ["animal"]}', None),
        ('{"kind": "animal", "sure": true}', None),
        ('["animal"]', None),
        ("animal", None),
        ('{"kind": "animal"} I hope this helps!', None),
        ("", None),
        ("[" * 100_000, None),
        ('{"kind": ' + "9" * 5000 + "}", None),
    ],
)
def test_an_answer_is_json_of_one_form(text, kind):
    assert read_answer(text) == kind


def test_answers_are_judged_by_form_and_by_truth():
    right = [Gloss("dog", "barks", "animal"), Gloss("oak", "grows", "plant")]
    judged = judge_answers([right[0].answer, '{"kind": "food"}'], right)
    assert (judged.accuracy, judged.valid, judged.count) == (0.5, 1.0, 2)
    with pytest.raises(ValueError, match="1 texts and 2 glosses"):
        judge_answers(["x"], right)


def test_a_model_that_knows_nothing_is_judged_so():
    bpe = byte_level_bpe()
    judged = judge(tiny(bpe), bpe, splits().test[:4])
    assert (judged.accuracy, judged.valid, judged.count) == (0.0, 0.0, 4)


def test_an_instruction_names_every_kind():
    text = splits().test[0].instruction
    assert all(kind in text for kind in kinds())


def test_the_shipped_labels_answer_the_first_glosses_of_the_pool():
    labels = pool_labels()
    asked = splits().pool[: len(labels)]
    assert len(labels) == POOL
    contents = [messages[0]["content"] for messages in labels["messages"]]
    assert contents == [gloss.prompt for gloss in asked]
    judged = judge_answers(labels["answer"], asked)
    # A floor under the data that ship, well above guessing among twelve.
    assert judged.valid > 0.99
    assert 0.8 < judged.accuracy < 0.95
    assert set(labels["finish_reason"]) == {"stop"}
    assert all(labels["licence"])
