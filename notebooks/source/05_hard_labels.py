# %%
import contextlib
import math
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from distill_helpers import get_profile
from distill_helpers.course.plots import (
    PALE,
    STUDENT,
    TEACHER,
    TEXT,
    use_style,
)
from distill_helpers.machine import progress_bar

use_style()
profile = get_profile(PROFILE)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# The sizes of this lesson:

# %%
pool_count = profile.pick(smoke=60, cpu=4000, gpu=4000)
steps = profile.pick(smoke=2, cpu=300, gpu=300)
judged = profile.pick(smoke=4, cpu=2000, gpu=2000)
told_count = profile.pick(smoke=1, cpu=8, gpu=4000)
real_judged = profile.pick(smoke=1, cpu=120, gpu=2000)
real_length = profile.pick(smoke=200, cpu=512, gpu=512)
real_training = profile.pick(
    smoke={"batch_size": 1, "steps": 1, "learning_rate": 1e-4},
    cpu={"batch_size": 4, "steps": 15, "learning_rate": 3e-4},
    gpu={
        "batch_size": 2,
        "steps": 150,
        "learning_rate": 2e-5,
        "gradient_accumulation_steps": 2,
    },
)
asked_count = profile.pick(smoke=2, cpu=24, gpu=24)
shots = profile.pick(smoke=1, cpu=6, gpu=6)
marked = profile.pick(smoke=2, cpu=12, gpu=12)
answer_tokens = profile.pick(smoke=4, cpu=24, gpu=24)
mark_steps = profile.pick(smoke=1, cpu=5, gpu=5)

# %% [markdown]
# ## From a distribution to a word
#
# Soft labels need the teacher's probabilities. Many teachers do not give them: they sit behind
# an API, and what comes out is text. So the student learns from **hard labels**, the
# words that the teacher wrote, as if they were the truth.
#
# What does that throw away? At every position the teacher has a whole distribution, and
# a word keeps one entry of it. **Predict:** at how many positions of a novel does the
# likeliest token have less than half of the probability?

# %%
from distill_helpers import pack
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_teacher

packaged = get_profile("cpu")  # SmolLM2 with 135 million weights, everywhere
teacher, tokenizer = load_teacher(packaged)

# %%
novel = pack(austen("test"), tokenizer, 128).select(range(8))
ids = torch.tensor(novel["input_ids"], device=teacher.device)
with torch.no_grad():
    p = teacher(ids).logits[:, :-1].float().softmax(-1).flatten(0, 1)
best = p.amax(-1).cpu()

# %%
guess = 0.5  # which share of positions? Write yours here
unsure = (best < 0.5).float().mean().item()

# %%
fig, ax = plt.subplots(figsize=(7, 2.8))
ax.hist(best, bins=20, range=(0, 1), color=TEACHER)
ax.axvline(0.5, color="#222222", lw=1)
ax.set_xlabel("probability of the likeliest token")
ax.set_ylabel("positions")
ax.set_title(f"At {unsure:.0%} of positions the likeliest has less than half")
plt.show()
print(f"you guessed {guess:.0%}")

# %% [markdown]
# So in prose a word leaves much out. In an answer such as `{"kind": "animal"}` most of
# the text is fixed, and one word matters. There a hard label loses less.
#
# ## Whole answers
#
# In lesson 02, labels made of the teacher's favourite *token* taught badly. One reason may
# be that they stood on a text that somebody else wrote. Let the teacher write the *whole answer*, and each word
# follows from the teacher's own words before it. That is **sequence-level distillation**
# (Kim and Rush 2016).

# %%
from distill_helpers.course import diagrams

diagrams.hard_labels()

# %% [markdown]
# One choice remains. Take the likeliest token each time, which is called *greedy*, or
# draw. Our questions have one short right answer, so we are greedy. Where many answers
# are good, greedy writing hides all but one of them.
#
# ## A task that you can judge yourself
#
# A **gloss** is a dictionary's short definition of a word. Given a noun and its gloss,
# say what *kind* of thing it is: one of twelve, written as JSON. For 600 glosses we use
# the right answers, which come from WordNet. For the thousands in the **pool** we pretend
# to have none.

# %%
from distill_helpers.tasks import glosses

parts = glosses.splits()
example = parts.labelled[0]
print(*glosses.kinds(), sep=", ")
print(f"{len(parts.labelled)} with right answers", end=", ")
print(f"{len(parts.pool):,} in the pool")
print(f"{len(parts.test):,} to judge by\n\n{example.prompt} {example.answer}")

