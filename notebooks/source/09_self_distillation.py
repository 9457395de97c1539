# %%
import copy
import json

import matplotlib.pyplot as plt
import torch

from distill_helpers import get_profile
from distill_helpers.course.plots import PALE, STUDENT, TEACHER, use_style

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
learn_count = profile.pick(smoke=4, cpu=32, gpu=400)
test_count = profile.pick(smoke=2, cpu=16, gpu=200)
steps = profile.pick(smoke=1, cpu=32, gpu=200)
batch_size = profile.pick(smoke=2, cpu=2, gpu=8)
rank = profile.pick(smoke=4, cpu=8, gpu=16)
answer_tokens = profile.pick(smoke=8, cpu=32, gpu=48)
rounding_steps = profile.pick(smoke=2, cpu=100, gpu=100)
judged_rows = profile.pick(smoke=4, cpu=60, gpu=60)

# %% [markdown]
# ## A teacher that you have already
#
# Where does a teacher come from, if there is no larger model? From the student itself,
# with something more: **a prompt** that it reads, **full precision** where the student is
# rounded, or **old weights** from before a change. What the model does with it becomes the
# teacher, and the student learns to do the same without.

# %%
from distill_helpers.course import diagrams

diagrams.self_distillation()

# %% [markdown]
# This lesson builds the first two, and tells about the third.
#
# ## A prompt that is paid for every time
#
# SmolLM2 should explain words, and always in the same JSON form, so that a program can
# read it. Told in words, a model as small as this one does not obey. Three examples help.

# %%
examples = [
    ("What is a table?", "A table is a piece of furniture with a flat top."),
    ("What is a dog?", "A dog is an animal that people keep at home."),
    ("What is anger?", "Anger is a strong feeling against somebody."),
]


# %%
def conversation(question, *, with_examples):
    """Messages: the question, behind three examples or alone."""
    turns = []
    for asked, text in examples if with_examples else ():
        turns.append({"role": "user", "content": asked})
        reply = json.dumps({"answer": text})
        turns.append({"role": "assistant", "content": reply})
    return [*turns, {"role": "user", "content": question}]


# %%
from distill_helpers.tasks.prose import glosses
from distill_helpers.tasks.teachers import load_teacher

model, tokenizer = load_teacher(profile)


def prompt_of(question, *, with_examples):
    return tokenizer.apply_chat_template(
        conversation(question, with_examples=with_examples),
        add_generation_prompt=True,
        return_dict=False,
    )


