# %%
import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from distill_helpers import get_profile
from distill_helpers.course import plots

plots.use_style()
profile = get_profile(PROFILE)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# The sizes of this lesson:

# %%
ours = profile.pick(
    smoke=("tiny-prose", "pruned:2", "tiny-prose"),
    cpu=("packaged", "pruned:8", "packaged"),
    gpu=(
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-0.5B",
        "Qwen/Qwen2.5-0.5B-Instruct",
    ),
)
sizes = profile.pick(
    smoke={"learn": 60, "test": 40},
    cpu={"learn": 3200, "test": 800},
    gpu={"learn": 3200, "test": 800},
)
right_count = profile.pick(smoke=20, cpu=600, gpu=600)
prompted_count = profile.pick(smoke=4, cpu=60, gpu=800)
passes = profile.pick(smoke=0.1, cpu=1.2, gpu=3.0)
batch_size = profile.pick(smoke=2, cpu=8, gpu=8)
timed = profile.pick(
    smoke={"questions": 4, "rounds": 2},
    cpu={"questions": 48, "rounds": 4},
    gpu={"questions": 256, "rounds": 8},
)
served_count = profile.pick(smoke=4, cpu=800, gpu=800)

# %% [markdown]
# ## Your project, on one page
#
# This lesson is yours. The cell below is a form. As it stands, it describes a project of
# ours, on the course's data. Fill in your own names and files, run everything again, and
# all that follows is about your student.
#
# | name | what to write there |
# |---|---|
# | `QUESTIONS` | a `.jsonl` file, one `{"prompt": …}` a line, or one `{"messages": …}`; empty: our glosses |
# | `EXAM` | another one, with the right `answer` too, written by a person |
# | `RIGHT` | a third one like it, to learn from, if you have it: for a rival |
# | `TELL` | what the teacher reads right before each prompt (end it with a blank), or in its system prompt |
# | `TEACHER` | `packaged`, a folder, a name on the model hub, or `api:MODEL@https://…/v1`; its key comes from `OPENAI_API_KEY` |
# | `STUDENT` | `pruned:8`, `fresh:2x96`, a folder, or a name on the hub |
# | `LEARN_FROM` | `text`: the teacher's answers; `soft`: also its probabilities at each of their tokens |
# | `READY_MADE` | a small model that somebody else made, as a rival; or empty |
# | `ANSWER_TOKENS` | the longest answer; what is cut off is not learned |
# | `LENGTH` | tokens of a row: a question with its answer must fit, or is left out |
# | `SCORE_BY` | `exact`, `number`, `json:FIELD`, or a function: of a text, what counts; `None` if nothing does |
# | `LEARNING_RATE` | 0: a high one for what was cut or is fresh, a low one for a whole model |
# | `BAR` | the least score and speed, and the most bytes, next to the teacher's |
# | `LICENCE` | what the student may be passed on under |
# | `FOLDER`, `DRIVE` | where everything is kept; a new folder for every new project |
# | `PUSH_TO` | `owner/name` on the model hub; empty: nothing leaves this machine |

# %%
QUESTIONS, EXAM, RIGHT, TELL = "", "", "", ""
TEACHER, STUDENT, READY_MADE = ours
LEARN_FROM = "text"
ANSWER_TOKENS, LENGTH, SCORE_BY = 64, 128, "exact"
LEARNING_RATE = 0.0
BAR = {"min_score": 0.95, "min_speed": 2.0, "max_bytes": 0.5}
LICENCE, FOLDER, DRIVE, PUSH_TO = "", "", "", ""

# %% [markdown]
# Which tasks fit? Those with answers that can be checked: a kind, a number, a field, a
# short text. End your prompts with what the answer should follow, such as a line
# `Answer:`. The student may have another tokenizer; to be served below it must be of type `llama` or
# `qwen2`. With a teacher behind an API the student must be a folder or a name on the hub, for there is nothing to cut it from. Text is then
# all that there is to learn from.
#
# A question may also be a **conversation**, in all your files: a list of `messages`, with
# a system prompt or without, up to the user's turn that asks. The right answer is the
# assistant's turn behind it. Teacher and student read conversations in their own chat
# templates. A system prompt in your files is read by both, what `TELL` says by the teacher
# alone.
#
# ## Say first what would be worth it
#
# A student is a second model to train, test, store and look after. What must it achieve
# before you prefer it to the teacher? Say so before you measure, or every result will
# look like a success. That is `BAR` in the form.

