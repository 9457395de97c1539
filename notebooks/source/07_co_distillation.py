# %%
import matplotlib.pyplot as plt
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

# %% [markdown]
# ## Two beginners
#
# So far the teacher was finished before the student began. A family of models is
# sometimes trained differently: the large and the small one learn **at the same
# time**, on the same batches. The large one learns from the text. The small one
# learns from the text *and* from what the large one says at that moment. One
# forward pass of the large model then serves two purposes: its own training and
# the student's soft labels. That is **co-distillation**.
#
# There is a catch, and it is the theme of this lesson: at first, the teacher
# knows nothing. Both models below start from scratch on Jane Austen.

# %%
from distill_helpers.studies import codistillation as study
from distill_helpers.studies import soft_labels

pair = soft_labels.load_pair(
    **profile.pick(
        smoke={"validation_rows": 4, "test_rows": 8}, cpu={}, gpu={}
    )
)
steps = profile.pick(smoke=2, cpu=study.STEPS, gpu=study.STEPS)
task = study.prose_task(pair, study.MANY, seed=2, steps=steps)

# %%
from distill_helpers.models import parameter_count

teacher, student = task.teacher(seed=2), task.student(seed=2)
for name, model in (("teacher", teacher), ("student", student)):
    print(f"{name}: {parameter_count(model) / 1e6:.2f} million parameters")

# %% [markdown]
# **Predict:** how sure of the next token is the teacher before its first step? Its
# entropy tells, and the logarithm of the vocabulary's size is the most it can be.

# %%
import math

import torch

row = torch.tensor([task.rows[0]["input_ids"]])
with torch.no_grad():
    log_p = teacher(input_ids=row).logits.log_softmax(-1)
entropy = -(log_p.exp() * log_p).sum(-1).mean()
print(f"{entropy:.2f} nats; the most is {math.log(log_p.shape[-1]):.2f}")

# %% [markdown]
# Close to the most there is. The little that is missing comes from chance, not from
# knowledge: random weights favour random tokens. A student that follows it learns these
# accidents.
#
# ## One step by hand
#
# Two losses, one backward pass. The teacher's logits are *detached* before the
# student sees them: the student's loss must not move the teacher, which would
# otherwise learn to be easy to imitate.

# %%
from distill_helpers import hard_label_loss, soft_label_loss

their = teacher(input_ids=row).logits
ours = student(input_ids=row).logits
teacher_loss = hard_label_loss(their, row)
student_loss = soft_label_loss(ours, their.detach(), row, alpha=0.5)
(teacher_loss + student_loss.loss).backward()
print(f"teacher {teacher_loss:.3f}, student {student_loss.loss:.3f} nats")

# %% [markdown]
# The sum is only there to call `backward` once. **Predict:** does the student's
# presence change the teacher's gradient, and so its training? And what if we forget
# `detach`? (`soft_label_loss` detaches by itself, so we write the soft term out.)

# %%
teacher.zero_grad()
hard_label_loss(teacher(input_ids=row).logits, row).backward()
alone = [p.grad.clone() for p in teacher.parameters()]


def soft_term(their):
    log_p = their[:, :-1].log_softmax(-1)
    log_q = student(input_ids=row).logits[:, :-1].log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


# %%
for name, change in (("detached", torch.detach), ("forgotten", torch.clone)):
    teacher.zero_grad()
    their = teacher(input_ids=row).logits
    (hard_label_loss(their, row) + soft_term(change(their))).backward()
    now = [p.grad for p in teacher.parameters()]
    same = all(map(torch.allclose, now, alone))
    print(
        f"{name}: the teacher's gradients are those of training alone: {same}"
    )

# %% [markdown]
# Detached, nothing flows back. In this *one-way* form the teacher's curve is that of
# a teacher trained alone; a test of the package checks its weights and losses,
# clipping and optimizer included. All that is at stake is the student.
#
# ## How much should a beginner be believed?
#
# The student's loss mixes the labels and the teacher's distribution (lesson 02),
# with the weight α on the teacher. A `MixSchedule` lets α change over the run:
#
# * *soft from the start*: α = 1, the teacher's word alone;
# * *mix from the start*: α = ½ throughout;
# * *ramp*: labels alone for a quarter of the steps; over the next half α rises
#   beyond the equal mix, and stays there.

# %%
from distill_helpers import MixSchedule

