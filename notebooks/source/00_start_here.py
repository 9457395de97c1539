# %%
import matplotlib.pyplot as plt
import torch

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style
from distill_helpers.machine import check_environment, progress_bar

use_style()
profile = get_profile(PROFILE)
print(check_environment())

# %% [markdown]
# That is your machine. Is something missing? Then a line that begins with *Problem* says
# how to fix it.
# Every notebook runs in one of three *profiles*, and `"auto"` takes the right one.
# The sizes of this lesson stand here, in one cell:

# %%
steps = profile.pick(smoke=2, cpu=100, gpu=100)
judged_rows = profile.pick(smoke=4, cpu=100, gpu=100)
answer_tokens = profile.pick(smoke=4, cpu=30, gpu=60)
passages = profile.pick(smoke=1, cpu=2, gpu=8)

# %% [markdown]
# ## One model teaches another
#
# A large language model is good and expensive. A small one is cheap and not so good.
# **Distillation** trains the small one, the *student*, with the help of the large
# one, the *teacher*. The goal is not a perfect copy. The goal is enough of the skill in
# something that is faster, costs less, and fits on your own device.
#
# It happens at two stages. In **pre-training**, the student learns the language itself
# from a teacher. In **post-training**, a student that knows the language learns a
# skill: to follow instructions, to reason, to answer in your format.
#
# Four words are needed for what follows. A *token* is a word or a piece of one, the unit
# in which a model reads. For every token of its vocabulary the model gives a score, the
# **logit**, for coming next. The *softmax* turns these scores into probabilities that
# sum to 1; lesson 01 takes it apart. And the **loss** says how surprised a model is by
# the token that really comes: $-\ln p$, in *nats*, where $p$ is the probability that
# the model gave it. It is also called NLL, *negative log-likelihood*. Lower is better.

# %% [markdown] tags=["published"]
# Many models that you can download were made this way, all smaller than their teachers:
#
# | student | teacher | when | what the student gets |
# |---|---|---|---|
# | Llama 3.2, 1B and 3B (2024) | Llama 3.1, 8B and 70B | pre-training, after cutting parts out | the teachers' logits, "as token-level targets" |
# | Gemma 2, 2B and 9B (2024) | a larger model, not named | pre-training | the teacher's probabilities |
# | Gemma 3 (2025) | not named | pre-training | 256 logits a token, sampled by the teacher's probabilities |
# | Llama 4 Maverick (2025) | Behemoth, which was still training | pre-training | its probabilities and the text's own tokens; Meta says "codistilled" |
# | DeepSeek-R1-Distill, 1.5B to 70B (2025) | DeepSeek-R1 | post-training | text alone: about 800,000 samples, "curated with DeepSeek-R1" |
# | Qwen3, the smaller ones (2025) | the larger Qwen3 | post-training | the teacher's text, then its logits on the student's own text |
# | Ministral 3, 14B, 8B, 3B (2026) | Mistral Small 3.1, 24B | cut smaller and distilled, size by size | the parent's predictions |
#
# Sources: Meta's model card of Llama 3.2 and its post on Llama 4 (April 2025), which
# also credits Scout's quality to Behemoth without calling it codistilled; the reports
# arXiv:2408.00118, 2503.19786, 2501.12948, 2505.09388 and 2601.08584. All of them report
# on themselves.

# %% [markdown]
# ## Three ways to learn from a teacher
#
# All of them are variations of three. They differ in what the teacher passes to the
# student. A solid line is what is learned from; a dashed one is only read:

# %%
from distill_helpers.course import diagrams

diagrams.three_techniques()

# %% [markdown]
# | technique | it needs | lessons |
# |---|---|---|
# | **soft labels** | the teacher's probabilities: its weights, or probabilities stored beforehand | 02 to 04, 09, 10; on the student's own text: 08 |
# | **hard labels** | the teacher's text; an API will do | 05, 06 |
# | **co-distillation** | training both at the same time | 07 |
#
# ## The three, in three loops
#
# Let us run all three, here and now. The course ships a **tiny pair** for this. The
# teacher has read five novels by Jane Austen and nothing else. The student is smaller
# still and knows nothing yet.

# %%
from distill_helpers import build_student
from distill_helpers.models import parameter_count
from distill_helpers.tasks.teachers import load_tiny_teacher

tiny, tiny_tokenizer = load_tiny_teacher("prose")


def beginner(layers=2, width=96, seed=0):
    """A model with random weights."""
    return build_student(tiny_tokenizer, layers=layers, width=width, seed=seed)


for name, model in (("teacher", tiny), ("student", beginner())):
    print(f"{name}: {parameter_count(model) / 1e6:.2f} million parameters")