# %%
print(f"at least {BAR['min_score']:.0%} of the teacher's score")
print(f"at least {BAR['min_speed']:g} times its speed")
print(f"at most {BAR['max_bytes']:.0%} of its bytes, at equal precision")

# %% [markdown]
# Equal precision, because bytes are also saved by storing the *teacher* in fewer bits,
# which needs no training and can be done to the student too.
#
# ## The task
#
# An application has to know one thing about a noun: is it a **living thing**, or not? The
# answers come from SmolLM2 after it had learned in lesson 05 to sort glosses into twelve
# kinds. Three of them live: animal, person and plant. So the student learns to name the
# kind, and the application looks whether that kind lives.
#
# These answers ship with the course, and cost nothing. On a GPU, or with a teacher or
# questions of your own, the teacher is asked now. That is `write_labels` from lesson 05: it
# can be interrupted. `own_project` takes its `max_total_tokens`, a budget.

# %%
from distill_helpers.cli.runs import API, resolve_teacher, resolve_writer
from distill_helpers.machine import drive_folder

behind_api = TEACHER.startswith(API)
if (QUESTIONS or behind_api) and not (FOLDER or DRIVE):
    raise ValueError("set FOLDER or DRIVE: answers that you pay for are kept")
if behind_api and STUDENT.startswith(("pruned:", "fresh:")):
    raise ValueError("a teacher behind an API needs a STUDENT that is whole")
if LEARN_FROM not in ("text", "soft"):
    raise ValueError("LEARN_FROM must be text or soft")
is_soft = LEARN_FROM == "soft"
if is_soft and (behind_api or not QUESTIONS):
    raise ValueError("soft needs QUESTIONS, and a teacher loaded here")
home = drive_folder(DRIVE) if DRIVE else Path(FOLDER or work).absolute()
home.mkdir(parents=True, exist_ok=True)
teacher = None if behind_api else resolve_teacher(TEACHER, profile)
writer = resolve_writer(TEACHER, profile, licence=LICENCE, loaded=teacher)

# %%
from distill_helpers.tasks import questions as tasks

stored = ours[0] == TEACHER and profile.name != "gpu"
if QUESTIONS:
    learn, exam = tasks.own_project(
        home,
        questions=QUESTIONS,
        exam=EXAM,
        right=RIGHT,
        teacher=writer,
        tell=TELL,
        max_new_tokens=ANSWER_TOKENS,
    )
else:
    learn, exam = tasks.gloss_project(
        home, teacher=None if stored else writer, **sizes
    )
    right_file = tasks.right_answers(
        home, learn=sizes["learn"], count=right_count
    )

# %% [markdown]
# Look at what the student will learn from: would you have answered so?

# %%
lines = learn.read_text(encoding="utf-8").splitlines()
rows = [json.loads(line) for line in lines]
asked = [row.get("prompt") or row["messages"] for row in rows]
for question, row in zip(tasks.as_texts(asked[:3]), rows, strict=False):
    print(question + row["answer"], end="\n\n")

# %%
asked_for = (
    len(tasks.read_questions(QUESTIONS, answered=False))
    if QUESTIONS
    else sizes["learn"]
)
print(f"{len(rows):,} to learn from; {asked_for - len(rows)} were lost")
print(f"{len(exam.prompts):,} in the exam")

# %% [markdown]
# *Lost* are answers that were empty, cut off, or no kind at all. What `TELL` says is read
# by the teacher alone; the student learns to do without it, as in lesson 05. If your
# teacher's answers are poor, stop here: without a checker, no student will repair them.
#
# What counts of an answer? For the glosses it is whether the kind lives. For questions of
# your own it is what `SCORE_BY` says.

# %%
from distill_helpers.course.verdict import reader_of

if not QUESTIONS:
    read = tasks.is_living
else:
    read = reader_of(SCORE_BY) if isinstance(SCORE_BY, str) else SCORE_BY
for text in exam.teacher[:3]:
    print(f"{text!r} counts as {read(text)!r}")

# %% [markdown]
# ## One file that describes the run
#
# The numbers of a run belong in a file, not into cells: then the command line, and you in a year,
# can run the same again. How many steps? That follows from
# how often the answers are to be read.

# %%
from distill_helpers.cli.configs import TrainOptions, write_config
from distill_helpers.cli.runs import build_trainer, resolve_student

