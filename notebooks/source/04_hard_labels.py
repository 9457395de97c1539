# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from distill_helpers.plots import use_style
from distill_helpers.profiles import get_profile

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

# %% [markdown]
# ## From a distribution to a word
#
# A soft label needs the teacher's logits. Many teachers do not give them: they
# sit behind an API, and what comes out is text. So the student learns from
# **hard labels**: the words that the teacher wrote, as if they were the truth.
#
# What does that throw away? Look at the real teacher once more. At every
# position it has a distribution, with an entropy: how much it leaves open. A
# single word leaves nothing open. **Predict:** at how many positions does the
# likeliest word have less than half of the probability?

# %%
from distill_helpers.studies import real_pair

real = real_pair.load_pair(profile, test_rows=8)
teacher, tokenizer = real.teacher

# %%
ids = torch.tensor(real.test["input_ids"][:], device=teacher.device)
with torch.no_grad():
    logits = teacher(input_ids=ids).logits[:, :-1].float().flatten(0, 1)
p = logits.softmax(-1).cpu()
entropy = torch.special.entr(p).sum(-1)
best = p.amax(-1)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0))
left.hist(best, bins=20, range=(0, 1))
left.set_xlabel("probability of the likeliest word")
left.set_ylabel("positions")
left.set_title("What one word says")
right.hist(entropy, bins=20)
right.set_xlabel("entropy (nats)")
right.set_title("What it leaves out")
plt.show()

# %%
unsure = (best < 0.5).float().mean()
print(f"the likeliest word has less than half at {unsure:.0%} of them")
print(f"entropy thrown away: {entropy.mean():.2f} nats a token")

# %% [markdown]
# The same number, computed a second way: let the teacher *draw* words, and
# average how surprising each is to the teacher itself. On average that is the
# entropy, again.

# %%
torch.manual_seed(0)
drawn = torch.multinomial(p, 200, replacement=True)
surprise = -p.gather(-1, drawn).log()
print(f"mean surprise of 200 draws: {surprise.mean():.2f} nats a token")

# %% [markdown]
# What a hard label saves is just as plain: one token id, 2 bytes at this
# vocabulary (4 in the usual files), against 84 for the stored hybrid of
# lesson 03 and nearly 100,000 for everything.
#
# Lesson 02 had a warning in it: argmax labels, token by token, taught our
# student badly, and labels *drawn* from the teacher did much better. The
# likeliest next word, again and again along a text that somebody else wrote, is
# a biased sample of what the teacher would say. But let the teacher write the
# *whole sequence* itself, and each word fits the words before it. That is
# sequence-level distillation (Kim and Rush 2016), and it is what nearly
# everybody means by hard labels today.
#
# ## A task that you can judge yourself
#
# A dictionary says what a noun means. What *kind* of thing is it? Twelve kinds,
# and the answer as JSON. For 600 glosses we have the right answer. For
# thousands more, the pool, we pretend to have none.

# %%
from distill_helpers.gloss_task import judge_answers, kinds, splits

parts = splits()
print(", ".join(kinds()))
print(
    len(parts.labelled), "labelled,", len(parts.pool), "in the pool,", end=" "
)
print(len(parts.test), "to judge by")
example = parts.labelled[0]
print(f"\n{example.prompt} {example.answer}")

# %% [markdown]
# ## A teacher behind an API
#
# Here is a teacher of which we see nothing but answers. It is the packaged
# SmolLM2, served by llama.cpp on this machine, and it speaks the protocol of
# commercial APIs. To use another one, change the model's name and the address;
# the key then comes from the environment (`OPENAI_API_KEY`), is never shown,
# and is written nowhere.

# %%
import contextlib
import tempfile
from pathlib import Path

from distill_helpers.api_teacher import ApiTeacher
from distill_helpers.local_server import MODEL, serve_packaged_teacher

work = Path(tempfile.mkdtemp())
server = contextlib.ExitStack()
base_url = server.enter_context(serve_packaged_teacher())
black_box = ApiTeacher(
    MODEL,
    base_url,
    price=(0.10, 0.40),  # per million tokens, as if we paid
    licence="Apache-2.0; no terms for its answers",
)

# %% [markdown]
# Before you ask, ask what it will cost. A plan counts the worst case: no
# tokenizer makes more tokens of a text than it has bytes.

# %%
from distill_helpers.hard_labels import plan_labels, write_labels

