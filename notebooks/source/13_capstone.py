# %%
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import transformers
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course import plots

# %%
plots.use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Your project, on one page
#
# This lesson is yours. The cell below is a form. As it stands, it describes a
# project of ours, which runs on the course's data. Fill in your own names and
# files, run everything again, and all that follows is about your student.
#
# | name | what to write there |
# |---|---|
# | `QUESTIONS` | a `.jsonl` file, one `{"prompt": …}` a line; empty: our glosses |
# | `EXAM` | another one, with the right `answer`, checked by a person |
# | `TELL` | what the teacher reads before each of your prompts |
# | `TEACHER` | `packaged`, a folder, or a name on the model hub |
# | `STUDENT` | `pruned:8`, `fresh:2x96` (untrained, two layers, 96 wide), a folder, or a name on the hub |
# | `LICENCE` | what the student may be passed on under, if teacher or student is not ours |
# | `FOLDER` | where answers, checkpoints and the student are kept; empty: a folder that your system clears away one day |
# | `DRIVE` | on Colab instead: a folder on your Google Drive |
# | `PUSH_TO` | `owner/name` on the model hub; empty: nothing leaves this machine |

# %%
ours = profile.pick(
    smoke=("tiny-prose", "pruned:2"),
    cpu=("packaged", "pruned:8"),
    gpu=("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B"),
)
QUESTIONS, EXAM, TELL = "", "", ""
TEACHER, STUDENT = ours
LICENCE, FOLDER, DRIVE, PUSH_TO = "", "", "", ""

# %%
teacher_is_ours = ours[0] == TEACHER
both_are_ours = ours == (TEACHER, STUDENT)
licence = LICENCE or ("apache-2.0" if both_are_ours else "other")

# %% [markdown]
# `pruned:8` is the teacher with its first four and its last four layers: lesson 02
# repaired a student without ten of its middle layers, and for one narrow task we take
# out more. Which depth, and how many steps, was decided on other
# glosses than those of the exam.
#
# ## Say first what would be worth it
#
# A student is a second model to train, test, store and look after. What has it to
# be, so that you would rather have it than the teacher? Say so before you measure,
# or every result will look like a success. Our bar has three parts.

# %%
from distill_helpers.course.verdict import MAX_BYTES, MIN_SCORE, MIN_SPEED

print(f"at least {MIN_SCORE:.0%} of the teacher's score")
print(f"at least {MIN_SPEED:g} times its speed")
print(f"at most {MAX_BYTES:.0%} of its bytes, at equal precision")

# %% [markdown]
# Equal precision, because bytes are also saved by storing the *teacher* in fewer
# bits. That is quantisation: it needs no training, and it can be done to the
# student too. Only at equal precision do we see what distilling did.
#
# ## The task
#
# An application has to know one thing about a noun: is it a **living thing**, or
# not? The answers come from SmolLM2 after it had learned in lesson 05 to sort glosses
# into twelve kinds. Three of them live: animal, person and plant. So the student
# learns to name the kind, as the teacher does, and the application asks no more
# of it than this.
#
# The model that we load below, cut down to the student and time is SmolLM2 *before*
# that lesson: of the same shape, but it has never learned this task. (On a GPU another
# model is asked, as it is.)

# %%
from distill_helpers import LocalTeacher
from distill_helpers.cli.runs import resolve_teacher
from distill_helpers.tasks.questions import (
    gloss_project,
    own_project,
    write_questions,
)

teacher = resolve_teacher(TEACHER, profile)
asked = LocalTeacher(*teacher, licence="see the model's own card")
size = {
    "learn": profile.pick(smoke=60, cpu=3200, gpu=3200),
    "test": profile.pick(smoke=40, cpu=800, gpu=800),
}

