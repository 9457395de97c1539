# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

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

# %% tags=["nbval-check-output"]
vocabulary, tokens, bytes_per_number = 100_000, 10**12, 2
bill = vocabulary * tokens * bytes_per_number
print(f"{bill:.0e} bytes = {bill / 1e15:.0f} petabytes")

# %% [markdown]
# Nobody stores that. This lesson is about storing a thousandth of it without
# losing what soft labels are for. Below: every probability, two schemes that
# you will get to know (`top-12` keeps the 12 likeliest tokens, `hybrid 8 + 24` the 8
# likeliest and 24 drawn ones), and the text alone, at the vocabulary of our real
# teacher. The slider moves the size of the corpus (a page without Python shows
# three sizes side by side).

# %%
from distill_helpers.course.widgets import explore
from distill_helpers.studies import stored_labels

arms = ("full", "top-12", stored_labels.DEFAULT)
sizes = {arm: stored_labels.scheme_of(arm, 49_152) for arm in arms}
bytes_of = {arm: scheme.bytes_per_position for arm, scheme in sizes.items()}
bytes_of["the text itself"] = 2


# %%
def draw_bill(ax, exponent):
    total = np.array(list(bytes_of.values())) * 10.0**exponent
    ax.plot(total, list(bytes_of), "o", ms=9, color="#0072b2")
    ax.set_xscale("log")
    ax.set_xlim(1e5, 1e19)
    ax.set_xticks([1e6, 1e9, 1e12, 1e15, 1e18], ["MB", "GB", "TB", "PB", "EB"])
    ax.margins(y=0.2)
    ax.invert_yaxis()
    ax.set_title(f"$10^{{{exponent:g}}}$ tokens")


# %%
explore(
    draw_bill,
    name="tokens, as a power of ten",
    values=[6, 7, 8, 9, 10, 11, 12, 13],
    start=9,
    still=[6, 9, 12],
    alt="Bytes of four schemes at three sizes of corpus, on a log axis. "
    "Every probability costs a thousand times as much as top 8 and 24 draws.",
    size=(7.5, 2.6),
)

# %% [markdown]
# ## How much is in the top?
#
# Most of those numbers are almost zero. So keep only the largest? Look at the
# real teacher on passages from all over *Persuasion*. For every position: how
# much probability do its $k$ likeliest tokens hold together?

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
p = logits.softmax(-1).cpu()
mass = p.sort(-1, descending=True).values.cumsum(-1)

# %%
kinds = {
    "the surest tenth of positions": 0.9,
    "the typical position": 0.5,
    "the most open tenth": 0.1,
}
fig, ax = plt.subplots()
k = np.arange(1, 257)
for (kind, share), style in zip(kinds.items(), (":", "-", "--"), strict=True):
    held = mass[:, :256].quantile(share, dim=0)
    ax.plot(k, held, style, label=kind)
ax.set_xscale("log")
ax.set_xlabel("k")
ax.set_ylabel("probability in the top k")
ax.set_title("The real teacher on eight passages")
ax.legend(loc="lower right")
plt.show()

# %%
for kind, share in kinds.items():
    ten, hundred = mass[:, [9, 99]].quantile(share, dim=0).tolist()
    print(f"{kind}: the top 10 hold {ten:.0%}, the top 100 {hundred:.0%}")

