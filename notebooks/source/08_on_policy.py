# %%
import copy
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
warm_sizes = profile.pick(
    smoke={"steps": 1, "questions": 70, "validation": 10},
    cpu={"steps": 600},
    gpu={"steps": 600},
)
tests = profile.pick(smoke=10, cpu=2000, gpu=2000)
looked_at = profile.pick(smoke=20, cpu=300, gpu=300)
asked = profile.pick(smoke=4, cpu=400, gpu=400)
steps = profile.pick(smoke=1, cpu=200, gpu=200)
prose_steps = profile.pick(smoke=1, cpu=60, gpu=60)
draws = profile.pick(smoke=4, cpu=64, gpu=64)
real_rows = profile.pick(smoke=2, cpu=24, gpu=24)
repair = profile.pick(
    smoke={"steps": 1, "learning_rate": 5e-4},
    cpu={"steps": 15, "learning_rate": 5e-4},
    gpu={"steps": 200, "learning_rate": 1e-4},
)
words = profile.pick(smoke=4, cpu=32, gpu=64)
real_training = profile.pick(
    smoke={"steps": 1, "batch_size": 2, "learning_rate": 3e-4},
    cpu={"steps": 12, "batch_size": 8, "learning_rate": 3e-4},
    gpu={"steps": 200, "batch_size": 16, "learning_rate": 2e-5},
)
log_every = profile.pick(smoke=1, cpu=3, gpu=20)

# %% [markdown]
# ## A student that only reads
#
# So far the student read what others had written: a novel, or the teacher's answers. When
# the student is used, it *writes*, and each token that it writes becomes part of what it
# reads next. Where its own text differs from that of others, it may do worse. That is
# **exposure bias**.
#
# The remedy: let it write, and mark that.

# %%
from distill_helpers.course import diagrams

diagrams.on_policy()

# %% [markdown]
# A model that writes is called a *policy* in reinforcement learning. To train it on its own
# text is **on-policy**, on text from elsewhere **off-policy**.
#
# Back to the sums of lesson 06 and the teacher that is right about four times in five. A
# fresh student first learns its answers to 1,500 questions, with that lesson's loop: its
# **warm start**. We stop early, so that it writes, but not well.

# %%
from distill_helpers.studies import on_policy as study
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

teacher, tokenizer = load_tiny_teacher("sums")
reader = study.warm_start(seed=2, **warm_sizes).model

# %%
for name, model in (("teacher", teacher), ("student", reader)):
    percent = study.score(model, study.TRACES, tests)
    print(f"{name}: {percent:.1f} % of {tests:,} test problems")

# %% [markdown]
# ## One slip, token by token
#
# Take problems that the teacher gets right, and in which the student's first sum is
# wrong. Then ask the teacher about every token that the student wrote: how likely was
# that token, and what would you have written here?

# %%
from distill_helpers import generate

some = three_sums.test_problems()[:looked_at]


# %%
def answers_of(model):
    return generate(
        model,
        tokenizer,
        three_sums.prompts(some),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    )


# %%
answers = zip(some, answers_of(reader), answers_of(teacher), strict=True)
slips = [
    (problem, text)
    for problem, text, from_teacher in answers
    if three_sums.is_right(problem, from_teacher)
    and text
    and not text.startswith(problem.answer.split(",")[0])
]
problem, text = slips[0]
print(f"{len(slips)} such slips; one of them:\n")
print(f"asked    {problem.prompt}\nright    {problem.answer}\nwritten  {text}")

# %% [markdown]
# **Predict:** after the wrong sum, will the teacher go on as if it were right, or
# correct it?


# %%
def marks(problem, text):
    """Teacher's and student's logits where each written token is due."""
    both = tokenizer(problem.prompt + text, return_tensors="pt")["input_ids"]
    place = len(problem.prompt) - 1
    with torch.no_grad():
        return [
            model(input_ids=both).logits[0, place:-1]
            for model in (teacher, reader)
        ]


# %%
theirs, ours = marks(problem, text)
written = tokenizer(text, return_tensors="pt")["input_ids"][0]
likely = theirs.softmax(-1).gather(-1, written[:, None])[:, 0]
best = tokenizer.convert_ids_to_tokens(theirs.argmax(-1))
print("the student wrote      ", " ".join(text))
print("the teacher would, here", " ".join(best))

# %%
pairs = zip(text, problem.answer, strict=False)
slip = next((i for i, (one, two) in enumerate(pairs) if one != two), 0)

# %%
colors = [STUDENT if i == slip else PALE for i in range(len(text))]
fig, ax = plt.subplots(figsize=(7, 2.6))
ax.bar(range(len(text)), 100 * likely, color=colors)
arrow = {"arrowstyle": "->", "color": STUDENT}
spot = {"xytext": (slip, 104), "ha": "center", "color": STUDENT}
ax.annotate("the slip", (slip, 2), **spot, arrowprops=arrow)
ax.set_xticks(range(len(text)), list(text))
ax.set_ylim(0, 112)
ax.set_xlabel("token written by the student")
ax.set_ylabel("teacher's p (percent)")
ax.set_title("How likely the teacher finds what the student wrote")
ax.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# Each bar is what the teacher says after the *student's* tokens so far. It would hardly
# have written the slip: here it corrects, and at the next digit it still disagrees. From the comma
# on it takes the sum as given. Over all these slips, count how often the teacher, reading along
# after the comma, would choose each digit of the wrong sum.


