# %%
import matplotlib.pyplot as plt
import torch

from distill_helpers.plots import STUDENT, TEACHER, THIRD, use_style
from distill_helpers.profiles import get_profile

use_style()
profile = get_profile(PROFILE)

# %% [markdown]
# ## The waiting room
#
# A bug in ordinary code stops the program. A bug in a distillation loss rarely does:
# the run goes on, the curve falls, a model comes out, and it is a little worse than it
# could be. Nobody knows how good it could have been, so nobody looks.
#
# Today you are the doctor. Ten patients wait; each has one bug, and each bug shipped
# in public code that people used. A visit goes like this:
#
# 1. **symptom**: a curve, a number or a sample, computed here, with a healthy run
#    beside it;
# 2. **your guess**, before you read on. Write it down: a wrong guess teaches more;
# 3. **probe**: one small cell that settles it;
# 4. **diagnosis**: the line at fault, what mends it, and where it shipped;
# 5. **the test** that would have caught it, usually a single line.
#
# The code is our own, written to have the same bug; the links lead to the originals.
# None of them is there to laugh at: each got past people who knew what they did.
#
# ## What a healthy patient looks like
#
# This is the loss of lesson 02 the way it is usually written. Most patients are this
# function with a line or two changed.

# %% tags=["nbval-check-output"]
import inspect

from distill_helpers.known_bugs import plain_loss

print(inspect.getsource(plain_loss))

# %% [markdown]
# The models are the sums pair of lessons 05 and 07: a teacher that adds three numbers
# in written-out steps, and a fresh student with two small layers. The rows are worked
# sums, *cut off* after 2 to 25 tokens, as answers are when a budget of tokens runs out.
# So the rows of a batch differ in length, as they do in life, and are padded.

# %%
from datasets import Dataset

from distill_helpers import three_sums
from distill_helpers.data import collator_for
from distill_helpers.models import build_student, load_tiny_teacher
from distill_helpers.studies.shared_task import worked

teacher, tokenizer = load_tiny_teacher("sums")
STEPS = profile.pick(smoke=4, cpu=40, gpu=40)
ROWS = 16  # in a batch


# %%
def cut_off(row, index):
    """The row up to a place in its answer; each row has its own."""
    prompt = row["labels"].count(-100)
    end = prompt + 2 + 7 * index % 24
    return {name: ids[:end] for name, ids in row.items()}


whole = worked(three_sums.problems(STEPS * ROWS, seed=0), tokenizer)
rows = Dataset.from_list([cut_off(row, i) for i, row in enumerate(whole)])
print(tokenizer.decode(rows[3]["input_ids"]))
print(tokenizer.decode(rows[5]["input_ids"]))


# %%
def read(model, batch):
    """A model's logits for a batch."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits


def ask_teacher(rows):
    """Batches, and what the teacher says to each."""
    collate = collator_for(tokenizer)
    parts = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    batches = [collate(Dataset.from_dict(part).to_list()) for part in parts]
    with torch.no_grad():
        return [(batch, read(teacher, batch)) for batch in batches]


lessons = ask_teacher(rows)

# %% [markdown]
# Two things are watched in every run. What the run **reports** is the number that its
# own loss returns, and a sick loss may return anything. What is **real** is a yardstick
# that no patient can touch: KL(teacher ‖ student) on problems that are kept aside.

# %%
problems = three_sums.problems(48, seed=777)
exam = ask_teacher(worked(problems, tokenizer))


@torch.no_grad()
def distance(student):
    """KL(teacher ‖ student) on the exam, nats per token."""
    values = [
        plain_loss(read(student, batch), theirs, batch["labels"], 1.0, 1.0)
        for batch, theirs in exam
    ]
    return float(sum(values) / len(values))


# %%
def train(loss, T=1.0, alpha=1.0, optimizer=torch.optim.AdamW, lr=1e-2):
    """One short training; every run has the same start, rows and order."""
    student = build_student(tokenizer, layers=2, width=64, seed=0)
    update = optimizer(student.parameters(), lr=lr)
    run = {"student": student, "reported": [], "real": []}
    for step, (batch, theirs) in enumerate(lessons):
        if step % 8 == 0:
            run["real"].append((step, distance(student)))
        value = loss(read(student, batch), theirs, batch["labels"], T, alpha)
        update.zero_grad()
        value.backward()
        update.step()
        run["reported"].append((step, value.item()))
    run["real"].append((len(lessons), distance(student)))
    return run


# %%
LOOKS = {
    "healthy": {"color": TEACHER, "marker": "o"},
    "patient": {"color": STUDENT, "marker": "s", "ls": "--"},
    "other": {"color": THIRD, "marker": "D", "ls": ":"},
}


def draw(ax, run, what, label, look="patient"):
    x, y = zip(*run[what], strict=True)
    every = max(1, len(x) // 6)
    ax.plot(x, y, label=label, ms=4, markevery=every, **LOOKS[look])
    ax.set_xlabel("step")


def chart(runs):
    """What the runs report on the left, what is real on the right."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for label, (run, look) in runs.items():
        draw(axes[0], run, "reported", label, look)
        draw(axes[1], run, "real", label, look)
    axes[0].set_title("reported: the run's own loss")
    axes[1].set_title("real: KL to the teacher, new problems")
    axes[0].set_ylabel("nats per token")
    axes[1].legend()
    plt.show()