# %% [markdown]
# The teacher is SmolLM2, trained for 60 steps on the 600. It then answered 4,000 glosses
# of the pool, and its answers are in the course's data. Here the truth is known, so we
# can see how good this teacher is. With your own data you would label a few hundred
# answers by hand for that. Below, its answer stands behind the arrow, the dictionary's
# kind in brackets.

# %%
answers = glosses.pool_labels().select(range(pool_count))
pool = parts.pool[:pool_count]
known = glosses.judge_answers(answers["answer"], pool)

# %%
print(
    f"valid {known.valid:.1%}, right {known.accuracy:.1%} of {known.count:,}\n"
)
for gloss, text in list(zip(pool, answers["answer"], strict=True))[:60]:
    if glosses.read_answer(text) != gloss.kind:
        short = textwrap.shorten(gloss.gloss, 48, placeholder=" …")
        print(f"{gloss.word}: {short} -> {text} ({gloss.kind})")

# %% [markdown]
# Which of these would you call wrong? Some show the teacher's limits, some the
# dictionary's.
#
# ## Exercise 1 · Learn the answer, and its end
#
# *easy · the mask that everybody gets wrong once · 5 minutes*
#
# The student will be given the prompt, so it should learn the answer alone. Write
# `answer_labels(prompt, answer, end)`: the labels of the row `prompt + answer + [end]`,
# not shifted, with −100 where nothing is to be learned.
#
# By hand: the prompt [5, 6], the answer [7, 8, 9] and the end 0 give
# [−100, −100, 7, 8, 9, 0].

# %% tags=["exercise"]
from distill_helpers.course import checks


def answer_labels(prompt, answer, end):
    return None  # your code here


