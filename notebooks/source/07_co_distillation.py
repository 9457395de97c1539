# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from distill_helpers import get_profile
from distill_helpers.course.plots import STUDENT, TEACHER, use_style

GREY = "0.45"  # what has no partner
use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
steps = profile.pick(smoke=4, cpu=240, gpu=240)
judged_rows = profile.pick(smoke=4, cpu=200, gpu=200)
own_shapes = profile.pick(
    smoke={"teacher": (2, 64), "student": (1, 32)},
    cpu={"teacher": (4, 192), "student": (2, 96)},
    gpu={"teacher": (8, 512), "student": (4, 256)},
)
own_count = profile.pick(smoke=160, cpu=2000, gpu=40_000)
own_text = profile.pick(smoke=None, cpu=None, gpu="roneneldan/TinyStories")
own_training = profile.pick(
    smoke={"steps": 2, "batch_size": 4, "learning_rate": 4e-3},
    cpu={"steps": 30, "batch_size": 16, "learning_rate": 4e-3},
    gpu={"steps": 3000, "batch_size": 32, "learning_rate": 1e-3},
)

# %% [markdown]
# ## Two beginners
#
# So far the teacher was finished before the student began. In **co-distillation** the
# large and the small model learn **at the same time**, on the same batches. The large one
# learns from the text. The small one learns from the text *and* from what the large one
# says at that moment. One forward pass of the large model then serves two purposes.

# %%
from distill_helpers.course import diagrams

diagrams.co_distillation()

# %% [markdown]
# There is a catch: at first, the teacher knows nothing. You will write the loop for two
# models, and find out what a beginner's word is worth. Both start from random weights,
# and read novels by Jane Austen. No row is read twice.

# %%
from distill_helpers import pack
from distill_helpers.models import build_student, parameter_count
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_tiny_teacher

_, tokenizer = load_tiny_teacher("prose")  # only the tokenizer is used
rows = pack(austen("train"), tokenizer, 64).shuffle(seed=0)
batches = torch.tensor(rows[: 16 * steps]["input_ids"]).split(16)


# %%
def new_teacher():
    return build_student(tokenizer, layers=4, width=192, seed=1)


def new_student():
    return build_student(tokenizer, layers=2, width=96, seed=0)


# %%
teacher, student = new_teacher(), new_student()
for name, model in (("teacher", teacher), ("student", student)):
    print(f"{name}: {parameter_count(model) / 1e6:.2f} million weights")

# %% [markdown]
# ## What a beginner says
#
# Take the first batch, and only look. A model that gives every token the same probability
# has a cross-entropy, CE, of the logarithm of the vocabulary's size. **Predict:** is the
# CE of an untrained model higher or lower?


# %%
def text_ce(logits, ids):
    """CE with the next token, in nats; a number."""
    logits, labels = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    return float(F.cross_entropy(logits.detach(), labels))


# %%
ids = batches[0]
with torch.no_grad():
    theirs, ours = teacher(ids).logits, student(ids).logits
log_p, log_q = (z[:, :-1].log_softmax(-1) for z in (theirs, ours))

# %%
kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
print(f"knowing nothing:       {math.log(len(tokenizer)):.2f} nats")
print(f"the teacher's CE:      {text_ce(theirs, ids):.2f}")
print(f"the student's CE:      {text_ce(ours, ids):.2f}")
print(f"KL(teacher ‖ student): {kl:.2f}")

# %% [markdown]
# Both are worse than knowing nothing: a model that is a little sure of the wrong thing loses
# more than one that is sure of nothing.
#
# How hard does each of them *pull* at the student? Lesson 02 had the gradients at the
# student's logits: $q - y$ for the text, where $y$ is one for the right token and zero
# elsewhere, and $q - p$ for the teacher. Here is the length of both, averaged over the
# positions. **Predict:** which is longer, and by how much?

# %%
q, p = log_q.exp(), log_p.exp()
y = F.one_hot(ids[:, 1:], len(tokenizer))
pull = {
    "the text pulls with": (q - y).norm(dim=-1).mean(),
    "the teacher pulls with": (q - p).norm(dim=-1).mean(),
}
for name, length in pull.items():
    print(f"{name:23} {length:.3f}")

