# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from distill_helpers.plots import STUDENT, TEACHER, use_style
from distill_helpers.profiles import get_profile

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

# %% [markdown]
# ## A student that only reads
#
# In every lesson so far the student read what others had written: a novel, or the
# teacher's answers. When it is used, it *writes*, and each token that it writes is
# one that it reads before the next. If the teacher's texts never stray, the student
# never learns what to do once it has strayed. That is **exposure bias**, and this
# lesson's remedy is old advice: let pupils write, and mark what they wrote.
#
# Back to lesson 05's sums, with the teacher that is right about four times in five.
# A fresh student first learns its answers to 1,500 questions, as hard labels.

# %%
from distill_helpers import three_sums
from distill_helpers.models import load_tiny_teacher
from distill_helpers.studies import on_policy as study

teacher = load_tiny_teacher("sums")
tokenizer = teacher.tokenizer
sizes = profile.pick(
    smoke={"steps": 2, "questions": 70, "validation": 10}, cpu={}, gpu={}
)
reader = study.warm_start(seed=2, **sizes).model

# %%
tests = profile.pick(smoke=40, cpu=2000, gpu=2000)
for name, model in (("teacher", teacher.model), ("student", reader)):
    score = study.score(model, study.TRACES, tests)
    print(f"{name}: {score:.1f} % of {tests:,} test problems")

# %% [markdown]
# ## One slip, token by token
#
# Take a problem that the student gets wrong, and ask the teacher about every token
# that the student wrote: how likely was it, and what would you have written here?
#
# **Predict:** after the student's first wrong digit, will the teacher go on as if
# the digit were right, or correct it?

# %%
from distill_helpers.evaluation import generate

few = three_sums.test_problems()[:40]
texts = generate(
    reader,
    tokenizer,
    three_sums.prompts(few),
    max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
)
slips = [
    (problem, text)
    for problem, text in zip(few, texts, strict=True)
    if not three_sums.is_right(problem, text)
]
problem, text = slips[0]
print(f"asked    {problem.prompt}\nright    {problem.answer}\nwritten  {text}")

# %%
from distill_helpers.losses import token_divergence


def judge(problem, text):
    """Teacher's and student's logits where each written token is due."""
    both = tokenizer(problem.prompt + text, return_tensors="pt")["input_ids"]
    place = len(problem.prompt) - 1
    with torch.no_grad():
        return [
            model(input_ids=both).logits[0, place:-1]
            for model in (teacher.model, reader)
        ]


# %%
theirs, ours = judge(problem, text)
written = tokenizer(text, return_tensors="pt")["input_ids"][0]
p = theirs.softmax(-1)
sure = p.gather(-1, written[:, None])[:, 0]
best = tokenizer.convert_ids_to_tokens(theirs.argmax(-1))
print("written   ", " ".join(text))
print("teacher's ", " ".join(token.replace("<end>", "·") for token in best))

# %%
kl = token_divergence(ours, theirs)
fig, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True)
axes[0].bar(range(len(text)), sure, color=TEACHER)
axes[0].set_ylabel("teacher's p")
axes[0].set_title("How likely the teacher finds what the student wrote")
axes[1].bar(range(len(text)), kl, color=STUDENT)
axes[1].set_ylabel("nats")
axes[1].set_title("How far the two are apart before each token: KL")
axes[1].set_xticks(range(len(text)), list(text))
axes[1].set_xlabel("token written by the student")
plt.show()

# %% [markdown]
# Where the upper bar is missing, the teacher would hardly have written that token.
# Behind a slip it does not correct what stands there: it has learned to continue
# texts, so it adds and copies from what it reads, wrong digits included. That is
# what an on-policy teacher has to offer: not the right answer, but what *it* would
# do in the student's place.
#
# ## Exposure bias, measured
#
# One text is an anecdote. Let both models answer 300 problems, sampling at
# temperature 1, and take the same KL at every place of every text: once behind what
# the student wrote, once behind what the teacher wrote. **Predict:** which curve is
# higher, and at the first token?

# %%
asked = profile.pick(smoke=8, cpu=300, gpu=300)
before = study.exposure(reader, asked)


