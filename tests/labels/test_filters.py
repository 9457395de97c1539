import unicodedata

import pytest
from datasets import Dataset

from distill_helpers.labels.filters import (
    contaminated,
    duplicate,
    empty,
    filter_labels,
    near_duplicate,
    refused,
    truncated,
    wrong,
)


def labels(*answers, prompts=None, reasons=None):
    prompts = prompts or [f"question {number}" for number in range(len(answers))]
    return Dataset.from_list(
        [
            {
                "messages": [{"role": "user", "content": prompt}],
                "answer": answer,
                "finish_reason": reason,
            }
            for prompt, answer, reason in zip(
                prompts, answers, reasons or ["stop"] * len(answers), strict=True
            )
        ]
    )


def test_truncated_is_whatever_did_not_stop():
    rows = labels("a", "b", "c", reasons=["stop", "length", "content_filter"])
    assert truncated(rows) == [False, True, True]


def test_truncated_knows_what_other_servers_call_the_end():
    reasons = ["eos", "eos_token", "end_turn", "stop_sequence", "max_tokens", "None"]
    rows = labels(*"abcdef", reasons=reasons)
    assert truncated(rows) == [False] * 4 + [True] * 2


def test_empty_has_no_letter():
    assert empty(labels("", " \n", "…!", "ok", "7")) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I can’t help with that.", True),
        ("As an AI language model, I have no opinions.", True),
        ("I cannot provide medical advice.", True),
        ("It is a kind of fish.", False),
        ("He can't help it, she said.", False),
        ("A story. " * 30 + "'I am sorry,' said Anne.", False),
    ],
)
def test_refused(answer, found):
    assert refused(labels(answer)) == [found]


def test_duplicate_needs_the_same_prompt():
    rows = labels("animal", "Animal ", "animal", prompts=["cat", "Cat", "dog"])
    assert duplicate(rows) == [False, True, False]


def test_signs_tell_duplicates_apart():
    rows = labels("5", "5", prompts=["abs(-5)", "abs(5)"])
    assert duplicate(rows) == [False, False]


def test_near_duplicate_finds_small_changes_and_spares_others():
    text = " ".join(f"word{number}" for number in range(60))
    rows = labels(
        text, text + " more", "quite another answer", prompts=["same", "same", "same"]
    )
    assert near_duplicate()(rows) == [False, True, False]
    with pytest.raises(ValueError, match="threshold=2"):
        near_duplicate(2)


def test_contaminated_finds_runs_and_whole_short_texts():
    find = contaminated(
        ["the quick brown fox jumps over the lazy dog today", "five short words of it"],
        words=8,
    )
    rows = labels(
        "He wrote: the quick brown fox jumps over the lazy cat.",
        "the quick brown fox",
        "these are FIVE short words, of it.",
        "clean",
    )
    assert find(rows) == [True, False, True, False]


def test_contaminated_does_not_look_for_single_words():
    assert contaminated(["animal"])(labels("an animal")) == [False]


def test_wrong_asks_the_checker():
    find = wrong(lambda row: row["answer"] == "4")
    assert find(labels("4", "5")) == [False, True]


def test_filters_come_one_after_another_and_keep_account():
    rows = labels("", "", "ok", "ok", prompts=["a", "a", "b", "b"])
    made = filter_labels(rows, {"empty": empty, "duplicate": duplicate})
    assert made.kept["answer"] == ["ok"]
    assert made.counts == {"empty": 2, "duplicate": 1}
    assert made.dropped["dropped_by"] == ["empty", "empty", "duplicate"]
    assert repr(made) == "1 kept, 2 empty, 1 duplicate"


def test_a_filter_that_judges_too_few_is_named():
    with pytest.raises(ValueError, match="'short' judged 1 of 2"):
        filter_labels(labels("a", "b"), {"short": lambda _: [True]})


def test_what_was_dropped_can_be_filtered_again():
    first = filter_labels(labels("", "ok"), {"empty": empty})
    again = filter_labels(first.dropped, {"empty too": empty})
    assert again.dropped["dropped_by"] == ["empty too"]


def test_nothing_dropped_is_fine():
    made = filter_labels(labels("a"), {"empty": empty})
    assert (len(made.kept), len(made.dropped)) == (1, 0)


