# %%
import matplotlib.pyplot as plt
from IPython.display import display

from distill_helpers import get_profile
from distill_helpers.course.plots import STUDENT, TEACHER, use_style

# %%
use_style()
profile = get_profile(PROFILE)
judged = profile.name != "smoke"

# %% [markdown]
# ## One task, one student, one budget
#
# Every lesson so far compared one technique with its own baselines. You will have to
# choose between techniques, so this lesson puts them side by side, in the situation
# that most projects are in: **a few labels, many questions, and a teacher that is
# good but not perfect**. The task is lesson 06's, three numbers to add with the steps
# written out, and the teacher is the same.
#
# One thing is new. From scratch, it was largely luck whether a student began to carry
# in time (lesson 08); in practice nobody starts from scratch. So here every student
# begins as a copy of one small **base model**, which has learned to add numbers up to
# 39. The task goes up to 99, and there the base is nearly always wrong.

# %%
from distill_helpers.studies import load_results
from distill_helpers.studies import side_by_side as study

results = load_results("side_by_side")
ways, models = len(study.STUDENTS), len(study.MODELS)
print(f"{study.LABELLED:,} sums with their right, worked answers")
print(f"{study.QUESTIONS:,} sums without; the teacher answers them")
print(f"{study.VALIDATION_SIZE} more choose among each run's checkpoints")
print(f"{study.STEPS:,} steps of {study.BATCH_SIZE} rows, one learning rate")
print(f"{ways} ways to train, {models} models as they are")
print(f"{len(results.study.confirm_seeds)} seeds: labels, questions, order")

# %% [markdown]
# The ways differ in what they need before anything can be trained. That is often what
# decides, so it comes first:
#
# | way | reads | needs of the teacher | from lesson |
# |---|---|---|---|
# | labels | the labelled sums | nothing | 02 |
# | smoothed labels | the same, a tenth of each target spread evenly | nothing | – |
# | self-distillation | the same, beside what a first student says | nothing | – |
# | co-distillation | the same, beside a larger model that is learning too | nothing: it grows along | 06 |
# | soft labels, labelled rows | the same, with the teacher's distributions | logits at every step | 02 |
# | teacher's text | the teacher's answers to the questions | its text: an API will do | 04 |
# | checked text | only answers whose result is right | its text, and a checker | 05 |
# | labels and text | both | its text | 04 |
# | soft labels | the answers, with the teacher's distributions | logits at every step | 02 |
# | stored soft labels | the same, from a cache | logits, once | 03 |
# | labels and soft labels | both, with the teacher's distributions; labels and distributions count alike | logits at every step | 02 |
# | own text | the answers, and in the last quarter what the student writes | logits, at every step of that quarter | 07 |
# | half the teacher, soft labels | as soft labels; the student is the teacher's first two layers | its weights | 02 |

# %% [markdown]
# **Predict** before you look: which is worth more, 500 answers that are all right or
# 2,000 of which a good part is wrong? What will the teacher's *distribution* add to
# either? And does any student come near the teacher?

# %%
from distill_helpers.course.plots import compare_arms

SETTING = study.SAME_STEPS
KNOWS = (
    *(study.SOFT_FEW, study.SOFT, study.STORED),
    *(study.BOTH_SOFT, study.OWN, study.REPAIRED),
)
teacher_percent = results.mean("exact_match", study.TEACHER, SETTING).mean

# %%
fig, ax = plt.subplots(figsize=(7, 5))
compare_arms(ax, results, "exact_match", SETTING, soft=KNOWS)
ax.axvline(teacher_percent, color="0.4", ls="--", lw=1)
ax.set_xlabel("right answers of 2,000, percent (mean and 95 % interval)")
ax.set_title("Equal steps (blue: learned from the teacher's distributions)")
plt.show()

# %% [markdown]
# Every seed gave all ways the same labels and questions, so two ways are compared seed
# by seed. The bars above do not show the interval of a difference; these verdicts do.
# The claims were written down before the seeds were run:

# %%
for name in ("text_beats_labels", "both_beat_text", "checking_helps"):
    display(results.verdict(name, judged=judged))
for name in ("soft_beats_text", "both_soft_beat_both", "own_helps"):
    display(results.verdict(name, judged=judged))

