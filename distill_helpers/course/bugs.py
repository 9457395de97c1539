"""Wrong implementations of the distillation loss, and how each one shows itself.

One table serves three readers: the tests hold that every mutant is told from
:func:`distill_helpers.losses.soft_label_loss`, the check of the loss names the bug that
a learner's function behaves like, and notebook 12 (the bug clinic) shows them.

``bugs.toml`` has the bugs in words, one entry each, and :mod:`.mutants` has the losses.
A mutant is a complete loss, right but for one mistake, with the signature of the
exercise: ``(student_logits, teacher_logits, labels, temperature, alpha)`` → scalar.
Logits are ``[batch, positions, vocabulary]``, labels ``[batch, positions]``, unshifted,
with ``-100`` ignored; the divergence is forward KL.

:func:`plain_loss` is the healthy patient: the loss in a dozen lines. Where a bug can be
written as other lines in it, its entry holds them, and :func:`infected` puts them in.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from distill_helpers.course.mutants import MUTANTS, LossFunction
from distill_helpers.losses import IGNORE_INDEX

Tensor = torch.Tensor


@dataclass(frozen=True)
class KnownBug:
    """One mistake.

    Attributes:
        name: Identifier, stable.
        title: The mistake in one clause.
        symptom: What shows, in numbers where there are any. It does not say how to
            mend the bug, so an exercise may show it.
        remedy: What to do instead.
        taught_in: The notebook that explains it.
        issue: Where it was reported or mended in public, ``"owner/name #1, #2"``,
            several repositories after semicolons, or an empty string.
        patch: Each line at fault, marked −, and after it the right one, marked +;
            mostly lines of :func:`plain_loss`.
        mutants: Losses with this mistake, one for each way to make it. Empty where the
            mistake lies outside the loss: in the data, the cache or the trainer.
    """

    name: str
    title: str
    symptom: str
    remedy: str
    taught_in: str = "notebook 02"
    issue: str = ""
    patch: str = ""
    mutants: tuple[LossFunction, ...] = ()

    @property
    def links(self) -> tuple[str, ...]:
        """Addresses of the public issues and pull requests."""
        # GitHub sends an issue's address on to the pull request of that number.
        return tuple(
            f"https://github.com/{repository}/issues/{number}"
            for repository, numbers in self._threads()
            for number in numbers
        )

    def _threads(self) -> list[tuple[str, list[str]]]:
        parts = [part.strip() for part in self.issue.split(";") if part.strip()]
        return [(one.partition(" ")[0], re.findall(r"#(\d+)", one)) for one in parts]

    @property
    def fault(self) -> tuple[tuple[str, str], ...]:
        """Lines as they should be, each with what stands in its place."""
        lines = [line[2:] for line in self.patch.splitlines()]
        return tuple(zip(lines[1::2], lines[::2], strict=True))

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.title}", self.patch, f"Remedy: {self.remedy}"]
        if self.issue:
            parts.append(f"Seen, mended or brought in: {self.issue}")
        return "\n".join(part for part in parts if part)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """In a notebook, the diagnosis: mistake, patch, remedy, where it was seen."""
        parts = [f"**Diagnosis** (`{self.name}`): {self.title}."]
        if self.patch:
            parts.append(f"```diff\n{self.patch}\n```")
        parts.append(f"**Remedy.** {self.remedy}")
        if self.issue:
            links = iter(self.links)
            threads = [
                f"{repository} "
                + ", ".join(f"[#{number}]({next(links)})" for number in numbers)
                for repository, numbers in self._threads()
            ]
            parts.append(f"**Seen, mended or brought in:** {'; '.join(threads)}.")
        return {"text/markdown": "\n\n".join(parts), "text/plain": str(self)}


def _read_bugs() -> tuple[KnownBug, ...]:
    text = Path(__file__).with_name("bugs.toml").read_text(encoding="utf-8")
    return tuple(
        KnownBug(name, **words, mutants=MUTANTS.get(name, ()))
        for name, words in tomllib.loads(text).items()
    )


KNOWN_BUGS = _read_bugs()


def find_bug(name: str) -> KnownBug:
    """Return the entry of that name.

    Args:
        name: The identifier of a bug, such as ``"t2_missing"``.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    for bug in KNOWN_BUGS:
        if bug.name == name:
            return bug
    known = ", ".join(bug.name for bug in KNOWN_BUGS)
    raise ValueError(f"name={name!r} is not a known bug; choose one of {known}")


# --- the healthy patient ----------------------------------------------------------


def plain_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """The soft-label loss the way it is usually written; correct."""
    keep = labels[:, 1:] != IGNORE_INDEX
    s = student[:, :-1][keep]
    t = teacher[:, :-1][keep].detach()
    y = labels[:, 1:][keep]
    n = max(len(y), 1)
    log_q = (s / temperature).log_softmax(-1)
    log_p = (t / temperature).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    soft = temperature**2 * kl.sum() / n
    hard = F.cross_entropy(s, y, reduction="sum") / n
    return (1 - alpha) * hard + alpha * soft


def infected(name: str) -> LossFunction:
    """Put the lines at fault of a bug into :func:`plain_loss`.

    Args:
        name: The identifier of a bug.

    Returns:
        A loss of the same signature, with the bug.

    Raises:
        ValueError: If the bug is unknown, or is not one of these lines.
    """
    bug = find_bug(name)
    source = inspect.getsource(plain_loss)
    for right, wrong in bug.fault:
        if right not in source:
            break
        source = source.replace(right, wrong)
    else:
        if bug.fault:
            # A function of our own, with one of our own lines changed.
            namespace: dict[str, LossFunction] = {}
            exec(source, {**globals(), "__name__": __name__}, namespace)
            return namespace["plain_loss"]
    raise ValueError(f"name={name!r}: this bug does not lie in a line of plain_loss")
