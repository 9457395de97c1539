# %% [markdown]
# ## A furry pet
#
# *"A small furry pet is a …"*. Ask a person, and they say *cat*. Ask a language model,
# and it answers with a distribution. Suppose that it gives these three words the
# following probabilities:

# %%
import torch

words = ["cat", "dog", "animal"]
p = torch.tensor([0.7, 0.2, 0.1])

# %% [markdown]
# The text that a student would otherwise learn from holds one word, *cat*. That is one
# label, and it says that *dog* is exactly as wrong as *carburettor*. The distribution
# says more: *dog* would have been fine, too, and *animal* is true but vague. In his
# talks, Hinton called this **dark knowledge**. It sits in the probabilities that are
# *not* the largest. A student that learns the whole distribution, its *soft label*,
# gets them; a student that learns the one word does not.
#
# Think of a language teacher who is asked for a word for *happy*. A poor one says
# *joyful*, and you write it down. A good one says: mostly *joyful*; *elated* if
# something great has just happened; *content* if nothing needs to happen any more.

# %% tags=["nbval-check-output"]
happy = {"joyful": 0.7, "elated": 0.2, "content": 0.1}
for word, probability in happy.items():
    print(f"{word:8} {'█' * round(30 * probability)} {probability:.0%}")

# %% [markdown]
# A student of the first teacher knows one synonym. A student of the second knows that
# three words fit, and how well each does. Over many sentences, such proportions show
# which words are alike, and where they differ. No textbook lists that.

# %% [markdown]
# ## From logits to probabilities
#
# A model does not produce probabilities. It produces **logits**: one number of any size
# per token. The **softmax** makes them positive by the exponential, and makes them sum
# to 1 by dividing by the total:
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}$$

# %% tags=["nbval-check-output"]
logits = torch.tensor([2.0, 0.75, 0.05])
exponentials = logits.exp()
probabilities = exponentials / exponentials.sum()
for word, z, q in zip(words, logits, probabilities, strict=True):
    print(f"{word:7} logit {z:5.2f} → probability {q:.3f}")

# %% [markdown]
# **Predict:** what happens to the probabilities if you add 100 to every logit? And
# what would the code above do then?

# %% tags=["nbval-check-output"]
shifted = logits + 100
naive = shifted.exp() / shifted.exp().sum()
print("by hand:", naive)
print("torch:  ", shifted.softmax(-1))

# %% [markdown]
# Mathematically, nothing happens: the factor $e^{100}$ cancels. Only the *differences*
# between logits matter. Numerically, $e^{100}$ is too large for a 32-bit float, and
# infinity divided by infinity is `nan`. The remedy is to subtract the largest logit
# first. `torch.softmax` does that.
#
# One more trap. A model gives a table of logits: one row per position, one column per
# word. The softmax belongs to the **last** dimension, the words. Over the other
# dimension it raises no error, but compares positions with each other:

# %% tags=["nbval-check-output"]
two_positions = torch.stack([logits, logits.flip(0)])
for name, dim in (("over the words", -1), ("over positions", 0)):
    table = two_positions.softmax(dim)
    sums = [f"{x:.2f}" for x in table.sum(-1).tolist()]
    print(f"{name}: every row sums to {', '.join(sums)}")

# %% [markdown]
# ## Temperature
#
# Divide the logits by a number $T$ before the softmax, and you get a dial for how sharp
# the distribution is:
#
# $$p_i(T) = \frac{e^{z_i/T}}{\sum_j e^{z_j/T}}$$
#
# ## Exercise 1 · Softmax with temperature
#
# *easy · you will need it in every lesson · 5 minutes*
#
# Write `softmax(logits, temperature)`: probabilities over the last dimension, safe for
# logits of any size. The table and the slider below are drawn with your function as
# soon as it passes.
#
# By hand: logits 0 and $\ln 3$ at $T = 1$ give ¼ and ¾.

# %% tags=["exercise"]
from distill_helpers.course import checks


def softmax(logits, temperature):
    return None  # your code here


soften = checks.softmax(softmax, fallback=True)

# %% [markdown] tags=["hint"] title="The check says nan, or rows do not sum to 1"
# If the check says *nan*: subtract the largest logit before the exponential
# (`amax(-1, keepdim=True)`). If rows do not sum to 1: which dimension do
# you sum over?

# %% [markdown] tags=["hint"] title="It is right at T = 1, and wrong at any other T"
# Where does the temperature come in? It divides the *logits*, before the exponential;
# the probabilities are not divided by it. Try a high $T$ on the example by hand: ¼ and
# ¾ should move towards each other.