# %% [markdown]
# Leave the last two ways for later. The others fall into two groups with a wide gap
# between them: students of the labelled sums, and students of the teacher's answers,
# which come near their teacher. **What a student read decided; in which form it read it
# decided little.** How can so many wrong answers teach so well? Look at them:

# %%
from distill_helpers.studies.reasoning_traces import write_traces

traces = write_traces(profile.pick(smoke=20, cpu=500, gpu=500), seed=0)
asked = zip(traces.problems, traces.texts, traces.right, strict=True)
wrong = [
    (str(problem.result), text.split(";")[-1])
    for problem, text, right in asked
    if not right
]


# %%
def slips(want, found):
    """Digits that differ; None if there are too few or too many."""
    if len(want) != len(found):
        return None
    return sum(a != b for a, b in zip(want, found, strict=True))


one = sum(slips(*pair) == 1 for pair in wrong)
print(f"{len(wrong)} of {len(traces.texts)} results are wrong,")
print(f"{one} of these in a single digit")

# %% [markdown]
# Most of a wrong answer is right. So many answers with slips taught far more than few
# without.
#
# Within the second group, the addition that stands out is the plainest: the labels,
# which were there anyway, in the same pot. On a checker these seeds do not decide; it
# also takes rows away. Logits are not among what stands out.
#
# *Own text* ends *below* the teacher's text alone, although lesson 08 found it ahead of
# more traces. But more than the text differs here. For its last quarter a new trainer
# begins, with a fresh optimizer and a learning rate that rises anew, while the
# teacher's text is read to the end in one go; and the student is sent to its own text
# early. In lesson 08 all arms began anew alike. So the verdict is on this recipe; which
# part of it is to blame, these runs cannot say.
#
# ### Why did the distributions add so little?
#
# In lesson 03 soft labels were worth a lot. Same loss, same trainer, and the verdict
# of that lesson's study:

# %%
display(load_results("soft_labels").verdict("few_data", judged=judged))

# %% [markdown]
# The difference is in what the teachers *say*. At every position of a text, look at
# the probability of the likeliest token: here for the teacher of the sums on its own
# answers, and for lesson 02's teacher of prose on a novel. **Predict** both shapes.