asked = parts.labelled[: profile.pick(smoke=3, cpu=40, gpu=40)]
prompts = [gloss.instruction for gloss in asked]
plan = plan_labels(black_box, prompts, work / "box.jsonl", max_new_tokens=24)
print(f"{plan.missing} answers, at most {plan.tokens_ahead:,} tokens", end=" ")
print(f"and {plan.cost_ahead:.4f} $")

# %%
labels = write_labels(
    black_box,
    prompts,
    work / "box.jsonl",
    max_new_tokens=24,
    max_cost=0.01,
    progress=False,
)
for row in labels.select(range(3)):
    print(repr(row["answer"][:70]), row["finish_reason"])

# %% [markdown]
# Each answer was appended to the file as it came, under a key made of the whole
# request. Paid-for answers are not lost to a crash, and nothing is asked twice:

# %%
plan = plan_labels(black_box, prompts, work / "box.jsonl", max_new_tokens=24)
print(f"{plan.stored} stored, {plan.missing} missing", end=", ")
print(f"spent {plan.cost_spent:.5f} $")
print(*sorted(labels.column_names), sep=", ")
server.close()

# %% [markdown]
# ## Look, then filter
#
# **Predict:** how many of them are JSON of the right form, and how many are
# right?

# %%
seen = judge_answers(labels["answer"], asked)
print(f"valid {seen.valid:.0%}, right {seen.accuracy:.0%} of {seen.count}")

# %%
from distill_helpers.gloss_task import read_answer
from distill_helpers.label_filters import (
    contaminated,
    duplicate,
    empty,
    filter_labels,
    near_duplicate,
    refused,
    truncated,
    wrong,
)

# %%
filters = {
    "truncated": truncated,
    "empty": empty,
    "refused": refused,
    "no valid JSON": wrong(lambda row: read_answer(row["answer"]) is not None),
    "duplicate": duplicate,
}
filtered = filter_labels(labels, filters)
print(filtered)

# %% [markdown]
# A small chat model that was never shown this task does it badly, and mostly
# not in the form that was asked for. No filter makes a bad teacher good: it
# only keeps the worst away from the student.
#
# ## A teacher that has learned the task
#
# So the teacher goes to school first: SmolLM2, trained for a few minutes on the
# 600 labelled glosses, and then asked about 4,000 of the pool. Its answers are
# in the course's data, in the same kind of file (`distill label-glosses` makes
# it again). We know the pool's right answers, so we can see how good it is;
# with your own data you would label a few hundred by hand for that.

# %%
from distill_helpers.gloss_labels import pool_labels

pool = pool_labels()
truth = parts.pool[: len(pool)]
known = judge_answers(pool["answer"], truth)
print(
    f"valid {known.valid:.1%}, right {known.accuracy:.1%} of {known.count:,}"
)

# %%
pool_filters = {
    **filters,
    "near duplicate": near_duplicate(0.8),
    "in the test set": contaminated(gloss.gloss for gloss in parts.test),
}
kept = filter_labels(pool, pool_filters)
print(kept)

# %%
for row in kept.dropped.select(range(min(4, len(kept.dropped)))):
    prompt = row["messages"][0]["content"].splitlines()[0]
    print(f"{row['dropped_by']:15} {prompt[:60]!r} -> {row['answer']!r}")

# %% [markdown]
# ## The student, before and after
#
# The student is the tiny prose model: 4 layers, and a vocabulary of its own
# with 2,048 tokens. Soft labels could not cross that gap; text can. It learns
# each answer and the token that ends it, and nothing of the prompt. Here is a
# row as it goes into training:

# %%
from distill_helpers.hard_labels import learn_answers
from distill_helpers.models import load_tiny_teacher

tiny = load_tiny_teacher("prose")
row = learn_answers(kept.kept.select([0]), tiny.tokenizer)[0]
learned = [token for token in row["labels"] if token != -100]
print(repr(tiny.tokenizer.decode(row["input_ids"])))
print("learned:", repr(tiny.tokenizer.decode(learned)))

# %% [markdown]
# A study compares three diets, with the same number of steps and the best
# validation checkpoint for each: the 600 labels alone; these and the teacher's
# answers; these and the *true* answers to the same glosses, which a better
# teacher could have given. The teacher itself learned from the same 600: all
# that it adds, it brought along from its pre-training. **Predict** how much of
# the third diet's gain the second keeps.

# %%
from distill_helpers.plots import over_settings
from distill_helpers.studies import hard_labels, load_results