# %%
def copies(problem, text):
    """Whether the teacher goes on with the wrong sum."""
    before, _, _ = text.partition(",")
    wrong = before.rpartition("=")[2]
    place = len(before) + 1
    digits = marks(problem, text)[0][place : place + len(wrong)]
    return tokenizer.decode(digits.argmax(-1)) == wrong


whole = [slip for slip in slips if "," in slip[1]]
again = sum(copies(*slip) for slip in whole)
print(f"{again} of {len(whole)} wrong sums would be copied")

# %% [markdown]
# The teacher marks a slip where it happens. After that it goes on from the wrong sum, as any
# language model continues what it reads.
#
# ## Exposure bias, measured
#
# Let both models answer many problems, drawing at
# temperature 1. Then take KL(teacher ‖ student) at every token of every text, once in the
# student's texts and once in the teacher's. **Predict:** which curve is higher? And
# where?

# %%
before = study.exposure(reader, asked)
places = range(1, len(before.counts) + 1)
own, others = before.student_prefix, before.teacher_prefix

# %%
fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(places, others, "s-", ms=3, color=TEACHER)
ax.plot(places, own, "o-", ms=3, color=STUDENT)
ax.fill_between(places, others, own, color=STUDENT, alpha=0.3)
ax.text(1, 0.85, "in the student's own text", color=STUDENT)
ax.text(1, 0.7, "in the teacher's text", color=TEACHER)
ax.set_xlabel("token of the answer")
ax.set_ylabel("KL(teacher ‖ student), nats")
ax.set_title("After its own words the student does worse (shaded)")
plt.show()

# %% [markdown]
# The hills are the digits of the two sums. They are hard in any text. Look between and
# behind them, where a sum is only *copied*. In the teacher's text the student copies
# almost as the teacher does. After its own words the two differ more.

# %% [markdown] tags=["given"]
# ## Exercise 1 · The excess
#
# *easy · short texts end early, so places do not weigh alike · 5 minutes*
#
# The shaded area as one number, after Arora et al. (2022). Write `excess_kl(student_prefix,
# teacher_prefix, counts)`. The three lists have an entry for each place of the text: mean
# KL in the student's texts, in the teacher's, and how many texts reach it.
# Return the mean difference, each place weighted by its count, from the **second** place
# on: the first follows the prompt, in both.
#
# By hand: `[0.1, 0.4, 0.6]`, `[0.1, 0.2, 0.2]` and counts `[9, 6, 2]` give
# (6 · 0.2 + 2 · 0.4) / 8 = 0.25.

# %% tags=["exercise"]
from distill_helpers.course import checks


def excess_kl(student_prefix, teacher_prefix, counts):
    return None  # your code here