# %% [markdown]
# In the `cpu` profile the teacher's answers are already in the course's data, and
# cost nothing. On a GPU, or with a teacher or questions of your own, the teacher is
# asked now. That is `write_labels` from lesson 05: it can be interrupted, and it keeps
# to a budget. Set `FOLDER` (on Colab `DRIVE`): then the answers, the checkpoints and the
# student outlive this notebook, and no lost runtime makes you pay for them twice.

# %%
from distill_helpers.machine import drive_folder

home = drive_folder(DRIVE) if DRIVE else Path(FOLDER or work).absolute()
home.mkdir(parents=True, exist_ok=True)

# %%
if QUESTIONS:
    files = {"questions": QUESTIONS, "exam": EXAM}
    learn, exam = own_project(home, teacher=asked, tell=TELL, **files)
else:
    stored = teacher_is_ours and profile.name != "gpu"
    live = None if stored else asked
    learn, exam = gloss_project(home, teacher=live, **size)
    write_questions(home / "exam.jsonl", exam.prompts, exam.right)

# %% [markdown]
# Look at what the student will learn from: would you have answered so?

# %%
with learn.open(encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
for row in rows[:3]:
    print(row["prompt"] + row["answer"], end="\n\n")
print(f"{len(rows):,} to learn from, {len(exam.prompts):,} in the exam")

# %% [markdown]
# ### With questions of your own
#
# Your files look like this. A line to learn from needs a prompt. A line of the exam
# needs the right answer too: a few hundred, made by a person, and none of them
# among the questions. Here are two tiny ones, sums, and the tiny teacher of lesson
# 06 to answer them.

# %%
mine = write_questions(work / "mine.jsonl", ["12+30+41=", "25+25+17="])
my_exam = write_questions(work / "my_exam.jsonl", ["40+31+22="], ["93"])
print(mine.read_text() + my_exam.read_text())

# %%
my_learn, my_exam_read = own_project(
    work / "mine",
    questions=mine,
    exam=my_exam,
    teacher=LocalTeacher(*resolve_teacher("tiny-sums", profile)),
    max_new_tokens=32,
    progress=False,
)
print(my_learn.read_text())
print("exam:", my_exam_read.teacher, "right:", my_exam_read.right)

# %% [markdown]
# The teacher shows its steps and the exam wants the sum alone: what counts of an
# answer is yours to say. You say it under *Judge it, beside others*, in the line that
# begins with `read =`: for the glosses it is `is_living`; for questions of your own, put
# your function in place of `str.strip`. For these sums that would be
# `lambda text: text.split(";")[-1].strip()`.
#
# What `TELL` says is read by the teacher alone; the student learns to do without it
# (context distillation, lesson 05). And if your teacher's answers are poor, stop
# here: without a checker (lesson 06) no student mends its teacher.
#
# ## One file that describes the run
#
# The numbers of a run belong into a file, not into cells: then the command line,
# another machine and you, in a year, can run the same again.

# %%
from distill_helpers.cli.configs import TrainOptions, write_config
from distill_helpers.cli.runs import build_trainer

options = TrainOptions(
    teacher=TEACHER,
    student=STUDENT,
    answers=str(learn),
    plain_prompts=True,
    length=128,
    batch_size=profile.pick(smoke=2, cpu=8, gpu=8),
    steps=profile.pick(smoke=4, cpu=140, gpu=300),
    save_steps=profile.pick(smoke=2, cpu=70, gpu=100),
    learning_rate=profile.pick(smoke=1e-3, cpu=1e-3, gpu=2e-5),
    output=str(home / "run"),
    profile=profile.name,
)
config = write_config(options, home / "run.json")

# %% [markdown]
# `plain_prompts`: the student reads a prompt as it is. The teacher's chat template
# puts a system message before each question, more tokens than the question itself.
# The student is trained for one task and needs none of it.
#
# ## Plan
#
# Before the long cell: does it fit, how long will it take? (For a rented machine the
# last line also says what that costs.)

# %%
from distill_helpers import plan
from distill_helpers.cli.runs import resolve_student

untrained, _ = resolve_student(STUDENT, teacher, profile, seed=0)
planned = plan(
    (None, untrained),
    method="hard",
    packed=True,
    length=options.length,
    batch_size=options.batch_size,
    steps=options.steps,
)
print(planned)

# %% [markdown]
# ## Rehearse the accident
#
# Runtimes disconnect, laptops sleep, batteries end. A run that cannot be continued
# will be lost one day. You need not wait for that day: cause it now, on a model
# that trains in a second. Three runs of one config, with a checkpoint every second
# step: one undisturbed, one torn off after the third, and the same one again. To make
# it worse, the second leaves an empty folder behind, as a run does that dies
# while it writes its next checkpoint.
#
# **Predict:** in how many digits will the weights at the end differ?

# %%
from distill_helpers.course.project import StopAfter
from distill_helpers.trainers import last_complete_checkpoint

some = write_questions(
    work / "some.jsonl",
    [row["prompt"] for row in rows[:30]],
    [row["answer"] for row in rows[:30]],
)
small = replace(
    options,
    **{"teacher": "tiny-prose", "student": "fresh:1x32", "profile": "smoke"},
    **{"answers": str(some), "steps": 6, "save_steps": 2, "batch_size": 2},
)


# %%
def rehearse(folder, *callbacks):
    """Train in a folder, from its last checkpoint if it has one."""
    here = replace(small, output=str(folder))
    found = build_trainer("hard", here, callbacks=callbacks, disable_tqdm=True)
    found.train(resume_from_checkpoint=True)
    return found


# %%
stage = Path(tempfile.mkdtemp(dir=work))  # a new one in every rehearsal
whole = rehearse(stage / "whole")
stopped = rehearse(stage / "stopped", StopAfter(3))
print("torn off at step", stopped.state.global_step, "of", small.steps)
(stage / "stopped" / "checkpoint-4").mkdir(exist_ok=True)
print("goes on from", last_complete_checkpoint(stage / "stopped").name)
resumed = rehearse(stage / "stopped")

# %%
pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
apart = max((a - b).abs().max().item() for a, b in pairs)
print("resumed to step", resumed.state.global_step)
print("largest difference between the weights:", apart)

# %% [markdown]
# (The message about `lm_head.weight` is harmless: in this model the embedding and the
# head are one and the same matrix, so a checkpoint holds it once. The difference above
# shows that nothing was lost.)
#
# A checkpoint holds more than the weights: the optimizer's averages, where the
# learning rate stood, the random state and the place in the data. Leave one out,
# and the run goes on, but as another run. Step three was lost and done again. And the
# empty folder was passed over, though its number is higher: a checkpoint counts only
# when it is complete, which a marker file says that is written last.
#
# ## Train
#
# Now in earnest, and with an accident of its own: half-way the run is torn off, as
# if the connection had been lost, and a new trainer takes over.

# %%
import time

began = time.perf_counter()
lost = StopAfter(options.steps // 2)
half = build_trainer("hard", options, teacher=teacher, callbacks=[lost])
half.train(resume_from_checkpoint=True)
before = half.state.global_step
half = whole = stopped = resumed = None  # their memory is free again

# %%
trainer = build_trainer("hard", options, teacher=teacher)
trainer.train(resume_from_checkpoint=True)
trained_for = time.perf_counter() - began
print(f"stopped at step {before}, ended at {trainer.state.global_step}")
print(f"minutes: planned {planned.minutes:.1f}, taken {trained_for / 60:.1f}")

# %%
log = [one for one in trainer.state.log_history if "loss" in one]
fig, ax = plt.subplots(figsize=(6.5, 2.8))
ax.plot([e["step"] for e in log], [e["loss"] for e in log], "o-", ms=4)
ax.axvline(before, color="0.4", linestyle="--")
ax.text(before, ax.get_ylim()[1], " stopped, resumed", va="top", color="0.4")
ax.set_yscale("log")
ax.set_xlabel("step")
ax.set_ylabel("loss (nats per token)")
ax.set_title("The loss goes on where it was")
plt.show()

# %% [markdown]
# With `FOLDER` or `DRIVE`, *Run all* does the same after a disconnect: it finds the
# teacher's answers, and takes the training up from the last complete checkpoint. On
# Colab, the cell before the recap waits until Drive has everything.
#
# ## Save, and load again
#
# What you judge should be what you ship: the files, read anew, in the precision
# in which they will be used.

# %%
from distill_helpers import generate, load_model

shipped = home / "student"
trained = trainer.model.to(profile.teacher_dtype).eval()
trained.save_pretrained(shipped)
trainer.processing_class.save_pretrained(shipped)
student = load_model(
    shipped, dtype=profile.teacher_dtype, device=profile.device, frozen=True
)

# %%
few = list(exam.prompts[:20])
ends = {"max_new_tokens": 6, "batch_size": 20}
one = generate(trained, student.tokenizer, few, **ends)
two = generate(student.model, student.tokenizer, few, **ends)
print("the same answers before saving and after loading:", one == two)

# %% [markdown]
# ## Judge it, beside others
#
# A score says little alone. Four others to hold it against:
#
# * **the commonest answer**, always;
# * **word counts** (naive Bayes) on what the student learned from: no network;
# * **the student before training**: the pruned model, as it is;
# * **the teacher**, the one to come near.
#
# **Predict:** how far does counting words get?

# %%
from collections import Counter

from distill_helpers.course.verdict import WordCounts, score
from distill_helpers.tasks.questions import is_living

trainer = trained = None  # from here on the files count
read = str.strip if QUESTIONS else is_living
taught = [row["answer"].strip() for row in rows]
counts = WordCounts([row["prompt"] for row in rows], taught)
longest = max(len(student.tokenizer(text)["input_ids"]) for text in taught)


def answers_of(model, tokenizer):
    """Greedy answers to the whole exam."""
    limits = {"max_new_tokens": longest + 2, "batch_size": 100}
    return generate(model, tokenizer, list(exam.prompts), **limits)


# %%
common = Counter(map(read, taught)).most_common(1)[0][0]
often = next(text for text in taught if read(text) == common)
answers = {
    "commonest answer": [often] * len(exam.prompts),
    "word counts": [counts.answer(prompt) for prompt in exam.prompts],
    "before training": answers_of(untrained, student.tokenizer),
    "student": answers_of(*student),
    "teacher": list(exam.teacher),
}

# %%
scores = {
    name: score(texts, exam.right, read=read)
    for name, texts in answers.items()
}
for name, found in scores.items():
    print(f"{name:16} {found}")

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.8))
colours = [plots.PALE] * 3 + [plots.STUDENT, plots.TEACHER]
for place, (found, colour) in enumerate(
    zip(scores.values(), colours, strict=True)
):
    s = found.interval
    ax.barh(place, s.mean, color=colour)
    ax.plot([s.low, s.high], [place, place], color="k")