# %% [markdown]
# The text is cut into rows of 64 tokens. A batch has 16 rows, and no row comes twice. The
# teacher has seen these novels before; what we test on later, it has not.

# %%
from distill_helpers import pack
from distill_helpers.tasks.prose import austen

rows = pack(austen("train"), tiny_tokenizer, 64).shuffle(seed=0)
text = torch.tensor(rows[: 16 * steps]["input_ids"])
print(text.shape)
print(tiny_tokenizer.decode(text[0]))

# %% [markdown]
# Every model of the course learns by the same three lines. What differs is what it
# learns from, and so its loss. Adam, or its variant AdamW, is the usual optimizer.


# %%
def optimizer_of(*models):
    weights = [w for model in models for w in model.parameters()]
    return torch.optim.Adam(weights, lr=8e-3)


def step(optimizer, loss):
    """Change the weights a little, so that the loss falls."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# %% [markdown]
# **From the text alone.** For comparison, a student without any teacher. At every
# place, it should give a high probability to the token that really comes next. Logits
# have the shape `[rows, tokens, vocabulary]`. Those at place *t* speak about token
# *t* + 1, so the two are shifted by one.


# %%
def text_loss(logits, ids):
    """Cross-entropy with the token that came next."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )


def learn_text(student, text):
    optimizer = optimizer_of(student)
    for ids in progress_bar(text.split(16)):
        step(optimizer, text_loss(student(ids).logits, ids))
    return student


# %% [markdown]
# **Soft labels.** The teacher reads the same batch. The student should give every token the
# probability that the teacher gives it. So the loss asks for the student's surprise at
# *every* token of the vocabulary, weighted by the teacher's probability. In `text_loss` all
# of that weight was on one token, the true one. And nothing is shifted: at each place, both
# models speak of the same next token.


# %%
def soft_loss(student_logits, teacher_logits):
    """Cross-entropy with the teacher's whole distribution."""
    p, log_q = teacher_logits.softmax(-1), student_logits.log_softmax(-1)
    return -(p * log_q).sum(-1).mean()


def learn_soft(student, teacher, text):
    optimizer = optimizer_of(student)
    for ids in progress_bar(text.split(16)):
        with torch.no_grad():  # the teacher learns nothing
            teacher_logits = teacher(ids).logits
        step(optimizer, soft_loss(student(ids).logits, teacher_logits))
    return student


# %% [markdown]
# **Hard labels.** The teacher writes, and the student learns what was written. Each
# row keeps its first eight tokens, and the teacher goes on from there, token by token:
# it draws one by its probabilities, appends it, and asks itself again. After that, the
# loop is the one of the text alone.

# %%
from distill_helpers.models import generate_batch


def write(teacher, text, start=8):
    """The teacher's own continuations, as many and as long as the rows."""
    written, new = [], text.shape[1] - start
    for part in text[:, :start].split(200):  # some rows at a time, for memory
        done = generate_batch(
            teacher,
            tiny_tokenizer,
            part.tolist(),
            max_new_tokens=new,
            min_new_tokens=new,  # full rows, no early end
            temperature=1.0,
            seeds=range(len(written), len(written) + len(part)),
        )
        written += [one.ids for one in done]
    return torch.cat([text[:, :start], torch.tensor(written)], dim=1)


# %% [markdown]
# **Co-distillation.** A new teacher starts from scratch next to the student. It learns
# from the text. The student learns from the text and from that teacher, half and half.


# %%
def co_distil(student, teacher, text):
    optimizer = optimizer_of(student, teacher)
    for ids in progress_bar(text.split(16)):
        theirs, mine = teacher(ids).logits, student(ids).logits
        from_text = text_loss(mine, ids)
        from_teacher = soft_loss(mine, theirs.detach())
        loss = text_loss(theirs, ids) + (from_text + from_teacher) / 2
        step(optimizer, loss)
    return student


# %% [markdown]
# **Predict** which of the four will be best, before you run them. We test every student on the
# first pages of a novel that neither the teacher nor the students have read. Write it down:

# %%
guess = "?"  # text alone, soft labels, hard labels, co-distillation

# %%
students = {
    "text alone": learn_text(beginner(), text),
    "soft labels": learn_soft(beginner(), tiny, text),
    "hard labels": learn_text(beginner(), write(tiny, text)),
    "co-distillation": co_distil(beginner(), beginner(4, 192, seed=1), text),
}

# %%
from distill_helpers import evaluate

test = pack(austen("test"), tiny_tokenizer, 64).select(range(judged_rows))
losses = {
    name: evaluate(student, test, tiny_tokenizer).nll
    for name, student in students.items()
}
losses["the teacher"] = evaluate(tiny, test, tiny_tokenizer).nll