excess = checks.excess_kl(excess_kl, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `zip` the three lists and leave the first triple out. Divide by the sum of the
# counts that are left.

# %% [markdown] tags=["hint"] title="My number is too small"
# Look at what you divide by: in the example by hand it is 8. If it is 17, the first
# place still counts. If your number is too large instead, every place may weigh alike;
# and differences keep their sign, for the student may also be the better one.

# %% tags=["solution"]
from distill_helpers.course import checks


def excess_kl(student_prefix, teacher_prefix, counts):
    places = list(zip(student_prefix, teacher_prefix, counts, strict=True))[1:]
    total = sum(count for _, _, count in places)
    return sum(count * (own - his) for own, his, count in places) / total


excess = checks.excess_kl(excess_kl, fallback=True)

# %%
print(f"excess: {excess(own, others, before.counts):.4f} nats per token")

# %% [markdown]
# ## One on-policy step
#
# Four moves: the student **writes**. The teacher **reads along**. A **mask** keeps what was
# written, never the prompt. A **loss** at these tokens, and a step of the optimizer. No
# gradient flows through the *drawing* of tokens.
#
# Writing is given. It returns the ids, and a mask that is true where a token was written,
# the end included.

# %%
from distill_helpers.data import collator_for, join_row
from distill_helpers.models import generate_batch

collate = collator_for(tokenizer)
dice = random.Random(0)


# %%
def write(model, prompts):
    """Draw an answer to every prompt: ids, and which of them were written."""
    answers = generate_batch(
        model,
        tokenizer,
        prompts,
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        temperature=1.0,
        seeds=[dice.getrandbits(62) for _ in prompts],
    )
    pairs = zip(prompts, answers, strict=True)
    batch = collate([join_row(prompt, answer.ids) for prompt, answer in pairs])
    return batch["input_ids"], batch["labels"] != -100


# %%
def prompts_of(problems):
    texts = three_sums.prompts(problems)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


# %%
ids, was_written = write(reader, prompts_of(some[:1]))
tokens = tokenizer.convert_ids_to_tokens(ids[0])
mine = list(zip(tokens, was_written[0].tolist(), strict=True))
print("prompt: ", *[token for token, yes in mine if not yes])
print("written:", *[token for token, yes in mine if yes])


# %% [markdown]
# Two divergences between logits `[tokens, vocabulary]`, one number for each token:


# %%
def forward_kl(ours, theirs):
    log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(ours, theirs):
    return forward_kl(theirs, ours)


# %% [markdown]
# ## Exercise 2 · The step
#
# *hard · the heart of the lesson · 25 minutes*
#
# Write `on_policy_step(student, teacher, prompts, write, divergence, optimizer)`.
#
# * `write(model, prompts)` gives `ids` and `written`, both `[rows, positions]`, as above.
# * `divergence(ours, theirs)` takes logits `[tokens, vocabulary]` of both, and gives a
#   number for each token.
# * The loss is the mean of these numbers over all *written* tokens of the batch. Mind the
#   shift: the logits at position $t$ belong to the token at $t + 1$, and so does its mask.
# * The student takes one step with `optimizer`. The teacher only reads.
# * Return the loss before the update, as a number.
#
# By hand: if the student is its own teacher, every loss is zero.


# %% tags=["exercise"]
def on_policy_step(student, teacher, prompts, write, divergence, optimizer):
    return None  # your code here


step = checks.on_policy_step(on_policy_step, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Logits of both models for the same `ids`, the teacher's under `torch.no_grad()`. Cut the
# last position off the logits and the first one off the mask. Then
# `logits[mask]` is `[tokens, vocabulary]`.

# %% [markdown] tags=["hint"] title="The first number is right, later ones are not"
# The loss is right, but the training is not. `zero_grad` before or after each step,
# `backward`, `step`: are all three there, once?


# %% tags=["solution"]
def on_policy_step(student, teacher, prompts, write, divergence, optimizer):
    ids, written = write(student, prompts)
    mask = written[:, 1:]
    ours = student(ids).logits[:, :-1][mask]
    with torch.no_grad():
        theirs = teacher(ids).logits[:, :-1][mask]
    loss = divergence(ours, theirs).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


step = checks.on_policy_step(on_policy_step, fallback=True)

# %% [markdown]
# ## Whose text, and which divergence?
#
# Your step has two knobs. *Who writes* is the argument `write`, and the divergence is
# another one. Together they make a table with four cells:
#
# | | forward KL: cover all that the teacher says | reverse KL: say nothing that the teacher would not |
# |---|---|---|
# | **the teacher's text** | soft labels (lessons 02, 06); with hard labels it is fine-tuning, *SFT* | rarely used alone |
# | **the student's text** | in the spirit of *DAgger*: an expert's advice where the learner went | **on-policy distillation**, as most reports use it |
#
# For whole texts, KL(student ‖ teacher) is the expected sum of the *reverse* KL over the
# tokens of texts that the *student* writes. The forward KL belongs to texts of the teacher.
# With the teacher's text and the forward KL, your step has its full gradient, for the student
# has no say in that text. With own text and the reverse KL it leaves out a part: a token that
# the student writes also changes what comes after it.
#
# **Predict:** which knob matters more? Write down the cell that you expect to win.

# %%
guess = "?"  # for example "own text, reverse KL"


# %%
def teacher_writes(_, prompts):
    return write(teacher, prompts)


# %%
cells = {
    "teacher's text, forward KL": (teacher_writes, forward_kl),
    "teacher's text, reverse KL": (teacher_writes, reverse_kl),
    "own text, forward KL": (write, forward_kl),
    "own text, reverse KL": (write, reverse_kl),
}
questions = prompts_of(three_sums.problems(64 * steps, seed=5008))

# %%
from transformers import get_cosine_schedule_with_warmup as cosine

students = {}
for name, (writer, divergence) in cells.items():
    student = copy.deepcopy(reader)
    optimizer = torch.optim.Adam(student.parameters(), 2e-3, betas=(0.9, 0.99))
    rate = cosine(optimizer, steps // 20 + 1, steps)
    for at in progress_bar(range(0, len(questions), 64), desc=name):
        prompts = questions[at : at + 64]
        step(student, teacher, prompts, writer, divergence, optimizer)
        rate.step()
    students[name] = student.eval()

# %%
scores = {"before": study.score(reader, study.TRACES, tests)}
for name, student in students.items():
    scores[name] = study.score(student, study.TRACES, tests)

# %%
fig, ax = plt.subplots(figsize=(7, 2.6))
colors = ["0.7", TEACHER, TEACHER, STUDENT, STUDENT]
bars = ax.barh(list(scores), list(scores.values()), color=colors)
ax.bar_label(bars, fmt="%.0f %%", padding=3)
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
ax.margins(x=0.12)
ax.set_xlabel(f"right, percent of {tests:,} test problems")
ax.set_title("All four cells teach; on this seed forward KL is ahead")
plt.show()
print(f"you expected: {guess}")

# %% [markdown]
# All four had the same questions and as many steps; in the blue bars the teacher wrote anew in
# every step. Here the KL mattered more than the writer, and own text was *behind* the
# teacher's. Last is own text with reverse KL, the on-policy distillation of most reports.
# Did training heal exposure bias?

# %%
for name, student in students.items():
    after = study.exposure(student, asked)
    number = excess(after.student_prefix, after.teacher_prefix, after.counts)
    print(f"{name:28} excess {number:.4f} nats per token")

# %% [markdown]
# The excess fell in all four. By writer the order is mixed, so this run does not show that own
# text heals better; reverse KL leaves less than forward, on either text.
#
# Is a student as sure as it is right? The product of its tokens' probabilities is how sure
# it is of an answer; on average, that should be the share that is right. **Predict:** which
# divergence makes it surer?


# %%
def sure(model, problem, text):
    """The probability that a model gives to its own answer."""
    ids = tokenizer(problem.prompt + text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(problem.prompt)
    own = log_p[start - 1 : -1].gather(-1, ids[0, start:, None])
    return own.sum().exp().item()


# %%
print(f"{'':28} sure   right")
for name, model in {"teacher": teacher, "before": reader, **students}.items():
    pairs = list(zip(some, answers_of(model), strict=True))
    mean = sum(sure(model, *pair) for pair in pairs) / len(pairs)
    right = sum(three_sums.is_right(*pair) for pair in pairs) / len(pairs)
    print(f"{name:28} {mean:4.0%}   {right:4.0%}")

# %% [markdown]
# The teacher is less sure than right. Forward KL widens that gap here, reverse KL narrows it.
#
# ## What five seeds say
#
# Is *own* text the point, or *new* text? The study compares seven ways, five of them here, with
# the plainest one: to train the warm start for as many steps on the teacher's old answers, as
# hard labels. *Soft labels* are on these old answers (*equal time* has more steps), *new text* is
# written by the teacher. Each point is a seed. The filled one had hardly begun after its warm start.

# %%
from distill_helpers.studies import load_results

results = load_results(study.STUDY.name)
arms = (study.SOFT, study.SOFT_TIME, study.FRESH, study.FORWARD, study.REVERSE)
start = results.values("exact_match", study.WARM, study.SETTING)
base = results.values("exact_match", study.MORE, study.SETTING)
weakest = start.index(min(start))
print("right after the warm start:", *[f"{one:.0f} %" for one in start])

# %%
fig, ax = plt.subplots(figsize=(7, 3))
for place, arm in enumerate(arms):
    after = results.values("exact_match", arm, study.SETTING)
    gains = [one - other for one, other in zip(after, base, strict=True)]
    color = STUDENT if "own" in arm else TEACHER
    ax.plot(gains, [place] * len(gains), "o", color=color, mfc="none", ms=8)
    ax.plot(gains[weakest], place, "o", color=color, ms=8)
ax.axvline(0, color="0.4", ls="--")
ax.set_yticks(range(len(arms)), arms)
ax.set_ylim(len(arms) - 0.5, -0.5)
ax.grid(axis="y", visible=False)
ax.set_xlabel("points above longer training on hard labels, same seed")
ax.set_title("Ahead of longer hard labels on every seed, once by a hair")
plt.show()

# %%
from distill_helpers.course.plots import forest

claims = {
    "own_beats_traces": "own text, reverse KL, beats longer hard labels",
    "own_beats_soft": "own text, reverse KL, beats soft labels",
    "own_beats_new": "own text, forward KL, beats new text",
    "own_in_time": "own text, reverse KL, beats as much time of soft labels",
}

# %%
fig, ax = plt.subplots(figsize=(8, 3.2))
verdicts = [results.verdict(name) for name in claims]
forest(ax, verdicts, words=list(claims.values()))
ax.set_title("Four of five claims: one holds, three are open")
plt.show()
print(results.verdict("own_heals"))

# %%
gain = results.gain("exact_match", study.REVERSE, study.FORWARD, study.SETTING)
print(f"reverse over forward KL: {gain.mean:+.1f} points", end=" ")
print(f"({gain.low:+.1f} to {gain.high:+.1f})")

# %% [markdown]
# One claim holds, for this start and rate: own text teaches more than as many steps of hard
# labels. In lesson 11's contest, a last quarter of own text *lost*. *Why* is open: own text has
# whole distributions, it is new each time, and it is the student's own. Only the third claim
# isolates *own*, and five seeds cannot decide it. The last was turned round after an earlier
# round; its gain is all the filled student's.
#
# The last line is reverse against forward KL, both on own text: no difference. Our run put forward
# KL and the teacher's text ahead: one seed, an earlier start, new questions. Do not read the order
# of single bars.
#
# ## What writing costs
#
# A text is read in one pass, but written in one pass *per token*.

# %%
seconds = {
    arm: results.mean("training_seconds", arm, study.SETTING).mean
    for arm in (study.MORE, study.SOFT, study.FRESH, study.REVERSE)
}

# %%
fig, ax = plt.subplots(figsize=(7, 2.1))
colors = [PALE, TEACHER, TEACHER, STUDENT]
bars = ax.barh(list(seconds), list(seconds.values()), color=colors)
ax.bar_label(bars, fmt="%.0f s", padding=3)
ax.invert_yaxis()
ax.margins(x=0.12)
ax.grid(axis="y", visible=False)
ax.set_xlabel("seconds for the same number of steps, one core")
ax.set_title("Reading in every step takes time; writing adds to it")
plt.show()

# %% [markdown]
# Fixed text is read once by the teacher, new text in every step. Own text has to be written as
# well. The teacher's writing is *not* counted: the third bar is a lower bound.
#
# ## What if the teacher tells less?
#
# Some teachers give only the probability of the token that they are shown, or of a few
# likely ones. How far is the gradient then from that of the whole distribution?
#
# ## Exercise 3 · What the drawn tokens say
#
# *easy · with the sign turned, a good student looks bad · 5 minutes*
#
# Reverse KL is a mean over tokens that the *student* draws, and the student has drawn
# some already. Write `drawn_reverse_kl(student_logits, teacher_logits, drawn)` for logits
# `[rows, vocabulary]` and the token ids `[rows]` that the student drew: the mean of $\log p_S
# - \log p_T$ of these tokens. It estimates KL(student ‖ teacher).
#
# By hand: two rows, in both the student says `(½, ½)` and the teacher `(¾, ¼)`; drawn
# are 0 and 1. The first gives ln ⅔, the second ln 2; their mean is ½ ln 4⁄3. One draw
# can be negative, as the first is. A divergence never is.


# %% tags=["exercise"]
def drawn_reverse_kl(student_logits, teacher_logits, drawn):
    return None  # your code here


from_draws = checks.drawn_reverse_kl(drawn_reverse_kl, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `log_softmax` of both, and `gather(-1, drawn[:, None])` picks a token of each row. No
# sum over the vocabulary, and no weights: the drawing has done the weighting.

# %% [markdown] tags=["hint"] title="The example by hand has the wrong sign or size"
# Only the sign is wrong: teacher and student have changed places. Half the value: the
# drawn tokens were weighted once more. Twice the value: it is a sum over the rows.
# Anything else: are both there, and has each gone through `log_softmax`?


# %% tags=["solution"]
def drawn_reverse_kl(student_logits, teacher_logits, drawn):
    log_q = student_logits.log_softmax(-1)
    log_p = teacher_logits.log_softmax(-1)
    return (log_q - log_p).gather(-1, drawn[:, None]).mean()


from_draws = checks.drawn_reverse_kl(drawn_reverse_kl, fallback=True)

# %% [markdown]
# Sums leave little open, so we look at prose: the tiny pair and the loop of lesson 02, and
# texts that the student has written.

# %%
from distill_helpers import build_student, pack
from distill_helpers.tasks.prose import austen

novelist, prose = load_tiny_teacher("prose")
novel = pack(austen("train"), prose, 64).shuffle(seed=0)
novel = torch.tensor(novel[: 16 * prose_steps]["input_ids"])
pupil = build_student(prose, layers=2, width=96, seed=0)
optimizer = torch.optim.Adam(pupil.parameters(), lr=8e-3)

# %%
for ids in novel.split(16):
    with torch.no_grad():
        theirs = novelist(ids).logits.flatten(0, 1)
    loss = forward_kl(pupil(ids).logits.flatten(0, 1), theirs).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
heard = pack(austen("test"), prose, 64)["input_ids"][:32]
answers = generate_batch(
    pupil,
    prose,
    [row[:16] for row in heard],
    max_new_tokens=32,
    temperature=1.0,
    seeds=range(len(heard)),
)

# %%
pairs = zip(heard, answers, strict=True)
ids = torch.tensor(
    [row[:16] + answer.ids for row, answer in pairs if len(answer.ids) == 32]
)
with torch.no_grad():
    theirs = novelist(ids).logits[:, 15:-1].flatten(0, 1)


# %%
def pupil_logits():
    return pupil(ids).logits[:, 15:-1].flatten(0, 1)


def gradient(loss):
    pupil.zero_grad()
    loss.backward()
    return torch.cat([w.grad.flatten() for w in pupil.parameters()])


# %%
full = gradient(reverse_kl(pupil_logits(), theirs).mean())


def distance(other):
    """How far from the whole distribution's gradient, as a share of it."""
    return float((other - full).norm() / full.norm())


def cosine_to_full(other):
    """Whether a gradient points the same way: 1, or less."""
    return float(torch.cosine_similarity(other, full, dim=0))


# %% [markdown]
# The value that you just wrote is a number to look at, not a loss for `backward`. The
# teacher's part has no gradient in the student, and the student's part is zero on
# average. What has the right gradient on average is the *detached* log-ratio of a drawn
# token times $\log p_S$ of that token. That is the **policy gradient**, with the log-ratio
# as a cost, or minus the log-ratio as a reward. We average it over more and more draws.

# %%
generator = torch.Generator().manual_seed(0)
total, noise = torch.zeros_like(full), []
for count in range(1, draws + 1):
    ours = pupil_logits()
    log_q = ours.log_softmax(-1)
    token = torch.multinomial(log_q.exp().detach(), 1, generator=generator)
    ratio = (log_q - theirs.log_softmax(-1)).gather(-1, token).detach()
    total += gradient((ratio * log_q.gather(-1, token)).mean())
    noise.append((count, distance(total / count)))

# %%
print(f"KL from the last draws: {from_draws(ours, theirs, token[:, 0]):.3f}")
print(f"KL from all tokens:     {reverse_kl(ours, theirs).mean():.3f}")


# %%
def top(logits, k=32):
    """Reverse KL of the k likeliest tokens alone, renormalised."""
    kept = logits.detach().topk(k, -1).indices
    ours = pupil_logits().gather(-1, kept)
    return gradient(reverse_kl(ours, theirs.gather(-1, kept)).mean())


lists = {
    "the teacher's 32 likeliest tokens": (top(theirs), TEACHER),
    "the student's 32 likeliest tokens": (top(pupil_logits()), STUDENT),
}
for name, (found, _) in lists.items():
    print(f"{name}: cosine {cosine_to_full(found):.2f}")
drawn_cosine = cosine_to_full(total / draws)
print(f"{draws} draws at each position: cosine {drawn_cosine:.2f}")

# %%
fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(*zip(*noise, strict=True), color="0.4")
ax.text(1.5, noise[0][1] * 0.85, "drawn tokens", color="0.4")
for name, (found, color) in lists.items():
    height = distance(found)
    ax.axhline(height, color=color, ls="--")
    ax.text(draws * 1.15, height, name, color=color, va="center")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xlim(1, draws)
ax.set_xticks([1, 4, 16, 64], [1, 4, 16, 64])
ax.set_yticks([0.25, 0.5, 1, 2], [0.25, 0.5, 1, 2])
ax.minorticks_off()
ax.set_xlabel("tokens drawn at each position")
ax.set_ylabel("error, in lengths of the full gradient")
ax.set_title("Draws: noise that falls. A few likely tokens: a bias that stays")
plt.show()

# %% [markdown]
# As in lesson 02: a drawn token is right on average and very noisy. A renormalised list of likely
# tokens has no noise, but an error that no averaging removes; a tail was not tried. The cosine tells the
# direction alone: with this beginner, the teacher's list does not even point the right way.
#
# It matters *whose* list it is: reverse KL punishes what the student says and the teacher
# would not, and such tokens need not be on the teacher's list. But many APIs give the teacher's
# list alone.
#
# ## Between the two divergences
#
# Forward and reverse KL are the ends of a family, the **generalised Jensen–Shannon
# divergence**, JSD. It measures both models from a mixture of the two. Below, $p_T$ is the
# teacher's distribution and $p_S$ the student's.
#
# ## Exercise 4 · The generalised JSD
#
# *medium · with β turned round, "forward" is reverse: it happened in TRL, until pull
# request 3043 · 10 minutes*
#
# Write `generalised_jsd(student_logits, teacher_logits, beta)` for logits `[rows,
# vocabulary]`: with $m = (1 - \beta)\, p_S + \beta\, p_T$, the mean over the rows of
# $\beta\, KL(p_T ‖ m) + (1 - \beta)\, KL(p_S ‖ m)$, for β strictly between 0 and 1.
#
# By hand: one row, the teacher says `(½, ½)`, the student `(1, 0)` (nearly), β = ½.
# Then m is `(¾, ¼)`, the teacher's part ½ ln 4⁄3, the student's ln 4⁄3; half of each
# makes ¾ ln 4⁄3. With β = ¼, m is `(⅞, ⅛)`, and the value ¼ · ½ ln 16⁄7 + ¾ ln 8⁄7.

# %% tags=["exercise"]
import math


def generalised_jsd(student_logits, teacher_logits, beta):
    return None  # your code here


jsd = checks.generalised_jsd(generalised_jsd, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin, or I get nan"
# `softmax` both, mix, and take three logarithms. A probability can underflow to zero,
# and then its logarithm is −∞: `log_softmax` for the two, and
# `torch.logaddexp(log_q + log(1 - beta), log_p + log(beta))` for the mixture, are
# safe.

# %% [markdown] tags=["hint"] title="β = ½ is right, but another β is not"
# At one half, the student's share and the teacher's look alike. Go through the four
# places where β comes in: two shares in m, two weights of the divergences. Everywhere β
# belongs to the teacher and 1 − β to the student, and nowhere is a fixed one half.

# %% tags=["solution"]
import math


def generalised_jsd(student_logits, teacher_logits, beta):
    log_q = student_logits.log_softmax(-1)
    log_p = teacher_logits.log_softmax(-1)
    log_m = torch.logaddexp(log_q + math.log(1 - beta), log_p + math.log(beta))
    to_p = (log_p.exp() * (log_p - log_m)).sum(-1)
    to_q = (log_q.exp() * (log_q - log_m)).sum(-1)
    return (beta * to_p + (1 - beta) * to_q).mean()


jsd = checks.generalised_jsd(generalised_jsd, fallback=True)


# %% [markdown]
# Lesson 01's picture of two hills again, with the best single hill for each β.

# %%
grid = torch.linspace(-4, 4, 81)
hills = 0.6 * torch.exp(-((grid - 1.5) ** 2) / 0.3)
hills += 0.4 * torch.exp(-((grid + 1.5) ** 2) / 0.3)
two_hills = hills.log()[None]
middles = torch.linspace(-3, 3, 61)[:, None, None]
widths = torch.linspace(0.3, 2.5, 45)[None, :, None]
one_hill = (-((grid - middles) ** 2) / (2 * widths**2)).flatten(0, 1)
print(f"{len(one_hill):,} students to choose from")


# %%
def nearest(beta):
    """The student with the smallest generalised JSD."""
    teachers = two_hills.expand_as(one_hill)
    kind = {0.0: forward_kl, 1.0: reverse_kl}.get(beta)
    if kind is not None:
        return one_hill[kind(one_hill, teachers).argmin()].softmax(-1)
    each = zip(one_hill[:, None], teachers[:, None], strict=True)
    all_of_them = torch.stack([jsd(*pair, beta) for pair in each])
    return one_hill[all_of_them.argmin()].softmax(-1)


# %%
betas = [0.0, 0.2, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0]
fits = {beta: nearest(beta) for beta in betas}


# %%
def draw_fit(ax, beta):
    area = two_hills[0].softmax(-1)
    ax.fill_between(grid, area, color=TEACHER, alpha=0.3)
    ax.plot(grid, fits[beta], color=STUDENT, lw=2)
    ends = {0.0: "forward KL (β = 0)", 1.0: "reverse KL (β = 1)"}
    ax.set_title(ends.get(beta, f"JSD, β = {beta:g}"))
    ax.set_ylim(0, 0.11)
    ax.set_yticks([])
    ax.set_xlabel("teacher (area), student (line)")


# %%
from distill_helpers.course.widgets import explore

explore(
    draw_fit,
    name="β",
    values=betas,
    start=0.5,
    still=[0.0, 0.35, 0.4, 1.0],
    alt="A teacher with two hills and the best student with one. Forward KL "
    "gives a wide student over both; reverse KL a narrow one on the "
    "larger hill.",
    size=(5.2, 3.0),
)

# %% [markdown]
# Forward KL **covers** both modes and is highest in the valley between them: as text,
# sentences that nobody would write. Reverse KL **seeks** one mode. In between
# the best student jumps from one to the other; there are only two to see. Near the ends of β the value shrinks to zero, so
# at the ends the package takes the KLs themselves, as TRL does, Hugging Face's library.
#
# ## A real student writes
#
# The same on the real pair of lesson 02: SmolLM2, and a copy without some of its layers. First
# we repair it a little: a student that writes noise would get marks on noise. The prompts are
# sixteen tokens of Austen's novels.

# %%
from distill_helpers.studies import real_pair

pair = real_pair.load_pair(profile, real_rows)
real = pair.teacher

# %%
student = real_pair.start_student(pair, profile)
repaired = real_pair.repair(
    pair,
    student,
    "soft",
    profile,
    seed=0,
    weight_decay=0.0,
    **repair,
)
print(f"after the repair: KL to the teacher {repaired.kl_to_teacher:.2f} nats")

# %%
from datasets import Dataset


def prompt_rows(rows):
    ids = [row[:16] for row in rows["input_ids"]]
    return Dataset.from_list([join_row(prompt, []) for prompt in ids])


# %%
heard = prompt_rows(pair.test)["input_ids"]
shown = prompt_rows(pair.train.shuffle(seed=0).select(range(20 * 16)))

# %% [markdown]
# What can go wrong, and what to watch? Three signs:
#
# * **length**: texts grow or shrink, and fewer of them *end*;
# * **repetition**: a run of four tokens that the same text has had before;
# * **lost**: the teacher is *less* certain in the student's text than in its own. It may find
#   that text odd, and its marks there be guesses.

# %%
from distill_helpers.evaluation import measure_exposure


def look():
    found = measure_exposure(
        student, real.model, real.tokenizer, heard, max_new_tokens=words
    )
    for name, curve in (
        ("own", found.student_prefix),
        ("the teacher's", found.teacher_prefix),
    ):
        pairs = zip(curve, found.counts, strict=True)
        kl = sum(kl * n for kl, n in pairs) / sum(found.counts)
        print(f"KL in {name} text: {kl:.2f} nats")
    print(f"repetition: {found.student_repetition:.1%}", end=", ")
    print(f"in the teacher's text {found.teacher_repetition:.1%}")
    print(f"lost: the teacher's entropy {found.student_entropy:.2f}", end=", ")
    print(f"{found.teacher_entropy:.2f} in its own text")


# %%
look()


# %%
def show(prompts):
    for prompt in prompts:
        [answer] = generate_batch(
            student,
            real.tokenizer,
            [prompt],
            max_new_tokens=words,
            temperature=1.0,
            seeds=[0],
        )
        print("READ   ", real.tokenizer.decode(prompt))
        print("WRITES ", real.tokenizer.decode(answer.ids), end="\n\n")


# %%
show(heard[1:3])

# %% [markdown]
# `OnPolicyTrainer` is your step, with mixed precision, checkpoints and a log that knows
# the warning signs of length.

# %%
from distill_helpers import OnPolicyTrainer, training_arguments

trainer = OnPolicyTrainer(
    student,
    teacher=real.model,
    max_new_tokens=words,
    divergence="jsd",
    beta=0.5,
    tokenizer=real.tokenizer,
    teacher_tokenizer=real.tokenizer,
    train_dataset=shown,
    args=training_arguments(
        profile, logging_steps=log_every, seed=0, **real_training
    ),
)
_ = trainer.train()

# %%
logs = [entry for entry in trainer.state.log_history if "ended" in entry]
print("step    JSD   tokens a text   ended")
for entry in logs:
    numbers = (entry["loss"], entry["written_tokens"], entry["ended"])
    print("{:4}  {:5.3f}  {:14.1f}  {:6.0%}".format(entry["step"], *numbers))
writing = sum(entry["writing_seconds"] for entry in logs)
whole = trainer.state.log_history[-1]["train_runtime"]
print(f"{writing:.0f} s of {whole:.0f} s went into writing")

# %%
look()
show(heard[1:3])

# %% [markdown]
# Texts were all cut at one length, and nothing repeats: these signs say nothing here. *Lost* grew a
# little while the KL fell.
#
# The KL fell in both texts, but look closer. In the student's own text it is *lower* than in
# the teacher's: no exposure bias, by this number. That is no praise where the teacher is
# lost: vague distributions may be easier to match. And more repair might have done the same.
#
# Why not simply reward text that the teacher finds *likely*? Watch SmolLM2 read:

# %%
samples = {
    "a sentence": "She had a book in her hand, and she did not look up when "
    "he came in, although the door had never been quiet.",
    "a loop": " ".join(["She had a book in her hand."] * 4),
}

# %%
for name, sample in samples.items():
    ids = real.tokenizer(sample, return_tensors="pt")["input_ids"]
    ids = ids.to(real.model.device)
    with torch.no_grad():
        log_p = real.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    surprise = -log_p.gather(-1, ids[0, 1:, None])[:, 0]
    rounds = [f"{part.mean():.2f}" for part in surprise.chunk(4)]
    print(f"{name:11}", *rounds, "nats per token, by quarters")

# %% [markdown]
# After its first round a loop surprises little, so a student that is rewarded for likely text
# alone could learn to say the same thing for ever.

# %% [markdown] tags=["published"]
# ## What others found
#
# | who | what is reported |
# |---|---|
# | Agarwal et al. 2023, *GKD* (arXiv:2306.13649) | T5 models gain from their own text in summarising, translating, arithmetic; the best divergence depends on the task |
# | Gu et al. 2023, *MiniLLM* (arXiv:2306.08543) | reverse KL with the full policy gradient; errors pile up less as texts grow longer |
# | Qwen3 2025 (arXiv:2505.09388) | small models: off-policy first, then on-policy; against reinforcement learning better, for about a tenth of the GPU hours |
# | Thinking Machines, October 2025 (blog) | per-token reverse KL as a reward, a dense signal in place of a sparse one |
# | MiMo-V2-Flash 2026 (arXiv:2601.02780) | several teachers, one for each domain, mark one student's own text |
# | DeepSeek-V4, April 2026, as reported | more than ten experts, reverse KL over the full vocabulary, in place of mixed reinforcement learning |
# | Nemotron 3 Ultra 2026 (arXiv:2606.15007), as reported | more than ten teachers; sampled tokens did better than the full vocabulary |
#
# The last two disagree. *DAgger* is older than all of them (Ross et al. 2011,
# arXiv:1011.0686).

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | `warm_sizes = {"steps": 1500}` | a better writer, and less excess | the shaded area |
# | a warm start of 100 steps | a student that writes noise, and learns little from marks on it | the bars |
# | `lambda s, p: write(dice.choice((s, teacher)), p)` as the writer | between the two texts | the bars |
# | `top(theirs, k=256)` | less bias | the dashed line |

# %%
# A place to try. For example:
# other = copy.deepcopy(reader)
# optimizer = torch.optim.Adam(other.parameters(), 5e-4)
# for at in range(0, len(questions), 64):
#     prompts = questions[at : at + 64]
#     step(other, teacher, prompts, teacher_writes, reverse_kl, optimizer)
# print(study.score(other, study.TRACES, tests))

# %% [markdown]
# ## Recap
#
# * **One number to remember:** how many of the wrong sums the teacher would copy.
#   It marks a slip where it happens, and then goes on from it.
# * Exposure bias: in training the context is text by others, in use it is the student's
#   own. Here it showed where a sum is only copied, behind the student's own words.
# * An on-policy step: write, read along, mask, loss. Two knobs: who writes, which KL.
# * Own text beat as many steps of hard labels here, and lost in lesson 11. Among own text, new
#   text and soft labels nothing is decided, nor between the KLs.
# * **Use it when** you have the teacher's logits and the student already writes; the papers
#   add: when answers are long and fixed text has stopped helping. **Do not, when** soft labels on fixed text still help: they are cheaper, and they are
#   stored once.
#
# *Read on:* the papers of the table; Arora et al. 2022, arXiv:2204.01171, on the excess.
