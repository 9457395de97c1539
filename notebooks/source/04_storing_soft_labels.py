# %%
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from distill_helpers import get_profile
from distill_helpers.course.plots import (
    PALE,
    STUDENT,
    TEACHER,
    TEXT,
    use_style,
)

use_style()
profile = get_profile(PROFILE)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# The sizes of this lesson:

# %%
judged_on = profile.pick(
    smoke={"validation_rows": 4, "test_rows": 4}, cpu={}, gpu={}
)
row_count = profile.pick(smoke=16, cpu=800, gpu=800)
warm_steps = profile.pick(smoke=2, cpu=60, gpu=60)
steps = profile.pick(smoke=1, cpu=300, gpu=300)
measured_rows = profile.pick(smoke=2, cpu=256, gpu=256)
length = profile.pick(smoke=16, cpu=128, gpu=256)
cached_rows = profile.pick(smoke=4, cpu=48, gpu=256)
timed_steps = profile.pick(smoke=2, cpu=7, gpu=30)
timed_batch = profile.pick(smoke=1, cpu=4, gpu=4)

# %% [markdown]
# ## The bill
#
# In lesson 02 the teacher read every batch together with the student. It reads the same
# text again in every epoch, for every student, in every trial run. Why not run the
# teacher **once** and store what it said?
#
# Because of the bill. For every token of text, a soft label holds one number for every
# token of the *vocabulary*. **Predict:** a vocabulary of 100,000, two bytes a number, and
# a corpus of a trillion tokens. How many bytes?

# %% tags=["nbval-check-output"]
vocabulary, tokens, bytes_per_number = 100_000, 10**12, 2
bill = vocabulary * tokens * bytes_per_number
print(f"{bill:.0e} bytes = {bill / 1e15:.0f} petabytes")

# %% [markdown]
# Nobody stores that. This lesson is about storing a thousandth of it without losing what
# soft labels are for.

# %%
from distill_helpers.course import diagrams

diagrams.stored_labels()

# %% [markdown]
# What does each way cost? `full` stores every log-probability, two bytes each. `top-12` stores
# the 12 likeliest tokens, an id and a probability each, and four bytes for one more number,
# the entropy. `hybrid 8 + 24` stores the 8 likeliest and the ids of 24 that are drawn at
# random; why one would draw comes below. The vocabulary is SmolLM2's, 49,152. The slider
# moves the size of the corpus.

# %%
from distill_helpers.course.widgets import explore
from distill_helpers.studies import stored_labels as study

arms = ("full", "top-12", study.DEFAULT)

# %%
sizes = {arm: study.scheme_of(arm, 49_152).bytes_per_position for arm in arms}
sizes["the text itself"] = 2
UNITS = {1e15: "PB", 1e12: "TB", 1e9: "GB", 1e6: "MB"}


# %%
def readable(size):
    unit = next(unit for unit in UNITS if size >= unit)
    return f"{size / unit:.3g} {UNITS[unit]}"


# %%
def draw_bill(ax, exponent):
    total = np.array(list(sizes.values())) * 10.0**exponent
    ax.plot(total, list(sizes), "o", ms=9, color=TEACHER)
    ax.axvline(1e12, color="0.4", linestyle="--", zorder=0)
    box = {"fc": "white", "ec": "none", "pad": 1}
    for place, size in enumerate(total):
        ax.text(8 * size, place, readable(size), va="center", bbox=box)
    ax.text(1.2e12, -0.6, "a laptop's disk", color="0.4", fontsize=8.5)
    ax.set_xscale("log")
    ax.set_xlim(1e5, 1e22)
    ax.set_xticks([1e6, 1e9, 1e12, 1e15, 1e18], ["MB", "GB", "TB", "PB", "EB"])
    ax.set_ylim(3.5, -0.9)
    ax.set_title(f"$10^{{{exponent:g}}}$ tokens")


# %%
explore(
    draw_bill,
    name="tokens, as a power of ten",
    values=[6, 7, 8, 9, 10, 11, 12, 13],
    start=12,
    still=[6, 9, 12],
    alt="Bytes of four things to store, for three sizes of corpus. "
    "Every probability costs a thousand times as much as top 8 and 24 draws.",
    size=(7.5, 2.8),
)

# %% [markdown]
# ## How much is in the top?
#
# Most of those numbers are almost zero. So keep only the largest? Look at the real
# teacher on passages of a novel: how much probability do its $k$ likeliest tokens hold
# together? **Predict** how much twelve of them hold at a typical position:

