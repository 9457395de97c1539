# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Show your work
#
# The course's shared task once more: add three numbers. Below, a problem, the
# full answer with its steps, and the bare result.

# %% tags=["nbval-check-output"]
from distill_helpers.tasks import three_sums

problem = three_sums.test_problems()[0]
print("problem:    ", problem.prompt)
print("with steps: ", problem.answer)
print("result only:", problem.result)

# %% [markdown]
# A language model does a fixed amount of computing per token, one layer after
# the other. With the result alone, three numbers and every carry must be added
# before the first digit. With the steps written out, each token needs a little,
# and later ones can read what is there already. In training there is a second
# gain: each step is shown, so that the student need not discover it. Steps
# written out on the way to an answer are a **reasoning trace**.
#
# Long traces are what the reasoning models of today write, and how their
# skill is handed to small models: the teacher's traces, as hard labels
# (DeepSeek-R1, 2025). The recipe has three lines. Sample traces. Keep those
# whose result is right. Train the student on them like on any other text.
# This lesson does all three at a size that takes minutes.
#
# ## A teacher that errs
#
# Our teacher was trained only until it was right about four times in five. Let
# it answer 2,000 questions. `write_labels` is the function from lesson 05: a
# file, resumable, one row for each answer.

# %%
from distill_helpers import LocalTeacher, write_labels
from distill_helpers.tasks.teachers import load_tiny_teacher

teacher = load_tiny_teacher("sums")
asked = three_sums.problems(profile.pick(smoke=20, cpu=2000, gpu=2000), seed=3)
labels = write_labels(
    LocalTeacher(*teacher, licence="ours"),
    three_sums.prompts(asked),
    work / "traces.jsonl",
    max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    concurrency=500,
    progress=False,
)

# %% [markdown]
# **A checker** says whether a result is right. Here that takes no teacher and no
# labels: the sum can be computed. Elsewhere, a checker runs the unit tests of a
# program, compares with a known result, or asks a proof assistant. It has to be
# exact: whatever slips through, the student will learn.

# %%
from distill_helpers.tasks.three_sums import is_right

right = [
    is_right(p, row) for p, row in zip(asked, labels["answer"], strict=True)
]
print(f"{sum(right) / len(right):.1%} of {len(right):,} results are right\n")
for p, row, good in list(zip(asked, labels["answer"], right, strict=True))[:8]:
    print("right" if good else "WRONG", f"{p.prompt:10} {row}")

# %% [markdown]
# **Predict:** where do the wrong ones go wrong: in the first sum, in the second,
# or when the result is copied to the end? And can a result be right although a
# step is not?

# %%
import re
from collections import Counter
from itertools import zip_longest

places = ["first sum", "second sum", "copying"]


def first_fault(problem, text):
    wanted, found = (re.split("[,;]", t) for t in (problem.answer, text))
    parts = zip_longest(places, wanted, found[:3])
    return next((place for place, a, b in parts if a != b), "none")


found = list(map(first_fault, asked, labels["answer"]))
faults = Counter(found)
lucky = sum(ok and f != "none" for ok, f in zip(right, found, strict=True))

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.2))
ax.barh(places, [faults[place] for place in places])
ax.invert_yaxis()
ax.set_xlabel(f"traces with a fault, of {len(asked):,}")
ax.set_title("Where the teacher's traces go wrong first")
plt.show()
print(lucky, "results are right although a step is wrong")

# %% [markdown]
# The last line matters even if the number is small. A checker of results lets a
# wrong step through if a later error cancels it, or if the model ignores what it
# wrote. The student learns that step like any other. Where this matters, check
# the steps too.
#
# ## Keep what is right
#
# The filter is the one from lesson 05, with our checker in it. Asking a teacher
# and keeping only what a check accepts is called **rejection sampling**.

# %%
from distill_helpers import filter_labels
from distill_helpers.labels import truncated, wrong

by_prompt = {p.prompt: p for p in asked}


def accepted(row):
    return is_right(by_prompt[row["messages"][0]["content"]], row["answer"])


filtered = filter_labels(
    labels, {"truncated": truncated, "wrong": wrong(accepted)}
)
print(filtered)

