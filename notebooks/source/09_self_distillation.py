# %%
import copy
import itertools
import json
import random

import matplotlib.pyplot as plt
import torch

from distill_helpers import get_profile
from distill_helpers.course.plots import PALE, STUDENT, TEACHER, use_style
from distill_helpers.machine import progress_bar

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
learn_count = profile.pick(smoke=2, cpu=32, gpu=200)
test_count = profile.pick(smoke=1, cpu=16, gpu=100)
steps = profile.pick(smoke=1, cpu=32, gpu=200)
batch_size = profile.pick(smoke=2, cpu=2, gpu=8)
rank = profile.pick(smoke=4, cpu=8, gpu=16)
answer_tokens = profile.pick(smoke=3, cpu=48, gpu=48)
rounding_steps = profile.pick(smoke=2, cpu=100, gpu=100)
judged_rows = profile.pick(smoke=4, cpu=60, gpu=60)

# %% [markdown]
# ## A teacher that you have already
#
# Where does a teacher come from, if there is no larger model? From the student itself,
# with something more: **a prompt** that it reads, **full precision** where the student is
# rounded, or **a finished training** where the student begins anew. The model *with* this
# extra is the teacher, and the same model *without* it is the student.

# %%
from distill_helpers.course import diagrams

diagrams.self_distillation()

# %% [markdown]
# This lesson builds the first two, and shows a stored result for the third.
#
# ## A prompt that is paid for every time
#
# SmolLM2 should explain words, and always in the same JSON form, so that a program can
# read it. Three examples show the form.

# %%
examples = [
    ("What is a table?", "A table is a piece of furniture with a flat top."),
    ("What is a dog?", "A dog is an animal that people keep at home."),
    ("What is an idea?", "An idea is a thought about what could be done."),
]

# %%
from distill_helpers.tasks.teachers import load_teacher

model, tokenizer = load_teacher(profile)


def prompt_of(question, examples=()):
    """Token ids of a question, behind examples or alone."""
    turns = []
    for asked, text in examples:
        turns.append({"role": "user", "content": asked})
        reply = json.dumps({"answer": text})
        turns.append({"role": "assistant", "content": reply})
    turns.append({"role": "user", "content": question})
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )


# %%
from distill_helpers.tasks.prose import glosses

entries = {
    row["word"].replace("_", " "): row["gloss"]
    for row in glosses()
    if row["word"].islower()
}
words = random.Random(0).sample(sorted(entries), learn_count + test_count)
learn_words, test_words = words[:learn_count], words[learn_count:]


def question_of(word):
    return f"What is {'an' if word[0] in 'aeiou' else 'a'} {word}?"


# %%
first = question_of(test_words[0])
print(f"examples and question: {len(prompt_of(first, examples)):4} tokens")
print(f"the question alone:    {len(prompt_of(first)):4} tokens")

# %%
from distill_helpers.models import generate_batch


def answers(model, prompts):
    """Greedy answers as token ids, their ends included; 32 at a time."""
    limit = {"max_new_tokens": answer_tokens}
    written = []
    for at in range(0, len(prompts), 32):
        some = prompts[at : at + 32]
        written += generate_batch(model, tokenizer, some, **limit)
    return [one.ids for one in written]


# %%
def obeys(ids):
    """Whether an answer is whole, and JSON with one field named answer."""
    try:
        found = json.loads(tokenizer.decode(ids, skip_special_tokens=True))
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and list(found) == ["answer"]


# %%
questions = [question_of(word) for word in test_words]
alone = [prompt_of(question) for question in questions]
behind = [prompt_of(question, examples) for question in questions]
obeyed = {}
for name, prompts in (("teacher, with examples", behind), ("before", alone)):
    found = answers(model, prompts)
    obeyed[name] = sum(map(obeys, found))
    cut = sum(ids[-1] != tokenizer.eos_token_id for ids in found)
    print(f"{name}: {obeyed[name]} of {len(found)} in the form, {cut} cut off")
    print("   ", tokenizer.decode(found[0], skip_special_tokens=True), "\n")

