# %%
import copy

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from distill_helpers import get_profile
from distill_helpers.course.plots import use_style
from distill_helpers.machine import progress_bar

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
steps = profile.pick(smoke=2, cpu=120, gpu=120)
judged_rows = profile.pick(smoke=4, cpu=100, gpu=100)
draws = profile.pick(smoke=4, cpu=64, gpu=64)
real_steps = profile.pick(smoke=1, cpu=20, gpu=300)
real_rows = profile.pick(smoke=2, cpu=24, gpu=64)
answer_tokens = profile.pick(smoke=2, cpu=24, gpu=40)
# A whole student would forget at the rate that a cut one needs.
real_recipe = profile.pick(smoke={}, cpu={}, gpu={"learning_rate": 2e-5})

# %% [markdown]
# ## The idea
#
# At every position of a text, the student must predict the teacher's whole distribution,
# not one token.

# %%
from distill_helpers.course import diagrams

diagrams.soft_labels()

# %% [markdown]
# In this lesson you write that loss, put it into a loop, and train a student with both.
# Then you compare soft labels with the three kinds of label that they could replace: the
# text's own tokens, the teacher's favourite token, and a token drawn from the teacher.
#
# ## The loss by hand, on three tokens
#
# A vocabulary of three, one position. The text says token 0. The teacher is fairly sure
# of token 0 and keeps token 1 in mind. The student is not sure of anything yet.

# %% tags=["nbval-check-output"]
teacher_logits = torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)
student_logits = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
label = 0

print("teacher:", teacher_logits.softmax(-1))
print("student:", student_logits.softmax(-1))

# %% [markdown]
# The loss has two terms. The **text term** is the cross-entropy with the text's own
# token, as in any language model. The **soft term** is the forward KL of lesson 01 at
# temperature $T$, times the $T^2$ of that lesson. Lesson 00 had the cross-entropy with the teacher:
# it is larger by the teacher's entropy, and has the same gradient.
#
# $$\mathcal{L} = (1 - \alpha)\;\mathrm{CE}(q, \text{label})
#  \;+\; \alpha\; T^2\; \mathrm{KL}\big(p(T) \,\|\, q(T)\big)$$
#
# $\alpha$ says how much the soft term weighs: 0 is plain training, 1 listens to the
# teacher alone. The literature also calls the two terms *hard* and *soft*.

# %% tags=["nbval-check-output"]
T, alpha = 2.0, 0.5

text_term = -student_logits.log_softmax(-1)[label]

p = (teacher_logits / T).softmax(-1)
q = (student_logits / T).softmax(-1)
soft_term = T**2 * (p * (p.log() - q.log())).sum()

by_hand = (1 - alpha) * text_term + alpha * soft_term
print(f"text {text_term:.4f}   soft {soft_term:.4f}   loss {by_hand:.4f}")

# %% [markdown]
# PyTorch has a function for the KL, and a trap in it. `F.kl_div` wants
# *log*-probabilities first. Given probabilities it does not complain:

# %% tags=["nbval-check-output"]
print(f"log-probabilities: {F.kl_div(q.log(), p, reduction='sum'):.4f}")
print(f"probabilities:     {F.kl_div(q, p, reduction='sum'):.4f}")

# %% [markdown]
# A KL can never be negative, so the second line is wrong. As a loss, that line would be
# smallest if $q$ had everything on the teacher's favourite token: soft labels in name, hard
# labels in effect. The first line, times $T^2$, is the soft term above. Mind the divisor,
# too: the default `mean` also divides by the vocabulary, and `batchmean` only by the first
# dimension.
#
# ## The gradient is a difference
#
# What does the soft term tell the student to do? At $T = 1$ its gradient with respect
# to the student's logits is simply $q - p$: what the student says, minus what the
# teacher says.
#
# **Predict** the signs before you run: which logits go up?

# %% tags=["nbval-check-output"]
z = student_logits.clone().requires_grad_(True)
p = teacher_logits.softmax(-1)
(p * (p.log() - z.log_softmax(-1))).sum().backward()
print("gradient:       ", z.grad)
print("student−teacher:", z.softmax(-1).detach() - p)