ax.set_yticks(range(len(scores)), list(scores))
ax.invert_yaxis()
ax.set_xlim(0, 1)
ax.set_xlabel(f"right, of {len(exam.right):,} questions")
ax.set_title("A score among its rivals")
plt.show()

# %% [markdown]
# Lines are intervals: another set of questions of the same kind would give other
# scores.
#
# If word counts come near your student, ship the word counts. They are a few
# kilobytes and answer in no time.
#
# One rival is missing, because it costs a whole run: the same student on right
# answers alone, without any teacher. If you have a few hundred, write them into a
# file and train on that. Lesson 05's study has made the comparison for its tiny
# student.
#
# The bar asks for the student's score *as a share of the teacher's*. Both answered
# the same questions, and what is hard for one is often hard for the other. So the
# interval comes from drawing questions anew, each with both its answers (a *paired
# bootstrap*).

# %%
from distill_helpers.course.verdict import score_ratio

share = score_ratio(scores["student"], scores["teacher"])
print(f"{share.mean:.1%} of the teacher's score", end=" ")
print(f"({share.low:.1%} to {share.high:.1%})")

# %% [markdown]
# ## Measure speed
#
# A stopwatch is easily fooled. The first call is slow: something is always being
# prepared. A machine that does other work slows down in the middle. And a model
# that stops early looks fast. So: both read the same text, both write the same
# number of tokens, in turns, and the first turn is not counted.
#
# **Predict:** the student has eight layers of thirty. How many times as fast is it?