untrained, tokenizer = resolve_student(STUDENT, teacher, profile, seed=0)
pairs = zip(tasks.as_texts(asked, tokenizer), rows, strict=True)
texts = [question + row["answer"] for question, row in pairs]
tokens = sum(map(len, tokenizer(texts)["input_ids"])) + len(rows)
per_step = batch_size * (tokens // len(rows) if is_soft else LENGTH)
steps = max(4, round(passes * tokens / per_step))
print(f"{tokens:,} tokens, {per_step:,} in a step: {steps} steps")

# %%
kind = "soft" if is_soft else "hard"
is_small = STUDENT.startswith(("pruned:", "fresh:"))
options = TrainOptions(
    teacher="packaged" if behind_api else TEACHER,
    student=STUDENT,
    answers=str(learn),
    told=str(home / "told.jsonl") if is_soft else "",
    plain_prompts=isinstance(asked[0], str),
    length=LENGTH,
    batch_size=batch_size,
    steps=steps,
    save_steps=max(2, steps // 2),
    learning_rate=LEARNING_RATE or (1e-3 if is_small else 2e-5),
    output=str(home / "run"),
    profile=profile.name,
)
config = write_config(options, home / "run.json")

# %% [markdown]
# `plain_prompts`: the student reads a prompt as it is. The teacher's chat template puts a
# system message before each question, more tokens than the question itself. The student
# is trained for one task and needs none of it. Conversations need a template, to say who
# speaks.
#
# `told`, for `LEARN_FROM = "soft"`: the same answers behind what the teacher read, `TELL`
# included. There the teacher gives its probabilities, and the student learns them behind
# its own prompt. With another tokenizer the two are compared where their tokens begin
# together; elsewhere the text is the label. That is `pieces` of lesson 10. Such rows hold
# one answer each, and the teacher stays in memory: read below whether it fits.
#
# Before the long cell: does it fit, how long will it take?

# %%
from distill_helpers import plan

writer = None
if not is_soft:
    teacher = None  # it has said what it had to say
planned = plan(
    (teacher.model if is_soft else None, untrained),
    method=kind,
    packed=not is_soft,
    length=LENGTH,
    batch_size=options.batch_size,
    steps=steps,
    resident=[untrained],
)
print(planned)

# %% [markdown]
# With text, the teacher's memory is free for the training; later it is loaded once more,
# to be timed. What stays is the untrained student, which is a rival.

# %% [markdown]
# ## Exercise 1 · From which checkpoint?
#
# *easy · the highest number is not always the right one · 5 minutes*
#
# Runtimes disconnect, laptops sleep, batteries end. A run that cannot be continued will
# be lost one day. Write `resume_step(checkpoints)`: `checkpoints` is a list of `(step,
# complete)`, in any order. Return the step to go on from; 0 if there is nothing to go on
# from.
#
# By hand: `[(100, True), (300, False), (200, True)]` gives 200. The run died while it
# wrote number 300.

# %% tags=["exercise"]
from distill_helpers.course import checks


def resume_step(checkpoints):
    return None  # your code here


resume_at = checks.resume_step(resume_step, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Look at the complete ones alone, and compare numbers. `max` takes a `default`.

# %% [markdown] tags=["hint"] title="By hand it works, but the check says no"
# In the example, the step to go on from happens to stand last. Shuffle the list: the
# answer must not change. Then try a list in which nothing is complete, and an empty
# one. And are your steps still numbers? As text, 90 comes after 100.

# %% tags=["solution"]
from distill_helpers.course import checks


def resume_step(checkpoints):
    return max((step for step, complete in checkpoints if complete), default=0)


resume_at = checks.resume_step(resume_step, fallback=True)

# %% [markdown]
# ## Train, with an accident
#
# You need not wait for the day when a run is lost: cause it now. Half-way the run is torn
# off, as if the connection had been lost. To make it worse, an empty folder is left
# behind, as by a run that dies while it writes its next checkpoint. Then a new trainer
# takes over.
#
# **Predict:** will the loss show where it happened?

# %%
from distill_helpers.course.project import StopAfter

began = time.perf_counter()
lost = StopAfter(steps // 2 + 1)
trainer = build_trainer(kind, options, teacher=teacher, callbacks=[lost])
trainer.train(resume_from_checkpoint=True)
before = trainer.state.global_step
trainer = None  # its memory is free again

# %%
run = home / "run"
(run / f"checkpoint-{before + 1}").mkdir(exist_ok=True)
found = [
    (int(path.name.split("-")[1]), (path / "trainer_state.json").exists())
    for path in run.glob("checkpoint-*")
]
print("checkpoints:", sorted(found))
print("torn off at step", before, "- go on from", resume_at(found))

# %%
trainer = build_trainer(kind, options, teacher=teacher)
trainer.train(resume_from_checkpoint=True)
minutes = (time.perf_counter() - began) / 60
print(f"minutes: planned {planned.minutes:.1f}, taken {minutes:.1f}")

# %%
log = [one for one in trainer.state.log_history if "loss" in one]
fig, ax = plt.subplots(figsize=(6.5, 2.6))
# The first is untrained. The first after the line is a mean of fewer steps.
points = [(entry["step"], entry["loss"]) for entry in log]
ax.plot(*zip(*points[1:], strict=True), "o-", ms=4, color=plots.STUDENT)
ax.axvline(resume_at(found), color="0.4", ls="--")
top = {"transform": ax.get_xaxis_transform(), "va": "top", "color": "0.4"}
ax.text(resume_at(found) + 1, 0.95, "resumed", **top)
ax.set_yscale("log")
ax.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
ax.minorticks_off()
ax.set_xlabel("step")
ax.set_ylabel("loss (nats per token)")
ax.set_title("Torn off and resumed: the run goes on")
plt.show()

# %% [markdown]
# Each point is the mean of some steps; the first behind the line is of fewer, and may jump. The last
# fall is text read a second time, at a falling learning rate. That the run is unharmed no curve can prove. A checkpoint holds more than the
# weights: the optimizer's averages, where the learning rate stood, the random state and the
# place in the data. A test of the package checks that a resumed run ends with the very
# weights of an undisturbed one.
#
# Our trainers skip a checkpoint that is not whole. A plain `Trainer` told `True` takes the
# highest number: give it the folder's name. The time above counts what was run today.
#
# ## Save, and load again
#
# What you judge should be what you ship: the files, read anew, in the precision in which
# they will be used.

# %%
from distill_helpers import generate, load_model

shipped = home / "student"
trained = trainer.model.to(profile.teacher_dtype).eval()
trained.save_pretrained(shipped)
trainer.processing_class.save_pretrained(shipped)
few = tasks.as_texts(exam.prompts[:20], tokenizer)
first = generate(trained, tokenizer, few, max_new_tokens=8)

# %%
trainer = trained = teacher = None  # from here on the files count
student = load_model(
    shipped, dtype=profile.teacher_dtype, device=profile.device, frozen=True
)
second = generate(*student, few, max_new_tokens=8)
print("the same answers before and after:", first == second)

# %%
taught = [row["answer"].strip() for row in rows]
longest = max(map(len, tokenizer(taught)["input_ids"])) + 2
exam_texts = tasks.as_texts(exam.prompts, tokenizer)  # as the student reads


def answers_of(model, tokenizer):
    """Greedy answers to the whole exam."""
    limits = {"max_new_tokens": longest, "batch_size": 100}
    return generate(model, tokenizer, exam_texts, **limits)


# %% [markdown]
# ## The rivals
#
# A score says little alone. Compare the student with what you could use instead:
#
# * **the commonest answer**, always;
# * **word counts**, naive Bayes on what the student learned from: no network;
# * **before training**: the student as it was;
# * **right answers alone**: the same student, the same steps, on a few hundred answers by
#   people. None is in the exam. Our teacher had learned from as many, of other glosses; this rival
#   reads its few more often;
# * **the ready-made model, prompted**: no training at all, but a longer prompt;
# * **the teacher**, the one to come near.

# %%
answers = {}
common = Counter(map(read, taught)).most_common(1)[0][0]
often = next(text for text in taught if read(text) == common)
answers["commonest answer"] = [often] * len(exam.prompts)

# %%
from distill_helpers.course.verdict import WordCounts

# With answers of your own, one text for each thing that counts.
texts_of = {read(text): text for text in taught}
classes = [texts_of[read(text)] for text in taught] if QUESTIONS else taught
counts = WordCounts(tasks.as_texts(asked), classes)
shown = tasks.as_texts(exam.prompts)
answers["word counts"] = [counts.answer(question) for question in shown]
answers["before training"] = answers_of(untrained, student.tokenizer)

# %% [markdown]
# The rival that is most often forgotten costs a whole training:

# %%
right_answers = RIGHT if QUESTIONS else str(right_file)
if right_answers:
    alone = replace(
        options,
        answers=right_answers,
        told="",
        output=str(home / "run_right"),
    )
    rival = build_trainer("hard", alone)
    rival.train(resume_from_checkpoint=True)
    rival.model.eval()
    answers["right answers alone"] = answers_of(rival.model, student.tokenizer)
    rival = None

# %% [markdown]
# Most teams take a small model that somebody else has made. Here it is the public model, told
# the task in its prompt. It reads far more tokens for every question, so only a part of the
# exam is asked.

# %%
from distill_helpers.labels import write_labels

prompted = list(exam.told[:prompted_count])
twice = QUESTIONS and READY_MADE == TEACHER  # then it is the teacher itself
replies = []
if READY_MADE and not twice:
    labels = write_labels(
        resolve_writer(READY_MADE, profile),
        prompted,
        home / "prompted.jsonl",
        max_new_tokens=ANSWER_TOKENS if QUESTIONS else 24,
        progress=False,
    )
    replies = list(labels["answer"])
    answers["ready-made, prompted"] = (
        replies if QUESTIONS else tasks.mentioned_kinds(replies)
    )

# %%
for reply in replies[:3]:
    print(repr(reply))
if replies:
    silent = answers["ready-made, prompted"].count("")
    print(f"{silent} of {len(replies)} replies name nothing that counts")
answers["student"] = answers_of(*student)
answers["teacher"] = list(exam.teacher)

# %% [markdown]
# **Predict:** how far does counting words get? And who is best: the student of many
# answers by a teacher, or of few by people?

# %%
from distill_helpers.course.verdict import score

scores = {
    name: score(texts, exam.right[: len(texts)], read=read)
    for name, texts in answers.items()
}
for name, found_score in scores.items():
    print(f"{name:21} {found_score}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.2))
colors = {"student": plots.STUDENT, "teacher": plots.TEACHER}
for place, (name, found_score) in enumerate(scores.items()):
    s = found_score.interval
    ax.barh(place, 100 * s.mean, color=colors.get(name, plots.PALE))
    ax.plot([100 * s.low, 100 * s.high], [place, place], color="k")
    ax.text(100 * s.high + 1, place, f"{100 * s.mean:.0f}", va="center")
ax.set_yticks(range(len(scores)), list(scores))
ax.invert_yaxis()
ax.set_xlim(0, 108)
ax.set_xlabel("right, percent of what was asked; lines are 95 % intervals")
ax.set_title("The student, its teacher and the rivals")
plt.show()

# %% [markdown]
# *Before training* the student writes no usable text: it was cut and not yet trained. The
# ready-made model was told what is wanted; a reply that names no kind counts as wrong, and so does
# a wrong kind. So this prompt does not work; a yes-or-no question might.
# You have read three of its replies. If word counts come near your student, ship the word
# counts. And look at *right answers alone*: is it the teacher that you need, or people for
# an afternoon?
#
# The bar asks for the student's score *as a share of the teacher's*. Both answered the
# same questions, and what is hard for one is often hard for the other. So the interval
# comes from drawing questions anew, each with both its answers: a *paired bootstrap*.

# %%
from distill_helpers.course.verdict import score_ratio

share = score_ratio(scores["student"], scores["teacher"])
for name in ("teacher", "right answers alone", "word counts"):
    if name in scores and any(scores[name].hits):
        over = score_ratio(scores["student"], scores[name])
        print(f"student / {name:20} {over.mean:6.1%}", end=" ")
        print(f"({over.low:.1%} to {over.high:.1%})")
wrong = {who: 1 - scores[who].interval.mean for who in ("student", "teacher")}
if wrong["teacher"]:
    times = wrong["student"] / wrong["teacher"]
    print(f"the student errs {times:.1f} times as often as its teacher")

# %% [markdown]
# A share flatters: the commonest answer alone has a large share of the teacher's score, too. Set
# `min_score` by the errors that you can bear. And the intervals know of other questions, not of other trainings: each student was trained
# once.
#
# ## Speed and bytes
#
# A stopwatch is easily fooled. The first call is slow, a busy machine slows down in the
# middle, and a model that stops early looks fast. So both models read the same text,
# write the same number of tokens, in turns, and the first turn is not counted.
#
# **Predict:** how many times as fast is the student?

# %%
from distill_helpers.course.verdict import compare_speed

untrained = speed = None
if not behind_api:
    teacher = resolve_teacher(TEACHER, profile)
    speed = compare_speed(
        student,
        teacher,
        exam.prompts[: timed["questions"]],
        rounds=timed["rounds"],
        new_tokens=longest,
    )
    turns = {"student": speed.student, "teacher": speed.teacher}
    for name, rates in turns.items():
        print(f"{name}: {sum(rates) / len(rates):6.1f} answers a second")
    ratio = speed.ratio
    print(f"{ratio.mean:.1f} times ({ratio.low:.1f} to {ratio.high:.1f})")

# %%
from distill_helpers.course.verdict import footprint

pair = {"student": student, "teacher": teacher}
bytes_of = {}
for name, loaded in pair.items():
    if loaded is not None:
        one = footprint(loaded.model, dtype=torch.bfloat16)
        batch = one.memory(texts=32, tokens=64) / 2**20
        print(
            f"{name}: {one.parameters / 1e6:6.1f} million parameters", end=", "
        )
        print(
            f"{one.weights / 2**20:5.0f} MiB, answering 32: {batch:5.0f} MiB"
        )
        bytes_of[name] = one.weights

# %% [markdown]
# While a model writes, it also keeps *keys and values* of every token so far, for every
# text in the batch. The last number adds them to the weights. The teacher that we time has
# the shape of the one that labelled, and reads the short prompt, not its own long one.
#
# ## Exercise 2 · A verdict that knows what it does not know
#
# *medium · the mean is not the verdict · 10 minutes*
#
# Write `reaches(low, high, bar)`: `low` and `high` are the ends of an interval. Return 1
# if it reaches the bar as a whole, −1 if it misses it as a whole, and 0 if that is
# undecided.

# %% [markdown] tags=["given"]
# By hand, for a bar of 0.95: the interval from 0.96 to 0.99 gives 1, from 0.90 to 0.94
# gives −1, from 0.94 to 0.97 gives 0. An end that lies exactly at the bar reaches it.


# %% tags=["exercise"]
def reaches(low, high, bar):
    return None  # your code here


is_reached = checks.reaches(reaches, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# The low end decides for 1, the high end for −1. The middle has no say.

# %% [markdown] tags=["hint"] title="I never get 0"
# Then you ask only one question, and there are two, one for each end: does the low end
# reach the bar? Does the high end miss it? If both say no, it is undecided. An end that
# lies exactly at the bar reaches it, and does not miss it.


# %% tags=["solution"]
def reaches(low, high, bar):
    if low >= bar:
        return 1
    return -1 if high < bar else 0


is_reached = checks.reaches(reaches, fallback=True)

# %% [markdown]
# ## The verdict
#
# **Predict:** worth having, not worth having, or undecided?

# %%
said = {1: "reached", 0: "undecided", -1: "missed"}
print("score:", said[is_reached(share.low, share.high, BAR["min_score"])])
if speed is not None:
    print("speed:", said[is_reached(ratio.low, ratio.high, BAR["min_speed"])])
    lighter = bytes_of["student"] / bytes_of["teacher"]
    print("bytes:", "reached" if lighter <= BAR["max_bytes"] else "missed")

# %%
from distill_helpers.course.verdict import judge_student

task = home.name if QUESTIONS else "living or not"
verdict = "judged by its score alone: the teacher is behind an API"
if speed is not None:
    measures = {"speed": ratio, "size": lighter, **BAR}
    verdict = judge_student(task, score=share, **measures)
print(verdict)

# %% [markdown]
# The line is computed from what was measured. *Undecided* means that an interval lies
# across the bar. That is not a yes. Keep the teacher until more questions have settled it.
# Another student needs a fresh exam, or in the end one passes by luck. So choose settings on
# other questions, and open the exam once.
#
# One student, two tasks. It learned to name twelve kinds, and the application asks only
# whether it lives. What if somebody takes the same student and asks for the kinds?
# **Predict** before you run.

# %%
wider = None
if not QUESTIONS and speed is not None:
    kinds = [score(answers[who], exam.right) for who in ("student", "teacher")]
    print("student", kinds[0], "\nteacher", kinds[1])
    wider = judge_student("exact kind", score=score_ratio(*kinds), **measures)
    print(wider)

# %% [markdown]
# Same weights, same speed, same bytes. A student can be worth having for a narrow task while a wider
# one stays open, and its size does not tell you.
#
# ## Exercise 3 · When does it pay off?
#
# *medium · the sum that is done too late · 10 minutes*
#
# Distilling costs once, answering costs each time. Write `break_even(once, teacher,
# student)`: `once` is what distilling costs in all, `teacher` and `student` what one
# answer of each costs. After how many answers has the student cost no more than the
# teacher would have? Give a number, not rounded; `math.inf` if a student's answer is not
# cheaper.
#
# By hand: 100 once, 3 for an answer of the teacher, 1 for one of the student: after 50
# answers both have cost 150.

# %% tags=["exercise"]
import math


def break_even(once, teacher, student):
    return None  # your code here


paid_after = checks.break_even(break_even, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Each answer saves the difference. What if there is none?

# %% [markdown] tags=["hint"] title="I get something negative, or a ZeroDivisionError"
# Before you divide, look at a student that costs as much as its teacher, and at one that
# costs more: neither ever pays for itself. If the example by hand gives less than 50, look
# at what one answer saves: the student's answers are cheaper, not free.

# %% tags=["solution"]
import math


def break_even(once, teacher, student):
    if student >= teacher:
        return math.inf
    return once / (teacher - student)


paid_after = checks.break_even(break_even, fallback=True)

# %%
if speed is not None:
    each = {name: len(rates) / sum(rates) for name, rates in turns.items()}
    once = len(rows) * each["teacher"] + 60 * minutes
    needed = paid_after(once, each["teacher"], each["student"])
    print(f"made in about {once / 60:.1f} minutes: training, and labels")
    print(f"it has paid after {needed:,.0f} answers, on this machine")

# %% [markdown]
# The labels are priced at the speed that we timed. Your own hours, and training before a disconnect,
# are not in it yet, nor what the teacher once learned: add them to `once`. With a teacher behind an
# API, call `paid_after` with its price for an answer, and the rent that your server needs for one.
#
# ## Serve it
#
# A student is of use when something can ask it. `export_gguf` writes one GGUF file with
# weights, tokenizer and settings, which llama.cpp, Ollama and LM Studio read. Two
# precisions: 16 bits, and 8 bits, about half as large.

# %%
from distill_helpers import export_gguf

files = {}
for precision in ("f16", "q8_0"):
    file = shipped / f"student-{precision}.gguf"
    files[precision] = export_gguf(*student, file, precision=precision)
    print(f"{precision}: {file.stat().st_size / 2**20:.0f} MiB")

# %% [markdown]
# Now start a real server on this machine, and ask it the exam. **Predict:** in how many
# answers will the served student differ from the one that you judged?

# %%
from distill_helpers.course.local_server import complete, serve_gguf

some, served = list(exam.prompts[:served_count]), {}
most = longest + max(map(len, tokenizer(exam_texts)["input_ids"]))
for precision, file in files.items():
    with serve_gguf(file, context=max(1024, most)) as url:
        replies = complete(url, some, max_new_tokens=longest)
    mine = answers["student"][:served_count]
    pairs = zip(replies, mine, strict=True)
    same = sum(a.strip() == b.strip() for a, b in pairs)
    right = str(score(replies, exam.right[: len(some)], read=read)).strip()
    told = f"{right}; {same} of {len(some)} answers the same"
    served[f"served, {precision}"] = told
    print(f"{precision}: {told}")

# %%
for question, reply, own in zip(shown, replies, mine, strict=False):
    if reply.strip() != own.strip():
        print(f"{question}\n  judged {own!r}, served {reply!r}")

# %% [markdown]
# Those that differ were probably nearly tied, and rounding has decided. What you ship is this
# file, so its own score goes onto the card. The speed in the verdict is PyTorch's; a server
# has another.
#
# ## A model card
#
# A **model card** (Mitchell et al. 2019) says what a model is, what went in and under which
# licences, what was measured, what it cannot do, and how to ask it. Ours is written from
# the records of this run, so that no number is copied by hand. What the student wrote is
# escaped, so that a browser cannot run it.

# %%
from distill_helpers.course.model_card import ModelCard, write_card
from distill_helpers.course.project import origins, teacher_name

# %%
all_ours = ours[:2] == (TEACHER, STUDENT) and not QUESTIONS
licence = LICENCE or ("apache-2.0" if all_ours else "other")
known = "apache-2.0" if ours[0] == TEACHER else "look it up"
went_in = {"teacher": (known, teacher_name(TEACHER, profile))}
if not is_small:
    went_in["student"] = ("look it up", teacher_name(STUDENT, profile))
if QUESTIONS:
    went_in[Path(QUESTIONS).name] = ("yours: say which", "yours: say where")
else:
    went_in |= origins(["wordnet_glosses.jsonl"])
    went_in |= origins(["gloss_labels.jsonl"]) if stored else {}

# %%
measured = {f"right, {name}": str(one).strip() for name, one in scores.items()}
measured["verdict"] = str(verdict)
if wider is not None:
    measured["on a wider task"] = str(wider)
measured |= served

# %%
limits = [
    "It was judged on one exam, from the source that it learned from.",
    "It repeats its teacher's mistakes, and answers any question at all.",
]
if stored and not QUESTIONS:
    limits.append(
        "The answers that it learned are of SmolLM2-135M-Instruct after it "
        "was fine-tuned on glosses; nobody gets them from the public model."
    )

# %%
how = "the teacher's probabilities" if is_soft else "cross-entropy"
start = {"pruned": "Its teacher, cut", "fresh": "A fresh model"}.get(
    STUDENT.partition(":")[0], teacher_name(STUDENT, profile)
)
start += f" ({STUDENT})" if is_small else ""
begun_with = TEACHER if STUDENT.startswith("pruned:") else STUDENT

# %%
summary = "Answers short prompts like those below."
if not QUESTIONS:
    summary = (
        "Reads the gloss of a noun and writes its kind, one of "
        f"{', '.join(sorted(set(taught)))}. An answer below is right if it "
        "says rightly whether that kind lives: animal, person or plant."
    )
card = ModelCard(
    name=f"{task}, a distilled student",
    summary=summary,
    teacher=teacher_name(TEACHER, profile),
    licence=licence,
    licences={name: facts[0] for name, facts in went_in.items()},
    origins={name: facts[1] for name, facts in went_in.items()},
    method=f"Labels: {kind}. {start}, trained on {len(rows):,} answers of "
    f"its teacher, by {how}.",
    options={"steps": steps, "learning rate": options.learning_rate},
    results=measured,
    limits=limits,
    examples=list(zip(shown, answers["student"], strict=True))[:3],
    prompt=exam.prompts[0],
    answer_tokens=longest,
    base=teacher_name(begun_with, profile),
)
print(write_card(card, shipped).read_text())

# %% [markdown]
# ## Push it, or not
#
# With `PUSH_TO` set, the folder goes to the model hub, as a private repository at first.
# The token comes from `HF_TOKEN`, from Colab's secrets or from `hf auth login`; it is
# never part of a notebook. Read the card once more before.

# %%
from distill_helpers.course.project import push_folder

print(*sorted(path.name for path in shipped.iterdir()), sep="\n")
if PUSH_TO:
    print(push_folder(shipped, PUSH_TO, private=True))

# %% [markdown]
# ## The same, without a notebook
#
# The training stands in one file, and the command line reads it. With several GPUs,
# `accelerate launch` starts one process for each. In a terminal, in `FOLDER`, with `soft`
# for `hard` if you chose so:
#
# ```sh
# distill train hard --config run.json
# # or, with several GPUs:
# accelerate launch -m distill_helpers train hard --config run.json
# distill evaluate --model run --answers judged.jsonl
# distill export --model run --output student.gguf
# ```
#
# `evaluate` counts answers that are right word by word. For the glosses that is the exact
# kind, the second of the two verdicts.

# %%
from distill_helpers.machine import flush_drive

tasks.write_questions(home / "judged.jsonl", exam.prompts, exam.right)
print(config.read_text().replace(str(work), "…"))
if DRIVE:
    flush_drive()  # the last thing that the folder is needed for

# %% [markdown]
# ## Your project
#
# Fill in the form, write your bar, and hand in the card with this page:
#
# | question | yes? |
# |---|---|
# | Was the exam written first, by people, and kept apart? | |
# | Was the bar said before anything was measured? | |
# | Did you read fifty of the teacher's answers? | |
# | Do word counts, right answers alone and the ready-made model stand next to it? | |
# | Does the verdict rest on an interval, and not on a mean? | |
# | Was a run torn off and continued? | |
# | Does the card say the prompt's form, the licences and the limits? | |
# | Did a server give the answers that you judged? | |

# %% [markdown]
# ## Recap
#
# * **One number to remember:** your student's score as a share of its teacher's, with its
#   interval, next to the rivals' scores.
# * Judge the files that you ship, and ask them through the server that you will use.
# * The rivals that are forgotten: word counts, right answers alone, the ready-made model.
# * **Use it when** one narrow task is asked very often. **Do not, when** word counts or a
#   rule do it, when the task changes every month, or when the teacher is not good at it.
#
# *Read on:* Mitchell et al. 2019, arXiv:1810.03993, on model cards; Muralidharan et al.
# 2024, arXiv:2407.14679, on pruning and distilling.