# %% [markdown]
# Lesson 05's filters looked at the form; this one looks at the result. What it keeps
# ends right, though not every step need be.
#
# ## What is in a trace?
#
# Now the comparison. The teacher (4 layers, 128 wide) answers 20,000 questions
# once each, greedily. The student is smaller (2 layers, 96 wide) and fresh. Every
# student reads **the same number of tokens**, prompts included: for the student, that
# is the same computing. (What the teacher spends on writing traces and on soft labels
# is not counted.) Answers alone are short, so those students go through more than
# twice as many questions in it (the same ones, more often). But most of what they
# read is prompt, from which nothing is learned. What differs is what they read:
#
# * *answers only*: the teacher's results, right or wrong, without the steps;
# * *all traces*: steps and results, right or wrong;
# * *all traces, as many*: a random part of these, as many as are right, so that
#   the filter is compared on equal terms;
# * *right traces*: those that the checker accepts;
# * *right traces, soft*: the same text, learned from the teacher's
#   distributions instead of its tokens (lesson 02);
# * *the teacher, retrained*: the teacher itself, trained on its own right
#   traces for as much computing as a student gets.
#
# **Predict** the order before you look. Which of them pass the teacher?

# %%
from distill_helpers.course.plots import compare_arms
from distill_helpers.studies import load_results
from distill_helpers.studies import reasoning_traces as study

results = load_results(study.STUDY.name)
teacher_score = results.mean("exact_match", study.TEACHER, study.MOST).mean

# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
compare_arms(ax, results, "exact_match", study.MOST)
ax.axvline(teacher_score, color="0.4", linestyle="--")
ax.set_xlim(0, 100)
ax.set_xlabel("exact match on 2,000 test problems (percent)")
ax.set_title("Equal computing for all that are trained; five seeds")
plt.show()

# %%
columns = ("exact_match", "rows", "trained_tokens")
print(results.table(columns, study.MOST, digits=1))
for claim in results.study.claims[:3]:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# Dots are means, lines are intervals; the dashed line is the teacher as it was,
# and blue marks the soft labels.
#
# In the table, `rows` are the different answers that an arm has to learn from; each
# seed asked other questions, so the number of right ones varies. `trained_tokens` are
# all tokens read, prompts and repetitions included. The retrained teacher is larger,
# so equal computing buys it fewer.
#
# With this student and this much computing, the steps make the difference:
# without them few results are exactly right. A larger student, or far
# longer training, may do better.
#
# The second verdict is about the filter. It drops about a fifth of the text and
# reads the rest more often, so it asks whether what is left teaches better than
# as much unfiltered text.
#
# ## One more student, live
#
# A seed that the study has not used, on questions that the teacher did not learn
# from, in front of you:

# %%
count = profile.pick(smoke=200, cpu=int(study.MOST), gpu=int(study.MOST))
traces = study.write_traces(count, seed=2)
trained = study.train_student(
    traces,
    study.RIGHT,
    seed=2,
    steps=profile.pick(smoke=1, cpu=study.STEPS, gpu=study.STEPS),
    **dict(results.options(study.RIGHT, study.MOST)),
)

# %%
tests = profile.pick(smoke=10, cpu=2000, gpu=2000)
score = study.score(trained.model, study.RIGHT, tests)
print(f"{trained.rows:,} right traces; the student: {score:.1f} %")
live = results.check_live(
    "exact_match", study.RIGHT, study.MOST, score, judged=judged
)
display(live)

# %% [markdown]
# ## How can a student pass its teacher?
#
# Every trace that the student learned was written by the teacher. **Predict:** of
# the test problems that the teacher gets wrong, how many does the student get
# right?

# %%
from distill_helpers import generate

test = three_sums.test_problems()[:tests]


def judge(model):
    texts = generate(
        model,
        teacher.tokenizer,
        three_sums.prompts(test),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        batch_size=1000,
    )
    return list(map(is_right, test, texts))


by_teacher, by_student = judge(teacher.model), judge(trained.model)

# %%
names = {True: "right", False: "wrong"}
both = Counter(zip(by_teacher, by_student, strict=True))
for (one, two), times in sorted(both.items(), reverse=True):
    print(f"teacher {names[one]}, student {names[two]}: {times:5,}")

# %% [markdown]
# And what exactly did it learn from?

# %%
from distill_helpers.tasks.three_sums import steps_are_right

perfect = [
    steps_are_right(p, text)
    for p, text, good in zip(
        traces.problems, traces.texts, traces.right, strict=True
    )
    if good
]
print(f"{sum(perfect):,} of {len(perfect):,} are the perfect answer")

