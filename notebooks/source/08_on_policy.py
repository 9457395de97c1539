# %%
import math

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course.plots import STUDENT, TEACHER, use_style

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

# %% [markdown]
# ## A student that only reads
#
# In every lesson so far the student read what others had written: a novel, or the
# teacher's answers. When it is used it *writes*: each token that it writes becomes
# part of what it reads next. It has learned after other people's words and is used
# after its own; where these differ, it may do worse. That is **exposure bias**, and
# this lesson's remedy is old advice: let pupils write, and mark what they wrote. A
# model that writes is called a *policy* in reinforcement learning; training it on what
# it writes itself is **on-policy**, and on text from elsewhere, as in all lessons so
# far, **off-policy**.
#
# Back to lesson 06's sums, with the teacher that is right about four times in five.
# A fresh student first learns its answers to 1,500 questions, as hard labels; this is
# its **warm start**. How far
# it comes is partly luck: some students begin to carry early, some late.

# %%
from distill_helpers.studies import on_policy as study
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

teacher = load_tiny_teacher("sums")
tokenizer = teacher.tokenizer
sizes = profile.pick(
    smoke={"steps": 1, "questions": 70, "validation": 10}, cpu={}, gpu={}
)
reader = study.warm_start(seed=2, **sizes).model

# %%
tests = profile.pick(smoke=10, cpu=2000, gpu=2000)
for name, model in (("teacher", teacher.model), ("student", reader)):
    percent = study.score(model, study.TRACES, tests)
    print(f"{name}: {percent:.1f} % of {tests:,} test problems")

# %% [markdown]
# ## One slip, token by token
#
# Take problems that the teacher gets right, and in which the student's first sum is
# wrong. Then ask the teacher about every token that the student wrote: how likely was
# it, and what would you have written here?

# %%
from distill_helpers import generate

some = three_sums.test_problems()[: profile.pick(smoke=20, cpu=300, gpu=300)]


def answers_of(model):
    return generate(
        model,
        tokenizer,
        three_sums.prompts(some),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    )


slips = [
    (problem, text)
    for problem, text, his in zip(
        some, answers_of(reader), answers_of(teacher.model), strict=True
    )
    if three_sums.is_right(problem, his)
    and text
    and not text.startswith(problem.answer.split(",")[0])
]

# %%
problem, text = slips[0]
print(f"{len(slips)} such slips; one of them:\n")
print(f"asked    {problem.prompt}\nright    {problem.answer}\nwritten  {text}")

# %% [markdown]
# **Predict:** after the wrong sum, will the teacher go on as if it were right, or
# correct it?

# %%
from distill_helpers.losses import token_divergence


def marks(problem, text):
    """Teacher's and student's logits where each written token is due."""
    both = tokenizer(problem.prompt + text, return_tensors="pt")["input_ids"]
    place = len(problem.prompt) - 1
    with torch.no_grad():
        return [
            model(input_ids=both).logits[0, place:-1]
            for model in (teacher.model, reader)
        ]


# %%
theirs, ours = marks(problem, text)
written = tokenizer(text, return_tensors="pt")["input_ids"][0]
likely = theirs.softmax(-1).gather(-1, written[:, None])[:, 0]
best = tokenizer.convert_ids_to_tokens(theirs.argmax(-1))
print("the student wrote      ", " ".join(text))
print("the teacher would, here", " ".join(t[0] for t in best), "(<: the end)")

# %%
kl = token_divergence(ours, theirs)
fig, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True)
axes[0].bar(range(len(text)), likely, color=TEACHER)
axes[0].set_ylabel("teacher's p")
axes[0].set_title("How likely the teacher finds what the student wrote")
axes[1].bar(range(len(text)), kl, color=STUDENT)
axes[1].set_ylabel("nats")
axes[1].set_title("How far apart they are before it: KL(teacher ‖ student)")
axes[1].set_xticks(range(len(text)), list(text))
axes[1].set_xlabel("token written by the student")
plt.show()

