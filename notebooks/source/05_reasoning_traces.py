# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display

from distill_helpers.plots import use_style
from distill_helpers.profiles import get_profile

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
from distill_helpers import three_sums

problem = three_sums.test_problems()[0]
print("problem:    ", problem.prompt)
print("with steps: ", problem.answer)
print("result only:", problem.result)

# %% [markdown]
# A language model does a fixed amount of computing per token. Whoever answers
# with the result alone has to add three numbers, every carry included, before
# the first digit is out. Whoever writes the steps down does a little at each
# token, and can read what is there already. Written-out steps that lead to an
# answer are a **reasoning trace**.
#
# Long traces are what the reasoning models of today write, and how their
# skill is handed to small models: the teacher's traces, as hard labels
# (DeepSeek-R1, 2025). The recipe has three lines. Sample traces. Keep those
# whose result is right. Train the student on them like on any other text.
# This lesson does all three at a size that takes minutes.
#
# ## A teacher that errs
#
# Our teacher learned the sums until it was right about four times in five, and
# not longer. Let it answer 2,000 questions. `write_labels` is the function from
# lesson 04: a file, resumable, one row for each answer.

# %%
from distill_helpers.hard_labels import LocalTeacher, write_labels
from distill_helpers.models import load_tiny_teacher

teacher = load_tiny_teacher("sums")
asked = three_sums.problems(profile.pick(smoke=40, cpu=2000, gpu=2000), seed=1)
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
from distill_helpers.three_sums import is_right

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
from collections import Counter


def first_fault(problem, text):
    steps, _, result = text.partition(";")
    first, _, second = steps.partition(",")
    a, b = problem.answer.partition(";")[0].split(",")
    if first != a:
        return "first sum"
    if second != b:
        return "second sum"
    return "copying" if result != str(problem.result) else "none"


faults = Counter(map(first_fault, asked, labels["answer"]))
lucky = sum(
    good and first_fault(p, text) != "none"
    for p, text, good in zip(asked, labels["answer"], right, strict=True)
)

# %%
places = ["first sum", "second sum", "copying"]
fig, ax = plt.subplots(figsize=(5.5, 2.2))
ax.barh(places, [faults[place] for place in places])
ax.invert_yaxis()
ax.set_xlabel(f"wrong traces, of {len(asked):,}")
ax.set_title("Where the teacher's traces go wrong first")
plt.show()
print(lucky, "results are right although a step is wrong")

# %% [markdown]
# The last line is a warning. A checker of results lets a wrong step through
# when two errors cancel, and a student will learn it. Where that matters, check
# the steps too.
#
# ## Keep what is right
#
# The filter is the one from lesson 04, with our checker in it. Asking a teacher
# and keeping only what a check accepts is called **rejection sampling**.

# %%
from distill_helpers.label_filters import filter_labels, truncated, wrong

by_prompt = {p.prompt: p for p in asked}


def accepted(row):
    return is_right(by_prompt[row["messages"][0]["content"]], row["answer"])


filtered = filter_labels(
    labels, {"truncated": truncated, "wrong": wrong(accepted)}
)
print(filtered)

# %% [markdown]
# ## What is in a trace?
#
# Now the comparison. The teacher (4 layers, 128 wide) answers 20,000 questions
# once each, greedily. The student is small and fresh (2 layers, 96 wide), and
# every student trains on **the same number of tokens**; answers alone are short,
# so those students see several times as many. What differs is what they read:
#
# * *answers only*: the teacher's results, right or wrong, without the steps;
# * *all traces*: steps and results, right or wrong;
# * *all traces, as many*: a random part of these, as many as are right;
# * *right traces*: those that the checker accepts;
# * *right traces, soft*: the same text, learned from the teacher's
#   distributions instead of its tokens (lesson 02);
# * *the teacher, retrained*: the teacher itself, trained on its own right
#   traces for as much computing as a student gets.
#
# **Predict** the order before you look. Which of them pass the teacher?

# %%
from distill_helpers.plots import compare_arms
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
ax.set_title("Equal training tokens, mean and interval of five seeds")
plt.show()

# %%
columns = ("exact_match", "rows", "trained_tokens")
print(results.table(columns, study.MOST, digits=1), end="\n\n")
for claim in results.study.claims[:3]:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# The steps are nearly everything. The same student, the same teacher, the same
# computing: without the steps it hardly learns to add at all.
#
# The filter comes on top. It costs a fifth of the text, and what is left teaches
# better than as much unfiltered text.
#
# ## One more student, live
#
# The same run with a seed of its own, in front of you:

# %%
count = profile.pick(smoke=200, cpu=int(study.MOST), gpu=int(study.MOST))
traces = study.write_traces(count, seed=0)
trained = study.train_student(
    traces,
    study.RIGHT,
    seed=0,
    steps=profile.pick(smoke=4, cpu=study.STEPS, gpu=study.STEPS),
    **dict(results.options(study.RIGHT, study.MOST)),
)