# %% [markdown]
# The checker is a second teacher. It knows only right from wrong, but it knows
# that exactly. A sum has one right way to be written out, so nearly every trace
# that passes is the perfect answer: of the teacher's mistakes little is left but
# the lucky traces from above, and the questions that are missing.
#
# Why does this help with questions that the teacher gets wrong? They are made of
# the same small pieces as the others: digits, carries, copying. The student meets
# each piece done right, in other questions, and puts the pieces together. Here is
# the limit, too: a piece that the teacher never gets right is in no trace that
# passes, and no filter can teach it.
#
# One honest word: whoever can compute a sum can also write its steps. We pretend
# that we can only check, because for real problems checking is far easier than
# writing.
#
# If the checker is what adds, the teacher can learn from the checked traces too. It
# is larger, and it already knows most of the task; for equal computing it gets fewer
# steps. You have seen its dot in the figure. Here is the verdict on whether the
# student still wins:

# %%
display(results.verdict("passes_retrained", judged=judged))

# %% [markdown]
# *Fails* does not mean that the student learned badly: it is judged against a
# teacher that has gained from the same checked traces. Training a model on its
# own checked answers is called self-improvement (STaR, Zelikman et al. 2022), and
# it is the baseline to ask for when you read that a student "beat its teacher":
# the checker did, and it helps the teacher as well. What distillation adds is the
# *small* model.
#
# ## Draw more than once
#
# Greedy decoding gives one trace to a question. Where it is wrong, the question is
# lost. Draw several traces at a temperature above zero, and some of these
# questions come back. How many draws does it take? **pass@k** of a question is the
# chance that at least one of k draws is right. To estimate it, draw n times, take
# every set of k among them, and see what share of the sets holds a right one. Then
# average over the questions.

# %%
from itertools import combinations

n = 8


def share_solved(good, k):
    """Of all sets of k draws, the share that holds a right one."""
    sets = list(combinations(good, k))
    return sum(map(any, sets)) / len(sets)


print(share_solved([True, True, False, False], k=2))  # 5 of 6 pairs

# %% [markdown]
# **Predict:** is one draw better than greedy decoding, or worse?

# %%
few = asked[: profile.pick(smoke=4, cpu=250, gpu=250)]
draws = write_labels(
    LocalTeacher(*teacher, licence="ours"),
    three_sums.prompts(few),
    work / "draws.jsonl",
    samples=n,
    temperature=1.0,
    max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    concurrency=500,
    progress=False,
)
good = [accepted(row) for row in draws]
groups = [good[i : i + n] for i in range(0, len(good), n)]

# %%
curve = [
    sum(share_solved(group, k) for group in groups) / len(groups)
    for k in range(1, n + 1)
]
fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(range(1, n + 1), curve, "o-", label="at least one of k draws, T = 1")
ax.axhline(sum(right[: len(few)]) / len(few), color="0.4", linestyle="--")
ax.text(5.2, sum(right[: len(few)]) / len(few) - 0.05, "greedy", color="0.4")
ax.set_ylim(0, 1.03)
ax.set_xlabel("draws k")
ax.set_ylabel("questions solved")
ax.set_title("What the teacher can do, if somebody checks")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# One draw is worse than greedy. Where the curve lies above the dashed line, drawing
# and checking solve questions that greedy decoding does not. On richer problems
# the draws also show other ways to the same result, which are worth keeping (Yuan
# et al. 2023); a sum has only one. The price: every draw is paid for, right or
# wrong.
#
# ## How many traces are enough?
#
# **Predict:** with how few questions does the student still pass the teacher?

# %%
from distill_helpers.course.plots import over_settings

fig, ax = plt.subplots(figsize=(6, 3))
over_settings(ax, results, "exact_match", [study.RIGHT])
for place, setting in enumerate(results.study.settings):
    scores = results.values("exact_match", study.RIGHT, setting)
    ax.plot([place] * len(scores), scores, "k.", alpha=0.6)
ax.axhline(teacher_score, color="0.4", linestyle="--")
ax.text(1.4, teacher_score - 6, "the teacher", color="0.4")
ax.set_ylim(0, 100)
ax.set_xlabel("questions asked; the right traces are kept")
ax.set_ylabel("exact match (percent)")
ax.set_title("The same steps of training, on fewer questions")
plt.show()
display(results.verdict("more_questions", judged=judged))