# %% [markdown]
# Where the upper bar is low, the teacher would hardly have written that token. The
# lower bars tell how far apart the two distributions were when that token was due:
# far, mostly, where a digit has to be computed, right or wrong. What comes after the
# slip? Over all these slips, count how often the teacher, asked right after
# the comma, would copy the student's wrong sum:

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
# A language model continues what it reads, wrong digits included. That is what an
# on-policy teacher has to offer: not the right answer, but what *it* would do in the
# student's place.
#
# ## Exposure bias, measured
#
# One text is an anecdote. Let both models answer many problems, drawing at
# temperature 1, and take the same KL at every token of every text: once in the
# student's texts, once in the teacher's. It asks what the teacher would say here, and
# how much of that the student lacks. **Predict:** which curve is higher? And what of
# the first token?

# %%
asked = profile.pick(smoke=4, cpu=600, gpu=600)
before = study.exposure(reader, asked)


def draw_exposure(ax, found, title):
    places = range(1, len(found.counts) + 1)
    own = {"color": STUDENT, "label": "in the student's own text"}
    ax.plot(places, found.student_prefix, "o-", ms=3, **own)
    his = {"color": TEACHER, "label": "in the teacher's text"}
    ax.plot(places, found.teacher_prefix, "s--", ms=3, **his)
    ax.set_title(title)
    ax.set_xlabel("token of the answer")


# %%
fig, ax = plt.subplots(figsize=(6.5, 3))
draw_exposure(ax, before, "The student, beside its teacher")
ax.set_ylabel("KL(teacher ‖ student), nats")
fig.legend(loc="outside lower center", ncols=2)
plt.show()
print(f"excess: {before.excess:.4f} nats per token")

# %%
from distill_helpers.studies import load_results

results = load_results(study.STUDY.name)
display(
    results.check_live(
        "excess_kl", study.WARM, study.SETTING, before.excess, judged=judged
    )
)

# %% [markdown]
# The hills are the digits of the two sums; between them the student only copies. At
# the first token both have read the prompt and nothing else, so the two curves agree.
# The mean difference from then on is the **excess**, our measure of exposure bias,
# after Arora et al. (2022), who divide it by the KL in the teacher's text. If the
# curves nearly coincide, exposure bias is a small part of what this student still
# lacks: its answers are short, and most of each is copying. Part of the excess is
# chance: each model wrote once to each problem. And ours is a mild case: its excess is
# smaller than that of any student in the study, whose range you see.
#
# Why compare *distributions*, when the teacher could simply say how likely it finds
# the student's text? Watch a real teacher, SmolLM2, read three texts:

# %%
from distill_helpers.studies import real_pair

pair = real_pair.load_pair(profile, profile.pick(smoke=2, cpu=24, gpu=24))
real = pair.teacher
samples = {
    "a sentence": "She had a book in her hand, and she did not look up when "
    "he came in, although the door had never been quiet.",
    "another": "The rain began before noon; by evening the lower field was "
    "under water, and nobody spoke of going home.",
    "a loop": "She had a book in her hand. " * 4,
}

# %%
for name, sample in samples.items():
    ids = real.tokenizer(sample, return_tensors="pt")["input_ids"]
    ids = ids.to(real.model.device)
    with torch.no_grad():
        loss = real.model(input_ids=ids, labels=ids).loss
    print(f"{name:11}{loss:.2f} nats per token")

# %% [markdown]
# In a loop nothing is surprising once it has turned. A student that was rewarded for
# *likely* text alone would learn to say the same thing for ever. So
# `measure_exposure`, which `study.exposure` calls, also reports two warning signs: how
# often a run of four tokens returns in the same text, and how uncertain the teacher is
# in the student's texts. A student that has shrunk to few, easy words tends to repeat
# more than its teacher, and to leave it less uncertain.

# %%
print(
    f"runs that return: student {before.student_repetition:.2%}, "
    f"teacher {before.teacher_repetition:.2%}"
)
print(
    f"teacher's entropy: in the student's text {before.student_entropy:.3f}, "
    f"in its own {before.teacher_entropy:.3f} nats"
)