# %% [markdown]
# With its examples, the model mostly keeps to the form. Without them nothing asks for it. But
# each question carries the examples along, and they are far longer than the question, even
# with the frame that the chat template puts around it. Can it learn to behave as if it had read
# them? That is lesson 05's **context distillation**, now with soft labels.
#
# An answer that is cut at the limit of tokens counts as a miss, too. And there are cheaper ways
# for a form like this one: a server can keep a fixed prompt in its cache, and can be forced to
# write JSON. Distil where there is no cache, or where a cached prompt still takes too much room.
#
# ## The same answer, seen from two places
#
# The teacher reads *examples, question, answer*. The student reads *question, answer*. Only
# the answer is common to both, and there they are compared.
#
# ## Exercise 1 · Where to compare
#
# *easy · the shift once more, at two places · 5 minutes*
#
# Write `answer_places(prompt_length, answer_length)`: the places of a row whose logits
# predict the answer's tokens, as a list. Places count from 0.
#
# By hand: a prompt of 5 tokens and an answer of 3 give `[4, 5, 6]`.

# %% tags=["exercise"]
from distill_helpers.course import checks


def answer_places(prompt_length, answer_length):
    return None  # your code here


places = checks.answer_places(answer_places, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Draw the row: prompt tokens at places 0 to 4, the answer at 5, 6 and 7. Which place
# predicts the token at place 5?

# %% [markdown] tags=["hint"] title="My places are one too far"
# Then you have the places of the answer itself. The last of these predicts what follows
# the answer, which nobody wrote.

# %% tags=["solution"]
from distill_helpers.course import checks


def answer_places(prompt_length, answer_length):
    start = prompt_length - 1
    return list(range(start, start + answer_length))


places = checks.answer_places(answer_places, fallback=True)

# %% [markdown]
# ## Few numbers learn
#
# Teacher and student are one model, so one copy of its weights is enough. **LoRA** (Hu et
# al. 2021) freezes a weight matrix $W$ and adds a product of two thin ones, $W + s B A$. Only
# $A$ and $B$ learn; $s$ is a fixed strength. $A$ has $r$ rows and $B$ has $r$ columns, and $r$
# is the **rank**. $A$ begins at random and $B$ at zero. So the product is zero and the student
# begins as the plain model, but $B$ has a gradient. With the addition switched off, the plain
# model is back; with its examples in front, it is the teacher.
#
# ## Exercise 2 · How much learns?
#
# *easy · why adapters fit in memory where full training does not · 5 minutes*
#
# Write `adapter_size(shapes, rank)`: how many numbers learn, if each matrix of the list
# `shapes`, pairs of rows and columns, gets an adapter.
#
# By hand: one matrix of 6 rows and 4 columns at rank 2 has 12 + 8 = 20.


# %% tags=["exercise"]
def adapter_size(shapes, rank):
    return None  # your code here


size_of = checks.adapter_size(adapter_size, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# $BA$ must have the shape of $W$. So $B$ is rows × rank, and $A$ is rank × columns.

# %% [markdown] tags=["hint"] title="Mine is far too large"
# Rows times columns is the size of $W$ itself. An adapter is so small because it has rows
# *plus* columns, times the rank.


# %% tags=["solution"]
def adapter_size(shapes, rank):
    return sum(rank * (rows + columns) for rows, columns in shapes)


size_of = checks.adapter_size(adapter_size, fallback=True)

# %%
shapes = [
    tuple(layer.weight.shape)
    for name, layer in model.named_modules()
    if isinstance(layer, torch.nn.Linear) and name != "lm_head"
]
every = sum(weight.numel() for weight in model.parameters())
ranks = [1, 2, 4, 8, 16, 32, 64]
shares = [100 * size_of(shapes, one) / every for one in ranks]

# %%
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(ranks, shares, "o-", color=STUDENT)
ax.set_xscale("log", base=2)
ax.set_yscale("log")
ax.axvline(rank, color="0.4", ls="--")
ax.text(rank, shares[0], "  taken here", color="0.4")
ax.set_xticks(ranks, ranks)
ax.set_yticks([0.2, 1, 5, 10], ["0.2", "1", "5", "10"])
ax.set_yticks([], minor=True)
ax.set_xlabel("rank of the adapters")
ax.set_ylabel("percent of all numbers")
ax.set_title("What learns, compared with the whole model")
plt.show()

# %% [markdown]
# For each number that learns, there is a gradient, and Adam keeps two more. For the frozen ones
# there is nothing of this. Weights and activations still take their memory.

# %%
from distill_helpers import add_adapters
from distill_helpers.models import adapters_off

student = add_adapters(model, rank=rank, seed=0)
trained = sum(w.numel() for w in student.parameters() if w.requires_grad)
print(f"counted {trained:,}, by your function {size_of(shapes, rank):,}")

# %% [markdown]
# `add_adapters` changes `model` itself. From here on we call it `student`. Inside
# `adapters_off(student)` the adapters are off, and it is the plain model again.

# %% [markdown]
# ## The loop
#
# The teacher writes an answer to each question, with its examples in front. Then it reads
# all of that once more, and we keep its logits at the answer's tokens. It never changes, so
# once is enough.


# %%
def said(model, prompt, answer):
    """Logits that predict the answer's tokens, [answer, vocabulary]."""
    ids = torch.tensor([prompt + answer], device=model.device)
    return model(ids).logits[0, places(len(prompt), len(answer))]


# %%
def taught(student, words, prompts):
    """One row a word: what the student reads, and what the teacher said."""
    rows = []
    with adapters_off(student):
        written = answers(student, prompts)
        for word, prompt, answer in zip(words, prompts, written, strict=True):
            row = {"short": prompt_of(question_of(word)), "answer": answer}
            row["teacher"] = said(student, prompt, answer).cpu()
            rows.append(row)
    return rows


# %%
long_prompts = [prompt_of(question_of(word), examples) for word in learn_words]
rows = taught(student, learn_words, long_prompts)
whole = sum(row["answer"][-1] == tokenizer.eos_token_id for row in rows)
stored = sum(row["teacher"].nbytes for row in rows) / 1e6
print(tokenizer.decode(rows[0]["answer"], skip_special_tokens=True))
print(f"{whole} of {len(rows)} answers are whole; logits: {stored:.0f} MB")

# %% [markdown]
# With `soft` the loop compares distributions; without, it learns the teacher's text, as hard
# labels. A whole answer includes its end, so the student also learns to stop. We keep every
# row, and judge the form alone; for real use, drop those that break it, as in lesson 05.


# %%
def loss_at(student, row, soft):
    """KL to the teacher, or cross-entropy; a mean over the answer."""
    log_q = said(student, row["short"], row["answer"]).float().log_softmax(-1)
    if not soft:
        ids = torch.tensor(row["answer"], device=log_q.device)
        return -log_q.gather(-1, ids[:, None]).mean()
    log_p = row["teacher"].to(log_q.device).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


# %%
def learn(student, rows, *, soft):
    mine = [w for w in student.parameters() if w.requires_grad]
    optimizer = torch.optim.Adam(mine, lr=1e-3)
    turn = itertools.cycle(rows)
    # 16 bits lose small gradients; Adam divides a constant factor out.
    scale = 4096 if student.dtype == torch.float16 else 1
    for _ in progress_bar(range(steps)):
        optimizer.zero_grad()
        for _ in range(batch_size):  # one graph at a time
            loss = loss_at(student, next(turn), soft)
            (scale * loss / batch_size).backward()
        optimizer.step()


# %% [markdown]
# **Predict:** after these few steps, how many answers keep to the form, with no example in
# the prompt?

# %%
learn(student, rows, soft=True)
found = answers(student, alone)
obeyed["after soft labels"] = sum(map(obeys, found))
print(tokenizer.decode(found[0], skip_special_tokens=True))

# %% [markdown]
# For comparison, another student learns the teacher's *text* alone, with the same rows and
# steps. Another student needs fresh adapters, so we load the model again.

# %%
other = add_adapters(load_teacher(profile).model, rank=rank, seed=0)
learn(other, rows, soft=False)
found = answers(other, alone)
obeyed["after its text"] = sum(map(obeys, found))
del other  # a GPU needs the room

# %%
fig, ax = plt.subplots(figsize=(7, 2.3))
colors = [TEACHER, PALE, STUDENT, STUDENT]
bars = ax.barh(list(obeyed), list(obeyed.values()), color=colors)
ax.bar_label(bars, padding=3)
ax.invert_yaxis()
ax.set_xlim(0, 1.05 * test_count)
ax.grid(axis="y", visible=False)
ax.set_xlabel(f"answers in the form ({test_count} questions about new words)")
ax.set_title("Both students keep to the form, and read no examples")
plt.show()

# %% [markdown]
# Without an example, both students now keep to the form in most answers. This is one run at one
# rate on a few words, so a gap between the two may be chance: for a form, text may do as well.
#
# How far does the rule reach? Ask something that it was never meant for, the student without
# examples, and the teacher with them:

# %%
sea = "Write one line about the sea."
print("student:", tokenizer.decode(answers(student, [prompt_of(sea)])[0]))
with adapters_off(student):
    found = answers(student, [prompt_of(sea, examples)])[0]
print("teacher:", tokenizer.decode(found))

# %% [markdown]
# No row told the student where the rule ends. If your application asks other things as well, put
# questions without the rule among the rows, with the answers of the plain model.
#
# ## A rule carries over to new words. Does a hint?
#
# What else can the teacher be given? The three examples were the same for every question.
# Now it reads something else each time: the dictionary's entry of the word that is asked
# for. **Predict:** after training on some words, does the student come closer to this
# teacher on *other* words?


# %%
def hinted(word):
    entry = f"The dictionary says: {entries[word]}."
    return prompt_of(f"{entry} {question_of(word)}")


hints = taught(student, learn_words, [hinted(word) for word in learn_words])
new_hints = taught(student, test_words, [hinted(word) for word in test_words])
new_rows = taught(student, test_words, behind)
print("the hint:   ", entries[learn_words[0]])
print("the teacher:", tokenizer.decode(hints[0]["answer"]))


# %%
@torch.no_grad()
def distance(model, rows):
    """KL to the teacher, a mean over words."""
    return sum(loss_at(model, row, True).item() for row in rows) / len(rows)


# %%
reader = add_adapters(load_teacher(profile).model, rank=rank, seed=0)
# Before it learns, the reader is the plain model, as the student was.
judged = {
    "rule, learned words": rows,
    "rule, new words": new_rows,
    "hints, learned words": hints,
    "hints, new words": new_hints,
}
before = [distance(reader, some) for some in judged.values()]
learn(reader, hints, soft=True)
learners = (student, student, reader, reader)
after = [
    distance(one, some)
    for one, some in zip(learners, judged.values(), strict=True)
]

# %%
left = [100 * b / a for a, b in zip(before, after, strict=True)]
fig, ax = plt.subplots(figsize=(7, 2.4))
bars = ax.barh(list(judged), left, color=[PALE, STUDENT, PALE, STUDENT])
sizes = [f"{a:.2f} → {b:.2f} nats" for a, b in zip(before, after, strict=True)]
ax.axvline(100, color="0.4", ls="--", zorder=0)
boxes = ax.bar_label(bars, sizes, padding=3)
for box in boxes:
    box.set_bbox({"fc": "white", "ec": "none", "pad": 1})
ax.text(100, -0.62, "start", color="0.4", ha="center")
ax.invert_yaxis()
ax.set_xlim(0, 130)
ax.grid(axis="y", visible=False)
ax.set_xlabel("KL to the teacher that is left, percent of what it was")
ax.set_title("The rule carries over to new words, the hints hardly", pad=18)
plt.show()

# %% [markdown]
# Compare each bar with 100, its own start. Of the rule, little is left to learn, and new words
# are hardly harder than learned ones. Of the hints, the student took in much about the words
# of its training. New words came a little closer, too: perhaps by the manner of a dictionary,
# which all entries share. The form is the same few tokens for every word, and an entry is
# another one each time. It is one run on few words; only the large gap counts.
#
# ## Full precision teaches the rounded
#
# The second *more* is precision. A model that is stored in few bits is a rounded copy of
# itself. Weights are rounded in groups, here of 32, and each group has a step of its own:
# the weight of largest magnitude becomes the largest multiple that the bits allow. Every
# weight goes to the nearest multiple. The model with its full weights is still there, and
# can teach the rounded one.
#
# Learning needs a slope, and rounding has none: its gradient is zero almost everywhere.
# The usual way out is to round in the forward pass and to pretend in the backward pass
# that nothing was rounded. That is the **straight-through** gradient.
#
# ## Exercise 3 · Rounding with a slope
#
# *hard · one line makes rounded models trainable · 20 minutes*
#
# Write `fake_round(weight, bits)` for a weight `[groups, numbers]`. In each group, the step is
# the largest magnitude, which is never zero here, divided by $2^{\text{bits} - 1} - 1$. Return every number rounded to
# a multiple of its group's step. The gradient must be that of `weight` itself, as if the
# function returned it unchanged.

# %% [markdown] tags=["given"]
# By hand, for 3 bits: the multiples go from −3 to 3. The row 0.6, −0.25, 0.13 has a step of
# 0.2 and becomes 0.6, −0.2, 0.2.


# %% tags=["exercise"]
def fake_round(weight, bits):
    return None  # your code here


rounding = checks.fake_round(fake_round, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# First without a gradient: steps `[groups, 1]`, then divide, `round`, multiply. Then think
# of the result as *weight plus rounding error*.

# %% [markdown] tags=["hint"] title="The check says that the gradient is wrong"
# The step depends on the largest weight, so a little gradient can leak through it. Detach
# the whole rounding error, and only that: the gradient flows through the weight that it is
# added to.


# %% tags=["solution"]
def fake_round(weight, bits):
    largest = weight.abs().amax(-1, keepdim=True)
    step = largest / (2 ** (bits - 1) - 1)
    rounded = (weight / step).round() * step
    return weight + (rounded - weight).detach()


rounding = checks.fake_round(fake_round, fallback=True)

# %% [markdown]
# Your function now goes into every linear layer but the output head; the embeddings stay whole,
# too. PyTorch keeps the full weight,
# trains it, and rounds it at each use; only the rounded one would be stored. The Austen model
# of lesson 02 is small enough to be repaired on the spot. Two bits hurt: a weight becomes one
# step, minus one step, or zero. Each group stores its step, too; at 16 bits that is
# half a bit a weight more.

# %%
from torch.nn.utils import parametrize

from distill_helpers.tasks.teachers import load_tiny_teacher

full, tiny_tokenizer = load_tiny_teacher("prose")
bits = 2


class Rounded(torch.nn.Module):
    def forward(self, weight):
        return rounding(weight.view(-1, 32), bits).view_as(weight)


# %%
def rounded_copy():
    copied = copy.deepcopy(full).requires_grad_(True)
    for name, layer in copied.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            parametrize.register_parametrization(layer, "weight", Rounded())
    return copied


# %%
from distill_helpers import evaluate, pack
from distill_helpers.tasks.prose import austen

read = pack(austen("train"), tiny_tokenizer, 64).shuffle(seed=0)
read = torch.tensor(read[: 16 * rounding_steps]["input_ids"])
test = pack(austen("test"), tiny_tokenizer, 64).select(range(judged_rows))


# %%
def repair(student, *, soft):
    """Train the full weights behind the rounded ones, and nothing else."""
    named = student.named_parameters()
    mine = [weight for name, weight in named if name.endswith("original")]
    optimizer = torch.optim.Adam(mine, lr=5e-4)
    for ids in progress_bar(read.split(16)):
        log_q = student(ids).logits[:, :-1].log_softmax(-1)
        if soft:
            with torch.no_grad():
                log_p = full(ids).logits[:, :-1].log_softmax(-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        else:
            loss = -log_q.gather(-1, ids[:, 1:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


# %% [markdown]
# **Predict:** which teacher repairs it better: the text, or the model's own full precision?

# %%
models = {
    "full precision": full,
    f"rounded to {bits} bits": rounded_copy(),
    "repaired by the text": repair(rounded_copy(), soft=False),
    "repaired by itself": repair(rounded_copy(), soft=True),
}
results = {
    name: evaluate(one.eval(), test, tiny_tokenizer, teacher=full)
    for name, one in models.items()
}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.3), sharey=True)
colors = [TEACHER, PALE, STUDENT, STUDENT]
for ax, metric in ((left, "nll"), (right, "kl_to_teacher")):
    values = [getattr(one, metric) for one in results.values()]
    bars = ax.barh(list(results), values, color=colors)
    ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)
left.invert_yaxis()
left.set_xlabel("loss on an unread novel (nats)")
right.set_xlabel("KL to full precision (nats)")
left.set_title("Both teachers repair most of the damage")
plt.show()

# %% [markdown]
# Both teachers repair most of the damage in these few steps. Each student is at home in one
# picture: on the left is the loss that the text's student learned by, on the right the KL of
# the other. The model's own full precision leads even on the left, but by so little, in one
# seed, that it may be chance.
#
# ## A finished training
#
# The third *more* is a finished training. A new student of the same shape learns from the
# finished one, and sometimes ends up better: *born-again* networks (Furlanello et al. 2018, from
# fresh weights). Ours, on the shared task of lesson 06, begins at a base that adds small numbers,
# and learns half from labels, half from its twin. Right of zero, it beats labels of as many steps:

# %%
from distill_helpers.course.plots import forest
from distill_helpers.studies import load_results
from distill_helpers.studies import side_by_side as ways

contest = load_results("side_by_side")
fig, ax = plt.subplots(figsize=(8, 1.5))
again = contest.verdict("self_helps")
forest(ax, [again], words=["born again beats labels"])
plt.show()

# %%
equal_bill = (ways.LABELS, ways.EQUAL)
for arm, setting in ((ways.SELF, ways.SAME_STEPS), equal_bill):
    found = contest.values("exact_match", arm, setting)
    cost = contest.mean("tflops", arm, setting).mean
    print(f"{arm:18}{cost:4.1f} TFLOPs:", *[round(one) for one in found], "%")

# %% [markdown]
# The line is the interval of the gain over five seeds, in points of accuracy, as in lesson 03.
# It reaches to both sides of zero: undecided. But the twin's training costs operations, too.
# With nearly as many, labels alone do better in every seed; no claim was declared for that pair.
# The gains that are reported come from other tasks and larger models.

# %% [markdown] tags=["published"]
# ## What others found
#
# | who | what is reported |
# |---|---|
# | Snell et al. 2022 (arXiv:2209.15189) | instructions and worked examples distilled into weights, by learning what the model says with them |
# | *OPSD*, *SDFT*, *SDPO*, January 2026 (arXiv:2601.18734, 2601.19897, 2601.20802) | a student writes, and the same model with the solution or with feedback in its prompt scores every token |
# | arXiv:2605.11182, May 2026 | such training fails in their settings with a hint for each question, and works for a rule that all share |
# | *QAD* (arXiv:2601.20088) | four-bit models repaired by KL to their own full precision, nearly without loss |
# | Hu et al. 2021, *LoRA* (arXiv:2106.09685) | adapters of small rank come near full training |
#
# The second and the third row disagree, and why is open. A solution may also show *how* to
# think; a dictionary's entry is a fact that other questions do not share. Ask of your prompt:
# which part of it would help with the next question?

# %% [markdown]
# ## Turn the knobs
#
# After a turn, restart and run everything: `add_adapters` has changed the model.
#
# | turn | expect | see |
# |---|---|---|
# | `rank = 1` | the form is still learned, with far fewer numbers | the first bars |
# | `steps = 8` | the form comes before the content | an answer |
# | another form, in `prompt_of` and in `obeys` alike | as good as ours, or better | the first bars |
# | `bits = 3` | hardly anything to repair | the last bars |

# %%
# A place to try. For example:
# small = add_adapters(load_teacher(profile).model, rank=1, seed=0)
# learn(small, rows, soft=True)
# found = answers(small, alone)
# print(sum(map(obeys, found)) / len(found))

# %% [markdown]
# ## With the package
#
# `SoftLabelTrainer` does the first part of this lesson in batches, with checkpoints and mixed
# precision. It needs three lists of equal length, of texts or token ids: questions to learn
# from, the same behind the examples, and the teacher's answers.
#
# ```python
# from distill_helpers import SoftLabelTrainer, training_arguments
# from distill_helpers.data import add_teacher_prompts, mask_prompts
# from distill_helpers.models import AdaptersOff, merge_adapters
#
# plain = load_teacher(profile).model
# student = add_adapters(plain, rank=16)
# rows = add_teacher_prompts(
#     mask_prompts(to_learn, its_answers, tokenizer),
#     mask_prompts(behind_examples, its_answers, tokenizer),
# )
# SoftLabelTrainer(
#     student,
#     teacher=AdaptersOff(student),
#     train_dataset=rows,
#     tokenizer=tokenizer,
#     args=training_arguments(profile, steps=200, learning_rate=1e-3),
# ).train()
# merge_adapters(student)  # an ordinary model again, for export_gguf
# ```
#
# `models.fake_round(model, bits)` rounds a whole model so, and `models.bake(model)` writes the
# rounded weights into it.

# %% [markdown]
# ## Recap
#
# * **One number to remember:** how many of the answers to new words keep to the form, with no
#   example read: the third of the first bars.
# * The teacher is the model itself with something more. The two rows differ, and only the
#   answer's tokens are compared.
# * LoRA trains two thin matrices next to each frozen one. With them switched off, the plain
#   model is back.
# * A shared rule carries over to new questions. A hint about one word says little about
#   another word.
# * Rounded weights learn through a straight-through gradient, from their full precision, or from
#   text nearly as well.
# * **Use it when** a long prompt is paid for on every call and no cache helps, or a rounded model has lost
#   something. **Do not, when** the prompt changes often, when it carries facts about the
#   single question, or when the model cannot do the task even with it.
#
# *Read on:* the papers of the table.