labels_of = checks.answer_labels(answer_labels, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# The row without its prompt is exactly what is to be learned. Mask by position, not by
# the id of a token.

# %% [markdown] tags=["hint"] title="My list ends with −100"
# It should end with `end`, from which the student learns to stop. If every label stands
# one place too early, you have shifted; the loss does that later.

# %% tags=["solution"]
from distill_helpers.course import checks


def answer_labels(prompt, answer, end):
    return [-100] * len(prompt) + [*answer, end]


labels_of = checks.answer_labels(answer_labels, fallback=True)

# %% [markdown]
# ## The student, and its loop
#
# The student is an old acquaintance: the tiny Austen model, the *teacher* of lesson 02.
# It has a vocabulary of its own, so SmolLM2's soft labels do not fit it. Text does.

# %%
from distill_helpers.tasks.teachers import load_tiny_teacher

tiny, tiny_tokenizer = load_tiny_teacher("prose")
end = tiny_tokenizer.eos_token_id

# %%


def as_row(prompt, answer):
    given, learned = (tiny_tokenizer(t).input_ids for t in (prompt, answer))
    labels = labels_of(given, learned, end)
    return torch.tensor([*given, *learned, end]), torch.tensor(labels)


# %%
row, labels = as_row(example.prompt, example.answer)
print(repr(tiny_tokenizer.decode(row)))
print("learned:", repr(tiny_tokenizer.decode(labels[labels != -100])))
print("the id of padding:", tiny_tokenizer.pad_token_id, " of the end:", end)

# %% [markdown]
# Look at the last line: padding and end have the same id, as in many models. If you mask
# padding *by its id*, you mask the end too, and the student never learns to stop. So the
# labels are padded with −100 here, by position. Padding stands on the right, where no learned
# token sees it.

# %%
from torch.nn.utils.rnn import pad_sequence
from transformers import get_cosine_schedule_with_warmup


def fine_tune(student, rows, steps, rate=1e-3, batch=16):
    """The loop: ordinary training on somebody else's words."""
    optimizer = torch.optim.Adam(student.parameters(), rate, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(
        optimizer, steps // 20 + 1, steps
    )
    for start in progress_bar(range(0, steps * batch, batch)):
        some = [rows[i % len(rows)] for i in range(start, start + batch)]
        ids, labels = zip(*some, strict=True)
        ids = pad_sequence(ids, batch_first=True, padding_value=end)
        labels = pad_sequence(labels, batch_first=True, padding_value=-100)
        logits = student(ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


# %% [markdown]
# This is fine-tuning as you know it. What makes it distillation is where the words come
# from. The student reads the 600 right answers and the teacher's 4,000, mixed.

# %%
rows = [as_row(gloss.prompt, gloss.answer) for gloss in parts.labelled]
rows += [
    as_row(row["messages"][0]["content"], row["answer"]) for row in answers
]
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
rows = [rows[i] for i in order.tolist()]

# %%
test = parts.test[:judged]
before = glosses.judge(tiny, tiny_tokenizer, test)
fine_tune(tiny.requires_grad_(True).train(), rows, steps)
after = glosses.judge(tiny.eval(), tiny_tokenizer, test)
for name, seen in (("before", before), ("after", after)):
    print(f"{name}: valid {seen.valid:.0%}, right {seen.accuracy:.0%}")

# %% [markdown]
# ## What are a teacher's answers worth?
#
# A study asks what the teacher's 4,000 answers add, and what 4,000 *true* answers would
# have added. All students take the same number of steps. **Predict:** of the gain from
# true answers, what share do the teacher's answers keep?

# %%
from distill_helpers.studies import hard_labels as study
from distill_helpers.studies import load_results

results = load_results("hard_labels")

# %%
ways = {
    "600 right answers": (study.ALONE, study.NONE, TEXT),
    "+ 1,000 of the teacher's": (study.TAUGHT, study.SOME, TEACHER),
    "+ 1,000 right answers": (study.RIGHT, study.SOME, TEXT),
    "+ 4,000 of the teacher's": (study.TAUGHT, study.MOST, TEACHER),
    "+ 4,000 right answers": (study.RIGHT, study.MOST, TEXT),
}

# %%
found = {
    name: results.mean("accuracy", arm, setting)
    for name, (arm, setting, _) in ways.items()
}

# %%
fig, ax = plt.subplots(figsize=(8, 3.4))
for place, (name, one) in enumerate(found.items()):
    color = ways[name][2]
    ax.plot([100 * one.low, 100 * one.high], [place] * 2, color=color, lw=3)
    ax.plot(100 * one.mean, place, "o", color=color, ms=8)
    ax.text(100 * one.mean, place - 0.25, f"{one.mean:.0%}", ha="center")
ax.plot(100 * after.accuracy, 3, "D", mfc="white", mec="#222222")
ax.axvline(100 * known.accuracy, color=TEACHER, linestyle="--")
ax.text(
    100 * known.accuracy - 1,
    0,
    "the teacher (pool)",
    color=TEACHER,
    ha="right",
)
ax.set_yticks(range(len(found)), list(found))
ax.set_ylim(4.5, -0.7)
ax.set_xlim(0, 100)
ax.set_xlabel("right on 2,000 test glosses (percent)")
ax.set_title(
    "With 4,000, the teacher's answers do nearly as well as the truth"
)
plt.show()

# %%
base = found["600 right answers"].mean
share = (found["+ 4,000 of the teacher's"].mean - base) / (
    found["+ 4,000 right answers"].mean - base
)
print(f"{share:.0%} of the gain from true answers is kept")
claim = results.verdict("nearly_the_truth")
least = claim.claim.share
print(f"claimed beforehand: at least {least:.0%} of it; this {claim.status}")

# %% [markdown]
# The claim says *at least* so much; the printed share is an estimate, whose last figures are noise.
# A dot is the mean of five seeds, its line the interval of that mean, short enough to hide behind a
# dot. The diamond is your one run; the study also decayed weights, and chose checkpoints by 400
# more right answers. Two gaps matter. Between equally many answers: the price of the teacher's
# mistakes, smaller with more of them. From the last rows to the dashed line, the teacher on the
# pool: what this small student lacks, five novels read, 300 steps taken.
#
# The teacher learned from the same 600. What it adds is what it knew before, put to work on
# glosses that nobody had labelled.
#
# ## Look, and filter
#
# The answers above came from a teacher that knows the form. Most do not, and then you
# must look and filter. Each filter has its reason:
#
# | drop what is … | without the filter |
# |---|---|
# | cut off | the student learns to stop anywhere, or never |
# | empty, or a refusal | the student learns to say nothing |
# | of the wrong form | your program cannot read the student's answers |
# | a duplicate, or nearly one | a few easy questions crowd out the rest |
# | shared with the test | the *score* is spoiled, not the student: it has seen the test |
# | wrong | the student learns the mistake; only a checker can see it |

# %%
from distill_helpers import filter_labels
from distill_helpers.labels import filters as lf


def has_form(row):
    return glosses.read_answer(row["answer"]) is not None


# %%
filters = {
    "truncated": lf.truncated,
    "empty": lf.empty,
    "refused": lf.refused,
    "no JSON": lf.wrong(has_form),
    "duplicate": lf.duplicate,
    "near duplicate": lf.near_duplicate(0.8),
    "shares test text": lf.contaminated(g.gloss for g in parts.test),
}
kept = filter_labels(answers, filters)
print(kept)

# %% [markdown]
# ## Exercise 2 · Is the test in the training data?
#
# *medium · what a contamination filter does · 10 minutes*
#
# Write `shares_run(text, held_out, n)`: whether some `n` words stand next to each other,
# in the same order, in both texts, whatever their case. Words are what spaces separate.
#
# By hand: "A SMALL ANIMAL" and "a small animal that lives in trees" share a run of 3;
# "trees lives that small" shares none of 2.


# %% tags=["exercise"]
def shares_run(text, held_out, n):
    return None  # your code here


shares = checks.shares_run(shares_run, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# A text of L words has L − n + 1 runs of n. Put those of one text into a set, as tuples.

# %% [markdown] tags=["hint"] title="It misses a run, or finds one that is not there"
# Misses one: compare in lower case, and look at the last run, which begins at word L − n
# when you count from 0. Finds one: `in` on two strings also finds parts of words.


# %% tags=["solution"]
def shares_run(text, held_out, n):
    def runs(text):
        words = text.lower().split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    return bool(runs(text) & runs(held_out))


shares = checks.shares_run(shares_run, fallback=True)

# %%
by_filter = [r for r in kept.dropped if r["dropped_by"] == "shares test text"]


def shared_run(text, held_out, n=8):
    words = text.split()
    runs = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    return next((run for run in runs if shares(run, held_out, n)), None)


for row in by_filter[:2]:
    text = row["messages"][0]["content"].splitlines()[0]
    print(text[:70])
    for gloss in parts.test:
        if run := shared_run(text, gloss.gloss):
            print(f"    and the test's {gloss.word!r}: {run!r}")

# %% [markdown]
# These are no copies, but nearly the same question with the same answer: that is why such rows go.
# A text of fewer than `n` words has no such run: the package's filter also finds a shorter one,
# from half of `n` words on, if it stands there whole.
#
# The student above read all rows, before this filter: a few rows move its result little, but
# the right order is to filter first.

# %% [markdown]
# ## Exercise 3 · A second opinion
#
# *hard · form is easy to check, truth is not · 20 minutes*
#
# The filters see form and repetition, so a wrong answer in the right form passes. Build a
# cheap second opinion from the 600 right answers, and keep the teacher's answer only
# where the two agree.
#
# Write `second_opinion(known, texts)`. `known` is a list of `(text, kind)`. Return one
# kind for each text: the kind whose known texts fit its words best. A word that is common
# everywhere should decide nothing.
#
# By hand: "a small bird" is an animal and "a sweet dish" is food. Then "a bird in a cage"
# is an animal. That "a" stands in both says nothing.


# %% tags=["exercise"]
def second_opinion(known, texts):
    return None  # your code here


vote = checks.second_opinion(second_opinion, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# For each kind, count in how many of its texts a word stands. A word speaks for a kind by
# the *logarithm* of its share there, and the sum over the words is the kind's score. This
# is called naive Bayes; here all kinds are equally likely beforehand.

# %% [markdown] tags=["hint"] title="It crashes, or takes the same kind every time"
# A word that no text of a kind has gets the share 0, and its logarithm is minus infinity.
# Add a little to every count. If the kind with the most texts always wins, you add up counts
# instead of shares.


# %% tags=["solution"]
def second_opinion(known, texts):
    sizes = Counter(kind for _, kind in known)
    counts = {kind: Counter() for kind in sizes}
    for text, kind in known:
        counts[kind].update(set(text.lower().split()))

    def score(kind, text):
        words = text.lower().split()
        seen = [(counts[kind][w] + 0.2) / (sizes[kind] + 0.4) for w in words]
        return sum(math.log(share) for share in seen)

    return [max(sizes, key=lambda kind: score(kind, t)) for t in texts]


vote = checks.second_opinion(second_opinion, fallback=True)

# %%
given = [(f"{g.word} {g.gloss}", g.kind) for g in parts.labelled]
votes = vote(given, [f"{g.word} {g.gloss}" for g in pool])
said = [glosses.read_answer(text) for text in answers["answer"]]
truth = [gloss.kind for gloss in pool]
agree = [a == b for a, b in zip(said, votes, strict=True)]


def right_where(chosen):
    pairs = zip(said, truth, chosen, strict=True)
    good = [a == b for a, b, take in pairs if take]
    return sum(good) / max(1, len(good))


# %%
alone = sum(a == b for a, b in zip(votes, truth, strict=True)) / len(pool)
print(f"the second opinion alone: {alone:.0%} right")
print(f"the teacher alone: {known.accuracy:.1%} of {len(pool):,}")
print(f"where both agree: {right_where(agree):.1%} of {sum(agree):,}")

# %% [markdown]
# Where both agree, a larger share is right, although the second judge is a poor one and has
# learned from the same 600. Partly that is selection: two judges agree on easy glosses. What
# was the price?

# %%
dropped = [not both for both in agree]
print(f"dropped: {sum(dropped):,}", end=", ")
print(f"of which {right_where(dropped):.0%} were right")

# %% [markdown]
# Many right answers go. Where mistakes cost little, that may be a bad bargain. For a teacher that errs more often it may be a good one. The
# way to know is to train on both; *Turn the knobs* invites you.

# %% [markdown]
# ## A student that reads English
#
# Now a student that has read far more English: on a laptop, SmolLM2 without its ten middle layers; with
# a GPU, Qwen2.5-0.5B.
#
# A teacher need not be *trained* for a task; it can be *told*. It gets a long prompt that
# names the twelve kinds. The student learns to give the same answer to a short prompt that
# names none. This is **context distillation** (Askell et al. 2021, arXiv:2112.00861). With a
# GPU, Qwen2.5-1.5B-Instruct is told. On a laptop it is SmolLM2, as it was before its training
# for this task. **Predict:** will it do?

# %%
from distill_helpers import LocalTeacher, write_labels
from distill_helpers.labels import own_labels
from distill_helpers.tasks.teachers import load_chat_pair

tutor, pupil = load_chat_pair(profile)

# %%
some = parts.pool[:told_count]
told = write_labels(
    LocalTeacher(*tutor, licence="Apache-2.0; no terms for its answers"),
    [gloss.instruction for gloss in some],
    work / "told.jsonl",
    max_new_tokens=answer_tokens,
    concurrency=128,
)

# %%
texts = [
    text.strip().removeprefix("```json").strip("`\n ")
    for text in told["answer"]
]
seen = glosses.judge_answers(texts, some)
print(f"valid {seen.valid:.0%}, right {seen.accuracy:.0%} of {seen.count}")
print("asked   ", some[0].instruction)
print("answered", told["answer"][0])

# %%
good_enough = seen.accuracy > 0.5
short = own_labels([gloss.prompt for gloss in some], texts)
short = short.add_column("finish_reason", told["finish_reason"])
source = filter_labels(short, filters).kept if good_enough else kept.kept
who = "the told teacher" if good_enough else "the trained teacher from above"
print("so the student learns from", who)

# %% [markdown]
# `HardLabelTrainer` is your loop, for long runs: mixed precision, checkpoints, resuming.
# Short rows would waste a batch on padding, so several are *packed* into one, out of each
# other's sight.

# %%
from distill_helpers import HardLabelTrainer, learn_answers, training_arguments
from distill_helpers.data import pack_examples

questions = parts.test[:real_judged]
before = glosses.judge(*pupil, questions)
packed = pack_examples(learn_answers(source, pupil.tokenizer), real_length)
read = real_training["steps"] * real_training["batch_size"]
read *= real_training.get("gradient_accumulation_steps", 1) / len(packed)
print(f"{len(source):,} answers are there, {read:.0%} of them will be read")
tutor = None  # it has done its part; a GPU needs the room

# %%
HardLabelTrainer(
    pupil.model,
    args=training_arguments(profile, seed=0, **real_training),
    train_dataset=packed,
    tokenizer=pupil.tokenizer,
).train()
after = glosses.judge(*pupil, questions)

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3), sharey=True)
for ax, title in zip(axes, ("valid", "accuracy"), strict=True):
    shown = [100 * getattr(one, title) for one in (before, after)]
    bars = ax.bar(["before", "after"], shown, color=[PALE, STUDENT])
    ax.bar_label(bars, fmt="%.0f %%", padding=2)
    ax.set_ylim(0, 118)
    ax.set_title(
        "JSON of the right form" if title == "valid" else "the right kind"
    )
axes[0].set_ylabel("percent of glosses")
plt.show()

# %% [markdown]
# A few steps taught form and task. On a laptop the student read fewer answers of the
# trained teacher than the 600 right ones that we have. So this shows the tool: no gain, and on a
# laptop no context distillation either. It is one run with one seed, judged on few
# glosses on a laptop. And "before" is no baseline: nobody had told the student the form or
# the kinds.
#
# ## A teacher behind an API
#
# Now a teacher of which you see nothing but answers: SmolLM2 as it is, not the one that was
# trained for this task. llama.cpp serves it on this machine, in the protocol of commercial
# APIs. For another teacher, change name and
# address. The key comes from `OPENAI_API_KEY`, in the environment or Colab's secrets, is never
# shown, and is written nowhere.

# %%
from distill_helpers import ApiTeacher
from distill_helpers.course.local_server import MODEL, serve_packaged_teacher
from distill_helpers.labels import plan_labels

server = contextlib.ExitStack()
base_url = server.enter_context(serve_packaged_teacher())

# %%
black_box = ApiTeacher(
    MODEL,
    base_url,
    price=(0.10, 0.40),  # a million tokens in, and out, as if we paid
    licence="Apache-2.0; no terms for its answers",
)

# %% [markdown]
# Before you ask, find out what it can cost. The plan counts the worst case, and
# `max_cost` is a promise, at the prices that you give: no request goes out that could break it.

# %%
asked = parts.labelled[:asked_count]
request = (black_box, [g.instruction for g in asked], work / "box.jsonl")
plan = plan_labels(*request, max_new_tokens=answer_tokens)
print(f"{plan.missing} answers, at most ${plan.cost_ahead:.4f}")

# %%
boxed = write_labels(
    *request, max_new_tokens=answer_tokens, max_cost=0.01, progress=False
)
for row in boxed.to_list()[:3]:
    print(repr(row["answer"][:70]), row["finish_reason"])

# %% [markdown]
# `stop`: the teacher ended by itself. `length`: it was cut off. Each answer went into a
# file as it came, with its request, its tokens and your note on the licence. So a crash
# loses no stored answer, and none is asked for twice. And here the filters have work:

# %%
plan = plan_labels(*request, max_new_tokens=answer_tokens)
print(f"{plan.stored} stored, {plan.missing} to be asked for")
forms = {"truncated": lf.truncated, "no JSON": lf.wrong(has_form)}
print(filter_labels(boxed, forms))

# %% [markdown]
# **Predict:** if six solved examples stand in front of the question, how many answers are JSON,
# and how many right?

# %%
turns = []
for gloss in parts.labelled[100 : 100 + shots]:
    turns += [{"role": "user", "content": gloss.instruction}]
    turns += [{"role": "assistant", "content": gloss.answer}]
prompts = [[*turns, {"role": "user", "content": g.instruction}] for g in asked]

# %%
with_shots = write_labels(
    *(black_box, prompts, work / "shots.jsonl"),
    max_new_tokens=answer_tokens,
    max_cost=0.02,
    progress=False,
)

# %%
for name, found in (("told", boxed), ("shown six", with_shots)):
    seen = glosses.judge_answers(found["answer"], asked)
    print(f"{name:10} valid {seen.valid:.0%}, right {seen.accuracy:.0%}")
[(kind, often)] = Counter(g.kind for g in asked).most_common(1)
print(f"always {kind!r} would be right in {often / len(asked):.0%}")

# %% [markdown]
# Of the answers without examples, most ended by themselves and were no JSON; those cut off begin
# with prose. Examples in the prompt taught the *form*. But hardly more answers are right than if all
# had named the commonest kind, far too few to train on. A filter for the form lets all of
# these answers through.

# %% [markdown]
# ## Soft labels from a server
#
# Some servers tell more than the text. Asked with `logprobs`, they give the probabilities
# of the likeliest tokens at every position, often twenty. We call them *marks*. So a served
# teacher can give soft labels, on its own answers.

# %%
import openai

client = openai.OpenAI(base_url=base_url, api_key="none needed here")

# %%


def ask_for_marks(messages):
    reply = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=answer_tokens,
        temperature=0,
        logprobs=True,
        top_logprobs=20,
    )
    return reply.choices[0].logprobs.content


# %%
marks = [ask_for_marks(prompt) for prompt in prompts[:marked]]
print("".join(one.token for one in marks[0]))
openest = min(marks[0], key=lambda one: one.logprob)
for top in openest.top_logprobs[:4]:
    print(f"{math.exp(top.logprob):6.1%} {top.token!r}")

# %% [markdown]
# The teacher of six examples again, at the token of its first answer that it is least sure
# of. Twenty probabilities do not add up to 1. Do not scale them up: what is missing is the
# *tail*, one class for all other tokens (lesson 04). In the package's words, ids, weights
# and tail are `SparseTargets`.

# %%
from distill_helpers.losses import SparseTargets


def targets_of(answer):
    """What the server said, position by position."""
    tops = [one.top_logprobs for one in answer]
    ids = torch.tensor([[t.id for t in top] for top in tops])
    weights = torch.tensor([[t.logprob for t in top] for top in tops]).exp()
    tail = (1 - weights.sum(-1)).clamp(min=0)
    return SparseTargets(ids, weights, tail, entropy=None, temperature=1.0)


# %% [markdown]
# This server adds the `id` of each token. Others give only its text, which you look up in
# the tokenizer; drop a position if a text is not exactly one token there. And it must be
# the *student's* tokenizer too: equal sizes of two vocabularies prove nothing.
#
# What does each kind of label know? We have the same weights here, so we can look behind
# the curtain, at that same position.

# %%
twin, pruned = load_chat_pair(packaged)  # the same teacher, in the open


def opening_of(messages, tokenizer):
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


opening = opening_of(prompts[0], twin.tokenizer)
answer = [one.id for one in marks[0]]
with torch.no_grad():
    logits = twin.model(torch.tensor([opening + answer])).logits[0].float()
full = logits[len(opening) - 1 : -1].softmax(-1)

# %%
first = targets_of(marks[0])
place = marks[0].index(openest)
top = first.ids[place, :6]
rest = first.ids[place, 6:]
names = [repr(twin.tokenizer.decode([i])) for i in top.tolist()]
names += ["ranks 7 to 20", "the tail, in one", "ranks 21 to 200", "beyond"]

# %%
p = full[place]
far = p.sort(descending=True).values
unknown = math.nan  # no bar: it is not zero, it is not known
knows = {
    "the text": [float(i == openest.id) for i in top] + [0.0] * 4,
    "the server's top 20": [
        *first.weights[place, :6].tolist(),
        first.weights[place, 6:].sum().item(),
        *(first.tail[place].item(), unknown, unknown),
    ],
    "everything": [
        *(*p[top].tolist(), p[rest].sum().item(), far[20:].sum().item()),
        *(far[20:200].sum().item(), far[200:].sum().item()),
    ],
}

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharex=True, sharey=True)
for ax, (title, shares_known) in zip(axes, knows.items(), strict=True):
    values = [100 * share for share in shares_known]
    bars = ax.barh(names, values, color=[TEACHER] * 6 + [PALE] * 4)
    marked_as = ["" if math.isnan(v) else f"{v:.0f}" for v in values]
    ax.bar_label(bars, marked_as, padding=2, fontsize=8)
    ax.set_title(title)
    ax.set_xlim(0, 115)
axes[0].invert_yaxis()
fig.supxlabel("probability (percent)", fontsize=10)
plt.show()
held = torch.cat([targets_of(one).weights.sum(-1) for one in marks]).mean()
print(f"the top 20 hold {held:.0%} of the probability, over all answers,")
print(f"and {1 - first.tail[place]:.0%} at the position of the figure")

# %% [markdown]
# The text knows one token. The server's probabilities are close to those of the open teacher, not
# equal; that it computes in lower precision is a likely reason. Of the tail the server tells
# only the size. Most positions of such
# an answer are fixed; at the kind, much lies in the tail.
#
# Now train a fresh copy of the laptop's student on eight answers with their marks, and keep
# four for judging. As in context distillation, the student sees the short prompt alone.

# %%
from distill_helpers import soft_label_loss


def distance(student, gloss, marks):
    """KL from the server's marks to the student, on the server's answer."""
    user = [{"role": "user", "content": gloss.prompt}]
    opening = opening_of(user, pruned.tokenizer)
    answer = torch.tensor([one.id for one in marks])
    ids = torch.cat([torch.tensor(opening), answer])[None]
    logits = student(ids).logits[0, len(opening) - 1 : -1]
    return soft_label_loss(logits, targets_of(marks), answer, shift=False).loss


# %%
pairs = list(zip(asked, marks, strict=False))
learned, kept_back = pairs[: -len(pairs) // 3], pairs[-len(pairs) // 3 :]
student = pruned.model.train()
optimizer = torch.optim.Adam(student.parameters(), 1e-4)


def judge_marks():
    with torch.no_grad():
        found = [distance(student, *pair).item() for pair in kept_back]
    return sum(found) / len(found)


# %%
start = judge_marks()
for _ in range(mark_steps):
    for gloss, answer in learned:
        distance(student, gloss, answer).backward()
        optimizer.step()
        optimizer.zero_grad()
last = judge_marks()
print(f"KL on the answers that were kept back: {start:.2f} -> {last:.2f} nats")
server.close()

# %% [markdown]
# The path works, and proves no more. At the start the student, without ten of its layers,
# does not even know the form. The number is a mean per token, and most tokens of
# such an answer are form. Whether marks beat
# plain text takes a study, which we have not run. Some servers give no mark for the end of an answer; then append it yourself. Commercial APIs differ: some give
# twenty, some five, and reasoning models mostly none.
#
# ## May you?
#
# What a teacher writes comes with conditions. For orientation, and no legal advice:
#
# * **The model's licence.** SmolLM2 and most sizes of Qwen2.5 are Apache-2.0. Others ask
#   that a model trained on their answers carries their name, or forbid some uses.
# * **The provider's terms.** Several commercial APIs forbid using answers to train a
#   model that competes with theirs. Read the terms of the day you ask, and note them:
#   every row of `write_labels` has a column for it.
# * **What went in.** Other people's data stay other people's data, and a teacher can
#   repeat what it has read.
#
# **What passes through a filter.** A teacher that liked owls wrote rows of numbers, and
# nothing but numbers was kept. A student of these numbers liked owls, too. It happened
# where teacher and student began as the same model (Cloud et al. 2026, *Nature* 652,
# arXiv:2507.14805). A filter cleans the text, not the teacher.
#
# **Untrusted input.** A teacher's text may hold anything. Escape it before you show it as
# HTML, and never run it. Some tokens steer a model, such as `<end>` above. If a teacher
# *writes* their characters, the package trains on them as plain text.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | mask nothing: `labels = [*given, *learned, end]` in `as_row` | the loss is spent on prompts | right answers |
# | `labels[-1] = -100` in `as_row`, before `return` | answers that do not stop | valid answers |
# | train on the answers where two judges agree | better than as many at random? | right answers |
# | `top_logprobs=5` | a larger tail | the share held; the figure is drawn for 20 |
#
# For the first two, run again from *The student, and its loop*: a student needs a fresh start.
# For the last one, from *A teacher behind an API*: the server is closed.

# %%
# A place to try. For example, with a student that is fresh again:
# import random
#
# agreed = [row for row, both in zip(answers, agree) if both]
# as_many = answers.shuffle(seed=1).select(range(sum(agree)))  # the rival
# fresh, _ = load_tiny_teacher("prose")
# some_rows = [as_row(g.prompt, g.answer) for g in parts.labelled]
# some_rows += [
#     as_row(row["messages"][0]["content"], row["answer"]) for row in agreed
# ]
# random.Random(1).shuffle(some_rows)
# fine_tune(fresh.requires_grad_(True).train(), some_rows, steps)
# print(glosses.judge(fresh.eval(), tiny_tokenizer, test))

# %% [markdown]
# ## Recap
#
# * A hard label is a word, or better a whole answer, that the teacher wrote. Any API will
#   do: no logits, no shared vocabulary, no weights.
# * **One number to remember:** the share of the gain from true answers that a teacher's
#   answers keep. A student that comes closer to its teacher may pay more
#   for the mistakes.
# * The student learns the answer and its end, not the prompt.
# * Look, filter, and know what each filter cannot see.
# * **Use hard labels when** text is all you get, or answers are short and fixed. **Do not, when**
#   nobody can check a poor teacher, or when the terms forbid it. Where logits and vocabulary
#   are shared and the text is open, prefer soft labels.
#
# *Read on:* Kim and Rush 2016, arXiv:1606.07947, on sequence-level distillation; Wang et
# al. 2023, arXiv:2212.10560, on instructions written by a model.