# %%
words = [row["word"].replace("_", " ") for row in glosses()]
words = words[:: len(words) // (learn_count + test_count)]
questions = [f"What is a {word}?" for word in words]
learned, asked = questions[:learn_count], questions[learn_count:][:test_count]
for with_examples in (True, False):
    tokens = len(prompt_of(asked[0], with_examples=with_examples))
    print(f"examples: {with_examples!s:6} {tokens:4} tokens for one question")

# %%
from distill_helpers.models import generate_batch


def answers(model, questions, *, with_examples):
    """Greedy answers, as token ids."""
    prompts = [prompt_of(q, with_examples=with_examples) for q in questions]
    written = generate_batch(
        model,
        tokenizer,
        prompts,
        max_new_tokens=answer_tokens,
        temperature=0.0,
        seeds=[0] * len(prompts),
    )
    return [one.ids for one in written]


# %%
def obeys(ids):
    """Whether an answer is JSON with one field, named answer."""
    try:
        found = json.loads(tokenizer.decode(ids, skip_special_tokens=True))
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and list(found) == ["answer"]


# %%
obeyed = {}
for name, with_examples in (("no examples", False), ("examples", True)):
    found = answers(model, asked, with_examples=with_examples)
    obeyed[name] = sum(map(obeys, found)) / len(found)
    print(f"{name}: {obeyed[name]:.0%} obey")
    print("   ", tokenizer.decode(found[0], skip_special_tokens=True), "\n")

# %% [markdown]
# The model *can* obey. But each question carries the examples along, and they are far
# longer than the question. Can the model learn to behave as if it had read them?
#
# ## The same answer, seen from two places
#
# The teacher reads *examples, question, answer*. The student reads *question, answer*. Only
# the answer is common to both, and there they are compared. As always, the logits at a place
# predict the *next* token.
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
# ## A student that is small next to itself
#
# Teacher and student are one model, so a second copy of all weights would be a waste.
# **LoRA** (Hu et al. 2021) freezes a weight matrix $W$ and adds a product of two thin ones,
# $W + \frac{a}{r} B A$, and only $A$ and $B$ learn. $A$ has $r$ rows and $B$ has $r$ columns;
# $r$ is the **rank**. With the addition switched off, the old model is back: the teacher.
#
# ## Exercise 2 · How much learns?
#
# *easy · why an adapter fits where a training does not · 5 minutes*
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
ax.set_xticks(ranks, ranks)
ax.set_xlabel("rank of the adapters")
ax.set_ylabel("percent of all numbers")
ax.set_title("What learns, compared with the whole model")
plt.show()

# %% [markdown]
# The optimizer keeps two further numbers for each that learns, and none for the others.

# %%
from distill_helpers import add_adapters
from distill_helpers.models import adapters_off

student = add_adapters(model, rank=rank, seed=0)
trained = sum(w.numel() for w in student.parameters() if w.requires_grad)
print(f"counted {trained:,}, by your function {size_of(shapes, rank):,}")

# %% [markdown]
# ## The loop
#
# The teacher writes an answer to each question, with its examples in front. Then it reads
# them once and says what it found likely at every token. It stays as it is, so once is enough.


# %%
def rows_of(questions, written):
    """Both rows of each question: the teacher's and the student's."""
    rows = []
    for question, answer in zip(questions, written, strict=True):
        longer = prompt_of(question, with_examples=True)
        shorter = prompt_of(question, with_examples=False)
        rows.append({"long": longer, "short": shorter, "answer": answer})
    return rows


def said(model, prompt, answer):
    """Logits that predict the answer's tokens, [answer, vocabulary]."""
    ids = torch.tensor([prompt + answer], device=model.device)
    return model(ids).logits[0, places(len(prompt), len(answer))]


# %%
with adapters_off(student):
    written = answers(student, learned, with_examples=True)
    rows = rows_of(learned, written)
    for row in rows:
        row["teacher"] = said(student, row["long"], row["answer"])

# %% [markdown]
# `adapters_off` switches the additions off for a while: inside, the student is its own
# teacher. The loop is short, for everything in it is known. With `soft` it compares
# distributions; without, it learns the teacher's text, as hard labels.


# %%
def loss_at(student, row, soft):
    """Mean over the answer's tokens."""
    log_q = said(student, row["short"], row["answer"]).log_softmax(-1)
    if not soft:
        ids = torch.tensor(row["answer"], device=log_q.device)
        return -log_q.gather(-1, ids[:, None]).mean()
    log_p = row["teacher"].log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def learn(student, rows, *, soft):
    mine = [w for w in student.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(mine, 1e-3, weight_decay=0.0)
    for step in range(steps):
        some = [
            rows[(step * batch_size + i) % len(rows)]
            for i in range(batch_size)
        ]
        loss = sum(loss_at(student, row, soft) for row in some) / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# %% [markdown]
# **Predict:** after these few steps, how many answers obey, without any example in the
# prompt?

# %%
learn(student, rows, soft=True)
found = answers(student, asked, with_examples=False)
obeyed["soft labels"] = sum(map(obeys, found)) / len(found)
print(tokenizer.decode(found[0], skip_special_tokens=True))

# %% [markdown]
# For comparison, another student of the same size learns the teacher's *text* alone, with
# the same rows and steps.

# %%
other = add_adapters(load_teacher(profile).model, rank=rank, seed=0)
learn(other, rows, soft=False)
found = answers(other, asked, with_examples=False)
obeyed["its text"] = sum(map(obeys, found)) / len(found)

# %%
order = ["examples", "no examples", "soft labels", "its text"]
names = ["teacher, with examples", "before", "after soft labels", "after text"]
shown = [100 * obeyed[name] for name in order]
fig, ax = plt.subplots(figsize=(7, 2.3))
bars = ax.barh(names, shown, color=[TEACHER, PALE, STUDENT, STUDENT])
ax.bar_label(bars, fmt="%.0f %%", padding=3)
ax.invert_yaxis()
ax.margins(x=0.12)
ax.grid(axis="y", visible=False)
ax.set_xlabel(f"answers that obey, of {len(asked)} new questions")
ax.set_title("The rule is in the weights now: no examples are read")
plt.show()

# %% [markdown]
# TEXT_A
#
# ## A rule can be learned, a hint cannot
#
# What may the *more* be? The three examples were the same for every question. Now let the
# teacher see something else each time: the dictionary's entry of the word that is asked
# for. **Predict:** what has a student learned about words that it was never asked?

# %%
entries = {row["word"].replace("_", " "): row["gloss"] for row in glosses()}


def told(question):
    """The question, behind the dictionary's entry of its word."""
    word = question.removeprefix("What is a ").removesuffix("?")
    return f"The dictionary says: {entries[word]}. {question}"


# %%
def hinted_rows(questions):
    """Rows like those above, whose teacher reads an entry with each."""
    hinted = [told(question) for question in questions]
    written = answers(model, hinted, with_examples=False)
    rows = rows_of(questions, written)
    for row, question in zip(rows, hinted, strict=True):
        row["long"] = prompt_of(question, with_examples=False)
    return rows


# %%
def marked(rows):
    """Add what the teacher finds likely in the answers."""
    for row in rows:
        row["teacher"] = said(student, row["long"], row["answer"])
    return rows


with torch.no_grad(), adapters_off(student):
    new_answers = answers(student, asked, with_examples=True)
    new_rows = marked(rows_of(asked, new_answers))
    hints, new_hints = marked(hinted_rows(learned)), marked(hinted_rows(asked))


# %%
@torch.no_grad()
def distance(model, rows):
    """KL to the teacher, a mean over questions."""
    return sum(loss_at(model, row, True).item() for row in rows) / len(rows)


# %%
reader = add_adapters(load_teacher(profile).model, rank=rank, seed=0)
gaps = {
    "rule, before": distance(reader, new_rows),
    "rule, after": distance(student, new_rows),
    "hints, before": distance(reader, new_hints),
}
learn(reader, hints, soft=True)
gaps["hints, after"] = distance(reader, new_hints)

# %%
fig, ax = plt.subplots(figsize=(7, 2.3))
colors = [PALE, STUDENT, PALE, STUDENT]
bars = ax.barh(list(gaps), list(gaps.values()), color=colors)
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.invert_yaxis()
ax.margins(x=0.12)
ax.grid(axis="y", visible=False)
ax.set_xlabel("KL to the teacher on new questions, nats a token")
ax.set_title("TITLE")
plt.show()

# %% [markdown]
# TEXT_B
#
# ## Full precision teaches the rounded
#
# The second *more* is precision. A model that is stored in few bits is a rounded copy of
# itself. Group by group of weights, the largest gets the largest multiple that the bits
# allow, and every weight becomes the nearest multiple of one step. The model with its full
# weights is still there: it can teach the rounded one what it said.
#
# Learning needs a slope, and rounding has none: its gradient is zero almost everywhere.
# The usual way out is to round in the forward pass and to pretend in the backward pass
# that nothing was rounded. That is the **straight-through** gradient.
#
# ## Exercise 3 · Rounding with a slope
#
# *hard · one line makes rounded models trainable · 20 minutes*
#
# Write `fake_round(weight, bits)` for a weight `[groups, numbers]`. In each row, the step is
# the largest magnitude divided by $2^{\text{bits} - 1} - 1$. Return every number rounded to
# a multiple of its row's step. The gradient must be that of `weight` itself, as if the
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

# %% [markdown] tags=["hint"] title="The check says that the gradient is zero"
# The rounding error is a constant for the backward pass: `detach` it, and only it. Then
# the gradient flows through the weight that it is added to.


# %% tags=["solution"]
def fake_round(weight, bits):
    largest = weight.abs().amax(-1, keepdim=True)
    step = largest / (2 ** (bits - 1) - 1)
    rounded = (weight / step).round() * step
    return weight + (rounded - weight).detach()


rounding = checks.fake_round(fake_round, fallback=True)

# %% [markdown]
# Now give your function to every linear layer of a model. PyTorch calls it whenever a
# weight is used. The Austen model is small enough to be repaired on the spot, and three
# bits are few enough to hurt.

# %%
from torch.nn.utils import parametrize

from distill_helpers.tasks.teachers import load_tiny_teacher

full, cutter = load_tiny_teacher("prose")


class Rounded(torch.nn.Module):
    def forward(self, weight):
        return rounding(weight.view(-1, 32), 3).view_as(weight)


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

text = pack(austen("train"), cutter, 64).shuffle(seed=0)
text = torch.tensor(text[: 16 * rounding_steps]["input_ids"])
test = pack(austen("test"), cutter, 64).select(range(judged_rows))


def repair(student, *, soft):
    optimizer = torch.optim.Adam(student.parameters(), 5e-4)
    for ids in text.split(16):
        log_q = student(ids).logits[:, :-1].log_softmax(-1)
        loss = -log_q.gather(-1, ids[:, 1:, None]).mean()
        if soft:
            with torch.no_grad():
                log_p = full(ids).logits[:, :-1].log_softmax(-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


# %% [markdown]
# **Predict:** which teacher repairs it better: the text, or the model's own full precision?

# %%
models = {
    "full precision": full,
    "rounded to 3 bits": rounded_copy(),
    "repaired by the text": repair(rounded_copy(), soft=False),
    "repaired by itself": repair(rounded_copy(), soft=True),
}
found = {
    name: evaluate(one.eval(), test, cutter, teacher=full)
    for name, one in models.items()
}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.3), sharey=True)
colors = [TEACHER, PALE, STUDENT, STUDENT]
for ax, metric in ((left, "nll"), (right, "kl_to_teacher")):
    values = [getattr(one, metric) for one in found.values()]
    bars = ax.barh(list(found), values, color=colors)
    ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)
