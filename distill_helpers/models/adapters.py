"""Adapters (LoRA): a student that trains two small matrices beside each frozen one.

On the PEFT library. A layer that computed ``W x`` computes ``W x + (alpha / rank) B A
x``; ``W`` stays as it was, ``A`` and ``B`` learn. So the optimizer keeps state for few
numbers, a checkpoint is small, and the model of the beginning is still there: with its
adapters off, a student can be its own teacher (:class:`AdaptersOff`).

Taught in notebook 09. Paper: Hu et al. 2021 (LoRA, arXiv:2106.09685).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill_helpers.models.base import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MISSING = (
    "adapters need the peft package; run: pip install 'distill-helpers[adapters]'"
)


def add_adapters(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: int = 32,
    targets: str | Sequence[str] = "all-linear",
    dropout: float = 0.0,
    train: Sequence[str] = (),
    seed: int = 0,
) -> Any:
    """Freeze a model and give it adapters (LoRA), ready for every trainer.

    It says at first what it said before: ``B`` begins at zero. Trainers then train,
    save and resume the adapters alone. Adapters want a learning rate about ten times
    that of full training, such as 1e-3.

    Args:
        model: A causal language model of transformers, in any precision: of a half
            one, the adapters are fp32 all the same. It is changed in place; go on with
            what is returned.
        rank: Rows of each ``A`` and columns of each ``B``, at least 1.
        alpha: The adapters' output is multiplied by ``alpha / rank``. Kept at one
            value, one learning rate suits all ranks.
        targets: Names of the linear layers that get adapters, such as
            ``["q_proj", "v_proj"]``. Default: all of the decoder's layers, not the
            output head. Experts of a mixture are covered as far as PEFT can.
        dropout: Probability of a zero in what goes into an adapter, in training mode.
        train: Modules that are trained whole beside the adapters, and saved with them,
            by the end of their names, such as ``["lm_head"]`` or ``["norm"]``. Tied
            embeddings stay tied: name one of both, and one matrix learns for both. A
            head that is trained so costs memory: the loss holds its logits in full.
        seed: Decides the random ``A``; the global random state stays as it was.

    Returns:
        The ``PeftModel``, in the mode that the model was in.
        ``parameter_count(…, trained=True)`` counts what learns.

    Raises:
        ImportError: If the ``peft`` package is missing.
        ValueError: For a model that has adapters already; a rank, dropout or name that
            cannot be; and for adapters on one of two tied matrices.

    Taught in notebook 09.
    """
    try:
        import peft
    except ImportError:
        raise ImportError(_MISSING) from None
    if getattr(model, "peft_config", None):
        raise ValueError(
            "model has adapters already; go on with them, or merge them first: "
            "merge_adapters(model)"
        )
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be in [0, 1)")
    named = [targets] if isinstance(targets, str) else list(targets)
    every = named == ["all-linear"]
    tied = _tied_names(model)
    _check_names(model, "targets", [] if every else named)
    _check_names(model, "train", train)
    for name in tied:
        if not every and _is_named(name, named):
            raise ValueError(
                f"targets={named}: {name} is one matrix with the embedding of the "
                "tokens (tie_word_embeddings), and an adapter on one of the two would "
                f"untie them; leave it out, or train both whole: train=[{name!r}]"
            )
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if every else named,
        exclude_modules=_outside_text(model) if every else None,
        modules_to_save=list(train) or None,
        ensure_weight_tying=any(_is_named(name, train) for name in tied),
        # GPT-2's layers are linear the other way round.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )
    was_training = model.training
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # It asks for names that transformers gives up, and for experts by pattern.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", ".*pattern keys did not match")
        torch.default_generator.manual_seed(seed)
        return peft.get_peft_model(model, settings).train(was_training)


def merge_adapters(model: Any) -> PreTrainedModel:
    """Add the adapters to the weights that they stand by; a plain model remains.

    For :func:`~distill_helpers.export.export_gguf`, ``prune_layers``, and for whoever
    has no PEFT. Nothing is copied: the student itself becomes the plain model. In half
    precision the sums are rounded, so that it says nearly what it said before.

    Args:
        model: What :func:`add_adapters` returned, or any ``PeftModel`` whose kind of
            adapters can be merged.

    Returns:
        The model without wrappers, in eval mode and trainable, as ``load_model``
        returns one.

    Raises:
        ImportError: If the ``peft`` package is missing.
        ValueError: For a model without adapters, and for adapters that hold NaN.

    Taught in notebook 09.
    """
    _check_adapted("model", model, "there is nothing to merge")
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged.requires_grad_(True).eval()


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Within it, a model with adapters is the one that it was before it had any.

    In eval mode and without gradients, for reading alone. Afterwards, modes and what
    learns are as they were.

    Args:
        model: What :func:`add_adapters` returned.

    Raises:
        ImportError: If the ``peft`` package is missing.
        ValueError: For a model without adapters.

    Taught in notebook 09.
    """
    _check_adapted("model", model, "there is nothing to turn off")
    # Turned on again, adapters would learn that somebody has frozen.
    learning = [(one, one.requires_grad) for one in model.parameters()]
    try:
        with eval_mode(model), torch.no_grad(), model.disable_adapter():
            yield
    finally:
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


@dataclass(frozen=True)
class AdaptersOff:
    """A teacher: the student as it was before it had adapters; no second copy.

    Alone it teaches to stay as one was. With rows in which the teacher has another
    prompt, it teaches what that prompt does (``data.add_teacher_prompts``). In several
    processes as well, but not where FSDP or DeepSpeed spread the weights: there, load
    the base a second time.

    Args:
        student: What :func:`add_adapters` returned; the model in training.

    Raises:
        ImportError: If the ``peft`` package is missing.
        ValueError: For a model without adapters, or one that learns something that
            would change with its adapters off as well.

    Taught in notebook 09.
    """

    student: Any

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ``ValueError`` unless the adapters are all that learns."""
        _check_adapted("student", self.student, "it cannot be its own teacher")
        with adapters_off(self.student):
            learned = (n for n, p in self.student.named_parameters() if p.requires_grad)
            name = next(learned, None)
        if name is not None:
            raise ValueError(
                f"the student learns {name}, which is not part of its adapters: the "
                "teacher, which is the student with its adapters off, would change "
                "with it; freeze it, or name its module in train="
            )


def _check_adapted(who: str, model: Any, otherwise: str) -> None:
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(_MISSING) from None
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"{who} is a {type(model).__name__} without adapters (of "
            f"models.add_adapters): {otherwise}"
        )


def _check_names(model: nn.Module, option: str, names: Sequence[str]) -> None:
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(_is_named(one, [name]) for one in modules):
            ends = sorted({one.rpartition(".")[2] for one in modules} - {""})
            words = ", ".join(one for one in ends if not one.isdigit())
            raise ValueError(
                f"{option} names {name!r}, and no module of the model has that name; "
                f"there are {words}"
            )


def _is_named(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _tied_names(model: Any) -> list[str]:
    """Names of the output head and the embedding, if they are one matrix."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return []
    return [n for n, m in model.named_modules() if m is head or m is embedding]


def _outside_text(model: Any) -> list[str] | None:
    """Linear layers that read no text: of a model that also sees pictures."""
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    within = set(decoder.modules())
    linear = (
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and m not in within
    )
    return list(linear) or None
