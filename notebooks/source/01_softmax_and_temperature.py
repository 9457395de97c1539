# %% [markdown]
# ## A furry pet
#
# *"A small furry pet is a …"*. Ask a person, and they say *cat*. Ask a
# language model, and it answers with a distribution. Suppose that it gives these
# three words the following probabilities:

# %%
import torch

words = ["cat", "dog", "animal"]
p = torch.tensor([0.7, 0.2, 0.1])

# %% [markdown]
# The text that a student would otherwise learn from holds one word, *cat*.
# That is one label, and it says that *dog* is exactly as wrong as *carburettor*.
# The distribution says more: *dog* would have been fine, too, and *animal* is
# true but vague. This **dark knowledge** (Hinton's name for it) is in the
# probabilities that are *not* the largest, and it is what soft labels are
# about.
#
# Here is the same with a choice of words. "A word for *happy*":

# %% tags=["nbval-check-output"]
happy = {"joyful": 0.7, "elated": 0.2, "content": 0.1}
for word, probability in happy.items():
    print(f"{word:8} {'█' * round(30 * probability)} {probability:.0%}")

# %% [markdown]
# A student that learns only *joyful* knows one synonym. A student that
# learns the three with their weights knows that all three fit here, and how
# well each does. Over many contexts, such proportions show which words are
# alike, and where they part. Nobody wrote that down. It came with the
# numbers.

# %% [markdown]
# ## From logits to probabilities
#
# A model does not produce probabilities. It produces **logits**: one number
# of any size per token. The **softmax** makes them positive (by taking the
# exponential) and makes them sum to 1 (by dividing by the total):
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}$$

# %% tags=["nbval-check-output"]
logits = torch.tensor([2.0, 0.75, 0.05])

exponentials = logits.exp()
probabilities = exponentials / exponentials.sum()
for word, z, q in zip(words, logits, probabilities, strict=True):
    print(f"{word:7} logit {z:5.2f} → probability {q:.3f}")

# %% [markdown]
# **Predict:** what happens to the probabilities if you add 100 to every
# logit? And what would the code above do then?

# %% tags=["nbval-check-output"]
shifted = logits + 100
naive = shifted.exp() / shifted.exp().sum()
print("by hand:", naive)
print("torch:  ", shifted.softmax(-1))

# %% [markdown]
# Mathematically, nothing happens: the factor $e^{100}$ cancels. Only the
# *differences* between logits matter. Numerically, $e^{100}$ is too large
# for a 32-bit float, and infinity divided by infinity is `nan`. The remedy
# is to subtract the largest logit first, and `torch.softmax` does.

# %% [markdown]
# ## Temperature
#
# Divide the logits by a number $T$ before the softmax, and you get a dial
# for how sharp the distribution is:
#
# $$p_i(T) = \frac{e^{z_i/T}}{\sum_j e^{z_j/T}}$$
#
# **Predict:** which way does a large $T$ turn the distribution? What is left
# when $T$ goes to zero, what when it goes to infinity?

# %% tags=["nbval-check-output"]
print("   T   " + "  ".join(f"{word:>6}" for word in words))
for temperature in (0.1, 0.5, 1.0, 2.0, 10.0, 1000.0):
    q = (logits / temperature).softmax(-1)
    print(f"{temperature:6g} " + "  ".join(f"{x:6.3f}" for x in q))

# %% [markdown]
# Small $T$ sharpens until only the winner is left (that is greedy
# decoding). Large $T$ flattens until all words are equal. The *order* never
# changes. Try it: move the slider with the mouse or the arrow keys. (Where nothing
# runs, three stills stand in for the slider.)

# %%
from distill_helpers.course.plots import TEACHER, token_bars, use_style
from distill_helpers.course.widgets import explore

use_style()
more_words = ["cat", "dog", "animal", "hamster", "toy", "sofa"]
more_logits = torch.tensor([2.0, 0.75, 0.05, -0.6, -1.8, -3.5])


def draw(ax, temperature):
    q = (more_logits / temperature).softmax(-1)
    title = f"T = {temperature:g}"
    token_bars(ax, more_words, q.tolist(), color=TEACHER, title=title)
    ax.set_xlim(0, 1.15)


explore(
    draw,
    name="temperature T",
    values=[0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10],
    start=1,
    still=[0.25, 1, 4],
    alt="Six words' probabilities at T = 0.25 (cat has nearly everything), "
    "T = 1, and T = 4 (almost flat). The order never changes.",
)

# %% [markdown]
# ## Entropy: how much is left open
#
# One number tells how spread out a distribution is: its **entropy**,
#
# $$H(p) = -\sum_i p_i \ln p_i ,$$
#
# in *nats* with the natural logarithm. It is 0 if one word has everything,
# and $\ln V$ if all $V$ words are equal. Compute it two ways: from the
# formula, and as the mean surprise of words drawn from $p$.