# %%
guess = 95  # percent; put yours here

# %%
from distill_helpers import pack
from distill_helpers.studies import real_pair
from distill_helpers.tasks.prose import austen

real = real_pair.load_pair(profile, test_rows=8)
teacher, tokenizer = real.teacher

# %%
ids = torch.tensor(real.test["input_ids"][:], device=teacher.device)
with torch.no_grad():
    logits = teacher(input_ids=ids).logits[:, :-1].float().flatten(0, 1)
mass = logits.softmax(-1).cpu().sort(-1, descending=True).values.cumsum(-1)

# %%
fig, ax = plt.subplots()
k = np.arange(1, 257)
for share, style, name, up in (
    (0.9, ":", "an easy position", 2),
    (0.5, "-", "a typical one", -2),
    (0.1, "--", "a hard one", 0),
):
    held = 100 * mass[:, :256].quantile(share, dim=0)
    ax.plot(k, held, style, color=TEACHER)
    ax.text(270, held[-1] + up, name, va="center")
for marked in (12, 20):
    ax.axvline(marked, color=PALE, lw=1, zorder=0)
    ax.text(marked, 2, f" {marked}", color="0.4")
ax.plot(12, guess, "X", color="#222222", ms=8)
ax.text(9.5, guess + 1, "your guess", ha="right", va="center", fontsize=8.5)
typical = 100 * float(mass[:, 11].median())
ax.set_xscale("log")
ax.set_xlim(1, 1200)
ax.set_ylim(0, 105)
ax.set_xlabel("k")
ax.set_ylabel("held by the top k (percent)")
ax.set_title("Where a sentence may go anywhere, the top is not enough")
plt.show()
print(f"top 12, typical position: {typical:.0f} %; your guess: {guess} %")

# %% [markdown]
# One position in ten is easier than the dotted line, one in ten harder than the dashed
# one. Twelve is what a scheme below keeps, twenty what many servers list.
#
# ## Why "keep the top and renormalise" teaches something false
#
# The first idea: keep the top $k$, scale them up so that they sum to 1, and train as
# before. By hand, on five tokens and $k = 2$:

# %% tags=["nbval-check-output"]
true_p = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.1])
kept, where = true_p.topk(2)
renormalised = torch.zeros(5).scatter(0, where, kept / kept.sum())
print("the teacher:   ", true_p)
print("top 2, scaled: ", renormalised)
print("difference:    ", renormalised - true_p)

# %% [markdown]
# A step goes against the gradient $q - p$ of lesson 02, so it pushes by the target minus
# $q$. A student that already agrees with its teacher should be left alone. This target
# pushes such a student by the last row: up on the favourites, down on everything else, at
# every position. More text does not help, for the push always points the same way. It is
# a **bias**.
#
# Draws are a way out. A *tail bucket* goes half of the way, so let us begin there.
#
# ## Exercise 1 · The tail bucket
#
# *medium · what to do with a server's top 20, too · 15 minutes*
#
# Put all the other tokens into **one** class. Write `tail_bucket(student_logits, ids,
# weights)`: the forward KL over the kept tokens and that class, in nats, `[positions]`.
#
# * `student_logits` are `[positions, vocabulary]`; `ids` and `weights` are
#   `[positions, k]`, the teacher's probabilities as they are, not scaled.
#
# By hand, with a student that says ½, ⅕, ⅕, 1/10 and a teacher that kept ⅖ for each of
# the first two:
# $\frac25\ln\frac{2/5}{1/2} + \frac25\ln\frac{2/5}{1/5} + \frac15\ln\frac{1/5}{3/10}$.

# %% tags=["exercise"]
from distill_helpers.course import checks


def tail_bucket(student_logits, ids, weights):
    return None  # your code here