# %% [markdown]
# ## Whose text, and which divergence?
#
# These are two choices, and one identity ties them. For whole texts, KL(student ‖
# teacher) is the sum over tokens of the *reverse* KL (lesson 01), averaged over texts
# that the **student** writes; KL(teacher ‖ student) is the sum of the forward KL, over
# texts that the **teacher** draws. So reverse KL goes with the student's own text.
# Other combinations are allowed, and we shall try some.
#
# (From here on $p_T$ is the teacher's distribution and $p_S$ the student's; earlier
# lessons wrote $p$ and $q$.) Between the two lies the **generalised Jensen–Shannon
# divergence** (JSD). It measures both from a mixture: with $m = (1 - \beta)\, p_S +
# \beta\, p_T$ it is $\beta\, KL(p_T ‖ m) + (1 - \beta)\, KL(p_S ‖ m)$. At both ends it
# shrinks to zero, but divided by β it tends to forward KL, and by 1 − β to reverse KL.
# So at β = 0 and 1 the package takes these, as TRL does, Hugging Face's library for
# training language models: a jump in size, not in direction.
#
# What each does when a student *cannot* match its teacher shows in lesson 01's
# picture of two hills. Now the student, a single hill, is the best of many for each β.

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
    all_of_them = token_divergence(one_hill, teachers, kind="jsd", beta=beta)
    return one_hill[all_of_them.argmin()].softmax(-1)


betas = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
fits = {beta: nearest(beta) for beta in betas}


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
    still=[0.0, 0.3, 0.5, 1.0],
    alt="A teacher with two hills and the best student with one. Forward KL "
    "gives a wide student over both; reverse KL a narrow one on the "
    "larger hill.",
    size=(5.2, 3.0),
)

# %% [markdown]
# Forward KL **covers** both modes and is highest in the valley between them: as text,
# sentences that nobody would write. Reverse KL **seeks** one mode. The JSD has no
# student of its own here: somewhere on the way, β makes it flip from one to the
# other. (Every hill was tried. In training, reverse KL looks only where the student
# already is: started on the smaller hill, it would stay there.)
#
# ## One on-policy step by hand
#
# Four moves: the student writes; the teacher reads along; the divergence is taken at
# every written token, never at the prompt; the gradient flows through the student's
# logits, and not through the *drawing* of tokens, which has none.

# %%
from distill_helpers.data import collator_for, join_row
from distill_helpers.models import generate_batch

prompts = tokenizer(three_sums.prompts(some), add_special_tokens=False)
prompts = prompts["input_ids"]
answers = generate_batch(
    reader,
    tokenizer,
    prompts,
    max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
    temperature=1.0,
    seeds=range(len(prompts)),
)
rows = [
    join_row(prompt, answer.ids)
    for prompt, answer in zip(prompts, answers, strict=True)
]

# %% [markdown]
# A row's labels are −100 on the prompt and the token itself on the answer, its
# end included: when to stop is part of what the student has to learn.

# %%
first = rows[0]
print(tokenizer.convert_ids_to_tokens(first["input_ids"]))
print(first["labels"])

# %%
batch = collator_for(tokenizer)(rows)
inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
learned = batch["labels"][:, 1:] != -100
ours = reader(**inputs).logits[:, :-1][learned]
with torch.no_grad():
    theirs = teacher.model(**inputs).logits[:, :-1][learned]
per_token = token_divergence(ours, theirs, kind="reverse_kl")
reader.zero_grad()  # gradients add up, and this cell may run twice
per_token.mean().backward()
print(f"reverse KL: {per_token.mean():.4f} nats per token")

# %%
norm = sum(w.grad.square().sum() for w in reader.parameters()).sqrt()
print(f"length of its gradient: {norm:.3f}")