@pytest.mark.parametrize("answers", [("yes", "no"), ("", "no"), ("", "")])
def test_rows_with_a_column_of_ones_own(answers):
    rows = labels(*answers).add_column("licence", ["mine", "theirs"])
    found = filter_labels(rows, {"empty": empty})
    assert len(found.kept) + len(found.dropped) == 2
    assert sorted([*found.kept["licence"], *found.dropped["licence"]]) == [
        "mine",
        "theirs",
    ]
    assert found.dropped["dropped_by"][:] == ["empty"] * answers.count("")
    assert "dropped_by" not in found.kept.column_names


# --- other scripts ------------------------------------------------------------------

# A question in each script, and another one about the same kind of thing.
QUESTIONS = {
    "English": (
        "What is the boiling point of water at sea level in Celsius?",
        "What is the melting point of iron at sea level in Kelvin, roughly?",
    ),
    "Chinese": (
        "请问中国的首都位于哪个省份的中间并且人口大约有多少万人？",
        "请问法国的首都位于哪个地区的北边而且一共有几座大桥？",
    ),
    "Japanese": (
        "日本で一番高い山の名前と標高を教えてください。",
        "日本で一番長い川の名前と流域を教えてください。",
    ),
    "Katakana": (
        "コンピュータノメモリハナンノタメニツカワレマスカ？",
        "コンピュータノガメンハドウヤッテウツリマスカ？",
    ),
    "Korean": (
        "대한민국에서 가장 높은 산의 이름과 높이는 얼마나 됩니까?",
        "대한민국에서 가장 긴 강의 이름과 길이는 얼마나 됩니까?",
    ),
    "Thai": (
        "เมืองหลวงของประเทศญี่ปุ่นคืออะไรและมีประชากรกี่คน",
        "เมืองหลวงของประเทศลาวตั้งอยู่ริมแม่น้ำสายใด",
    ),
    "Lao": ("ນະຄອນຫຼວງຂອງປະເທດລາວແມ່ນຫຍັງ", "ແມ່ນ້ຳທີ່ຍາວທີ່ສຸດໃນປະເທດລາວຊື່ຫຍັງ"),
    "Khmer": (
        "តើរាជធានីនៃប្រទេសកម្ពុជាមានឈ្មោះអ្វី",
        "តើទន្លេណាវែងជាងគេនៅក្នុងពិភពលោក",
    ),
    "Burmese": (
        "မြန်မာနိုင်ငံ၏မြို့တော်သည်အဘယ်နည်း",
        "ကမ္ဘာပေါ်တွင်အရှည်ဆုံးမြစ်ကဘာလဲ",
    ),
    "Tibetan": (
        "བོད་ཀྱི་རྒྱལ་ས་གང་ཡིན་ནམ་དེ་ག་པར་ཡོད་རེད།",
        "རྒྱ་གར་གྱི་ཆུ་བོ་ཆེ་ཤོས་གང་རེད་དམ།",
    ),
    "Hindi": (
        "भारत की राजधानी का नाम क्या है और वह किस नदी के किनारे है?",
        "नेपाल की सबसे ऊँची चोटी कौन सी है और उसकी ऊँचाई कितनी है?",
    ),
    "Arabic": (
        "مَا هِيَ عَاصِمَةُ مِصْرَ وَكَمْ عَدَدُ سُكَّانِهَا الْيَوْمَ تَقْرِيبًا؟",
        "مَا هُوَ أَطْوَلُ نَهْرٍ فِي الْعَالَمِ وَأَيْنَ يَصُبُّ؟",
    ),
}


def flagged(evaluation, prompt, answer="ok"):
    return contaminated(evaluation)(labels(answer, prompts=[prompt])) == [True]


@pytest.mark.parametrize("script", QUESTIONS)
def test_a_copy_is_found_in_every_script_and_another_question_is_not(script):
    question, other = QUESTIONS[script]
    assert flagged([question], question)
    assert flagged([question], f"Ok. {question} Ok.")
    assert flagged([question], "?", answer=f"He asked: {question}")
    assert not flagged([question], other)
    assert not flagged([other], question)