# %% tags=["nbval-check-output"]
p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
formula = -(p * p.log()).sum()

generator = torch.Generator().manual_seed(0)
drawn = torch.multinomial(p, 100_000, True, generator=generator)
mean_surprise = -p[drawn].log().mean()
print(f"formula:       {formula:.2f} nats")
print(f"mean surprise: {mean_surprise:.2f} nats")

# %% [markdown]
# A plain label puts probability 1 on *cat* and 0 on all else; that is called
# *one-hot*, and its entropy is 0. What a soft label tells a student beyond it
# is what it leaves open, and in which proportions.

# %% [markdown]
# ## A real teacher's dark knowledge
#
# Now the real thing: the teacher's own distribution, over a vocabulary of
# tens of thousands of tokens, for two prompts that are close to our examples.

# %%
from distill_helpers import get_profile
from distill_helpers.tasks.teachers import load_teacher

profile = get_profile(PROFILE)
teacher, tokenizer = load_teacher(profile)


def next_token_logits(text):
    """One logit per token of the vocabulary, for what comes after text."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = teacher(ids.to(profile.device)).logits
    return logits[0, -1].float().cpu()


# %%
import matplotlib.pyplot as plt

prompts = ["My favourite pet is a small furry", "He was feeling very"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for ax, prompt in zip(axes, prompts, strict=True):
    values, ids = next_token_logits(prompt).softmax(-1).topk(8)
    shown = [repr(tokenizer.decode(i)) for i in ids.tolist()]
    token_bars(ax, shown, values.tolist(), title=f"“{prompt} …”")
plt.show()

# %% [markdown]
# Less tidy than our examples, and richer. Look at how the likely words belong
# together: kinds of animals and ways to speak of them; feelings, bright and
# dark. The rest of the probability is spread over thousands of tokens. Here
# is the first distribution at three temperatures, as a table of its head and
# its tail.

# %%
real_logits = next_token_logits(prompts[0])
for temperature in (0.5, 1.0, 2.0):
    q = (real_logits / temperature).softmax(-1).sort(descending=True).values
    entropy_nats = torch.special.entr(q).sum()
    print(
        f"T = {temperature:3}: top token {q[0]:.2f}, "
        f"next nine {q[1:10].sum():.2f}, all others {q[10:].sum():.2f}, "
        f"entropy {entropy_nats:.1f} nats"
    )

# %% [markdown]
# Look at the share of *all others*: it grows fast with $T$. Each of those
# tokens is unlikely, but there are tens of thousands of them. Temperature
# brings out dark knowledge, and noise along with it. Which of the two wins
# is a matter for measuring (lesson 02).

# %% [markdown]
# ## Not every token is a choice
#
# How much dark knowledge is there in running text? The entropy of the
# teacher's distribution at every position of a page tells.

# %%
from distill_helpers import pack
from distill_helpers.tasks.prose import austen

length = profile.pick(smoke=64, cpu=256, gpu=512)
page = pack(austen("test").select([10]), tokenizer, length)[0]["input_ids"]
with torch.no_grad():
    ids = torch.tensor([page], device=profile.device)
    page_logits = teacher(ids).logits[0].float().cpu()
entropies = torch.special.entr(page_logits.softmax(-1)).sum(-1)

fig, ax = plt.subplots(figsize=(7, 2.8))
ax.hist(entropies, bins=24, color=TEACHER)
ax.set_xlabel("entropy of the next token (nats)")
ax.set_ylabel("positions")
ax.set_title("Some positions are settled, many are open")
plt.show()

# %%
order = entropies.argsort()
for name, chosen in (("settled", order[:3]), ("open", order[-3:])):
    for t in chosen.tolist():
        before = tokenizer.decode(page[max(0, t - 7) : t + 1])
        print(f"{name:8}{entropies[t]:5.2f} nats  …{before!r}")

# %% [markdown]
# Each line ends just before the token that the entropy is about. Where the text is
# settled (here, above all, the second half of a word), a soft label says little more
# than the plain label does. Where it is open, a plain label is one draw from many
# possibilities, and the soft label is all of them at once. One warning: high entropy
# can also mean that the teacher simply does not know.

# %% [markdown]
# ## Two distributions: how far apart?
#
# To train a student we need a number for how far its distribution $q$ is
# from the teacher's $p$. The standard one is the **Kullback–Leibler
# divergence**,
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \,(\ln p_i - \ln q_i) ,$$
#
# the extra surprise of somebody who believes $q$ while words come from $p$.
# It is 0 if the two agree, positive otherwise, and **not symmetric**.

# %% tags=["nbval-check-output"]
student = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
forward = (p * (p.log() - student.log())).sum()
reverse = (student * (student.log() - p.log())).sum()
print(f"KL(teacher ‖ student) = {forward:.4f} nats   (forward)")
print(f"KL(student ‖ teacher) = {reverse:.4f} nats   (reverse)")

# %% [markdown]
# The package computes both from logits. It had better agree.

# %%
from distill_helpers.losses import token_divergence

for kind, expected in (("forward_kl", forward), ("reverse_kl", reverse)):
    # The student comes first here. Log-probabilities are logits, too: a
    # softmax leaves them alone.
    value = token_divergence(student.log(), p.log(), kind=kind)
    print(f"{kind}: {value:.4f}")
    assert torch.isclose(value, expected)

# %% [markdown]
# ## What each direction punishes
#
# Suppose that the teacher sees two good continuations, and the student is too
# small to hold both: it can only be one bump. Which bump does each
# direction choose?
#
# (Real tokens have no order along an axis; the picture borrows one so that
# there is something to see.) **Predict** before you run: draw the two bumps
# on paper.

# %%
x = torch.linspace(-6, 6, 241)
left, right = torch.exp(-2 * (x + 2.5) ** 2), torch.exp(-2 * (x - 2.5) ** 2)
target = 0.6 * left + 0.4 * right
target_logits = (target / target.sum()).log()


def fit_bump(kind):
    """The single Gaussian bump that minimises one direction of the KL."""
    centre = torch.tensor(-0.5, requires_grad=True)
    log_width = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.Adam([centre, log_width], lr=0.05)
    for _ in range(400):
        bump = -((x - centre) ** 2) / (2 * log_width.exp() ** 2)
        loss = token_divergence(bump, target_logits, kind=kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bump.detach().softmax(-1)


# %%
from distill_helpers.course.plots import PALE, STUDENT, THIRD

fig, ax = plt.subplots()
ax.fill_between(x, target_logits.exp(), color=PALE, label="teacher")
ax.plot(x, fit_bump("forward_kl"), color=STUDENT, label="forward KL")
ax.plot(x, fit_bump("reverse_kl"), "--", color=THIRD, label="reverse KL")
ax.set_xlabel("possible continuations")
ax.set_ylabel("probability")
ax.set_title("Forward KL covers, reverse KL chooses")
ax.legend()
plt.show()

# %% [markdown]
# **Forward** KL weighs by the teacher: wherever the teacher puts mass, a
# student with none is punished without limit, so it *covers*, and fills the
# valley between with things the teacher would never say. **Reverse** KL
# weighs by the student: it is punished for saying what the teacher would
# not, so it *seeks* one bump (a *mode*) and drops the other. Soft-label distillation
# mostly uses forward KL; lesson 07 comes back to reverse.

# %% [markdown]
# ## Where the T² comes from
#
# To distil at a temperature, one divides the logits of both models by $T$, takes
# $\mathrm{KL}(p(T) \,\|\, q(T))$, and nearly always multiplies it by $T^2$. Why? The
# gradient of this KL with respect to the student's logits is $\frac{1}{T}\,(q(T) -
# p(T))$: the difference of the two distributions, and a factor $1/T$ because the
# logits were divided by $T$.
#
# A high $T$ makes it smaller **twice**: once
# by the $1/T$ in front, and once more because both flattened distributions
# come close to each other. So the gradient shrinks like $1/T^2$ once $T$ is
# high, and multiplying the loss by $T^2$ makes up for it. Do not believe it,
# look (the student here is the teacher's own logits with some noise added):

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.randn(real_logits.shape, generator=generator)
temperatures = [0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 12, 20, 40]


def gradient_norm(temperature):
    z = (real_logits + noise).requires_grad_(True)
    loss = token_divergence(z, real_logits, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient.norm().item()


norms = {T: gradient_norm(T) for T in temperatures}

# %%
from distill_helpers.course.plots import lines

fig, ax = plt.subplots()
curves = {
    "plain KL": list(norms.items()),
    "times T²": [(T, T**2 * norm) for T, norm in norms.items()],
}
lines(
    ax,
    curves,
    xlabel="temperature T",
    ylabel="gradient norm",
    title="T² keeps the gradient's size, but only once T is high",
)
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xticks([0.5, 1, 2, 5, 10, 20, 40], [0.5, 1, 2, 5, 10, 20, 40])
ax.minorticks_off()
plt.show()

# %% [markdown]
# The plain curve falls; the scaled one levels off, but only at high $T$, and far below
# where it was at $T = 1$. In between, probability is still spreading over a vocabulary
# of tens of thousands, and even the scaled gradient falls. At the temperatures people
# use, $T^2$ is a rule of thumb. Does it matter? Adam divides by the gradient's size, so
# a constant factor on the *whole* loss changes next to nothing. It matters where
# gradients are clipped, and when the loss **mixes** this soft term with a hard one (a
# missing $T^2$ hands the training to the labels).
#
# The hard term is the plain **cross-entropy** with the text's own token: the student's
# surprise $-\ln q$ at that token, whose mean lesson 00 called NLL. In general, the
# cross-entropy of $p$ and $q$ is $-\sum_i p_i \ln q_i$: the KL plus the entropy of $p$.

# %% [markdown]
# ## The high-temperature limit
#
# As $T \to \infty$, the scaled loss has a limit that you can compute by
# hand: half the mean squared difference of the logits, after each model's
# mean logit is taken off,
#
# $$T^2\,\mathrm{KL} \;\to\; \frac{1}{2V} \sum_i
# (\tilde z_i^{\,\text{student}} - \tilde z_i^{\,\text{teacher}})^2 .$$
#
# So with a very high temperature, distilling means *matching logits*, the
# unlikely ones as much as the likely ones.

# %% tags=["nbval-check-output"]
z_teacher = torch.tensor([2.0, 0.75, 0.05], dtype=torch.float64)
z_student = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
gap = (z_student - z_student.mean()) - (z_teacher - z_teacher.mean())
print(f"limit:     {(gap**2).mean() / 2:.4f}")
for T in (1, 4, 16, 64, 256):
    scaled = T**2 * token_divergence(z_student, z_teacher, temperature=T)
    print(f"T = {T:4}:  {scaled:.4f}")

# %% [markdown]
# ## Exercise 1 · Softmax with temperature
#
# *easy · the most used function of the field · 5 minutes*
#
# Write `softmax(logits, temperature)`: probabilities over the last
# dimension, safe for logits of any size.
#
# By hand: logits 0 and $\ln 3$ at $T = 1$ give ¼ and ¾.

# %% tags=["exercise"]
from distill_helpers.course import checks


def softmax(logits, temperature):
    return None  # your code here


checks.softmax(softmax)

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


checks.softmax(softmax)

# %% [markdown]
# ## Exercise 2 · Entropy
#
# *easy · tells where soft labels have something to say · 5 minutes*
#
# Write `entropy(p)` in nats, over the last dimension. Some probabilities may
# be exactly 0; such a word contributes nothing.
#
# By hand: four equal words have $\ln 4$ nats.


# %% tags=["exercise"]
def entropy(p):
    return None  # your code here


checks.entropy(entropy)

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


checks.entropy(entropy)

# %% [markdown]
# ## Exercise 3 · Forward KL
#
# *medium · the heart of the next lesson · 10 minutes*
#
# Write `forward_kl(p, q)` for two tensors of probabilities, over the last
# dimension, in nats. Where $p_i = 0$, the term is 0.
#
# By hand: $p = (1, 0)$ and $q = (½, ½)$ are $\ln 2$ apart.


# %% tags=["exercise"]
def forward_kl(p, q):
    return None  # your code here


checks.forward_kl(forward_kl)

# %% [markdown] tags=["hint"] title="It is not zero where p equals q"
# The check says *not zero at equality*? Then the entropy of $p$ is missing:
# what you have is the cross-entropy. `torch.xlogy(p, p)` is $p \ln p$ with
# $0 \ln 0 = 0$.

# %% [markdown] tags=["hint"] title="It is zero where p equals q, but wrong elsewhere"
# Look at the weights: every log-ratio counts with $p$, the teacher's probability; with
# $q$ in its place you have the reverse KL. Then look at the ratio: $p$ stands on top,
# or the result turns negative. And at the end: a *sum* over the words, not a mean.


# %% tags=["solution"]
def forward_kl(p, q):
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


checks.forward_kl(forward_kl)

# %% [markdown]
# ## Recap
#
# | idea | in one line |
# |---|---|
# | softmax | exponential, then divide by the sum; only differences of logits matter |
# | temperature | divides the logits: below 1 sharpens, above 1 flattens, order stays |
# | dark knowledge | what the probabilities below the top say |
# | entropy | how much a distribution leaves open, in nats |
# | forward KL | weighs by the teacher, covers |
# | reverse KL | weighs by the student, chooses |
# | T² | keeps the gradient from shrinking further as T grows, once T is high |
#
# **When would you not use a temperature?** When the tail of the teacher's
# distribution is noise rather than knowledge: a high $T$ makes the student
# match thousands of unlikely tokens with the same care as the likely ones.
# $T = 1$ is the natural start for language models, and the next lesson
# measures what other values do.
#
# *Read on:* Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural
# Network* (2015, arXiv:1503.02531).
