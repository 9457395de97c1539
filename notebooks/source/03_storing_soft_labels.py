# %% [markdown]
# ## The bill
#
# In lesson 02 the teacher sat beside the student and read every batch with it.
# That is wasteful: it reads the same text again in every epoch, for every
# student, in every trial run. Why not run the teacher **once** and store what
# it said?
#
# Because of the bill. For every token of text, a soft label holds one number
# for every token of the *vocabulary*. **Predict:** a vocabulary of 100,000,
# two bytes a number, and a corpus of a trillion tokens. How many bytes?

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from distill_helpers.plots import use_style
from distill_helpers.profiles import get_profile

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

# %% tags=["nbval-check-output"]
vocabulary, tokens, bytes_per_number = 100_000, 10**12, 2
bill = vocabulary * tokens * bytes_per_number
print(f"{bill:.0e} bytes = {bill / 1e15:.0f} petabytes")

# %% [markdown]
# Nobody stores that. This lesson is about storing a thousandth of it without
# losing what soft labels are for. Here are the schemes that it compares (you
# will meet each of them below), at the vocabulary of our real teacher; the
# slider moves the size of the corpus.

# %%
from distill_helpers.soft_label_schemes import scheme_for
from distill_helpers.widgets import explore

# %%
sizes = {
    "every probability": scheme_for("full", 49_152),
    "top 64": scheme_for("top_k", 49_152, top_k=64),
    "top 16 + tail": scheme_for("tail_bucket", 49_152, top_k=16),
    "50 draws": scheme_for("sampled", 49_152, samples=50),
    "top 8 + 24 draws": scheme_for("hybrid", 49_152, top_k=8, samples=24),
    "the text itself": None,
}


# %%
def draw_bill(ax, exponent):
    cost = [s.bytes_per_position if s else 2 for s in sizes.values()]
    total = np.array(cost) * 10.0**exponent
    ax.barh(list(sizes), total / 1e9, color="#0072b2")
    ax.axvline(1000, color="0.3", linestyle="--")
    ax.text(2000, 5.3, "1 TB", fontsize=8, color="0.3")
    ax.set_xscale("log")
    ax.set_xlim(1e-4, 1e9)
    ax.invert_yaxis()
    ax.set_xlabel("gigabytes")
    ax.set_title(f"$10^{{{exponent:g}}}$ tokens")


# %%
explore(
    draw_bill,
    name="tokens, as a power of ten",
    values=[6, 7, 8, 9, 10, 11, 12, 13],
    start=9,
    still=[6, 9, 12],
    alt="Gigabytes of six schemes at three sizes of corpus, on a log axis. "
    "Every probability costs a thousand times as much as top 8 and 24 draws.",
    size=(7.5, 3.2),
)

# %% [markdown]
# ## How much is in the top?
#
# Most of those numbers are almost zero. So keep only the largest? Look at the
# real teacher on a real page. For every position: how much probability do its
# $k$ likeliest tokens hold together?

# %%
from distill_helpers.data import austen, pack
from distill_helpers.studies import real_pair

real = real_pair.load_pair(profile, 2)
teacher, tokenizer = real.teacher

# %%
page = pack(austen("test"), tokenizer, 128).select(range(2))
ids = torch.tensor(page["input_ids"][:], device=teacher.device)
with torch.no_grad():
    logits = teacher(input_ids=ids).logits[:, :-1].float().flatten(0, 1)
p = logits.softmax(-1).cpu()
mass = p.sort(-1, descending=True).values.cumsum(-1)

# %%
fig, ax = plt.subplots()
k = np.arange(1, 257)
for share, style in ((0.9, ":"), (0.5, "-"), (0.1, "--")):
    held = mass[:, :256].quantile(1 - share, dim=0)
    ax.plot(k, held, style, label=f"{share:.0%} of positions hold more")
ax.set_xscale("log")
ax.set_xlabel("k")
ax.set_ylabel("probability in the top k")
ax.set_title("The real teacher on two pages of an unseen novel")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# At some positions a few tokens are nearly all there is. At the typical one
# ten of them leave a good part out, and at the open ones, where a sentence may
# go anywhere, even a hundred do. What is left out there is the part that only
# a teacher can tell.
#
# ## Why "keep the top and renormalise" teaches something false
#
# The first idea: keep the top $k$, scale them up so that they sum to 1, and
# train as before. By hand, on five tokens and $k = 2$:

# %% tags=["nbval-check-output"]
true_p = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1])
kept, where = true_p.topk(2)
renormalised = torch.zeros(5).scatter(0, where, kept / kept.sum())
print("the teacher:   ", true_p)
print("top 2, scaled: ", renormalised)
print("difference:    ", renormalised - true_p)

# %% [markdown]
# Remember the gradient from lesson 02: $q - p$. A student that already agrees
# with its teacher, $q = p$, should be left alone. This target pushes it away:
# up on the favourites, down on everything else, at every position, for ever.
# More data do not help, since the error is always the same: it is a **bias**.
#
# Two ways out:
#
# * a **tail bucket**: one more class that holds all the other tokens together.
#   Nothing is scaled up, and agreement gives zero; but *which* of the others
#   is likely, the student does not hear;
# * **draw** tokens from the teacher, and use their frequencies.
#
# ## Draws are right on average
#
# Draw $N$ tokens from $p$ and count. The expected share of token $i$ is
# exactly $p_i$, so the expected gradient is exactly the full one. A single
# estimate is noisy; but noise averages out over positions, and bias does not.
#
# The draws need not be independent. Lay the probabilities end to end on a
# line from 0 to 1, choose *one* random offset, and take evenly spaced points
# from there. Each token is still hit $N p_i$ times on average, but never much
# more or less often. **Predict** what that does to the picture.

# %%
from distill_helpers.soft_label_schemes import systematic_draws

count, shown = 16, 24
position = (mass[:, 7] - 0.8).abs().argmin()  # neither sure nor open
example = p[position].sort(descending=True).values[:1024].contiguous()
example = example / example.sum()

# %%
torch.manual_seed(0)
rows = example.expand(2000, -1)
independent = torch.multinomial(rows, count, replacement=True)
systematic = systematic_draws(
    rows.contiguous(), count, torch.rand(2000, dtype=torch.float64)
)


# %%
def draw_shares(ax, drawn):
    share = torch.nn.functional.one_hot(drawn, len(example)).sum(1) / count
    low, high = share.quantile(torch.tensor([0.1, 0.9]), dim=0)[:, :shown]
    middle = share.mean(0)[:shown]
    around = torch.stack([middle - low, high - middle]).clamp(min=0)
    ax.bar(range(shown), example[:shown], color="0.8", label="the teacher")
    name = "16 draws: mean, 80 % of cases"
    ax.errorbar(range(shown), middle, around, fmt="o", ms=3, label=name)
    ax.set_xlabel("token, by rank")


# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0), sharey=True)
draw_shares(left, independent)
draw_shares(right, systematic)
left.set_title("independent draws")
right.set_title("systematic draws")
left.set_ylabel("probability")
left.legend()
plt.show()

# %% [markdown]
# Both are right on average; the systematic ones are far steadier, and cost the
# same bytes. The package's draws are of this kind.
#
# Best of both: keep the few largest **exactly**, where a bucket of draws would
# waste its bytes on what everybody knows, and draw from the **rest**. That is
# the scheme `hybrid`, and the package's default.
#
# | scheme | stored per position | right on average? |
# |---|---|---|
# | `full` | every log-probability, 2 bytes each | yes, exactly |
# | `top_k` | k ids and probabilities, scaled to 1 | no |
# | `tail_bucket` | the same, and one class for the rest | no |
# | `sampled` | N drawn ids | yes |
# | `hybrid` | k ids and probabilities, M ids drawn from the rest | yes |
#
# ## Seen as a gradient
#
# Bias and noise can be told apart. Take the gradient of the student's output
# head from the full distributions, and from what each scheme kept. The angle
# between the two is the error. With more text noise shrinks; bias stays.
# **Predict** which lines will fall.

# %%
from distill_helpers.studies import soft_labels, stored_labels
from distill_helpers.studies.soft_labels import train_student

# %%
pair = soft_labels.load_pair(
    **profile.pick(
        smoke={"validation_rows": 8, "test_rows": 16}, cpu={}, gpu={}
    )
)
some = soft_labels.choose_rows(pair, "800", seed=0)
some = some.select(range(profile.pick(smoke=16, cpu=800, gpu=800)))

# %%
student = train_student(
    pair,
    some,
    None,
    {},
    seed=0,
    learning_rate=8e-3,
    weight_decay=0.1,
    steps=profile.pick(smoke=2, cpu=60, gpu=60),
).model
head = student.lm_head.weight

# %%
from distill_helpers.fused_losses import fused_soft_label_loss
from distill_helpers.soft_label_schemes import decode, encode