results = load_results("hard_labels")
fig, ax = plt.subplots(figsize=(6.5, 3.4))
over_settings(ax, results, "accuracy", results.study.arms)
ax.axhline(known.accuracy, color="0.4", linestyle="--")
ax.text(0, known.accuracy - 0.06, "the teacher", color="0.4")
ax.set_ylim(0, 1)
ax.set_xlabel("further glosses from the pool")
ax.set_ylabel("right on the test set")
ax.set_title("A large teacher's writing, a small student")
plt.show()

# %%
for setting in results.study.settings:
    print(f"{setting} glosses from the pool")
    print(results.table(("accuracy", "valid"), setting), end="\n\n")
for claim in results.study.claims:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# One more seed, live, with the teacher's 4,000 answers, before and after:

# %%
arm, setting = hard_labels.TAUGHT, hard_labels.MOST
rows = hard_labels.choose_rows(arm, setting, tiny.tokenizer)
before = hard_labels.judge_student(
    tiny, profile.pick(smoke=8, cpu=200, gpu=200)
)
student, _ = hard_labels.train_student(
    rows,
    seed=0,
    steps=profile.pick(smoke=2, cpu=hard_labels.STEPS, gpu=hard_labels.STEPS),
    **dict(results.options(arm, setting)),
)

# %%
after = hard_labels.judge_student(
    student, profile.pick(smoke=8, cpu=None, gpu=None)
)
print(f"before: valid {before.valid:.0%}, right {before.accuracy:.0%}")
print(f"after:  valid {after.valid:.0%}, right {after.accuracy:.0%}")
accuracy = after.accuracy
display(results.check_live("accuracy", arm, setting, accuracy, judged=judged))

# %% [markdown]
# ## Two models of a real size
#
# The tiny student never saw a dictionary, nor much English. A student that has
# is another matter. On a laptop: SmolLM2 without its ten middle layers, on the
# same answers of the pool. With a GPU: Qwen2.5-0.5B, on answers that
# Qwen2.5-1.5B-Instruct writes now.
#
# That teacher was never trained for the task. It is *told* what to do, in a
# long prompt, and the student learns to answer the short one: what the
# instruction said goes into its weights, and nobody has to send it again.

# %%
from distill_helpers.hard_labels import LocalTeacher, own_labels
from distill_helpers.models import load_chat_pair

tutor, pupil = load_chat_pair(profile)
some = parts.pool[: profile.pick(smoke=2, cpu=20, gpu=4000)]
told = write_labels(
    LocalTeacher(*tutor, licence="Apache-2.0; no terms for its answers"),
    [gloss.instruction for gloss in some],
    work / "told.jsonl",
    max_new_tokens=24,
)
print("told what to do:", judge_answers(told["answer"], some))

# %%
short = own_labels([gloss.prompt for gloss in some], told["answer"])
check = "no valid JSON"
mine = filter_labels(short, {check: filters[check]})
source = profile.pick(smoke=kept.kept, cpu=kept.kept, gpu=mine.kept)
print("of the told teacher's answers:", mine)
print(f"{len(source):,} answers to learn from")

# %%
from distill_helpers.data import pack_examples
from distill_helpers.gloss_task import judge
from distill_helpers.trainers import HardLabelTrainer, training_arguments

questions = parts.test[: profile.pick(smoke=4, cpu=200, gpu=2000)]
before = judge(*pupil, questions)
length = profile.pick(smoke=150, cpu=512, gpu=512)
rows = pack_examples(learn_answers(source, pupil.tokenizer), length)

# %%
del tutor  # it has done its part; a GPU needs the room
HardLabelTrainer(
    pupil.model,
    args=training_arguments(
        profile,
        steps=profile.pick(smoke=2, cpu=20, gpu=150),
        learning_rate=profile.pick(smoke=1e-4, cpu=3e-4, gpu=2e-5),
        batch_size=profile.pick(smoke=1, cpu=4, gpu=4),
        seed=0,
    ),
    train_dataset=rows,
    tokenizer=pupil.tokenizer,
).train()
after = judge(*pupil, questions)
print(f"before: valid {before.valid:.0%}, right {before.accuracy:.0%}")
print(f"after:  valid {after.valid:.0%}, right {after.accuracy:.0%}")