# %%
from distill_helpers.course.plots import PALE, STUDENT, TEACHER

colors = [PALE, STUDENT, STUDENT, STUDENT, TEACHER]
fig, ax = plt.subplots()
bars = ax.barh(list(losses), list(losses.values()), color=colors)
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.invert_yaxis()
ax.margins(x=0.1)
ax.grid(axis="y", visible=False)
ax.set_xlabel("loss on an unread novel (nats per token, lower is better)")
ax.set_title(f"Four students, {steps} steps each")
plt.show()
print(f"you expected: {guess}; it was: {min(students, key=losses.get)}")

# %% [markdown]
# The student of soft labels is ahead, and far from its teacher still. All began with the
# same weights and took the same number of steps; only what they learned from was
# different. Lessons 01 and 02 explain why that matters so much.
#
# The other two end a little above text alone. For co-distillation lesson 07 finds that again; for
# hard labels it may be chance. A likely reason: what the teacher *writes* is one draw at each place, like the
# novel itself, but from somebody who knows less than Jane Austen. Its *probabilities* are
# more than one draw. And in co-distillation the teacher is a beginner too, so at first it
# has little to teach. Yet three models of the table above used one of these two. Hard labels serve
# where no text exists or the teacher gives nothing else; co-distillation, where the large model is
# trained anyway.
#
# This was **one** run of each, with one learning rate, and it leaves out what the
# teacher had cost. The other lessons compare over several runs, and some of their answers
# are "nothing gained". This is what they are for:
#
# | lesson | what you will see |
# |---|---|
# | 01 | why *dog* is a better mistake than *carburettor* |
# | 02 | your own loss in your own loop, and why it works |
# | 03 | where the gain ends, and how to read a result |
# | 04 | a distribution over 49,152 tokens in 84 bytes |
# | 05 | a student that answers in valid JSON, taught by text alone |
# | 06 | a student that passes its teacher |
# | 07 | two models that learn side by side, and who gains |
# | 08 | a student that is marked on its own writing |
# | 09 | a model that is its own teacher |
# | 10 | a teacher that cuts words differently |
# | 11 | all of it on one bill, and when not to distil at all |
# | 12 | twelve bugs of public code, found by their symptoms; two you cure |
# | 13 | a project of your own, from the data to a served model |
#
# ## The real teacher
#
# The tiny pair is for experiments. The other teacher of this course is a real language
# model. On a laptop it is SmolLM2-135M-Instruct, which came with the installation;
# nothing is downloaded now. On a GPU, a larger sibling takes its place.

# %%
from distill_helpers.tasks.teachers import load_teacher

teacher, tokenizer = load_teacher(profile)
print(f"{parameter_count(teacher) / 1e6:.1f} million parameters")
print(f"{teacher.config.num_hidden_layers} layers, {len(tokenizer):,} tokens")

# %% [markdown]
# It, too, does one thing only: it gives every token of its vocabulary a logit.


