# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style

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
# single token leaves nothing open. **Predict:** at how many positions does the
# likeliest token have less than half of the probability?

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
left.set_xlabel("probability of the likeliest token")
left.set_ylabel("positions")
left.set_title("How sure the teacher is")
right.hist(entropy, bins=20)
right.set_xlabel("entropy (nats)")
right.set_title("How much stays open")
plt.show()

# %%
unsure = (best < 0.5).float().mean()
print(f"the likeliest token has less than half at {unsure:.0%} of positions")
print(f"entropy of the teacher: {entropy.mean():.2f} nats a token")

# %% [markdown]
# The likeliest token is no typical one. Let the teacher *draw* tokens, and see
# how surprising they are to the teacher itself: on average, that is its entropy,
# computed a second way. Then ask the same of its likeliest token.

# %%
torch.manual_seed(0)
drawn = torch.multinomial(p, 200, replacement=True)
surprise = -p.gather(-1, drawn).log()
print(f"drawn tokens:    {surprise.mean():.2f} nats")
print(f"likeliest token: {-best.log().mean():.2f} nats")

# %%
import gc

# This teacher has done its part; what comes needs the room.
real = teacher = logits = p = drawn = None
real_pair.load_pair.cache_clear()
_ = gc.collect()

# %% [markdown]
# The likeliest token surprises the teacher far less than its own draws do. A student
# that sees nothing but likeliest tokens is taught a world that is surer than its
# teacher.
#
# This is prose, where much is open. An answer such as `{"kind": "animal"}` leaves
# far less open: most of it is fixed, and one word matters. There a hard label
# loses less.
#
# What it saves is just as plain: one token id, 2 bytes at this vocabulary,
# against 84 for the stored hybrid of lesson 04 and nearly 100,000 for everything.
# (Our files hold text, with its prompt and origin: more than that, and still
# small.)
#
# ## Tokens, or whole answers
#
# Lesson 02 had a warning in it. Judged by NLL, labels made of the teacher's
# likeliest token taught our student badly, and tokens *drawn* from the teacher
# did much better. (Judged by agreement the likeliest token did well: it teaches
# the first choice, and nothing about the others.) Both were labels on a text that
# somebody else wrote: whatever the label said, the next position went on with
# that text. Let the teacher write the *whole answer*, and each word follows from
# the teacher's own words before it. That is **sequence-level distillation** (Kim
# and Rush 2016).
#
# One choice remains: take the likeliest token each time (*greedy*,
# `temperature=0`, the default below), or draw. Our questions have one short right
# answer, so we take the likeliest. Where many answers are good, greedy writing
# hides all but one of them.
#
# ## A task that you can judge yourself
#
# A **gloss** is a dictionary's short definition of a word. Given a noun and its
# gloss, say what *kind* of thing it is: one of twelve, written as JSON. For 600
# glosses we use the right answers: they come from WordNet, a dictionary that sorts
# its nouns by kind. For the thousands in the
# **pool** we pretend to have none. The test glosses are kept for judging.

# %%
from distill_helpers.tasks.glosses import judge_answers, kinds, splits

parts = splits()
example = parts.labelled[0]
print(", ".join(kinds()))
print(f"{len(parts.labelled)} labelled, {len(parts.pool):,} in the pool")
print(f"{len(parts.test):,} to judge by\n\n{example.prompt} {example.answer}")

# %% [markdown]
# ## A teacher behind an API
#
# Here is a teacher of which we see nothing but answers: the packaged SmolLM2,
# served on this machine by llama.cpp, a program that runs language models, in the
# protocol of commercial APIs.

# %%
import contextlib
import tempfile
from pathlib import Path

from distill_helpers.course.local_server import MODEL, serve_packaged_teacher

work = Path(tempfile.mkdtemp())
server = contextlib.ExitStack()
base_url = server.enter_context(serve_packaged_teacher())