# %% [markdown]
# There is a second way to the reverse KL. It is a mean, over tokens that the
# *student* draws, of $\log p_S - \log p_T$. And those tokens have just been drawn! So
# the same mean over the written tokens alone, without a sum over the vocabulary,
# should come out near it; the ± is one standard error.

# %%
tokens = batch["labels"][:, 1:][learned][:, None]
log_ratio = (ours.log_softmax(-1) - theirs.log_softmax(-1)).detach()
drawn = log_ratio.gather(-1, tokens)[:, 0]
noise = (drawn - per_token.detach()).std()
error = noise / len(drawn) ** 0.5
print(f"from drawn tokens: {drawn.mean():.4f} ± {error:.4f}")
print(f"one token is off by {noise:.3f} (standard deviation)")

# %% [markdown]
# Right on average, and noisy: a few unlikely draws make much of the mean, so it may
# well lie two or three standard errors off. The exact sum has no such noise. Where a
# teacher tells only the probability of the token that it is shown, as some APIs do,
# this estimate is all there is, and reinforcement learning takes it, with its sign
# turned, as a reward for each token.
#
# It is a number to look at, and not a loss to call `backward` on: the teacher's part
# has no gradient in the student, and the student's part, the gradient of $\log p_S$
# at its own draws, is zero on average. What has the right gradient on average is the
# *detached* ratio times $\log p_S$, which is the policy gradient. With the teacher's
# whole distribution at hand, we need neither.
#
# An honest gap: a token also changes what comes *after* it, and this loss does not
# credit it for that. The full gradient of the divergence between texts would, and is
# far noisier (Gu et al. 2023 use it, with several tricks against the noise). Agarwal
# et al. (2023) leave it out, and so do we. But why does reverse KL not fall for the
# loop, as a reward for likely text would? Because of the $\log p_S$ in it: wherever
# the teacher leaves several tokens open, a student that is sure of one of them pays
# for it. So it has no reason to *enter* a loop. Once inside, where the teacher is
# sure as well, it pays little: hence the warning signs above.
#
# ## Marked work, live
#
# `OnPolicyTrainer` makes these four moves at every step, with the student's weights
# of that moment: so what it learns from changes as it learns. **Predict:** how much
# longer does a step take than one on finished rows with soft labels?

# %%
live = {}
for arm in (study.SOFT, study.REVERSE):
    cell = dict(results.options(arm, study.SETTING))
    live[arm] = study.go_on(reader, arm, seed=2, **cell, **sizes)

# %%
scores = {
    arm: study.score(run.model, study.TRACES, tests)
    for arm, run in live.items()
}
for arm, run in live.items():
    print(f"{arm:22}{scores[arm]:6.1f} % right", end=", ")
    print(f"{run.seconds:.0f} s of processor time")

# %% [markdown]
# Did it heal what it was meant to heal? In this student that was little, so expect
# little of one picture. The same curves as above, after the same number of steps:

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), sharey=True)
for ax, (arm, run) in zip(axes, live.items(), strict=True):
    after = study.exposure(run.model, asked)
    draw_exposure(ax, after, f"{arm}: excess {after.excess:.4f}")
axes[0].set_ylabel("KL(teacher ‖ student)")
both = axes[0].get_legend_handles_labels()
fig.legend(*both, loc="outside lower center", ncols=2)
plt.show()

# %%
live_check = results.check_live(
    "excess_kl", study.REVERSE, study.SETTING, after.excess, judged=judged
)
display(live_check)

# %% [markdown]
# Read the pictures with care: their scale is not that of the first one. The *height*
# of the curves is a forward KL, which is what soft labels train, so it need not be
# lowest after reverse KL. Exposure bias is the *gap* between a solid curve and its
# dashed one. One run's gap is partly chance, so the study has to say.
#
# ## What five seeds say
#
# The study gives every student such a warm start and lets it go on in eight ways, at
# one learning rate. Seven of them take the same number of steps:
#
# * *traces*: the teacher's greedy answers, as hard labels, for longer;
# * *soft labels*: the teacher's distributions on these answers;
# * *soft labels, new text*: on answers that the teacher draws anew each time. Beside
#   own text, it separates the effect of *new* text from that of the student's *own*;
# * *own text*: with reverse KL, the JSD (β = ½) and forward KL; and *half own text*,
#   where a coin decides for each row whose text it is (λ, the share of own text, is ½
#   in Agarwal et al., whose coin decides for a batch).
#
# And with more steps instead of writing, for about as much *time* as own text takes:
# *soft labels, equal time*.

