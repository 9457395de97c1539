# %%
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from distill_helpers import get_profile
from distill_helpers.course.plots import STUDENT, TEACHER, TEXT, use_style

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# The sizes of this lesson:

# %%
asked_count = profile.pick(smoke=2, cpu=40, gpu=200)
reply_tokens = profile.pick(smoke=4, cpu=80, gpu=80)
open_rows = profile.pick(smoke=8, cpu=200, gpu=200)
live_sizes = profile.pick(
    smoke={"steps": 3, "validation": 10},
    cpu={"steps": 600},
    gpu={"steps": 600},
)
live_rows = profile.pick(
    smoke={"labelled": 40, "questions": 40}, cpu={}, gpu={}
)
base_steps = profile.pick(smoke=2, cpu=900, gpu=900)
judged = profile.pick(smoke=20, cpu=500, gpu=2000)
planned = profile.pick(smoke=1, cpu=4, gpu=4)

# %% [markdown]
# ## Two worlds, one picture
#
# Every lesson so far compared one technique with its own baselines. Now you must choose
# between techniques, and the answer depends on the world you are in:
#
# * **closed answers**: one answer is right. Ours is the shared task, three numbers to add.
#   A score is the share of right answers;
# * **open text**: many continuations are good. Ours is Jane Austen. A score is the NLL of
#   a novel that no model here has read, and lower is better.
#
# In both, the teacher is good and not perfect, and the student is small. **Predict:** does
# the same technique win in both worlds?

# %%
from distill_helpers.studies import codistilled_few, load_results
from distill_helpers.studies import side_by_side as study

closed = load_results("side_by_side")
opened = {
    name: load_results(name)
    for name in ("soft_labels", "stored_labels", "codistilled_few")
}
SETTING, FEW = study.SAME_STEPS, codistilled_few.FEW

# %% [markdown]
# One row is one technique. Its colour says what it needs of the teacher, for that often decides.
#
# | | closed answers | open text |
# |---|---|---|
# | *labels*, and all in grey | 500 problems with right answers | 800 rows of Austen |
# | *text*, *soft labels*, *own text* | 2,000 questions, with the teacher's answers | the same 800 rows |
# | *labels and …* | both | the same 800 rows |
# | *drawn* and *likeliest targets* | – | the same, one token of the teacher at every position |

# %%
GREY, HYBRID = "0.45", "hybrid 8 + 24"
ROWS = {
    "labels": (GREY, study.LABELS, ("soft_labels", "labels")),
    "smoothed labels": (GREY, study.SMOOTHED, None),
    "self-distillation": (GREY, study.SELF, None),
    "co-distillation": (GREY, study.TOGETHER, ("codistilled_few", "ramp")),
    "teacher's text": (TEXT, study.TEXT, None),
    "checked text": (TEXT, study.CHECKED, None),
    "labels and text": (TEXT, study.BOTH, None),
    "drawn targets": (TEACHER, None, ("soft_labels", "sampled")),
    "likeliest targets": (TEACHER, None, ("soft_labels", "argmax")),
    "soft labels": (TEACHER, study.SOFT, ("soft_labels", "soft T=1")),
    "stored soft labels": (TEACHER, study.STORED, ("stored_labels", HYBRID)),
    "labels and soft labels": (
        TEACHER,
        study.BOTH_SOFT,
        ("soft_labels", "mix"),
    ),
    "own text": (TEACHER, study.OWN, None),
}


# %%
def scores_of(row):
    """Interval of a technique in both worlds; None where it was not run."""
    _, arm, there = ROWS[row]
    first = closed.mean("exact_match", arm, SETTING) if arm else None
    second = opened[there[0]].mean("nll", there[1], FEW) if there else None
    return first, second


# %%
def draw(ax, place, found, color, form):
    if found is None:
        where = ax.get_yaxis_transform()
        ax.text(0.02, place, "not run", color="0.6", transform=where)
        return
    ax.plot([found.low, found.high], [place, place], color=color, lw=3)
    ax.plot(found.mean, place, "o", color=color, ms=7)
    ax.text(
        found.mean, place - 0.25, form.format(found.mean), ha="center", size=8
    )


# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 5.2), sharey=True)
for place, (row, (color, *_)) in enumerate(ROWS.items()):
    first, second = scores_of(row)
    draw(axes[0], place, first, color, "{:.0f}")
    draw(axes[1], place, second, color, "{:.2f}")
# One student alone, tuned as far as the co-distilled one.
beside = opened["codistilled_few"].mean("nll", codistilled_few.SILENT, FEW)
height = [*ROWS].index("co-distillation") + 0.25
axes[1].plot(beside.mean, height, "o", color=GREY, mfc="white", ms=7)
told = f"   alone, tuned alike: {beside.mean:.2f}"
axes[1].text(beside.mean, height, told, va="center", size=8)
axes[0].set_yticks(range(len(ROWS)), list(ROWS))
axes[0].set_ylim(len(ROWS) - 0.5, -0.7)
axes[1].invert_xaxis()
axes[0].set_title("closed answers: percent correct")
axes[1].set_title("open text: NLL, lower (further right) is better")
for ax in axes:
    ax.grid(axis="y", visible=False)
needs = {
    "no finished teacher": GREY,
    "its text": TEXT,
    "what it says at every position": TEACHER,
}
lines = [plt.Line2D([], [], color=c, marker="o") for c in needs.values()]
place = {"loc": "outside lower center", "ncols": 3}
fig.legend(lines, list(needs), title="needs of the teacher", **place)
plt.show()

# %% [markdown]
# Points are means, lines their intervals over five seeds (open co-distillation: twenty); steps
# are equal. **What wins depends on
# the world.** In closed answers, six ways to read the teacher's answers lie together. In open
# text soft labels are far ahead, and the teacher's likeliest tokens last of all.
#
# Read the picture with care. Closed students begin from one small *base* model, which adds
# numbers up to 39; open ones from nothing. Text that the teacher *writes* was not tried in
# open text: *far ahead* is ahead of Austen's own text. *Labels and soft labels* adds 500
# problems in the closed world; in the open one it only mixes two losses, and its mean is worse
# than that of soft labels alone. The open co-distilled student was tuned further. The
# open teacher has read all of Austen's training rows, its students 800 of them.

# %% [markdown]
# ## Why the worlds differ
#
# Look at what the teachers *say*. At every position of a text, take the probability of the
# teacher's likeliest token: once on its own answers to sums, once on a novel. Its own text
# alone makes it surer.

# %%
from distill_helpers import pack
from distill_helpers.data import collator_for
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_tiny_teacher


def sureness(name, rows):
    """The teacher's highest probability, wherever it has to choose."""
    model, tokenizer = load_tiny_teacher(name)
    batch = collator_for(tokenizer)(rows)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    return logits.softmax(-1).amax(-1)[labels != -100]


# %%
task = study.load_task(0, **live_rows)
sums = [task.text[i] for i in range(min(open_rows, len(task.text)))]
novel = pack(austen("test"), load_tiny_teacher("prose").tokenizer, 64)
prose = [novel[i] for i in range(open_rows // 4)]
sure = {"sums": sureness("sums", sums), "prose": sureness("prose", prose)}

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.8))
bins = [i / 20 for i in range(21)]
for (name, found), dash in zip(sure.items(), ("-", "--"), strict=True):
    share = torch.full_like(found, 100 / len(found)).tolist()
    options = {"weights": share, "histtype": "step", "lw": 2, "ls": dash}
    ax.hist(found.tolist(), bins, color=TEACHER, label=name, **options)
ax.set_xlabel("teacher's probability of its likeliest token")
ax.set_ylabel("positions, percent")
ax.set_title("The sums leave little open, prose leaves most open")
ax.legend(loc="upper center")
plt.show()

# %% [markdown]
# A distribution that is nearly one token says nearly what the token says. In prose, most
# positions are open, and there the other probabilities carry what a label cannot. That is
# our explanation; amount and start differ, too. **Ask first how open your teacher's next
# token is.** It costs one forward pass over a few texts, before anything is trained.
#
# ## What was claimed
#
# The claims about the closed task were written down before its seeds were run. Each seed
# gave all techniques the same labels and questions, so two are compared seed by seed.