# %%
healthy = train(plain_loss)
print(f"KL to the teacher: {healthy['real'][0][1]:.2f} at the start,", end=" ")
print(f"{healthy['real'][-1][1]:.2f} after {STEPS} steps")

# %% [markdown]
# Forty steps make no adder. They are enough to see who learns and who does not.
#
# ## Patient 1: "My loss falls like a stone"
#
# The complaint: the loss goes down beautifully, yet the student answers at random.
# This patient comes with its whole training class. You may read the code first, as
# its reviewers did:


# %%
class Distiller:
    def __init__(self, student, teacher, lr=1e-2):
        self.teacher = student.requires_grad_(True)
        self.student = teacher.requires_grad_(True)
        self.update = torch.optim.AdamW(self.student.parameters(), lr=lr)

    def step(self, batch):
        with torch.no_grad():
            theirs = read(self.teacher, batch)
        logits = read(self.student, batch)
        loss = plain_loss(logits, theirs, batch["labels"], 1.0, 1.0)
        self.update.zero_grad()
        loss.backward()
        self.update.step()
        return loss.item()


# %%
import copy

mine = build_student(tokenizer, layers=2, width=64, seed=0)
famous = copy.deepcopy(teacher)
distiller = Distiller(mine, famous, lr=2e-3)
patient = {"reported": [], "real": []}
for step, (batch, _) in enumerate(lessons[: STEPS // 2]):
    if step % 5 == 0:
        patient["real"].append((step, distance(mine)))
    patient["reported"].append((step, distiller.step(batch)))

# %%
chart({"healthy": (healthy, "healthy"), "patient": (patient, "patient")})

# %% [markdown]
# **Predict:** which of these is it?
#
# * the student is overfitting;
# * the loss is not connected to the student's weights;
# * the yardstick is wrong.
#
# The left curve is falling, so *something* is learning. **The probe:** ask who moved.

# %%
fresh = build_student(tokenizer, layers=2, width=64, seed=0)


def moved(before, after):
    """The largest change of any weight."""
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


print(f"the student moved by {moved(fresh, mine):.4f}")
print(f"the teacher moved by {moved(teacher, famous):.4f}")

# %%
from distill_helpers.bug_clinic import admit, diagnosis

diagnosis(1)

# %% [markdown]
# The large network with its many layers learned to be as clueless as a fresh student,
# which is easily learned. In the class above the two stand crosswise in `__init__`, in
# lines that look right because the names on both sides do.
#
# **The test** belongs into every training script, after its first step: the student
# has a gradient, the teacher has none. (`SoftLabelTrainer` freezes its teacher, so a
# swap there fails at once.)


# %% tags=["nbval-check-output"]
def student_alone_learns(student, teacher):
    return any(w.grad is not None for w in student.parameters()) and all(
        w.grad is None for w in teacher.parameters()
    )


print("patient 1:", student_alone_learns(mine, famous))
print("healthy:  ", student_alone_learns(healthy["student"], teacher))

# %% [markdown]
# ## Patient 2: "Distilled, and no better than before"
#
# The complaint: a mix of labels and soft labels (α = ½), a curve as it should be, and
# a student that is no better for it. From here on a patient's loss comes in a sealed
# envelope, `admit(number)`, that you open with `diagnosis(number)`.

# %%
mixed = train(plain_loss, alpha=0.5)
patient = train(admit(2), alpha=0.5)
labels_alone = train(plain_loss, alpha=0.0)
chart(
    {
        "healthy, α = ½": (mixed, "healthy"),
        "patient, α = ½": (patient, "patient"),
        "labels alone": (labels_alone, "other"),
    }
)

# %% [markdown]
# The reported curve of the patient is *lower* than the healthy one. On the right it
# runs where labels alone run. **Predict:**
#
# * the teacher is no help for sums;
# * T or α are badly chosen;
# * the soft term is not there.
#
# **The probe:** look at the two terms one by one. With α = 1 only the soft one is left.

# %%
batch, theirs = lessons[0]
logits = read(fresh, batch)
for name, loss in (("healthy", plain_loss), ("patient 2", admit(2))):
    soft = loss(logits, theirs, batch["labels"], 1.0, 1.0)
    print(f"{name:10} soft term of a fresh student: {soft:.4f}")

# %%
diagnosis(2)

# %% [markdown]
# One variable, copied from the line above it. The soft term is the divergence of the
# teacher from itself: zero, for every student, for ever. What is left is half the
# cross-entropy, and AdamW does not care about the half. The author of the original
# wrote that the experiments had been right; a later tidying-up broke the published
# version, which nobody trained again.
#
# **The test:** log every term by itself, and demand at the first step that a student
# who differs from its teacher has a soft term that is not zero *and* a gradient:

# %%
soft = plain_loss(logits, theirs, batch["labels"], 1.0, 1.0)
(gradient,) = torch.autograd.grad(soft, logits)
assert soft > 0 and gradient.any()

# %% [markdown]
# ## Patient 3: "It learned something, then it stopped"
#
# To save the teacher's time, its logits were computed once, in a pass over the data,
# and stored batch by batch. Training reads batch number `step` from the store. The data
# loader shuffles, as data loaders should:


# %%
def epoch(seed):
    """One pass over the data, shuffled."""
    order = torch.randperm(
        len(rows), generator=torch.Generator().manual_seed(seed)
    )
    return rows.select(order.tolist())


stored = [theirs for _, theirs in ask_teacher(epoch(seed=1))]


def from_store(stored, batches):
    """Pairs of a batch and what the store holds under its number."""
    width = min(s.shape[1] for s in stored)
    for step, batch in enumerate(batches):
        cut = {name: column[:, :width] for name, column in batch.items()}
        yield cut, stored[step][:, :width]


# %%
second = [batch for batch, _ in ask_teacher(epoch(seed=2))]
fair = list(lessons)
lessons = list(from_store(stored, second))
patient = train(plain_loss)
lessons = fair
chart({"healthy": (healthy, "healthy"), "patient": (patient, "patient")})

# %% [markdown]
# No error, no NaN. The patient learns at first, as fast as the healthy run. **Predict:**
#
# * the learning rate is too high towards the end;
# * the student is too small;
# * the teacher's answers belong to other questions.
#
# **The probe** asks whether the *pairing* matters. Give the healthy and the sick
# student's loss the teacher's rows in another order. A student that was taught by this
# teacher about these rows must object.


# %%
@torch.no_grad()
def pairing(student):
    batch, theirs = exam[0]
    logits, labels = read(student, batch), batch["labels"]
    right = plain_loss(logits, theirs, labels, 1.0, 1.0)
    others = plain_loss(logits, theirs.roll(1, 0), labels, 1.0, 1.0)
    return f"own rows {right:.2f}, another's rows {others:.2f}"


print("healthy:", pairing(healthy["student"]))
print("patient:", pairing(patient["student"]))

# %%
diagnosis(3)

# %% [markdown]
# Every row's answers come from another row. A student can learn one thing from that:
# what the teacher says *on average*, at this place of any text. So the loss falls to
# the distance between the teacher and its own average, and there it stays. (How large
# that is, exercise 1 asks.) The original trains on images with labels in the mix; it
# still ended with a decent accuracy, which is why three people had to open an issue.
#
# **The cure** is to find stored answers by *content*. Lesson 03's cache looks every
# row up by a hash of its token ids, so order cannot matter.

# %%
import tempfile

from distill_helpers.soft_label_cache import write_cache

folder = tempfile.mkdtemp()
options = {"tokenizer": tokenizer, "scheme": "full", "progress": False}
cache = write_cache(teacher, rows, folder, **options)
found = [cache.lookup(b["input_ids"], b["attention_mask"]) for b in second]
lessons = list(zip(second, found, strict=True))
cured = train(plain_loss)
lessons = fair
print(
    f"patient {patient['real'][-1][1]:.2f}, cured {cured['real'][-1][1]:.2f}"
)

# %% [markdown]
# **The test:** let the teacher read a few stored rows again, and compare.

# %%
print(cache.verify(teacher, rows.select(range(8)), tokenizer=tokenizer))

# %% [markdown]
# ## Patient 4: "Nothing is wrong with me"
#
# This one came for a check-up. T = 4, soft labels alone, AdamW:

# %%
hot = {"healthy": train(plain_loss, T=4.0), "patient": train(admit(4), T=4.0)}
chart({name: (run, name) for name, run in hot.items()})

# %% [markdown]
# The reported numbers differ by a factor, and nobody knows what they should be. On the
# right: two curves, one on top of the other, or nearly. **Predict:** is it healthy? And
# what will happen with plain SGD?

# %%
options = {"T": 4.0, "optimizer": torch.optim.SGD, "lr": 0.05}
slow = {
    "healthy": train(plain_loss, **options),
    "patient": train(admit(4), **options),
}
chart({name: (run, name) for name, run in slow.items()})

# %% [markdown]
# AdamW divides each gradient by its own running size. Whatever multiplies the whole
# loss is divided out again: sixteen or one sixteenth, all the same. SGD is not so
# kind. **The probe** holds the loss against itself, at two high temperatures. Lesson 01
# showed that T² is there to make that ratio nearly one.

# %%
for name, loss in (("healthy", plain_loss), ("patient 4", admit(4))):
    warm, hotter = (
        float(loss(logits, theirs, batch["labels"], T, 1.0)) for T in (50, 100)
    )
    print(
        f"{name:10} loss at T = 100 over loss at T = 50: {hotter / warm:.3f}"
    )

# %%
diagnosis(4)

# %% [markdown]
# Is a bug that changes nothing a bug? It does change something as soon as the soft
# term has company. In a mix with labels (α = ½) the patient's soft term has a
# sixteenth of its weight; a fixed clipping threshold or AdamW's ε sees another loss;
# and whoever carries its learning rate over to SGD starts anew.
#
# **The test** for a *factor* needs an optimizer that shows factors: compare gradients,
# or take one step of SGD without clipping. A training curve under AdamW is no test.

# %% tags=["nbval-check-output"]
ratios = [
    torch.autograd.grad(
        loss(logits, theirs, batch["labels"], 4.0, 1.0),
        logits,
        retain_graph=True,
    )[0].norm()
    for loss in (admit(4), plain_loss)
]
print(
    f"length of the gradient, patient over healthy: 1/{ratios[1] / ratios[0]:.0f}"
)

# %% [markdown]
# ## Patient 5: "On the big machine I was fine"
#
# The complaint: one setting, two machines. The large one holds the batch of sixteen
# rows at once; the small one takes it in pieces and **accumulates** gradients. The
# same rows, the same step. The patient hands in its objective, for the course's own
# trainer:

# %%
from distill_helpers.studies import tiny_arguments
from distill_helpers.trainers import DistillationTrainer, SoftLabels


class MyObjective(SoftLabels):
    def __call__(self, model, inputs, num_items):
        return super().__call__(model, inputs, None)


# %%
def first_gradient(objective, pieces):
    """Length of the first step's gradient, from the trainer's own log."""
    trainer = DistillationTrainer(
        build_student(tokenizer, layers=2, width=64, seed=0),
        objective(teacher, len(tokenizer)),
        tokenizer=tokenizer,
        train_dataset=rows.select(range(ROWS)),
        args=tiny_arguments(
            steps=1,
            learning_rate=1e-3,
            batch_size=ROWS // pieces,
            gradient_accumulation_steps=pieces,
        ),
    )
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"]


# %%
print("pieces   healthy   patient")
for pieces in (1, 4, 16):
    norms = [first_gradient(one, pieces) for one in (SoftLabels, MyObjective)]
    print(f"{pieces:6}{norms[0]:10.3f}{norms[1]:10.3f}")

# %% [markdown]
# **Predict:** what does the patient divide by? And once more: would AdamW's curve, with
# clipping at 1, have told you?
#
# There are two faults in it. The trainer *adds* the pieces' gradients up and leaves the
# dividing to the objective, which divides by too little: that makes the gradient longer.
# It is a factor; clipping and AdamW hide it. Divide it away by hand, and the second
# fault is left. **The probe:** do the gradients still point the same way?


# %%
def gradient(pieces):
    """Of the mean over pieces of each piece's own mean; a real accumulation."""
    student = build_student(tokenizer, layers=2, width=64, seed=0)
    batch, theirs = lessons[0]
    for part in torch.arange(ROWS).chunk(pieces):
        piece = {name: column[part] for name, column in batch.items()}
        logits = read(student, piece)
        loss = plain_loss(logits, theirs[part], piece["labels"], 1.0, 1.0)
        (loss / pieces).backward()
    return torch.cat([w.grad.flatten() for w in student.parameters()])


at_once = gradient(1)
for pieces in (4, 16):
    cosine = torch.cosine_similarity(at_once, gradient(pieces), dim=0)
    print(f"{pieces:2} pieces: cosine with the gradient at once {cosine:.3f}")

# %%
diagnosis(5)

# %% [markdown]
# A mean of means is not the mean. A short answer's few tokens weigh as much as a long
# answer's many: the student is taught what short answers look like. That *turns* the
# gradient, and a turned gradient no optimizer turns back. (In the trainer above the
# mend is to pass `num_items` on; the patient drops it.)
#
# **The test:** the same batch in 1, 4 and 16 pieces has one gradient. Exercise 2 lets
# you write it. Mind that rows of one length pass any such test.

# %% [markdown]
# ## Patient 6: "I was well on Monday"
#
# The teacher runs on a server. Where a row is shorter than the longest, the server has
# nothing to say, and fills its answers with −∞. Those places are masked, so it should
# not matter:


# %%
def with_holes(batch, theirs):
    """The teacher's logits, with −∞ where the next label does not count."""
    counts = torch.zeros_like(batch["labels"], dtype=torch.bool)
    counts[:, :-1] = batch["labels"][:, 1:] != -100
    return batch, theirs.masked_fill(~counts.unsqueeze(-1), -torch.inf)


lessons = [with_holes(*lesson) for lesson in fair[:6]]
for name, loss in (("healthy", plain_loss), ("patient", admit(6))):
    run = train(loss)
    print(f"{name}:", [round(value, 2) for _, value in run["reported"]])
lessons = fair

# %% [markdown]
# The first loss is right to the last digit. **Predict:** where does the NaN come from,
# if the loss is finite?
#
# * the learning rate;
# * a division by zero;
# * the gradient, not the loss.
#
# **The probe** looks at the gradient of the *first* step, position by position, before
# the weights are spoiled.

# %%
batch, theirs = with_holes(*fair[0])
logits = read(fresh, batch)
loss = admit(6)(logits, theirs, batch["labels"], 1.0, 1.0)
(gradient_there,) = torch.autograd.grad(loss, logits)
bad = gradient_there.isnan().any(-1)[:, :-1]
counted = batch["labels"][:, 1:] != -100
print(f"loss {loss:.2f}; gradients that are NaN:")
print(
    f"{int((bad & counted).sum())} of {int(counted.sum())} counted positions"
)
print(
    f"{int((bad & ~counted).sum())} of {int((~counted).sum())} masked positions"
)

# %%
diagnosis(6)

# %% [markdown]
# `torch.where` picks the good values on the way forward. On the way back it sends a
# *zero* to the places not chosen, and zero times NaN is NaN. One batch like this, and
# every weight is gone for good. Until a row is shorter than its neighbours, and the
# server answers with −∞, the code is right in every digit: this bug is **dormant**.
#
# **The test:** put −∞, NaN or anything you like where nothing counts. Neither value nor
# gradient may change. (And let a log show a NaN: transformers' `Trainer` leaves them
# out unless `logging_nan_inf_filter=False`.)
#
# ## Patient 7: "My loss is the best of the ward"
#
# The complaint is a compliment: the lowest loss of all. To use a fixed shape, this
# patient pads each row to 64 tokens.


# %%
def pad_to(batch, length):
    """The batch with more padding on the right."""
    fill = {"labels": -100, "attention_mask": 0}
    extra = length - batch["labels"].shape[1]
    return {
        name: torch.nn.functional.pad(
            column, (0, extra), value=fill.get(name, tokenizer.pad_token_id)
        )
        for name, column in batch.items()
    }


padded = [pad_to(batch, 64) for batch, _ in fair]
with torch.no_grad():
    lessons = [(batch, read(teacher, batch)) for batch in padded]
patient = train(admit(7))
lessons = fair
chart({"healthy": (healthy, "healthy"), "patient": (patient, "patient")})

# %% [markdown]
# **Predict:** why is the reported loss so much lower, and does the right-hand side
# agree?
#
# **The probe:** the same rows with more and more padding. Nothing has been added that
# means anything, so nothing may change.

# %%
print("padded to   healthy   patient 7")
for length in (36, 64, 128):
    longer = pad_to(fair[0][0], length)
    with torch.no_grad():
        both = read(fresh, longer), read(teacher, longer)
        values = [
            float(loss(*both, longer["labels"], 1.0, 1.0))
            for loss in (plain_loss, admit(7))
        ]
    print(f"{length:9}{values[0]:10.3f}{values[1]:10.3f}")

# %%
diagnosis(7)

# %% [markdown] tags=["published"]
# The soft term is a mean over *all* positions. Prompts and padding are counted; what
# the teacher says after padding is nonsense, though often one that is easy to copy.
# How much of the gradient it takes depends on what lengths happen to meet in a batch.
#
# The public case is worth reading. Its author ran the comparison of several
# distillation losses again after the fix: all of them improved, and one method's clear
# lead over another (perplexity 21.3 against 24.0) was gone (19.7 against 19.6).
# A bug need not ruin a run to ruin a *conclusion*.

# %% [markdown]
# **The test:** pad the batch once more, and the loss stays as it was. The same cell
# as the probe, with an `assert`. Exercise 3 makes it a function.
#
# ## Patient 8: "They told me to pad myself"
#
# Heads are padded to round numbers, because graphics cards like these, and not every
# model to the same one: Qwen2.5's heads have 151,936 or 152,064 outputs for one and the
# same tokenizer. Here the teacher's 16 tokens are padded to 20:

# %% tags=["nbval-check-output"]
wide = torch.nn.functional.pad(theirs, (0, 4))
try:
    plain_loss(logits, wide, batch["labels"], 1.0, 1.0)
except RuntimeError as error:
    print("RuntimeError:", str(error).splitlines()[0])

# %% [markdown]
# That is a good bug: it is loud. The patient made it quiet. It fills up the student's
# logits with zeros, until both are equally wide; and now it runs.

# %%
patient = train(admit(8))
chart({"healthy": (healthy, "healthy"), "patient": (patient, "patient")})

# %% [markdown]
# **Predict:** a logit of zero sounds like nothing at all. What is it?
#
# **The probe:** the mass on tokens that do not exist. A second look is free: a softmax
# does not change when one constant is added to all logits, so a loss must not either.

# %%
with torch.no_grad():
    ghosts = torch.nn.functional.pad(read(fresh, batch), (0, 4)).softmax(-1)
print(f"a fresh student gives {ghosts[..., 16:].sum(-1).mean():.0%} to ghosts")
for name, loss in (("healthy", plain_loss), ("patient 8", admit(8))):
    for add in (0.0, 5.0):
        value = loss(logits + add, fair[0][1], batch["labels"], 1.0, 1.0)
        print(f"{name:10} student's logits + {add:g}: {value:.3f}")

# %%
diagnosis(8)

# %% [markdown]
# exp(0) is 1. Beside logits around zero that is a lot; beside a trained model's large
# ones it may be next to nothing. So the patient's loss depends on something that means
# nothing, the height of all logits, and its gradient spends itself on lifting them.
# The curves above say how much it matters *here*: judge for yourself.
#
# **The test** compares tokenizers by content, then cuts both heads to what they share.

# %%
from distill_helpers.models import shared_vocabulary

tokens = shared_vocabulary(tokenizer, tokenizer)
print(tokens, "tokens; the wide head cut:", tuple(wide[..., :tokens].shape))

# %% [markdown]
# ## Patient 9: "I have tried every α"
#
# The complaint: α was tuned, and the winner is a matter of taste.

# %%
sweep = {
    ("healthy", 1.0): healthy,
    ("healthy", 0.1): train(plain_loss, alpha=0.1),
    ("patient", 1.0): train(admit(9), alpha=1.0),
    ("patient", 0.1): train(admit(9), alpha=0.1),
}

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for (name, alpha), run in sweep.items():
    ax = axes[name == "patient"]
    look = "healthy" if alpha == 1.0 else "other"
    draw(ax, run, "reported", f"α = {alpha:g}", look)
    ax.set_title(f"{name}: what two settings of α report")
axes[0].set_ylabel("loss, nats per token")
axes[0].legend()
axes[1].legend()
plt.show()

# %% [markdown]
# **Predict** before you probe: what would you look at first?
#
# **The probe** is the best one of the whole clinic, for it takes one line and finds many
# bugs at once. Let the student be *a copy of the teacher*. There is nothing to learn,
# so at α = 1 the loss is zero, at the very first step.

# %%
batch, theirs = fair[0]
for name, loss in (("healthy", plain_loss), ("patient 9", admit(9))):
    value = loss(theirs, theirs, batch["labels"], 1.0, 1.0)
    print(f"{name:10} loss of a copy of the teacher at α = 1: {value:.3f}")

# %%
diagnosis(9)

# %% [markdown]
# A fused kernel had defaults of its own, one half and one half, and the trainer did not
# override them: users who asked for pure distillation got half of it. The pull request
# that mends it uses the very same probe: with student equal to teacher, the gap is all
# cross-entropy.
#
# **The test:** at α = 1 a copy has loss zero, and at α = 0 the loss is exactly the
# cross-entropy. Test knobs at both ends, where the right answer is known.

# %% tags=["nbval-check-output"]
print(bool(plain_loss(theirs, theirs, batch["labels"], 1.0, 1.0).abs() < 1e-5))

# %% [markdown]
# ## Patient 10: "But I said so"
#
# The last patient's code is in order. It trains, prints its results, and ends with a
# sentence that was written before the results were there:

# %%
distilled = sweep["patient", 1.0]["real"][-1][1]
alone = labels_alone["real"][-1][1]
print(f"KL to the teacher, labels alone: {alone:.3f}")
print(
    f"KL to the teacher, patient 2:    {distance(train(admit(2), alpha=0.5)['student']):.3f}"
)
print("As expected, distillation brings the student closer to its teacher.")