# %% [markdown]
# How to read the figure: at one position in ten the top k hold *at least* what the
# dotted line shows, at half of the positions at least the solid line, and at one in
# ten *at most* the dashed line. At the surest positions ten tokens hold nearly
# everything. At the typical one ten of them leave a good part out, and where a
# sentence may go anywhere, even a hundred do.
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
#   Nothing is scaled up, and a student that agrees is left alone. But so is
#   one that is wrong *inside* the tail: the bucket scales all other tokens up
#   or down together, in the shares that the student already gives them. Right
#   at the goal, wrong on the way there;
# * **draw** tokens from the teacher, and use their frequencies (Anshumann et
#   al. 2025).
#
# ## Draws are right on average
#
# Draw $N$ tokens from $p$ and count. The expected share of token $i$ is
# exactly $p_i$. A single estimate is noisy; but noise averages out over
# positions, and bias does not.
#
# That is good enough for a loss that is *linear* in $p$. Forward KL is, but for
# one number:
#
# $$\mathrm{KL}(p \,\|\, q) = -\sum_i p_i \ln q_i \; - \; H(p)$$
#
# Put an estimate that is right on average into the sum, and the sum and its
# gradient are right on average. The entropy $H(p)$ is not linear, so it is
# stored exactly: four bytes. Reverse KL has $p$ inside a logarithm, and so has the
# Jensen–Shannon divergence (JSD) that lesson 08 introduces: draws cannot serve
# them. And $p$ was taken at one temperature, which is fixed from then on.
#
# The draws need not be independent. Lay the probabilities end to end on a
# line from 0 to 1, choose *one* random offset, and take evenly spaced points
# from there (*systematic* sampling, Madow and Madow 1944). Each token is still
# hit $N p_i$ times on average, and one that deserves two and a half draws gets
# 2 or 3, never 0 or 5. Below are 2,000 trials of 16 draws. **Predict** which
# way of drawing has the shorter error bars.

# %%
from distill_helpers.labels.schemes import systematic_draws

draws, shown = 16, 12
position = (mass[:, 7] - 0.8).abs().argmin()  # neither sure nor open
# The likeliest 1,024 tokens are enough for a picture, scaled to sum to 1.
example = p[position].sort(descending=True).values[:1024].contiguous()
example = example / example.sum()

# %%
torch.manual_seed(0)
rows = example.expand(2000, -1)
independent = torch.multinomial(rows, draws, replacement=True)
systematic = systematic_draws(
    rows.contiguous(), draws, torch.rand(2000, dtype=torch.float64)
)


# %%
def draw_shares(ax, drawn):
    share = torch.nn.functional.one_hot(drawn, len(example)).sum(1) / draws
    low, high = share.quantile(torch.tensor([0.1, 0.9]), dim=0)[:, :shown]
    middle = share.mean(0)[:shown]
    around = torch.stack([middle - low, high - middle]).clamp(min=0)
    ax.bar(range(shown), example[:shown], color="0.8", label="the teacher")
    name = "drawn: mean, 10th to 90th percentile"
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
# Both are right on average, and they cost the same bytes. For the likely tokens the
# systematic draws are far steadier. A token that deserves less than one draw gets
# none or one most of the time, whichever way you draw; there little is won. The
# package's draws are systematic.
#
# Best of both: keep the few largest **exactly**, where draws would waste their
# bytes on what everybody knows, and draw from the **rest**. That is the scheme
# `hybrid`, and the package's default.
#
# | scheme | stored per position, beside the entropy | read as | right on average? |
# |---|---|---|---|
# | `full` | every log-probability | as it is | yes |
# | `top_k` | k ids, k probabilities | scaled to 1 | no |
# | `tail_bucket` | k ids, k probabilities | the rest is one class | no |
# | `sampled` | N ids | 1/N for each draw | yes |
# | `hybrid` | k ids, k probabilities, M ids | each draw is 1/M of the rest | yes |
#
# What does that cost? A probability takes two bytes, the entropy four, an id
# as many bits as the vocabulary needs: 16 at 49,152 tokens, 11 at 2,048.
# **Predict** the bytes of a hybrid of 8 exact tokens and 24 draws (`hybrid 8 + 24`
# in the figures) at both.

# %% tags=["nbval-check-output"]
for vocabulary, bits in ((49_152, 16), (2_048, 11)):
    ids_in_bytes = (8 + 24) * bits / 8
    print(f"{vocabulary:6}: {ids_in_bytes:g} + {8 * 2} + 4 bytes, by hand")
    scheme = stored_labels.scheme_of(stored_labels.DEFAULT, vocabulary)
    print(f"        {scheme.bytes_per_position} bytes, says the package")