# %% tags=["solution"]
from distill_helpers.course import checks


def softmax(logits, temperature):
    z = logits / temperature
    e = (z - z.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


soften = checks.softmax(softmax, fallback=True)

# %% [markdown]
# **Predict:** which way does a large $T$ turn the distribution? What is left when $T$
# goes to zero, what when it goes to infinity?

# %% tags=["nbval-check-output"]
print("   T   " + "  ".join(f"{word:>6}" for word in words))
for T in (0.1, 0.5, 1.0, 2.0, 10.0, 1000.0):
    q = soften(logits, T)
    print(f"{T:6g} " + "  ".join(f"{x:6.3f}" for x in q))

# %% [markdown]
# Small $T$ sharpens until only the winner is left. Large $T$ flattens until all words
# are equal. The *order* never changes. Try it: move the slider with the mouse or the
# arrow keys. Where nothing runs, three stills stand in for the slider.

# %%
from distill_helpers.course.plots import TEACHER, token_bars, use_style
from distill_helpers.course.widgets import explore

use_style()
more_words = ["cat", "dog", "animal", "hamster", "toy", "sofa"]
more_logits = torch.tensor([2.0, 0.75, 0.05, -0.6, -1.8, -3.5])


def draw(ax, temperature):
    softened = soften(more_logits, temperature)
    title = f"T = {temperature:g}"
    token_bars(ax, more_words, softened.tolist(), color=TEACHER, title=title)
    ax.set_xlim(0, 115)


explore(
    draw,
    name="temperature T",
    values=[0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10],
    start=1,
    still=[0.25, 1, 4],
    alt="Six words' probabilities at T = 0.25 (cat has nearly everything), "
    "T = 1, and T = 4 (much flatter). The order never changes.",
)

# %% [markdown]
# What if somebody gives you probabilities and keeps the logits? Then raise them to the
# power of $1/T$ and make them sum to 1 again. It is the same thing, because $p$ is
# $e^z$ up to a factor. So the probabilities of *all* words are enough to change the
# temperature. The top few, which is all that an API gives, are not.

# %% tags=["nbval-check-output"]
powered = probabilities ** (1 / 2)
powered = powered / powered.sum()
print("from logits:       ", soften(logits, 2.0))
print("from probabilities:", powered)

# %% [markdown]
# ## Entropy: how much is left open
#
# One number tells how spread out a distribution is, its **entropy**:
#
# $$H(p) = -\sum_i p_i \ln p_i$$
#
# With the natural logarithm its unit is the *nat*. It is 0 if one word has everything,
# and $\ln V$ if all $V$ words are equal. A plain label is *one-hot*: it puts
# probability 1 on one word, and its entropy is 0.
#
# ## Exercise 2 · Entropy
#
# *easy · you will shade a page with it · 5 minutes*
#
# Write `entropy(p)` in nats, over the last dimension. Some probabilities may be exactly
# 0; such a word contributes nothing.
#
# By hand: four equal words have $\ln 4$ nats.


# %% tags=["exercise"]
def entropy(p):
    return None  # your code here


entropy_of = checks.entropy(entropy, fallback=True)

# %% [markdown] tags=["hint"] title="I get nan"
# $0 \cdot \ln 0$ is `nan` for a computer. `torch.special.entr` knows better,
# and so does `torch.where`.

# %% [markdown] tags=["hint"] title="It is negative, or off by a constant factor"
# Logarithms of probabilities are never positive, so a minus belongs in front. If a
# factor is left: is the logarithm the natural one, and do you take the *sum* over the
# words, not the mean? The four equal words show either slip.


# %% tags=["solution"]
def entropy(p):
    return torch.special.entr(p).sum(-1)


entropy_of = checks.entropy(entropy, fallback=True)

# %% [markdown]
# Entropy is also the average surprise, $-\ln p$, when words are drawn from $p$. Draw a
# hundred thousand and see.

# %% tags=["nbval-check-output"]
p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
generator = torch.Generator().manual_seed(0)
drawn = torch.multinomial(p, 100_000, True, generator=generator)
print(f"formula:       {entropy_of(p):.2f} nats")
print(f"mean surprise: {-p[drawn].log().mean():.2f} nats")

# %% [markdown]
# ## A real teacher's dark knowledge
#
# Now a real teacher's own distribution, over a vocabulary of tens of thousands of
# tokens, for two sentences that are close to our examples. The quotes show that a token
# brings its own space along; `' un'` is the beginning of a longer word.

# %%
from distill_helpers import get_profile
from distill_helpers.tasks.teachers import load_teacher

profile = get_profile(PROFILE)
page_tokens = profile.pick(smoke=32, cpu=112, gpu=112)
teacher, tokenizer = load_teacher(profile)


def logits_of(ids):
    """One row of logits per position, for what comes after it."""
    with torch.no_grad():
        found = teacher(torch.tensor([ids], device=profile.device)).logits
    return found[0].float().cpu()


# %%
import matplotlib.pyplot as plt

prompts = ["My favourite pet is a small furry", "He was feeling very"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for ax, prompt in zip(axes, prompts, strict=True):
    last = logits_of(tokenizer(prompt).input_ids)[-1]
    values, ids = last.softmax(-1).topk(8)
    shown = [repr(tokenizer.decode(i)) for i in ids.tolist()]
    token_bars(ax, shown, values.tolist(), title=f"“{prompt} …”")
limit = max(ax.get_xlim()[1] for ax in axes)
for ax in axes:
    ax.set_xlim(0, limit)  # one scale, so that both can be compared
plt.show()

# %% [markdown]
# Less tidy than our examples, and richer. Most of the likely words belong together:
# animals and ways to speak of them; feelings, bright and dark. The rest of the
# probability is spread over thousands of tokens. Here is the first distribution at
# three temperatures, its head and its tail.

# %%
pet_logits = logits_of(tokenizer(prompts[0]).input_ids)[-1]
for T in (0.5, 1.0, 2.0):
    q = soften(pet_logits, T).sort(descending=True).values
    print(
        f"T = {T:3}: top token {q[0]:.2f}, next nine {q[1:10].sum():.2f}, "
        f"all others {q[10:].sum():.2f}, entropy {entropy_of(q):.1f} nats"
    )

# %% [markdown]
# Look at the share of *all others*: it grows fast with $T$. Each of those tokens is
# unlikely, but there are tens of thousands of them. And the *next nine*, where we saw the
# animals, do not gain at $T = 2$: they lose. With six words a higher $T$ lifted the second
# choices; with a real vocabulary the tail takes most of it. Whether that tail is
# knowledge or noise, this table cannot say. It has to be measured.

# %% [markdown]
# ## Not every token is a choice
#
# How much dark knowledge is there in running text? Here is a page. The darker the
# background of a token, the less certain the teacher was *before* it came: the entropy
# of its distribution at that place. *Captain*, the very first, has nothing before it and is not
# shown. Six tokens behind the first eight have a number: where the teacher was surest, where it was
# surest and wrong, and where it was least sure. On the right stands what came, and
# what the teacher expected there.
#
# **Predict:** at which tokens of a page is a teacher surest?

# %%
from distill_helpers import pack
from distill_helpers.tasks.prose import austen

page = pack(austen("test").select([10]), tokenizer, page_tokens)[0]
page = page["input_ids"]
before = logits_of(page)[:-1].softmax(-1)
open_nats = entropy_of(before)
tokens = [tokenizer.decode(i) for i in page[1:]]


def expected_at(place):
    """The teacher's three likeliest tokens, in words."""
    found, ids = before[place].topk(3)
    pairs = zip(ids.tolist(), found.tolist(), strict=True)
    words = [f"{tokenizer.decode(i).strip()} {x:.0%}" for i, x in pairs]
    return ", ".join(words)


# %%
from distill_helpers.course.plots import shaded_text

order = open_nats[8:].argsort() + 8
missed = [i for i in order.tolist() if before[i].argmax() != page[i + 1]]
places = [*order[:2].tolist(), missed[0], *order[-3:].tolist()]
notes = {i: f"{tokens[i].strip()}? {expected_at(i)}" for i in places}
fig, ax = plt.subplots(figsize=(10, 3.8))
shaded_text(ax, tokens, open_nats.tolist(), notes=notes, unit="entropy (nats)")
ax.set_title("How much the teacher found open before each token")
plt.show()

# %% [markdown]
# It is surest inside some words and at a few set phrases; most places on this page are open. And a
# pale box is not always right. Where the teacher is sure, and right, a soft label adds little.
# Where the text is open, the plain label is one draw from many possibilities, and the soft
# label is the teacher's estimate of all of them.
#
# And high entropy can also mean that the teacher simply does not know.

# %% [markdown]
# ## Two distributions: how far apart?
#
# To train a student we need a number for how far its distribution $q$ is from the
# teacher's $p$. The standard one is the **Kullback–Leibler divergence**:
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \,(\ln p_i - \ln q_i)$$
#
# It is the average extra surprise of somebody who believes $q$ while words come from
# $p$. It is
# 0 if the two agree, positive otherwise, and **not symmetric**.
#
# ## Exercise 3 · Forward KL
#
# *medium · the heart of the next lesson · 10 minutes*
#
# Write `forward_kl(p, q)` for two tensors of probabilities, over the last dimension, in
# nats. Where $p_i = 0$, the term is 0.
#
# By hand: for $p = (1, 0)$ and $q = (½, ½)$ it is $\ln 2$. The other way round it would be
# infinite.


# %% tags=["exercise"]
def forward_kl(p, q):
    return None  # your code here


kl = checks.forward_kl(forward_kl, fallback=True)

# %% [markdown] tags=["hint"] title="It is not zero where p equals q"
# The check says *not zero at equality*? Then the entropy of $p$ is missing:
# what you have is the cross-entropy, which lesson 02 needs. `torch.xlogy(p, p)` is
# $p \ln p$ with $0 \ln 0 = 0$.

# %% [markdown] tags=["hint"] title="It is zero where p equals q, but wrong elsewhere"
# Look at the weights: every log-ratio counts with $p$, the teacher's probability; with
# $q$ in its place you have the reverse KL. Then look at the ratio: $p$ stands on top,
# or the result turns negative. And at the end: a *sum* over the words, not a mean.


# %% tags=["solution"]
def forward_kl(p, q):
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


kl = checks.forward_kl(forward_kl, fallback=True)

# %% [markdown]
# Swap the two, and you have the **reverse** KL. The package computes both, and it had
# better agree. Careful with the order: your function takes the teacher first, and the
# package's `token_divergence` takes logits, the *student's* first. A
# log-probability will do as a logit, because the softmax turns it back into its
# probability.

# %% tags=["nbval-check-output"]
from distill_helpers.losses import token_divergence

other = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
for kind, ours in (
    ("forward_kl", kl(p, other)),
    ("reverse_kl", kl(other, p)),
):
    package = token_divergence(other.log(), p.log(), kind=kind)
    print(f"{kind}: {ours:.4f} nats, the package says {package:.4f}")

# %% [markdown]
# ## What each direction punishes
#
# The teacher sees two good continuations: one left of zero, and a less likely one as far to the
# right. The student is too small to hold both: it can
# only be one bump. Which bump does each direction choose? Real tokens have no order
# along an axis; the picture borrows one, so that there is something to see.
#
# **Predict:** where will the bump of the forward KL stand? Write a number from −6 to 6
# in the place of `None`.

# %%
guess = None

# %%
x = torch.linspace(-8, 8, 321, dtype=torch.float64)
left, right = torch.exp(-2 * (x + 2.5) ** 2), torch.exp(-2 * (x - 2.5) ** 2)
target = 0.6 * left + 0.4 * right
target = target / target.sum()


def fit_bump(loss_of, start):
    """The bump that gradient descent finds from a start."""
    centre = torch.tensor(start, requires_grad=True)
    log_width = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.Adam([centre, log_width], lr=0.05)
    for _ in range(400):
        bump = -((x - centre) ** 2) / (2 * log_width.exp() ** 2)
        loss = loss_of(target, bump.softmax(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bump.detach().softmax(-1)


# %%
from distill_helpers.course.plots import PALE, STUDENT

fig, ax = plt.subplots()
ax.fill_between(x, target, color=PALE, label="teacher")
ax.plot(x, fit_bump(kl, 1.0), color=STUDENT, label="forward KL")
for start, style in ((-1.0, "--"), (1.0, ":")):
    seeks = fit_bump(lambda teacher, student: kl(student, teacher), start)
    label = f"reverse KL, from {start:g}".replace("-", "−")
    ax.plot(x, seeks, style, color=STUDENT, label=label)
if guess is not None:
    ax.axvline(guess, color="0.3", label="your guess")
ax.set_xlabel("possible continuations")
ax.set_ylabel("probability")
ax.set_title("Forward KL covers, reverse KL chooses one bump")
ax.set_ylim(0, 0.06)
ax.legend(loc="upper right", ncols=2)
plt.show()

# %% [markdown]
# **Forward** KL weighs by the teacher's probabilities. Where the teacher has some and the
# student nearly none, the logarithm grows without limit. So the student *covers*: one wide
# bump around the teacher's mean. There the teacher has almost nothing, so the student fills
# the valley with things that the teacher would never say.
#
# **Reverse** KL weighs by the student's probabilities. The student is punished for
# saying what the teacher would not. So it *seeks* one bump, a *mode*, and drops the
# other. The larger bump costs less; but gradient descent can be caught in the other, depending on
# where it begins. Soft-label distillation mostly
# uses forward KL; lesson 08 comes back to reverse.

# %% [markdown]
# ## What the T² is for
#
# To distil at a temperature, one divides the logits of both models by $T$, takes the
# KL, and nearly always multiplies it by $T^2$. Why? A high $T$ shrinks the gradient
# **twice**. The logits were divided by $T$, so each moves the loss less. And both
# distributions become flat, so they have less to disagree about. In a formula, for the
# logit $z_i$ of the student:
#
# $$\frac{\partial\,\mathrm{KL}}{\partial z_i} = \frac{q_i(T) - p_i(T)}{T}$$
#
# The difference above shrinks like $1/T$, too, once $T$ is high, and $T^2$ makes up for
# both. Here are six words, and a student who has them in another order:

# %%
student_logits = more_logits.flip(0)


def gradient_norm(T, student=student_logits, teacher=more_logits):
    z = student.clone().requires_grad_(True)
    loss = token_divergence(z, teacher, temperature=T)
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient.norm().item()


temperatures = (0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 12, 20, 40)
norms = {T: gradient_norm(T) for T in temperatures}

# %%
from distill_helpers.course.plots import lines

curves = {
    "plain KL": list(norms.items()),
    "times T²": [(T, T**2 * norm) for T, norm in norms.items()],
}
fig, ax = plt.subplots()
name = "norm of the gradient at the logits"
lines(ax, curves, xlabel="temperature T", ylabel=name)
ax.set_title("The gradient of the KL falls like 1/T² once T is high")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xticks([0.5, 1, 2, 5, 10, 20, 40], [0.5, 1, 2, 5, 10, 20, 40])
ax.minorticks_off()
plt.show()

# %% [markdown]
# With six words the product grows at first, and from about $T = 5$ the factor holds it. With
# the tens of thousands of a real vocabulary it depends on what you look at. Compare $T = 4$
# with $T = 1$ for the real teacher, and for a student that has its logits with some noise:

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.randn(pet_logits.shape, generator=generator)
pair = (pet_logits + noise, pet_logits)
for T in (1, 4):
    scaled = T**2 * gradient_norm(T, *pair)
    loss = T**2 * token_divergence(*pair, temperature=T).item()
    print(f"T = {T}: times T², gradient {scaled:.3f}, loss {loss:.2f}")

# %% [markdown]
# The loss keeps its size. The gradient's norm does not, for the push is spread over all tokens.
# What reaches the weights depends on the student: pushes that agree add up, random ones cancel. So
# $T^2$ is a rule of thumb. Adam divides a constant factor out; $T^2$ matters under SGD, and when a
# loss **mixes** this soft term with the text's own labels. Then measure the gradient of each part
# at the *weights*.

# %% [markdown]
# <details>
# <summary>For the curious: what is left when T goes to infinity</summary>
#
# The scaled loss has a limit: half the mean squared difference of the logits, after
# each model's mean logit is taken off.
#
# $$T^2\,\mathrm{KL} \;\to\; \frac{1}{2V} \sum_i
# (\tilde z_i^{\,\text{student}} - \tilde z_i^{\,\text{teacher}})^2$$
#
# So at a very high temperature, to distil is to *match logits*, the unlikely ones as
# much as the likely ones. Compute it for three logits and $T = 256$, and see.
#
# </details>

# %% [markdown]
# ## Recap
#
# | idea | in a few words |
# |---|---|
# | dark knowledge | what the probabilities below the top say |
# | temperature | divides the logits: below 1 sharpens, above 1 flattens, order stays |
# | entropy | how much a distribution leaves open, in nats |
# | forward KL | weighs by the teacher, covers |
# | reverse KL | weighs by the student, chooses |
# | T² | keeps the soft term's loss from vanishing at a high T; its gradient only with few words |
#
# **A temperature above 1 can help when** the classes are few and the teacher is so sure that its
# second choices vanish. **It can hurt when** there are tens of thousands of tokens: a high $T$ makes
# the student match the unlikely ones with the same care as the likely ones. Start with $T = 1$;
# lessons 02 and 03 measure higher ones.
#
# *Read on:* Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*
# (2015, arXiv:1503.02531).