# %% [markdown]
# To ask another teacher, change the model's name and the address. The key then
# comes from the environment (`OPENAI_API_KEY`) or, on Colab, from its secrets;
# else you are asked. It is never shown, and written nowhere.

# %%
from distill_helpers import ApiTeacher

black_box = ApiTeacher(
    MODEL,
    base_url,
    price=(0.10, 0.40),  # per million tokens, as if we paid
    licence="Apache-2.0; no terms for its answers",
)

# %% [markdown]
# Before you ask, find out what it can cost. The plan counts the worst case: a
# token for every byte of the prompt, a margin for the chat template (the marks that
# a chat model expects around every turn), and the longest answer allowed.

# %%
from distill_helpers import write_labels
from distill_helpers.labels import plan_labels

asked = parts.labelled[: profile.pick(smoke=1, cpu=24, gpu=24)]
prompts = [gloss.instruction for gloss in asked]
request = (black_box, prompts, work / "box.jsonl")
plan = plan_labels(*request, max_new_tokens=24)
print(f"{plan.missing} answers, at most {plan.tokens_ahead:,} tokens", end=" ")
print(f"and ${plan.cost_ahead:.4f}")

# %% [markdown]
# `max_cost` is a promise: no request goes out that could break it. It counts
# everything in the file, earlier rounds included.

# %%
labels = write_labels(
    *request, max_new_tokens=24, max_cost=0.01, progress=False
)
for row in labels.to_list()[:3]:
    print(repr(row["answer"][:70]), row["finish_reason"])

# %% [markdown]
# `stop`: the teacher ended by itself. `length`: it was cut off at
# `max_new_tokens`. A right answer needs far fewer than 24.
#
# Each answer went into the file as it came, under a key made of the request and
# the teacher's name. A crash loses no stored answer, and no stored answer is asked
# for again. (What was under way at the crash is; the plan counts it as
# `in_doubt`.)

# %%
plan = plan_labels(*request, max_new_tokens=24)
print(f"{plan.stored} stored, {plan.missing} missing", end=", ")
print(f"spent ${plan.cost_spent:.5f}")
print(*sorted(labels.column_names), sep=", ")

# %% [markdown]
# ## Look
#
# A teacher that has not learned the task has to be told. So it got more than the two
# lines above: `gloss.instruction` asks what kind of thing this is, names the twelve
# kinds, and wants nothing but JSON, with an example.
#
# **Predict:** how many of them are JSON of the right form, and how many are
# right?

# %%
seen = judge_answers(labels["answer"], asked)
print(f"valid {seen.valid:.0%}, right {seen.accuracy:.0%} of {seen.count}")

# %% [markdown]
# So show it. A prompt may be a conversation, and in this one the teacher finds six
# questions that it seems to have answered already, rightly. (This is *few-shot
# prompting*: nothing is trained.)

# %%
shown = []
shots = profile.pick(smoke=1, cpu=6, gpu=6)
for gloss in parts.labelled[100 : 100 + shots]:
    shown += [{"role": "user", "content": gloss.instruction}]
    shown += [{"role": "assistant", "content": gloss.answer}]
asking = [{"role": "user", "content": gloss.instruction} for gloss in asked]
request = (black_box, [[*shown, a] for a in asking], work / "box.jsonl")

# %%
labels = write_labels(
    *request, max_new_tokens=24, max_cost=0.02, progress=False
)
seen = judge_answers(labels["answer"], asked)
print(f"valid {seen.valid:.0%}, right {seen.accuracy:.0%} of {seen.count}")

# %%
server.close()  # new questions would need it again

# %% [markdown]
# ## Filter
#
# The file holds both rounds by now. Filters say what goes (`refused`: an answer that
# begins by declining), and keep account:

# %%
from distill_helpers.labels import filters as lf
from distill_helpers.labels import read_labels
from distill_helpers.tasks.glosses import read_answer

