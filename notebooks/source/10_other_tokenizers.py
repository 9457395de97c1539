# %%
import math

import matplotlib.pyplot as plt
import torch

from distill_helpers import get_profile
from distill_helpers.course.plots import PALE, TEACHER, use_style
from distill_helpers.machine import progress_bar

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
row_count = profile.pick(smoke=16, cpu=256, gpu=2000)
batch_size = profile.pick(smoke=4, cpu=16, gpu=16)
steps = profile.pick(smoke=2, cpu=96, gpu=400)
judged_rows = profile.pick(smoke=4, cpu=100, gpu=100)
seeds = profile.pick(smoke=(0,), cpu=(0, 1, 2), gpu=(0, 1, 2))
read_at_once = profile.pick(smoke=4, cpu=8, gpu=32)

# %% [markdown]
# ## Two ways to cut a sentence
#
# So far teacher and student had one tokenizer. But the best teacher for your student may
# come from another family of models, and families cut text differently. Then the teacher
# speaks of many tokens that the student lacks, and its tokens end at other places in the
# text. What can still be compared?

# %%
from distill_helpers.course import diagrams

diagrams.other_tokenizers()

# %% [markdown]
# Our pair: SmolLM2 with its 49,152 tokens is the teacher. The student has the small
# tokenizer of the Austen lessons, with 2,048. What do they make of one sentence?

# %%
from distill_helpers.tasks.teachers import load_teacher, load_tiny_teacher

teacher, teacher_tokenizer = load_teacher(profile)
austen_model, tokenizer = load_tiny_teacher("prose")
sentence = "Mr. Darcy smiled a wonderful smile at the café guests."
for name, cutter in (
    ("student", tokenizer),
    ("teacher", teacher_tokenizer),
):
    ids = cutter(sentence, add_special_tokens=False)["input_ids"]
    print(name, [cutter.decode(token) for token in ids], "\n")

# %% [markdown]
# A � is half a letter: the student has cut inside *é*. What the two share is the text, and
# text is **bytes**. An English letter is one byte, é is two, an emoji is four. Every token
# stands for some bytes. `align_tokenizers` knows them:

# %%
from distill_helpers import align_tokenizers

pair = align_tokenizers(tokenizer, teacher_tokenizer)


# %%
def pieces(side, text):
    """The bytes of each token of a text."""
    ids = side.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [side.bytes_of[token] for token in ids]


ours = pieces(pair.student, sentence)
theirs = pieces(pair.teacher, sentence)
print(ours[-9:], "\n", theirs[-3:])

# %% [markdown]
# ## Exercise 1 · Align
#
# *medium · everything else rests on it · 15 minutes*
#
# Where a token of ours and a token of theirs end at the same byte, both have read the
# same text. Between two such places lies a **chunk**: some tokens of ours and some of
# theirs, for the same bytes.
#
# Write `align(ours, theirs)` for two lists of `bytes`. Return a list of pairs, one a
# chunk: how many tokens of ours it has, and how many of theirs. Chunks should be as short
# as can be, so cut at every common end.
#
# By hand: `[b" wonder", b"ful", b" day"]` and `[b" wonderful", b" day"]` give
# `[(2, 1), (1, 1)]`.

# %% tags=["exercise"]
from distill_helpers.course import checks


def align(ours, theirs):
    return None  # your code here