@pytest.mark.parametrize("script", ["Chinese", "Japanese", "Thai", "Lao", "Tibetan"])
def test_half_of_a_long_text_is_a_run(script):
    long = " ".join(QUESTIONS[script] * 2)
    assert flagged([long], long[: len(long) // 2])


@pytest.mark.parametrize(
    "short", ["2 + 2 = ?", "Who?", "谁？", "日本の首都は？", "ใคร", "🐦?", "∑", "왜?"]
)
def test_a_short_text_is_found_as_a_prompt_and_nowhere_else(short):
    assert flagged([short], short)
    assert flagged([short], f"  {short}\n")
    assert not flagged([short], f"A longer text that holds {short} somewhere in it.")
    assert not flagged([short], "Another one", answer=short)
    assert not flagged(["abs(-5)?"], "abs(5)?")


@pytest.mark.parametrize(
    ("question", "written"),
    [
        ("What is the CAPITAL of France, please tell me now?", None),
        ("Ｗｈａｔ　ｉｓ　２　＋　２？", "What is 2 + 2?"),
        ("ｺﾝﾋﾟｭｰﾀﾉﾒﾓﾘﾊﾅﾝﾉﾀﾒﾆ", "コンピュータノメモリハナンノタメニ"),
        ("Où se trouve la fenêtre dorée du château d'été?", None),
        ("한국에서 가장 높은 산의 이름은 무엇입니까?", None),
        ("Wie heißt die größte Straße der Schweiz heute?", None),
        ("តើរាជធានីនៃប្រទេសកម្ពុជាមានឈ្មោះអ្វី", "តើ\u200bរាជធានី\u200bនៃប្រទេសកម្ពុជាមានឈ្មោះអ្វី"),
    ],
)
def test_ways_to_write_the_same_make_no_difference(question, written):
    for form in ("NFC", "NFD"):
        for text in (written or question.upper(), question):
            text = unicodedata.normalize(form, text)
            assert flagged([question], f"Ok. {text} Ok.") or len(text) < 20
            assert flagged([question], text)


def test_one_word_of_a_script_without_spaces_is_everywhere():
    assert not flagged(
        ["ประเทศไทย", "中国", "日本人"], "ประเทศไทยอยู่ที่ไหน 中国 日本人です"
    )


def test_an_evaluation_that_is_one_string_is_refused():
    with pytest.raises(ValueError, match="evaluation is one string"):
        contaminated("What?")


def test_near_duplicates_are_found_without_spaces():
    chinese, thai = QUESTIONS["Chinese"], QUESTIONS["Thai"]
    prompts = [chinese[0], chinese[0] + "好", thai[0], thai[0], *chinese[1:], thai[1]]
    rows = labels(*["x"] * len(prompts), prompts=prompts)
    assert near_duplicate()(rows) == [False, True, False, True, False, False]
    signs = labels("→", "←", "→", prompts=["?", "?", "?"])
    assert near_duplicate()(signs) == [False, False, True]


def test_duplicates_may_be_composed_otherwise_but_powers_are_none():
    rows = labels("a", "a", "a", "a", prompts=["é", "e\u0301", "x²", "x2"])
    assert duplicate(rows) == [False, True, False, False]


def test_filters_read_conversations_with_tools_and_parts():
    question = "the quick brown fox jumps over the lazy dog today"

    def talk(city, text, answer):
        call = {"function": {"name": "f", "arguments": f'{{"in": "{city}"}}'}}
        parts = [{"type": "text", "text": text}]
        return [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": parts[:0]},
        ], answer

    talks = [
        talk("Cork", "Shall I?", "Yes."),
        talk("Rome", "Shall I?", "Yes."),
        talk("Cork", "Shall I?", "Yes."),
        talk("Cork", question, None),
        talk(question, "Shall we?", "I'm sorry"),
    ]
    rows = [
        {"messages": list(messages), "answer": answer, "finish_reason": "stop"}
        for messages, answer in talks
    ]
    for name, find, expected in (
        ("duplicate", duplicate, [False, False, True, False, False]),
        ("contaminated", contaminated([question]), [False] * 3 + [True] * 2),
        ("empty", empty, [False] * 3 + [True, False]),
        ("refused", refused, [False] * 4 + [True]),
    ):
        made = filter_labels(Dataset.from_list(rows), {name: find})
        assert made.counts == {name: sum(expected)}, name
        assert find(Dataset.from_list(rows)) == expected, name
    assert near_duplicate()(Dataset.from_list(rows))[2:] == [True, False, False]
