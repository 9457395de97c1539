"""Questions with answers: files, projects, exams."""

import json

import pytest

from distill_helpers.course.verdict import score
from distill_helpers.data import DataError
from distill_helpers.labels import Action, Answer, Failure, LocalTeacher
from distill_helpers.tasks import questions
from distill_helpers.tasks.teachers import load_tiny_teacher


def test_questions_survive_their_file(tmp_path):
    prompts = ["a\nb", "c\u2028d", 'say "ü"']
    path = questions.write_questions(tmp_path / "deep" / "q.jsonl", prompts, ["1"] * 3)
    found = questions.read_questions(path)
    assert [messages[0]["content"] for messages in found["messages"]] == prompts
    assert found["answer"] == ["1"] * 3


def test_null_is_nothing(tmp_path):
    path = tmp_path / "q.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt": None, "messages": turns, "answer": None}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert questions.read_questions(path)["answer"][:] == ["b"]
    path.write_text('{"prompt": "x", "answer": null}', encoding="utf-8")
    assert len(questions.read_questions(path, answered=False)) == 1


def test_half_a_character_is_read_as_the_replacement_character(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [
        r'{"prompt": "a \ud83d", "answer": "b \udc26"}',
        r'{"messages": [{"role": "user", "content": "\ud83dx"}],'
        r' "answer": "\ud83d\udc26"}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = questions.read_questions(path)
    asked = [messages[0]["content"] for messages in found["messages"]]
    assert asked == ["a \ufffd", "\ufffdx"]
    assert found["answer"][:] == ["b \ufffd", "🐦"]
    # And it can be written.
    again = questions.write_questions(tmp_path / "w.jsonl", ["c \ud83d"], ["\udc26"])
    (row,) = questions.read_questions(again)
    assert (row["messages"][0]["content"], row["answer"]) == ("c \ufffd", "\ufffd")


def test_questions_need_no_answers_to_be_asked(tmp_path):
    path = questions.write_questions(tmp_path / "q.jsonl", ["a", "b"])
    assert questions.read_questions(path, answered=False)["answer"] == ["", ""]
    with pytest.raises(DataError, match=r'line 1 has no text under "answer"'):
        questions.read_questions(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "no .jsonl file"),
        ("a.jsonl", "", "holds no questions"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{', "line 2 is no JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is no JSON"),
        ("a.jsonl", "[1]", 'line 1 has no text under "prompt"'),
        ("a.jsonl", '{"prompt": 3, "answer": "b"}', "line 1 has no text"),
        ("a.jsonl", '{"prompt": "a", "answer": 3}', 'no text under "answer"'),
    ],
)
def test_a_bad_line_is_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        questions.read_questions(tmp_path / name)


def test_answers_pair_up_with_prompts(tmp_path):
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        questions.write_questions(tmp_path / "q.jsonl", ["a", "b"], ["1"])


def test_the_default_project_keeps_its_exam_apart(tmp_path):
    learn, exam = questions.gloss_project(tmp_path, learn=30, test=20)
    asked = questions.read_questions(learn)
    prompts = {messages[0]["content"] for messages in asked["messages"]}
    assert len(prompts) == 30
    assert not prompts & set(exam.prompts)
    assert {len(exam.prompts), len(exam.right), len(exam.teacher)} == {20}
    # The shipped teacher is right about seven times in eight.
    assert score(exam.teacher, exam.right).share > 0.7
    with pytest.raises(ValueError, match="together at most 4000"):
        questions.gloss_project(tmp_path, learn=3999, test=2)


def test_a_kind_is_found_in_whatever_form_it_is_named():
    said = ['{"kind": "food"}', "It is an Animal, not a plant.", "foodstuff", ""]
    assert questions.mentioned_kinds(said) == ["food", "animal", "", ""]
    assert questions.named_kinds(said) == ["food", "", "", ""]


def test_right_answers_are_of_the_questions_that_are_learned_from(tmp_path):
    learn, exam = questions.gloss_project(tmp_path, learn=30, test=20)
    right = questions.read_questions(
        questions.right_answers(tmp_path, learn=30, count=10)
    )
    asked = [row["messages"] for row in questions.read_questions(learn)]
    assert [row["messages"] for row in right] == asked[:10]
    kinds = {gloss.kind for gloss in questions.splits().pool}
    assert {row["answer"].strip() for row in right} <= kinds
    assert len(exam.told) == 20
    assert all("Choose one of" in told for told in exam.told)
    with pytest.raises(ValueError, match="count=31 must be between 1 and learn=30"):
        questions.right_answers(tmp_path, learn=30, count=31)


class Parrot(LocalTeacher):
    """Says what it was taught to say; where that is nothing, it fails."""

    def __init__(self, say, reason="stop"):
        super().__init__(*load_tiny_teacher("prose"))
        self.say, self.reason = say, reason

    def answers(self, take, concurrency):
        while (request := take()) is not None:
            text = self.say(request.messages[-1]["content"])
            failed = Failure("away", Action.SKIP)
            yield request, failed if text is None else Answer(text, self.reason, 1, 1)


def said(role, content):
    return {"role": role, "content": content}


def talks(path, *conversations, **more):
    rows = [{"messages": list(one), **more} for one in conversations]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


HELLO = (said("system", "Be kind."), said("user", "hello"), said("assistant", "hi"))
ASKED = (*HELLO, said("user", "1+1="))


def test_the_last_turn_of_a_conversation_is_the_answer(tmp_path):
    path = talks(tmp_path / "q.jsonl", [*ASKED, said("assistant", "2")], HELLO)
    found = questions.read_questions(path)
    assert [row["messages"] for row in found] == [[*ASKED], [*HELLO[:2]]]
    assert found["answer"][:] == ["2", "hi"]
    # What is to be asked may have no answer yet, or one that calls a tool.
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    path = talks(tmp_path / "u.jsonl", ASKED, [*ASKED, call])
    found = questions.read_questions(path, answered=False)
    assert [row["messages"] for row in found] == [[*ASKED]] * 2
    with pytest.raises(DataError, match=r"line 1 has no text .* last turn of the ass"):
        questions.read_questions(path)
    again = questions.write_questions(tmp_path / "a.jsonl", [ASKED], ["2"])
    (row,) = questions.read_questions(again)
    assert row == {"messages": [*ASKED], "answer": "2"}


@pytest.mark.parametrize(
    ("turns", "more", "message"),
    [
        ([said("assistant", "hi")], {}, 'line 1 .* no conversation under "messages"'),
        ([said("user", "a"), said("system", "b")], {"answer": "c"}, "line 1: .* last"),
        ([*HELLO], {"answer": "c"}, "line 1: .*assistant speaks last"),
        ([{"role": "user"}], {"answer": "c"}, "line 1: .*has no content"),
        ([*HELLO], {"tools": [{"type": "function"}]}, "line 1 has tools, and nobody"),
    ],
)
def test_a_bad_conversation_is_named(turns, more, message, tmp_path):
    with pytest.raises(DataError, match=message):
        questions.read_questions(talks(tmp_path / "q.jsonl", turns, **more))


def test_conversations_as_texts():
    tokenizer = load_tiny_teacher("prose").tokenizer
    given = ["as it is", ASKED]
    assert questions.as_texts(given) == [
        "as it is",
        "system: Be kind.\nuser: hello\nassistant: hi\nuser: 1+1=",
    ]
    with pytest.raises(ValueError, match=r"no chat template, .* conversations need"):
        questions.as_texts(given, tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] + m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    assert questions.as_texts(given, tokenizer) == [
        "as it is",
        "sBe kind.;uhello;ahi;u1+1=;a",
    ]


def test_a_teacher_can_be_asked_instead(tmp_path):
    def say(text):
        assert "Choose one of" in text
        return '```json\n{"kind": "food"}\n```' if len(text) % 2 else "no idea"

    learn, exam = questions.gloss_project(
        tmp_path, learn=12, test=5, teacher=Parrot(say)
    )
    assert set(questions.read_questions(learn)["answer"]) == {" food"}
    assert len(questions.read_questions(learn)) < 12
    assert set(exam.teacher) <= {"food", ""}


@pytest.fixture
def given(tmp_path):
    """Two questions to learn from, and one of an exam."""
    asked = questions.write_questions(tmp_path / "q.jsonl", ["1+1=", "1+2="])
    exam = questions.write_questions(tmp_path / "e.jsonl", ["2+2="], ["4"])
    return {"questions": asked, "exam": exam, "progress": False}


def test_a_project_of_ones_own(given, tmp_path):
    learn, read = questions.own_project(
        tmp_path, teacher=Parrot(lambda text: text.upper()), tell="sum: ", **given
    )
    rows = [json.loads(line) for line in learn.read_text().splitlines()]
    # The teacher is told; the student is not.
    assert rows[0] == {"prompt": "1+1=", "answer": "SUM: 1+1="}
    said, told = ("SUM: 2+2=",), ("sum: 2+2=",)
    assert read == questions.Exam(("2+2=",), ("4",), said, told)
    with pytest.raises(DataError, match="no whole answer"):
        questions.own_project(
            tmp_path / "cut", teacher=Parrot(str, reason="length"), **given
        )
    with pytest.raises(DataError, match="holds 1 of the questions"):
        questions.own_project(
            tmp_path, teacher=Parrot(str), **(given | {"questions": given["exam"]})
        )


class Listener(Parrot):
    """A chat model that answers with all that it was told."""

    def __init__(self):
        super().__init__(str)
        self.tokenizer.chat_template = (
            "{% for m in messages %}{{ m.content }}{% endfor %}"
        )

    def answers(self, take, concurrency):
        while (request := take()) is not None:
            heard = [f"{m['role'][0]}:{m['content']}" for m in request.messages]
            yield request, Answer("|".join(heard), "stop", 1, 1)


def test_a_project_of_conversations(tmp_path):
    other = (*HELLO[1:], ASKED[-1])  # the same last turn is not the same question
    exam = [*HELLO[:1], said("user", "2+2=")]
    given = {
        "questions": talks(tmp_path / "q.jsonl", ASKED, other),
        "exam": talks(tmp_path / "e.jsonl", [*exam, said("assistant", "4")]),
        "right": talks(tmp_path / "r.jsonl", [*ASKED, said("assistant", "2")]),
        "teacher": Listener(),
        "progress": False,
    }
    learn, read = questions.own_project(tmp_path, tell="sum", **given)
    rows = [json.loads(line) for line in learn.read_text().splitlines()]
    # What it tells is in the system prompt, which is made where there is none.
    assert rows == [
        {"messages": [*ASKED], "answer": "s:sum\n\nBe kind.|u:hello|a:hi|u:1+1="},
        {"messages": [*other], "answer": "s:sum|u:hello|a:hi|u:1+1="},
    ]
    told = [said("system", "sum\n\nBe kind."), said("user", "2+2=")]
    assert read == questions.Exam(
        (exam,), ("4",), ("s:sum\n\nBe kind.|u:2+2=",), (told,)
    )
    learn, _ = questions.own_project(tmp_path, **given)
    assert "s:Be kind.|u:hello" in learn.read_text()
    parts = [said("system", [{"type": "text", "text": "Be"}]), said("user", "a")]
    assert questions._told(parts, "sum")[0]["content"] == [
        {"type": "text", "text": "sum"},
        {"type": "text", "text": "Be"},
    ]


@pytest.mark.parametrize("name", ["questions", "exam", "right"])
def test_conversations_among_prompts_are_refused(name, given, tmp_path):
    row = {"prompt": "3+3=", "answer": "6"}
    right = tmp_path / "r.jsonl"
    right.write_text(json.dumps(row) + "\n")
    given = given | {"right": right, "teacher": Parrot(pytest.fail)}
    with given[name].open("a") as file:
        file.write(json.dumps({"messages": [*HELLO]}) + "\n")
    with pytest.raises(DataError, match=r"some rows have messages and others a pro"):
        questions.own_project(tmp_path, **given)


def test_right_answers_to_the_exam_are_refused(given, tmp_path):
    given |= {"right": given["exam"], "teacher": Parrot(pytest.fail)}
    with pytest.raises(DataError, match=r"holds 1 of the questions .*'2\+2='"):
        questions.own_project(tmp_path, **given)


def test_an_exam_that_was_not_taken_is_not_one_that_was_failed(given, tmp_path):
    heard = []

    def say(text):
        heard.append(text)
        return None if text == "2+2=" and heard.count(text) == 1 else "4"

    with pytest.raises(DataError, match=r"not answered 1 of the 1 .*e\.jsonl; call"):
        questions.own_project(tmp_path, teacher=Parrot(say), **given)
    _, exam = questions.own_project(tmp_path, teacher=Parrot(say), **given)
    assert exam.teacher == ("4",)
    # What was answered at first was not asked again.
    assert sorted(heard) == ["1+1=", "1+2=", "2+2=", "2+2="]


def test_a_budget_that_admits_nothing_is_said(given, tmp_path):
    with pytest.raises(DataError, match="larger max_cost or max_total_tokens"):
        questions.own_project(
            tmp_path, teacher=Parrot(str), max_total_tokens=1, **given
        )


def test_gaps_in_the_exam_of_the_default_project_are_refused(tmp_path):
    with pytest.raises(
        DataError, match="not answered 3 of the 3 questions of the exam"
    ):
        questions.gloss_project(
            tmp_path, learn=2, test=3, teacher=Parrot(lambda _: None)
        )


def test_in_the_exam_a_cut_off_answer_counts_as_it_stands(given, tmp_path):
    def say(text):
        teacher.reason = "length" if text == "2+2=" else "stop"
        return "4"

    teacher = Parrot(say)
    _, exam = questions.own_project(tmp_path, teacher=teacher, **given)
    assert score(exam.teacher, exam.right).hits == (True,)


def test_what_other_servers_call_a_whole_answer_is_one(given, tmp_path):
    teacher = Parrot(lambda _: "4", reason="end_turn")
    learn, _ = questions.own_project(tmp_path, teacher=teacher, **given)
    assert questions.read_questions(learn)["answer"] == ["4", "4"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [("animal", True), (" person ", True), ("time", False), ("beast", None)],
)
def test_is_living(answer, found):
    assert questions.is_living(answer) is found
