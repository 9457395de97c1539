"""Co-distillation: models that learn from the labels and from one another.

Teacher and student train at the same time on the same batches. The teacher learns from
the labels; the student from the labels and from what the teacher says at that moment,
so that one forward pass of the teacher serves both. Or peers teach each other (mutual
learning). A :class:`MixSchedule` says how much a partner's word counts, which early on
should be little: it knows nothing yet.

Taught in notebook 07. Papers: Zhang et al. 2018 (mutual learning, arXiv:1706.00384),
Anil et al. 2018 (codistillation, arXiv:1804.03235).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from distill_helpers.losses import (
    Hidden,
    cut_outputs,
    hard_label_loss,
    soft_label_loss,
)
from distill_helpers.models import (
    HeadReader,
    checkpoint_activations,
    output_width,
    vocabulary_size,
    weights_hash,
)
from distill_helpers.trainers.alignment import has_own_prompts
from distill_helpers.trainers.base import DistillationTrainer, check_student
from distill_helpers.trainers.checkpoints import (
    load_adapters,
    refuse_shared,
    refuse_unsaved,
)

# Of the running loss that "confidence" follows: the last ten steps, about.
_MEMORY = 0.9
_STALE, _RUNNING = "stale", "running_nll.json"


@dataclass(frozen=True)
class MixSchedule:
    """How much a partner's distribution counts beside the labels, step by step.

    Attributes:
        alpha: Weight of the soft term at its highest, in [0, 1].
        warm_up: Share of the steps in which the labels alone count.
        ramp: Share of the steps, after these, over which the weight rises linearly.
        confidence: Multiply by how far the partner has come: 1 minus its running loss
            on the labels divided by that of knowing nothing, ``log(vocabulary)``.
    """

    alpha: float = 0.5
    warm_up: float = 0.0
    ramp: float = 0.0
    confidence: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "warm_up", "ramp"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1]")
        if self.warm_up + self.ramp > 1:
            raise ValueError(
                f"warm_up={self.warm_up} and ramp={self.ramp} are shares of one run "
                "and must not add up to more than 1"
            )

    def weight(
        self, progress: float, partner_nll: float = 0.0, vocabulary: int = 2
    ) -> float:
        """The weight of the soft term.

        Args:
            progress: Steps done, as a share of all.
            partner_nll: The partner's running loss, nats per token.
            vocabulary: Tokens that it chooses from.
        """
        rise = 1.0
        if progress < self.warm_up:
            rise = 0.0
        elif self.ramp:
            rise = min(1.0, (progress - self.warm_up) / self.ramp)
        if self.confidence:
            rise *= min(1.0, max(0.0, 1 - partner_nll / math.log(vocabulary)))
        return self.alpha * rise


class Partners(nn.Module):
    """Models that read the same batch: one module, to be trained as one.

    Args:
        models: Name to model.
        stale: Keep a frozen copy of these, to be refreshed now and then, for their
            partners to learn from.
        fused: Hand out hidden states where a head is plain, instead of all logits.
    """

    running_nll: torch.Tensor

    def __init__(
        self,
        models: Mapping[str, PreTrainedModel],
        *,
        stale: Collection[str],
        fused: bool,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.stale = nn.ModuleDict()
        for name in stale:
            self.stale[name] = copy.deepcopy(models[name]).requires_grad_(False).eval()
        # Saved and resumed with the weights, since the weight of the mix depends on it.
        nothing = [math.log(output_width(model) or 1) for model in models.values()]
        self.register_buffer("running_nll", torch.tensor(nothing))
        self._readers = {
            name: HeadReader("student", fused=fused)
            for name in [*models, *(f"stale {name}" for name in self.stale)]
        }

    def forward(
        self, inputs: Mapping[str, torch.Tensor], *, use_stale: bool = False
    ) -> dict[str, torch.Tensor | Hidden]:
        """Return each model's hidden states with its head; or its logits.

        Args:
            inputs: A batch.
            use_stale: Also those of the frozen copies, as ``"stale NAME"``.
        """
        found = {
            name: self._readers[name].read(model, inputs)
            for name, model in self.models.items()
        }
        if use_stale:
            with torch.no_grad():
                for name, model in self.stale.items():
                    reader = self._readers[f"stale {name}"]
                    found[f"stale {name}"] = reader.read(model, inputs)
        return found

    def train(self, mode: bool = True) -> Partners:
        """Put the models into training mode; the copies have no such mode."""
        super().train(mode)
        self.stale.eval()
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Compute every model's activations again in the backward pass; for Trainer."""
        for model in self.models.values():
            checkpoint_activations(model, **options)

    # As it was called before, and as older versions call it.
    gradient_checkpointing_enable = activation_checkpointing_enable

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the frozen copies up to date."""
        for name, old in self.stale.items():
            old.load_state_dict(self.models[name].state_dict())


class CoDistillationTrainer(DistillationTrainer):
    """Train several models together, each learning from labels and from partners.

    One optimizer step serves all of them, but nothing flows between them except
    predictions: partners are detached, gradients are clipped model by model, and every
    model has its own optimizer state. A checkpoint holds each model in a folder of its
    name, which ``from_pretrained`` reads.

    Args:
        models: Name to model, at least two, of one vocabulary. Peers must begin with
            different weights: equal ones would see equal batches, agree for ever, and
            teach each other nothing.
        teacher: Name of the model that learns from the labels alone and teaches the
            others. ``None``: peers, each of which learns from the mean divergence to
            all others.
        schedule: How much partners count, step by step.
        exchange_every: 0: partners predict on the same batch with their weights of
            the moment. Otherwise with copies that are refreshed every so many steps,
            as between distant machines (Anil et al.).
        temperature: The temperature of both softmaxes in the soft term, > 0.
        args: From :func:`~distill_helpers.trainers.training_arguments`;
            ``max_grad_norm`` holds for each model.
        train_dataset: Rows with ``input_ids`` and, if not all is learned, ``labels``.
        tokenizer: The tokenizer that all models share.
        options: Further keywords of ``Trainer``.

    Same as in :class:`~distill_helpers.trainers.SoftLabelTrainer`: ``divergence``,
    ``beta``, ``scale_by_t2``, ``fused``.

    Logged: ``NAME_hard`` and, for those that have partners, ``NAME_soft`` and
    ``NAME_alpha``.

    Raises:
        TypeError: For models that do not predict the next token.
        ValueError: For models that cannot teach each other.

    Taught in notebook 07.
    """

    def __init__(
        self,
        models: Mapping[str, PreTrainedModel],
        *,
        tokenizer: PreTrainedTokenizerBase,
        teacher: str | None = None,
        schedule: MixSchedule | None = None,
        exchange_every: int = 0,
        temperature: float = 1.0,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        scale_by_t2: bool = True,
        fused: bool = True,
        **options: Any,
    ) -> None:
        vocabulary = vocabulary_size(tokenizer)
        _check_models(models, teacher, vocabulary)
        if exchange_every < 0:
            raise ValueError(f"exchange_every={exchange_every} must not be negative")
        self.schedule = schedule or MixSchedule()
        self.exchange_every = exchange_every
        self.partners_of = {
            name: _partners(name, list(models), teacher) for name in models
        }
        self.mix = {
            "temperature": temperature,
            "divergence": divergence,
            "beta": beta,
            "scale_by_t2": scale_by_t2,
        }
        self.vocabulary = vocabulary
        self._step_nll: torch.Tensor | float = 0.0
        teaching = {other for others in self.partners_of.values() for other in others}
        stale = [name for name in models if exchange_every and name in teaching]
        partners: Any = Partners(models, stale=stale, fused=fused)
        super().__init__(
            partners, self._learn, tokenizer=tokenizer, readers=models, **options
        )
        self._refuse_spread_weights("models cannot be clipped and saved one by one")
        if self.args.save_strategy != SaveStrategy.NO:
            for name, model in models.items():
                refuse_unsaved(name, model)
        if self.args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True: several models have several best steps; "
                "keep the one you want with a KeepBest callback"
            )
        self.add_callback(_AfterStep(self))

    @property
    def partners(self) -> Partners:
        """The models, without what several processes wrap around them."""
        found: Partners = extract_model_from_parallel(self.model)
        return found

    def alpha(self, name: str) -> float:
        """The weight of the soft term of a model at this step."""
        others = self.partners_of[name]
        if not others:
            return 0.0
        progress = self.state.global_step / max(1, self.state.max_steps)
        if not self.schedule.confidence:
            return self.schedule.weight(progress)
        names = list(self.partners_of)
        nll = self.partners.running_nll[[names.index(other) for other in others]]
        return self.schedule.weight(progress, float(nll.mean()), self.vocabulary)

    def _learn(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """The sum of the models' losses; see :class:`~.trainers.Objective`."""
        if has_own_prompts(inputs):
            raise ValueError(
                "rows have teacher_prompt_ids, and models that learn together read the "
                "same rows; leave that column out, or take SoftLabelTrainer"
            )
        alphas = {name: self.alpha(name) for name in self.partners_of}
        stale = self.exchange_every > 0 and any(alphas.values())
        losses = mutual_losses(
            model(inputs, use_stale=stale),
            inputs["labels"],
            partners_of=self.partners_of,
            alphas=alphas,
            vocabulary=self.vocabulary,
            num_items=num_items,
            **self.mix,
        )
        if model.training and self.schedule.confidence:
            hard = [losses[f"{name}_hard"] for name in self.partners_of]
            self._step_nll = self._step_nll + torch.stack(hard)
        return losses

    def _forget_run(self) -> None:
        super()._forget_run()
        self._step_nll = 0.0

    def end_step(self) -> None:
        """Follow the partners' losses, refresh their copies; after every step."""
        partners = self.partners
        if self.schedule.confidence:
            nll = self.accelerator.reduce(self._step_nll, "sum")
            partners.running_nll.lerp_(nll, 1 - _MEMORY)
            self._step_nll = 0.0
        if self.exchange_every and self.state.global_step % self.exchange_every == 0:
            partners.refresh()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the weights of the soft terms."""
        if "loss" in logs:
            for name, others in self.partners_of.items():
                if others:
                    logs[f"{name}_alpha"] = self.alpha(name)
        super().log(logs, start_time)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        # Together, a model with large gradients would hold the others back.
        self.accelerator.unscale_gradients()
        norms = [
            nn.utils.clip_grad_norm_(one.parameters(), self.args.max_grad_norm)
            for one in self.partners.models.values()
        ]
        return torch.stack(norms).norm()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers 5.15 asks process zero alone, 5.23 asks all of them.
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        partners, tokenizer = self.partners, self.processing_class
        for name, model in _items(partners.models):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)  # type: ignore[union-attr]
        for name, model in _items(partners.stale):
            model.save_pretrained(folder / _STALE / name)
        running = dict(zip(partners.models, partners.running_nll.tolist(), strict=True))
        (folder / _RUNNING).write_text(json.dumps(running), encoding="utf-8")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder, partners = Path(resume_from_checkpoint), self.partners
        sources = [(folder / name, one) for name, one in _items(partners.models)]
        sources += [(folder / _STALE / name, o) for name, o in _items(partners.stale)]
        for source, one in sources:
            if not source.is_dir():
                raise ValueError(
                    f"{folder} has no {source.relative_to(folder)}: it was written by "
                    "a run with other models, or another exchange_every; resume with "
                    "the same ones, or train into another output folder"
                )
            _load(one, source)
        running = json.loads((folder / _RUNNING).read_text(encoding="utf-8"))
        partners.running_nll.copy_(
            torch.tensor([running[name] for name in partners.models])
        )


def _load(model: Any, folder: Path) -> None:
    """Load what ``save_pretrained`` wrote; of a model with adapters, only these."""
    if getattr(model, "peft_config", None):
        load_adapters(model, folder)
        return
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def _items(models: nn.ModuleDict) -> list[tuple[str, PreTrainedModel]]:
    return list(models.items())  # type: ignore[arg-type]


class _AfterStep(TrainerCallback):
    def __init__(self, trainer: CoDistillationTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.end_step()


def mutual_losses(
    readings: Mapping[str, torch.Tensor | Hidden],
    labels: torch.Tensor,
    *,
    partners_of: Mapping[str, Sequence[str]],
    alphas: Mapping[str, float],
    vocabulary: int,
    num_items: torch.Tensor | int | None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """The sum of several models' losses, each with labels and detached partners.

    Args:
        readings: From :class:`Partners`; a frozen copy, ``"stale NAME"``, stands in
            for the model that it is a copy of.
        labels: The batch's labels ``[rows, positions]``, unshifted.
        partners_of: Name to the names it learns from.
        alphas: Name to the weight of the soft term.
        vocabulary: Tokens that all heads share.
        num_items: Counted positions of the whole optimizer step, in all processes.
        options: Further keywords of :func:`~distill_helpers.losses.soft_label_loss`.

    Returns:
        ``loss``, and ``NAME_hard`` and ``NAME_soft`` without gradients.
    """
    shared = {name: cut_outputs(one, vocabulary) for name, one in readings.items()}
    losses: list[torch.Tensor] = []
    parts: dict[str, torch.Tensor] = {}
    for name, others in partners_of.items():
        if not alphas[name]:
            loss = hard_label_loss(readings[name], labels, num_items=num_items)
            losses.append(loss)
            parts[f"{name}_hard"] = loss.detach()
            continue
        mixed = [
            soft_label_loss(
                shared[name],
                shared.get(f"stale {other}", shared[other]),
                labels,
                alpha=alphas[name],
                num_items=num_items,
                **options,
            )
            for other in others
        ]
        losses.append(torch.stack([part.loss for part in mixed]).mean())
        parts[f"{name}_soft"] = torch.stack([p.soft.detach() for p in mixed]).mean()
        parts[f"{name}_hard"] = mixed[0].hard.detach()
    return {"loss": torch.stack(losses).sum(), **parts}


def _partners(name: str, names: list[str], teacher: str | None) -> tuple[str, ...]:
    if teacher is None:
        return tuple(other for other in names if other != name)
    return () if name == teacher else (teacher,)


def _check_models(
    models: Mapping[str, PreTrainedModel], teacher: str | None, vocabulary: int
) -> None:
    if len(models) < 2:
        raise ValueError(f"models has {len(models)}; co-distillation takes two or more")
    if teacher is not None and teacher not in models:
        raise ValueError(
            f"teacher={teacher!r} is none of the models, which are {', '.join(models)}"
        )
    odd = [
        name
        for name in models
        if not name
        or "." in name
        or "/" in name
        or name == _STALE
        or hasattr(nn.ModuleDict, name)
    ]
    if odd:
        raise ValueError(
            f"models has the name {odd[0]!r}, which cannot be that of a folder and of "
            "a module; choose another"
        )
    seen: dict[str, str] = {}
    for name, model in models.items():
        check_student(f"model {name!r}", model)
        width = output_width(model)
        if width is None or width < vocabulary:
            raise ValueError(
                f"{name} has {width} outputs and the tokenizer ids up to "
                f"{vocabulary - 1}; models that learn from each other need one "
                "vocabulary"
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"{name} is frozen and would never learn; call "
                f"{name}.requires_grad_(True), or take SoftLabelTrainer for a teacher "
                "that stays as it is"
            )
        for other, partner in models.items():
            if other != name:
                refuse_shared(
                    name, model, other, partner, f"pass copy.deepcopy({other})"
                )
        twin = seen.setdefault(weights_hash(model), name)
        if twin != name:
            raise ValueError(
                f"{twin} and {name} begin with the same weights. They would see the "
                "same batches in the same order, so they would agree for ever and "
                "learn nothing from each other; build one with another seed"
            )