# %% [markdown]
# An optimizer steps *against* the gradient. So the logit with the negative sign goes up,
# token 0, and the two others go down.
#
# A plain label gives the same formula with $p = (1, 0, 0)$. Repeated in the same context, it
# pushes token 1 down until nothing is left. The soft label stops at the teacher's share.
#
# ## Shift and mask
#
# Real batches add two complications, and many bugs start here:
#
# * the logits at position $t$ predict the token at $t + 1$: **shift**;
# * some positions do not count, such as padding and prompts. Their label is `-100`:
#   **mask**, for both terms.
#
# | tensor | shape | type |
# |---|---|---|
# | `student_logits`, `teacher_logits` | `[rows, positions, vocabulary]` | float; compute in float32 |
# | `labels` | `[rows, positions]` | int64, `-100` does not count |
# | the loss | a scalar | nats per position that counts |
#
# ## Exercise 1 · The loss
#
# *medium · the most important function of the course · 20 minutes*
#
# Write `my_loss(student_logits, teacher_logits, labels, temperature, alpha)` with
# forward KL and $T^2$. Shift the labels, drop the last logits of both, then pick the positions that
# count *before* any softmax, and divide by their number. Do not multiply masked positions by
# zero instead: one of them may hold `-inf`, and zero times infinity is `nan`.
#
# Return a scalar with a gradient for the student only. If no position counts, return a
# zero that can still call `backward()`.
#
# By hand: the three tokens from above give the loss that is printed there, with $T = 2$
# and $\alpha = ½$. Your function shifts, so give it a row of two positions: the logits at position 0, the label at
# position 1, and anything for the rest.
#
# If it is wrong, the check tries to name your mistake. As soon as it passes, the loop on
# this page trains with it.

# %% tags=["exercise"]
from distill_helpers.course import checks


def my_loss(student_logits, teacher_logits, labels, temperature, alpha):
    return None  # your code here