count = profile.pick(smoke=2, cpu=256, gpu=256)
ids = torch.tensor(pair.train.select(range(count))["input_ids"])
with torch.no_grad():
    hidden = student.model(input_ids=ids).last_hidden_state
    target = pair.teacher.teacher(input_ids=ids).logits.flatten(0, 1)
hidden = hidden.flatten(0, 1)


# %%
def head_gradient(teacher, n):
    labels = torch.zeros(n, dtype=torch.long)
    loss = fused_soft_label_loss(hidden[:n], head, teacher, None, labels).loss
    return torch.autograd.grad(loss, head)[0]


# %%
def stored(scheme, n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.rand(n, generator=generator, dtype=torch.float64)
    return decode(encode(target[:n].clone(), scheme, offsets), scheme, 1.0)


def angle(a, b):
    cosine = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).item()


# %%
amounts = [len(hidden) // 64, len(hidden) // 16, len(hidden) // 4, len(hidden)]
angles = {}
for arm in stored_labels.STORED:
    scheme = stored_labels.scheme_of(arm, len(pair.tokenizer))
    angles[arm] = []
    for n in amounts:
        ours = head_gradient(stored(scheme, n), n)
        full = head_gradient(target[:n], n)
        angles[arm].append((n, angle(ours, full)))

# %%
from distill_helpers.plots import lines

fig, ax = plt.subplots()
lines(ax, angles, xlabel="tokens in the gradient", ylabel="degrees")
ax.set_xscale("log")
ax.set_ylim(bottom=0)
ax.set_title("Angle to the full gradient: noise averages out, bias stays")
plt.show()

# %% [markdown]
# The draws' lines fall, as noise does. The others *rise*. With more text the
# full gradient gets smaller, for what pulls one way here pulls another way
# there; a bias pulls the same way everywhere, so more and more of what is left
# is bias.
#
# ## The same bytes, trained
#
# A small angle at one step is not the whole story. So a study trains students
# on what each scheme stored: the tiny pair of lesson 02, 800 rows, five fresh
# seeds, the same two learning rates for everybody. Every row is read six
# times, and its draws are drawn once.

# %%
from distill_helpers.studies import load_results

results = load_results("stored_labels")
arms = results.study.arms
kept = {}
for arm in arms[2:]:
    gain = results.gain("nll", "labels", arm, "800").mean
    kept[arm] = gain / results.gain("nll", "labels", "full", "800").mean

# %%
fig, ax = plt.subplots(figsize=(7, 3.6))
for arm, marker in zip(arms, "sPoD^vX", strict=False):
    cost = results.mean("bytes_per_token_real", arm, "800").mean or 2
    nll = results.mean("nll", arm, "800")
    error = [[nll.mean - nll.low], [nll.high - nll.mean]]
    ax.errorbar(cost, nll.mean, error, fmt=marker, label=arm)
ax.set_xscale("log")
ax.set_xlabel("bytes per token at the real teacher's vocabulary")
ax.set_ylabel("NLL (nats per token)")
ax.set_title("Quality against bytes: lower left is better")
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %%
print(results.table(("nll", "ece"), "800"), end="\n\n")
for arm, share in kept.items():
    print(f"{arm:18} keeps {share:5.0%} of the full distribution's gain")
for claim in results.study.claims:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# The draws carry nearly everything, for a thousandth of the bytes.
# Renormalised top-12 did not even lose to labels, as had been claimed: its
# students know more than labels alone taught them. But they are sure of
# themselves without reason (look at `ece`), and keep little of the gain.
#
# And one more seed, live: the default scheme, written to a real cache on disk
# and trained from.

# %%
import tempfile
from pathlib import Path

from distill_helpers.soft_label_cache import write_cache

# %%
work = Path(tempfile.mkdtemp())
tiny_cache = write_cache(
    pair.teacher.teacher,
    some,
    work / "tiny",
    tokenizer=pair.tokenizer,
    progress=False,
)
print(f"{tiny_cache.bytes_per_token:.0f} bytes a token at this vocabulary")

# %%
live = train_student(
    pair,
    some,
    tiny_cache,
    {},
    seed=0,
    steps=profile.pick(smoke=4, cpu=soft_labels.STEPS, gpu=soft_labels.STEPS),
    **dict(results.options(stored_labels.DEFAULT, "800")),
)

# %%
arm, nll = stored_labels.DEFAULT, live.test.nll
display(results.check_live("nll", arm, "800", nll, judged=judged))

# %% [markdown]
# ## A cache of the real teacher
#
# Now for real: the teacher reads some pages of the novels, once. A cache is a
# folder. Rows are found by a hash of their token ids, so it does not matter in
# which order they come. Kill the writer at any moment and call it again: it
# goes on, and ends in the same bytes.

# %%
folder = work / "real"
length = profile.pick(smoke=32, cpu=128, gpu=256)
rows = pack(austen("train"), tokenizer, length).shuffle(seed=0)
rows = rows.select(range(profile.pick(smoke=4, cpu=48, gpu=256)))
cache = write_cache(teacher, rows, folder, tokenizer=tokenizer)
everything = scheme_for("full", teacher.config.vocab_size).bytes_per_position
print(f"{cache.bytes_per_token:.0f} bytes a token instead of {everything:,}")

# %% [markdown]
# What makes a stored number trustworthy is knowing where it comes from. The
# header says it: which tokenizer (by content), which teacher (by weights),
# which text, at what temperature, with what seed, and a checksum per file.

# %%
import json

header = {k: v for k, v in cache.header.items() if k != "shards"}
print(json.dumps(header, indent=1))

# %% [markdown]
# `verify` lets the teacher read a few rows again. And a cache that does not
# belong here is refused, with the reason:

# %%
from distill_helpers.models import load_tiny_teacher
from distill_helpers.soft_label_cache import CacheError, SoftLabelCache

print(cache.verify(teacher, rows.select([0, 3]), tokenizer=tokenizer))

# %%
strangers = load_tiny_teacher("prose").tokenizer
try:
    SoftLabelCache.open(folder, tokenizer=strangers)
except CacheError as error:
    print("refused:", str(error).replace(str(folder), "the cache"))

# %% [markdown]
# ## Train from it
#
# The cache takes the teacher's place in the trainer; nothing else changes.
# What does it save? Count: for the student, forward and backward are about
# three passes; a live teacher adds one of its own, on a larger model.
# **Predict** how much faster a step gets.

# %%
import time

from distill_helpers.trainers import SoftLabelTrainer, training_arguments

steps = profile.pick(smoke=1, cpu=6, gpu=30)
arguments = training_arguments(
    profile,
    steps=steps,
    learning_rate=2e-4,
    batch_size=profile.pick(smoke=1, cpu=4, gpu=8),
    disable_tqdm=True,
    logging_steps=1,
)


# %%
def train_from(who):
    trainer = SoftLabelTrainer(
        real_pair.start_student(real, profile),
        teacher=who,
        tokenizer=tokenizer,
        train_dataset=rows,
        args=arguments,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = (time.perf_counter() - start) / steps
    log = trainer.state.log_history
    return seconds, [entry["soft"] for entry in log if "soft" in entry]


# %%
timed = {"live": train_from(teacher), "cached": train_from(cache)}
for name, (seconds, losses) in timed.items():
    print(f"{name:7} {seconds:5.2f} s a step, first losses:", end=" ")
    print(", ".join(f"{loss:.3f}" for loss in losses[:3]))
print(f"faster by a factor of {timed['live'][0] / timed['cached'][0]:.2f}")

# %% [markdown]
# The losses of both columns mean the same thing: the exact entropy of the
# teacher is stored with every position, so the cached value estimates the same
# KL. The same step for less work; and from the second epoch, or the second
# student, the teacher's pass is not only cheaper but gone.
#
# ## What an API gives
#
# Some APIs return log-probabilities for the 20 likeliest tokens, which is the
# scheme `top_k` with $k = 20$. They are true probabilities, not scaled ones,
# so their missing mass is known, and a tail bucket can be made of them: do
# not renormalise. Others, and reasoning models above all, return none. Then
# the teacher's text is all there is (lesson 04).

# %%
top20 = mass[:, 19]
print(f"the top 20 hold {top20.mean():.0%} on average,")
print(f"and less than half at {(top20 < 0.5).float().mean():.0%} of positions")

# %% [markdown] tags=["given"]
# ## Exercise 1 · The tail bucket
#
# *medium · what to do with an API's top 20 · 15 minutes*
#
# Write `tail_bucket(student_logits, ids, weights)`: the forward KL over the
# kept tokens and **one** class for all the others, teacher's mass against the
# student's mass.
#
# * `student_logits`: `[positions, vocabulary]`; `ids`, `weights`:
#   `[positions, k]`; returns `[positions]`, in nats
#
# By hand: the student says (0.5, 0.3, 0.1, 0.1), the teacher kept 0.4 for
# each of the first two. Then it is 0.4·ln(0.4/0.5) + 0.4·ln(0.4/0.3) +
# 0.2·ln(0.2/0.2), about 0.026 nats.

# %% tags=["exercise"]
from distill_helpers import checks


def tail_bucket(student_logits, ids, weights):
    return None  # your code here


checks.tail_bucket(tail_bucket)

# %% [markdown] tags=["hint"]
# The student's probabilities come from *all* its logits; `gather` picks the
# kept ones. What is left of each side is 1 minus the sum.

# %% tags=["solution"]
from distill_helpers import checks


def tail_bucket(student_logits, ids, weights):
    q = student_logits.softmax(-1).gather(-1, ids)
    rest_p, rest_q = 1 - weights.sum(-1), 1 - q.sum(-1)
    kept = (weights * (weights / q).log()).sum(-1)
    return kept + rest_p * (rest_p / rest_q).log()


checks.tail_bucket(tail_bucket)

# %% [markdown]
# ## Exercise 2 · An estimate from draws
#
# *easy · the unbiased estimate · 5 minutes*
#
# Write `sampled_estimate(draws, vocabulary)`: from ids that were drawn
# (`[positions, draws]`, some of them twice) to probabilities `[positions,
# vocabulary]`.
#
# By hand: the draws 2, 0, 2, 1 from a vocabulary of 4 give (¼, ¼, ½, 0).


# %% tags=["exercise"]
def sampled_estimate(draws, vocabulary):
    return None  # your code here


checks.sampled_estimate(sampled_estimate)

# %% [markdown] tags=["hint"]
# `torch.nn.functional.one_hot` turns ids into rows of zeros and a one; or
# start from zeros and `scatter_add_` a small number for every draw.


# %% tags=["solution"]
def sampled_estimate(draws, vocabulary):
    share = torch.full(draws.shape, 1 / draws.shape[1])
    estimate = torch.zeros(len(draws), vocabulary)
    return estimate.scatter_add(1, draws, share)


checks.sampled_estimate(sampled_estimate)

# %% [markdown]
# ## Exercise 3 · Find the misaligned cache
#
# *medium · the bug that trains without an error · 10 minutes*
#
# A cache that is off by one position looks healthy: the loss falls, the
# student learns to be late. Write `cache_shift(cached, recomputed)`: both
# hold the likeliest token at every position, `[positions]`; return the shift
# from −2 to 2 for which `cached[t] == recomputed[t - shift]` holds most often (1: the
# cache is one position late). Some positions disagree anyway.
#
# By hand: `[9, 4, 7, 1]` against `[4, 7, 1, 3]` is one late.


# %% tags=["exercise"]
def cache_shift(cached, recomputed):
    return None  # your code here


checks.cache_shift(cache_shift)

# %% [markdown] tags=["hint"]
# `torch.roll(recomputed, shift)` moves everything to the right by `shift`.
# Count agreements for each of the five shifts and take the best.


# %% tags=["solution"]
def cache_shift(cached, recomputed):
    def agreement(shift):
        return (torch.roll(recomputed, shift) == cached).sum().item()

    return max(range(-2, 3), key=agreement)


checks.cache_shift(cache_shift)

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what does a soft label cost? | vocabulary × 2 bytes in full; about a hundred bytes as a hybrid |
# | what is wrong with top k, renormalised? | a bias: it pushes a perfect student away, and more data do not help |
# | what is right about draws? | on average they are the distribution; noise averages out |
# | what must a cache know? | tokenizer, template, teacher, text, temperature, seed, checksums |
# | what is fixed when it is written? | the temperature; and only forward KL can be trained from draws |
#
# **When would you not store soft labels?**
#
# * The student sees every row once, and you train one student: the teacher's
#   pass happens once either way.
# * The divergence needs the student's own text, as in lesson 07, or is not
#   forward KL: draws do not serve it.
# * Few rows and very many epochs: the draws were drawn once, and what was
#   noise turns into a bias of its own. Draw again, or store more.
# * The teacher will change: a cache belongs to one teacher, for good.
#
# *Read on:* Anshumann et al. 2025 (arXiv:2503.16870) on sampled soft labels,
# who trained models of billions of parameters from them; Peng et al. 2024
# (arXiv:2410.16215) on what to store in pre-training distillation.