# %%
from distill_helpers.course.verdict import compare_speed

untrained = None  # it has answered; the others get the room
speed = compare_speed(
    student,
    teacher,
    exam.prompts[: profile.pick(smoke=4, cpu=64, gpu=256)],
    rounds=profile.pick(smoke=2, cpu=4, gpu=8),
)
print(f"student: {max(speed.student):6.1f} answers a second, at best")
print(f"teacher: {max(speed.teacher):6.1f}")
print(f"{speed.ratio.mean:.1f} times ({speed.ratio.low:.1f}", end=" ")
print(f"to {speed.ratio.high:.1f})")

# %% [markdown]
# Fewer layers save their own share of the time and no more: the embedding and the
# head over the whole vocabulary are as large as before.
#
# The shipped answers are of a SmolLM2 that had been trained for the task. We time
# the one that had not: same shape, same speed. And we let it off its chat template,
# which in earnest it would have to read as well.
#
# ## Count bytes
#
# Weights are one part. While a model writes, it also keeps *keys and values* of
# every token so far, in every layer, for every text in the batch.

# %%
from distill_helpers.course.verdict import footprint

sizes = {
    name: footprint(loaded.model, dtype=torch.bfloat16)
    for name, loaded in (("teacher", teacher), ("student", student))
}
for name, one in sizes.items():
    batch = one.memory(texts=32, tokens=64) / 2**20
    print(f"{name}: {one.parameters / 1e6:6.1f} million parameters", end=", ")
    print(f"{one.weights / 2**20:5.0f} MiB, answering 32: {batch:5.0f} MiB")
