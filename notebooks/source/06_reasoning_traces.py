# %%
import math
import re
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from distill_helpers import get_profile
from distill_helpers.course.plots import STUDENT, TEACHER, use_style
from distill_helpers.machine import progress_bar

use_style()
profile = get_profile(PROFILE)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# The sizes of this lesson:

# %%
asked_count = profile.pick(smoke=200, cpu=20_000, gpu=20_000)
steps = profile.pick(smoke=2, cpu=2000, gpu=2000)
tests = profile.pick(smoke=20, cpu=2000, gpu=2000)
drawn_count = profile.pick(smoke=4, cpu=250, gpu=250)
sources = profile.pick(
    smoke=["templates"], cpu=["templates"], gpu=["templates", "openai/gsm8k"]
)
word_count = profile.pick(smoke=2, cpu=6, gpu=1500)
word_tokens = profile.pick(smoke=8, cpu=300, gpu=400)
worked_count = profile.pick(smoke=50, cpu=400, gpu=400)
word_length = profile.pick(smoke=256, cpu=512, gpu=1024)
word_training = profile.pick(
    smoke={"batch_size": 1, "steps": 2, "learning_rate": 1e-4},
    cpu={"batch_size": 2, "steps": 18, "learning_rate": 3e-4},
    gpu={
        "batch_size": 1,
        "steps": 300,
        "learning_rate": 2e-5,
        "gradient_accumulation_steps": 4,
    },
)
heldout_count = profile.pick(smoke=2, cpu=20, gpu=250)
answer_tokens = profile.pick(smoke=4, cpu=70, gpu=256)

# %% [markdown]
# ## Show your work
#
# One task returns in most later lessons, the **shared task**: add three numbers.
# Here are a problem, the full answer with its steps, and the bare result.

# %% tags=["nbval-check-output"]
from distill_helpers.tasks import three_sums

problem = three_sums.test_problems()[0]
print("problem:    ", problem.prompt)
print("with steps: ", problem.answer)
print("result only:", problem.result)

# %% [markdown]
# A language model does a fixed amount of work per token. With the result alone, three
# numbers and every carry must be added before the first digit. With the steps written
# out, each token needs a little work, and later tokens can read what is there already.
# Steps written on the way to an answer are a **reasoning trace**.
#
# Reasoning models write long traces, and small models can learn from them.
# The recipe has three lines: sample traces, keep those whose result is right, train the
# student on them. You will do all three.

# %%
from distill_helpers.course import diagrams

diagrams.reasoning_traces()

# %% [markdown]
# ## A teacher that errs
#
# Our teacher was trained only until it was right about four times in five. Let it answer
# 20,000 questions, greedily. `write_labels` is the function of lesson 05: one row for
# each answer, in a file that survives a crash.

# %%
from distill_helpers import LocalTeacher, write_labels
from distill_helpers.tasks.teachers import load_tiny_teacher

teacher, tokenizer = load_tiny_teacher("sums")
writer = LocalTeacher(teacher, tokenizer, licence="ours")

# %%
asked = three_sums.problems(asked_count, seed=5002)
labels = write_labels(
    writer,
    [p.prompt for p in asked],
    work / "traces.jsonl",
    max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    concurrency=1000,
)
answers = labels["answer"]

# %%
for p, answer in list(zip(asked, answers, strict=True))[:6]:
    print(f"{p.prompt:10} {answer}")

# %% [markdown]
# Add up the first line yourself. It looks like the others. Is it right?

# %% [markdown]
# ## Exercise 1 · A checker of results
#
# *easy · a sloppy checker poisons everything behind it · 5 minutes*
#
# A **checker** says whether a result is right, and needs no teacher for that. Write
# `exact_checker(answer, result)`: `True` if what stands behind the last semicolon is the
# whole number `result`, an `int`, written plainly, and nothing else. Spaces around the
# number do not count.
#
# By hand: `"27+58=85,85+46=131;131"` is right for 131. With `;1131` or `;13`, or
# without the semicolon, it is not.

# %% tags=["exercise"]
from distill_helpers.course import checks


def exact_checker(answer, result):
    return None  # your code here