bucket = checks.tail_bucket(tail_bucket, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# The student's probabilities come from *all* its logits; `gather` picks the kept ones.
# What is left of each side is 1 minus the sum.

# %% [markdown] tags=["hint"] title="The result can turn negative"
# Then the class of all the others is missing: one more term, made like those of the kept
# tokens.


# %% tags=["solution"]
from distill_helpers.course import checks


def tail_bucket(student_logits, ids, weights):
    q = student_logits.softmax(-1).gather(-1, ids)
    # A sure model leaves nothing, and log(0) would make the loss NaN.
    rest_p = (1 - weights.sum(-1)).clamp(min=1e-7)
    rest_q = (1 - q.sum(-1)).clamp(min=1e-7)
    kept = (weights * (weights / q).log()).sum(-1)
    return kept + rest_p * (rest_p / rest_q).log()


bucket = checks.tail_bucket(tail_bucket, fallback=True)

# %% [markdown]
# Is a student that agrees left alone now? And one that has the right total in the tail,
# on the wrong tokens?

# %%
two = where[None]
for name, q in (
    ("agrees", true_p),
    ("wrong inside the tail", torch.tensor([0.4, 0.25, 0.05, 0.2, 0.1])),
):
    loss = bucket(q.log()[None].double(), two, kept[None].double()).item()
    print(f"{name}: {abs(loss):.3f} nats")

# %% [markdown]
# Both get zero. A student that agrees is left alone now. But the bucket sees only the
# tail's total, so nothing corrects a student that has the right total on the wrong tokens.
# On the way to the teacher, its gradient is still biased.
#
# ## Draws are right on average
#
# Draw $N$ tokens from the teacher and count. The expected share of a token is exactly its
# probability $p_i$.
#
# ## Exercise 2 · An estimate from draws
#
# *easy · the unbiased estimate · 5 minutes*
#
# Write `sampled_estimate(draws, vocabulary)`: from drawn ids `[positions, draws]`, some
# of them twice, to probabilities `[positions, vocabulary]`.
#
# By hand: the draws 2, 0, 2, 1 from a vocabulary of 4 give (¼, ¼, ½, 0).


# %% tags=["exercise"]
def sampled_estimate(draws, vocabulary):
    return None  # your code here


estimate = checks.sampled_estimate(sampled_estimate, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `torch.nn.functional.one_hot` turns ids into rows of zeros and a one; or start from
# zeros and `scatter_add` a small number for every draw.

# %% [markdown] tags=["hint"] title="My rows do not sum to 1"
# Every draw is worth one divided by the number of draws in its row. A row with too little
# has lost its repetitions: add shares up, for writing to an index overwrites.


# %% tags=["solution"]
def sampled_estimate(draws, vocabulary):
    share = torch.full(draws.shape, 1 / draws.shape[1])
    estimate = torch.zeros(len(draws), vocabulary)
    return estimate.scatter_add(1, draws, share)


estimate = checks.sampled_estimate(sampled_estimate, fallback=True)

# %%
torch.manual_seed(0)
draws = torch.multinomial(true_p.expand(2000, -1), 12, replacement=True)
found = estimate(draws, 5)
print("the teacher:       ", true_p)
print("mean of 2,000:     ", found.mean(0))
print("their spread:      ", found.std(0))
print("√(p(1 − p) / 12):  ", (true_p * (1 - true_p) / 12).sqrt())
print("never drawn:       ", (found == 0).float().mean(0))
print("(1 − p)¹²:         ", (1 - true_p) ** 12)

# %% [markdown]
# Right on average, and noisy: a single estimate is typically off by $\sqrt{p(1-p)/N}$, and misses a
# token with the chance $(1-p)^N$. But noise averages out over positions, and bias does
# not.
#
# Draws need a loss that is *linear* in $p$. Forward KL is, except for one term, the entropy:
#
# $$\mathrm{KL}(p \,\|\, q) = -\sum_i p_i \ln q_i \; - \; H(p)$$
#
# $H(p)$ has no gradient, and few draws cannot give it, so it is stored exactly, in four
# bytes. Then the printed loss is the KL on average; at a single position it may fall below
# zero, which is noise and no bug. Reverse KL has $p$ inside a logarithm: draws cannot serve
# it. And $p$ was taken at one temperature, which is fixed from then on.
#
# <details>
# <summary>The package draws more steadily</summary>
#
# Lay the probabilities end to end on a line from 0 to 1, choose *one* random offset, and
# take evenly spaced points from there. A token that deserves two and a half draws gets 2
# or 3, never 0 or 5, and still the right number on average. These *systematic* draws
# (Madow and Madow 1944) cost the same bytes, and the package uses them.
#
# </details>

# %% [markdown] tags=["given"]
# ## Six ways to store
#
# Best of both: keep the few largest **exactly** and draw from the **rest**. That is `hybrid`, the
# package's default. Every draw weighs the same, the rest divided by their number, so only its
# id is stored. Above, the two largest leave 0.35. Two draws weigh 0.175 each, and the third
# token is drawn with a chance of 0.15/0.35: on average it gets its 0.15.
#
# | scheme | stored per position | right on average? |
# |---|---|---|
# | `full` | every log-probability | yes |
# | `top_k` | k ids, k probabilities | no |
# | `tail_bucket` | k ids, k probabilities, the rest is one class | once the student agrees |
# | `sampled` | N ids | yes |
# | `hybrid` | k ids, k probabilities, N ids | yes |
# | the hidden state | one vector of the teacher's width | exact, in the model's own format |
#
# All but the last store the entropy as well, four bytes, which `verify` below compares.
#
# The last one is no scheme of the package, but worth knowing. A model's last layer, the
# *head*, turns a hidden state into logits. Store the hidden state, and the head gives back
# *all* logits, at any temperature, for any divergence. The price: two bytes for each number of
# the width, and the student's trainer must hold the teacher's head.

# %%
with torch.no_grad():
    state = teacher.model(input_ids=ids[:1]).last_hidden_state
    again = teacher.lm_head(state.half().to(state.dtype))
    exact = teacher(input_ids=ids[:1]).logits
gap = (again.float() - exact.float()).abs().max()
print(f"hidden state: {2 * state.shape[-1]:,} bytes a token, {state.dtype}")
print(f"every logit:  {2 * exact.shape[-1]:,} bytes")
print(f"largest difference of a logit: {gap:.1e}")

# %% [markdown]
# Stored in the model's own 16-bit format, nothing is lost. The cell above stores *float16*: no
# loss here either, but a number above 65,504 would overflow.
#
# ## Noise averages out, bias stays
#
# See it in the gradient of a student's head: once from the full distributions, once from
# what a scheme kept. The **length of the difference** is the error. **Predict** which
# lines fall with more text, and how fast.
#
# The student has to be somewhere on its way, so it first takes 60 steps on plain labels.
# `train_student` is lesson 02's loop, with the checkpoint that does best on other text.

# %%
from distill_helpers.studies import soft_labels
from distill_helpers.studies.soft_labels import train_student

pair = soft_labels.load_pair(**judged_on)
some = soft_labels.choose_rows(pair, "800", seed=1).select(range(row_count))

# %%
recipe = {"learning_rate": 8e-3, "weight_decay": 0.1}
warmed = train_student(
    pair, some, None, {}, seed=0, steps=warm_steps, **recipe
)
student = warmed.model
head = student.lm_head.weight

# %%
ids = torch.tensor(pair.train.select(range(measured_rows))["input_ids"])
with torch.no_grad():
    hidden = student.model(input_ids=ids).last_hidden_state.flatten(0, 1)
    target = pair.teacher.teacher(input_ids=ids).logits.flatten(0, 1)

# %%
from distill_helpers import Hidden, soft_label_loss
from distill_helpers.labels.schemes import decode, encode


def head_gradient(teacher, n):
    """From n positions; the teacher is logits, or what was stored."""
    every = torch.zeros(n, dtype=torch.long)  # not -100: each position counts
    student = Hidden(hidden[:n], head)  # logits, multiplied out piece by piece
    loss = soft_label_loss(student, teacher, every, shift=False).loss
    return torch.autograd.grad(loss, head)[0]


# %%
def stored(arm, n):
    scheme = study.scheme_of(arm, len(pair.tokenizer))
    generator = torch.Generator().manual_seed(1)
    offsets = torch.rand(n, generator=generator, dtype=torch.float64)
    return decode(encode(target[:n].clone(), scheme, offsets), scheme, 1.0)


# %%
amounts = [len(hidden) // part for part in (64, 16, 4, 1)]
full = {n: head_gradient(target[:n], n) for n in amounts}
errors = {
    arm: [
        (head_gradient(stored(arm, n), n) - full[n]).norm().item()
        for n in amounts
    ]
    for arm in study.STORED
}

# %%
fig, ax = plt.subplots(figsize=(7.5, 3.4))
for (arm, found), marker in zip(errors.items(), "osD^v", strict=True):
    drawn = "draws" in arm or "hybrid" in arm
    color = TEACHER if drawn else STUDENT
    ax.plot(amounts, found, marker=marker, color=color)
    # Two lines end at nearly the same place.
    up = {"50 draws": 1.2, "hybrid 8 + 24": 0.8}.get(arm, 1.0)
    words = f"{arm}: {found[-1]:.3f}"
    ax.text(1.15 * amounts[-1], up * found[-1], words, va="center")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xlim(right=8 * amounts[-1])
ax.set_ylim(bottom=0.6 * min(map(min, errors.values())))
ax.set_xlabel("tokens in the gradient")
ax.set_ylabel("length of the error")
ax.set_title("Noise averages out, bias stays")
plt.show()
print(f"length of the full gradient: {full[amounts[-1]].norm():.3f}")

# %% [markdown]
# Blue draws, orange cuts. Four times the text halves the error of draws, as noise does. The
# error of `top-12` and of the bucket hardly moves. Compare them with the full gradient's own
# length, printed below the figure: the error of `top-12` is larger, the bucket's nearly as large.
#
# ## Trained from what was stored
#
# An error at one step is not the whole story. A study trained students on what each
# scheme stored: the tiny pair of lesson 02, 800 rows, the five seeds of lesson 03, the better of the
# same two learning rates. Its vocabulary has only 2,048 tokens. The losses are measured
# there; the bytes are computed as if it had 49,152.

# %%
from distill_helpers.studies import load_results

results = load_results("stored_labels")
words = {"labels": "the text alone", "full": "every probability"}

# %%
fig, ax = plt.subplots(figsize=(8, 3.6))
for arm in results.study.arms:
    cost = results.mean("bytes_per_token_real", arm, "800").mean or 2
    nll = results.mean("nll", arm, "800")
    color = TEACHER if arm != "labels" else TEXT
    color = STUDENT if arm in ("top-12", "tail bucket of 16") else color
    ax.plot([cost, cost], [nll.low, nll.high], color=color, lw=2)
    ax.plot(cost, nll.mean, "o", color=color, ms=7)
    left = arm in ("hybrid 4 + 12", "hybrid 8 + 24", "full")
    up = -14 if arm == "hybrid 8 + 24" else 0
    ax.annotate(
        f"{words.get(arm, arm)}: {nll.mean:.2f}",
        *((cost, nll.mean), (-9 if left else 9, up)),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8.5,
    )
ax.set_xscale("log")
ax.set_xlim(1, 3e5)
ax.set_xlabel("bytes per token, were the vocabulary 49,152")
ax.set_ylabel("loss (nats per token)")
ax.set_title("Draws end near the full distribution, cuts do not")
plt.show()

# %% [markdown]
# The claims, one by one. Where a claim says that a share of the gain is *kept*, zero stands
# for exactly that share. The short orange line is the margin that we had claimed. Right of
# zero speaks for the claim: the third one says *worse*, so a point on its left means that
# top-12 did better than labels.

# %%
from distill_helpers.course.plots import forest

fig, ax = plt.subplots(figsize=(8, 3.6))
forest(ax, [results.verdict(claim.name) for claim in results.study.claims])
ax.set_xlabel("nats; right of zero speaks for the claim")
ax.set_title("Draws keep the gain; top-12 beats labels after all")
plt.show()

# %%
print(f"{'share of the gain kept':30} as it is, one temperature")
for arm in study.STORED:
    cost = results.mean("bytes_per_token_real", arm, "800").mean
    print(f"{arm:18} {cost:3.0f} bytes", end="")
    for metric in ("nll", "nll_calibrated"):
        gains = [
            results.gain(metric, "labels", other, "800").mean
            for other in (arm, "full")
        ]
        print(f"{gains[0] / gains[1]:12.0%}", end="")
    print()

# %% [markdown]
# The loss is measured on text, so *all of the gain* is no ceiling; five seeds cannot tell a share
# just above it from all. We had expected top-12 to lose even to labels. It won, and
# that claim fails. After one temperature (lesson 03) it keeps far more: much of a cut's harm is a
# student that is too sure. That draws do
# as well with large vocabularies is what Anshumann et al. report; our study does not test it.

# %% [markdown] tags=["given"]
# ## Exercise 3 · A scheme of your own
#
# *hard · quality per byte, tried in one training run · 25 minutes*
#
# Write `own_scheme(p, generator)` for probabilities `[positions, vocabulary]`. Return
# `(kept, drawn)`: ids `[positions, k]` that are stored with their probabilities, and ids
# `[positions, N]` that share equally what is left. On average the estimate has to be `p`.
#
# A kept token costs 4 bytes, a drawn one 2, the entropy 4. A vocabulary above 65,536 needs two
# more for each id. Stay **under 50**, and aim at 90 % of the gain of `full`. One run moves
# by ten points and more, so it only finds a scheme that is far off. Use the generator for whatever is random.
#
# By hand: 12 kept tokens and no draws would cost 52 bytes, and be biased.


# %% tags=["exercise"]
def own_scheme(p, generator):
    return None  # your code here


scheme = checks.own_scheme(own_scheme, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Take a few likeliest tokens with `topk`. Set their probabilities to zero with `scatter`,
# and draw from what is left with `torch.multinomial(…, replacement=True)`.

# %% [markdown] tags=["hint"] title="Kept tokens come out too large"
# A token that is kept must not be drawn as well, or it counts twice.


# %% tags=["solution"]
def own_scheme(p, generator):
    kept = p.topk(4).indices
    rest = p.scatter(-1, kept, 0.0)
    return kept, torch.multinomial(
        rest, 13, replacement=True, generator=generator
    )


scheme = checks.own_scheme(own_scheme, fallback=True)

# %% [markdown]
# The trainer takes anything that has a `lookup`. So a store of your own is a dictionary from
# rows to what your scheme kept. `SparseTargets` holds ids, their weights, a tail (none here)
# and the entropy.

# %%
from distill_helpers.losses import SparseTargets


def as_targets(p, generator):
    kept, drawn = scheme(p, generator)
    weights = p.gather(-1, kept)
    rest = (1 - weights.sum(-1, keepdim=True)).clamp(min=0)
    shares = (rest / max(1, drawn.shape[-1])).expand(drawn.shape)
    entropy = torch.special.entr(p).sum(-1)
    ids, weights = (
        torch.cat([kept, drawn], -1),
        torch.cat([weights, shares], -1),
    )
    return SparseTargets(ids, weights, None, entropy, temperature=1.0)


# %%
class OwnStore:
    temperature = 1.0
    vocabulary = len(pair.tokenizer)

    def __init__(self, rows):
        generator = torch.Generator().manual_seed(1)
        self.found = {}
        for row in rows["input_ids"]:
            with torch.no_grad():
                logits = pair.teacher.teacher(torch.tensor([row])).logits[0]
            self.found[tuple(row)] = as_targets(logits.softmax(-1), generator)

    def lookup(self, input_ids, attention_mask=None):
        rows = [self.found[tuple(row)] for row in input_ids.tolist()]
        parts = zip(
            *[(r.ids, r.weights, r.entropy) for r in rows], strict=True
        )
        ids, weights, entropy = map(torch.cat, parts)
        return SparseTargets(ids, weights, None, entropy, temperature=1.0)


# %%
# The learning rate and weight decay that the study chose for hybrid.
recipe = dict(results.options(study.DEFAULT, "800"))
mine = train_student(
    pair, some, OwnStore(some), {}, seed=1, steps=steps, **recipe
)

# %%
kept, drawn = scheme(torch.full((1, 100), 0.01), torch.Generator())
cost = 4 * kept.shape[-1] + 2 * drawn.shape[-1] + 4
labels, best = (results.mean("nll", a, "800").mean for a in ("labels", "full"))
share = (labels - mine.test.nll) / (labels - best)
print(f"{cost} bytes, loss {mine.test.nll:.2f}", end=": ")
print(f"{share:.0%} of the gain (one seed, against means of five others)")

# %% [markdown]
# ## Draws that are read again
#
# An estimate is right on average *over draws*, and a cache draws once. Read the same rows
# often enough, and the student may learn those draws by heart. Another study read 4,800
# rows once, and 400 rows twelve times, with stored draws or with new ones in every epoch.

# %%
again = load_results("reused_draws")
settings = again.study.settings

# %%
fig, ax = plt.subplots(figsize=(7.5, 3))
for arm, marker, shift in (
    ("12 draws", "o", -0.06),
    ("hybrid 8 + 24", "s", 0.06),
):
    gains = [again.gain("nll", "full", arm, setting) for setting in settings]
    cost = np.array([-gain.mean for gain in gains])
    error = [gain.high - gain.mean for gain in gains]
    places = np.arange(3) + shift
    options = {"color": TEACHER, "label": arm, "capsize": 3}
    ax.errorbar(places, cost, error, fmt=marker, **options)
    for x, y in zip(places, cost, strict=True):
        side = -1 if arm == "12 draws" else 1
        ha = "right" if side < 0 else "left"
        words = f"{y:+.3f}".replace("-", "−")
        ax.text(x + 0.05 * side, y + 0.006, words, ha=ha)
ax.axhline(0, color="#222222", lw=1)
ax.set_xticks(range(3), settings)
ax.set_xlim(-0.5, 2.5)
ax.set_ylabel("loss above full (nats)")
ax.set_title("12 stored draws cost something; new ones every epoch cost less")
ax.legend()
plt.show()

# %%
fig, ax = plt.subplots(figsize=(8, 2.4))
forest(ax, [again.verdict(claim.name) for claim in again.study.claims])
ax.set_title("Seed by seed, as was claimed")
plt.show()

# %% [markdown]
# 12 stored draws are behind after one reading already. Nothing was read twice there: that part is
# the price of few draws. Is learning by heart added? Seed by seed, after twelve epochs, new draws
# beat stored ones, and that claim holds; new ones are also more, 144 in twelve readings.
#
# For 8 exact tokens and 24 draws, at three times the bytes, no loss is shown; what reading them
# twelve times costs is undecided. More bytes are the first thing to try. Several caches with other
# seeds cost as many.
#
# ## A cache of the real teacher
#
# Now for real: the teacher reads some pages, once. A cache is a folder. Rows are found by
# a hash of their token ids, so a shuffled dataset cannot be misaligned. Kill the writer at
# any moment and call it again: it goes on at the last whole file, and ends in the same
# bytes.

# %%
from distill_helpers import write_cache

folder = work / "real"
rows = pack(austen("train"), tokenizer, length).shuffle(seed=0)
rows = rows.select(range(cached_rows))

# %%
began = time.perf_counter()
cache = write_cache(teacher, rows, folder, tokenizer=tokenizer)
print(f"written in {time.perf_counter() - began:.1f} s")
print(f"{cache.bytes_per_token:.0f} bytes a token")

# %%
for name in (
    "scheme",
    "temperature",
    "seed",
    "tokenizer",
    "teacher",
    "dataset",
):
    line = f"{name:12} {cache.header[name]}"
    print(line if len(line) < 79 else line[:77] + "…")

# %% [markdown]
# What makes a stored number trustworthy is knowing where it comes from. The header names
# tokenizer, teacher and text by hashes of their content. A cache that does not belong
# here is refused, with the reason:

# %%
from distill_helpers import SoftLabelCache
from distill_helpers.labels import CacheError

try:
    SoftLabelCache.open(folder, tokenizer=pair.tokenizer)
except CacheError as error:
    print("refused:", str(error).replace(str(folder), "the cache"))

# %% [markdown]
# ## Exercise 4 · Find the misaligned cache
#
# *medium · the bug that trains without an error · 10 minutes*
#
# A cache that is off by one position looks healthy: the loss falls, and the student learns
# to be late. Write
# `cache_shift(cached, recomputed)`: both hold the likeliest token at every position,
# `[positions]`. Return the shift from −2 to 2 for which `cached[t] == recomputed[t -
# shift]` holds most often. Some positions disagree anyway; the ends may wrap.
#
# By hand: cached `[9, 4, 7, 1]` and recomputed `[4, 7, 1, 3]` give 1, one late:
# `cached[1] == recomputed[0]`.


# %% tags=["exercise"]
def cache_shift(cached, recomputed):
    return None  # your code here


shift_of = checks.cache_shift(cache_shift, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `torch.roll(recomputed, shift)` moves everything to the right by `shift`. Count
# agreements for each of the five shifts and take the best.

# %% [markdown] tags=["hint"] title="A late cache comes out as early"
# Which of the two do you move? In `cached[t] == recomputed[t - shift]` the cache stays
# where it is; moving it instead turns the sign round.


# %% tags=["solution"]
def cache_shift(cached, recomputed):
    def agreement(shift):
        return (torch.roll(recomputed, shift) == cached).sum().item()

    return max(range(-2, 3), key=agreement)


shift_of = checks.cache_shift(cache_shift, fallback=True)

# %%
row = torch.tensor(rows[0]["input_ids"], device=teacher.device)[None]
with torch.no_grad():
    recomputed = teacher(input_ids=row).logits[0].argmax(-1).cpu()

# %%
said = cache.lookup(row.cpu())
likeliest = said.ids.gather(-1, said.weights.argmax(-1, keepdim=True)).squeeze(
    -1
)
late = likeliest[:-1].roll(1)
print("our cache:         ", int(shift_of(likeliest[:-1], recomputed[:-1])))
print("the same, one late:", int(shift_of(late, recomputed[:-1])))
print(cache.verify(teacher, rows.select([0, 3]), tokenizer=tokenizer))

# %% [markdown]
# `verify`, in the last line, lets the teacher read some rows again and compares entropies and ids.
# Its largest gap, of the entropies, is nearly nothing here. It checks the file. A shift that your own
# code makes after the lookup only your shift check sees: use both.
#
# ## Train from it
#
# The cache takes the teacher's place in the trainer; nothing else changes. What does that
# save? For the student, forward and backward are about three passes. A live teacher adds
# one of its own, through more layers. **Predict** how much faster a step gets.

# %%
from transformers import TrainerCallback

from distill_helpers import SoftLabelTrainer, training_arguments


class Clock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())


# %%
arguments = training_arguments(
    profile,
    learning_rate=2e-4,
    steps=timed_steps,
    batch_size=timed_batch,
    disable_tqdm=True,
    logging_steps=1,
)


def train_from(who):
    clock = Clock()
    trainer = SoftLabelTrainer(
        real_pair.start_student(real, profile),
        teacher=who,
        tokenizer=tokenizer,
        teacher_tokenizer=tokenizer,
        train_dataset=rows,
        args=arguments,
        callbacks=[clock],
    )
    trainer.train()
    # The first step warms up, and is not counted.
    seconds = (clock.ends[-1] - clock.ends[0]) / (timed_steps - 1)
    return seconds, [
        e["soft"] for e in trainer.state.log_history if "soft" in e
    ]


# %%
timed = {"live": train_from(teacher), "cached": train_from(cache)}
for name, (seconds, losses) in timed.items():
    print(f"{name:7} {seconds:5.2f} s a step, first losses:", end=" ")
    print(", ".join(f"{loss:.3f}" for loss in losses[:3]))
print(f"faster by a factor of {timed['live'][0] / timed['cached'][0]:.1f}")

# %% [markdown]
# The teacher's pass is what falls away. On a laptop the teacher has thirty layers and reads
# once. The student has twenty, and forward and backward count as three passes. By
# that count a live step costs one and a half cached ones. The head, the loss and the optimizer,
# which both pay, make it less.
#
# Both lines of losses mean the same thing: the teacher's entropy is stored exactly, so the
# cached value estimates the same KL. Writing cost one pass over the rows. So the first epoch
# of the first student saves nothing; every later epoch, and every later student, saves that
# pass.

# %% [markdown] tags=["published"]
# ## Who does this?
#
# Gemma 3 is distilled from 256 logits a token, sampled by the teacher's probabilities.
# What was not sampled is set to zero, and the sampled ones are renormalised, says its report
# (2025, arXiv:2503.19786): a cousin of our draws, not the same estimate. Anshumann et al. (2025,
# arXiv:2503.16870) trained models of 0.3 to 3 billion parameters from draws that are right on
# average.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | `own_scheme` with 11 kept tokens, no draws | a bias: the check refuses | the check |
# | `own_scheme` with 22 draws alone | right on average, noisier | share of the gain |
# | `write_cache(…, top_k=4, samples=12)` | about half the bytes | bytes, losses |
# | another text length in `verify` | refused: these rows are not there | the error |

# %%
# A place to try. For example:
# small = write_cache(
#     teacher, rows, work / "small", tokenizer=tokenizer, top_k=4, samples=12
# )

# %% [markdown]
# ## Recap
#
# * **One picture to remember:** the error of draws falls with the text, the error of a cut
#   top stays.
# * Top k, renormalised, pushes a perfect student away. A tail bucket leaves it alone, and
#   does not see inside the tail.
# * Draws are right on average, for forward KL, at one temperature.
# * A cache must know its tokenizer, teacher, text, temperature and seed.
# * **Store soft labels when** rows are read more than once, or by several students. **Do
#   not, when** the student writes the text itself, as in lesson 08, or when the teacher will
#   change. With few bytes, draw, and keep some tokens exactly.
#
# *Read on:* Peng et al. 2024, arXiv:2410.16215, on what to store in pre-training
# distillation.