lighter = sizes["student"].weights / sizes["teacher"].weights

# %% [markdown]
# The same number in a second way, from the file:

# %%
on_disk = (shipped / "model.safetensors").stat().st_size
per_number = torch.empty(0, dtype=profile.teacher_dtype).itemsize
counted = sizes["student"].parameters * per_number
print(f"file {on_disk / 2**20:.1f} MiB, counted {counted / 2**20:.1f} MiB")

# %% [markdown]
# ## The verdict
#
# **Predict:** worth having, not worth having, or undecided?

# %%
from distill_helpers.course.verdict import judge_student

measured = {"speed": speed.ratio, "size": lighter, "judged": judged}
task = "your task" if QUESTIONS else "living or not"
verdict = judge_student(task, score=share, **measured)
display(verdict)

# %% [markdown]
# The line is computed from what was measured. *Undecided* means that an interval
# lies across the bar. That is no yes: keep the teacher, until more questions in the
# exam, or a better student, have settled it.
#
# One student, two tasks. It learned to name twelve kinds, and the application asks
# only whether it lives. What if somebody takes the same student and asks for the
# kinds? **Predict** before you run.

# %%
if not QUESTIONS:
    kinds = [score(answers[who], exam.right) for who in ("student", "teacher")]
    print("student", kinds[0], "\nteacher", kinds[1])
    wider = judge_student("exact kind", score=score_ratio(*kinds), **measured)
    display(wider)