filters = {
    "truncated": lf.truncated,
    "empty": lf.empty,
    "refused": lf.refused,
    "no JSON": lf.wrong(lambda row: read_answer(row["answer"]) is not None),
    "duplicate": lf.duplicate,
}
box = lf.filter_labels(read_labels(work / "box.jsonl"), filters)
print(box)
print("dropped:", *box.dropped["answer"][:4], sep="\n  ")

# %% [markdown]
# A small chat model that never learned this task is a poor teacher of it. Examples
# teach it the form, more than the task, and a filter for the *form* cannot mend
# that: an answer may be valid and wrong. (A checker of the *result* can do more:
# lesson 06.)
#
# ## A teacher that has learned the task
#
# So the teacher goes to school first: SmolLM2, trained for 60 steps on the 600
# labelled glosses, and then asked about 4,000 of the pool. Its answers are in the
# course's data, in the same kind of file (`tools/label_glosses.py` makes it
# again). We know the pool's right answers, so we can see how good it is; with your
# own data you would label a few hundred by hand for that.

# %%
from distill_helpers.tasks.glosses import pool_labels

pool = pool_labels()
count = profile.pick(smoke=60, cpu=len(pool), gpu=len(pool))
pool = pool.select(range(count))
truth = parts.pool[: len(pool)]
known = judge_answers(pool["answer"], truth)
print(
    f"valid {known.valid:.1%}, right {known.accuracy:.1%} of {known.count:,}"
)

# %%
wrong_ones = [
    (gloss, answer)
    for gloss, answer in zip(truth, pool["answer"], strict=True)
    if read_answer(answer) != gloss.kind
]
for gloss, answer in wrong_ones[:5]:
    print(f"{gloss.word}: {gloss.gloss[:56]} -> {answer} ({gloss.kind})")

# %% [markdown]
# Which of these would you call wrong? Some show the teacher's limits, some the
# dictionary's.
#
# Two more filters before we train. *Near duplicate*: prompt and answer share most
# of their three-word runs with an earlier row. *Shares test text*: eight words in
# a row also stand in a test gloss. No gloss is in two splits, but dictionaries
# repeat their phrases. Filters run in order, and each counts only what those
# before it left.

# %%
pool_filters = {
    **filters,
    "near duplicate": lf.near_duplicate(0.8),
    "shares test text": lf.contaminated(gloss.gloss for gloss in parts.test),
}
kept = lf.filter_labels(pool, pool_filters)
print(kept)

# %%
for row in kept.dropped.select(range(min(4, len(kept.dropped)))):
    prompt = row["messages"][0]["content"].splitlines()[0]
    print(f"{row['dropped_by']:16} {prompt[:60]!r}")

# %%
right_kind = {gloss.prompt: gloss.kind for gloss in truth}
still = sum(
    read_answer(row["answer"]) != right_kind[row["messages"][0]["content"]]
    for row in kept.kept
)
print(f"{still / len(kept.kept):.1%} of what was kept is wrong all the same")

# %% [markdown]
# These filters see form and repetition. A wrong answer in the right form passes.
#
# ## The student, before and after
#
# The student is an old acquaintance: the tiny Austen model, the *teacher* of
# lesson 02. It has a vocabulary of its own with 2,048 tokens, so SmolLM2's soft
# labels cannot be compared with it directly; text can pass. It learns each answer
# and the token that ends it, and nothing of the prompt. Here is a row as it goes
# into training:

# %%
from distill_helpers import learn_answers
from distill_helpers.tasks.teachers import load_tiny_teacher

tiny = load_tiny_teacher("prose")
row = learn_answers(kept.kept.select([0]), tiny.tokenizer)[0]
learned = [token for token in row["labels"] if token != -100]
print(repr(tiny.tokenizer.decode(row["input_ids"])))
print("learned:", repr(tiny.tokenizer.decode(learned)))