def draw_exposure(ax, found, title):
    places = range(1, len(found.counts) + 1)
    ax.plot(places, found.student_prefix, "o-", ms=3, color=STUDENT)
    ax.plot(places, found.teacher_prefix, "s--", ms=3, color=TEACHER)
    ax.set_title(title)
    ax.set_xlabel("token of the answer")


# %%
fig, ax = plt.subplots(figsize=(6.5, 3))
draw_exposure(ax, before, "The student, beside its teacher")
ax.set_ylabel("KL(teacher ‖ student), nats")
ax.legend(["behind the student's words", "behind the teacher's words"])
plt.show()
print(f"excess: {before.excess:.4f} nats per token")

# %% [markdown]
# At the first token both have read the prompt and nothing else, so the two agree.
# From then on, the distance between the curves is what the student suffers behind
# its own words only. Its mean is the **excess**, the lesson's measure of exposure
# bias.
#
# Why compare *distributions*, when the teacher could simply say how likely it finds
# the student's text? Watch a real teacher, SmolLM2, read three texts:

# %%
from distill_helpers.models import load_teacher

real = load_teacher(profile)
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
# The loop wins: once it has turned twice, nothing in it is surprising. A student
# that was rewarded for *likely* text alone would learn to say the same thing for
# ever. So `measure_exposure` also reports two warning signs: how often a run of four
# tokens returns in the same text, and how uncertain the teacher is behind the
# student's words. A student that has shrunk to few, easy words shows in both.

# %%
print(
    f"runs that return: student {before.student_repetition:.2%}, "
    f"teacher {before.teacher_repetition:.2%}"
)
print(
    f"teacher's entropy: behind the student {before.student_entropy:.3f}, "
    f"behind itself {before.teacher_entropy:.3f} nats"
)

# %% [markdown]
# ## Cover every mode, or seek one
#
# A student that writes is judged on what it says, not on what it might have said.
# That is the job of *reverse* KL (lesson 01), which weighs by the student's
# probabilities. What each divergence makes of a teacher that a student cannot match
# shows best where both fit into a picture: a teacher with two hills, and a student
# that has only one.

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
    ax.fill_between(grid, two_hills[0].softmax(-1), color=TEACHER, alpha=0.3)
    ax.plot(grid, fits[beta], color=STUDENT, lw=2)
    ends = {0.0: "forward KL", 1.0: "reverse KL"}
    ax.set_title(ends.get(beta, f"JSD, β = {beta:g}"))
    ax.set_ylim(0, 0.1)
    ax.set_yticks([])
    ax.set_xlabel("teacher (area), student (line)")


# %%
from distill_helpers.widgets import explore

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
# Forward KL **covers** both modes and puts most of the student where the teacher has
# nothing: as text, sentences that nobody would write. Reverse KL **seeks** one mode
# and is right about that one; it pays nothing for what it never says. The JSD lies
# between, and somewhere on the way β turns it from one to the other. (Here every hill
# was tried. In training, reverse KL looks only where the student already is: started
# on the smaller hill, it would stay there.)
#
# ## One on-policy step by hand
#
# Four moves: the student writes; the teacher reads along; the divergence is taken at
# every written token, never at the prompt; the gradient flows through the student's
# logits, and not through the *drawing* of tokens, which has none.

# %%
from distill_helpers.data import collator_for
from distill_helpers.generation import write_batch
from distill_helpers.on_policy import join_row