my_align = checks.align(align, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Take a token of ours, then tokens of theirs as long as theirs is behind. If both have now
# read equally many bytes, a chunk ends here: note it, and count anew. If not, take the next
# token of ours.

# %% [markdown] tags=["hint"] title="The last chunk is missing"
# Both texts end together, so the last chunk ends where the loop does. Note a chunk
# *after* you have taken a token, not before.

# %% tags=["solution"]
from distill_helpers.course import checks


def align(ours, theirs):
    theirs, pairs, k, m, ahead = iter(theirs), [], 0, 0, 0
    for token in ours:
        k, ahead = k + 1, ahead + len(token)
        while ahead > 0:
            m, ahead = m + 1, ahead - len(next(theirs))
        if ahead == 0:
            pairs.append((k, m))
            k = m = 0
    return pairs


my_align = checks.align(align, fallback=True)

# %%
from distill_helpers.course.plots import two_cuts

fig, ax = plt.subplots(figsize=(9, 1.9))
two_cuts(ax, ours, theirs, my_align(ours, theirs))
ax.set_title("One sentence, cut twice: chunks end where both have a cut")
plt.show()

# %% [markdown]
# A frame marks a chunk of several tokens, on one side or on both. Elsewhere the two
# tokenizers agree, token by token. Mostly the teacher's token is the longer one. For
# *Darcy* it is the student's, which has read nothing but Austen.
#
# ## The probability of a chunk
#
# Now there is something to compare. Both models can say how likely they find a *chunk*,
# after the text before it. For a chunk of several tokens, all of them must be written, one
# after the other. So their probabilities are multiplied, and log-probabilities are added.
#
# The small model, loaded above, has read Austen and cuts as the student does. **Predict:**
# which of the two finds *wonderful* more likely here?
#
# The package aligns whole rows. `align_text` gives the tokens of both sides, and the chunks:
# `chunk.student` and `chunk.teacher` are slices of the two rows.


# %%
def own_log_p(model, ids):
    """log p of every token of a row; 0 for the first, not predicted."""
    ids = torch.tensor(ids)
    with torch.no_grad():
        logits = model(ids[None].to(model.device)).logits[0].float().cpu()
    known = logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]
    return torch.cat([torch.zeros(1), known])


# %%
both = pair.align_text(sentence)
chunk = next(
    c
    for c in both.chunks
    if pair.student.spelled(both.student_ids[c.student]) == b" wonderful"
)

# %%
for name, model, ids, tokens, cutter in (
    ("small", austen_model, both.student_ids, chunk.student, tokenizer),
    ("SmolLM2", teacher, both.teacher_ids, chunk.teacher, teacher_tokenizer),
):
    log_p = own_log_p(model, ids)[tokens]
    parts = [
        f"p({cutter.decode(token)!r}) = {p:.3%}"
        for token, p in zip(ids[tokens], log_p.exp().tolist(), strict=True)
    ]
    print(f"{name:8}", " · ".join(parts), f"→ {log_p.sum().exp():.3%}")

# %% [markdown]
# SmolLM2 does. The small model begins *wonder* almost as readily; it loses at *ful*, for *wonder* may
# go on otherwise.
#
# ## Exercise 2 · Log-probabilities of chunks
#
# *medium · a sum over groups, with a gradient · 10 minutes*
#
# Write `chunk_log_p(log_p, chunk)`. `log_p` holds the log-probability of each token of a row,
# `chunk` the number of the chunk that it is in, both `[tokens]`. Numbers count from 0; −1
# means none, such as the first token. Return `[chunks]`: the log-probability of each.
#
# By hand: two tokens of one chunk with probabilities ½ and ¼ give log ⅛.


# %% tags=["exercise"]
def chunk_log_p(log_p, chunk):
    return None  # your code here