# %% [markdown]
# ## Seen as a gradient
#
# Bias and noise can be told apart. A model's last layer, its *head*, turns a hidden
# state into logits. Take the gradient of a student's head twice: from the full
# distributions, and from what a scheme kept. The angle between the two is the error.
# **Predict** which lines fall with more text.
#
# The student needs to be somewhere on its way, so it is first trained for 60 steps on
# plain labels. After that, labels play no part: the gradient is that of the KL alone.
# (Given hidden states and the head instead of logits, the loss of lesson 02 multiplies
# by the head a few tokens at a time, so that the logits of a whole batch never
# exist at once.)

# %%
from distill_helpers.studies import soft_labels
from distill_helpers.studies.soft_labels import train_student

# %%
pair = soft_labels.load_pair(
    **profile.pick(
        smoke={"validation_rows": 4, "test_rows": 4}, cpu={}, gpu={}
    )
)
some = soft_labels.choose_rows(pair, "800", seed=1)
some = some.select(range(profile.pick(smoke=16, cpu=800, gpu=800)))

# %%
student = train_student(
    pair,
    some,
    None,  # no teacher: labels
    {},
    seed=0,
    learning_rate=8e-3,
    weight_decay=0.1,
    steps=profile.pick(smoke=2, cpu=60, gpu=60),
).model
head = student.lm_head.weight

# %%
from distill_helpers import Hidden, soft_label_loss
from distill_helpers.labels.schemes import decode, encode

count = profile.pick(smoke=2, cpu=256, gpu=256)
ids = torch.tensor(pair.train.select(range(count))["input_ids"])
with torch.no_grad():
    hidden = student.model(input_ids=ids).last_hidden_state.flatten(0, 1)
    target = pair.teacher.teacher(input_ids=ids).logits.flatten(0, 1)


# %%
def head_gradient(teacher, n):
    """From n positions; the teacher is logits, or what was stored."""
    labels = torch.zeros(n, dtype=torch.long)  # counted, and without a say
    student = Hidden(hidden[:n], head)
    loss = soft_label_loss(student, teacher, labels, shift=False).loss
    return torch.autograd.grad(loss, head)[0]


# %%
def stored(scheme, n):
    generator = torch.Generator().manual_seed(1)
    offsets = torch.rand(n, generator=generator, dtype=torch.float64)
    columns = encode(target[:n].clone(), scheme, offsets)
    return decode(columns, scheme, 1.0)


def angle(a, b):
    cosine = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).item()