# %%
tests = profile.pick(smoke=40, cpu=2000, gpu=2000)
score = study.score(trained.model, study.RIGHT, tests)
print(f"{trained.rows:,} right traces; the student: {score:.1f} %")
live = results.check_live(
    "exact_match", study.RIGHT, study.MOST, score, judged=judged
)
display(live)

# %% [markdown]
# ## How can a student pass its teacher?
#
# Nothing the student read was written by anybody but the teacher. **Predict:**
# of the test problems that the teacher gets wrong, how many does the student get
# right?

# %%
from distill_helpers.evaluation import generate

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


hers, his = judge(teacher.model), judge(trained.model)

# %%
names = {True: "right", False: "wrong"}
for (one, two), found in sorted(
    Counter(zip(hers, his, strict=True)).items(), reverse=True
):
    print(f"teacher {names[one]}, student {names[two]}: {found:5,}")

# %% [markdown]
# The checker is a second teacher. It knows only right from wrong, but it knows
# that exactly, and the filter passes its knowledge on: among the traces that are
# left, carrying is always done as it should be. The teacher's weights hold the
# rule *and* its exceptions; the student is shown the rule alone. That is why
# unfiltered traces lead about as far as the teacher, and filtered ones past it.
#
# Then the teacher can learn from them too. It is larger, and it starts where the
# student hopes to arrive:

# %%
display(results.verdict("passes_retrained", judged=judged))

# %% [markdown]
# Training a model on its own checked answers is called self-improvement (STaR,
# Zelikman et al. 2022). Keep that baseline in mind when you read that a student
# "beat its teacher": the checker did, and it would have helped the teacher as
# well. What distillation adds is the *small* model.
#
# ## Draw more than once
#
# Greedy decoding gives one trace a question, and the hard questions never make
# it through the filter. Draw several traces at a temperature above zero, and for
# most questions one of them is right. How many draws does it take?
#
# Draw n answers, c of them right. The share of all sets of k among them that
# hold a right one is $1 - \binom{n-c}{k} / \binom{n}{k}$, called **pass@k**.
# Below the same number computed a second way, by trying every set.

# %%
import itertools
import math

n, c, k = 8, 2, 3
formula = 1 - math.comb(n - c, k) / math.comb(n, k)
drawn = [True] * c + [False] * (n - c)
tried = [any(chosen) for chosen in itertools.combinations(drawn, k)]
print(f"{formula:.4f} = {sum(tried)} of {len(tried)}")

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
counts = [sum(good[i : i + n]) for i in range(0, len(good), n)]