# %% [markdown]
# A study compares three sets of training rows:
#
# | arm | what the student learns from |
# |---|---|
# | `600 labelled` | the labelled glosses alone |
# | `and the teacher's` | these, and the teacher's answers to glosses of the pool |
# | `and the true ones` | these, and the right answers to the same glosses |
#
# All take the same number of steps, so the first reads its rows more often. (The study
# drops only answers that are not valid JSON.) Another 400 glosses with right answers,
# which were not counted above, choose each run's best checkpoint, by NLL; so every arm
# uses those, too, and learns from the 600. The teacher learned from the same 600. What
# it adds is what it knew before, put to work on glosses that nobody had labelled.
# **Predict:** of the gain from the true answers, what share do the teacher's answers
# keep?
#
# One verdict below asks this: "beyond … of the gain of" the true ones is what the
# teacher's answers gain over the 600 alone, less eight tenths of what the true ones
# gain. It is positive if more than that share is kept. *Of 1* means that accuracy is
# counted from 0 to 1, so that a hundredth is one percentage point.

# %%
from distill_helpers.course.plots import over_settings
from distill_helpers.studies import hard_labels as study
from distill_helpers.studies import load_results

results = load_results("hard_labels")
fig, ax = plt.subplots(figsize=(6.5, 3.4))
over_settings(ax, results, "accuracy", results.study.arms)
ax.axhline(known.accuracy, color="0.4", linestyle="--")
ax.text(0, known.accuracy + 0.02, "the teacher (on the pool)", color="0.4")
ax.axhline(1 / len(kinds()), color="0.4", linestyle=":")
ax.text(1.5, 1 / len(kinds()) + 0.02, "guessing", color="0.4")
ax.set_ylim(0, 1)
ax.set_xlabel("further glosses from the pool")
ax.set_ylabel("right on the test set")
ax.set_title("A large teacher's writing, a small student")
plt.show()

# %%
for setting in results.study.settings:
    print(f"{setting} glosses from the pool")
    print(results.table(("accuracy", "valid"), setting), end="\n\n")


# %%
def gain(arm, setting):
    return results.gain(
        "accuracy", arm, study.ALONE, setting, baseline_setting=study.NONE
    ).mean


for setting in (study.SOME, study.MOST):
    share = gain(study.TAUGHT, setting) / gain(study.RIGHT, setting)
    print(f"{setting}: {share:.0%} of the gain from true answers is kept")

# %%
for claim in results.study.claims:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# Bands are intervals over five seeds (a single marker has none; its interval stands in
# the table); a seed changes only the order in which rows
# are read. Another 600 labels, or another teacher, would spread more. The steps
# along the axis are not to scale. Compare two distances: from one marker to the
# other at the same place (what the teacher's mistakes cost), and from both to the
# dashed line (what the student's size and reading leave undone).
#
# One more seed, live, with the teacher's 4,000 answers, before and after:

# %%
arm = study.TAUGHT
setting = profile.pick(smoke=study.SOME, cpu=study.MOST, gpu=study.MOST)
count = profile.pick(smoke=4, cpu=200, gpu=200)
before = study.judge_student(tiny, count)
student, _ = study.train_student(
    study.choose_rows(arm, setting, tiny.tokenizer),
    seed=1,
    steps=profile.pick(smoke=1, cpu=study.STEPS, gpu=study.STEPS),
    validation=profile.pick(smoke=16, cpu=None, gpu=None),
    **dict(results.options(arm, setting)),
)

# %%
same = study.judge_student(student, count)
after = study.judge_student(student, profile.pick(smoke=4, cpu=None, gpu=None))
print(
    f"the same {count} glosses: {before.accuracy:.0%} -> {same.accuracy:.0%}"
)
accuracy = after.accuracy
display(results.check_live("accuracy", arm, setting, accuracy, judged=judged))