# %% [markdown]
# Same weights, same speed, same bytes. A small student can be worth having for a
# narrow task, and for a wider one that can be unproven or false; nobody sees that from
# its size. Hence the model card, further down: whoever finds this model has to be told
# what it is for.
#
# ## When does it pay?
#
# Distilling costs once, answering costs each time. From which answer on is the
# student the cheaper way? Begin with one part of the sum, the teacher's answers to
# learn from. In seconds of this machine, how many answers must the student give until
# it has saved what those took?

# %%
seconds = {
    name: 1 / max(found)
    for name, found in (("student", speed.student), ("teacher", speed.teacher))
}
labelling = len(rows) * seconds["teacher"]
each = seconds["teacher"] - seconds["student"]
print(f"saved per answer: {1000 * each:.1f} ms")
print(f"labelling pays itself back after {labelling / each:,.0f} answers")

# %% [markdown]
# Training comes on top, and so do your own hours. Exercise 3 does the sum with the
# training in it.
#
# ## A model card
#
# A model without a description is a risk to whoever finds it. A **model card**
# (Mitchell et al. 2019) says what it is, what went in and under which licences, how
# it was made, what was measured, and what it cannot do. Ours is written from the
# records of this run, so that no number is copied by hand.

# %%
from distill_helpers.course.project import origins, teacher_name

known = licence if licence != "other" else "look it up"
went_in = {"teacher": (known, teacher_name(TEACHER, profile))}
if QUESTIONS:
    name = Path(QUESTIONS).name
    went_in[name] = ("yours: say which", "yours: say where from")
else:
    went_in |= origins(["wordnet_glosses.jsonl"])

# %%
if not QUESTIONS and live is None:
    went_in |= origins(["gloss_labels.jsonl"])
licences = {name: facts[0] for name, facts in went_in.items()}
came_from = {name: facts[1] for name, facts in went_in.items()}
for name, (terms, _) in went_in.items():
    print(f"{name}: {terms}")

# %% [markdown]
# Answers of the student go into the card as examples. They are text that a model
# wrote, and a card is shown in browsers: whatever could be markup in it is written
# so that it is shown and not obeyed.

# %%
from distill_helpers.course.model_card import ModelCard, escape, write_card

print(escape("<img src=x onerror=alert(1)> | [click](http://x.example) **!**"))

# %%
summary = "Answers short English prompts like those below."
if not QUESTIONS:
    summary = (
        "Names the kind of a noun, one of twelve, from its definition, with "
        "prompts like those below. It was made for an application that reads "
        "from the kind whether the noun is a living thing."
    )
millions = sizes["student"].parameters / 1e6

# %%
results = {
    f"right, {name}": str(found).strip() for name, found in scores.items()
}
results["verdict"] = str(verdict)
limits = [
    "It was judged on one exam, from the source that it learned from.",
    "It repeats its teacher's mistakes, and answers any question at all.",
]
if not QUESTIONS:
    results["beyond it"] = str(wider)
if not QUESTIONS and live is None:
    limits.append(
        "The answers that it learned, and the teacher's score, are of "
        "SmolLM2-135M-Instruct after it was fine-tuned on glosses with right "
        "kinds; nobody gets them from the public model."
    )

# %%
card = ModelCard(
    name=f"{task}, a distilled student",
    summary=summary,
    teacher=teacher_name(TEACHER, profile),
    licence=licence,
    licences=licences,
    origins=came_from,
    method=f"Hard labels: the student ({teacher_name(STUDENT, profile)}, "
    f"{millions:.1f} million parameters) learned from {len(rows):,} of its "
    "teacher's answers, by cross-entropy on the answer and its end. Answers "
    f"of more than {options.length} tokens with their prompts were left out.",
    options={"steps": options.steps, "learning rate": options.learning_rate},
    results=results,
    limits=limits,
    examples=list(zip(exam.prompts, answers["student"], strict=True))[:3],
    versions={p.__name__: p.__version__ for p in (torch, transformers)},
)
print(write_card(card, shipped).read_text())