# %%
curve = [
    sum(1 - math.comb(n - c, k) / math.comb(n, k) for c in counts)
    / len(counts)
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
# One draw is worse than greedy. Several, with a checker, reach questions that
# greedy decoding never solves, and sometimes by another way, which is worth
# keeping too (Yuan et al. 2023). The price: every draw is paid for, right or
# wrong.
#
# ## How many traces are enough?

# %%
from distill_helpers.plots import over_settings

fig, ax = plt.subplots(figsize=(6, 3))
over_settings(ax, results, "exact_match", [study.RIGHT])
ax.axhline(teacher_score, color="0.4", linestyle="--")
ax.text(1.4, teacher_score - 6, "the teacher", color="0.4")
ax.set_ylim(0, 100)
ax.set_xlabel("questions asked; the right traces are kept")
ax.set_ylabel("exact match (percent)")
ax.set_title("The same steps of training, on fewer questions")
plt.show()
display(results.verdict("more_questions", judged=judged))

# %% [markdown]
# ## Soft labels on the same traces
#
# The teacher's weights are at hand here, so its soft labels are too. **Predict:**
# on traces that are right, do they help or harm?

# %%
display(results.verdict("soft_traces", judged=judged))
for arm in (study.TRACES, study.RIGHT, study.SOFT):
    found = results.mean("exact_match", arm, study.MOST)
    print(f"{arm:20} {found.mean:.1f} (the teacher: {teacher_score:.1f})")

# %% [markdown]
# Look at where the soft student ends. The filter took out the tokens that the
# teacher got wrong, but its *distributions* on the right ones still hold its
# doubts, and the student learns these. A soft label knows nothing of the
# checker.
#
# ## Word problems, and models that read English
#
# Sums suit a model of a few hundred thousand weights. The same recipe on
# problems in words, from our own generator: templates with names and numbers,
# worked steps, and a checker for the number behind `####`.

# %%
from distill_helpers import word_problems

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
from distill_helpers.models import load_chat_pair

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
# A filter cannot make right what was never written. Where the teacher is this
# weak, there is nothing to distil, and that is a result too. So on a laptop the
# student learns from worked answers of the generator, to show the rest of the
# path; with a GPU, from what the teacher wrote and the checker kept.

# %%
from distill_helpers.data import pack_examples
from distill_helpers.hard_labels import learn_answers, own_labels

worked = word_problems.problems(profile.pick(smoke=8, cpu=800, gpu=8), seed=2)
own = own_labels([p.prompt for p in worked], [p.answer for p in worked])
source = profile.pick(smoke=own, cpu=own, gpu=kept.kept)
length = profile.pick(smoke=200, cpu=512, gpu=1024)
rows = pack_examples(learn_answers(source, pupil.tokenizer), length)
print(f"{len(source):,} answers in {len(rows):,} rows of {length} tokens")


# %%
def solve(tests):
    texts = generate(
        *pupil,
        [
            prompt_text(
                [{"role": "user", "content": p.prompt}], pupil.tokenizer
            )
            for p in tests
        ],
        max_new_tokens=profile.pick(smoke=4, cpu=80, gpu=256),
        batch_size=50,
    )
    solved = sum(map(word_problems.is_right, tests, texts))
    print(f"{solved} of {len(tests)} solved; for example: {texts[0]!r}")


# %%
from distill_helpers.hard_labels import prompt_text
from distill_helpers.trainers import HardLabelTrainer, training_arguments

heldout = word_problems.test_problems()
heldout = heldout[: profile.pick(smoke=2, cpu=50, gpu=500)]
solve(heldout)

# %%
del tutor  # the teacher has done its part; a GPU needs the room
HardLabelTrainer(
    pupil.model,
    args=training_arguments(
        profile,
        steps=profile.pick(smoke=2, cpu=20, gpu=300),
        learning_rate=profile.pick(smoke=1e-4, cpu=2e-4, gpu=2e-5),
        batch_size=profile.pick(smoke=1, cpu=4, gpu=4),
        seed=0,
    ),
    train_dataset=rows,
    tokenizer=pupil.tokenizer,
).train()
solve(heldout)

# %% [markdown] tags=["published"]
# ## What others found
#
# DeepSeek-R1 wrote some 800,000 samples, three quarters of them reasoning that
# passed rejection sampling, and six smaller models were fine-tuned on them with
# nothing else (DeepSeek-AI 2025, arXiv:2501.12948). Their figures, pass@1 in
# percent on AIME 2024 and MATH-500:
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
# from a checker, came less far than by reading the teacher's traces. None of the
# students passed the teacher. Ours did because its teacher was stopped early;
# theirs was not.

# %% [markdown]
# ## Exercise 1 · An exact checker
#
# *easy · a sloppy checker poisons everything behind it · 5 minutes*
#
# Write `exact_checker(answer, result)`: whether what stands behind the last
# semicolon is the number `result` and nothing else, spaces apart.
#
# By hand: `"27+58=85,85+46=131;131"` is right for 131. With `;1131` or `;13`, or
# without the semicolon, it is not.

# %% tags=["exercise"]
from distill_helpers import checks


def exact_checker(answer, result):
    return None  # your code here


checks.exact_checker(exact_checker)

# %% [markdown] tags=["hint"]
# `str.rpartition` cuts at the *last* semicolon, and its middle part is empty if
# there was none. Compare texts, not endings.

# %% tags=["solution"]
from distill_helpers import checks


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
# places of those to train on: right, and every answer to a question only once.
#
# By hand: samples `("1+2", "3"), ("1+2", "4"), ("2+1", "3"), ("1+2", "3")` with
# right, wrong, right, right give `[0, 2]`.


# %% tags=["exercise"]
def keep_right(samples, right):
    return None  # your code here


checks.keep_right(keep_right)

# %% [markdown] tags=["hint"]
# Remember what you have kept in a set, question and answer together. A wrong
# sample must leave no trace in it.


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
# *medium · the estimate that everybody gets slightly wrong · 10 minutes*
#
# Write `pass_at_k(drawn, right, k)`: of all sets of `k` among `drawn` answers,
# `right` of which are right, the share that holds at least one right answer.
#
# By hand: 4 drawn, 1 right, k = 2. Of the 6 pairs, 3 hold it: one half.


# %% tags=["exercise"]
def pass_at_k(drawn, right, k):
    return None  # your code here


checks.pass_at_k(pass_at_k)

# %% [markdown] tags=["hint"]
# Count the sets in which all are wrong: `math.comb`. Putting the share of right
# answers into $1 - (1 - p)^k$ is biased.


# %% tags=["solution"]
def pass_at_k(drawn, right, k):
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


checks.pass_at_k(pass_at_k)

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what is a reasoning trace? | the written-out way to a result, learned like any other text |
# | why does it help a small student? | a little computing at each token, instead of all before the first |
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