# %% [markdown]
# ## Two models of a real size
#
# The tiny student has read five novels and nothing else. A student that knows more
# English is another matter. And a teacher need not be *trained* for a task; it can be
# *told*. It gets a long prompt that names the twelve kinds, `gloss.instruction` from
# above. The student learns to give the same answer to the short prompt, `gloss.prompt`,
# that names none: what the instruction said goes into its weights, and nobody has to
# send it again. This is **context distillation** (Askell et al. 2021,
# arXiv:2112.00861).
#
# It needs a teacher that follows instructions. With a GPU, Qwen2.5-1.5B-Instruct
# is told, and Qwen2.5-0.5B learns its answers. On a laptop the told teacher is the
# small SmolLM2 once more: you see how it does, and its answers are not used. The
# student there is SmolLM2 without its ten middle layers, and it learns the
# *trained* teacher's answers from above.

# %%
from distill_helpers import LocalTeacher
from distill_helpers.labels import own_labels
from distill_helpers.tasks.teachers import load_chat_pair

tutor, pupil = load_chat_pair(profile)
some = parts.pool[: profile.pick(smoke=1, cpu=20, gpu=4000)]
told = write_labels(
    LocalTeacher(*tutor, licence="Apache-2.0; no terms for its answers"),
    [gloss.instruction for gloss in some],
    work / "told.jsonl",
    max_new_tokens=24,
    concurrency=profile.pick(smoke=20, cpu=20, gpu=128),
)


# %%
def unfenced(text):
    """Chat models like to wrap JSON in a Markdown code fence."""
    return text.strip().removeprefix("```json").strip("`\n ")


answers = [unfenced(text) for text in told["answer"]]
found = judge_answers(answers, some)
print(f"told: valid {found.valid:.0%}, right {found.accuracy:.0%}")

# %%
short = own_labels([gloss.prompt for gloss in some], answers)
short = short.add_column("licence", list(told["licence"]))
# What was cut off is no JSON either, and these rows do not say how they ended.
form = {name: f for name, f in pool_filters.items() if name != "truncated"}
mine = lf.filter_labels(short, form)
source = profile.pick(smoke=kept.kept, cpu=kept.kept, gpu=mine.kept)
print(f"told teacher: {mine}\nto learn from: {len(source):,} answers")

# %% [markdown]
# Short examples waste a batch on padding, so several are *packed* into one row,
# out of each other's sight.

# %%
from distill_helpers import HardLabelTrainer, training_arguments
from distill_helpers.data import pack_examples
from distill_helpers.tasks.glosses import judge

questions = parts.test[: profile.pick(smoke=1, cpu=120, gpu=2000)]
before = judge(*pupil, questions)
length = profile.pick(smoke=100, cpu=512, gpu=512)
rows = pack_examples(learn_answers(source, pupil.tokenizer), length)

# %%
from distill_helpers import plan

size = {
    "batch_size": profile.pick(smoke=1, cpu=4, gpu=2),
    "steps": profile.pick(smoke=1, cpu=15, gpu=150),
}
micro = profile.pick(smoke=1, cpu=1, gpu=2)
options = {"method": "hard", "packed": True, "accumulation": micro}
print(plan((None, pupil.model), length=length, **size, **options))

# %%
arguments = training_arguments(
    profile,
    learning_rate=profile.pick(smoke=1e-4, cpu=3e-4, gpu=2e-5),
    gradient_accumulation_steps=micro,
    seed=0,
    **size,
)

# %%
tutor = None  # it has done its part; a GPU needs the room
# A second run of this cell goes on with what the student has learned.
HardLabelTrainer(
    pupil.model,
    args=arguments,
    train_dataset=rows,
    tokenizer=pupil.tokenizer,
).train()
after = judge(*pupil, questions)
print(f"before: valid {before.valid:.0%}, right {before.accuracy:.0%}")
print(f"after:  valid {after.valid:.0%}, right {after.accuracy:.0%}")