# %% [markdown]
# ## Push it, or not
#
# With `PUSH_TO` set, the folder goes to the model hub, as a private repository at
# first. The token comes from `HF_TOKEN`, from Colab's secrets or from `hf auth
# login`; it is never part of a notebook. Read the card once more before: a licence
# of the data may forbid what a licence of the model allows.

# %%
from distill_helpers.course.project import push_folder
from distill_helpers.machine import flush_drive

print(str(shipped).replace(str(work), "…"))
print(*sorted(path.name for path in shipped.iterdir()), sep="\n")
if PUSH_TO:
    print(push_folder(shipped, PUSH_TO, private=True))

# %% [markdown]
# ## The same, without a notebook
#
# The training stands in one file. (Fields that hard labels do not use keep their
# defaults.)

# %%
print(config.read_text().replace(str(work), "…"))

# %% [markdown]
# The command line reads it. With several GPUs, or several machines, `accelerate
# launch` starts one process for each, and the trainers see to it that they learn
# what one would have learned. Here it is, for real, on the little model of the
# rehearsal. What the line says after `--config` overrules the file. (In `smoke`,
# where seconds count, one process is started without `accelerate`.)

# %%
import shlex
import subprocess
import sys

little = write_config(replace(small, steps=2), work / "little.json")
accelerate = (
    "-m accelerate.commands.launch --num_processes 1 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --cpu"
)
launch = profile.pick(smoke="", cpu=accelerate, gpu=accelerate)
command = f"{launch} -m distill_helpers train hard --config {little}"

# %%
done = subprocess.run(
    [
        sys.executable,
        *shlex.split(command),
        "--output",
        str(work / "launched"),
    ],
    capture_output=True,
    text=True,
)
print((done.stdout or done.stderr[-300:]).replace(str(work), "…"))

# %% [markdown]
# In a terminal, in the `FOLDER` where this notebook has put `run.json`, `exam.jsonl`
# and `student`, that is
#
# ```sh
# distill train hard --config run.json
# accelerate launch -m distill_helpers train hard --config run.json
# distill evaluate --model student --answers exam.jsonl
# ```
#
# `evaluate` counts answers that are right word by word. For the glosses that is the
# exact kind, the second of the two verdicts.
#
# ### A text of your own, instead of questions
#
# You have no questions, but a text whose style and subject the student should pick
# up? Then let it learn the teacher's distributions on it: soft labels, stored once
# (lesson 04), read as often as you like. `distill cache` and `distill train soft`
# take a `.txt` file. Here both are called from Python, with the tiny teacher:

# %%
import contextlib

from distill_helpers.cli import main

text = work / "mine.txt"
text.write_text("It is a truth universally acknowledged. " * 60)
words = ["--text", "mine.txt", "--teacher", "tiny-prose", "--rows", "8"]
words += ["--length", "32", "--profile", "smoke"]
with contextlib.chdir(work):
    main(["cache", *words, "--output", "cache"])
    stored = ["--cache", "cache", "--output", "soft", "--steps", "2"]
    main(["train", "soft", *words, *stored])

# %% [markdown]
# ## Exercise 1 · From which checkpoint?
#
# *easy · the highest number is not always the right one · 5 minutes*
#
# Write `resume_step(checkpoints)`: `checkpoints` is a list of `(step, complete)`, in
# any order. Return the step to go on from; 0 if there is nothing to go on from.
#
# By hand: `[(100, True), (300, False), (200, True)]` gives 200. The run died while
# it wrote number 300.

# %% tags=["exercise"]
from distill_helpers.course import checks


def resume_step(checkpoints):
    return None  # your code here


checks.resume_step(resume_step)

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


checks.resume_step(resume_step)

# %% [markdown]
# ## Exercise 2 · A verdict that knows what it does not know
#
# *medium · the mean is not the verdict · 10 minutes*
#
# Write `reaches(low, high, bar)`: `low` and `high` are the ends of an interval.
# Return 1 if it reaches the bar as a whole, −1 if it misses it as a whole, and 0 if
# that is undecided.