# %%
from distill_helpers.course.plots import compare_arms

fig, ax = plt.subplots(figsize=(7, 3.6))
compare_arms(
    ax,
    results,
    "exact_match",
    study.SETTING,
    live=scores,
    soft=[arm for arm in study.ARMS if "soft" in arm or "own" in arm],
)
ax.set_xlabel("exact match on 2,000 test problems (percent)")
ax.set_title("A warm start, and eight ways to go on; five seeds")
plt.show()

# %% [markdown]
# Dots are means, lines their intervals, diamonds our live runs; blue marks what
# learns from the teacher's distributions. The intervals are wide because the warm
# starts differ so much. Below, each column is one seed: how good a student was before
# (across) and after (up).

# %%
from distill_helpers.course.plots import PALETTE

colours = dict(zip(study.ARMS[1:], (*PALETTE, "0.6"), strict=True))
start = results.values("exact_match", study.WARM, study.SETTING)
fig, ax = plt.subplots(figsize=(6, 3.6))
for n, (arm, marker) in enumerate(zip(study.ARMS[1:5], "osD^", strict=True)):
    after = results.values("exact_match", arm, study.SETTING)
    beside = [before + 0.8 * (n - 1.5) for before in start]
    ax.plot(beside, after, marker, color=colours[arm], label=arm)
ax.plot([0, 80], [0, 80], color="0.4", linestyle="--")
ax.set_xlabel("warm start: exact match (percent)")
ax.set_ylabel("after 400 more steps")
ax.set_title("One column for each seed, spread a little; dashed: no gain")
ax.legend(loc="lower right")
plt.show()

# %%
for claim in results.study.claims:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# One verdict is settled: for as many steps, marks on one's own text taught much more
# than further copies of the teacher's words. *Why* they did is not.
# Own text differs from the traces in three ways at once: it is marked with whole
# distributions, it is new each time, and it is the student's own. Soft labels have
# the first of these; the teacher's new text has the first two. Own text came out
# ahead of both on average, and neither lead is settled by five seeds. Nor is the
# verdict on exposure bias itself: five seeds cannot tell whether the excess fell by
# more with own text.
#
# The picture says where to look: to the far left. The student that had come least far
# gained next to nothing from the teacher's fixed text, whatever the labels, more from
# new text, and most from its own. To the right, where students could already do about
# half of the task, the three that learn from distributions differ little. One student
# is no law, and exposure bias is only one way to explain it. If it were the reason,
# the worst writer should have had the largest excess to begin with. Had it?

# %%
excess = results.values("excess_kl", study.WARM, study.SETTING)
print("warm start: right, percent     excess, nats per token")
for right, over in sorted(zip(start, excess, strict=True)):
    print(f"{right:26.1f}{over:27.4f}")

# %% [markdown]
# The measure does not single it out: another student, which could do far more, had a
# larger excess. What helped the weakest most is there to see; why, these rows do not
# say.
#
# This study has a history as well. Its first round chose one of two learning rates for
# each arm, on one seed. There the rates were nearly tied for some arms, so chance
# chose; on other seeds the higher rate came further. What we compared was rates as much
# as texts. It was broken off, its rows are in `results/rounds`, and now all arms share
# one rate.
#
# ## What writing costs
#
# Writing is slow for a reason: a text is read in one pass, but written in one pass
# *per token*. The student is small here and its answers are short; with large models
# and long texts, writing takes most of a step. So equal steps flatter on-policy
# training, and equal time is the fair comparison for a fixed budget.

# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
for arm, marker in zip(study.ARMS[2:], "sD^vPX*", strict=True):
    took = results.mean("training_seconds", arm, study.SETTING).mean
    gain = results.gain("exact_match", arm, study.MORE, study.SETTING)
    reach = [[gain.mean - gain.low], [gain.high - gain.mean]]
    style = {"fmt": marker, "color": colours[arm], "label": arm, "ms": 8}
    ax.errorbar(took, gain.mean, reach, alpha=0.8, **style)
ax.axhline(0, color="0.4", linestyle="--")
ax.set_xlabel("seconds of training, one core")
ax.set_ylabel("points above traces, same seed")
ax.set_title("What a second buys")
ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
plt.show()

# %%
columns = ("exact_match", "excess_kl", "repetition", "training_seconds")
print(results.table(columns, study.SETTING, digits=3))

# %% [markdown]
# (Percent, nats per token, percent, and seconds.) One thing this clock does not see:
# somebody wrote the answers that are learned from; for *new text* the teacher wrote
# them by the ten thousand, before the clock started. And one thing it does see: fixed
# rows are judged once and remembered, while new text and own text have to be read by
# the teacher at every step. In the table, the way from *soft labels* to *soft labels,
# new text* is about what this reading costs, and from there to *own text* it is the
# writing. Even with a teacher this small the reading is no trifle; with a large one it
# weighs more. For equal time, look back at the last verdict.
#
# ## A real student writes
#
# The same trainer on the pair of lesson 02: SmolLM2, and its copy without ten of its
# thirty layers, after a short repair with soft labels. On-policy training is for
# students that can already write a little: from one that writes noise, the teacher's
# marks on noise are all there is to learn. The prompts are sixteen tokens of Austen's
# novels, from wherever a row happens to begin; no answers are needed.

# %%
student = real_pair.start_student(pair, profile)
repaired = real_pair.repair(
    pair,
    student,
    "soft",
    profile,
    seed=0,
    learning_rate=profile.pick(smoke=5e-4, cpu=5e-4, gpu=1e-4),
    weight_decay=0.0,
    steps=profile.pick(smoke=1, cpu=15, gpu=200),
)
print(f"after the repair: KL to the teacher {repaired.kl_to_teacher:.2f} nats")

# %% [markdown]
# A plan, first. The student writes before anything is kept for the backward pass, so
# the peak of memory is that of soft labels on texts of this length. The time is
# theirs, plus the writing.

# %%
from distill_helpers import plan

words = profile.pick(smoke=4, cpu=32, gpu=64)
steps = profile.pick(smoke=1, cpu=12, gpu=200)
batch_size = profile.pick(smoke=2, cpu=8, gpu=16)
forecast = plan(
    (real.model, student),
    batch_size=batch_size,
    length=16 + words,
    steps=steps,
)
print(forecast)

# %% [markdown]
# Rows of prompts alone: sixteen tokens, and nothing to learn yet. (From a dataset of
# questions, `mask_prompts` makes rows with answers, of which `on_policy_share` can
# keep some.)

# %%
from datasets import Dataset


def prompt_rows(rows):
    ids = [row[:16] for row in rows["input_ids"]]
    return Dataset.from_list([join_row(prompt, []) for prompt in ids])


heard = prompt_rows(pair.test)["input_ids"]
shown = prompt_rows(pair.train.shuffle(seed=0).select(range(20 * 16)))

# %%
from distill_helpers import OnPolicyTrainer, training_arguments
from distill_helpers.evaluation import measure_exposure

trainer = OnPolicyTrainer(
    student,
    teacher=real.model,
    max_new_tokens=words,
    divergence="jsd",
    tokenizer=real.tokenizer,
    teacher_tokenizer=real.tokenizer,
    train_dataset=shown,
    args=training_arguments(
        profile,
        steps=steps,
        learning_rate=profile.pick(smoke=3e-4, cpu=3e-4, gpu=2e-5),
        batch_size=batch_size,
        logging_steps=profile.pick(smoke=1, cpu=3, gpu=20),
        seed=0,
    ),
)