log_p_of = checks.chunk_log_p(chunk_log_p, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Make a tensor of zeros, one for each chunk, and add every token's number at its place.
# `index_add` does that in one call, and lets gradients through.

# %% [markdown] tags=["hint"] title="The last chunk is too small"
# As an index, −1 means the last place. Leave those tokens out, of both tensors, before you
# add.


# %% tags=["solution"]
def chunk_log_p(log_p, chunk):
    counts = chunk >= 0
    total = log_p.new_zeros(int(chunk.max()) + 1)
    return total.index_add(0, chunk[counts], log_p[counts])


log_p_of = checks.chunk_log_p(chunk_log_p, fallback=True)

# %% [markdown]
# ## The loss: does this chunk come, or another one?
#
# We know how likely each model finds the chunk that *stands there*. Of all others we know
# only that together they have the rest of the probability. So compare two distributions
# over two outcomes: this chunk, or any other. Their KL is
#
# $$p \log\frac{p}{q} + (1 - p) \log\frac{1 - p}{1 - q}$$
#
# with the teacher's $p$ and the student's $q$ for the chunk. This is **likelihood of
# chunks**, after Minixhofer et al. (2025), without their temperature. If the teacher found
# a chunk unlikely, the student is pushed to find it just as unlikely.
#
# The two numbers are not of quite the same event. If the student cuts *wonder, ful, ly*, its
# number for *wonderful* includes *wonderfully*, for which the teacher may have another token.
# We accept this error.
#
# All losses below take a `row`, a dictionary that we fill later:
#
# | key | what it holds |
# |---|---|
# | `ids`, `chunk` | the student's tokens, and the number of the chunk that each is in |
# | `log_p` | the teacher's log-probability of each chunk |
# | `before` | the places where a chunk is about to begin |
# | `inside` | the other places, where the text's own token is the label |
# | `first`, `twins` | what the teacher says at `before`, in the student's tokens |
# | `top` | its largest probabilities there, sorted |


# %%
def own(log_q, row):
    """The student's log-probabilities of its own tokens, from the second."""
    return log_q[:-1].gather(-1, row["ids"][1:, None])[:, 0]


def by_text(log_q, row):
    """The text's own tokens, for comparison."""
    return -own(log_q, row).sum()


# %%
def by_chunks(log_q, row):
    """KL over two outcomes, summed over the row's chunks."""
    ours = log_p_of(own(log_q, row), row["chunk"][1:]).clamp(max=-1e-4)
    theirs = row["log_p"].clamp(max=-1e-4)  # log(1 − p) stays finite
    p = theirs.exp()
    others = torch.log1p(-p) - torch.log1p(-ours.exp())
    return (p * (theirs - ours) + (1 - p) * others).sum()


# %% [markdown]
# ## A map between vocabularies
#
# A chunk gives one number, but the teacher has 49,152 at each place. Can the student use
# them? At the places where a chunk begins, both models are about to say what comes
# next. For this we need a list: for each of the teacher's tokens, the student's token that
# it stands for. It can be made in two ways:
#
# * **twins**: the student's token with the very same bytes, or none;
# * **first pieces**: cut the teacher's token with the student's tokenizer, and take the
#   first piece. A model about to say *wonderful* is about to say *wonder*.
#
# ## Exercise 3 · Bring it over, and find where it fails
#
# *hard · what a map keeps, and what it loses · 25 minutes*
#
# Write `project(p, to_student, size)`. `p` is `[rows, teacher's tokens]`, `to_student[t]` the
# student's token for the teacher's token `t`, or −1. Return `[rows, size]`, the
# probabilities of the student's tokens. What goes nowhere is missing in the sum.

# %% [markdown] tags=["given"]
# By hand: `p = [0.5, 0.2, 0.2, 0.1]` with `to_student = [1, 0, 1, -1]` and `size = 3` gives
# `[0.2, 0.7, 0]`, and 0.1 is missing.


# %% tags=["exercise"]
def project(p, to_student, size):
    return None  # your code here


projected = checks.project(project, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# It is exercise 2 once more, with columns instead of tokens: `index_add` takes the
# dimension along which to add.

# %% [markdown] tags=["hint"] title="A token gets too little"
# Several of the teacher's tokens can go to one of the student's. Assigning keeps only one
# of them; they have to be added.


# %% tags=["solution"]
def project(p, to_student, size):
    mapped = to_student >= 0
    q = p.new_zeros(len(p), size)
    return q.index_add(1, to_student[mapped], p[:, mapped])


projected = checks.project(project, fallback=True)

# %% [markdown]
# Now the two maps, for all of the teacher's tokens:

# %%
size = len(tokenizer)
twins = torch.full((teacher.config.vocab_size,), -1)
has_twin = pair.twins >= 0
# pair.twins: for each of the student's tokens, the teacher's. Turn it round.
twins[pair.twins[has_twin]] = torch.arange(size)[has_twin]

# %%
first = pair.first_pieces
for name, to_student in (("twins", twins), ("first pieces", first)):
    print(f"{name:13} {(to_student >= 0).sum():6,} of {len(first):,} tokens")

# %% [markdown]
# Few tokens have a twin. But what counts is the share of the teacher's *probability* on them.
# **Predict** it, for the places of our sentence: a tenth? half? nine tenths? The first chunk
# is left out, for nothing predicts it.


# %%
def covered(text, to_student):
    """Where chunks begin: what comes there, and the mass that a map keeps."""
    both = pair.align_text(text)
    ids = torch.tensor(both.teacher_ids)
    with torch.no_grad():
        logits = teacher(ids[None].to(teacher.device)).logits[0]
    p = logits.float().softmax(-1).cpu()
    starts = [c for c in both.chunks if c.teacher.start > 0]
    before = torch.tensor([c.teacher.start for c in starts]) - 1
    words = [pair.student.spelled(both.student_ids[c.student]) for c in starts]
    return words, projected(p[before], to_student, size).sum(-1)


# %%
words, share = covered(sentence, twins)
labels = [word.decode(errors="replace").replace(" ", "␣") for word in words]
fig, ax = plt.subplots(figsize=(8, 2.4))
ax.bar(range(len(words)), 100 * share, color=TEACHER)
ax.axhline(100, color="0.4", ls="--")
ax.set_xticks(range(len(words)), labels, rotation=40, ha="right")
ax.set_xlabel("the chunk that comes next")
ax.set_ylabel("mass with a twin (%)")
ax.set_title("Before some chunks, most of what the teacher says has no twin")
ax.grid(axis="x", visible=False)
plt.show()
print(f"mean {share.mean():.0%}, least {share.min():.0%}")

# %% [markdown]
# A bar is not about the word below it, but about *all* that the teacher expected there.
# Frequent words have twins, and the teacher mostly expects frequent words. **Second half of the
# exercise:** find a sentence with a lower mean. Where does the teacher expect words that Austen never
# wrote? Ours is a first try:

# %%
mine = "The bicycle and the telephone were invented in Germany."
words, share = covered(mine, twins)
print(f"mean {share.mean():.0%}, least {share.min():.0%}")

# %%
_, kept_mass = covered(sentence, first)
print(f"first pieces, our sentence: mean {kept_mass.mean():.1%}")
print(f"student's tokens with a twin: {has_twin.sum():,} of {size:,}")

# %% [markdown]
# First pieces keep nearly all of the teacher's mass: *wonder* and *wonderful* both count for
# *wonder*. How the word goes on, the teacher does not say; the text does.
#
# With twins, what has none becomes one outcome, *something else*. But the two models do not
# mean the same by it. The teacher's is tens of thousands of tokens, mostly whole words; the
# student's is the few tokens without a twin. So where the teacher says *wonderful*, twins
# push *wonder* down, and those few tokens up.
#
# There is also **tokenization bias**. A teacher that has the token *wonderful* almost never
# writes *wonder* and then *ful*. So its *wonder* means "*wonder*, and not *wonderful*". Twins
# take this number as it is. First pieces add the two, as they should.
#
# ## Where the student's token is longer
#
# Look at *Darcy* in the figure. The teacher says *Dar* first, which the map sends to *D*, the
# student's first piece. So *D* gets it, *Darcy* gets nothing, and the student
# learns *not* to say it, although the text does.
#
# The text lets us repair this. We know how likely the teacher finds the whole chunk: that
# is a product, as above. This much belongs to *Darcy*, so we move it.


# %%
def move_to_longer(p, chunk_p, meant, begun):
    """Give a chunk's probability to the student's token of the text."""
    p = p.clone()
    for k in range(len(p)):
        if meant[k] != begun[k]:
            p[k, meant[k]] += chunk_p[k]
            if begun[k] >= 0:
                p[k, begun[k]] -= chunk_p[k]
    return p.clamp(min=0)  # rounding may leave a little less than 0


# The student's tokens: D, Bennet, Darcy; p(chunk) = 0.6 · 0.5.
print(move_to_longer(torch.tensor([[0.6, 0.4, 0.0]]), [0.3], [2], [0]))

# %% [markdown]
# For other long names that *could* have stood there, nobody knows the product. So this map is
# for a teacher with the larger vocabulary.
#
# ## Two losses with a map
#
# The loss is the KL of lesson 02 where a chunk begins. This loss does not ask the teacher
# *inside* a chunk. There the text's own token is the label: without it, the student would
# never learn to write *ful*.


# %%
def inside(log_q, row):
    """Text labels at the places where no chunk begins."""
    return -own(log_q, row)[row["inside"]].sum()


def by_first_pieces(log_q, row):
    """Forward KL from the projected teacher where a chunk begins."""
    p, q = row["first"], log_q[row["before"]]
    return (p * (p.clamp(min=1e-9).log() - q)).sum() + inside(log_q, row)


# %%
def by_twins(log_q, row):
    """The same for tokens with a twin; all others are one outcome."""
    p, q = row["twins"], log_q[row["before"]]
    rest = (1 - p.sum(-1)).clamp(min=1e-9)
    tail = q.masked_fill(has_twin, -math.inf).logsumexp(-1)
    known = (p * (p.clamp(min=1e-9).log() - q))[:, has_twin].sum()
    return known + (rest * (rest.log() - tail)).sum() + inside(log_q, row)


# %% [markdown]
# ## Sorting throws the meaning away
#
# A third idea needs no map at all: sort both distributions, and compare the largest
# probability with the largest, the second with the second (*ULD*, Boizard et al. 2024).
# Here are two teachers of a student that has to say *yes*, *no* or *perhaps*:

# %% tags=["nbval-check-output"]
yes_sayer = torch.tensor([0.70, 0.20, 0.10])
no_sayer = torch.tensor([0.20, 0.70, 0.10])


def sorted_distance(p, q):
    ordered = p.sort(descending=True).values - q.sort(descending=True).values
    return ordered.abs().sum(-1)


print(f"distance of the two: {sorted_distance(yes_sayer, no_sayer):.1f}")

# %% [markdown]
# They say opposite things and have the same sorted probabilities, so for this loss they are
# equal. It tells a student *how sure* to be, and not of what. Therefore it is used next to the
# text's labels, never alone. We do the same. Which token to raise, only the labels say:


# %%
def by_rank(log_q, row):
    """Half the text's labels, half the distance between sorted curves."""
    apart = sorted_distance(log_q[row["before"]].exp(), row["top"])
    return 0.5 * by_text(log_q, row) + 0.5 * apart.sum()


# %% [markdown]
# ## Five students
#
# The teacher reads each row once. For each chunk we keep three rows of 2,048 numbers, and a
# few more, instead of 49,152 numbers for each token.

# %%
from distill_helpers import build_student, evaluate, pack
from distill_helpers.tasks.prose import austen

rows = pack(austen("train"), tokenizer, 64).shuffle(seed=0)
aligned = [pair.align(ids) for ids in rows[:row_count]["input_ids"]]
for side in ("student", "teacher"):
    count = sum(len(getattr(one, f"{side}_ids")) for one in aligned)
    print(f"{side}: {count:,} tokens")


# %%
def keep(both, log_p):
    """A row of the losses. Nothing predicts a text's first token."""
    ours, theirs = (
        torch.tensor(both.student_ids),
        torch.tensor(both.teacher_ids),
    )
    chunks = [c for c in both.chunks if c.student.start and c.teacher.start]
    chunk, other = torch.full_like(ours, -1), torch.full_like(theirs, -1)
    for number, c in enumerate(chunks):
        chunk[c.student] = other[c.teacher] = number
    chunk_log = log_p_of(own(log_p, {"ids": theirs}), other[1:])
    before = torch.tensor([c.student.start - 1 for c in chunks])
    begin = torch.tensor([c.teacher.start - 1 for c in chunks])
    p = log_p[begin].exp()
    # The student's token of the text, and where the map sends the teacher's.
    meant, begun = ours[before + 1], first[theirs[begin + 1]]
    first_p = projected(p, first, size)
    first_p = move_to_longer(first_p, chunk_log.exp(), meant, begun)
    is_inside = torch.ones(len(ours) - 1, dtype=torch.bool)
    is_inside[before] = False
    return {
        "ids": ours,
        "chunk": chunk,
        "before": before,
        "inside": is_inside,
        "log_p": chunk_log,
        "first": first_p / first_p.sum(-1, keepdim=True),
        "twins": projected(p, twins, size),
        "top": p.topk(size).values,
    }


# %% [markdown]
# The little that first pieces miss is divided out, so that they sum to one again. Padding at
# the end of a batch changes nothing, for the model looks only back.

# %%
kept = []
for at in range(0, len(aligned), read_at_once):
    some = aligned[at : at + read_at_once]
    ids = [torch.tensor(one.teacher_ids) for one in some]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    with torch.no_grad():
        logits = teacher(batch.to(teacher.device)).logits.float().cpu()
    for both, said in zip(some, logits, strict=True):
        said = said[: len(both.teacher_ids)].log_softmax(-1)
        kept.append(keep(both, said))

# %%
share = torch.cat([row["twins"].sum(-1) for row in kept]).mean()
asked = sum(len(row["before"]) for row in kept)
places = sum(len(row["ids"]) - 1 for row in kept)
print(f"the teacher is asked at {asked / places:.0%} of the student's places")
print(f"there, {share:.0%} of what it says has a twin")

# %% [markdown]
# The loop is that of lesson 02. All five read the same rows in the same order, several times
# over, with the same number of steps. SmolLM2's reading is not counted: it costs more than any
# training here. They are judged on the first pages of a novel that they have not read, in **bits
# per byte**, which can be compared with models of any other tokenizer, too.


# %%
def train(loss_of, seed=0):
    """A fresh student; the loss is a mean over tokens."""
    student = build_student(tokenizer, layers=2, width=96, seed=seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in progress_bar(range(steps)):
        at = step * batch_size
        some = [kept[(at + i) % len(kept)] for i in range(batch_size)]
        ids = torch.stack([row["ids"] for row in some])
        log_q = student(ids).logits.log_softmax(-1)
        pairs = zip(log_q, some, strict=True)
        loss = sum(loss_of(q, row) for q, row in pairs) / ids[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


# %% [markdown]
# **Predict** the order of the five. Each is trained from three fresh starts.

# %%
guess = "?"  # text, ranks, twins, first pieces, chunks

# %%
losses = {
    "Austen's text": by_text,
    "ranks + text": by_rank,
    "chunks": by_chunks,
    "twins": by_twins,
    "first pieces": by_first_pieces,
}


test = pack(austen("test"), tokenizer, 64).select(range(judged_rows))


def judge(model):
    return evaluate(model, test, tokenizer).bits_per_byte


# %%
bits = {
    name: [judge(train(loss_of, seed)) for seed in seeds]
    for name, loss_of in losses.items()
}

# %% [markdown]
# Four more, to compare with. Two are below: a student that has learned nothing, and a plain count of
# the rows' tokens. Two are above: the small Austen teacher, which cuts as the student does, and
# SmolLM2 on the very same stretches.

# %%
from datasets import Dataset

stretches = tokenizer.batch_decode(test["input_ids"][:])
in_its_tokens = teacher_tokenizer(stretches, add_special_tokens=False)
theirs = Dataset.from_dict({"input_ids": in_its_tokens["input_ids"]})
beginner = build_student(tokenizer, layers=2, width=96, seed=0).eval()

# %%
# How often each token stands in the rows, and no model at all.
counted = torch.cat([row["ids"] for row in kept]).bincount(minlength=size) + 1
surprise = -(counted / counted.sum()).log2()
to_say = torch.tensor(test["input_ids"][:])[:, 1:]
in_all = evaluate(beginner, test, tokenizer).bytes

# %%
others = {
    "SmolLM2": evaluate(teacher, theirs, teacher_tokenizer).bits_per_byte,
    "Austen teacher": judge(austen_model),
    "nothing learned": judge(beginner),
    "tokens counted": float(surprise[to_say].sum()) / in_all,
}
for name, value in others.items():
    print(f"{name:16} {value:.2f}")

# %%
fig, ax = plt.subplots(figsize=(7, 2.8))
means = [sum(values) / len(values) for values in bits.values()]
bars = ax.barh(list(bits), means, color=[PALE, *[TEACHER] * 4])
ax.bar_label(bars, fmt="%.2f", padding=8)
for y, values in enumerate(bits.values()):
    ax.plot(values, [y] * len(values), "o", color="0.2", ms=5, mec="white")
for (name, value), ha in zip(others.items(), ("right", "left"), strict=False):
    ax.axvline(value, color="0.2", ls="--", zorder=3)
    ax.text(value, -0.72, name, color="0.2", ha=ha)
ax.invert_yaxis()
ax.margins(x=0.1)
ax.grid(axis="y", visible=False)
ax.set_xlabel("bits per byte on an unread novel (lower is better)")
ax.set_title("Five ways to learn, from three starts each", pad=20)
plt.show()
print(f"you expected: {guess}")

# %% [markdown]
# The dots are the three starts. Blue bars use the teacher, which may have met Austen before.
#
# Both maps are ahead of the text, and still far from either teacher, which have read far more.
# Ranks lie so near to the
# text's labels that their dots overlap: no verdict. Chunks alone end behind the text. A likely
# reason: a label pulls its token up with force $1 - q$, a chunk only with $p - q$, a weak
# force where the teacher is unsure. The temperature of
# Minixhofer et al., left out here, makes it stronger, and their students were trained already. And
# chunks have no labels; the maps have some.
#
# All five have only begun to learn: compare them with the plain count of tokens, which is no model
# at all. In a trial with more text and more steps, from one start, most of the maps' lead was gone.
# So this is a first look.
#
# ## Text is the plainest bridge
#
# There is a way that needs none of this: let the teacher write, and learn its text, as in
# lesson 05. Text has no tokenizer. The teacher must write, which takes time, and you learn
# one token a place instead of a distribution. But it works with any API. Take it if you
# cannot see the teacher's logits. We did not try it in this lesson.

# %% [markdown] tags=["published"]
# ## What others found
#
# | who | idea and finding |
# |---|---|
# | Boizard et al. 2024, *ULD* (arXiv:2402.12030) | sorted probabilities next to text labels, between families |
# | Minixhofer et al. 2025, *ALM* (arXiv:2503.20083) | likelihood of chunks, also from tokens to bytes; some chunks are biased and left out |
# | *GOLD* in TRL, October 2025 | tokens with a twin by KL, the others sorted |
# | Sreenivas et al. 2026, *X-Token* (arXiv:2605.21699) | twins with the others sorted fail where important tokens have no twin: numbers of several digits, for example. A map from many to one mends that |
#
# X-Token's map begins as a rule about strings and is learned from there. Ours is such a rule.

# %% [markdown]
# ## With the package
#
# `SoftLabelTrainer` aligns the rows, reads the teacher and logs the covered mass, per label. Its
# names are `cross="pieces"` for first pieces, `"mapped"` for twins, `"chunks"`, and `"sorted"` for
# ranks. Of these only `"pieces"` brings labels of its own: give the others `alpha=0.5`, and
# `"chunks"` `temperature=10`, too. Two more are `"words"`, which joins chunks to whole words, and `"shared"`. There every token,
# of either side, counts for the token that both have and that it begins with. Which of its own
# the student writes, the text says. It is meant for a student with the larger vocabulary.
#
# ```python
# from distill_helpers import SoftLabelTrainer
#
# SoftLabelTrainer(
#     build_student(tokenizer, layers=2, width=96, seed=0),
#     teacher=teacher,
#     tokenizer=tokenizer,
#     teacher_tokenizer=teacher_tokenizer,
#     cross="pieces",
#     train_dataset=rows.select(range(row_count)),
# ).train()
# ```
#
# Special tokens stand for no bytes; those of the same role are paired. A tokenizer that changes
# the text, such as one that makes all letters small, is refused, and the error says why.
# Where teacher and student have different chat templates, render each with its own, and
# align the answer alone.

# %% [markdown]
# ## Turn the knobs
#
# | turn | expect | see |
# |---|---|---|
# | `row_count = 1024`, `steps = 384` | do the text's own labels catch up? | the bars |
# | chunks mixed half and half with text | between the two, or better than both? | its bar |
# | let `inside` return 0 | a student that cannot finish a word | the bars of the maps |
# | a sentence in another language | less mass with a twin | the mean |

# %%
# A place to try. For example:
# def half(log_q, row):
#     return 0.5 * by_chunks(log_q, row) + 0.5 * by_text(log_q, row)
#
# print(judge(train(half)))

# %% [markdown]
# ## Recap
#
# * **One number to remember:** the share of the teacher's mass that has a twin, printed for the
#   training rows: it tells how much a map must bring over.
# * Two tokenizers share the text's bytes. Chunks end where both have cut.
# * A chunk's probability is a product. Two models can be compared by it, one outcome at a time.
# * A map brings the teacher's distribution to the student's tokens where a chunk begins.
#   Twins join a part of it into one outcome; first pieces keep almost all of the mass, and
#   not how a word goes on.
# * Where the student's token is longer, it gets the probability of the whole chunk.
# * Sorted probabilities say how sure to be, and not of what.
# * **Use it when** the better teacher is of another family and you can read its logits.
#   **Do not, when** a teacher with your tokenizer is nearly as good, or when you can only
#   ask: then text is the bridge.
#
# *Read on:* the papers of the table.