# %%
from distill_helpers.course.plots import forest

claims = {
    "text_beats_labels": "2,000 answers of the teacher beat 500 right ones",
    "both_beat_text": "labels and text beat text",
    "checking_helps": "checked text beats text",
    "soft_beats_text": "soft labels beat text",
    "labels_for_longer": "soft, 2,000 questions, beat labels for longer",
    "not_smoothing": "soft labels on the 500 problems beat smoothing",
    "self_helps": "self-distillation beats labels",
    "own_helps": "a last quarter of own text beats text",
}

# %%
fig, ax = plt.subplots(figsize=(8, 5))
verdicts = [closed.verdict(name) for name in claims]
forest(ax, verdicts, words=list(claims.values()))
ax.set_title("Closed answers: what a student read decided most")
plt.show()

# %% [markdown]
# Many answers with some errors taught far more than few without; the fifth row, too, is the
# questions' doing. For the *form* no gain in right answers could be shown. Own text was worse, with a
# second warm-up; in 08, where its rivals had one, too, it beat more traces. These intervals are wide
# enough for all the study's claims, of which eight are drawn.
#
# ## The rival that needs no training
#
# Many teams use a small model that somebody else has trained. So ask SmolLM2 itself (with a GPU,
# Qwen2.5-1.5B-Instruct), in its chat template, for some of the sums. **Predict:** how many will be
# right?

# %%
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_chat_pair

# %%
chat = load_chat_pair(profile)[0]
problems = three_sums.test_problems()[:asked_count]
asked = [f"What is {p.prompt[:-1]}? Only the number." for p in problems]

# %%
from distill_helpers import generate
from distill_helpers.labels import prompt_text

turns = [[{"role": "user", "content": text}] for text in asked]
prompts = [prompt_text(turn, chat.tokenizer) for turn in turns]
replies = generate(*chat, prompts, max_new_tokens=reply_tokens, batch_size=20)

# %%
numbers = [re.findall(r"\d+", reply.replace(",", "")) for reply in replies]
hits = [n[-1:] == [p.result] for n, p in zip(numbers, problems, strict=True)]
print(f"ready-made, prompted: {sum(hits)} of {len(hits)} right")
for question, reply in zip(asked[:2], replies, strict=False):
    print("ASKED   ", question)
    print("ANSWERED", reply)

# %% [markdown]
# With this prompt, which asks for no steps, SmolLM2 does not add three numbers. A student of the same
# task does, with a small part of its weights. But try this rival first, with your best
# prompt: if it passes your exam, you need no distilling.
#
# ## The bits that you could save instead
#
# Rounding the *teacher's* weights needs no training either. A fair comparison rounds the
# student as well. Here is one student, trained live: labels and the teacher's text, the
# highest mean on the left of the picture. The loop is that of lesson 06.

# %%
base = study.base_student(steps=base_steps)
recipe = {"learning_rate": study.RATE, "seed": 0}
live = study.train_arm(study.BOTH, base, task, **recipe, **live_sizes).model
teacher = load_tiny_teacher("sums").model

# %%
right = study.quality(live, judged)["exact_match"]
print(f"your live student: {right:.0f} % of {judged:,} problems")

# %%
from distill_helpers.models import parameter_count

# A group of 32 weights shares two numbers of 16 bits: one more bit a weight.
curves = {}
for name, model in (("teacher", teacher), ("student", live)):
    weights = parameter_count(model)
    points = [(2 * weights, study.quality(model, judged)["exact_match"])]
    for bits in (8, 4, 3):
        rounded = study.quality(study.in_few_bits(model, bits), judged)
        points.append((weights * (bits + 1) / 8, rounded["exact_match"]))
    curves[name] = points