prompts = tokenizer(three_sums.prompts(few), add_special_tokens=False)
prompts = prompts["input_ids"]
answers = write_batch(
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
print(f"reverse KL: {per_token.mean():.4f} nats per token")

# %% [markdown]
# There is a second way to that number. Reverse KL is a mean over tokens that the
# *student* draws, of $\log p_S - \log p_T$. And those tokens have just been drawn!
# So the same mean over the written tokens alone, without a sum over the vocabulary,
# must come out near it:

# %%
tokens = batch["labels"][:, 1:][learned][:, None]
log_ratio = ours.log_softmax(-1) - theirs.log_softmax(-1)
drawn = log_ratio.gather(-1, tokens)[:, 0]
error = drawn.std() / len(drawn) ** 0.5
print(f"from the drawn tokens: {drawn.mean():.4f} ± {error:.4f}")
print(f"spread of one token: {drawn.std():.3f}, exact: {per_token.std():.3f}")

# %% [markdown]
# Right on average, and noisier. Where a teacher tells only the probability of the
# token it is shown, as some APIs do, this estimate is all there is; reinforcement
# learning uses it as a reward for each token (with its sign turned). With the
# teacher's weights at hand, the exact sum costs next to nothing.
#
# An honest gap: a token also changes what comes *after* it, and this loss does not
# credit it for that. The full gradient would, and is far noisier (Gu et al. 2023
# compute it, with several tricks against the noise). Agarwal et al. (2023) leave it
# out, and so do we.
#
# ## Marked work, live
#
# `OnPolicyTrainer` does the four moves at every step. Of the student's weights at
# that moment, that is: what it learns from changes as it learns. **Predict:** how
# much longer does a step take than one on finished rows with soft labels?

# %%
from distill_helpers.studies import load_results

results = load_results(study.STUDY.name)
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
    print(f"{arm:22}{scores[arm]:6.1f} % right, {run.seconds:.0f} s")
display(
    results.check_live(
        "exact_match",
        study.REVERSE,
        study.SETTING,
        scores[study.REVERSE],
        judged=judged,
    )
)

# %% [markdown]
# Did it heal what it was meant to heal? The same curves as above, after the same
# number of steps:

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True)
for ax, (arm, run) in zip(axes, live.items(), strict=True):
    after = study.exposure(run.model, asked)
    draw_exposure(ax, after, f"{arm}: excess {after.excess:.4f}")
axes[0].set_ylabel("KL(teacher ‖ student)")
axes[1].legend(["behind the student's", "behind the teacher's"])
plt.show()

# %% [markdown]
# ## What five seeds say
#
# The study gives every student such a warm start and lets it go on in eight ways, at
# one learning rate. For as many steps:
#
# * *traces*: the teacher's greedy answers, as hard labels, for longer;
# * *soft labels*: the teacher's distributions on these answers;
# * *soft labels, new text*: on answers that the teacher samples anew each time. It
#   tells what is new from what is the student's *own*;
# * *own text*: with reverse KL, the JSD (β = ½) and forward KL; and *half own text*,
#   where a coin decides for each row whose text it is (λ = ½ in Agarwal et al.).
#
# And with more steps instead of writing, for as much *time* as own text takes: *soft
# labels, equal time*.

# %%
from distill_helpers.plots import compare_arms

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
# The intervals are wide, because the students begin so differently: chance decides
# how far a warm start of this length comes. Seed by seed the picture is clearer.
# To the right: where a student stood; upwards: where it went.

# %%
start = results.values("exact_match", study.WARM, study.SETTING)
fig, ax = plt.subplots(figsize=(6, 3.6))
for arm, marker in zip(
    (study.MORE, study.SOFT, study.FRESH, study.REVERSE), "osD^", strict=True
):
    after = results.values("exact_match", arm, study.SETTING)
    ax.plot(start, after, marker, label=arm)
ax.plot([0, 80], [0, 80], color="0.4", linestyle="--")
ax.set_xlabel("warm start: exact match (percent)")
ax.set_ylabel("after 400 more steps")
ax.set_title("One column for each seed; dashed: no gain")
ax.legend(loc="lower right")
plt.show()

# %%
columns = ("exact_match", "excess_kl", "repetition", "training_seconds")
print(results.table(columns, study.SETTING, digits=3))

# %%
for claim in results.study.claims:
    display(results.verdict(claim.name, judged=judged))

# %% [markdown]
# TEXT AFTER RESULTS
#
# ## What writing costs
#
# Writing is slow for a reason: a text is read in one pass, but written in one pass
# *per token*. The student is small here and its answers are short; with large models
# and long texts, writing takes most of a step. So equal steps flatter on-policy
# training, and equal time is the fair comparison for a fixed budget.

# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
for arm, marker in zip(study.ARMS[1:], "osD^vPX*p", strict=True):
    time = results.mean("training_seconds", arm, study.SETTING).mean
    right = results.mean("exact_match", arm, study.SETTING)
    low, high = right.mean - right.low, right.high - right.mean
    ax.errorbar(time, right.mean, [[low], [high]], fmt=marker, label=arm)