# %% [markdown]
# At this first step the beginner hardly pulls. Both models spread their guesses over two
# thousand tokens, each in its own random way. So no token stands out that the teacher could
# pull at. The text has one, and leads in every mix we use. Alone, such a teacher still moves its
# student: Adam divides by the gradient's size.
#
# ## Exercise 1 · One loss for two
#
# *medium · one forgotten word, and the teacher learns to be easy · 10 minutes*
#
# Write `joint_loss(teacher_logits, student_logits, ids, alpha)` for logits `[rows,
# positions, vocabulary]` and ids `[rows, positions]`. It is the teacher's CE with the
# text, plus $1 - \alpha$ times the student's CE, plus $\alpha$ times KL(teacher ‖
# student) at $T = 1$. Each of the three is a mean over the positions that count: shift,
# as in lesson 02, and all but the last one count. The student's part must not move the
# teacher.
#
# By hand: one row of two positions, ids `(0, 0)`, a vocabulary of two, α = ½. At
# position 0 the teacher's logits are `(0, 0)`, the student's `(ln 3, 0)`. The teacher's
# CE is ln 2, the student's ln 4⁄3, the divergence ½ ln 4⁄3. The loss is ln 2 + ¾ ln 4⁄3.

# %% tags=["exercise"]
from distill_helpers.course import checks


def joint_loss(teacher_logits, student_logits, ids, alpha):
    return None  # your code here


joint = checks.learn_together(joint_loss, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know how to write the divergence"
# `F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")` is KL(p ‖ q) of rows
# `[positions, vocabulary]`. `teacher_logits.detach()` belongs in the student's part, and
# only there.

# %% [markdown] tags=["hint"] title="The value is right, but a gradient is not"
# Take the gradient with respect to the teacher's logits, with `alpha=0` and with
# `alpha=1`: the two must be equal. If they differ, the student's part pulls at the
# teacher. If there is none at all, you have detached too much.

# %% tags=["solution"]
from distill_helpers.course import checks


def joint_loss(teacher_logits, student_logits, ids, alpha):
    labels = ids[:, 1:].flatten()
    theirs = teacher_logits[:, :-1].flatten(0, 1)
    log_q = student_logits[:, :-1].flatten(0, 1).log_softmax(-1)
    log_p = theirs.detach().log_softmax(-1)
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    student = (1 - alpha) * F.nll_loss(log_q, labels) + alpha * soft
    return F.cross_entropy(theirs, labels) + student


joint = checks.learn_together(joint_loss, fallback=True)

# %% [markdown]
# ### What `detach` is for
#
# The sum of the two losses is only there to call `backward` once. **Predict:** does the
# student's presence change the teacher's gradient? And what if we forget `detach`?


# %%
def teacher_gradient(loss):
    teacher.zero_grad()
    loss.backward()
    return torch.cat([w.grad.flatten() for w in teacher.parameters()])


def soft_term_attached(theirs, ours):
    """The same divergence, with the one word forgotten."""
    log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q))[:, :-1].sum(-1).mean()


# %%
theirs = teacher(ids).logits
alone = teacher_gradient(joint(theirs, student(ids).logits.detach(), ids, 0))

# %%
theirs, ours = teacher(ids).logits, student(ids).logits
paired = teacher_gradient(joint(theirs, ours, ids, 1.0))
theirs, ours = teacher(ids).logits, student(ids).logits
# At 0 the detached soft term is off; the attached one takes its place.
loss = joint(theirs, ours, ids, 0) + soft_term_attached(theirs, ours)
forgotten = teacher_gradient(loss)
print("as if alone, with detach:     ", torch.allclose(paired, alone))
print("as if alone, detach forgotten:", torch.allclose(forgotten, alone))

# %% [markdown]
# Detached, nothing flows back: the teacher learns as if it were alone. If this one call is
# forgotten, the gradient of the KL draws the teacher towards its student: it learns to be
# easy to imitate.
#
# ## Exercise 2 · The loop for two
#
# *hard · two models, one batch · 25 minutes*
#
# Write `co_distil(teacher, student, batches, weight, rate)`.
#
# * For every batch, both models read it, and both learn: one `backward` of the joint
#   loss, then a step of each model's own optimizer, `torch.optim.Adam` with learning rate
#   `rate`.
# * `weight(progress)` gives α. `progress` is the share of the steps that are *done*: 0 at
#   the first step.
# * Return a list with a pair for every step: the teacher's and the student's CE with the
#   text, as numbers, *before* they learn from that batch.
#
# Your `joint` is at hand, and `text_ce`. Two checks of your own: with `weight` always 0
# the student's numbers are those of training without any teacher. And the teacher's
# numbers must not depend on `weight`.