# %%
fig, ax = plt.subplots(figsize=(7, 3.2))
for name, points in curves.items():
    color = STUDENT if name == "student" else TEACHER
    size, percent = zip(*points, strict=True)
    ax.plot([s / 1e6 for s in size], percent, "o-", color=color)
    # Left of the student's 8 bits, and under the teacher's.
    ha, high = ("right", 0.5) if name == "student" else ("left", -2.2)
    at = (size[1] / 1e6 - 0.04, percent[1] + high)
    ax.text(*at, name, color=color, ha=ha)
    for (s, p), bits in zip(points, ("16", "8", "4", "3"), strict=True):
        high = p + 0.6 if name == "student" else p - 1.3
        ax.text(s / 1e6, high, bits, ha="center", size=8.5, color=color)
ax.set_xlabel("megabytes of weights; the numbers are bits")
ax.set_ylabel("right (percent)")
ax.set_xlim(0, 1.85)
ax.set_title("No rounded teacher gets as small as a rounded student")
plt.show()

# %% [markdown]
# If the teacher in 4 bits is small enough, round the teacher: it takes no training. Below that size
# take the student: in 8 bits it keeps its score, as far as this exam can tell. And bytes are not
# operations: rounding leaves their number as it was, while a student of a quarter of the size needs
# a quarter of them. This is one exam and one student, trained briefly: for longer, it gains.
#
# ## Equal operations
#
# Equal steps flatter a technique whose teacher works in every step, for that work is not
# counted. Now a technique may spend as many operations as soft labels with a live teacher
# do, and cheaper ones train for longer.
#
# ## Exercise 1 · What a budget buys
#
# *easy · what is spent before the first step counts, too · 5 minutes*
#
# Write `steps_for(budget, once, per_step)`: the largest whole number of steps whose cost,
# on top of what is spent once, stays within the budget. 0 if that alone is too much.
#
# By hand: 10 in all, 3 for the teacher's text and 2 for a step buy 3 steps; the last 1
# buys nothing.

# %% tags=["exercise"]
from distill_helpers.course import checks


def steps_for(budget, once, per_step):
    return None  # your code here