schedules = [study.SOFT, study.MIX, study.RAMP]
progress = [step / 100 for step in range(101)]
fig, ax = plt.subplots(figsize=(6, 2.4))
for name, dash in zip(schedules, ["-", "--", "-."], strict=True):
    weights = [study.SCHEDULES[name].weight(p) for p in progress]
    ax.plot(progress, weights, dash, label=name)
ax.set_xlabel("share of the steps")
ax.set_ylabel("weight α")
ax.set_title("Three ways to believe a beginner")
ax.legend(loc="center right", bbox_to_anchor=(1.55, 0.5))
plt.show()

# %% [markdown]
# A fourth way is to look at the teacher instead of the clock. With
# `confidence=True`, α is multiplied by $1 - \text{loss} / \ln(\text{vocabulary})$:
# how far the teacher's own loss has come down from that of knowing nothing. The weight
# never falls below zero, and the given `alpha` is a ceiling then. (`partner_nll` is the
# teacher's running loss.)

# %%
trusting = MixSchedule(alpha=0.7, confidence=True)
for nll in (7.6, 6.0, 4.5, 3.5):
    weight = trusting.weight(0.5, partner_nll=nll, vocabulary=2048)
    print(f"a teacher at {nll} nats per token is believed by {weight:.2f}")

# %% [markdown]
# ## Three runs, live
#
# The same seed, rows, order and learning rate (the one that a study, whose results
# come below, chose for the ramp); only α differs. **Predict:** which student ends
# best? And how does the teacher's curve change from run to run?

# %%
from distill_helpers.studies import load_results

results = load_results(study.STUDY.name)
cell = dict(results.options(study.RAMP, study.MANY))
grown = {name: study.grow(task, name, seed=2, **cell) for name in schedules}

# %% [markdown]
# The slider moves between the runs (a page without Python shows all three). Both curves
# are cross-entropies with the training text, also where the student learns from the
# teacher alone; the grey area is α, with its own scale on the right. (The study calls a
# teacher or a peer *partner*, and so does the log.)

# %%
from distill_helpers.course.plots import STUDENT, TEACHER
from distill_helpers.course.widgets import explore

logs = {
    name: [entry for entry in run.log if "student_hard" in entry]
    for name, run in grown.items()
}
heights = [entry["student_hard"] for log in logs.values() for entry in log]


# %%


def draw_run(ax, number):
    name = schedules[int(number)]
    log = logs[name]
    at = [entry["step"] for entry in log]
    for who, dash in (("partner", "--"), ("student", "-")):
        color = STUDENT if who == "student" else TEACHER
        label = who if who == "student" else "teacher"
        height = [entry[f"{who}_hard"] for entry in log]
        ax.plot(at, height, dash, color=color, label=label)
    weight = ax.twinx()
    weight.fill_between(
        at, [entry["student_alpha"] for entry in log], color="0.5", alpha=0.2
    )
    weight.set_ylim(0, 4)
    weight.set_yticks([0, 1])
    weight.tick_params(length=0)  # a tick before a 1 looks like a minus
    weight.set_ylabel("α", loc="bottom")
    weight.grid(visible=False)
    ax.set_ylim(min(heights) - 0.6, max(heights) + 0.4)
    ax.set_xlabel("step")
    ax.set_ylabel("nats per token")
    ax.set_title(name)
    ax.legend(loc="upper right")


# %%
explore(
    draw_run,
    name="schedule: 0 soft, 1 mix, 2 ramp",
    values=[0, 1, 2],
    start=0,
    still=[0, 1, 2],
    alt="Losses of teacher and student over the steps of three runs, with "
    "the weight of the soft labels. The teacher's curve is always the same; "
    "the student falls later the more it has to believe early.",
    size=(5.2, 3.4),
)

# %% [markdown]
# The teacher's curve is the same in all three, as promised. A student that believes
# from the start learns late: what it imitates at first is noise, and then a teacher
# that has just begun. With the ramp it is on its own while its teacher is worth
# little.
#
# And how far ahead is the teacher? The **gap** is the student's loss minus the
# teacher's:

# %%
log = logs[study.RAMP]
gap = [entry["student_hard"] - entry["partner_hard"] for entry in log]
fig, ax = plt.subplots(figsize=(6, 2.4))
ax.plot([entry["step"] for entry in log], gap, "o-")
ax.axhline(0, color="0.4", linestyle="--")
ax.set_xlabel("step")
ax.set_ylabel("student − teacher (nats)")
ax.set_title("The gap, with a ramp")
plt.show()