# %%
amounts = [len(hidden) // part for part in (64, 16, 4, 1)]
full = {n: head_gradient(target[:n], n) for n in amounts}
angles = {arm: [] for arm in stored_labels.STORED}
for arm in angles:
    scheme = stored_labels.scheme_of(arm, len(pair.tokenizer))
    for n in amounts:
        ours = head_gradient(stored(scheme, n), n)
        angles[arm].append((n, angle(ours, full[n])))

# %%
from distill_helpers.course.plots import lines

fig, ax = plt.subplots()
lines(ax, angles, xlabel="tokens in the gradient", ylabel="degrees")
ax.set_xscale("log")
ax.set_ylim(bottom=0)
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
ax.set_title("Angle to the full gradient: noise averages out, bias stays")
plt.show()
for n, gradient in full.items():
    print(f"{n:6} tokens: length of the full gradient {gradient.norm():.3f}")

# %% [markdown]
# The draws' lines fall, the others *rise*. (`50 draws` and `hybrid 8 + 24` lie on top
# of each other.) A small angle is roughly the length of the error divided by the
# length of the full gradient. With more text the gradient itself gets shorter (the
# lengths are printed), for what pulls one way here pulls another way there. Noise
# shrinks faster: 64 times the text divides it by about 8, the square root of 64. So
# the draws' angle falls, though by less than 8. A bias pulls the same way everywhere
# and does not shrink like that: more and more of what is left is bias.
#
# ## About the same bytes, trained
#
# A small angle at one step is not the whole story. So a study trains students
# on what each scheme stored: the tiny pair of lesson 02 with its 2,048 tokens,
# 800 rows, five fresh seeds, for everybody the better of the same two learning
# rates. Every row is read six times, and its draws are drawn once.
#
# The figure sets quality against cost. The quality is the tiny pair's, with intervals
# over the seeds; the cost is what the scheme would take at the real teacher's
# vocabulary. Some verdicts below it speak of a *share*: "beyond … of the gain of full"
# is what an arm gains over labels, less nine tenths of what `full` gains. It is
# positive if more than that share is kept.

# %%
from distill_helpers.studies import load_results

results = load_results("stored_labels")
arms = results.study.arms

# %%
fig, ax = plt.subplots(figsize=(7, 3.6))
for arm, marker in zip(arms, "sPoD^vX", strict=False):
    cost = results.mean("bytes_per_token_real", arm, "800").mean or 2
    nll = results.mean("nll", arm, "800")
    error = [[nll.mean - nll.low], [nll.high - nll.mean]]
    ax.errorbar(cost, nll.mean, error, fmt=marker, ms=7, label=arm)
ax.set_xscale("log")
ax.set_xlabel("bytes per token, were the vocabulary 49,152")
ax.set_ylabel("NLL (nats per token)")
ax.set_title("Quality (tiny pair) against cost: lower left is better")
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %%
print(results.table(("nll", "nll_calibrated", "ece"), "800"), end="\n\n")
for claim in results.study.claims:
    display(results.verdict(claim.name, judged=judged))


# %%
def kept(metric, arm):
    gain = results.gain(metric, "labels", arm, "800").mean
    return gain / results.gain(metric, "labels", "full", "800").mean


print("share of the full gain that is kept")
for arm in stored_labels.STORED:
    cost = results.mean("bytes_per_token_real", arm, "800").mean
    print(f"{arm:18} for {cost:3.0f} bytes: {kept('nll', arm):4.0%}", end=", ")
    print(f"after fitting T {kept('nll_calibrated', arm):4.0%}")

# %% [markdown]
# The draws carry nearly everything. (A little more than everything is no better than
# full: the intervals overlap.) At the tiny pair's own 2,048 tokens the hybrid of 8
# and 24 takes a sixtieth of the bytes of everything. As a hybrid hardly grows with
# the vocabulary, at 49,152 (the bytes printed above) it would take less than a
# thousandth. That the quality holds there too is what Anshumann et al.
# report; our study does not test it. The fair comparison is the cheapest draw:
# the hybrid of 4 and 12 spends fewer bytes than top-12 or the bucket.
#
# Before the study we had claimed that renormalised top-12 would lose even to labels.
# It did not: it is better than labels, and the claim fails. (The gain is counted in
# the direction of the claim, so a negative one says here that top-12 is *not* worse.)
# But look at its `ece`, and at what is kept after one fitted temperature (lesson 03):
# much of its damage is overconfidence, as you would expect from targets that are
# scaled up. The rest no temperature repairs: after the fit, top-12 and the bucket are
# close, for what both lack is the tail itself. The draws need no repair.
#
# ## Draws that are read again
#
# An estimate is right on average *over draws*, and a cache draws once. Read the
# same rows often enough, and the student may learn those draws by heart.
# Another study: 4,800 rows read once, against 400 rows read twelve times, with
# the draws that were stored or with new ones in every epoch. **Predict** who
# suffers: 12 draws, or 8 exact tokens and 24 draws?

# %%
again = load_results("reused_draws")
settings = again.study.settings
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for arm, marker, shift in (
    ("12 draws", "o", -0.05),
    ("hybrid 8 + 24", "s", 0.05),
):
    gains = [again.gain("nll", "full", arm, setting) for setting in settings]
    cost = np.array([-gain.mean for gain in gains])
    error = [gain.high - gain.mean for gain in gains]
    ax.errorbar(np.arange(3) + shift, cost, error, fmt=marker, label=arm)
ax.axhline(0, color="0.4", lw=1)
ax.set_xticks(range(3), settings)
ax.set_xlim(-0.5, 2.5)
ax.set_ylabel("NLL above full (nats)")
ax.set_title("What drawing costs, against the full distribution")
ax.legend()
plt.show()

# %%
for setting in settings[1:]:
    print(setting)
    print(again.table(("nll", "kl_to_teacher"), setting), end="\n\n")
for claim in again.study.claims:
    display(again.verdict(claim.name, judged=judged))

# %% [markdown]
# Compare the middle of the figure with its right: the same 400 rows, with stored
# draws and with new ones. With new draws in every epoch no loss can be seen, not even
# with 12 of them, though the intervals are wide. With the stored ones, read twelve
# times, 12 draws fall behind: what was noise has become a bias. The default, 8 exact
# tokens and 24 draws, pays little for it; whether it is less than two hundredths of a
# nat, as we claimed, stays undecided. (These two claims compare stored draws with new
# ones; the figure compares both with `full`.)
#
# Now look at the left. There nothing is read twice, and 12 draws cost something all
# the same: a noisy lesson, right on average, still takes a student less far in the
# same number of steps. Whether it is less than five hundredths of a nat is undecided,
# too; and why it does not show on the right, this study cannot say. So there are two
# remedies. Against draws that are learned by heart: write several caches with
# different seeds and take turns. Against noise: store more draws.
#
# ## A cache, live
#
# One more seed of the first study, live: the default scheme, written to a real
# cache on disk and trained from.

# %%
import tempfile
import time
from pathlib import Path

from distill_helpers import write_cache

# %%
work = Path(tempfile.mkdtemp())
tiny_cache = write_cache(
    pair.teacher.teacher,
    some,
    work / "tiny",
    tokenizer=pair.tokenizer,
    seed=1,
    progress=False,
)
print(f"{tiny_cache.bytes_per_token:.0f} bytes a token at this vocabulary")

# %%
live = train_student(
    pair,
    some,
    tiny_cache,
    {},
    seed=1,
    steps=profile.pick(smoke=1, cpu=soft_labels.STEPS, gpu=soft_labels.STEPS),
    **dict(results.options(stored_labels.DEFAULT, "800")),
)

# %%
arm, nll = stored_labels.DEFAULT, live.test.nll
display(results.check_live("nll", arm, "800", nll, judged=judged))

# %% [markdown]
# ## A cache of the real teacher
#
# Now for real: the teacher reads some pages of the novels, once. A cache is a
# folder. Rows are found by a hash of their token ids, so a shuffled dataset
# cannot be misaligned. Kill the writer at any moment and call it again: it goes
# on at the last whole file, and ends in the same bytes.

# %%
folder = work / "real"
length = profile.pick(smoke=16, cpu=128, gpu=256)
rows = pack(austen("train"), tokenizer, length).shuffle(seed=0)
rows = rows.select(range(profile.pick(smoke=4, cpu=48, gpu=256)))
began = time.perf_counter()
cache = write_cache(teacher, rows, folder, tokenizer=tokenizer)
print(f"written in {time.perf_counter() - began:.1f} s")
everything = stored_labels.scheme_of("full", teacher.config.vocab_size)
print(
    f"{cache.bytes_per_token:.0f} bytes a token instead of "
    f"{everything.bytes_per_position:,}"
)

# %% [markdown]
# What makes a stored number trustworthy is knowing where it comes from. The header says
# it: which tokenizer and which chat template (by content; a template is the marks that
# a chat model expects around every turn), which teacher (by a sample of its weights),
# which text, at what temperature, with what seed, and a checksum per file.

# %%
import json

header = dict(cache.header)
shown = ("scheme", "temperature", "seed", "tokenizer", "chat_template")
shown += ("teacher", "dataset")
print(json.dumps({name: header[name] for name in shown}, indent=1))
print(json.dumps(header["shards"][0], indent=1))

# %% [markdown]
# `verify` lets the teacher read a few rows again, and compares entropies: on
# another machine they differ a little, and beyond a twentieth of a nat the
# cache is refused. So is one that does not belong here, with the reason:

# %%
from distill_helpers import SoftLabelCache
from distill_helpers.labels import CacheError
from distill_helpers.tasks.teachers import load_tiny_teacher

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
# three passes; a live teacher adds one of its own, through 30 layers where our
# pruned student has 20. **Predict** how much faster a step gets, and how much
# less memory it needs. Then compare with what `plan` counts, before you run it.

# %%
from distill_helpers import plan

student = real_pair.start_student(real, profile)
size = {
    "steps": profile.pick(smoke=2, cpu=7, gpu=30),
    "batch_size": profile.pick(smoke=1, cpu=4, gpu=4),
}
for method in ("soft", "stored"):
    print(plan((teacher, student), method=method, length=length, **size))

# %%
from distill_helpers import SoftLabelTrainer, training_arguments

arguments = training_arguments(
    profile,
    learning_rate=2e-4,
    **size,
    disable_tqdm=True,
    logging_steps=1,
)

# %%
from transformers import TrainerCallback


class Clock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())