# %% tags=["exercise"]
def co_distil(teacher, student, batches, weight, rate):
    return None  # your code here


train_pair = checks.co_distil(co_distil, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Write lesson 02's loop first, for one model. Then give it a second model and a second
# optimizer. `enumerate(batches)` counts the steps, and `step / len(batches)` is what
# `weight` wants.

# %% [markdown] tags=["hint"] title="The first steps are right, later ones are not"
# Both optimizers need `step()` *and* `zero_grad()`, in every step. If only the runs with a
# teacher's word are wrong, look at `weight`: is it asked anew in every step, and with a
# share?


# %% tags=["solution"]
def co_distil(teacher, student, batches, weight, rate):
    pair = (teacher, student)
    optimizers = [torch.optim.Adam(m.parameters(), rate) for m in pair]
    log = []
    for step, ids in enumerate(batches):
        alpha = weight(step / len(batches))
        theirs, ours = teacher(ids).logits, student(ids).logits
        joint(theirs, ours, ids, alpha).backward()
        log.append((text_ce(theirs, ids), text_ce(ours, ids)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return log


train_pair = checks.co_distil(co_distil, fallback=True)

# %% [markdown]
# Is the teacher really undisturbed? Train it twice for a few steps, once with a student
# that listens to the text alone, once with one that listens to the teacher alone. Then
# compare all its weights.

# %%
RATE = 4e-3
twice = [new_teacher(), new_teacher()]
for model, alpha in zip(twice, (0.0, 1.0), strict=True):
    train_pair(model, new_student(), batches[:4], lambda _, a=alpha: a, RATE)

one, other = (list(model.parameters()) for model in twice)
same = all(map(torch.equal, one, other))
print("the same teacher, whoever listens:", same)

# %% [markdown]
# ## How much should a beginner be believed?
#
# The weight α may change over the run. Here is a schedule that is often used: the text
# alone at first, then a straight line up, then a constant.

# %% [markdown] tags=["given"]
# ## Exercise 3 · The weight of a beginner's word
#
# *easy · a small mistake in the warm-up gives another schedule · 5 minutes*
#
# Write `mix_weight(progress, alpha, warm_up, ramp)`. `progress`, `warm_up` and `ramp`
# are shares of the run, `alpha` is the highest weight: zero before `warm_up`, then a
# straight line that reaches `alpha` a `ramp` later, then `alpha`. With `ramp=0` it
# jumps, and is `alpha` at `warm_up` itself.
#
# By hand: with `alpha=0.8, warm_up=0.2, ramp=0.4` the weight is 0 at 0.1, 0.6 at 0.5,
# and 0.8 from 0.6 on.


# %% tags=["exercise"]
def mix_weight(progress, alpha, warm_up, ramp):
    return None  # your code here


weight_at = checks.mix_weight(mix_weight, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Three cases. `min` takes care of the last one; a ramp of zero must not be divided
# by.

# %% [markdown] tags=["hint"] title="Only on the ramp is my weight wrong"
# Half-way up the weight should be half of `alpha`. If you get more, look at where you
# count from: the climb begins when the warm-up ends, and `ramp` is its length, not the
# place where it is over.


# %% tags=["solution"]
def mix_weight(progress, alpha, warm_up, ramp):
    if progress < warm_up:
        return 0.0
    if ramp == 0:
        return alpha
    return alpha * min(1.0, (progress - warm_up) / ramp)


weight_at = checks.mix_weight(mix_weight, fallback=True)

# %% [markdown]
# Five students, who differ in α alone. Their one learning rate may suit some better than
# others; the study below chooses one for each. A ramp has a fair rival: a *constant* with the
# same mean over the run. Otherwise a ramp may look good only because its weight is low.

# %%
schedules = {
    "alone": lambda done: 0.0,
    "soft from the start": lambda done: 1.0,
    "mix from the start": lambda done: 0.5,
    "ramp": lambda done: weight_at(done, 0.7, warm_up=0.25, ramp=0.5),
}

# %%
shares = [step / 1000 for step in range(1001)]
mean = sum(map(schedules["ramp"], shares)) / len(shares)
schedules["the ramp's mean"] = lambda done: mean

# %%
DASHES = {
    "soft from the start": (0, (5, 1)),
    "mix from the start": "--",
    "ramp": "-.",
    "the ramp's mean": ":",
}
fig, ax = plt.subplots(figsize=(6, 2.6))
for name, weight in schedules.items():
    heights = [weight(s) for s in shares]
    ax.plot(shares, heights, ls=DASHES.get(name, "-"), color="0.25")
    ax.text(1.02, heights[-1], name, va="center", color="0.25")
ax.set_xlim(0, 1)
ax.set_xlabel("share of the steps that are done")
ax.set_ylabel("weight α")
ax.set_title("Five ways to believe a beginner")
ax.grid(visible=False)
plt.show()

# %% [markdown]
# **Predict**, and write it down: which student will be best on a novel that nobody here
# has read?

# %%
guess = "?"  # one of the five names

# %%
from distill_helpers import evaluate

test = pack(austen("test"), tokenizer, 64).select(range(judged_rows))
logs, judged = {}, {}
for name, weight in schedules.items():
    teacher, student = new_teacher(), new_student()
    logs[name] = train_pair(teacher, student, batches, weight, RATE)
    judged[name] = evaluate(student, test, tokenizer, teacher=teacher)
teacher_nll = evaluate(teacher, test, tokenizer).nll

# %% [markdown]
# Three of the runs. The dashed grey line, the student alone, is the same in all of them.
# Every point is the mean over ten batches, and the grey area is α.


# %%
def smooth(log, who, width=10):
    """Mean CE of every ten batches: step and nats per token."""
    numbers = [pair[who] for pair in log]
    return [
        (i + width / 2, sum(numbers[i : i + width]) / width)
        for i in range(0, len(numbers) - width + 1, width)
    ] or [(0, numbers[0])]


# %%
def draw_pair(ax, name):
    """Teacher and student of one run, and α as an area at the bottom."""
    area = ax.twinx()
    height = [schedules[name](s) for s in shares]
    at = [steps * s for s in shares]
    area.fill_between(at, height, color="0.5", alpha=0.2)
    area.set_ylim(0, 4)
    area.set_yticks([0, 1], ["0", "α = 1"], fontsize=8)
    area.grid(visible=False)
    lone, log = logs["alone"], logs[name]
    ax.plot(*zip(*smooth(log, 0), strict=True), color=TEACHER)
    ax.plot(*zip(*smooth(lone, 1), strict=True), color=GREY, ls="--")
    ax.plot(*zip(*smooth(log, 1), strict=True), color=STUDENT)
    ax.set_xlabel("step")
    ax.set_title(name)


# %%
three = ["soft from the start", "mix from the start", "ramp"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
for ax, name in zip(axes, three, strict=True):
    draw_pair(ax, name)
axes[0].set_ylabel("CE (nats per token)")
words = {"the teacher": TEACHER, "its student": STUDENT, "alone": GREY}
for place, (word, color) in enumerate(words.items()):
    at = {"x": 0.95, "y": 0.88 - 0.11 * place, "ha": "right"}
    axes[2].text(s=word, color=color, transform=axes[2].transAxes, **at)
fig.suptitle("The teacher's curve is always the same; its students' are not")
plt.show()

# %% [markdown]
# Where the weight is high early, the student comes down late.
#
# *When* does the harm happen? Below is each student's CE minus that of the student alone.
# Zero is as good, above zero is behind.

# %%
fig, ax = plt.subplots(figsize=(7, 3.2))
lone = [ce for _, ce in smooth(logs["alone"], 1)]
for name, dash in DASHES.items():
    at, ces = zip(*smooth(logs[name], 1), strict=True)
    behind = [one - two for one, two in zip(ces, lone, strict=True)]
    width = 2.5 if name == "ramp" else 1.3
    ax.plot(at, behind, ls=dash, lw=width, color=STUDENT)
    lift = {"ramp": 0.012, "mix from the start": -0.012}.get(name, 0.0)
    ax.text(at[-1] + steps / 60, behind[-1] + lift, name, va="center")
ax.axhline(0, color=GREY, ls="--")
ax.axvline(steps / 4, color="0.7", lw=1)
ax.text(steps / 4, 0.37, " here the ramp begins", color="0.4")
ax.set_ylim(-0.05, 0.41)
ax.set_xlabel("step")
ax.set_ylabel("behind the student alone (nats)")
ax.set_title("One run: all students that listen end behind the lone one")
plt.show()

# %% [markdown]
# Follow the ramp. While its weight is zero it stays on the zero line, then it leaves the
# line. The student that hears its teacher alone is behind almost at once. The mixes are
# even a little ahead in the first steps, then fall behind, but less.
#
# The very same loss was a gift in lesson 02, where the teacher was finished. Our
# explanation, which we did not test: this teacher knows little more than its student could
# know by now, and where it speaks, the text counts for less. The student is *dragged*. It fits
# the first steps best: later the teacher leads, and the ramp still falls behind.
#
# Now the novel that nobody has read. The last column has a surprise.

# %%
print(f"{'':20}     NLL   KL to its teacher")
for name, found in sorted(judged.items(), key=lambda one: one[1].nll):
    print(f"{name:20}{found.nll:8.3f}{found.kl_to_teacher:12.3f}")
print(f"{'the teacher':20}{teacher_nll:8.3f}")
best = min(judged, key=lambda name: judged[name].nll)
print(f"you expected: {guess}; it was: {best}")

# %% [markdown]
# The student that heard *only* its teacher is further from that teacher than the one
# that never heard a word of it. A teacher that learns is a moving target, and a student
# that only follows is late, we think. The constant mixes, half in the text, are closest.
#
# In this run the ramp does not beat the constant of its own mean. On 800 rows, with twenty
# seeds, it does: see below.
#
# ## The gap
#
# One hope of co-distillation is a smaller **gap**: the student's CE with the text minus the
# teacher's. This is not the KL of the table: a student may agree more with its teacher and
# still predict the text worse. **Predict:** is the gap smaller with a ramp, or alone?

# %%
# %%
fig, ax = plt.subplots(figsize=(7, 3))
for name, color, dash in (("alone", GREY, "--"), ("ramp", STUDENT, "-")):
    at, ours = zip(*smooth(logs[name], 1, 25), strict=True)
    theirs = [ce for _, ce in smooth(logs[name], 0, 25)]
    gap = [one - two for one, two in zip(ours, theirs, strict=True)]
    ax.plot(at, gap, dash, marker="o", color=color)
    ax.text(at[-1] + steps / 60, gap[-1], name, va="center", color=color)
ax.axhline(0, color=TEACHER)
ax.text(steps / 3, 0.01, "the teacher", color=TEACHER)
ax.set_xlabel("step")
ax.set_ylabel("behind the teacher (nats)")
ax.set_title("One run: with the ramp the gap is larger in the end")
plt.show()

# %% [markdown]
# The larger model leads, then the lead almost vanishes, and comes back. That is one run. Two
# studies measured both students on the unread novel. A line joins those of a seed.

# %%
from distill_helpers.studies import codistillation as study
from distill_helpers.studies import codistilled_few, load_results

results = load_results(study.STUDY.name)
few = load_results(codistilled_few.STUDY.name)

# %%
gaps = {"3,000 rows": [], "800 rows": []}
# The same teacher for both: the ramp's, which does not notice its student.
teachers = results.values("partner_nll", study.RAMP, study.MANY)
for arm in (study.ALONE, study.RAMP):
    ours = results.values("nll", arm, study.MANY)
    gap = [a - b for a, b in zip(ours, teachers, strict=True)]
    gaps["3,000 rows"].append(gap)
# Silent: a teacher that is never heard. The student learns alone.
for arm in (study.SILENT, study.RAMP):
    gaps["800 rows"].append(few.values("gap", arm, study.FEW))

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for ax, (name, both) in zip(axes, gaps.items(), strict=True):
    for pair in zip(*both, strict=True):
        ax.plot([0, 1], pair, color="0.8", lw=1)
    for place, color in enumerate((GREY, STUDENT)):
        where = [place] * len(both[place])
        ax.plot(where, both[place], "o", color=color, mfc="white")
        middle = sum(both[place]) / len(both[place])
        told = f"mean\n{middle:.2f}".replace("-", "−")
        side, ha = ((-0.08, "right"), (0.08, "left"))[place]
        ax.text(place + side, middle, told, ha=ha, va="center")
    ax.axhline(0, color=TEACHER)
    ax.set_xticks([0, 1], ["alone", "ramp"])
    ax.set_xlim(-0.5, 1.5)
    ax.set_title(f"{name}, {len(both[0])} seeds", size=11)
axes[0].text(0.3, 0.006, "the teacher", color=TEACHER)
axes[0].set_ylabel("behind the teacher (nats)")
fig.suptitle("Behind its teacher: the ramp is above the lone student")
plt.show()

# %% [markdown]
# No smaller gap, in either study. On the right each teacher learns at its student's rate: a good
# part of that difference is the teachers' doing.
#
# ## What the study found
#
# The study has more ways to train a student, all with the same number of steps:
#
# * a *head start*: half and half, but the teacher has trained alone before, for half as
#   many steps;
# * *two peers*: two students of one size teach each other, with a ramp;
# * *teacher first*: the teacher is trained first, for as many steps as the student. Then
#   the student learns from it alone, as in lesson 02;
# * *two averaged*: two lone students whose probabilities are averaged. Every answer costs
#   twice as much.
#
# **Predict** the order. Points are means, lines are intervals over five seeds.

# %%
from distill_helpers.course.plots import compare_arms

arms = (
    *(study.SOFT, study.MIX, study.RAMP, study.PEERS, study.ALONE),
    *(study.HEAD_START, study.AFTER, study.TWO),
)
fig, ax = plt.subplots(figsize=(7, 3.8))
# No arm in the teacher's colour; every mean is written at its mark.
options = {"arms": arms, "soft": (), "told": True}
compare_arms(ax, results, "nll", study.MANY, **options)
ax.set_xlabel("NLL of an unread novel (nats per token, left is better)")
ax.set_title(
    "3,000 rows, equal steps: the ramp does not beat the lone student"
)
plt.show()

# %%
from distill_helpers.course.plots import forest

claims = {
    "noisy_start": "alone beats soft from the start",
    "ramp_helps": "a ramp beats a mix from the start",
    "head_start_helps": "a head start beats a mix from the start",
    "pays_many": "a ramp beats a student alone",
    "after_is_better": "teacher first beats a ramp",
}

# %%
fig, ax = plt.subplots(figsize=(8, 4))
verdicts = [results.verdict(name) for name in claims]
forest(ax, verdicts, words=list(claims.values()))
ax.set_xlabel("gain, seed by seed (nats); right of zero is better")
ax.set_title("Declared beforehand: four hold, the ramp does not pay")
plt.show()

# %% [markdown]
# The short orange marks are what was claimed at least; without one, anything above zero.
#
# Read the second row with care: a mix of one half has a higher mean weight than the ramp, and
# that alone may be the reason.
#
# The fourth row matters most, and it fails: a student with a ramp is even a little worse than
# one alone. In our run above, the ramp was further behind. The study's rates decay, rows are
# read again, the best checkpoint counts. Of its two rates nearly all took the higher: a better
# one may lie outside.
#
# *Teacher first* and *head start* have slightly better means than the student alone. That
# is a hint: nobody claimed it in advance.
#
# **Predict:** does a partner help where text is scarce? The second study had more rates and
# weight decays to choose from.

# %%
scarce = {
    "pays_few": "a ramp beats a student alone",
    "peers_pay": "a peer beats a student alone",
    "ramp_not_mean": "a ramp beats a constant of its mean",
    "after_is_better_few": "teacher first beats a ramp",
}

# %%
fig, ax = plt.subplots(figsize=(8, 2.8))
verdicts = [few.verdict(name) for name in scarce]
forest(ax, verdicts, words=list(scarce.values()))
ax.set_xlabel("gain, seed by seed (nats); right of zero is better")
ax.set_title("800 rows: neither ramp nor peer beats the lone student")
plt.show()

# %%
head = few.values("nll", study.HEAD_START, study.FEW)
lone = few.values("nll", study.SILENT, study.FEW)
ahead = sum(one < two for one, two in zip(head, lone, strict=True))
print(f"head start ahead of alone: {ahead} of {len(head)} seeds (not claimed)")

# %% [markdown]
# The constant, the ramp's fair rival, loses. With two rates the study above had said that both
# partners help: *What we got wrong*, in `docs`.
#
# ## The bill
#
# Equal steps hide a cost: with every student that has a teacher, a larger model was
# trained. What does it cost, and what is saved?

# %%
task = study.prose_task(study.load_pair(), study.MANY, seed=2)
cost = study.count_cost(task)
print(f"one step of the student: {1e3 * cost.student:5.2f} GFLOPs")
print(f"one step of the teacher: {1e3 * cost.teacher:5.2f}")
print(f"its soft labels alone:   {1e3 * cost.labelling:5.2f}")
saved = cost.labelling / cost.student
print(f"sharing the teacher's forward pass saves {saved:.1f} student steps")

# %% [markdown]
# Somebody who trains the large model *anyway* gets its soft labels free: free in operations, not
# in memory, and the student must read the teacher's batches at its pace.
#
# Somebody who wants *only the student* pays for the teacher's training, too.
#
# ## Exercise 4 · The fair number of steps
#
# *easy · the baseline that is forgotten · 5 minutes*
#
# Write `lone_steps(steps, student, teacher)`: a pair trains for `steps` steps, and one
# step costs `student` and `teacher` operations. How many whole steps may a student take
# alone for the same bill?
#
# By hand: 100 steps, student 2, teacher 3 give 250.


# %% tags=["exercise"]
def lone_steps(steps, student, teacher):
    return None  # your code here


fair_steps = checks.lone_steps(lone_steps, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# What does the pair pay in all? Divide that by what one step of the student costs, and
# leave the rest of the division out.

# %% [markdown] tags=["hint"] title="The example by hand does not come out"
# 150 for it: the student's own share is missing, and the pair pays for *both* models in
# every step. 166: you have counted steps of the teacher.


# %% tags=["solution"]
def lone_steps(steps, student, teacher):
    return int(steps * (student + teacher) // student)


fair_steps = checks.lone_steps(lone_steps, fallback=True)

# %%
more = fair_steps(study.STEPS, cost.student, cost.teacher)
print(f"{study.STEPS} steps of the pair pay for {more:,} steps alone")

# %% [markdown]
# **Predict:** which is better, the pair's student, or the student alone with so many
# steps? It reads the same 3,000 rows again and again.

# %%
cut = results.mean("steps", study.AFTER, study.EQUAL).mean
bill = {
    "the pair's student": (study.RAMP, study.MANY),
    f"teacher first, {cut:.0f} steps each": (study.AFTER, study.EQUAL),
    f"alone, {more:,} steps": (study.ALONE, study.EQUAL),
}

# %%
fig, ax = plt.subplots(figsize=(7, 2.2))
for place, (name, (arm, setting)) in enumerate(bill.items()):
    found = results.values("nll", arm, setting)
    color = GREY if "alone" in name else STUDENT
    ax.plot(found, [place] * len(found), "o", color=color, mfc="none")
    middle = sum(found) / len(found)
    ax.text(middle, place - 0.2, f"{middle:.2f}", ha="center")
ax.set_yticks(range(len(bill)), list(bill))
ax.set_ylim(len(bill) - 0.5, -0.6)
ax.grid(axis="y", visible=False)
ax.set_xlabel("NLL of an unread novel (nats per token, left is better)")
ax.set_title("For the same operations: train the student alone")
plt.show()
print(results.verdict("equal_flops"))

# %% [markdown]
# Each point is a seed. This is the honest baseline, and it wins by far: after so few steps all
# these models are far from done. *Teacher first* has fallen behind the pair, for its bill
# includes a labelling pass. If you want only the student, and it still improves, train it longer.
#
# ## Another task
#
# Does the answer depend on the task? Our second task is to add three numbers with the steps
# written out, as in lesson 06. Each point is a seed, and *equal operations* are those of
# teacher and student.

# %%
sums = load_results("codistilled_sums")
shown = {
    f"{arm}, equal operations" if "FLOPs" in setting else arm: sums.values(
        "exact_match", arm, setting
    )
    for arm, setting in sums.study.pairs()
}

# %%
fig, ax = plt.subplots(figsize=(7, 2.8))
for place, (name, found) in enumerate(shown.items()):
    color = GREY if "alone" in name else STUDENT
    ax.plot(found, [place] * len(found), "o", color=color, mfc="none")
ax.set_yticks(range(len(shown)), list(shown))
ax.set_ylim(len(shown) - 0.5, -0.5)
ax.set_xlim(0, 102)
ax.set_xlabel("right (percent)")
ax.set_title("Equal operations: every student alone has learned to add")
plt.show()

# %% [markdown]
# Carrying is learned all of a sudden, as in lesson 06. Against such leaps neither
# help nor harm of a partner shows. With a pair's operations each lone student learns; the claim
# that it wins stays undecided.
#
# ## A pair of your own
#
# `CoDistillationTrainer` is your loop, with mixed precision, checkpoints of both models,
# a learning rate that decays, and as many models as you like. With a GPU the pair below
# is larger and reads *TinyStories*; elsewhere it is the pair from above for a few steps.
# Its two baselines are trained as well: the same student alone, for the same steps, and
# for the same operations.

# %%
from distill_helpers import (
    CoDistillationTrainer,
    HardLabelTrainer,
    MixSchedule,
    training_arguments,
)
from distill_helpers.data import stream_rows

# %%
if own_text is None:
    text = rows.select(range(own_count))
else:
    text = stream_rows(own_text, tokenizer, length=256, count=own_count)
held_out = text.select(range(len(text) - 80, len(text)))
to_read = text.select(range(len(text) - 80))


# %%
def own_model(name, seed):
    layers, width = own_shapes[name]
    model = build_student(tokenizer, layers=layers, width=width, seed=seed)
    return model.to(profile.device)


def arguments(steps=own_training["steps"]):
    options = {**own_training, "steps": steps}
    return training_arguments(profile, seed=0, **options)


# %%
own = {"teacher": own_model("teacher", 1), "student": own_model("student", 0)}
_ = CoDistillationTrainer(
    own,
    teacher="teacher",
    schedule=MixSchedule(0.7, warm_up=0.25, ramp=0.5),
    tokenizer=tokenizer,
    train_dataset=to_read,
    args=arguments(),
).train()

# %%
sizes = {name: parameter_count(model) for name, model in own.items()}
longer = fair_steps(own_training["steps"], sizes["student"], sizes["teacher"])
lone = {}
same = own_training["steps"]
for name, count in (("same steps", same), ("same operations", longer)):
    lone[name] = own_model("student", 0)
    HardLabelTrainer(
        lone[name],
        args=arguments(count),
        tokenizer=tokenizer,
        train_dataset=to_read,
    ).train()

# %%
models = {**own, **{f"alone, {name}": one for name, one in lone.items()}}
for name, model in models.items():
    nll = evaluate(model, held_out, tokenizer).nll
    print(f"{name:24} {nll:.3f}")

# %% [markdown]
# One run, one seed: it shows the path, no more. Operations are counted by weights, a usual
# rule of thumb. **Peers** need no teacher: leave `teacher` out, and two students learn from each
# other.

# %% [markdown] tags=["published"]
# ## What others found
#
# * Meta writes of **Llama 4 Maverick** that it was *codistilled* from Behemoth, a larger
#   model, while that one was still in training. The loss weighs soft and hard targets
#   dynamically (Llama 4 announcement, April 2025). It reports clearly better quality and a
#   labelling pass saved, and gives no numbers.
# * **Anil et al. (2018)** trained language models of one shape on different parts of the
#   data, and let them predict for each other. They report that very large data sets were
#   fitted about twice as fast. They had spare machines, and a larger batch no longer
#   helped: that is their baseline.
# * **Zhang et al. (2018)** found that small image classifiers that teach each other beat
#   the same ones alone.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | a ramp with `warm_up=0.5` | closer to the lone student | the table of the novel |
# | in `schedules`, `"ramp": lambda done: float(done > 0.9)` | a little drag at the very end | the drag |
# | the teacher trained alone first, as in the cell below | less drag: a head start | the first of two numbers |
# | swap the sizes of teacher and student | a teacher that stays behind | the gap |

# %%
# A place to try. For example:
# teacher, student = new_teacher(), new_student()
# ahead = torch.tensor(rows[16 * steps : 24 * steps]["input_ids"]).split(16)
# train_pair(teacher, new_student(), ahead, lambda done: 0.0, RATE)
# train_pair(teacher, student, batches, lambda done: 0.5, RATE)
# print(evaluate(student, test, tokenizer).nll)
# print(judged["mix from the start"].nll)  # without the head start

# %% [markdown]
# ## Recap
#
# * **One number to remember:** how many steps alone the pair's steps pay for. With them the lone
#   student wins by far.
# * At the first step a beginner's pull is tiny next to the text's. Every student that listened
#   ended behind the student alone in our run, most of all the one that heard nothing else.
# * The teacher is not disturbed, as long as its logits are detached.
# * A schedule's fair rival is a constant of the same mean, and a pair's fair rival is the
#   student alone for the operations of both.
# * **Try it when** you train the large model anyway: its soft labels are then free. No partner
#   that began with its student was shown to help. A head start may, so give one, and measure.
#   **Do not, when**
#   you want only the student and it still gains from more steps. Nor when a finished teacher
#   is there, or the vocabularies differ.
#
# *Read on:* Zhang et al. 2018, arXiv:1706.00384; Anil et al. 2018, arXiv:1804.03235;
# Busbridge et al. 2025, arXiv:2502.08606, on when distilling pays at all.