# %% [markdown]
# One run, one seed: it shows the path and claims nothing. On a laptop it was the
# trained teacher's answers that were learned, so this is sequence-level distillation
# once more; context distillation proper needs the GPU's told teacher. "Before" is no
# baseline: nobody had told the student the twelve kinds or the form.
#
# ## May you?
#
# What a teacher writes comes with conditions. Three questions, in plain words
# (for orientation; this is no legal advice):
#
# * **The model's licence.** SmolLM2 and most sizes of Qwen2.5 are Apache-2.0: use,
#   change and pass on, with the licence, the notices and a note of your changes.
#   Others ask that a model trained on their answers carries their name, or forbid
#   some uses.
# * **The provider's terms.** Several commercial APIs forbid using answers to
#   train a model that competes with theirs. That is a contract, whatever
#   copyright says. Read the terms of the day you ask, and note them: every row
#   of `write_labels` has a column for it.
# * **What went in.** Prompts with other people's data stay other people's data,
#   and a teacher can repeat what it has read.
#
# ## Untrusted input
#
# A teacher's text may hold anything. The package never runs it as code. Some
# tokens steer a model, such as `<end>` above; if a teacher *writes* the characters of
# one, the package trains on them as plain text. Do the same in your own code: escape
# it before you show it as HTML, and never evaluate it.

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
from distill_helpers.course import checks


def answer_labels(prompt, answer, end):
    return None  # your code here


checks.answer_labels(answer_labels)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# The row without its prompt is exactly what is to be learned. Mask by position,
# not by the id of a token.

# %% [markdown] tags=["hint"] title="My list ends with −100"
# It should end with `end`, from which the student learns to stop. If every label stands
# one place too early, you have shifted; the loss does that later. If only the end is
# gone, something masks it: −100 belongs to the prompt, and to nothing else.

# %% tags=["solution"]
from distill_helpers.course import checks


def answer_labels(prompt, answer, end):
    return [-100] * len(prompt) + [*answer, end]


checks.answer_labels(answer_labels)

# %% [markdown]
# ## Exercise 2 · Is the test in the training data?
#
# *medium · what a contamination filter does · 10 minutes*
#
# Write `shares_run(text, held_out, n)`: whether some `n` words stand side by side,
# in the same order, in both texts, whatever their case. Words are what spaces
# separate.
#
# By hand: "A SMALL ANIMAL" and "a small animal that lives in trees" share a run
# of 3; "trees lives that small" shares none of 2.


# %% tags=["exercise"]
def shares_run(text, held_out, n):
    return None  # your code here


checks.shares_run(shares_run)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# A text of L words has L − n + 1 runs of n. Put those of one text into a set,
# as tuples.

# %% [markdown] tags=["hint"] title="It misses a run, or finds one that is not there"
# Misses one: compare in lower case, and look at the last run, which begins at word
# L − n when you count from 0. Finds one: `in` on two strings also finds parts of words,
# and a set of single words no longer knows their order.


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
# *easy · spending with several requests under way at once · 5 minutes*
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

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Add up everything that could still be charged, the next request included.

# %% [markdown] tags=["hint"] title="The example works, but the check says no"
# The example says yes, and so does a sum from which something is missing. Are all three
# in yours: what is spent, *every* request under way, and the next one at its worst?
# (If the example itself says no: to reach the budget is not to exceed it.)


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
# | what does it throw away? | the rest of the distribution; its entropy says how much was open |
# | what does it save? | it needs no logits, no shared vocabulary and no weights: any API will do |
# | what is learned? | the answer and its end, not the prompt |
# | what must a file of answers know? | the whole request, how the answer ended, tokens, licence |
#
# **When would you not use hard labels?**
#
# * You have the teacher's logits and the same vocabulary: soft labels say more
#   per token (lesson 02), and stored ones are cheap (lesson 04).
# * The teacher is not good at the task, and you cannot check its answers: the
#   student learns the mistakes too.
# * The terms forbid it.
#
# *Read on:* Kim and Rush 2016 (arXiv:1606.07947) on sequence-level distillation;
# Askell et al. 2021 (arXiv:2112.00861) on context distillation; Wang et al. 2023
# (arXiv:2212.10560) and Taori et al. 2023 (Alpaca) on instructions and answers
# written by a model.