# %%
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
    seconds = (clock.ends[-1] - clock.ends[0]) / (size["steps"] - 1)
    log = trainer.state.log_history
    return seconds, [entry["soft"] for entry in log if "soft" in entry]


# %%
timed = {"live": train_from(teacher), "cached": train_from(cache)}
for name, (seconds, losses) in timed.items():
    print(f"{name:7} {seconds:5.2f} s a step, first losses:", end=" ")
    print(", ".join(f"{loss:.3f}" for loss in losses[:3]))
print(f"faster by a factor of {timed['live'][0] / timed['cached'][0]:.1f}")

# %% [markdown]
# The losses of both lines mean the same thing: the exact entropy of the teacher
# is stored with every position, so the cached value estimates the same KL. A
# cached step runs no teacher at all. Writing cost one pass over the rows, so
# the first epoch of the first student saves nothing; every epoch and every
# student after it does. And memory: what falls away is the teacher's weights and
# its logits. The student's own weights, optimizer and activations stay, so the
# plan's peak falls less than the time does. (The plan's sizes on disk are for 8
# exact tokens and 24 draws; `top_k` and `sampled` use one of the two each.)
#
# ## What an API gives
#
# Some APIs return log-probabilities for the 20 likeliest tokens. Do not
# renormalise them: they are true probabilities, so the missing mass is known,
# and a tail bucket can be made of them (Exercise 2). You have seen what a
# bucket of 16 keeps. Other APIs, and reasoning
# models above all, return none. Then the teacher's text is all there is
# (lesson 05).