afford = checks.steps_for(steps_for, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Take what is spent once off the budget, and divide. `//` rounds down, for negative
# numbers too: −1 // 2 is −1.

# %% [markdown] tags=["hint"] title="I get too many steps, or fewer than none"
# In the example by hand, 5 steps mean that the teacher's text was not paid for. If you get 4
# or three and a half, you counted a step that is only partly paid for. If the budget is
# overdrawn already, the answer is 0.


# %% tags=["solution"]
from distill_helpers.course import checks


def steps_for(budget, once, per_step):
    return max(0, int((budget - once) // per_step))


afford = checks.steps_for(steps_for, fallback=True)

# %%
costs = study.count_costs()
budget = costs.of(study.SOFT, study.STEPS)

# %%
for arm in study.LONGER:
    once = costs.of(arm, 0)
    steps = afford(budget, once, costs.of(arm, 1) - once)
    print(f"{arm:20}{steps:6,} steps for the budget of soft labels")

# %% [markdown]
# **Predict:** so many more steps on the same 500 labels: do they help?
#
# ## Exercise 2 · What nobody beats
#
# *medium · the one picture that a decision between cost and quality needs · 10 minutes*
#
# Write `frontier(costs, scores)` for two lists of equal length: the places of the ways
# that no other one beats. Another one beats a way if it costs no more, scores no less,
# and is better in at least one of the two.
#
# By hand: costs `[1, 2, 2]` and scores `[5, 8, 7]` give `[0, 1]`: the third costs as
# much as the second and scores less; the first is the cheapest.


# %% tags=["exercise"]
def frontier(costs, scores):
    return None  # your code here


unbeaten = checks.frontier(frontier, fallback=True)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# For each way, ask `any(...)` over all others: `c <= cost and s >= score`, and not both
# equal. Two ways that are exactly alike do not beat each other.

# %% [markdown] tags=["hint"] title="My list is empty, or too long"
# Empty: every way meets itself among the ways, and is beaten by its equal. Too long:
# another way need not be better in *both*; better in one and no worse in the other is
# enough. If only one place is left, do not look for a winner: the cheapest way and the
# best one both stay.


# %% tags=["solution"]
def frontier(costs, scores):
    ways = list(zip(costs, scores, strict=True))
    return [
        place
        for place, (cost, score) in enumerate(ways)
        if not any(
            c <= cost and s >= score and (c, s) != (cost, score)
            for c, s in ways
        )
    ]


unbeaten = checks.frontier(frontier, fallback=True)

# %%
ways = [pair for pair in closed.study.pairs() if pair[0] in study.STUDENTS]
# At equal operations, what a last whole step leaves over is no advantage.
spent = [
    budget
    if where == study.EQUAL
    else costs.of(arm, study.steps_of(arm, where))
    for arm, where in ways
]
gained = [closed.mean("exact_match", arm, where).mean for arm, where in ways]

# %%
best = sorted(unbeaten(spent, gained), key=lambda place: spent[place])

# %%
SHOWN = {
    study.LABELS: GREY,
    study.TOGETHER: GREY,
    study.TEXT: TEXT,
    study.BOTH: TEXT,
    study.SOFT: TEACHER,
    study.STORED: TEACHER,
}

# %%
fig, ax = plt.subplots(figsize=(8, 4))
for arm, color in SHOWN.items():
    at = [i for i, (name, _) in enumerate(ways) if name == arm]
    ax.plot([spent[i] for i in at], [gained[i] for i in at], "o-", color=color)
    x, y = spent[at[-1]], gained[at[-1]]
    ax.text(x + 0.12, y - 1, arm, color=color)
edge = [spent[i] for i in best], [gained[i] for i in best]
ax.plot(*edge, ":", color="0.2", drawstyle="steps-post")
ax.set_xlim(1, 10)
ax.set_ylim(0, 85)
ax.set_xlabel("operations, the teacher's share included (10¹²)")
ax.set_ylabel("right (percent)")
ax.set_title(
    "Lines lead from equal steps to equal operations; dotted: unbeaten"
)
plt.show()

# %% [markdown]
# *Co-distillation* pays here for training its partner; the other teachers were trained before
# the count. Labels gain from more steps, but the gap stays: it was not the steps that were missing. Without
# a teacher in every step a student can train about twice as long. The plainest way of all,
# your labels and the teacher's text, has the highest mean; **stored soft labels** get the
# distribution *and* the steps. Is the lead beyond chance?

# %%
rivals = {study.STORED: study.EQUAL, study.TEXT: study.EQUAL}
rivals[study.BOTH_SOFT] = SETTING  # as dear, in as many steps
for rival, where in rivals.items():
    pair = ("exact_match", study.BOTH, rival, study.EQUAL)
    gain = closed.gain(*pair, baseline_setting=where)
    print(f"{study.BOTH} over {rival:22} {gain.mean:+.1f}", end=" ")
    print(f"({gain.low:+.1f} to {gain.high:+.1f}) points")

# %% [markdown]
# Each interval, alone, lies above zero. But the first two rivals have not read your 500 labels. The
# third has, at the same cost; with *stored* soft labels, for longer, is the rival to try.
#
# ## Bytes, seconds, memory
#
# First the closed task, on one processor core. Then what `plan` says of the memory of a pair
# from the hub, SmolLM2-1.7B and 360M, with 2 rows of 512 tokens.

# %%
print(f"{'':24}{'KB stored':>10}{'seconds':>9}{'10¹² operations':>17}")
for row, (_, arm, _) in ROWS.items():
    if arm is not None:
        kept = closed.mean("stored_bytes", arm, SETTING).mean / 1000
        own = closed.mean("training_seconds", arm, SETTING).mean
        before = closed.mean("labelling_seconds", arm, SETTING).mean
        work = closed.mean("tflops", arm, SETTING).mean
        print(f"{row:24}{kept:10.0f}{own + before:9.0f}{work:17.1f}")

# %%
from distill_helpers import plan
from distill_helpers.planning import METHODS

pair = (
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "HuggingFaceTB/SmolLM2-360M",
)
for method in METHODS[:planned]:
    found = plan(pair, batch_size=2, length=512, method=method, device="A100")
    print(f"{method:16}{found.memory_gib:6.1f} GiB at the peak")

# %% [markdown]
# A second model in every step costs time, and most where it learns itself. Stored soft labels
# cost bytes in its place, and leave the student alone in memory.
#
# ## The bill
#
# The other half of a decision is money, and it depends on numbers that only you have.
# `prices` holds the arithmetic. Its prices are assumptions of November 2026: a rented GPU
# that is never idle, an API by the million tokens, and people for every student that is
# made. Put in your own.

# %%
from distill_helpers.course.prices import Project

my_answers = 1e6  # that you expect to serve: put yours here
project = Project(
    teacher_billions=70,
    student_billions=3,
    vocabulary=128_000,
    examples=50_000,  # that the student learns from
    tokens_per_example=1_000,
    epochs=3,
    work_dollars=5_000,  # people: data, evaluation, deployment
    api_dollars=1.0,  # for a million tokens
    device="H100",
)

# %% [markdown]
# **Predict:** how many answers must a student serve before it is cheaper than buying them?
# A thousand, a hundred thousand, or some millions?

# %%
from distill_helpers.course import prices

BILLS = {
    prices.BOUGHT: "0.4",
    prices.SERVED: TEACHER,
    prices.SERVED_4_BITS: "#56B4E9",
    prices.API_TEXT: STUDENT,
    prices.READY_MADE: "0.7",
}

# %%
bought = prices.bill(project, prices.BOUGHT)
made = prices.bill(project, prices.API_TEXT)
crossing = prices.break_even(bought, made)

# %%
fig, ax = plt.subplots(figsize=(8, 3.8))
answers = [10 ** (n / 4) for n in range(12, 37)]
for way, color in BILLS.items():
    bill = prices.bill(project, way)
    ax.plot(answers, [bill.total(n) for n in answers], color=color)
    lift = {prices.BOUGHT: 1.9, prices.READY_MADE: 0.45}.get(way, 1.0)
    high = lift * bill.total(1e9)
    ax.text(1.15e9, high, way, color=color, va="center")
ax.plot(crossing, made.total(crossing), "o", mfc="white", mec="#222222")
ax.axvline(my_answers, color="0.6", ls=":")
ax.text(my_answers, 2e6, " yours", color="0.4")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xlim(1e3, 1e9)
ax.set_ylim(1, 1e7)
ax.minorticks_off()
ax.set_xlabel("answers served")
ax.set_ylabel("dollars in all")
ax.set_title("The student is cheaper than the API only right of the circle")
plt.show()
rounded = prices.bill(project, prices.SERVED_4_BITS)
print(f"the circle: {crossing / 1e6:.1f} million answers; against the teacher")
print(f"in 4 bits: {prices.break_even(rounded, made) / 1e6:.0f} million")

# %%
from distill_helpers.planning import DEVICES

year = 365 * 24 * DEVICES[project.device].dollars_per_hour
moved = (made.total(0) + year) / bought.answer
print(f"a GPU kept ready for a year: {year:,.0f} dollars;", end=" ")
print(f"with it, the circle lies at {moved / 1e6:.0f} million")

# %% [markdown]
# The lines pay a GPU only while it works. One kept ready moves the circle far to the right. The bill
# lets 4 bits write four times as fast; where operations are the limit, read the line *teacher*
# instead. Only students are billed people, though every model that you run needs some. The
# ready-made one is of your student's size here. If it passes your exam, no number of answers pays for one of your own. What is the
# bill made of?

# %%
from distill_helpers.course.prices import SOFT, STORED

for way in (prices.API_TEXT, prices.TEXT, SOFT, STORED):
    once = prices.bill(project, way).once
    machines = sum(once.values()) - once["people"]
    print(f"{way:32} people {once['people']:6,.0f} $, rest {machines:5,.0f} $")
more = prices.bill(replace(project, examples=50_000_000), SOFT).once
print(f"a thousand times the examples: {sum(more.values()):,.0f} $,", end=" ")
print(f"{more['teacher reads']:,.0f} $ of it for reading")

# %% [markdown]
# At this size the choice between text and soft labels is one of *access*, not of money. With
# a thousand times the examples the teacher's reading is the largest part, and then it
# matters whether the teacher reads every epoch or once.
#
# ## The guide
#
# Ask these in order; the first "yes" decides. Percents: right answers of the closed task, at no more
# than equal operations. Two-digit numbers are lessons.


# %%
def percent(arm):
    """The score in the setting in which the arm has spent the budget."""
    where = study.EQUAL if arm in study.LONGER else SETTING
    return f"{closed.mean('exact_match', arm, where).mean:.0f} %"


# %%
GUIDE = [
    (
        "Is every teacher forbidden, even an open one at home?",
        "a small ready-made model,\ntrained on your labels",
    ),
    ("Does a ready-made small model pass your exam?", "use it"),
    (
        "Few answers, or is the teacher cheap and fast enough?",
        f"prompt it; round its weights ({percent(study.FOUR_BITS)})",
    ),
    (
        "Closed, and do your right labels cover what will be asked?",
        "train on them",
    ),
    (
        "Do you get only text, or does the teacher cut words otherwise?",
        f"closed: its text, your labels ({percent(study.BOTH)})\n"
        "open: not tried; or match tokens (10)",
    ),
    (
        "Are answers closed: does the teacher leave little open?",
        f"its text and your labels ({percent(study.BOTH)})",
    ),
    ("Must the teacher be trained at the same time?", "look at lesson 07"),
    ("Is the text read more than once?", "soft labels, stored"),
    (
        "None of these",
        "soft labels of the live teacher;\nthen perhaps own text (08)",
    ),
]

# %%
fig, ax = plt.subplots(figsize=(9, 6))
for row, (question, answer) in enumerate(GUIDE):
    box = {"boxstyle": "round,pad=0.4", "ec": "0.5"}
    ax.text(0, -row, question, va="center", bbox=box | {"fc": "#f3f3f3"})
    ax.text(1.35, -row, answer, va="center", bbox=box | {"fc": "w"})
    ends = {"arrowstyle": "-|>", "color": "0.4"}
    ax.annotate("", (1.3, -row), (1.15, -row), arrowprops=ends)
    if row < len(GUIDE) - 1:
        ax.annotate("", (0.1, -row - 0.7), (0.1, -row - 0.3), arrowprops=ends)
ax.text(1.2, 0.25, "yes", ha="center", color="0.4")
ax.text(0.13, -0.5, "no", va="center", color="0.4")
ax.set_xlim(-0.05, 2.2)
ax.set_ylim(-len(GUIDE) + 0.4, 0.6)
ax.axis("off")
plt.show()

# %% [markdown]
# The last row has a rival, too: labels for longer, which won in 03. For closed answers and each kind
# of access, let the guide's choice compete with the others, seed by seed, at equal steps. It was
# made from this table: no proof.

# %%
AT_HAND = {
    "its text": (study.BOTH, study.LABELS, study.TEXT, study.CHECKED),
    "its logits": (study.BOTH, study.SOFT, study.STORED, study.BOTH_SOFT),
}

# %%
for access, (choice, *rivals) in AT_HAND.items():
    for rival in rivals:
        gain = closed.gain("exact_match", choice, rival, SETTING)
        word = "better alone" if gain.low > 0 else "undecided"
        word = "contradicted" if gain.high < 0 else word
        interval = f"{gain.mean:+5.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
        print(f"{access}: {choice} over {rival:24}{interval}  {word}")

# %% [markdown]
# Nothing here contradicts the guide. But all students began from one base; with others, in a round
# that was broken off, the order changed. *Alone*: each interval stands for itself, and the choice
# was made after looking. The claims above share their risk of error: there the second line is
# undecided.
#
# ## Six projects to judge
#
# What would you do? Write down the technique and the first question that you would ask.
# Then open the answer.
#
# 1. A firm sorts 3,000 support mails a day into twelve kinds. The teacher is an API.
#
# <details><summary>our answer</summary>
# A million mails a year, of a thousand tokens each, cost about a thousand dollars with the
# API: the bill says *prompt it*, for years. Where an answer must be fast: the API's answers to some
# thousand mails, and all right labels. If mails may not leave, an open teacher. First: would a
# classifier on word counts pass?
# </details>
#
# 2. A draft model for speculative decoding of a model whose weights you have.
#
# <details><summary>our answer</summary>
# The student has to *be* its teacher: what counts is the share of its tokens that the teacher
# accepts. KL on text that the teacher wrote stands in for it. Soft labels, stored; then the student's own text, if it gains on yours. First: do both have
# the same tokens?
# </details>
#
# 3. A lawyer has 200 labelled contracts, and may not send them to anybody.
#
# <details><summary>our answer</summary>
# No API. Fine-tune a ready-made model, and judge by cross-validation: fifty contracts alone
# would give an interval of a dozen points to both sides. A teacher of open weights on your
# own machine may label further contracts. First: who checks them?
# </details>
#
# 4. A family of three models, to be trained from scratch on the same text.
#
# <details><summary>our answer</summary>
# Train the large one, which is paid for; then the small ones on its stored soft labels. Co-distilled
# students lost to lone ones in 07. First: what do these reach alone, for the same operations?
# </details>
#
# 5. A keyboard for a phone, 50 megabytes, that proposes the next word.
#
# <details><summary>our answer</summary>
# Open text: soft labels, stored, and 4 bits at the end. First: what does a ready-made small
# model reach in 4 bits? And is there a teacher with so small a vocabulary, or must tokens
# be matched?
# </details>
#
# 6. Three thousand answers a year to questions about a museum.
#
# <details><summary>our answer</summary>
# Do not distil: prompt an API. First: what do three thousand answers cost? Less than an
# hour of the person who would look after a student.
# </details>

# %% [markdown] tags=["published"]
# ## What others chose
#
# Who had the teacher's weights, who used only its text all the same, and why? DeepSeek-R1's
# students came from other families, and had closed answers to learn.
#
# | system | technique | what its authors say |
# |---|---|---|
# | DistilBERT 2019 (arXiv:1910.01108) | soft labels, labels, aligned hidden states; every second layer of the teacher | 40 % smaller, 60 % faster, 97 % of BERT's score on GLUE |
# | Minitron 2024 (arXiv:2407.14679) | cuts widths of a 15B teacher: embeddings, heads, MLPs; then soft labels | 8B and 4B models with up to 40 times fewer tokens than from scratch |
# | Gemma 2 2024 (arXiv:2408.00118) | soft labels in pre-training, for 2B and 9B | trained on more tokens than is usual for the size; the teacher is not named |
# | Llama 3.2 2024 (Meta's post) | 1B and 3B cut from an 8B model, with logits of 8B and 70B in pre-training | logits as targets in place of tokens |
# | DeepSeek-R1 2025 (arXiv:2501.12948) | text alone: about 800,000 samples; Qwen and Llama models | a fine-tuned 32B model beats reinforcement learning on a base of that size |
# | Gemma 3 2025 (arXiv:2503.19786) | soft labels in pre-training, 256 logits a token, drawn by the teacher's probabilities | what was not drawn gets zero; the teacher is not named |
# | Llama 4 Maverick 2025 (Meta's post) | "codistilled" from Behemoth in pre-training | the teacher's forward passes are shared |
# | Qwen3 2025 (arXiv:2505.09388) | the teacher's text, then the student's own with the teacher's logits | better than reinforcement learning, for about a tenth of the GPU hours |
# | MiMo-V2-Flash 2026 (arXiv:2601.02780) | several teachers on the student's own text | one student for many domains |

# %% [markdown]
# ## Recap
#
# * **One picture to remember:** the first. For closed answers at equal steps, soft labels gave no more
#   right answers than text that could be shown. In open text soft labels are ahead at equal steps;
#   with plenty of text, labels won at equal operations (03).
# * Measure how open your teacher's next token is before you choose.
# * The rivals that are forgotten: a ready-made model, the rounded teacher, labels for
#   longer.
# * **Use distillation when** you serve many answers of one kind, or need a model that
#   stands in for its teacher. **Do not, when** few answers are served, or a ready-made small
#   model passes your exam.
#
# *Read on:* Busbridge et al. 2025, arXiv:2502.08606; Furlanello et al. 2018,
# arXiv:1805.04770; Müller et al. 2019, arXiv:1906.02629; Menon et al. 2021,
# arXiv:2005.10419.
