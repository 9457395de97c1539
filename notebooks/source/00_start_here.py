# %% [markdown]
# ## What this course is about
#
# A large language model is good and expensive. A small one is cheap and not
# so good. **Distillation** trains the small one, the *student*, with the help
# of the large one, the *teacher*: not to copy it byte for byte, but to get
# enough of its skill into something that runs faster, costs less, and fits
# on your own device.
#
# This course takes three ways to learn from a teacher, one
# by one, on the same data and with the same yardsticks:
#
# | technique | the student learns from | it needs | lessons |
# |---|---|---|---|
# | **soft labels** | the teacher's probabilities for *every* possible next token | these probabilities: in practice its weights, or a stored copy | 02, 03, 07 |
# | **hard labels** | the text that the teacher writes | the teacher's text, an API will do | 04, 05 |
# | **co-distillation** | a teacher that is still learning itself, on the same batches | training both | 06 |
#
# A *token* is a word or a piece of one, the unit in which a model reads.
#
# No prices, no promises yet: each lesson measures what its technique buys,
# over several seeds, and some of the answers are "nothing".

# %% [markdown]
# ## Your machine
#
# Every notebook runs in one of three *profiles*. You need not choose: the
# cell above says `"auto"`, which takes a GPU if there is one. Everything a
# notebook needs to know about the machine, it asks the profile.

# %%
from distill_helpers import get_profile
from distill_helpers.course.plots import use_style

use_style()
profile = get_profile(PROFILE)
print("profile:", profile.name)
print("the real teacher:", profile.teacher)

# %% [markdown]
# ## Meet the teacher
#
# On a laptop the teacher is SmolLM2-135M-Instruct: small for a teacher, but
# a real language model, trained on two trillion tokens, and it came with the
# installation, so that nothing is downloaded now. (On a GPU a larger sibling
# takes its place and is downloaded from the Hugging Face Hub.)

# %%
from distill_helpers.models import parameter_count
from distill_helpers.tasks.teachers import load_teacher

teacher, tokenizer = load_teacher(profile)
parameters = parameter_count(teacher)
print(f"parameters: {parameters / 1e6:.1f} million")
print(f"vocabulary: {len(tokenizer):,} tokens")
print(f"layers:     {teacher.config.num_hidden_layers}")

# %% [markdown]
# What does such a model do? One thing only: it reads some tokens and gives
# every token of its vocabulary a score, the **logit**, for coming next. The *softmax*
# turns these scores into probabilities that sum to 1; lesson 01 takes it apart.
#
# **Predict** the likeliest next words after *"For breakfast she drank a cup
# of"*. Write down three, and a probability for the first. Then run the cell.

# %%
import torch