# %%
import torch

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
count = profile.pick(smoke=8, cpu=200, gpu=200)
sums = study.load_task(0, questions=count).text
novel = pack(austen("test"), load_tiny_teacher("prose").tokenizer, 64)
sure = {
    "sums": sureness("sums", [sums[i] for i in range(count)]),
    "prose": sureness("prose", [novel[i] for i in range(count // 4)]),
}

# %%
fig, ax = plt.subplots(figsize=(6, 3))
bins = [i / 20 for i in range(21)]
for (name, found), color in zip(sure.items(), ("0.6", "0.1"), strict=True):
    share = torch.full_like(found, 100 / len(found)).tolist()
    options = {"weights": share, "histtype": "step", "lw": 2}
    ax.hist(found.tolist(), bins, color=color, label=name, **options)
ax.set_xlabel("teacher's probability of its likeliest token")
ax.set_ylabel("positions, percent")
ax.set_title("How much a teacher leaves open")
ax.legend(loc="upper center")
plt.show()

# %% [markdown]
# A distribution that is nearly one token says nearly what the token says. In prose,
# most positions are open, and there the other probabilities carry what a label cannot.
# So ask first **how open your teacher's next token is**. Where it is nearly closed, as
# in these sums, expect its text to do; where it is open, as in prose, expect more from
# soft labels. To measure it costs one forward pass over a few texts, before anything
# is trained.
#
# ### Whose luck?
#
# One base for all seeds is a choice, and our second one. In a first round, which is
# published beside the results, every seed had a base of its own:

# %%
import csv

from distill_helpers.tasks.bundled import results_root

path = results_root() / "rounds" / "side_by_side_1.csv"
with path.open(encoding="utf-8") as file:
    rows = [row for row in csv.DictReader(file) if row["phase"] == "confirm"]

# %%
students = [row for row in rows if row["arm"] in study.STUDENTS]
for seed in sorted({row["seed"] for row in students}):
    tried = [row for row in students if row["seed"] == seed]
    best = max(tried, key=lambda row: float(row["exact_match"]))
    right = f"{float(best['exact_match']):.0f} %"
    print(f"a base of its own, best of {len(tried)} ways: {right}")

# %% [markdown]
# Three bases, all made alike, were not alike at all: with one of them no student got
# going within these steps, *whatever* it learned from. (The last seed was under way
# when the round was broken off.) A project has one model to start from, and so have we
# now; what comes out holds for that one. **Try your start before you compare
# methods:** a better base can be worth more than the best technique.
#
# ## What is usually forgotten
#
# A technique should beat what is simpler. Four such baselines stand in the figure:
# smoothing, self-distillation, half the teacher, and the teacher in 4 bits.
#
# **Smoothing and self-distillation** also soften the targets, without a teacher. If
# they did as well, the dark knowledge of lesson 01 would be a story.

# %%
for name in ("not_smoothing", "self_helps", "together_helps"):
    display(results.verdict(name, judged=judged))

# %% [markdown]
# Neither stands in for a teacher: both end no higher than the labels alone. A larger
# partner that learns along ends a little higher, and is the dearest way of all. (This
# study makes many claims, and each has to be that much surer: lesson 03. What five
# seeds leave open among so many is *undecided*, however good it looks.)
#
# **Half the teacher**, its other layers simply removed, answers nothing. Repaired
# with soft labels it is a student of its own kind; is it a better one?
#
# **The teacher in fewer bits** needs no training at all. Here, live, are its matrices
# rounded to 2, 3, 4 and 8 bits, each with the interval that so many problems allow.
# The band is the student of soft labels, with the interval of the study.

# %%
from distill_helpers.course.verdict import Score

teacher = load_tiny_teacher("sums")
asked = profile.pick(smoke=20, cpu=500, gpu=2000)
rounded = {
    str(bits): study.quality(study.in_few_bits(teacher.model, bits), asked)
    for bits in (2, 3, 4, 8)
}
rounded["as it is"] = study.quality(teacher.model, asked)

# %%
student = results.mean("exact_match", study.SOFT, SETTING)
right = {bits: found["exact_match"] for bits, found in rounded.items()}
fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(list(right), list(right.values()), "o-", color="0.2", label="teacher")
for bits, percent in right.items():
    hits = round(percent * asked / 100)
    ends = Score(tuple(n < hits for n in range(asked))).interval
    ax.vlines(bits, 100 * ends.low, 100 * ends.high, color="0.2")
band = {"color": TEACHER, "alpha": 0.25, "label": "student of soft labels"}
ax.axhspan(student.low, student.high, **band)
ax.set_xlabel("bits of a weight")
ax.set_ylabel("right answers, percent")
ax.set_title(f"The teacher, rounded ({asked:,} problems)")
ax.legend(loc="lower right")
plt.show()

# %%
for name in ("bits_beat_students", "repair_beats_small"):
    display(results.verdict(name, judged=judged))
for arm in (study.TEACHER, study.FOUR_BITS, study.SOFT, study.REPAIRED):
    size = results.mean("model_bytes", arm, SETTING).mean
    print(f"{arm:30}{size / 1e6:5.2f} MB (16 bits a weight, or 4)")

# %% [markdown]
# So half a teacher is no bargain: what was cut out is missing, and these steps do not
# bring it back. (Real pruning takes fewer layers at a time and repairs for longer.)
#
# Bytes are not operations. Rounding leaves their number as it was, and a student of a
# quarter of the size needs a quarter of them; and a student can be rounded as well.
# (Time lies between: text for one reader at a time waits for the memory, and there
# fewer bytes are faster; large batches wait for the arithmetic.) But whoever only wants
# the *memory* down should round first, and distil if that is not enough.
#
# One more baseline is free and does not fit into the figure: **prompting** the
# teacher, better or with examples. This teacher knows one kind of prompt, so here it is
# the dashed line. Imitation alone adds no skill that the teacher cannot be prompted to
# show; where a student passed its teacher, in lesson 06, that came from the checker.
#
# ## Equal operations
#
# Equal steps flatter whoever has a teacher at work beside every step: its work is not
# in the count. So now a way may spend as many floating-point operations as soft
# labels do with a live teacher; cheaper ways train longer for it. What the teacher
# wrote, stored or judged is charged; what it cost to make the teacher is not.

# %%
costs = study.count_costs()
budget = costs.of(study.SOFT, study.STEPS)
for arm in study.LONGER:
    print(f"{arm:20}{study.steps_of(arm, study.EQUAL):6,} steps")
print(f"each for {budget:.2f} · 10¹² operations")

# %% [markdown]
# **Predict:** so many more steps on the same 500 labels: do they help, or is
# there nothing left to learn?


# %%
def places_of(arm):
    """Operations and right answers of a way, in one setting or both."""
    found = [where for a, where in results.study.pairs() if a == arm]
    spent = [costs.of(arm, study.steps_of(arm, where)) for where in found]
    means = [results.mean("exact_match", arm, where).mean for where in found]
    return spent, means


# %%
fig, ax = plt.subplots(figsize=(7.5, 4.5))
for arm, marker in zip(study.STUDENTS, "osD^vPX*<>hdp", strict=True):
    color = TEACHER if arm in KNOWS else STUDENT
    ax.plot(*places_of(arm), marker=marker, ms=9, color=color, label=arm)
ax.axhline(teacher_percent, color="0.4", ls="--", lw=1)
ax.set_xlabel("operations, the teacher's share included (10¹²)")
ax.set_ylabel("right answers, percent")
ax.set_title("What the operations bought; lines lead to equal operations")
ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
plt.show()

# %%
for name in ("labels_for_longer", "text_for_longer"):
    display(results.verdict(name, judged=judged))
for name in ("stored_keeps", "stored_pays"):
    display(results.verdict(name, judged=judged))

# %% [markdown]
# Labels do gain from more steps, but the gap stays: it was not the steps that were
# missing. The others gain from theirs as well, and from a much higher start. Whoever
# has no teacher at work in every step trains for much longer. Here the means say that
# this is worth more than what the distribution says; the verdicts leave it open.
# **Stored soft labels get both**, the distribution and the steps. And the plainest way
# of all, your labels and the teacher's text, ends closest to the dashed line.
#
# ## Everything else, side by side
#
# Exact match is one yardstick. In the next figure each panel is another, over the
# same five seeds: how far confidence and truth are apart (calibration error), how
# close the student is to its teacher, how much the seeds differ, how well a batch's
# gradient agrees with that of all other rows where training begins, and what it all
# took.

# %%
import statistics


def mean_of(metric):
    return [results.mean(metric, a, SETTING).mean for a in study.STUDENTS]


COSINE = "gradient cosine"
cosines = dict(zip(study.STUDENTS, mean_of("gradient_cosine"), strict=True))
cosines[study.OWN] = float("nan")  # it does not begin on its own text
right = [results.values("exact_match", a, SETTING) for a in study.STUDENTS]
seconds = zip(
    mean_of("training_seconds"), mean_of("labelling_seconds"), strict=True
)
panels = {
    "calibration error": mean_of("ece"),
    "KL from teacher": mean_of("kl_to_teacher"),
    "spread, points": [statistics.stdev(values) for values in right],
    COSINE: list(cosines.values()),
    "seconds, in all": [own + before for own, before in seconds],
    "KB stored": [size / 1000 for size in mean_of("stored_bytes")],
}

# %%
fig, axes = plt.subplots(1, len(panels), figsize=(11, 4.4), sharey=True)
rows = range(len(study.STUDENTS))
colors = [TEACHER if a in KNOWS else STUDENT for a in study.STUDENTS]
for ax, (title, found) in zip(axes, panels.items(), strict=True):
    if title == COSINE:  # differences, not lengths: points may leave out 0
        ax.scatter(found, rows, color=colors)
    else:
        ax.barh(rows, found, color=colors, height=0.6)
    ax.set_title(title, fontsize=10)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="y", visible=False)
axes[0].set_yticks(rows, study.STUDENTS)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# (One processor core; bytes on top of the questions; no gradient is shown where the
# way has none of its own, or begins with another way's. Only the cosines' axis leaves
# out the zero.) Two of these
# differences had been claimed:

# %%
for name in ("steadier", "calibrated"):
    display(results.verdict(name, judged=judged))

# %%
own = results.mean("ece", study.TEACHER, SETTING).mean
print(f"the teacher's own calibration error: {own:.3f}")
columns = ("exact_match", "agreement", "ece", "tflops", "trained_tokens")
print(f"{'':30}" + "".join(f"{name:>15}" for name in columns))
for arm in study.STUDENTS:
    found = [results.mean(name, arm, SETTING).mean for name in columns]
    print(f"{arm:30}" + "".join(f"{value:15,.3f}" for value in found))

# %% [markdown]
# * **Closeness.** What soft labels do buy, for the same student and rows, is a smaller
#   KL from the teacher. (Its first choice they hit hardly more often: *agreement* in
#   the table.) If right answers are all that counts, that is worth little. If the
#   student has to *stand in* for its teacher (as the draft model of speculative
#   decoding, as a scorer, as a smaller version behind the same interface), it is what
#   you want.
# * **Calibration.** Students of soft labels end near the teacher's own error, wherever
#   they began. On the few labelled rows that is a gain, for students of the labels
#   alone are further off; on the many answers it is a loss, for text does better.
# * **Gradients.** Soft labels are said to make gradients steadier. Here they hardly do:
#   from a distribution that is nearly one token, there is little to average.
# * **Time.** A second model at work in every step costs what you would expect: most
#   where it learns itself, least where everything it says was stored.
#
# Equal steps are nearly equal tokens here, as the last column shows, so a third
# budget would repeat the first.
#
# ## Memory, for models of a real size
#
# With sixteen tokens to choose from, a distribution costs nothing to hold. So ask
# `plan` (lesson 07) about a pair from the hub, SmolLM2-1.7B and its sibling 360M, with
# 49,152 tokens: 2 rows of 512 tokens on an A100. It predicts; nothing is measured here.

# %%
from distill_helpers import plan
from distill_helpers.planning import METHODS

pair = (
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "HuggingFaceTB/SmolLM2-360M",
)
for method in profile.pick(smoke=METHODS[1:2], cpu=METHODS, gpu=METHODS):
    found = plan(pair, batch_size=2, length=512, method=method, device="A100")
    print(
        f"{method:16}{found.memory_gib:6.1f} GiB at the peak, "
        f"{1000 * found.seconds_per_step:5.0f} ms a step"
    )

# %% [markdown]
# Training the student alone is the floor, with text and with stored soft labels.
# A live teacher adds its weights, without gradients; a teacher that learns adds its
# gradients and the optimizer's two moments, for the larger model of the two.
#
# ## The bill
#
# Quality is half of a decision. The other half is money, and it depends on numbers
# that only you have. `prices` holds the arithmetic: 2 operations per parameter for a
# token read or written, 6 for one learned from, on a rented GPU that is never idle; an
# API's price per million tokens; people. A teacher in 4 bits is priced as writing four
# times as fast, for writing waits for the memory; large batches gain less. Put in your
# own:

# %%
from distill_helpers.course.prices import Project

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

# %%
from distill_helpers.course.prices import WAYS, bill

for way in WAYS:
    found = bill(project, way)
    machines = sum(found.once.values()) - found.once.get("people", 0)
    print(
        f"{way:32}besides people {machines:7.0f} $, "
        f"1,000 answers {1000 * found.answer:6.3f} $"
    )

# %% [markdown]
# These charge the teacher's work to one student in full. (To charge nothing for it is
# the third custom: fair where the teacher would have run anyway.) If several students
# learn from the same text and the same stored labels, each carries its share:

# %%
from dataclasses import replace

from distill_helpers.course.prices import SOFT, STORED

for way in (SOFT, STORED):
    for students in (1, 5):
        found = bill(replace(project, students=students), way)
        each = sum(found.once.values()) - found.once["people"]
        print(f"{way:32}{students} of them: {each:4.0f} $ each besides people")

# %% [markdown]
# **Predict:** with these numbers, how many answers must a student serve before it
# is cheaper than buying them? A thousand, a hundred thousand, or some millions?

# %%
from distill_helpers.course.prices import (
    API_TEXT,
    BOUGHT,
    READY_MADE,
    SERVED,
    SERVED_4_BITS,
)
from distill_helpers.course.widgets import explore

SHOWN = (BOUGHT, SERVED, SERVED_4_BITS, API_TEXT, STORED)


# %%
def draw_bills(ax, exponent):
    totals = [bill(project, way).total(10.0**exponent) for way in SHOWN]
    colors = ["0.1" if t == min(totals) else "0.7" for t in totals]
    ax.scatter(totals, range(len(SHOWN)), color=colors, s=80)
    ax.set_yticks(range(len(SHOWN)), SHOWN)
    ax.set_ylim(-0.5, len(SHOWN) - 0.5)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(0.1, 1e7)
    ax.set_xticks([1, 100, 1e4, 1e6])
    ax.minorticks_off()  # many, and slow to draw for a slider
    ax.set_xlabel("dollars")
    ax.set_title(f"$10^{{{exponent:g}}}$ answers")


# %%
explore(
    draw_bills,
    name="answers served, as a power of ten",
    values=[3, 4, 5, 6, 7, 8, 9],
    start=6,
    still=[4, 6, 8],
    alt="Cost of five ways of answering at three numbers of answers, the "
    "cheapest in black. Few answers are cheapest from a model that exists "
    "already; for many, a student pays.",
    size=(7.5, 2.8),
)

# %% [markdown]
# The number that you predicted, computed in two ways: as what is spent once over what
# an answer saves, and by looking for the point where the totals cross.

# %%
from distill_helpers.course.prices import break_even

bought, made = bill(project, BOUGHT), bill(project, API_TEXT)
low, high = 1.0, 1e12
while high / low > 1.0001:
    middle = (low * high) ** 0.5
    dearer = made.total(middle) > bought.total(middle)
    low, high = (middle, high) if dearer else (low, middle)
print(f"by the formula: {break_even(bought, made):,.0f} answers")
print(f"where they cross: {low:,.0f} answers")
assert abs(low / break_even(bought, made) - 1) < 1e-3

# %%
for way in (SERVED_4_BITS, READY_MADE):
    rival = bill(project, way)
    print(f"against the {way}: {break_even(rival, made):,.0f}")

# %% [markdown]
# The last two lines are the honest ones: a student competes with the cheapest way that
# exists already, not with the dearest. And against a small model that somebody else has
# distilled, and that passes your exam, no number of answers ever pays for one of your
# own. Most teams should look for that first.
#
# Look at what the bill is made of. With what was assumed for **people**, machines
# hardly count. The teacher's writing and reading may well be the larger part of what the
# machines cost, but beside the people even that is little: at this size the choice
# between text and soft labels is one of *access*, not of money.
# Change `project`: with a billion examples the teacher's work is what you pay for,
# and then it matters whether it reads every epoch or once (lesson 04).
#
# ## The guide
#
# Ask these questions in order; the first "yes" decides. Most teams are done at the
# first: they need no distilling, but an exam for the small models that exist. The last
# one comes on top of any, and is a thing to try: it helped in lesson 08, and its recipe
# here lost. The numbers in brackets are this lesson's: right answers in percent at no more
# than equal operations, mean over the seeds. Where there is none, a number from here
# would mislead, and the lesson that knows more is named.


# %%
def budgeted(arm):
    """The setting in which a way has spent what the budget allows."""
    return study.EQUAL if arm in study.LONGER else SETTING


QUESTIONS = [
    ("Does a small model that others have\nmade pass your exam?",
     "use it", None),
    ("Will you serve few answers, or is the\nteacher cheap enough as it is?",
     "prompt it; round its weights", study.FOUR_BITS),
    ("Do your right labels cover what\nwill be asked?",
     "train on them, for longer (lesson 03)", None),
    ("Does the teacher give its text alone,\nor has it another vocabulary?",
     "its text, checked if you can,\nand your labels, for longer", study.BOTH),
    ("Do only right answers count, and does\nthe teacher leave little open?",
     "the same: its text and your labels", study.BOTH),
    ("Must the teacher be trained as well,\nat the same time?",
     "co-distil (lesson 07)", None),
    ("Will several epochs or students\nread the same rows?",
     "soft labels, stored once", study.STORED),
    ("None of these", "soft labels from the live teacher", study.SOFT),
    ("Afterwards: can it write a little,\nand has fixed text stopped helping?",
     "try its own text (lesson 08)", None),
]  # fmt: skip
LAST = len(QUESTIONS) - 2


# %%
def draw_guide(ax):
    arrow = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 9, "shrinkB": 9}
    box = {"boxstyle": "round,pad=0.5", "fc": "#f3f3f3", "ec": "0.4"}
    for row, (question, answer, arm) in enumerate(QUESTIONS):
        if arm is not None:
            mean = results.mean("exact_match", arm, budgeted(arm)).mean
            answer += f"  [{mean:.0f}]"
        asks = ax.text(0, -row, question, bbox=box, va="center")
        says = ax.text(1.1, -row, answer, bbox=box | {"fc": "w"}, va="center")
        ends = {"xy": (0, 0.5), "xycoords": says, "arrowprops": arrow}
        ax.annotate("", xytext=(1, 0.5), textcoords=asks, **ends)
        if row != LAST:
            ax.text(1.02, -row + 0.12, "yes", ha="center", fontsize=9)
        if row <= LAST and row:
            ends = {"xy": (0.3, -row + 0.2), "arrowprops": arrow}
            ax.annotate("", xytext=(0.3, -row + 0.8), **ends)
            ax.text(0.33, -row + 0.5, "no", va="center", fontsize=9)


# %%
fig, ax = plt.subplots(figsize=(8.5, 7.8))
ax.set_xlim(-0.05, 2)
ax.set_ylim(-len(QUESTIONS) + 0.4, 0.6)
ax.axis("off")
draw_guide(ax)
plt.show()

# %% [markdown]
# Does the guide agree with the table? For every kind of access, let the way that the
# guide names compete with the others that this access allows, seed by seed. A rival
# that was run with less than the budget is met at equal steps, all others at the
# budget. (Co-distillation had twice of it.) A rival contradicts the guide only if it is
# better beyond doubt.

# %%
AT_HAND = {
    "your labels alone": (
        study.LABELS,
        study.SMOOTHED,
        study.SELF,
        study.TOGETHER,
    ),
    "the teacher's text": (
        study.BOTH,
        study.LABELS,
        study.TEXT,
        study.CHECKED,
    ),
    "its logits": (
        *(study.BOTH, study.SOFT_FEW, study.SOFT, study.STORED),
        *(study.BOTH_SOFT, study.OWN),
    ),
    "its weights": (study.FOUR_BITS, study.BOTH, study.SOFT, study.REPAIRED),
}


# %%
def met_at(choice, rival):
    """The choice's setting in which it has no more than its rival had."""
    steps = study.steps_of(rival, budgeted(rival))
    enough = costs.of(rival, steps) > 0.99 * budget
    return budgeted(choice) if enough else SETTING


# %%
for access, (choice, *rivals) in AT_HAND.items():
    print(f"{access}: {choice}")
    for rival in rivals:
        pair = ("exact_match", choice, rival, met_at(choice, rival))
        gain = results.gain(*pair, baseline_setting=budgeted(rival))
        word = "CONTRADICTED" if gain.high < 0 else "stands"
        interval = f"{gain.mean:+6.1f} [{gain.low:+6.1f}, {gain.high:+6.1f}]"
        print(f"    over {rival:30}{interval}  {word}")

# %% [markdown] tags=["published"]
# ## What others chose
#
# Read these with the guide in mind: who had weights, who had only text, and who had a
# teacher that was still learning? Where a report does not name its teacher, nor do we.
#
# | system | technique | what its authors say |
# |---|---|---|
# | DistilBERT (Sanh et al. 2019, arXiv:1910.01108) | soft labels beside the labels, and a loss that aligns hidden states; the student begins as every second layer of the teacher | 40 % smaller and 60 % faster, 97 % of BERT's score on GLUE |
# | Minitron (Muralidharan et al. 2024, arXiv:2407.14679) | cut widths out of the teacher (embeddings, heads, MLPs), then soft labels | 8B and 4B models from a 15B one with up to 40 times fewer training tokens than from scratch |
# | Gemma 2 (2024, arXiv:2408.00118) | soft labels in pre-training instead of next-token prediction, for the 2B and 9B models | the smaller models are trained on far more tokens than is usual for their size; the teacher is not named |
# | Gemma 3 (2025, arXiv:2503.19786) | soft labels in pre-training, 256 logits a token, sampled by the teacher's probabilities | a cousin of lesson 04's draws: what was not sampled gets zero, the rest is renormalised; the teacher is not named |
# | DeepSeek-R1 (2025, arXiv:2501.12948) | text alone: about 600,000 filtered reasoning samples and 200,000 others; supervised fine-tuning of Qwen and Llama models | a fine-tuned model of 32B beats reinforcement learning on a base of that size |
# | Llama 4 (Meta's post of April 2025) | Maverick is "codistilled" from Behemoth in pre-training, with a loss that shifts weight between soft and hard targets | the teacher's forward passes are shared: most targets are computed while it trains |
# | Qwen3 (2025, arXiv:2505.09388) | the teacher's text, then the student's own text with the teacher's logits | better than reinforcement learning on one of its models, for about a tenth of the GPU hours |
#
# The one that co-distils was training its teacher anyway. Gemma's pre-training, where
# much is open, uses logits; DeepSeek's reasoning goes as text to pupils of other
# families; Qwen begins with text and ends on the student's own.

# %% [markdown] tags=["given"]
# ## Exercise 1 · What a budget buys
#
# *easy · forget what comes before the first step, and the cheap ways look dear · 5
# minutes*
#
# Write `steps_for(budget, once, per_step)`: the largest whole number of steps whose
# cost, on top of what is spent once, stays within the budget. 0 if that alone is too
# much.
#
# By hand: 10 in all, 3 for the teacher's text and 2 for a step buy 3 steps; the last 1
# buys nothing.


# %% tags=["exercise"]
from distill_helpers.course import checks


def steps_for(budget, once, per_step):
    return None  # your code here


checks.steps_for(steps_for)

# %% [markdown] tags=["hint"] title="I do not know where to begin"
# Take what is spent once off the budget, and divide. `//` rounds down, for negative
# numbers too: −1 // 2 is −1.

# %% [markdown] tags=["hint"] title="I get too many steps, or fewer than none"
# In the example by hand, 5 steps mean that the teacher's text was not paid for; 4, or
# three and a half, that a step counts of which the budget covers only a part. Fewer
# than none come from a budget that is overdrawn already: then the answer is 0.


# %% tags=["solution"]
from distill_helpers.course import checks


def steps_for(budget, once, per_step):
    return max(0, int((budget - once) // per_step))


checks.steps_for(steps_for)

# %% [markdown] tags=["given"]
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


checks.frontier(frontier)

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


checks.frontier(frontier)

# %% [markdown]
# Your `frontier` on this lesson's ways, by operations and right answers (it prints
# nothing until you have written it):

# %%
ways = [pair for pair in results.study.pairs() if pair[0] in study.STUDENTS]
spent = [costs.of(arm, study.steps_of(arm, where)) for arm, where in ways]
gained = [results.mean("exact_match", arm, where).mean for arm, where in ways]
for place in frontier(spent, gained) or []:
    arm, where = ways[place]
    print(f"{arm}, {where}: {spent[place]:.2f}, {gained[place]:.0f} %")

# %% [markdown]
# ## Recap
#
# | question | answer |
# |---|---|
# | what decides first? | access: weights, logits, or text alone |
# | what is compared with what? | ways of equal budget: steps flatter those with a teacher at work beside them, operations charge it |
# | which baselines are forgotten? | labels for longer, smoothing, self-distillation, the rounded teacher, prompting |
# | how large a difference counts? | one that holds seed by seed; write the claim down first |
# | what does a distillation cost? | people; then the teacher's reading and writing; the student's training; compare with the cheapest way that exists |
# | when are logits worth more than text? | when the teacher leaves much open, or the student has to stand in for it |
# | when does it pay? | when what an answer saves, times the answers served, exceeds what is spent once |
#
# **When would you not distil at all?**
#
# * Few answers will be served: prompt the teacher, or buy the answers.
# * A smaller model that somebody else has distilled passes your exam.
# * Memory is the problem: round the teacher's weights.
# * You have right labels for what will be asked: train on them, for longer.
# * Nobody can say what a good answer is: there is nothing to check a student by.
# * The teacher's licence forbids it (lesson 05).
#
# *Read on:* Busbridge et al. 2025, *Distillation Scaling Laws* (arXiv:2502.08606): when
# distilling beats training alone at equal compute; Furlanello et al. 2018
# (arXiv:1805.04770) on self-distillation; Müller et al. 2019 (arXiv:1906.02629) on what
# label smoothing does to a teacher; Menon et al. 2021 (arXiv:2005.10419) on soft labels
# and the variance of training.