# %% [markdown]
# Above zero the teacher is ahead. That alone does not say what its word is worth: the
# gap is widest early, when both still know little and the ramp has hardly begun.
# Later the lead is small, in so short a run: the wide model has only begun to use its
# size. And a teacher that is not ahead can still help, since a distribution is less
# noisy than one token. Remember this picture when you read what the study found.
#
# One check: the live run with the ramp against what the study predicts for one more
# seed. The sixth novel, which nobody here has read, judges.

# %%
from distill_helpers import evaluate

score = evaluate(grown[study.RAMP].student, pair.test, pair.tokenizer).nll
live = results.check_live("nll", study.RAMP, study.MANY, score, judged=judged)
display(live)

# %% [markdown]
# ## Where does it pay?
#
# The study compares, at equal steps of the student:
#
# * *alone*: labels, no partner; *two averaged*: two of these, whose probabilities
#   are averaged (so answering costs twice as much);
# * the three schedules from above; and a *head start*: an equal mix, but the teacher
#   has first trained alone for half as many steps as the student will take;
# * *two peers*: two students of one size teach each other, with a ramp up to an
#   equal mix (mutual learning, Zhang et al. 2018);
# * *teacher first*: the teacher is trained first, for as many steps as the student, who
#   then learns from it alone (lesson 02).
#
# **Predict** the order, with 3,000 rows to learn from. In the figure, dots are
# means, lines their intervals over five seeds; blue are those who learn from
# somebody's soft labels.

# %%
from distill_helpers.course.plots import compare_arms

fig, ax = plt.subplots(figsize=(7, 3.6))
partnered = [arm for arm in study.ARMS if arm not in (study.ALONE, study.TWO)]
compare_arms(ax, results, "nll", study.MANY, soft=partnered)
ax.set_xlabel("held-out loss, nats per token (left is better)")
ax.set_title("3,000 rows, equal steps of the student; five seeds")
plt.show()

# %%
print(results.table(("nll", "tflops"), study.MANY))
for claim in ("noisy_start", "ramp_helps", "head_start_helps"):
    display(results.verdict(claim, judged=judged))

# %% [markdown]
# `tflops` counts what the whole arm cost, teacher included, in units of $10^{12}$
# operations. (GFLOPs, below, are $10^9$; nothing here is per second.) The second
# verdict compares two schedules, not ramps in general. The third has the equal mix
# from the start as its baseline, too; and a head start is also more training for the
# teacher.
#
# Would a teacher that was *finished* have been better than one followed with a ramp?
# (Finished means: after as many steps as the student takes, on the same rows. The
# teacher of lesson 02 had read all the training text, for far longer; so do not
# expect the gain that you saw there.)

# %%
display(results.verdict("after_is_better", judged=judged))

# %% [markdown]
# ### The same with less text
#
# With 800 rows, every row is read six times. **Predict:** does that make the
# partner more useful, or less?

# %%
fig, ax = plt.subplots(figsize=(7, 2.6))
compare_arms(ax, results, "nll", study.FEW, soft=partnered)
ax.set_xlabel("held-out loss, nats per token (left is better)")
ax.set_title("800 rows, equal steps of the student; five seeds")
plt.show()
for claim in ("pays_few", "pays_many", "peers_pay"):
    display(results.verdict(claim, judged=judged))

# %% [markdown]
# Compare the first two verdicts. In both, "co-distilled" is the ramp; in the figure,
# an equal mix from the start is not ahead of *alone*. (Only these five arms were run
# with 800 rows.)
#
# **Do not build on the two that hold with 800 rows.** The learning rates that every arm
# could try ended below the one that a lone student does best with. Another study of
# this course shows it, and the claims are asked again on fresh seeds. *What we got
# wrong*, in the documentation, tells the story.
#
# Was the teacher that helped any better than its student?

# %%
helper = results.mean("partner_nll", study.RAMP, study.FEW)
loner = results.mean("nll", study.ALONE, study.FEW)
print(f"its teacher {helper.mean:.3f}, a student alone {loner.mean:.3f}")