def next_token_logits(text):
    """One logit per token of the vocabulary, for what comes after text."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = teacher(ids.to(profile.device)).logits
    return logits[0, -1].float().cpu()


logits = next_token_logits("For breakfast she drank a cup of")
print("shape:", tuple(logits.shape))

# %%
import matplotlib.pyplot as plt

from distill_helpers.course.plots import token_bars

values, ids = logits.softmax(-1).topk(8)
words = [repr(tokenizer.decode(i)) for i in ids.tolist()]
fig, ax = plt.subplots()
token_bars(ax, words, values.tolist(), title="“… she drank a cup of …”")
plt.show()

# %% [markdown]
# The quotes show that a token brings its own space along, and that a token
# need not be a whole word. Look past the first bar: *tea* would have been
# fine, too. A text that says *coffee* tells a student about *coffee* only.
# The teacher's distribution also tells it about *tea*, and how much less
# likely that is. The next lessons put this to work.

# %% [markdown]
# ## From one token to a text
#
# To write, the model picks a token, appends it, and asks itself again.
# Always taking the likeliest token is called *greedy* decoding. We hand it
# bare text here, without the chat format it was tuned for, so it wanders.

# %%
from distill_helpers import generate

length = profile.pick(smoke=4, cpu=40, gpu=60)
prompts = ["The capital of France is", "A good teacher"]
texts = generate(teacher, tokenizer, prompts, max_new_tokens=length)
for prompt, text in zip(prompts, texts, strict=True):
    print(f"{prompt} ▸{text}\n")

# %% [markdown]
# ## How good is a model? One number, two ways
#
# The usual yardstick is the **negative log-likelihood** (NLL): how surprised
# the model is, on average, by the token that really comes next. The surprise
# at a token of probability $p$ is $-\ln p$, in *nats*.
# Let us compute it by hand, so that nothing about it stays a mystery: take
# the log-probabilities, pick out those of the tokens that came, average,
# change the sign.

# %%
sentence = "It is a truth universally acknowledged, that a single man"
ids = tokenizer(sentence, return_tensors="pt").input_ids.to(profile.device)
with torch.no_grad():
    log_p = teacher(ids).logits.float().log_softmax(-1)

# The logits at position t speak about token t + 1.
came = ids[0, 1:]
by_hand = -log_p[0, :-1].gather(-1, came.unsqueeze(-1)).mean()
print(f"by hand: {by_hand:.4f} nats per token")

# %%
from distill_helpers import evaluate, pack

row = pack([sentence], tokenizer, length=ids.shape[1])
found = evaluate(teacher, row, tokenizer)
print(f"package: {found.nll:.4f} nats per token, {found.tokens} tokens")
assert abs(found.nll - by_hand.item()) < 1e-3

# %% [markdown]
# The two agree, so from now on the package does it. Notice the shift in the
# code: *the logits at position t speak about token t + 1*. Many
# distillation bugs live in that line.

# %% [markdown]
# ## The tiny pair
#
# A fair comparison needs many runs, and many runs need a small model. So
# the course ships a second, tiny teacher, which has read five novels by
# Jane Austen and nothing else. It knows little, but a student of it trains
# in seconds.

# %%
from distill_helpers.tasks.teachers import load_tiny_teacher

tiny, tiny_tokenizer = load_tiny_teacher("prose")
print(f"{parameter_count(tiny) / 1e6:.1f} million parameters")
prompt = "Miss Bennet was"
(text,) = generate(tiny, tiny_tokenizer, [prompt], max_new_tokens=40)
print(prompt + text)

# %% [markdown]
# It has the tune, if not the words. For comparison, here are both teachers
# on the same page, from the novel that the tiny one never saw. Their
# vocabularies differ, so a loss per *token* would compare apples with
# oranges. The fair unit is **bits per byte**: add up the surprise over the whole text,
# turn nats into bits, and divide by the length of the text in bytes, which is the same
# for both.

# %%
from distill_helpers.tasks.prose import austen

page = austen("test").select(range(profile.pick(smoke=1, cpu=2, gpu=8)))
for name, model, tok in (
    ("SmolLM2", teacher, tokenizer),
    ("tiny", tiny, tiny_tokenizer),
):
    found = evaluate(model, pack(page, tok, 64), tok, batch_size=8)
    print(
        f"{name:8} {found.nll:.2f} nats per token, "
        f"{found.bits_per_byte:.2f} bits per byte"
    )

# %% [markdown]
# Per token the tiny one looks better, per byte it is worse: its tokens are
# shorter, and a short token is easier to guess. (And SmolLM2 may well have
# read *Persuasion*.)

# %% [markdown]
# ## Why a student needs help
#
# One way to make a student is to take layers out of the teacher. That is
# quick, and a third of the layers is gone. So is the sense, as you can read.
# Taking parts out is called *pruning*. Lesson 02 starts to repair such a pruned model.

# %%
from distill_helpers import prune_layers

layers = teacher.config.num_hidden_layers
keep = [i for i in range(layers) if not layers // 3 <= i < 2 * layers // 3]
student = prune_layers(teacher, keep)
print(f"{layers} layers → {len(keep)} layers")
prompt = "The capital of France is"
(text,) = generate(student, tokenizer, [prompt], max_new_tokens=20)
print(prompt + text)

# %% [markdown]
# ## Exercise 1 · The likeliest words
#
# *easy · you will use it in every lesson · 5 minutes*
#
# Write `top_choices(logits, words, k)`: the `k` likeliest words with their
# probabilities, likeliest first, as a list of pairs.
#
# * `logits`: tensor of shape `[vocabulary]`
# * `words`: list of strings, the word of every id
# * returns: list of `(word, probability)`
#
# By hand: with logits 0 and 0 for *yes* and *no*, both have probability one
# half.

# %% tags=["exercise"]
from distill_helpers.course import checks


def top_choices(logits, words, k):
    return None  # your code here


checks.top_choices(top_choices)

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


checks.top_choices(top_choices)

# %% [markdown]
# ## Exercise 2 · Bits per byte
#
# *easy · needed whenever two tokenizers meet · 5 minutes*
#
# Write `bits_per_byte(nll_per_token, tokens, bytes)`, the unit we just used.
# A nat is $1/\ln 2$ bits; `nll_per_token` is a mean in nats, `tokens` and `bytes` are
# two counts (here `bytes` is a number, not Python's type).
#
# By hand: a text of 100 bytes in 25 tokens, with an NLL of $\ln 2$ nats (one
# bit) per token, costs 25 bits in all, a quarter of a bit per byte.

# %% tags=["exercise"]
import math


def bits_per_byte(nll_per_token, tokens, bytes):
    return None  # your code here


checks.bits_per_byte(bits_per_byte)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# First the total in nats, then in bits, then per byte.

# %% [markdown] tags=["hint"] title="My number is a little too small"
# A bit is less than a nat, so the same surprise makes *more* bits than nats. Is
# $\ln 2$ in your formula, and on the right side of the fraction bar? (If you are far
# off instead: tokens multiply, bytes divide, and both are needed.)

# %% tags=["solution"]
import math


def bits_per_byte(nll_per_token, tokens, bytes):
    return nll_per_token * tokens / math.log(2) / bytes


checks.bits_per_byte(bits_per_byte)

# %% [markdown]
# ## Recap
#
# | word | meaning |
# |---|---|
# | teacher, student | the model that is learned from, the one that learns |
# | token | a word or a piece of one, the unit in which a model reads |
# | logits | one score per token of the vocabulary, for coming next |
# | softmax | turns logits into probabilities that sum to 1 (lesson 01) |
# | NLL | mean surprise at the true next token, in nats per token |
# | bits per byte | the same per byte of text: comparable between tokenizers |
# | profile | where a notebook runs: `smoke`, `cpu` or `gpu` |
#
# **When would you not distil at all?** When a small finished model already
# does what you need; the one you loaded is an example of how small they
# come. Most teams are best served by one. Distil when no such model knows
# your task, and when you will call yours often enough to earn the training
# back. Lesson 08 does the sums.