left.invert_yaxis()
left.set_xlabel("loss on an unread novel (nats)")
right.set_xlabel("KL to full precision (nats)")
left.set_title("TITLE")
plt.show()

# %% [markdown]
# TEXT_C
#
# ## Old weights
#
# The third *more* is the past. A student of the same shape learns from a finished copy of
# itself, and sometimes ends up better: *born-again* networks (Furlanello et al. 2018). The
# course tried this on the shared task of lesson 06, against training on labels for the
# same number of steps:

# %%
from distill_helpers.course.plots import forest
from distill_helpers.studies import load_results

fig, ax = plt.subplots(figsize=(8, 1.5))
old = load_results("side_by_side").verdict("self_helps")
forest(ax, [old], words=["born again beats labels"])
plt.show()

# %% [markdown] tags=["published"]
# ## What others found
#
# | who | what is reported |
# |---|---|
# | Snell et al. 2022 (arXiv:2209.15189) | instructions and worked examples distilled into weights, by learning what the model says with them |
# | *OPSD*, *SDFT*, *SDPO*, January 2026 (arXiv:2601.18734, 2601.19897, 2601.20802) | a student writes, and the same model with the solution or with feedback in its prompt marks every token |
# | arXiv:2605.11182, May 2026 | this fails with a hint for each question, and works for a rule that all share |
# | *QAD* (arXiv:2601.20088) | four-bit models repaired by KL to their own full precision, nearly without loss |
# | Hu et al. 2021, *LoRA* (arXiv:2106.09685) | adapters of small rank come near full training |
#
# Reported also: models that think for long lost accuracy when they taught themselves so.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | `rank = 1` | how much is a rule worth in numbers? Say first how many percent would convince you | the first bars |
# | `steps = 8` | the form comes before the content | an answer |
# | another form in `examples`, such as one word | a shorter rule | the first bars |
# | `Rounded` with 2 bits | more to repair | the last bars |