# %% [markdown] tags=["given"]
# By hand, for a bar of 0.95: the interval from 0.96 to 0.99 gives 1, from 0.90 to
# 0.94 gives −1, from 0.94 to 0.97 gives 0. An interval that begins exactly at the
# bar reaches it.


# %% tags=["exercise"]
def reaches(low, high, bar):
    return None  # your code here


checks.reaches(reaches)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# The worst end decides for, the best end against. The middle has no say.

# %% [markdown] tags=["hint"] title="I never get 0"
# Then you ask only one question, and there are two, one for each end: does the low end
# reach the bar? Does the high end miss it? If both say no, it is undecided. An end that
# lies exactly at the bar reaches it, and does not miss it.


# %% tags=["solution"]
def reaches(low, high, bar):
    if low >= bar:
        return 1
    return -1 if high < bar else 0


checks.reaches(reaches)

# %% [markdown]
# ## Exercise 3 · When has it paid?
#
# *medium · the sum that is done too late · 10 minutes*
#
# Write `break_even(once, teacher, student)`: `once` is what distilling costs in all,
# `teacher` and `student` what one answer of each costs. After how many answers has
# the student cost no more than the teacher would have? Give a number, not rounded;
# `math.inf` if that never happens.
#
# By hand: 100 once, 3 for an answer of the teacher, 1 for one of the student: after
# 50 answers both have cost 150.


# %% tags=["exercise"]
import math


def break_even(once, teacher, student):
    return None  # your code here


checks.break_even(break_even)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Each answer saves the difference. What if there is none?

# %% [markdown] tags=["hint"] title="I get something negative, or a ZeroDivisionError"
# Before you divide, look at a student that is as dear as its teacher, and at a dearer
# one: neither ever pays for itself. If the example by hand gives less than 50, look at
# what one answer saves: the student's answers are cheaper, not free.


# %% tags=["solution"]
import math


def break_even(once, teacher, student):
    if student >= teacher:
        return math.inf
    return once / (teacher - student)


checks.break_even(break_even)

# %% [markdown]
# Now with the numbers of this run: the teacher's time and the training, and what a
# machine would cost that is rented by the hour. What does it come to with your own
# hours in it?

# %%
once = labelling + trained_for
hourly = 1.0  # dollars: write in what yours costs
print(f"made in {once / 60:.1f} minutes: {once / 3600 * hourly:.2f} dollars")
paid = break_even(once, seconds["teacher"], seconds["student"])
if paid is None:
    print("after how many answers? Solve exercise 3 first")
else:
    print(f"it has paid after {paid:,.0f} answers")

# %% [markdown]
# On Colab, Drive is written to with delay. With `DRIVE`, this last cell waits until
# everything is there, and closes it.

# %%
if DRIVE:
    flush_drive()

# %% [markdown]
# ## Recap
#
# | step | what to insist on |
# |---|---|
# | say what would be worth it | before measuring: score, speed and bytes |
# | label | look at the answers; keep the exam apart |
# | plan | memory and time before the long cell |
# | train | rehearse the interruption; only complete checkpoints count |
# | judge | the files that you ship, beside cheap rivals, with intervals |
# | measure | same text, same tokens, in turns, at equal precision |
# | pass on | a card with origins, licences and limits |
#
# **When would you not distil at all?**
#
# * Few answers in all: with your own hours in it, the sum of exercise 3 never comes
#   out.
# * Word counts, a rule or a search do it: they are smaller than any student.
# * The task changes every month: so would the student.
# * The teacher is not good enough at it: prompt it, or train it, first.
#
# *Read on:* Mitchell et al. 2019 (arXiv:1810.03993) on model cards; Muralidharan
# et al. 2024 (arXiv:2407.14679) on pruning and distilling.