ax.set_xlabel("seconds of training, one core")
ax.set_ylabel("exact match (percent)")
ax.set_title("What a second buys")
ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
plt.show()

# %% [markdown]
# ## A real student writes
#
# The same trainer on the pair of lesson 02: SmolLM2, and its copy without ten of its
# thirty layers, after a short repair with soft labels. On-policy training is for
# students that can already write a little: from a student that writes noise, the
# teacher's marks on noise are all there is to learn from. The prompts are beginnings
# of paragraphs in Austen's novels; no answers needed.

# %%
from distill_helpers.studies import real_pair

pair = real_pair.load_pair(profile, profile.pick(smoke=2, cpu=24, gpu=24))
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
print(repaired)

# %% [markdown]
# A plan, first. The student writes before anything is kept for the backward pass, so
# the peak of memory is that of soft labels on texts of this length; so is the time,
# to which the writing is added.

# %%
from distill_helpers.planning import plan

words = profile.pick(smoke=4, cpu=32, gpu=64)
steps = profile.pick(smoke=1, cpu=12, gpu=200)
batch_size = profile.pick(smoke=2, cpu=8, gpu=16)
forecast = plan(
    (pair.teacher.model, student),
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
from distill_helpers.on_policy import OnPolicyTrainer, measure_exposure
from distill_helpers.trainers import training_arguments

trainer = OnPolicyTrainer(
    student,
    teacher=pair.teacher.model,
    max_new_tokens=words,
    divergence="reverse_kl",
    tokenizer=pair.teacher.tokenizer,
    train_dataset=shown,
    args=training_arguments(
        profile,
        steps=steps,
        learning_rate=profile.pick(smoke=1e-4, cpu=1e-4, gpu=2e-5),
        batch_size=batch_size,
        logging_steps=profile.pick(smoke=1, cpu=3, gpu=20),
        seed=0,
    ),
)


# %%
def look():
    """Exposure bias on the sixth novel's beginnings."""
    found = measure_exposure(
        student,
        pair.teacher.model,
        pair.teacher.tokenizer,
        heard,
        max_new_tokens=words,
    )
    own = sum(found.student_prefix) / len(found.student_prefix)
    print(
        f"KL behind its own words {own:.2f}, excess {found.excess:+.2f}, "
        f"runs that return {found.student_repetition:.0%} "
        f"(teacher {found.teacher_repetition:.0%})"
    )


look()
trainer.train()
look()

# %% [markdown]
# What did the steps spend their time on? The trainer logs it.

# %%
logs = [entry for entry in trainer.state.log_history if "ended" in entry]
writing = sum(entry["writing_seconds"] for entry in logs)
whole = trainer.state.log_history[-1]["train_runtime"]
print(f"{writing:.1f} s of {whole:.1f} s went into writing")
print("reverse KL:", [round(entry["loss"], 2) for entry in logs])

# %% [markdown]
# And what it writes now, to a beginning that it has not seen:

# %%
prompt = heard[0]
for name, model in (("student", student), ("teacher", pair.teacher.model)):
    [answer] = write_batch(
        model,
        pair.teacher.tokenizer,
        [prompt],
        max_new_tokens=words,
        temperature=1.0,
        seeds=[0],
    )
    print(f"{name}: …{pair.teacher.tokenizer.decode(answer.ids)}\n")

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
#   report less exposure bias, the excess growing far slower with the text's length.
# * The Qwen3 report (2025) says that its small models are trained by off-policy, then
#   on-policy distillation, and compares the latter with reinforcement learning on one
#   of them: better, for about a tenth of the GPU hours.
#
# Long texts, hard tasks, students that had learned all that fixed text could teach
# them. Ours are short sums. Where texts are long, slips have room to add up.

# %% [markdown] tags=["given"]
# ## Exercise 1 · What the drawn tokens say
#
# *easy · with the sign turned, the student runs away from its teacher · 5 minutes*
#
# Write `drawn_reverse_kl(student_logits, teacher_logits, drawn)` for logits `[rows,
# vocabulary]` and the token ids `[rows]` that the *student* drew: the estimate of
# KL(p_S ‖ p_T) from these tokens alone, mean over the rows.
#
# By hand: two rows, in both the student says `(½, ½)` and the teacher `(¾, ¼)`; drawn
# are 0 and 1. The first gives ln ⅔, the second ln 2; their mean is ½ ln 4⁄3.


# %% tags=["exercise"]
from distill_helpers import checks


def drawn_reverse_kl(student_logits, teacher_logits, drawn):
    return None  # your code here


checks.drawn_reverse_kl(drawn_reverse_kl)

# %% [markdown] tags=["hint"]
# `log_softmax` of both, and `gather(-1, drawn[:, None])` picks a token of each row. No
# sum over the vocabulary, and no weights: the drawing has done the weighting.


# %% tags=["solution"]
from distill_helpers import checks


def drawn_reverse_kl(student_logits, teacher_logits, drawn):
    log_q = student_logits.log_softmax(-1)
    log_p = teacher_logits.log_softmax(-1)
    return (log_q - log_p).gather(-1, drawn[:, None]).mean()


checks.drawn_reverse_kl(drawn_reverse_kl)

# %% [markdown]
# ## Exercise 2 · Between the two
#
# *medium · with β turned round, "forward" is reverse: it has happened in a library · 10
# minutes*
#
# Write `generalised_jsd(student_logits, teacher_logits, beta)` for logits `[rows,
# vocabulary]`: with $m = (1 - \beta)\, p_S + \beta\, p_T$, the mean over the rows of
# $\beta\, KL(p_T ‖ m) + (1 - \beta)\, KL(p_S ‖ m)$, for β strictly between 0 and 1.
#
# By hand: one row, the teacher says `(½, ½)`, the student `(1, 0)` (nearly), β = ½.
# Then m is `(¾, ¼)`, the teacher's part ½ ln 4⁄3, the student's ln 4⁄3; half of each
# makes ¾ ln 4⁄3.


# %% tags=["exercise"]
def generalised_jsd(student_logits, teacher_logits, beta):
    return None  # your code here


checks.generalised_jsd(generalised_jsd)

# %% [markdown] tags=["hint"]
# `softmax` both, mix, and take three logarithms. A probability can underflow to zero,
# and then its logarithm is −∞: `log_softmax` for the two, and
# `torch.logaddexp(log_q + log(1 - beta), log_p + log(beta))` for the mixture, are
# safe.

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
# for each place of the text: mean KL behind the student's words, behind the teacher's,
# and how many texts reach that place. Return the mean difference, each place weighted
# by its count, from the **second** place on: the first follows the prompt, in both.
#
# By hand: `[0.1, 0.4, 0.6]`, `[0.1, 0.2, 0.2]` and counts `[9, 6, 2]` give
# (6 · 0.2 + 2 · 0.4) / 8 = 0.25.


# %% tags=["exercise"]
def excess_kl(student_prefix, teacher_prefix, counts):
    return None  # your code here


checks.excess_kl(excess_kl)

# %% [markdown] tags=["hint"]
# `zip` the three lists and leave the first triple out. Divide by the sum of the
# counts that are left.


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
# | what is exposure bias? | a model that has only read texts without slips does worse behind its own |
# | how is it measured? | KL to the teacher behind the student's words, less that behind the teacher's |
# | why not by the likelihood of its text? | loops are likely |
# | what is on-policy distillation? | the student writes, the teacher gives its distribution at each written token |
# | which divergence? | reverse KL seeks one mode, forward KL covers all, the JSD lies between |
# | what does it cost? | writing, one pass per token, at every step |
#
# **When would you not distil on-policy?**
#
# * The student cannot write yet: begin with the teacher's texts.
# * You have no more than the teacher's text, or its top few logprobs.
# * Soft labels on fixed text still help: they are cheaper, and they are stored once.
#
# *Read on:* Agarwal et al. 2023 (arXiv:2306.13649); Gu et al. 2023 (arXiv:2306.08543);
# Ko et al. 2024 (arXiv:2402.03898), on stored student text; the Qwen3 report
# (arXiv:2505.09388).