# %%
# A place to try. For example:
# small = add_adapters(load_teacher(profile).model, rank=1, seed=0)
# learn(small, rows, soft=True)
# found = answers(small, asked, with_examples=False)
# print(sum(map(obeys, found)) / len(found))

# %% [markdown]
# ## With the package
#
# `SoftLabelTrainer` does all of this with checkpoints, mixed precision and batches:
#
# ```python
# from distill_helpers import SoftLabelTrainer, add_adapters
# from distill_helpers.data import add_teacher_prompts, mask_prompts
# from distill_helpers.models import AdaptersOff, merge_adapters
#
# student = add_adapters(model, rank=16)
# rows = add_teacher_prompts(
#     mask_prompts(short_prompts, answers, tokenizer),
#     mask_prompts(long_prompts, answers, tokenizer),
# )
# SoftLabelTrainer(
#     student,
#     teacher=AdaptersOff(student),
#     train_dataset=rows,
#     tokenizer=tokenizer,
#     args=training_arguments(profile, steps=200, learning_rate=1e-3),
# ).train()
# plain = merge_adapters(student)  # an ordinary model, for export_gguf
# ```

# %% [markdown]
# ## Recap
#
# * **One number to remember:** how many answers obey without the examples.
# * The teacher is the model itself with something more. The two rows differ, and only the
#   answer's tokens are compared.
# * LoRA trains two thin matrices next to each frozen one. Switched off, they leave the teacher.
# * A shared rule goes into weights. A hint that differs each time does not.
# * Rounded weights learn through a straight-through gradient, from their full precision.
# * **Use it when** a long prompt is paid for on every call, or a rounded model has lost
#   something. **Do not, when** the prompt changes often, when it carries facts about the
#   single question, or when the model cannot do the task even with it.
#
# *Read on:* the papers of the table.