loss_of = checks.soft_label_loss(my_loss, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Shift first: `student_logits[:, :-1]` against `labels[:, 1:]`. Then pick
# the positions that count with a boolean mask, *before* any exponential. From
# there on everything is `[items, vocabulary]`.

# %% [markdown] tags=["hint"] title="My loss is off by a factor"
# The factor gives the mistake away. $T$ or $T^2$: the soft term is multiplied by $T^2$,
# the text term knows no temperature at all. The size of the vocabulary: take the sum
# over it, not the mean. One that changes with rows or padding: divide both terms by the
# number of positions that count, or by 1 if none does.

# %% tags=["solution"]
from distill_helpers.course import checks


def my_loss(student_logits, teacher_logits, labels, temperature, alpha):
    targets = labels[:, 1:]
    counts = targets != -100
    s = student_logits[:, :-1][counts]
    t = teacher_logits[:, :-1][counts].detach()
    n = max(int(counts.sum()), 1)
    text = F.cross_entropy(s, targets[counts], reduction="sum") / n
    log_q = (s / temperature).log_softmax(-1)
    log_p = (t / temperature).log_softmax(-1)
    soft = (log_p.exp() * (log_p - log_q)).sum() / n
    return (1 - alpha) * text + alpha * temperature**2 * soft


loss_of = checks.soft_label_loss(my_loss, fallback=True)

# %% [markdown]
# The package's loss does the same. It is made for vocabularies of a hundred thousand
# tokens, and never holds all the probabilities at once. The two agree:

# %%
from distill_helpers import soft_label_loss

torch.manual_seed(0)
labels = torch.tensor([[-100, -100, 2, 0, 1], [-100, 1, 1, -100, -100]])
s, t = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
package = soft_label_loss(s, t, labels, temperature=T, alpha=alpha)
ours = loss_of(s, t, labels, T, alpha)
print(f"ours {ours:.4f}, the package {package.loss:.4f}")
print("positions that count:", package.num_items)
assert torch.isclose(ours, package.loss)

# %% [markdown]
# ## The loop
#
# The tiny pair again: a teacher that has read five novels by Jane Austen, and a
# beginner of half its width. The first cell loads them; the second, `my_loop`, is all that
# distilling is:

# %%
from distill_helpers import build_student, pack
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_tiny_teacher

teacher, tokenizer = load_tiny_teacher("prose")
rows = pack(austen("train"), tokenizer, 64).shuffle(seed=0)
text = torch.tensor(rows[: 16 * steps]["input_ids"])


def beginner():
    """2 layers, 96 wide, random weights."""
    return build_student(tokenizer, layers=2, width=96, seed=0)


# %%
def my_loop(student, rows, labels_of=None, temperature=1.0, alpha=1.0):
    """Read every row once, and learn from it."""
    optimizer = torch.optim.Adam(student.parameters(), lr=8e-3)
    for ids in progress_bar(rows.split(16)):
        with torch.no_grad():  # the teacher only reads
            theirs = teacher(ids).logits
        labels = ids if labels_of is None else labels_of(ids, theirs)
        ours = student(ids).logits
        loss = loss_of(ours, theirs, labels, temperature, alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


# %% [markdown]
# ## What should it learn from?
#
# With $\alpha = 1$ the loop learns from the teacher's distribution. With $\alpha = 0$
# it learns from labels alone, and the labels can come from anywhere:
#
# | name | the label at every position |
# |---|---|
# | text | the token that the text goes on with |
# | favourite | the teacher's likeliest token, its *argmax* |
# | drawn | one token, drawn by the teacher's probabilities |
# | soft | all of them: the distribution itself |
#
# ## Exercise 2 · Labels drawn from the teacher
#
# *easy · one of the four students learns from it · 5 minutes*
#
# Write `sampled_labels(teacher_logits, generator)`: one token id per position, drawn
# from the teacher's distribution at $T = 1$ with the given `torch.Generator`.
#
# * `teacher_logits`: `[positions, vocabulary]`, returns ids `[positions]`
#
# By hand: if the teacher gives a token ¾, it comes about three times in four.


# %% tags=["exercise"]
def sampled_labels(teacher_logits, generator):
    return None  # your code here


draw = checks.sampled_labels(sampled_labels, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# `torch.multinomial` draws from rows of probabilities and returns one
# dimension more than you want.

# %% [markdown] tags=["hint"] title="The check says that two equal calls differ"
# Then your draws do not come from the generator that you were given: hand it on with
# `generator=`. If nothing differs, but some tokens never come at all, you take the
# likeliest token instead of drawing.


# %% tags=["solution"]
def sampled_labels(teacher_logits, generator):
    p = teacher_logits.softmax(-1)
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)


draw = checks.sampled_labels(sampled_labels, fallback=True)

# %%
generator = torch.Generator().manual_seed(0)


def shifted(ids, tokens):
    """Labels that ask position t + 1 for what was said at position t."""
    labels = ids.clone()
    labels[:, 1:] = tokens[:, :-1]
    return labels


def favourites(ids, theirs):
    return shifted(ids, theirs.argmax(-1))


def drawn(ids, theirs):
    tokens = draw(theirs.flatten(0, 1), generator)
    return shifted(ids, tokens.view_as(ids))


# %% [markdown]
# **Predict** the order of the four, on a novel that nobody has read here. Write down
# which one you expect to be worst:

# %%
guess = "?"  # text, favourite, drawn, soft

# %%
students = {
    "text": my_loop(beginner(), text, alpha=0.0),
    "favourite": my_loop(beginner(), text, favourites, alpha=0.0),
    "drawn": my_loop(beginner(), text, drawn, alpha=0.0),
    "soft": my_loop(beginner(), text),
}

# %%
from distill_helpers import evaluate
from distill_helpers.course.plots import PALE, STUDENT, TEACHER

test = pack(austen("test"), tokenizer, 64).select(range(judged_rows))
losses = {
    name: evaluate(model, test, tokenizer).nll
    for name, model in students.items()
}
fig, ax = plt.subplots()
colors = [PALE, STUDENT, STUDENT, TEACHER]
bars = ax.barh(list(losses), list(losses.values()), color=colors)
ax.bar_label(bars, fmt="%.2f", padding=3)
best = evaluate(teacher, test, tokenizer).nll
ax.axvline(best, color="0.3", ls="--", label=f"the teacher: {best:.2f}")
ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
ax.invert_yaxis()
ax.margins(x=0.1)
ax.grid(axis="y", visible=False)
ax.set_xlabel("loss on an unread novel (nats per token, lower is better)")
ax.set_title("After the same steps: soft labels lowest, favourites highest")
plt.show()
worst = max(losses, key=losses.get)
print(f"you expected the worst from: {guess}; it was: {worst}")

# %% [markdown]
# Soft labels are ahead. From *drawn* to *soft* only the noise of the draw goes away: that is
# the pair to compare. A drawn token does about as much for the student as the text's own. And
# the teacher's favourite is the worst of all. One reason: it makes the student sure where the
# teacher is not. Lesson 03 measures how much that explains. This is one run with one seed and one learning rate, which may not suit all
# four alike. Lesson 03 has five seeds.
#
# ## Why: the same direction, without the noise
#
# A drawn label is one-hot. Its gradient is $q$ minus a one-hot vector, and over many
# draws the one-hot vectors average to $p$. So the **mean** gradient of drawn labels *is*
# the gradient of the soft label. Every single draw is that plus noise.
#
# A favourite has no noise. But asking again does not help: the answer is always the same,
# and it is not $p$.
#
# Let us see both on one batch. We take the student that has just learned from soft labels,
# keep its weights fixed, and compare gradients over all its weights. A distance of 1 means
# that the error is as long as the soft gradient itself.
# **Predict:** how much closer do 64 draws come than 4?

# %%
batch = text[:16]
with torch.no_grad():
    theirs = teacher(batch).logits
student = copy.deepcopy(students["soft"])


def gradient(labels, alpha):
    """All gradients of the student, as one long vector."""
    student.zero_grad()
    loss_of(student(batch).logits, theirs, labels, 1.0, alpha).backward()
    return torch.cat([w.grad.flatten() for w in student.parameters()])


soft_gradient = gradient(batch, 1.0)


def distance(other):
    """How far from the soft label's gradient, as a share of its length."""
    return float((other - soft_gradient).norm() / soft_gradient.norm())


# %%
total = torch.zeros_like(soft_gradient)
noise = []
for count in range(1, draws + 1):
    total = total + gradient(drawn(batch, theirs), 0.0)
    noise.append((count, distance(total / count)))
bias = distance(gradient(favourites(batch, theirs), 0.0))

# %%
fig, ax = plt.subplots()
ax.plot(*zip(*noise, strict=True), color=STUDENT, label="mean of drawn labels")
ax.axhline(bias, color="#222222", ls="--", label="favourite")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xticks([1, 4, 16, 64], [1, 4, 16, 64])
ticks = [0.15, 0.3, 0.6, 1.2, 2.4]
ax.set_yticks(ticks, ticks)
ax.minorticks_off()
ax.set_xlabel("draws that are averaged")
ax.set_ylabel("distance from the soft label's gradient")
ax.set_title("Drawn labels: right on average. Favourites: wrong for ever")
ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()

# %% [markdown]
# Four times as many draws halve the distance: the error shrinks like $1/\sqrt{n}$, so 64
# draws come four times closer than 4. A soft label is what infinitely many draws would
# give, in one reading. One draw here is a token at *each* of the batch's thousand places: over
# the places noise averages out, and the fixed error of the favourites does not. At a single
# place the favourite is the nearer one.
#
# All this holds at fixed weights and $T = 1$. In training, noise may cost still more: Adam
# divides by the size of recent gradients, so noisy ones also make shorter steps.
#
# The figure also suggests where the gain may end. The text's own token is a kind of draw, too,
# from the language instead of the teacher. Many steps on fresh text should average that
# noise away, without any teacher. Lesson 03 measures it.
#
# ## Let the package do it
#
# The loop above has everything that matters. A long run needs more: a learning rate that
# rises and falls, checkpoints, more than one GPU, mixed precision. `SoftLabelTrainer` is
# your loop inside the `Trainer` of `transformers`:

# %%
from distill_helpers import SoftLabelTrainer, training_arguments

student = beginner()
trainer = SoftLabelTrainer(
    student,
    teacher=teacher,
    alpha=1.0,
    temperature=1.0,
    tokenizer=tokenizer,
    train_dataset=rows.select(range(16 * steps)),
    args=training_arguments(
        get_profile("cpu"),  # models this small are no faster on a GPU
        steps=steps,
        learning_rate=8e-3,
        batch_size=16,
        mixed_precision=False,
        lr_scheduler_type="constant",  # as in the loop, and so are these:
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        adam_beta2=0.999,
    ),
)
_ = trainer.train()
trained = evaluate(student, test, tokenizer).nll
print(f"my loop: {losses['soft']:.2f}, the trainer: {trained:.2f}")

# %% [markdown]
# The trainer's student read the same rows in another order. On the same order the two
# have the same losses, step by step; the course's tests hold them to it.
#
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | α from 1 to ½ | between *text* and *soft* | the loss of the unread novel |
# | T from 1 to 4 | worse; our guess why stands below | the same |
# | α = ½ and T = 4, without $T^2$ | a soft term that hardly counts, so nearly *text* | the same; set `loss_of = my_loss` by hand, for the check would refuse it |
#
# $T^2$ sets the balance of the two terms. At α = 1 it only scales the loss, which Adam divides
# out. Start with $\alpha = 1$ and $T = 1$. Here are two turns; change the numbers for others:

# %%
turns = {"α = ½": {"alpha": 0.5}, "T = 4": {"temperature": 4.0}}
for name, turn in turns.items():
    knob = my_loop(beginner(), text, **turn)
    print(f"{name}: {evaluate(knob, test, tokenizer).nll:.2f}")
print(f"text: {losses['text']:.2f}, soft: {losses['soft']:.2f}")

# %% [markdown]
# A student that learned at $T = 4$ matches a flattened teacher. Asked at $T = 1$, it
# sharpens its own answer again, and what was a small error in a flat distribution becomes
# a large one. Here the result is worse even than that of the text's labels. The old advice
# of a high $T$ comes from classifiers with few classes; with thousands of tokens, the
# flattened tail may weigh too much. The result stands over five seeds (lesson 03); the explanation is
# ours, untested.
#
# ## The real thing
#
# Now the real teacher. On a laptop, its student is the teacher itself with ten of its
# thirty layers taken out; on a GPU both come from the hub, and the student is whole. A few steps on
# the novels' text begin to repair the cut one: once with the text's labels, once with soft
# labels at $\alpha = 1$ and $T = 1$, by the package's trainers. *Same favourite* says how
# often student and teacher have the same likeliest token.

# %%
from distill_helpers import generate
from distill_helpers.studies import load_results, real_pair

real = real_pair.load_pair(profile, real_rows)
prompts = ["The capital of France is", "She walked into the room and"]


def show(name, model):
    found = real_pair.judge_student(real, model)
    texts = generate(
        model, real.teacher.tokenizer, prompts, max_new_tokens=answer_tokens
    )
    print(
        f"{name}: loss {found.nll:.2f}, KL from the teacher "
        f"{found.kl_to_teacher:.2f}, same favourite {found.agreement:.0%}"
    )
    for prompt, written in zip(prompts, texts, strict=True):
        print(f"    {prompt + written!r}")


show("the teacher", real.teacher.model)
show("the student before", real_pair.start_student(real, profile))

# %% [markdown]
# **Predict:** after a few steps on the same rows, which student has the lower
# loss on an unread novel? Which one is closer to its teacher?

# %%
results = load_results("real_pair")
for arm in ("labels", "soft"):
    student = real_pair.start_student(real, profile)
    # The learning rate that did best for this kind, on a laptop's 20 steps.
    recipe = dict(results.options(arm, "20 steps")) | real_recipe
    options = {"seed": 1, "steps": real_steps, **recipe}
    real_pair.repair(real, student, arm, profile, **options)
    show(arm, student)

# %% [markdown]
# The texts have changed; on a laptop both still go round in circles: these few steps are a start, not
# a cure. We have run the laptop's comparison twice, on the same five seeds; the second is shown. On
# the left are claims, written before. A dot is the mean *gain* of soft labels over
# text labels, and the line is an interval for that mean. The short upright mark is the gain
# that was claimed; without a mark it was any gain. *Holds*: the whole line is right of it.
# *Undecided*: the line crosses it. Each student has the better of two rates for its
# kind, by one other seed. Lesson 03 says more of such figures.

# %%
from distill_helpers.course.plots import forest

fig, ax = plt.subplots(figsize=(8, 2.2))
forest(ax, [results.verdict("real_kl"), results.verdict("real_nll")])
ax.set_title("Closer to the teacher; on the text, undecided")
plt.show()

# %% [markdown]
# By closeness to the teacher the soft labels win, and that is what they are trained on. By
# the loss on the unread novel, *NLL*, these seeds could not tell the two apart. On kept-back pages of
# the novels that they read, text labels were ahead every time. Why was that different for the tiny
# pair? There, the student starts from random weights, and the teacher has read Austen alone, so what
# it says is close to the text. Either may be the reason; on the second, lesson 03 has a study.
#
# ## Exercise 3 · Without holding everything
#
# *hard · what a vocabulary of 150,000 tokens asks of you · 30 minutes*
#
# Your loss holds `[items, vocabulary]` several times over. With 4,096 positions and
# 150,000 tokens in float32, one such tensor takes more than two gigabytes. Write `my_small_loss` with the
# same arguments and the same result, to value and gradient, that computes the soft term
# for at most 64 positions at a time.
#
# By hand: a sum over all positions is a sum of sums over parts of them; only the division
# must wait for the end. The check compares values and gradients. What is saved are the copies
# that softmax makes; the logits stay, and so does what the mask copies.


# %% tags=["exercise"]
def my_small_loss(student_logits, teacher_logits, labels, temperature, alpha):
    return None  # your code here


checks.soft_label_loss(my_small_loss)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Shift and mask as before. Then go through `range(0, len(s), 64)`, compute the sum of
# each part, and add it up. For memory to be saved in training, too, look up
# `torch.utils.checkpoint.checkpoint`.

# %% [markdown] tags=["hint"] title="It is right for some rows and wrong for others"
# Divide once, at the end, by the number of all positions that count. The mean of the
# parts' means is another number as soon as the last part is shorter.

# %% tags=["solution"]
from torch.utils.checkpoint import checkpoint


def my_small_loss(student_logits, teacher_logits, labels, temperature, alpha):
    targets = labels[:, 1:]
    counts = targets != -100
    s = student_logits[:, :-1][counts]
    t = teacher_logits[:, :-1][counts].detach()

    def part_of(s, t, targets):
        text = F.cross_entropy(s, targets, reduction="sum")
        log_q = (s / temperature).log_softmax(-1)
        log_p = (t / temperature).log_softmax(-1)
        soft = (log_p.exp() * (log_p - log_q)).sum()
        return (1 - alpha) * text + alpha * temperature**2 * soft

    total = s[:0].sum()  # a zero that can call backward()
    whole = (s, t, targets[counts])
    for part in zip(*(one.split(64) for one in whole), strict=True):
        total = total + checkpoint(part_of, *part, use_reentrant=False)
    return total / max(len(s), 1)


checks.soft_label_loss(my_small_loss)

# %% [markdown]
# ## Recap
#
# * The one sentence to remember: at $T = 1$, drawn labels and soft labels have the **same
#   average gradient**, and soft labels do without the noise of the draw.
# * The loss is KL from the teacher, mixed with the text's labels by α.
# * Shift, mask, divide by what counts: most bugs live there.
# * **Use soft labels when** you have the teacher's weights and a common vocabulary. With few
#   steps they lowered the tiny student's loss. They brought the pruned one closer to its
#   teacher, with no clear gain on the text.
# * **You cannot, when** the teacher is an API that gives text alone. **Be careful, when** the
#   teacher does not know your kind of text: lesson 03 tries such a stranger.
#
# *Read on:* Hinton et al. 2015 (arXiv:1503.02531); Muralidharan et al. 2024,
# arXiv:2407.14679, for pruning and distilling.