# %% [markdown]
# One run, one seed, no baseline: it shows the path, and claims nothing. The
# claims are the study's.
#
# ## May you?
#
# What a teacher writes comes with conditions. Three questions, in plain words:
#
# * **The model's licence.** SmolLM2 and most of Qwen2.5 are Apache-2.0: do what
#   you like, keep the notice. Others ask that a model trained on their answers
#   carries their name, or forbid some uses.
# * **The provider's terms.** Several commercial APIs forbid using answers to
#   train a model that competes with theirs. That is a contract, whatever
#   copyright says. Read the terms of the day you ask, and note them: every row
#   here has a column for it.
# * **What went in.** Prompts with other people's data stay other people's data,
#   and a teacher can repeat what it has read.
#
# And a teacher's text is *input*: it may hold anything. The package never
# evaluates it, and what looks like a special token in an answer is trained on
# as plain text.

# %% [markdown] tags=["given"]
# ## Exercise 1 · Learn the answer, and its end
#
# *easy · the mask that everybody gets wrong once · 5 minutes*
#
# Write `answer_labels(prompt, answer, end)`: the labels of the row `prompt +
# answer + [end]`, not shifted, with −100 where nothing is to be learned.
#
# By hand: the prompt [5, 6], the answer [7, 8, 9] and the end 0 give
# [−100, −100, 7, 8, 9, 0].

# %% tags=["exercise"]
from distill_helpers import checks


def answer_labels(prompt, answer, end):
    return None  # your code here


checks.answer_labels(answer_labels)

# %% [markdown] tags=["hint"]
# The row without its prompt is exactly what is to be learned. Mask by position,
# not by the id of a token.

# %% tags=["solution"]
from distill_helpers import checks


def answer_labels(prompt, answer, end):
    return [-100] * len(prompt) + [*answer, end]


checks.answer_labels(answer_labels)

# %% [markdown]
# ## Exercise 2 · Is the test in the training data?
#
# *medium · what a contamination filter does · 10 minutes*
#
# Write `shares_run(text, held_out, n)`: whether some `n` words that stand side
# by side in one text also do in the other, whatever their case. Words are what
# spaces separate.
#
# By hand: "A SMALL ANIMAL" and "a small animal that lives in trees" share a run
# of 3; "trees lives that small" shares none of 2.


# %% tags=["exercise"]
def shares_run(text, held_out, n):
    return None  # your code here


checks.shares_run(shares_run)

# %% [markdown] tags=["hint"]
# A text of L words has L − n + 1 runs of n. Put those of one text into a set,
# as tuples.


# %% tags=["solution"]
def shares_run(text, held_out, n):
    def runs(text):
        words = text.lower().split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    return bool(runs(text) & runs(held_out))


checks.shares_run(shares_run)

# %% [markdown]
# ## Exercise 3 · A budget that holds
#
# *easy · spending with eight requests under way · 5 minutes*
#
# Write `may_ask(spent, under_way, worst, budget)`: may the next request go out?
# `spent` tokens have come back; `under_way` lists the worst case of each request
# that has not; `worst` is the worst case of the next one. The budget must hold
# whatever comes.
#
# By hand: 10 spent, one of 40 under way, the next at most 50, a budget of 100:
# yes, just.


# %% tags=["exercise"]
def may_ask(spent, under_way, worst, budget):
    return None  # your code here


checks.may_ask(may_ask)

# %% [markdown] tags=["hint"]
# Add up everything that could still be charged, the next request included.


# %% tags=["solution"]
def may_ask(spent, under_way, worst, budget):
    return spent + sum(under_way) + worst <= budget


checks.may_ask(may_ask)

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what is a hard label? | a word, or better a whole answer, that the teacher wrote |
# | what does it throw away? | the teacher's entropy: everything it left open |
# | what does it save? | logits, vocabulary, weights: any API will do, at 2 bytes a token |
# | what is learned? | the answer and its end, not the prompt |
# | what must a file of answers know? | the whole request, how the answer ended, tokens, licence |
#
# **When would you not use hard labels?**
#
# * You have the teacher's logits and the same vocabulary: soft labels say more
#   per token (lesson 02), and stored ones are cheap (lesson 03).
# * The teacher is not good at the task, and you cannot check its answers: the
#   student learns the mistakes too.
# * The terms forbid it.
#
# *Read on:* Kim and Rush 2016 (arXiv:1606.07947) on sequence-level distillation;
# Wang et al. 2023 (arXiv:2212.10560) and Taori et al. 2023 (Alpaca) on
# instructions written by a teacher.