# %% [markdown]
# It was hardly better than a student alone. So it can hardly have helped by being
# ahead. One reason is from above: a distribution is less noisy than one token. Another
# is plausible: a student that reads its few rows many times learns them by heart, and a
# partner that errs in other places does not repeat those rows word for word; that would
# be why a peer of its own size serves as well. We did not measure either. But two
# amounts of text, and not the same answer: that is how such a technique should be
# reported.
#
# ## The bill
#
# Equal steps hide a cost: beside every student a larger model was trained. What if
# the student alone may spend **the same number of operations**? A teacher that
# comes first pays one thing more, the forward pass that labels the student's
# batches; in co-distillation that pass is part of the teacher's training. (For
# *teacher first* the steps below are taken twice: by the teacher, then by the
# student.)

# %%
cost = study.count_cost(task)
budget = cost.of(study.RAMP, study.STEPS, 0)
print(f"one step of the student {1e3 * cost.student:.2f} GFLOPs,")
print(f"of the teacher {1e3 * cost.teacher:.2f}, its labels alone ", end="")
print(f"{1e3 * cost.labelling:.2f}")
for arm in (study.ALONE, study.TWO, study.AFTER):
    print(f"{arm:14} {cost.steps(arm, budget):5} steps for the same bill")

# %% [markdown]
# **Predict:** which is better, the pair's student, or the student alone with so many
# more steps? (It reads the same 3,000 rows again and again.)

# %%
print(results.table(("nll", "steps", "tflops"), study.EQUAL), end="\n\n")
pair_nll = results.mean("nll", study.RAMP, study.MANY)
print(
    f"co-distilled, with a ramp: {pair_nll.mean:.3f} for the same operations"
)
display(results.verdict("equal_flops", judged=judged))

# %% [markdown]
# This is the honest baseline. If it wins, then whoever wants *only the student* should
# train the student. So when is co-distillation for you?
#
# * **You train the large model anyway.** Then its operations are paid for, and its
#   soft labels are free while it trains; afterwards they cost a forward pass over
#   all the text, once if a cache keeps them (lesson 04). That is the situation of
#   those who train families of models.
# * **Time on the clock is what limits you**, and there are machines for both: teacher
#   and student train side by side.
#
# Otherwise train the teacher first, if you can pay for all its steps: at equal steps
# its student is ahead of the pair's. For the *same operations* it is not; look at the
# last row of the table. The labelling pass is paid for in steps, of the teacher and
# of the student. (No claim was declared for that row.) With 800 rows we did not test
# equal operations.
#
# ## Another task
#
# Does the answer depend on the task? The shared one is sums of three numbers, with
# the steps written out (lesson 06). Teacher (4 layers, 128 wide) and student (2
# layers, 96 wide) start from scratch on the same 2,000 worked sums. The co-distilled
# student has an equal mix from the start, which was ahead of the ramp on the
# exploring seed.
#
# **Predict:** who learns to add? And what does the student make of the pair's bill,
# if it may spend it alone?

# %%
from distill_helpers.course.plots import seeds_by_setting

sums = load_results("codistilled_sums")
fig, ax = plt.subplots(figsize=(7, 3.2))
seeds_by_setting(ax, sums, "exact_match")
ax.set_xlabel("worked sums to learn from")
ax.set_ylabel("exact match (percent)")
ax.set_title("Students of five seeds, one point each")
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %%
for setting in sums.study.settings:
    print(setting)
    columns = ("exact_match", "steps", "tflops")
    print(sums.table(columns, setting, digits=1), end="\n\n")
for claim in ("sums_pay", "sums_peers", "sums_after", "sums_flops"):
    display(sums.verdict(claim, judged=judged))

# %% [markdown]
# At equal steps, nothing is decided. Carrying is learned all of a sudden, early by one
# seed and late by another, and beside that the partner's help, if there is any, does
# not show. On the exploring seed the co-distilled student had been ahead. Fresh seeds
# did not repeat it: that is what they are for.
#
# The bill looks clearer. The student that spends all of it alone is the one that
# learns to add with every seed. Still, one of the co-distilled students learns so
# little that five seeds cannot settle it, with four claims judged together. On prose,
# where seeds agree, the same question was settled: if only the student matters, train
# the student.
#
# ## Peers, ensembles, and churn
#
# Peers need no teacher at all: two students, different weights at the start, each
# learning from labels and from the other. Equal weights would be useless: both would
# see the same batches, stay identical, and teach each other nothing. The trainer
# refuses them:

# %%
from distill_helpers import CoDistillationTrainer, training_arguments

arguments = training_arguments(
    get_profile("cpu"), steps=1, learning_rate=1e-3, batch_size=4
)
twins = {"one": task.student(seed=0), "two": task.student(seed=0)}
try:
    CoDistillationTrainer(
        twins,
        args=arguments,
        train_dataset=task.rows,
        tokenizer=pair.tokenizer,
    )