# %% [markdown]
# A black point is a seed; the line joins the means, and the band is their interval.
# All students took the same number of steps, so with fewer questions they read each
# one more often. With the fewest, chance decides: carrying is learned all of a
# sudden, early by one seed and late by another. The teacher's computing goes into
# questions, the student's into steps; both can be too few. (The three places are
# not to scale.)
#
# A gain near zero that stays *undecided* is an answer, too: for this student and
# this many steps, five seeds show no gain from four times the questions.
#
# That sudden start is why this study has a history. In two
# earlier rounds some students had not begun to carry when their steps were over,
# whatever they read, and what we compared was luck. Both rounds were broken off
# and their rows published (`results/rounds`). In this third one, AdamW's second
# moment (the running mean of squared gradients, by which it scales every step) is
# averaged over about 100 steps instead of 20 (`adam_beta2`), in every arm, and
# few students were left behind. That is a comparison of rounds, not a study of its
# own. But when arms differ by luck, mend the training before you compare.
#
# ## Soft labels on the same traces
#
# The teacher's weights are at hand here, so its soft labels are too. You saw the blue
# line in the figure. **Predict:** is it so long because all five seeds differ, or
# because of one? And where do the others lie?

# %%
display(results.verdict("soft_traces", judged=judged))
for arm in (study.TRACES, study.RIGHT, study.SOFT):
    scores = results.values("exact_match", arm, study.MOST)
    print(f"{arm:20}", *(f"{score:6.1f}" for score in scores))
print(f"{'the teacher':20} {teacher_score:6.1f}")

# %% [markdown]
# Five seeds from left to right. Compare the last two rows: soft labels on right
# traces bring a student near its *teacher*, hardly beyond. The filter took out
# the *tokens* that the teacher got wrong, but its *distributions* on the right
# ones still hold its doubts. Follow them exactly, and you doubt where it doubts: a
# soft label knows nothing of the checker. Lesson 03 saw the same pull towards the
# teacher.
#
# The interval is wide because of one student that was half-way when its steps
# were over. With such a seed, five are too few to *decide*, however clear the
# others look: so says the verdict, and we leave it at that.
#
# ## Word problems, and models that read English
#
# Sums suit a model of a few hundred thousand weights. The same recipe on
# problems in words, from our own generator: templates with names and numbers,
# worked steps, and a checker for the number behind `####`.

# %%
from distill_helpers.tasks import word_problems

problem = word_problems.problems(1, seed=0)[0]
print(problem.prompt, "\n")
print(problem.answer)

# %% [markdown]
# Teacher and student come from the profile. With a GPU these are
# Qwen2.5-1.5B-Instruct and Qwen2.5-0.5B, and the problems are ours and those of
# GSM8K. On a laptop the teacher is SmolLM2-135M, and the student is the same
# model with ten layers taken out. **Predict:** of a dozen problems, how many
# does a model of 135 million weights solve?

# %%
from distill_helpers.tasks.teachers import load_chat_pair

tutor, pupil = load_chat_pair(profile)
sources = profile.pick(
    smoke=["templates"], cpu=["templates"], gpu=["templates", "openai/gsm8k"]
)
count = profile.pick(smoke=2, cpu=12, gpu=1500)
questions = [
    p for source in sources for p in word_problems.load(source, "train", count)
]

# %%
written = write_labels(
    LocalTeacher(*tutor, licence="Apache-2.0; no terms for its answers"),
    [p.prompt for p in questions],
    work / "words.jsonl",
    max_new_tokens=profile.pick(smoke=8, cpu=120, gpu=256),
    concurrency=profile.pick(smoke=32, cpu=32, gpu=128),
)
by_question = {p.prompt: p for p in questions}
solved = wrong(
    lambda row: word_problems.is_right(
        by_question[row["messages"][0]["content"]], row["answer"]
    )
)
kept = filter_labels(written, {"truncated": truncated, "wrong": solved})
print(kept)

# %%
print(written["answer"][0][:400])

# %% [markdown]
# Look at how many were kept. A filter cannot make right what was never written. On
# a laptop too little is left to learn from, and that is a result too. So there the
# student learns worked answers of the generator. That is ordinary fine-tuning, not
# distillation; it shows the rest of the path. With a GPU it learns what the teacher
# wrote and the checker kept.

# %%
from distill_helpers import learn_answers
from distill_helpers.data import pack_examples
from distill_helpers.labels import own_labels

