# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
from distill_helpers.studies import load_results
from distill_helpers.studies import soft_labels as study

steps = profile.pick(smoke=1, cpu=study.STEPS, gpu=study.STEPS)
judged_on = profile.pick(
    smoke={"validation_rows": 4, "test_rows": 4}, cpu={}, gpu={}
)
known_rows = profile.pick(smoke=4, cpu=100, gpu=100)

# %% [markdown]
# ## One run proves little
#
# In lesson 02 a student of soft labels beat a student of the text. Would it again? A comparison in
# this course is a **study**. It has *arms*, which are the ways to be compared, and everything else
# is equal: rows, order, steps, starting weights. Each arm may try the same *two* learning rates on
# an *exploring* seed; a better one may lie outside. Then claims are written down, and the arms run
# once on *fresh* seeds, so that nobody chooses a rate by looking at the result. The two later
# studies of this lesson use the same five seeds again.
#
# Here are two arms on five fresh seeds: the *loss*, or NLL, on the unread novel. Both
# students took 300 steps on 800 rows. The claims below call a row a *sequence*.

# %%
results = load_results("soft_labels")
text = torch.tensor(results.values("nll", "labels", "800"))
soft = torch.tensor(results.values("nll", "soft T=1", "800"))
print("text: ", [f"{x:.2f}" for x in text.tolist()])
print("soft: ", [f"{x:.2f}" for x in soft.tolist()])

# %% [markdown]
# A seed decides the rows and the weights, the same for both arms. So compare seed by
# seed: the **gain** of a seed is the loss of the one arm minus that of the other. The luck that
# both arms share cancels.
#
# ## Exercise 1 · A gain and its interval
#
# *medium · every result of this course is read with it · 10 minutes*
#
# Write `gain_interval(ours, theirs, t)`: the mean gain of ours over theirs, and half
# the width of its interval. Lower losses are better, so a gain is positive where ours
# are lower. Half the width is $t \cdot s / \sqrt{n}$, with $s$ the standard deviation
# of the gains and $n$ their number. The factor $t$ comes from a table: the fewer seeds,
# the larger it is. With it, the interval covers the true gain in 95 of 100 studies.
#
# By hand: gains of 1, 2 and 3 have the mean 2 and $s = 1$.

# %% tags=["exercise"]
from distill_helpers.course import checks


def gain_interval(ours, theirs, t):
    return None  # your code here