# %%
def next_token_logits(text):
    """One logit for every token of the vocabulary."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = teacher(ids.to(profile.device)).logits
    return logits[0, -1].float().cpu()


logits = next_token_logits("For breakfast she drank a cup of")
print("shape:", tuple(logits.shape))

# %% [markdown]
# ## Exercise 1 · The likeliest words
#
# *easy · the next figure is drawn with it · 5 minutes*
#
# Write `top_choices(logits, words, k)`: the `k` likeliest words with their
# probabilities, likeliest first, as a list of pairs.
#
# * `logits`: tensor of shape `[vocabulary]`
# * `words`: list of strings, the word of every id
# * returns: list of `(word, probability)`
#
# By hand: with logits 0 and 0 for *yes* and *no*, both have probability one half.
#
# As soon as your function passes, the lesson goes on with yours. Until then it uses
# its own.

# %% tags=["exercise"]
from distill_helpers.course import checks


def top_choices(logits, words, k):
    return None  # your code here


choices_of = checks.top_choices(top_choices, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Logits become probabilities with `logits.softmax(-1)`. A tensor's `topk(k)`
# gives values *and* positions, both sorted. `.tolist()` turns a tensor into
# plain Python numbers.

# %% [markdown] tags=["hint"] title="My numbers are negative, or sum to 1 for every k"
# Negative, or above 1: these are logits, or logarithms of probabilities. Is there a
# softmax in your function? Summing to 1 however few words you show: the softmax comes
# too late. Take it over *all* words, and choose the `k` likeliest only then.

# %% tags=["solution"]
from distill_helpers.course import checks


def top_choices(logits, words, k):
    values, ids = logits.softmax(-1).topk(k)
    return [
        (words[i], p)
        for i, p in zip(ids.tolist(), values.tolist(), strict=True)
    ]


choices_of = checks.top_choices(top_choices, fallback=True)

# %% [markdown]
# **Predict** the three likeliest words after *"For breakfast she drank a cup of"*, and
# a probability for the first. Then look.

# %%
from distill_helpers.course.plots import token_bars

words = [repr(tokenizer.decode(i)) for i in range(len(tokenizer))]
found, probabilities = zip(*choices_of(logits, words, 8), strict=True)
fig, ax = plt.subplots()
token_bars(ax, found, probabilities, title="“… she drank a cup of …”")
plt.show()

# %% [markdown]
# The quotes show that a token brings its own space along; `' pos'` is the beginning of a
# longer word, and `' '` is a space alone. Look past the first bar: *tea* would have been
# fine, too. A text that says *coffee* tells a student about *coffee* only. The teacher's
# distribution also tells it about *tea*, and how much less likely that is. This is what
# soft labels carry.
#
# The same model writes. Always taking the likeliest token is called *greedy* decoding.
# We give it bare text here, without the chat format that it was tuned for, and it soon
# wanders off:

# %%
from distill_helpers import generate

prompts = ["The capital of France is", "A good teacher"]
texts = generate(teacher, tokenizer, prompts, max_new_tokens=answer_tokens)
for prompt, answer in zip(prompts, texts, strict=True):
    print(f"{prompt} ▸{answer}\n")

# %% [markdown]
# ## Which of two models is better?
#
# The loss of a model depends on its tokens: on average, a short token is easier to guess
# than a long one. Two models with different vocabularies need a fairer unit, **bits per
# byte**. Add up the surprise over the whole text, turn nats into bits, and divide by
# the length of that text in bytes.
#
# ## Exercise 2 · Bits per byte
#
# *easy · the two teachers are compared with it · 5 minutes*
#
# Write `bits_per_byte(nll_per_token, tokens, size)`. A nat is $1/\ln 2$ bits.
# `nll_per_token` is a mean loss in nats; `tokens` and `size` count the text's tokens and
# its bytes.
#
# By hand: a text of 100 bytes in 25 tokens, with a loss of $\ln 2$ nats, which is one
# bit, per token. It costs 25 bits in all, a quarter of a bit per byte.

# %% tags=["exercise"]
import math


def bits_per_byte(nll_per_token, tokens, size):
    return None  # your code here


per_byte = checks.bits_per_byte(bits_per_byte, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# First the total in nats, then in bits, then per byte.

# %% [markdown] tags=["hint"] title="My number is a little too small"
# A bit is less than a nat, so the same surprise makes *more* bits than nats. Is
# $\ln 2$ in your formula, and on the right side of the fraction bar? If you are far off
# instead: tokens multiply, bytes divide, and both are needed.

# %% tags=["solution"]
import math


def bits_per_byte(nll_per_token, tokens, size):
    return nll_per_token * tokens / math.log(2) / size


per_byte = checks.bits_per_byte(bits_per_byte, fallback=True)

# %%
page = austen("test").select(range(passages))
for name, model, tok in (
    ("SmolLM2", teacher, tokenizer),
    ("the tiny teacher", tiny, tiny_tokenizer),
):
    score = evaluate(model, pack(page, tok, 64), tok, batch_size=8)
    bits = per_byte(score.nll, score.tokens, score.bytes)
    print(f"{name:17} {score.nll:.2f} nats a token, {bits:.2f} bits a byte")
    print(f"{'':17} {score.bytes / score.tokens:.1f} bytes a token")

# %% [markdown]
# Where the two units disagree on who is better, believe the second: SmolLM2's tokens are
# longer, so each is harder to guess. The second is not the whole truth either. A row of 64
# longer tokens is more text to go by, and a large model may have read this novel before.
#
# ## Recap
#
# | word | meaning |
# |---|---|
# | teacher, student | the model that is learned from, the one that learns |
# | token | a word or a piece of one, the unit in which a model reads |
# | logits | one score per token of the vocabulary, for coming next |
# | soft labels | the teacher's probabilities for every token |
# | hard labels | the text that a teacher writes |
# | co-distillation | a teacher that is still learning teaches |
# | loss, NLL | mean surprise at the true next token, in nats per token |
# | bits per byte | the same per byte of text: comparable between tokenizers |
#
# **When would you not distil at all?** When a small finished model already does what you
# need. So try one of those first: it costs you no training. Distil when no such model knows your
# task, and when you will use yours often enough to earn the training back. Lesson 11
# does the sums.