worked = word_problems.problems(profile.pick(smoke=8, cpu=800, gpu=8), seed=2)
own = own_labels([p.prompt for p in worked], [p.answer for p in worked])
source = profile.pick(smoke=own, cpu=own, gpu=kept.kept)
length = profile.pick(smoke=256, cpu=512, gpu=1024)
rows = pack_examples(learn_answers(source, pupil.tokenizer), length)
print(f"{len(source):,} answers in {len(rows):,} rows of {length} tokens")


# %%
from distill_helpers.labels import prompt_text


def solve(tests):
    turns = [[{"role": "user", "content": p.prompt}] for p in tests]
    prompts = [prompt_text(turn, pupil.tokenizer) for turn in turns]
    limit = profile.pick(smoke=4, cpu=80, gpu=256)
    texts = generate(*pupil, prompts, max_new_tokens=limit, batch_size=50)
    formed = sum("####" in text for text in texts)
    solved = sum(map(word_problems.is_right, tests, texts))
    print(f"of {len(tests)}, {formed} end as asked, {solved} are solved; one:")
    print(texts[0])


# %%
share = profile.pick(smoke=2, cpu=50, gpu=250)
heldout = [
    p for source in sources for p in word_problems.load(source, "test", share)
]
solve(heldout)

# %% [markdown]
# Before the long cell, once more: will it fit, and how long will it take?

# %%
from distill_helpers import plan

size = {
    "batch_size": profile.pick(smoke=1, cpu=4, gpu=2),
    "steps": profile.pick(smoke=2, cpu=24, gpu=300),
}
micro = profile.pick(smoke=1, cpu=1, gpu=2)
options = {"method": "hard", "packed": True, "accumulation": micro}
print(plan((None, pupil.model), length=length, **size, **options))

# %%
from distill_helpers import HardLabelTrainer, training_arguments

arguments = training_arguments(
    profile,
    learning_rate=profile.pick(smoke=1e-4, cpu=2e-4, gpu=2e-5),
    gradient_accumulation_steps=micro,
    seed=0,
    **size,
)

# %%
tutor = None  # the teacher has done its part; a GPU needs the room
# A second run of this cell goes on with what the student has learned.
HardLabelTrainer(
    pupil.model,
    args=arguments,
    train_dataset=rows,
    tokenizer=pupil.tokenizer,
).train()
solve(heldout)

# %% [markdown]
# One run, one seed, no baseline: it shows the path and claims nothing. Form comes
# first: a right number without its `####` counts as wrong. Arithmetic comes late,
# if at all, to a model of this size after so few steps. Both Qwen
# models may have met GSM8K before; the templates' numbers are our own.

# %% [markdown] tags=["published"]
# ## What others found
#
# DeepSeek-R1 wrote some 800,000 samples, three quarters of them reasoning that
# passed rejection sampling, and six smaller models were fine-tuned on them with
# nothing else (DeepSeek-AI 2025, arXiv:2501.12948). Their figures, pass@1 in
# percent on AIME 2024 and MATH-500 (two sets of competition problems in mathematics):
#
# | student | AIME 2024 | MATH-500 |
# |---|--:|--:|
# | R1-Distill-Qwen-1.5B | 28.9 | 83.9 |
# | R1-Distill-Qwen-7B | 55.5 | 92.8 |
# | R1-Distill-Qwen-32B | 72.6 | 94.3 |
# | Qwen-32B with reinforcement learning alone | 47.0 | 91.6 |
# | the teacher, DeepSeek-R1 | 79.8 | 97.3 |
#
# The fourth row is the interesting one: the same base model, learning for itself
# from checked answers, came less far than by reading the teacher's traces. None of
# these students passed the teacher. Ours could, because its teacher was stopped
# early and had never met the checker. DeepSeek-R1 had itself been trained with
# such checkers, so the filter had less to add.

# %% [markdown]
# ## Exercise 1 · An exact checker
#
# *easy · a sloppy checker poisons everything behind it · 5 minutes*
#
# Write `exact_checker(answer, result)`: `True` if what stands behind the last
# semicolon is the whole number `result` (an `int`), written plainly, and nothing else;
# otherwise `False`. Spaces around it do not count; a sign or a leading zero makes it
# wrong.
#
# By hand: `"27+58=85,85+46=131;131"` is right for 131. With `;1131` or `;13`, or
# without the semicolon, it is not.