is_right = checks.exact_checker(exact_checker, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `str.rpartition` cuts at the *last* semicolon, and its middle part is empty if there
# was none. Compare texts, not endings.

# %% [markdown] tags=["hint"] title="By hand it works, but the check says no"
# Try `;131;121`: the model has thought again, and its last word counts. Then try
# `;131 or so` and a bare `;`. `int` is of no use here: it stumbles over an empty text
# and lets `+131` pass.

# %% tags=["solution"]
from distill_helpers.course import checks


def exact_checker(answer, result):
    _, semicolon, last = answer.rpartition(";")
    return bool(semicolon) and last.strip() == str(result)


is_right = checks.exact_checker(exact_checker, fallback=True)

# %%
right = [
    is_right(text, p.result) for p, text in zip(asked, answers, strict=True)
]
print(f"{sum(right) / len(right):.1%} of {len(right):,} results are right")

# %% [markdown]
# ## Exercise 2 · A checker of steps
#
# *hard · a right result may stand on a wrong step · 20 minutes*
#
# Can a result be right although a step is wrong? Write `steps_hold(prompt, answer)`. It
# is `True` if every step adds two numbers that are there to be added, and adds them
# rightly. There to be added are the numbers of the problem and earlier sums, each of
# them once. At the end one number is left, and it is the one behind the semicolon.
#
# By hand: for `27+58+46=`, the answer `58+46=104,27+104=131;131` holds, for any order
# will do. `27+58=75,85+46=131;131` does not: the first sum is false.


# %% tags=["exercise"]
def steps_hold(prompt, answer):
    return None  # your code here


holds = checks.steps_hold(steps_hold, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Keep a list of the numbers at hand, as texts. For each step, take its two numbers out
# of the list and put the sum in. `re.fullmatch(r"(\d+)\+(\d+)=(\d+)", step)` reads a
# step, and gives `None` where it is none.

# %% [markdown] tags=["hint"] title="It accepts a step that uses a number twice"
# A number that was added is gone. `list.remove` takes one of two equal numbers out,
# which is what `30+30+40=` needs. A set would lose both.


# %% tags=["solution"]
import re


def steps_hold(prompt, answer):
    at_hand = prompt.rstrip("=").split("+")
    steps, semicolon, result = answer.partition(";")
    for step in steps.split(","):
        parts = re.fullmatch(r"(\d+)\+(\d+)=(\d+)", step)
        if not parts or int(parts[1]) + int(parts[2]) != int(parts[3]):
            return False
        for number in (parts[1], parts[2]):
            if number not in at_hand:
                return False
            at_hand.remove(number)
        at_hand.append(parts[3])
    return bool(semicolon) and at_hand == [result]


holds = checks.steps_hold(steps_hold, fallback=True)

# %% [markdown]
# **Predict:** how many right results have a wrong step?

# %%
sound = [holds(p.prompt, text) for p, text in zip(asked, answers, strict=True)]
lucky = [i for i, good in enumerate(right) if good and not sound[i]]
print(f"{len(lucky):,} of {sum(right):,} right results have a wrong step:")
for i in lucky[:4]:
    print(f"{asked[i].prompt:10} {answers[i]}")

# %% [markdown]
# Read the first one. A second error cancels the first, and a checker of results lets
# both through. The student will learn these steps like any others.
#
# For sums, a checker of steps is fifteen lines. Formal proofs can be checked step by step too; a
# program's tests check only its results. For an essay, a diagnosis or advice nobody has written
# such a checker. A second model that grades the steps is a judge that can err.

# %% [markdown]
# ## Keep what is right
#
# To ask and keep only what a check accepts is called **rejection sampling**.
#
# ## Exercise 3 · What rejection sampling keeps
#
# *medium · an answer that comes often crowds out the rest · 10 minutes*
#
# Write `keep_right(samples, right)`: `samples` is a list of `(question, answer)`,
# `right` says of each whether the checker accepts it. Return the positions (0, 1, 2, …)
# of the samples to train on: right, and the same answer to the same question only once.
#
# By hand: samples `("1+2", "3"), ("1+2", "4"), ("2+1", "3"), ("1+2", "3")` with
# right, wrong, right, right give `[0, 2]`.


# %% tags=["exercise"]
def keep_right(samples, right):
    return None  # your code here


keep = checks.keep_right(keep_right, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Remember what you have kept in a set, question and answer together. A wrong sample must
# leave no trace in it.

# %% [markdown] tags=["hint"] title="A sample that I should keep is missing"
# What pushed it out: the same answer to *another* question, another answer to the same
# question, or a wrong answer? None of these is a repetition.


# %% tags=["solution"]
def keep_right(samples, right):
    seen, kept = set(), []
    for place, sample in enumerate(samples):
        if right[place] and sample not in seen:
            seen.add(sample)
            kept.append(place)
    return kept


keep = checks.keep_right(keep_right, fallback=True)

# %%
samples = [(p.prompt, text) for p, text in zip(asked, answers, strict=True)]
kept = [samples[i] for i in keep(samples, right)]
print(f"{len(kept):,} traces to learn from, of {len(samples):,}")

# %% [markdown]
# Nothing came twice here, for each question was asked once. With several draws, below, it does.
#
# A filter does more than clean. It also changes *which questions* are left. Count the
# carries of a problem, as you would carry on paper. **Predict:** which kind does the
# filter thin out most?


# %%
def carries(problem):
    """How often one carries in a + b, then + c, on paper."""
    ones = problem.a % 10 + problem.b % 10 > 9
    tens = problem.a // 10 + problem.b // 10 + ones > 9
    first = problem.a + problem.b
    more = first % 10 + problem.c % 10 > 9
    last = first // 10 % 10 + problem.c // 10 + more > 9
    return ones + tens + more + last


# %%
share = {}
for n in range(5):
    of_kind = [
        ok for p, ok in zip(asked, right, strict=True) if carries(p) == n
    ]
    share[f"{n} carries ({len(of_kind):,})"] = sum(of_kind) / max(
        1, len(of_kind)
    )

fig, ax = plt.subplots(figsize=(6.5, 2.6))
bars = ax.barh(list(share), [100 * x for x in share.values()], color=TEACHER)
ax.bar_label(bars, fmt="%.0f %%", padding=3)
ax.invert_yaxis()
ax.set_xlim(0, 100)
ax.set_xlabel("kept, percent of the questions of that kind")
ax.set_title("No carry, or four: the rarest kinds are thinned out most")
plt.show()

# %% [markdown]
# In brackets: how many were asked. Problems without any carry look easy, but they are
# rare, and this teacher is often wrong at them. After the filter they are rarer
# still. Look at such a figure before you train: a kind that is gone would have to be learned
# from the others.
#
# ## The loop
#
# Now train. A row is the problem, the trace and the end, as in lesson 05; the problem is
# not learned. Padding stands on the right, where no learned token can see it.

# %%
LENGTH = 36


def as_row(prompt, answer):
    """Token ids and labels of one row."""
    given = tokenizer(prompt).input_ids
    learned = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
    left = LENGTH - len(given) - len(learned)
    ids = given + learned + [tokenizer.pad_token_id] * left
    return ids, [-100] * len(given) + learned + [-100] * left


rows = [as_row(*one) for one in kept]
ids = torch.tensor([row for row, _ in rows])
row_labels = torch.tensor([learned for _, learned in rows])
print("read:   ", tokenizer.decode(ids[0]))
print("learned:", tokenizer.decode(row_labels[0][row_labels[0] != -100]))

# %%
from transformers import get_cosine_schedule_with_warmup


def learn_traces(student, ids, labels, steps, rate=2e-3, batch=64):
    """Fine-tune on rows; where the label is -100, nothing is learned."""
    optimizer = torch.optim.Adam(student.parameters(), rate, betas=(0.9, 0.99))
    schedule = get_cosine_schedule_with_warmup(
        optimizer, steps // 20 + 1, steps
    )
    for start in progress_bar(range(0, steps * batch, batch)):
        rows = torch.arange(start, start + batch) % len(ids)
        logits = student(ids[rows]).logits[:, :-1]
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels[rows, 1:].flatten()
        )
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student


# %% [markdown]
# The student has two layers where the teacher has four, about a quarter of its weights,
# and starts from nothing. The learning rate is that of the study below, which adds weight decay and
# keeps its best checkpoint.
# **Write down a guess:** what will the student score?

# %%
from distill_helpers.models import build_student, parameter_count

guess = 60  # percent; put yours here
student = build_student(tokenizer, layers=2, width=96, seed=2)
print(f"teacher: {parameter_count(teacher):,} weights")
print(f"student: {parameter_count(student):,}")
learn_traces(student.train(), ids, row_labels, steps)
_ = student.eval()

# %%
from distill_helpers import generate

test = list(three_sums.test_problems()[:tests])


def judge(model):
    texts = generate(
        model,
        tokenizer,
        [p.prompt for p in test],
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        batch_size=1000,
    )
    return [is_right(t, p.result) for p, t in zip(test, texts, strict=True)]


# %%
by_teacher, by_student = judge(teacher), judge(student)
score = {
    "the teacher": 100 * sum(by_teacher) / tests,
    "your guess": guess,
    "your student": 100 * sum(by_student) / tests,
}
for name, percent in score.items():
    print(f"{name:14} {percent:5.1f} % of the {tests:,} test problems")

# %% [markdown]
# ## How can a student pass its teacher?
#
# Every trace that the student learned was written by the teacher. **Predict:** of the
# test problems that the teacher gets wrong, how many does the student get right?

# %%
said = {True: "right", False: "wrong"}
both = Counter(zip(by_teacher, by_student, strict=True))
for (one, two), times in sorted(both.items(), reverse=True):
    print(f"teacher {said[one]}, student {said[two]}: {times:5,}")

# %% [markdown]
# Compare the two middle lines: problems lost and problems won. **The checker is a second
# teacher.** It knows only whether the result is right, but it knows that exactly. The filter
# removes most of the faulty traces, and the questions on which they were made. What it
# lets through are the wrong steps with a right result.
#
# How can the student then solve *new* problems that the teacher gets wrong? No test problem
# is among the 20,000. Our explanation: problems are made of the same small pieces, digits,
# carries and copying. The student meets each piece done right in other questions. Or does it know
# whole sums by heart? Look where the first sum stands in no kept trace:

# %%
seen = {(p.a, p.b) for p, ok in zip(asked, right, strict=True) if ok}
new = [i for i, p in enumerate(test) if (p.a, p.b) not in seen]
print(f"first sum in no kept trace: {len(new)} of {tests:,} problems")
for name, found in (("teacher", by_teacher), ("student", by_student)):
    print(f"{name}: {sum(found[i] for i in new) / max(1, len(new)):.0%} right")

# %% [markdown]
# So not by heart alone. Here is the limit, too: a piece that the teacher never gets right is in no trace, and no filter
# can teach it.
#
# A program that computes a sum can also write its steps. We pretend that we can only check, as
# with real problems.
#
# ## What is in a trace?
#
# A study asks what each part of the recipe is worth. 20,000 questions were asked for every
# arm. All took 1,200 steps and read the same number of tokens: where answers are short, a
# step has more rows.
#
# | arm | learns from |
# |---|---|
# | `answers only` | the teacher's results, right or wrong, without the steps |
# | `all traces` | steps and results, right or wrong |
# | `all traces, as many` | a random part of these, as many as are right |
# | `right traces` | those that the checker accepts |
#
# The study has five seeds. The diamond is your student, of 2,000 steps, for a single seed may
# start late.

# %%
from distill_helpers.course.plots import compare_arms
from distill_helpers.studies import load_results
from distill_helpers.studies import reasoning_traces as study

results = load_results(study.STUDY.name)
teacher_score = results.mean("exact_match", study.TEACHER, study.MOST).mean
mine = 100 * sum(by_student) / tests

# %%
arms = (study.ANSWERS, study.TRACES, study.AS_MANY, study.RIGHT)
fig, ax = plt.subplots(figsize=(7.5, 2.8))
live = {study.RIGHT: mine}
metric, setting = "exact_match", study.MOST
compare_arms(ax, results, metric, setting, live=live, arms=arms, told=True)
ax.axvline(teacher_score, color=TEACHER, linestyle="--")
ax.text(teacher_score - 1, 0, "the teacher", color=TEACHER, ha="right")
ax.axvline(guess, color="0.6", linestyle=":")
ax.text(guess - 1, 3.4, "your guess", color="0.4", ha="right")
ax.set_xlim(0, 100)
ax.set_xlabel("right, percent of 2,000 test problems")
ax.set_title(
    "Whole traces bring a student near its teacher, checked ones past it"
)
plt.show()

# %% [markdown]
# Without the steps few results are exactly right; more training may help them. The control is
# the third row: as many traces, unfiltered, give less. So here the gain comes from the filter,
# which changes the errors and the mix of questions together.
#
# So the student passes its teacher. But who else has the checker? The teacher could learn from
# its own right traces, for about as many operations as a student gets: a quarter of the steps,
# since it is larger. It has a head start, for the student begins from nothing. **Predict**
# whether the student still wins.

# %%
from distill_helpers.course.plots import forest

names = ("steps_help", "filter_helps", "passes_teacher", "passes_retrained")
fig, ax = plt.subplots(figsize=(8, 3.4))
forest(ax, [results.verdict(name) for name in names])
ax.set_title("A student passes its teacher, but not the retrained one")
ax.set_xlabel("points; the short mark is the margin that was claimed")
plt.show()
for arm in (study.TEACHER, study.RIGHT, study.AGAIN):
    print(
        f"{arm:24} {results.mean('exact_match', arm, study.MOST).mean:.0f} %"
    )

# %% [markdown]
# The last claim *fails*: the teacher that learned from its own checked traces is better
# than the students of these traces. Training a model on its own checked answers is called
# self-improvement (STaR, Zelikman et al. 2022). Ask for this baseline when you read that a
# student beat its teacher: the gain may come from the checker, and the teacher can use that
# checker, too. Our teacher was stopped early, and how much of its rise is only more training, no
# arm tells. Distillation gives you the *small* model. If you may train the teacher, do that first,
# and distil from the better one; we have not measured it.

# %% [markdown]
# ## Draw more than once
#
# Greedy decoding gives one trace to a question, and where that is wrong the question is
# lost. Draw several traces at a temperature above zero, and some of these questions come
# back. **pass@k** of a question is the chance that at least one of $k$ draws is right.
#
# ## Exercise 4 · pass@k
#
# *medium · an estimate that is easily biased · 10 minutes*
#
# Write `pass_at_k(drawn, right, k)`: of all sets of `k` among `drawn` answers, `right`
# of which are right, the share that holds at least one right answer.
#
# By hand: 4 drawn, 1 right, k = 2. Of the 6 pairs, 3 hold it: one half.


# %% tags=["exercise"]
def pass_at_k(drawn, right, k):
    return None  # your code here


at_k = checks.pass_at_k(pass_at_k, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know what to count"
# Count the sets in which all are wrong: `math.comb`. Putting the share of right answers
# into $1 - (1 - p)^k$ gives too little.

# %% [markdown] tags=["hint"] title="k = 1 is right, but a larger k is not"
# Go through the six pairs by hand. Less than one half: you draw with replacement, ask
# for all `k` to be right, or forget `k`. If a later case is too high, you add up chances
# that may come true together.


# %% tags=["solution"]
def pass_at_k(drawn, right, k):
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


at_k = checks.pass_at_k(pass_at_k, fallback=True)

# %% [markdown]
# **Predict:** is one draw better than greedy decoding, or worse?

# %%
n = 8
few = asked[:drawn_count]
draws = write_labels(
    writer,
    [p.prompt for p in few],
    work / "draws.jsonl",
    samples=n,
    temperature=1.0,
    max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    concurrency=500,
    progress=False,
)

# %%
by_prompt = {p.prompt: p for p in few}
pairs = [(row["messages"][0]["content"], row["answer"]) for row in draws]
good = [is_right(text, by_prompt[prompt].result) for prompt, text in pairs]
solved = Counter()
for (prompt, _), ok in zip(pairs, good, strict=True):
    solved[by_prompt[prompt]] += ok
different = len(keep(pairs, good))
print(f"{sum(good):,} right draws, {different:,} different right traces")

# %%
curve = [
    sum(at_k(n, solved[p], k) for p in few) / len(few) for k in range(1, n + 1)
]
greedy = 100 * sum(right[: len(few)]) / len(few)

# %%
fig, ax = plt.subplots(figsize=(6.5, 3))
ax.plot(range(1, n + 1), [100 * x for x in curve], "o-", color=TEACHER)
for k in (1, 2, 8):
    ax.text(
        k, 100 * curve[k - 1] - 9, f"{100 * curve[k - 1]:.0f}", ha="center"
    )
ax.axhline(greedy, color="0.4", linestyle="--")
ax.text(4.4, greedy - 8, f"greedy, same questions: {greedy:.0f}", color="0.4")
ax.set_ylim(0, 105)
ax.set_xlabel("draws k, at T = 1")
ax.set_ylabel("questions solved (percent)")
ax.set_title("With more draws, a checker finds what greedy loses")
plt.show()

# %% [markdown]
# One draw is worse than greedy decoding. With more of them and a checker,
# questions are solved that greedy decoding loses. On richer problems the draws also show other ways to
# a result, which are worth keeping (Yuan et al. 2023). The price: every draw is paid for, right
# or wrong. Three *new* questions, answered greedily, give more right traces than three draws
# on one: draw again where questions are scarce.

# %% [markdown]
# ## Soft labels on the same traces
#
# The teacher's weights are at hand here, so the student could also learn the teacher's
# *distributions* along the right traces. **Predict:** does that help or hurt?
#
# Two studies asked it. On the left, the answers are perfect by construction. On the
# right, they are the teacher's right traces. Points are seeds; compare within a panel, for the
# recipes differ.

# %%
sums = load_results("shared_task")
left_scores = {
    "tokens": sums.values("exact_match", "labels", "8000"),
    "soft": sums.values("exact_match", "soft", "8000"),
}
right_scores = {
    "tokens": results.values("exact_match", study.RIGHT, study.MOST),
    "soft": results.values("exact_match", study.SOFT, study.MOST),
}

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for ax, scores in zip(axes, (left_scores, right_scores), strict=True):
    for place, (name, found) in enumerate(scores.items()):
        color = TEACHER if name == "soft" else STUDENT
        spread = [place + 0.06 * i for i in range(-2, 3)]
        ax.plot(spread, found, "o", color=color, mfc="none", mew=1.8)
    ax.axhline(teacher_score, color=TEACHER, linestyle="--")
    ax.text(0.5, teacher_score - 8, "the teacher", color=TEACHER, ha="center")
    ax.set_xticks([0, 1], ["their tokens", "soft labels on them"])
    ax.set_xlim(-0.5, 1.5)
axes[0].set_ylim(0, 105)
axes[0].set_ylabel("right (percent)")
axes[0].set_title("8,000 perfect answers")
axes[1].set_title("the teacher's right traces")
plt.show()
for name, found in (("sums_many", sums), ("soft_traces", results)):
    verdict = found.verdict(name)
    print(f"{verdict.claim.text}: {verdict.status}")

# %% [markdown]
# Both are undecided: one far seed makes each interval wide. Yet on the right every student of
# tokens ends above every student of soft labels, and most of the latter end near the
# *teacher*, the dashed line. A possible reason: the filter took wrong answers out, but the teacher's distributions along
# the right ones still hold its doubts.
#
# In each panel one seed ends far below the others. We think that it began late and was not done
# after the last step. Two earlier rounds of the study of traces were broken off because such late
# starts decided them: see `docs/results.md`.
#
# So neither study shows a gain from soft labels here. With checked traces and a teacher that
# errs, begin with the tokens.
#
# ## How many questions are enough?

# %%
fig, ax = plt.subplots(figsize=(6.5, 3))
for place, setting in enumerate(results.study.settings):
    scores = results.values("exact_match", study.RIGHT, setting)
    spread = [place + 0.06 * i for i in range(-2, 3)]
    ax.plot(spread, scores, "o", color=STUDENT, mfc="none", mew=1.8)
    middle = sorted(scores)[len(scores) // 2]
    ax.text(place + 0.2, middle, f"median {middle:.0f}", va="center")
ax.axhline(teacher_score, color=TEACHER, linestyle="--")
ax.text(2.15, teacher_score - 8, "the teacher", color=TEACHER)
ax.set_xticks(range(3), [f"{int(s):,}" for s in results.study.settings])
ax.set_xlim(-0.5, 2.9)
ax.set_ylim(0, 105)
ax.set_xlabel("questions asked; the right traces are kept")
ax.set_ylabel("right (percent)")
ax.set_title("With 5,000 questions all five seeds pass, with 1,500 none")
plt.show()

# %% [markdown]
# All took the same number of steps, at the highest rate tried. With 1,500 questions one seed may have
# begun late; all end below the teacher. From 5,000 to 20,000 nothing can be seen to change.
#
# ## Word problems, and models that read English
#
# The same recipe on problems in words: names and numbers from our own generator, worked
# steps, and a checker for the number behind `####`. With a GPU, Qwen2.5-1.5B writes 1,500
# traces to these and as many to GSM8K's problems, and Qwen2.5-0.5B learns from what is kept. On a
# laptop we ask SmolLM2, with 135 million weights, a handful. **Predict:** how many does it
# solve?

# %%
from distill_helpers.tasks import word_problems
from distill_helpers.tasks.teachers import load_chat_pair

tutor, pupil = load_chat_pair(profile)
questions = [
    p
    for source in sources
    for p in word_problems.load(source, "train", word_count)
]

# %%
written = write_labels(
    LocalTeacher(*tutor, licence="Apache-2.0; no terms for its answers"),
    [p.prompt for p in questions],
    work / "words.jsonl",
    max_new_tokens=word_tokens,
    concurrency=128,
)

# %%
print("PROMPT:", questions[0].prompt, sep="\n", end="\n\n")
print("TEACHER:", written["answer"][0][:300], sep="\n", end="\n\n")
print("THE GENERATOR:", questions[0].answer, sep="\n")

# %%
from distill_helpers import filter_labels
from distill_helpers.labels import truncated, wrong

by_question = {p.prompt: p for p in questions}


def is_solved(row):
    asked_for = by_question[row["messages"][0]["content"]]
    return word_problems.is_right(asked_for, row["answer"])


from_teacher = filter_labels(
    written, {"truncated": truncated, "wrong": wrong(is_solved)}
)
print(from_teacher)

# %% [markdown]
# A filter cannot make right what was never written, and the laptop's teacher seldom even stops. Where
# fewer than fifty traces are left, as always on a laptop, the student learns worked answers
# of the generator instead. That is ordinary fine-tuning, and shows the rest of the path.
# The laptop's student is SmolLM2 without its ten middle layers.

# %%
from distill_helpers import learn_answers
from distill_helpers.data import pack_examples
from distill_helpers.labels import own_labels

worked = word_problems.problems(worked_count, seed=2)
own = own_labels([p.prompt for p in worked], [p.answer for p in worked])

# %%
enough = len(from_teacher.kept) >= 50
source = from_teacher.kept if enough else own
rows = pack_examples(learn_answers(source, pupil.tokenizer), word_length)
print("learns from", "its teacher" if enough else "the generator", end=": ")
print(f"{len(source):,} answers in {len(rows):,} rows of {word_length} tokens")


# %%
from distill_helpers.labels import prompt_text


def solve(problems):
    turns = [[{"role": "user", "content": p.prompt}] for p in problems]
    prompts = [prompt_text(turn, pupil.tokenizer) for turn in turns]
    options = {"max_new_tokens": answer_tokens, "batch_size": 50}
    texts = generate(pupil.model, pupil.tokenizer, prompts, **options)
    last_line = re.compile(r"####\s*-?\d[\d,]*\s*$")
    formed = sum(bool(last_line.search(text)) for text in texts)
    solved = sum(map(word_problems.is_right, problems, texts))
    print(f"of {len(texts)}, {formed} end as asked, {solved} are solved")


# %%
heldout = [
    p
    for source in sources
    for p in word_problems.load(source, "test", heldout_count)
]
solve(heldout)

# %% [markdown]
# `HardLabelTrainer` is your loop, with mixed precision, packed rows and checkpoints.

# %%
from distill_helpers import HardLabelTrainer, training_arguments

tutor = None  # the teacher has done its part; a GPU needs the room
arguments = training_arguments(profile, seed=0, **word_training)

# %%
HardLabelTrainer(
    pupil.model,
    args=arguments,
    train_dataset=rows,
    tokenizer=pupil.tokenizer,
).train()
solve(heldout)

# %% [markdown]
# One run, one seed: it shows the path and claims nothing. Each line says how often an answer
# ends in `####` and a number, as the prompt asked, and how often the checker finds the right number.
# On a laptop the form came first.

# %% [markdown] tags=["published"]
# ## What others found
#
# DeepSeek-R1 is the best-known teacher of traces. Some 600,000 reasoning samples were
# drawn from a checkpoint of its training and kept if right; a part of them was judged by
# another model, DeepSeek-V3. About 200,000 other samples were added. Six smaller models
# were fine-tuned on these with nothing else (DeepSeek-AI 2025, arXiv:2501.12948). Their
# figures are pass@1, in percent, on two sets of competition problems:
#
# | student | AIME 2024 | MATH-500 |
# |---|--:|--:|
# | R1-Distill-Qwen-1.5B | 28.9 | 83.9 |
# | R1-Distill-Qwen-7B | 55.5 | 92.8 |
# | R1-Distill-Llama-8B | 50.4 | 89.1 |
# | R1-Distill-Qwen-14B | 69.7 | 93.9 |
# | R1-Distill-Qwen-32B | 72.6 | 94.3 |
# | R1-Distill-Llama-70B | 70.0 | 94.5 |
# | Qwen-32B with reinforcement learning alone | 47.0 | 91.6 |
# | the teacher, DeepSeek-R1 | 79.8 | 97.3 |
#
# Qwen-32B came less far by itself, with checked answers, than by reading the teacher's
# traces. There the checker trained the *student*; in our rival, the teacher. None of these students
# passed DeepSeek-R1. It had itself been trained with such checkers, and our teacher had
# not.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | train on `sound` traces only: `keep(samples, sound)` | the same score, or a little more | the score |
# | train on every trace: `keep(samples, [True] * len(samples))` | near the teacher | the score |
# | 400 steps instead of 2,000 | a student that has not begun to carry | a far lower score |
# | `temperature=0.5` in the draws | a better first draw, fewer new solutions | pass@k |

# %%
# A place to try. For example:
# rows = [as_row(*samples[i]) for i in keep(samples, sound)]
# ids = torch.tensor([row for row, _ in rows])
# row_labels = torch.tensor([learned for _, learned in rows])
# other = build_student(tokenizer, layers=2, width=96, seed=2)
# learn_traces(other, ids, row_labels, steps)
# print(sum(judge(other)) / tests)

# %% [markdown]
# ## Recap
#
# * **Two numbers to remember:** how many test problems only your student solved, and how many
#   only the teacher. You have printed them.
# * Here, steps make the task far easier to learn; a checker makes the text better than its writer.
# * A right result may stand on a wrong step; a filter also changes which questions are
#   left.
# * The baseline that is forgotten: the teacher, trained on its own checked answers.
# * **Use traces when** the task has steps. Without a checker they can bring a student near
#   its teacher; with one, and enough questions, beyond. **Do not, when** the teacher solves next to
#   nothing, or when answers must be short: every step is a token to be paid for.
#
# *Read on:* Wei et al. 2022, arXiv:2201.11903, on chains of thought; Zelikman et al.
# 2022, arXiv:2203.14465; Yuan et al. 2023, arXiv:2308.01825; Chen et al. 2021,
# arXiv:2107.03374, on pass@k.