# %%
def look():
    """Exposure bias after pieces of the sixth novel."""
    found = measure_exposure(
        student, real.model, real.tokenizer, heard, max_new_tokens=words
    )
    places = zip(found.student_prefix, found.counts, strict=True)
    own = sum(kl * n for kl, n in places) / sum(found.counts)
    print(
        f"KL in its own text {own:.2f}, excess {found.excess:+.2f}; "
        f"the teacher's entropy {found.student_entropy:.2f} there, "
        f"{found.teacher_entropy:.2f} in its own text"
    )


look()
trainer.train()
look()

# %% [markdown]
# The first number should fall: it looks at the student's own text, as the training
# does, though with the forward KL and not the JSD. The excess needs its companion: a
# teacher that is *less* certain in the student's text than in its own finds that text
# odd. Where it is unsure, a student has less to miss, and the excess can even be
# negative; that is no sign of health.
#
# What did the steps spend their time on? The trainer logs it.

# %%
logs = [entry for entry in trainer.state.log_history if "ended" in entry]
writing = sum(entry["writing_seconds"] for entry in logs)
whole = trainer.state.log_history[-1]["train_runtime"]
print(f"{writing:.1f} s of {whole:.1f} s went into writing")
print("JSD:", [round(entry["loss"], 3) for entry in logs])

# %% [markdown]
# And what it writes now, after a piece of text that it has not seen:

# %%
prompt = heard[profile.pick(smoke=0, cpu=5, gpu=5)]
print(f"read: {real.tokenizer.decode(prompt)}\n")
for name, model in (("student", student), ("teacher", real.model)):
    [answer] = generate_batch(
        model,
        real.tokenizer,
        [prompt],
        max_new_tokens=words,
        temperature=1.0,
        seeds=[0],
    )
    print(f"{name}: …{real.tokenizer.decode(answer.ids)}\n")

# %% [markdown]
# A handful of steps on one seed proves nothing; it shows the machinery on a real
# model. On a GPU the same cells run longer, with models from the hub.

# %% [markdown] tags=["published"]
# ## What others found
#
# * Agarwal et al. (2023, *GKD*) distil T5 models on their own text and report gains
#   over training on fixed text in summarising, translating and arithmetic; which
#   divergence was best depended on the task.
# * Gu et al. (2023, *MiniLLM*) use reverse KL with the full policy gradient, and
#   report that their students' errors pile up less as texts grow longer.
# * The Qwen3 report (2025) says that its smaller models are trained by off-policy,
#   then on-policy distillation, and compares the latter with reinforcement learning
#   on one of them: better, for about a tenth of the GPU hours.
#
# The idea is older than language models: a driver who has only watched others does not
# know what to do at the edge of the road (Ross et al. 2011, *DAgger*). The tasks of the
# first three papers reach from single sentences to long chains of reasoning, with
# models a thousand times the size of ours; ours are short sums. Where texts are long,
# slips have more room to add up.

# %% [markdown] tags=["given"]
# ## Exercise 1 · What the drawn tokens say
#
# *easy · with the sign turned, a good student looks bad · 5 minutes*
#
# Write `drawn_reverse_kl(student_logits, teacher_logits, drawn)` for logits `[rows,
# vocabulary]` and the token ids `[rows]` that the *student* drew: the estimate of
# KL(p_S ‖ p_T) from these tokens alone, mean over the rows.
#
# By hand: two rows, in both the student says `(½, ½)` and the teacher `(¾, ¼)`; drawn
# are 0 and 1. The first gives ln ⅔, the second ln 2; their mean is ½ ln 4⁄3. (One draw
# can be negative, as the first is. A divergence never is.)


# %% tags=["exercise"]
from distill_helpers.course import checks


def drawn_reverse_kl(student_logits, teacher_logits, drawn):
    return None  # your code here