except ValueError as error:
    print(error)

# %% [markdown]
# Two runs of two peers, and two of a student alone, with seeds 2 and 3, half as long
# as above. `compare` measures partners one by one, against each other, and averaged:

# %%
from distill_helpers.evaluation import compare

cell = dict(results.options(study.PEERS, study.MANY))
cell["steps"] = max(1, steps // 2)
peers, alone = {}, {}
for seed in (2, 3):
    peers[seed] = study.grow(task, study.PEERS, seed=seed, **cell)
    alone[seed] = study.grow(task, study.ALONE, seed=seed, **cell).student

# %%
models = {"one": peers[2].student, "other": peers[2].partner}
two = compare(models, pair.test, pair.tokenizer)
strangers = compare(
    {"one": alone[2], "other": alone[3]}, pair.test, pair.tokenizer
)
for name, found in (("peers", two), ("strangers", strangers)):
    mean = sum(found.nll.values()) / 2
    print(
        f"{name:10} each {mean:.3f}, averaged {found.ensemble_nll:.3f} nats; "
        f"same likeliest token at {found.agreement:.0%} of positions"
    )

# %% [markdown]
# *Peers* have learned from each other, *strangers* have never met. Averaging helps
# most where models differ: compare the two gains with the two agreements.
#
# **Churn** is how many predictions change when a model is trained again with
# another seed. Users notice it; each new version errs in new places.

# %%
from distill_helpers.evaluation import churn

first = churn(alone[2], alone[3], pair.test, pair.tokenizer)
second = churn(peers[2].student, peers[3].student, pair.test, pair.tokenizer)
print(f"two runs alone:    {first:.1%} of likeliest tokens differ")
print(f"two runs of peers: {second:.1%}")

# %% [markdown]
# One pair of runs each: a look, not a result. Anil et al. (2018) report that
# codistilled models agree more from run to run.
#
# ## A pair of your own
#
# The trainer takes named models of one vocabulary. Each has its own clipping and its
# own optimizer state; with an `output_dir`, every checkpoint holds each of them in a
# folder of its name, which `from_pretrained` reads. With a
# GPU, the pair below is larger and reads *TinyStories* as it streams in from
# the hub; elsewhere it is the pair from above for a few steps.

# %%
from distill_helpers import build_student
from distill_helpers.data import stream_rows

stories = profile.pick(smoke=None, cpu=None, gpu="roneneldan/TinyStories")
text = task.rows
if stories is not None:
    count = profile.pick(smoke=160, cpu=160, gpu=40_000)
    text = stream_rows(stories, pair.tokenizer, length=256, count=count)
rows = text.select(range(len(text) - 80))
held_out = text.select(range(len(text) - 80, len(text)))

# %%
sizes = profile.pick(
    smoke={"teacher": (2, 64), "student": (1, 32)},
    cpu={"teacher": (4, 192), "student": (2, 96)},
    gpu={"teacher": (8, 512), "student": (4, 256)},
)


def fresh_pair():
    return {
        name: build_student(
            pair.tokenizer, layers=layers, width=width, seed=seed
        ).to(profile.device)
        for seed, (name, (layers, width)) in enumerate(sizes.items())
    }


own = fresh_pair()

# %% [markdown]
# Two models in training, and two optimizer states: will it fit? You have met
# `plan`. It runs the real training step, with model, loss and optimizer, on *fake
# tensors*: they have shapes and dtypes, but no memory behind them. So everything
# that would be allocated can be added up, for models of any size.

# %%
from distill_helpers import plan

steps = profile.pick(smoke=2, cpu=20, gpu=3000)
batch_size = profile.pick(smoke=4, cpu=16, gpu=32)
forecast = plan(
    (own["teacher"], own["student"]),
    method="codistillation",
    batch_size=batch_size,
    length=len(rows[0]["input_ids"]),
    steps=steps,
)
print(forecast)

# %%
rate = profile.pick(smoke=4e-3, cpu=4e-3, gpu=1e-3)
own = fresh_pair()  # so that a second run of this cell begins anew
trainer = CoDistillationTrainer(
    own,
    teacher="teacher",
    schedule=MixSchedule(0.7, warm_up=0.25, ramp=0.5),
    tokenizer=pair.tokenizer,
    train_dataset=rows,
    args=training_arguments(
        profile, steps=steps, learning_rate=rate, batch_size=batch_size, seed=0
    ),
)
trainer.train()
found = compare(own, held_out, pair.tokenizer)
print({name: round(nll, 3) for name, nll in found.nll.items()})

# %% [markdown]
# `exchange_every=100` would let each learn from *copies* of its partners that are
# refreshed every hundred steps. That is how models on distant machines can teach each
# other: they exchange weights now and then instead of logits at every step (Anil
# et al. 2018). Here the copies lie in the same memory, so it rehearses the idea and
# saves nothing.
#
# ## Planning what does not fit
#
# The same question for models too large to try blindly: SmolLM2 with 360 million
# weights teaching the one with 135 million, both in training, on the GPU that Colab
# lends free of charge. (Where something does not fit, `plan` rehearses remedies, one
# after the other.)

# %%
sizes = profile.pick(
    smoke=(own["teacher"], own["student"]),
    cpu=("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-135M"),
    gpu=("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-135M"),
)
for method in ("codistillation", "soft"):
    forecast = plan(
        sizes, method=method, batch_size=4, length=512, device="T4"
    )
    print(forecast, end="\n\n")

# %% [markdown]
# Why does the first not fit, though its peak is below what the GPU has? `plan` wants a
# tenth of the memory to stay free: memory gets fragmented, and a forecast can be a
# little off.
#
# The parts are those at the highest point of the step; what does not exist at that
# moment is missing, as gradients are while the losses are computed. *Half-precision
# copies* are made by mixed precision, *context* is what CUDA takes for itself.
#
# In co-distillation the teacher needs what a student needs: gradients, two optimizer
# states, and activations that wait for the backward pass. A frozen teacher in half
# precision needs its weights, and next to nothing else. `distill plan` says the same
# on the command line.

# %% [markdown] tags=["published"]
# One trap on this GPU: a T4 has no *flash attention*, the way of computing attention
# that never stores all its scores. Where several heads share keys and values, as in
# most recent models, `transformers` then ends in torch's slowest routine, which keeps
# every score. The remedy is to copy the shared keys and values to each head first:
# somebody measured Qwen2.5-1.5B on a T4, and it wrote up to 1.8 times as fast
# (transformers' pull request 45776). `load_model` does that where it is needed, and
# `plan` counts it.
#
# ## What others found
#
# * Meta writes of Llama 4 Maverick that it was *codistilled* from a larger model,
#   Behemoth, while that one was still in training, with a loss that weighs soft and
#   hard targets dynamically (Llama 4 announcement, April 2025). No numbers were
#   published that would tell what it gained.
# * Anil et al. (2018) trained language models of one shape on different parts of the
#   data, let them predict for each other, and report that very large data sets were
#   fitted about twice as fast, and that predictions became more reproducible. Their
#   baseline is one model whose batch can grow no further: machines were plenty, and
#   more of them did not help any other way.
# * Zhang et al. (2018) found that small image classifiers that teach each other beat
#   the same ones alone. They also beat one that learns from a larger, finished teacher.
#
# Different questions, different bills. Ours counted operations.

# %% [markdown] tags=["given"]
# ## Exercise 1 · The weight of a beginner's word
#
# *easy · off by a warm-up, and the student starts on noise · 5 minutes*
#
# Write `mix_weight(progress, alpha, warm_up, ramp)`. `progress`, `warm_up` and `ramp`
# are shares of the run, `alpha` is the highest weight: zero before `warm_up`, then a
# straight line that reaches `alpha` a `ramp` later, then `alpha`. With `ramp=0` it
# jumps, and is `alpha` at `warm_up` itself.
#
# By hand: with `alpha=0.8, warm_up=0.2, ramp=0.4` the weight is 0 at 0.1, and 0.4
# at 0.4.

# %% tags=["exercise"]
from distill_helpers.course import checks


def mix_weight(progress, alpha, warm_up, ramp):
    return None  # your code here


checks.mix_weight(mix_weight)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Three cases. `min` takes care of the last one; a ramp of zero must not be divided
# by.

# %% [markdown] tags=["hint"] title="Only on the ramp is my weight wrong"
# Half-way up, as in the second example by hand, it should be half of `alpha`. If you
# get more, look at where you count from: the climb begins when the warm-up ends, and
# `ramp` is its length, not the place where it is over.

# %% tags=["solution"]
from distill_helpers.course import checks


def mix_weight(progress, alpha, warm_up, ramp):
    if progress < warm_up:
        return 0.0
    if ramp == 0:
        return alpha
    return alpha * min(1.0, (progress - warm_up) / ramp)


checks.mix_weight(mix_weight)

# %% [markdown]
# ## Exercise 2 · One loss for two
#
# *medium · one forgotten word, and the teacher learns to be easy · 10 minutes*
#
# Write `learn_together(teacher_logits, student_logits, labels, alpha)` for logits
# `[rows, vocabulary]` and labels `[rows]`, aligned: the teacher's cross-entropy, plus
# `1 - alpha` times the student's, plus `alpha` times KL(teacher ‖ student) at
# temperature 1. Means over the rows. The student's part must not move the teacher.
#
# By hand: teacher logits `(0, 0)`, student `(ln 3, 0)`, label 0, α = ½. The teacher's
# loss is ln 2, the student's ln 4⁄3, the divergence ½ ln 4⁄3; so ln 2 + ¾ ln 4⁄3.

# %% tags=["exercise"]
import torch.nn.functional as F


def learn_together(teacher_logits, student_logits, labels, alpha):
    return None  # your code here


checks.learn_together(learn_together)

# %% [markdown] tags=["hint"] title="I do not know how to write the divergence"
# `F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")` is KL(p ‖ q).
# `teacher_logits.detach()` belongs in the student's part, and only there.

# %% [markdown] tags=["hint"] title="The value is right, but a gradient is not"
# Take the gradient of the loss by the teacher's logits, with `alpha=0` and with
# `alpha=1`: the two must be equal. If they differ, the student's part pulls at the
# teacher. If there is none at all, you have detached too much: the teacher's own loss
# has to reach it.

# %% tags=["solution"]
import torch.nn.functional as F


def learn_together(teacher_logits, student_logits, labels, alpha):
    log_p = teacher_logits.detach().log_softmax(-1)
    log_q = student_logits.log_softmax(-1)
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    student = (1 - alpha) * F.nll_loss(log_q, labels) + alpha * soft
    return F.cross_entropy(teacher_logits, labels) + student


checks.learn_together(learn_together)

# %% [markdown]
# ## Exercise 3 · Two heads
#
# *easy · averaging the wrong thing · 5 minutes*
#
# Write `ensemble_nll(logits, labels)` for logits `[models, rows, vocabulary]` and
# labels `[rows]`: the mean negative log-likelihood, in nats, of the mean of the
# models' *probabilities*.
#
# By hand: two models say `(¾, ¼)` and `(¼, ¾)`, the label is 0. Together they say ½,
# so the loss is ln 2.


# %% tags=["exercise"]
def ensemble_nll(logits, labels):
    return None  # your code here


checks.ensemble_nll(ensemble_nll)

# %% [markdown] tags=["hint"] title="I do not know what comes first"
# Softmax, mean over the models, logarithm; then pick each row's label with
# `gather`, or let `F.nll_loss` do it. With `log_softmax` and `logsumexp` nothing
# underflows.

# %% [markdown] tags=["hint"] title="One model is right, but several are not"
# Ask the example by hand. A loss of 0: you added up the probabilities and never divided
# by the number of models. More than ln 2: you averaged the losses. If it gives ln 2 and
# the check still says no, you averaged the logits, and that is something else.


# %% tags=["solution"]
def ensemble_nll(logits, labels):
    together = logits.log_softmax(-1).logsumexp(0)
    return F.nll_loss(together - math.log(len(logits)), labels)


checks.ensemble_nll(ensemble_nll)

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what is co-distillation? | teacher and student learn from the same batches at the same time |
# | why does the student not follow at once? | a beginner's soft labels are noise |
# | what can be done? | a ramp, a head start for the teacher, or a weight that follows its loss (not tested here) |
# | does the teacher suffer? | not in the one-way form: its gradients are those of training alone |
# | which baseline is forgotten? | the student alone, for the operations of both |
#
# **When would you not co-distil?**
#
# * You want only the small model: spend the operations on it.
# * A finished teacher is there: learn from that.
# * The two do not share a vocabulary, or do not fit into memory together: ask `plan`
#   first.
#
# *Read on:* Zhang et al. 2018 (arXiv:1706.00384); Anil et al. 2018
# (arXiv:1804.03235); Busbridge et al. 2025 (arXiv:2502.08606) on when distilling
# pays at all.