# %% tags=["exercise"]
from distill_helpers.course import checks


def exact_checker(answer, result):
    return None  # your code here


checks.exact_checker(exact_checker)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `str.rpartition` cuts at the *last* semicolon, and its middle part is empty if
# there was none. Compare texts, not endings.

# %% [markdown] tags=["hint"] title="By hand it works, but the check says no"
# Try `;131;121`: the model has thought again, and its last word counts. Then try
# `;131 or so` and a bare `;`. Nothing but spaces may stand beside the number, and there
# has to be one. `int` is of no use here: it stumbles over an empty text and lets
# `+131` pass.

# %% tags=["solution"]
from distill_helpers.course import checks


def exact_checker(answer, result):
    _, semicolon, last = answer.rpartition(";")
    return bool(semicolon) and last.strip() == str(result)


checks.exact_checker(exact_checker)

# %% [markdown]
# ## Exercise 2 · What rejection sampling keeps
#
# *medium · easy questions crowd out the rest · 10 minutes*
#
# Write `keep_right(samples, right)`: `samples` is a list of `(question,
# answer)`, `right` says of each whether the checker accepts it. Return the
# positions (0, 1, 2, …) of the samples to train on: right, and the same answer to
# the same question only once.
#
# By hand: samples `("1+2", "3"), ("1+2", "4"), ("2+1", "3"), ("1+2", "3")` with
# right, wrong, right, right give `[0, 2]`.


# %% tags=["exercise"]
def keep_right(samples, right):
    return None  # your code here


checks.keep_right(keep_right)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Remember what you have kept in a set, question and answer together. A wrong
# sample must leave no trace in it.

# %% [markdown] tags=["hint"] title="A sample that I should keep is missing"
# Find it, and ask what pushed it out: the same answer to *another* question, another
# answer to the same question, or a wrong answer? None of these is a repetition. Print
# what you have remembered when its turn comes.


# %% tags=["solution"]
def keep_right(samples, right):
    seen, kept = set(), []
    for place, sample in enumerate(samples):
        if right[place] and sample not in seen:
            seen.add(sample)
            kept.append(place)
    return kept


checks.keep_right(keep_right)

# %% [markdown]
# ## Exercise 3 · pass@k
#
# *medium · an estimate that is easily biased · 10 minutes*
#
# Write `pass_at_k(drawn, right, k)`: of all sets of `k` among `drawn` answers,
# `right` of which are right, the share that holds at least one right answer.
#
# By hand: 4 drawn, 1 right, k = 2. Of the 6 pairs, 3 hold it: one half.


# %% tags=["exercise"]
import math


def pass_at_k(drawn, right, k):
    return None  # your code here


checks.pass_at_k(pass_at_k)

# %% [markdown] tags=["hint"] title="I do not know what to count"
# Count the sets in which all are wrong: `math.comb`. Putting the share of right
# answers into $1 - (1 - p)^k$ gives too little.

# %% [markdown] tags=["hint"] title="k = 1 is right, but a larger k is not"
# Go through the six pairs by hand. Less than one half: you draw with replacement, ask
# for all `k` to be right, or forget `k`. If the pairs are right and a later case is too
# high, you add up chances that may come true together. However many right answers a
# set holds, it counts once.


# %% tags=["solution"]
import math


def pass_at_k(drawn, right, k):
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


checks.pass_at_k(pass_at_k)

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what is a reasoning trace? | the written-out way to a result, learned like any other text |
# | why does it help a small student? | a little computing at each token, and every step is shown |
# | what is rejection sampling? | ask, check, keep what is right |
# | how can a student pass its teacher? | the checker knows what the teacher does not |
# | which baseline is forgotten? | the teacher, trained on its own checked answers |
#
# **When would you not distil traces?**
#
# * There is no checker, and the teacher errs: the student learns the mistakes,
#   in good style.
# * The teacher solves next to nothing: there is nothing to keep.
# * Answers have to be short and fast: every step is a token to be paid for, each
#   time somebody asks.
#
# *Read on:* Wei et al. 2022 (arXiv:2201.11903) on chains of thought; Zelikman et
# al. 2022 (arXiv:2203.14465); Yuan et al. 2023 (arXiv:2308.01825); DeepSeek-AI
# 2025 (arXiv:2501.12948); Chen et al. 2021 (arXiv:2107.03374) on pass@k.