checks.drawn_reverse_kl(drawn_reverse_kl)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `log_softmax` of both, and `gather(-1, drawn[:, None])` picks a token of each row. No
# sum over the vocabulary, and no weights: the drawing has done the weighting.

# %% [markdown] tags=["hint"] title="The example by hand has the wrong sign or size"
# Only the sign is wrong: teacher and student have changed places. Half the value: the
# drawn tokens were weighted once more. Twice the value: it is a sum over the rows.
# Anything else: are both there, and has each gone through `log_softmax`?


# %% tags=["solution"]
from distill_helpers.course import checks


def drawn_reverse_kl(student_logits, teacher_logits, drawn):
    log_q = student_logits.log_softmax(-1)
    log_p = teacher_logits.log_softmax(-1)
    return (log_q - log_p).gather(-1, drawn[:, None]).mean()


checks.drawn_reverse_kl(drawn_reverse_kl)

# %% [markdown]
# ## Exercise 2 · Between the two
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
# makes ¾ ln 4⁄3.


# %% tags=["exercise"]
import math


def generalised_jsd(student_logits, teacher_logits, beta):
    return None  # your code here


checks.generalised_jsd(generalised_jsd)

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


checks.generalised_jsd(generalised_jsd)

# %% [markdown] tags=["given"]
# ## Exercise 3 · The excess
#
# *easy · short texts end early, so places do not weigh alike · 5 minutes*
#
# Write `excess_kl(student_prefix, teacher_prefix, counts)` for three lists, one entry
# for each place of the text: mean KL in the student's texts, in the teacher's, and how
# many texts reach that place. Return the mean difference, each place weighted
# by its count, from the **second** place on: the first follows the prompt, in both.
#
# By hand: `[0.1, 0.4, 0.6]`, `[0.1, 0.2, 0.2]` and counts `[9, 6, 2]` give
# (6 · 0.2 + 2 · 0.4) / 8 = 0.25.


# %% tags=["exercise"]
def excess_kl(student_prefix, teacher_prefix, counts):
    return None  # your code here


checks.excess_kl(excess_kl)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `zip` the three lists and leave the first triple out. Divide by the sum of the
# counts that are left.

# %% [markdown] tags=["hint"] title="My number is too small"
# Look at what you divide by: in the example by hand it is 8. If it is 17, the first
# place still counts. If your number is too large instead, every place may weigh alike;
# and differences keep their sign, for the student may also be the better one.


# %% tags=["solution"]
def excess_kl(student_prefix, teacher_prefix, counts):
    places = list(zip(student_prefix, teacher_prefix, counts, strict=True))[1:]
    total = sum(count for _, _, count in places)
    return sum(count * (own - his) for own, his, count in places) / total


checks.excess_kl(excess_kl)

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what is exposure bias? | a student learns after words that others wrote and is used after its own; where these differ, it may do worse |
# | how is it measured? | KL to the teacher in the student's texts, less that in the teacher's |
# | why not by the likelihood of its text? | loops are likely |
# | what is on-policy distillation? | the student writes, the teacher gives its distribution at each written token |
# | which divergence? | reverse KL seeks one mode, forward KL covers all; β decides which of them the JSD resembles |
# | what does it cost? | writing, one pass per token, at every step |
#
# **When would you not distil on-policy?**
#
# * The student cannot write yet: begin with the teacher's texts.
# * The teacher gives only its own text, or logprobs of that: it cannot mark yours.
# * The student's text is so odd that the teacher is out of its depth, too: its marks
#   are guesses there.
# * Soft labels on fixed text still help: they are cheaper, and they are stored once.
#
# *Read on:* Agarwal et al. 2023 (arXiv:2306.13649); Gu et al. 2023 (arXiv:2306.08543);
# Arora et al. 2022 (arXiv:2204.01171) on measuring exposure bias; Ko et al. 2024
# (arXiv:2402.03898) on stored student text; the Qwen3 report (arXiv:2505.09388).