interval_of = checks.gain_interval(gain_interval, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Subtract first, seed by seed; everything else is about these differences. `.std()` of
# a tensor divides by n − 1, which is what you want.

# %% [markdown] tags=["hint"] title="My interval is far too wide"
# Did you take the spread of the losses instead of the spread of the gains? Then what
# both arms share of a seed's luck does not cancel.

# %% tags=["solution"]
from distill_helpers.course import checks


def gain_interval(ours, theirs, t):
    gains = theirs - ours
    return gains.mean(), t * gains.std() / math.sqrt(len(gains))


interval_of = checks.gain_interval(gain_interval, fallback=True)

# %%
mean, half = interval_of(soft, text, 2.776)  # t for five seeds and 95 %
low, high = mean - half, mean + half
print(f"gain {mean:+.3f} nats, interval {low:+.3f} to {high:+.3f}")

# %% [markdown] tags=["given"]
# ## How to read a result
#
# Before the five runs, somebody wrote down: *with 800 rows, soft labels beat labels
# alone by more than 0.3 nats*. This is the picture of what came out.
# **Predict** from the picture alone: does the claim hold?

# %%
from distill_helpers.course.plots import explained_gain

verdict = results.verdict("few_data")
fig, ax = plt.subplots(figsize=(8, 2.6))
explained_gain(ax, verdict)
plt.show()

# %%
print(verdict.status)

# %% [markdown] tags=["given"]
# The **margin** is what was claimed, here 0.3: the short upright orange line. Where a figure has
# none, it is zero. A claim **holds** if the whole interval lies right of the margin, and
# **fails** if the whole interval lies left of it. Otherwise it is **undecided**. That is its *verdict*. Where a claim
# fails there may still be a gain, but not so large a one.
#
# One more rule. Ask twenty questions where nothing is going on, and you will probably get at
# least one false answer. So a study that makes many claims gets wider intervals: the risk of
# even one false answer among *all its claims* stays at one in twenty. The rule is called
# Holm's correction, and some intervals in later figures are wider for it than those of your
# function.
#
# ## Seven kinds of label
#
# Here are all arms of that study. In blue a distribution takes part, orange is one token a
# position alone, and lines are intervals of the mean. *argmax* is lesson 02's favourite, *sampled* its drawn
# label, drawn once for every row, and *mix* has $\alpha = ½$.
#
# You can run another seed yourself, live. It should land in the range that the study
# predicts for one new run. That range is wider than the lines in the figure, which are
# about the mean of five.

# %%
pair = study.load_pair(**judged_on)


def run_live(arm, seed=1):  # an exploring seed, not one of the five
    """One run of one arm, as the study does it: lesson 02's loop."""
    return study.train_arm(
        pair,
        study.choose_rows(pair, "800", seed),
        arm,
        seed=seed,
        steps=steps,
        # The learning rate that was best on the exploring seeds.
        **dict(results.options(arm, "800")),
    )


students = {arm: run_live(arm) for arm in ("labels", "soft T=1", "argmax")}
live = {arm: student.test.nll for arm, student in students.items()}

# %%
from distill_helpers.course.plots import compare_arms

fig, ax = plt.subplots(figsize=(8, 3.6))
compare_arms(ax, results, "nll", "800", live=live)
ax.set_xlabel("loss on the unread novel (nats per token, lower is better)")
ax.set_title("800 rows: means of five seeds, and your live runs")
plt.show()
found = [results.check_live("nll", a, "800", x) for a, x in live.items()]
inside = sum(one.status == "inside" for one in found)
print(f"{inside} of {len(found)} live runs fall where the study expects them")

# %% [markdown]
# ## The knobs: T and α
#
# Two claims were made about the knobs of lesson 02's loss: that $T = 4$ beats $T = 1$,
# and that a mix with the text's labels beats soft labels alone.

# %%
from distill_helpers.course.plots import forest

names = ("high_temperature", "mix_beats_soft")
fig, ax = plt.subplots(figsize=(8, 2.2))
forest(ax, [results.verdict(name) for name in names])
ax.set_title("Both claims fail: T = 1 and α = 1 are the best of those tried")
plt.show()

# %% [markdown]
# Both fail, and clearly. A claim that fails is a result: start with $T = 1$ and
# $\alpha = 1$, and turn the knobs only for a reason. One such reason comes below.

# %% [markdown]
# ## More text
#
# With 800 rows, the student reads each row six times. With 3,000 it reads each once or twice.
# Under `all` no row comes twice: 300 steps reach 4,800 of the 15,000 rows. So with more text the
# student reads as many labels, and more different ones. Are soft labels still worth anything then? You know the gap at 800 rows.
# **Predict** the gap under `all`, and write it down:

# %%
guess = None  # a gap in nats, such as 0.1

# %%
from distill_helpers.course.plots import over_settings

fig, ax = plt.subplots()
over_settings(ax, results, "nll", ("labels", "soft T=1", "sampled"))
ax.set_xlabel("rows to learn from (all: no row comes twice)")
ax.set_ylabel("loss (nats per token)")
ax.set_title("In 300 steps, more text hardly closes the gap")
if guess is not None:
    expected = results.mean("nll", "labels", "all").mean - guess
    ax.plot(2, expected, "X", color="#222222", ms=9)
    ax.annotate("your guess", (2, expected), (1.6, expected))
plt.show()

# %%
names = ("few_data", "more_data", "all_data")
fig, ax = plt.subplots(figsize=(8, 2.6))
forest(ax, [results.verdict(name) for name in names])
ax.set_title("Soft labels win at every size, as was claimed")
plt.show()

# %% [markdown]
# Bands are the intervals of the means. Notice two things. The gap hardly shrinks, though no
# claim was made about that: from 3,000 rows on, this student is not short of text. And *sampled*
# lies near *labels*, far from *soft*, although it comes from the same teacher. A drawn label
# and the whole distribution pull the student, on average, in the same direction; one draw
# is only noisier.
#
# ## More steps
#
# Over many steps the noise averages out, so the lead should shrink. Another study gives the same
# student 1,000 and 3,000 steps on all the text, where in the end each row came three times.
# It also asks a harder question. A step with soft labels runs the teacher as well, which
# here is more work than the student itself. For the same number of operations, labels alone
# can take almost three steps instead of one. In the tables, ± is half the width of a mean's
# interval.
#
# **Predict:** after 3,000 steps, are soft labels still ahead? And at equal operations?

# %%
longer = load_results("longer_training")
names = ("long_run", "labels_for_longer")
fig, ax = plt.subplots(figsize=(8, 2.2))
forest(ax, [longer.verdict(name) for name in names])
ax.set_title("Ahead at equal steps, behind at about equal operations")
plt.show()

# %%
columns = ("nll", "student_tflops", "teacher_tflops")
for setting in longer.study.settings:
    print(f"{setting} steps (operations in 10¹²)")
    print(longer.table(columns, setting), end="\n\n")

# %% [markdown]
# At equal steps soft labels stay ahead, by less and less; labels took the lower of two rates, and
# might gain from a lower one. At about equal operations (labels
# get a tenth more) labels alone win here. That is so if the teacher's passes are charged in
# full and used once.
#
# So soft labels can pay where those passes cost this student little: stored and read many
# times, or shared by many students. That a run is short is no reason: compare soft
# labels after 300 steps, above, with labels after 1,000 here, which cost somewhat more. Busbridge et
# al. (2025, arXiv:2502.08606) studied larger models. With a teacher that exists already or
# serves many students, distillation is ahead up to an amount of compute that grows with the
# student. If a teacher must first be trained for one student, plain training is usually better.

# %% [markdown]
# ## Yardsticks can disagree
#
# The student of the teacher's favourites was the worst of all in lesson 02. Does it know
# less, or is it only too sure of itself? Rescale a student's answers with **one temperature**,
# chosen on other text, and measure again. A temperature above 1 means that it was too sure.
# What disappears is what one temperature can cure.
#
# ## Exercise 2 · One temperature for a student
#
# *hard · tells you how sure is too sure · 15 minutes*
#
# Write `fitted_temperature(logits, labels)`: the temperature between ¼ and 4 at which
# `logits / T` has the lowest mean loss on the labels. Logits are
# `[positions, vocabulary]`, labels `[positions]`.
#
# By hand: if the model is far too sure, $T$ must be above 1.


# %% tags=["exercise"]
def fitted_temperature(logits, labels):
    return None  # your code here


fit = checks.fitted_temperature(fitted_temperature, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Try a hundred temperatures and take the best. They should be equally far apart in
# *ratio*: `torch.linspace` over the logarithm, then `.exp()`.

# %% [markdown] tags=["hint"] title="The check says that mine is inverted"
# Dividing by $T$ is not multiplying by it. A model that is too sure has logits that are
# too large: divide them by something above 1.


# %% tags=["solution"]
def fitted_temperature(logits, labels):
    tried = torch.linspace(math.log(0.25), math.log(4), 201).exp()
    losses = [
        torch.nn.functional.cross_entropy(logits / T, labels) for T in tried
    ]
    return tried[torch.stack(losses).argmin()]


fit = checks.fitted_temperature(fitted_temperature, fallback=True)

# %% [markdown]
# Your three live students, on rows that they did not learn from. **Predict:** which of
# them is too sure?

# %%
rows = torch.tensor(pair.validation["input_ids"][:40])
half = len(rows) // 2
for arm, student in students.items():
    with torch.no_grad():
        logits = student.model(rows).logits[:, :-1]
    labels = rows[:, 1:]
    # The first half chooses the temperature, the second judges it.
    T = float(fit(logits[:half].flatten(0, 1), labels[:half].flatten()))
    judged, truth = logits[half:].flatten(0, 1), labels[half:].flatten()
    before = F.cross_entropy(judged, truth)
    after = F.cross_entropy(judged / T, truth)
    print(f"{arm:9} T = {T:.2f}, loss {before:.2f} -> {after:.2f}")

# %% [markdown]
# The study did this for every student, also with the temperature from other text, so that a
# loss may rise a little. The table is for 3,000 rows. `nll` is the loss as it is, `nll_calibrated` the
# loss after the fit, `agreement` the share of positions where student and teacher have
# the same favourite. **Predict:** which column puts `argmax` first?

# %%
print(results.table(("nll", "nll_calibrated", "agreement"), "3000"))

# %%
names = ("soft_beats_argmax", "soft_beats_argmax_calibrated")
fig, ax = plt.subplots(figsize=(8, 2.2))
forest(ax, [results.verdict(name) for name in names])
ax.set_title("One temperature cures half of argmax's distance from soft")
plt.show()

# %% [markdown]
# Does the student of favourites know less, or is it only too sure? Both, says the figure:
# one temperature takes about half of its distance from *soft* away. The other half stays.
# *sampled*, which is not too sure, lacks nearly as much: one token a position says less than a
# distribution. And yet, in this table, *agreement* puts argmax first; no claim was made about that.
# The labels'' student, with a
# temperature near 1, is about as sure as it is right.
#
# | question | yardstick |
# |---|---|
# | does it predict the text? | loss, bits per byte |
# | does it give the teacher's probabilities? | KL from the teacher |
# | would it choose the teacher's word? | agreement |
# | is it as sure as it is right? | the fitted temperature: above 1 too sure, below 1 too unsure |
#
# They can disagree. Say which one you mean *before* you look.

# %% [markdown]
# ## A teacher away from home
#
# The Austen teacher knows one world. What if the student's text comes from another one:
# the short explanations in a dictionary? There are four arms:
#
# * labels alone;
# * soft labels of the teacher as it is, a stranger;
# * a mix of the two;
# * soft labels of a teacher that first read the very rows that its student will read.
#   This is *teacher correction* (Sreenivas et al. 2024, arXiv:2408.11796).
#
# **Predict** the order of the four.

# %%
domain = load_results("teacher_domain")
fig, ax = plt.subplots(figsize=(8, 2.6))
compare_arms(ax, domain, "nll", "800")
ax.set_xlabel("loss on unseen dictionary entries (nats, lower is better)")
ax.set_title("A stranger's soft labels alone lose; a corrected teacher's win")
plt.show()

# %% [markdown]
# A stranger's soft labels alone are far worse than plain labels. And what do the claims
# say? They call a dictionary's entry a *gloss*. The first one says that soft labels *lose*, so
# its gain is what labels are ahead by.

# %%
names = [claim.name for claim in domain.study.claims]
fig, ax = plt.subplots(figsize=(8, 0.75 * len(names) + 0.6))
forest(ax, [domain.verdict(name) for name in names])
ax.set_xlabel("gain of the side that the claim says is ahead (nats)")
ax.set_title("The stranger loses to labels, the corrected teacher wins")
plt.show()

# %% [markdown]
# A teacher that first reads the same few rows teaches better than the rows alone. The mix
# lies a little to the left of labels in the figure. No claim was made about that. Take it as
# a hint that $\alpha$ is worth turning here.
#
# Whether your teacher is a stranger is cheap to find out. Measure its bits per byte on
# your text, and on text of the kind that it was trained on, a novel that it has not read.
# Short definitions are harder for any model, so look for a large difference:

# %%
from distill_helpers import evaluate, pack
from distill_helpers.tasks import glosses

test = glosses.splits().test[:300]
entries = [f"{one.word}: {one.gloss}." for one in test]
strange = pack(entries, pair.tokenizer, 64)
for name, rows in (("a novel", pair.test), ("a dictionary", strange)):
    rows = rows.select(range(min(len(rows), known_rows)))
    bits = evaluate(pair.teacher, rows, pair.tokenizer).bits_per_byte
    print(f"the teacher on {name:13} {bits:.2f} bits a byte")
theirs = domain.mean("teacher_nll", "labels", "800").mean
alone = domain.mean("nll", "labels", "800").mean
print(f"in the study: {theirs:.2f} nats, a student of labels {alone:.2f}")

# %% [markdown]
# Here the teacher predicts the text far worse than a student of plain labels does. Such a
# teacher should not teach alone.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | `run_live("mix")` | between labels and soft labels | the loss |
# | another `seed` in `run_live` | another number, a similar difference | both losses |
# | another seed for one arm alone | a noisier difference: shared luck no longer cancels | the gain |

# %%
# A place to try. For example:
# print(run_live("mix", seed=3).test.nll)

# %% [markdown]
# ## Recap
#
# * **One picture to remember:** a gain, its interval, the margin, and zero.
# * Soft labels won at 800 rows, at 3,000, and with no row twice. Their lead shrinks with
#   steps, and at about equal operations plain labels won.
# * So the teacher's passes must be charged, or stored: lesson 04.
# * $T = 1$ and $\alpha = 1$ are the start. A stranger's soft labels alone lose to plain ones:
#   correct the teacher first, and count what that costs.
# * **Use soft labels when** the teacher's passes are paid for already, stored and read often,
#   or shared by several students.
#   **Do not, when** there is plenty of text and this one student could simply train for
#   longer. With little text we did not try that.