# %%
top20 = mass[:, 19]
print(f"the top 20 hold {top20.mean():.0%} on average,")
print(f"and less than half at {(top20 < 0.5).float().mean():.0%} of positions")

# %% [markdown]
# ## Exercise 1 · An estimate from draws
#
# *easy · the unbiased estimate · 5 minutes*
#
# Write `sampled_estimate(draws, vocabulary)`: from ids that were drawn
# (`[positions, draws]`, some of them twice) to probabilities `[positions,
# vocabulary]`.
#
# By hand: the draws 2, 0, 2, 1 from a vocabulary of 4 give (¼, ¼, ½, 0).

# %% tags=["exercise"]
from distill_helpers.course import checks


def sampled_estimate(draws, vocabulary):
    return None  # your code here


checks.sampled_estimate(sampled_estimate)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `torch.nn.functional.one_hot` turns ids into rows of zeros and a one; or
# start from zeros and `scatter_add_` a small number for every draw.

# %% [markdown] tags=["hint"] title="My rows do not sum to 1"
# Every draw is worth the same: one divided by the number of draws in its row, not by
# the number of rows or words. A row with too little has lost its repetitions: a token
# that was drawn twice gets two shares, so add them up; writing to an index overwrites.

# %% tags=["solution"]
from distill_helpers.course import checks


def sampled_estimate(draws, vocabulary):
    share = torch.full(draws.shape, 1 / draws.shape[1])
    estimate = torch.zeros(len(draws), vocabulary)
    return estimate.scatter_add(1, draws, share)


checks.sampled_estimate(sampled_estimate)

# %% [markdown] tags=["given"]
# ## Exercise 2 · The tail bucket
#
# *medium · what to do with an API's top 20 · 15 minutes*
#
# Write `tail_bucket(student_logits, ids, weights)`: the forward KL over the
# kept tokens and **one** class for all the others, teacher's mass against the
# student's mass.
#
# * `student_logits`: `[positions, vocabulary]`; `ids`, `weights`:
#   `[positions, k]`, the teacher's probabilities as they are (not scaled, so
#   they sum to less than 1); returns `[positions]`, in nats
#
# By hand: the student says (0.5, 0.3, 0.1, 0.1), the teacher kept 0.4 for
# each of the first two. Then it is 0.4·ln(0.4/0.5) + 0.4·ln(0.4/0.3) +
# 0.2·ln(0.2/0.2), about 0.026 nats.


# %% tags=["exercise"]
def tail_bucket(student_logits, ids, weights):
    return None  # your code here


checks.tail_bucket(tail_bucket)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# The student's probabilities come from *all* its logits; `gather` picks the
# kept ones. What is left of each side is 1 minus the sum. (Where the kept
# tokens hold everything, that is 0 up to rounding; the package sums the other
# tokens instead.)

# %% [markdown] tags=["hint"] title="The example works, but the check says no"
# In the example both sides leave equally much for the other tokens, so their class
# costs nothing there, and nobody sees if it is missing. Elsewhere it counts: one more
# term, made like those of the kept tokens. Without it the result can turn negative.


# %% tags=["solution"]
def tail_bucket(student_logits, ids, weights):
    q = student_logits.softmax(-1).gather(-1, ids)
    rest_p, rest_q = 1 - weights.sum(-1), 1 - q.sum(-1)
    kept = (weights * (weights / q).log()).sum(-1)
    return kept + rest_p * (rest_p / rest_q).log()


checks.tail_bucket(tail_bucket)

# %% [markdown]
# ## Exercise 3 · Find the misaligned cache
#
# *medium · the bug that trains without an error · 10 minutes*
#
# A cache that is off by one position looks healthy: the loss falls, the
# student learns to be late. Our cache joins rows by their content, and
# `verify` reports a shift; many home-made ones join by number and report
# nothing. Write `cache_shift(cached, recomputed)`: both hold the likeliest
# token at every position, `[positions]`; return the shift from −2 to 2 for
# which `cached[t] == recomputed[t - shift]` holds most often (1: the cache is
# one position late). Some positions disagree anyway; the ends may wrap.
#
# By hand: cached `[9, 4, 7, 1]` and recomputed `[4, 7, 1, 3]` give 1, one late:
# `cached[1] == recomputed[0]`.


# %% tags=["exercise"]
def cache_shift(cached, recomputed):
    return None  # your code here


checks.cache_shift(cache_shift)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `torch.roll(recomputed, shift)` moves everything to the right by `shift`.
# Count agreements for each of the five shifts and take the best.

# %% [markdown] tags=["hint"] title="A late cache comes out as early"
# Which of the two do you move? In `cached[t] == recomputed[t - shift]` the cache stays
# where it is; moving it instead turns the sign round. (If every answer is two too
# large, you return a place in your list of shifts, not the shift that stands there.)


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
# | what does a soft label cost? | in full, 2 bytes for every token of the vocabulary; as a hybrid of 8 and 24, less than a hundred |
# | what is wrong with top k, renormalised? | a bias: it pushes a perfect student away, and more data do not help |
# | what is right about draws? | on average they are the distribution; noise averages out |
# | what must a cache know? | tokenizer, chat template, teacher, text, temperature, seed, checksums |
# | what is fixed when it is written? | the temperature; and only forward KL can be trained from draws |
#
# **When would you not store soft labels?**
#
# * The student sees every row once, and you train one student: the teacher's
#   pass happens once either way.
# * The divergence needs the student's own text, as in lesson 08, or is not
#   forward KL: draws do not serve it.
# * Few draws, few rows and many epochs: what was noise turns into a bias of
#   its own. Draw again, or store more.
# * The teacher will change: a cache belongs to one teacher, for good.
#
# *Read on:* Anshumann et al. 2025 (arXiv:2503.16870) on sampled soft labels,
# who trained models of billions of parameters from them; Peng et al. 2024
# (arXiv:2410.16215) on what to store in pre-training distillation.
