"""Teachers and students: load them, prune them, ask what they can read, let them write.

* ``load``: from the hub, a folder or a GGUF file: :func:`load_model`;
* ``build``: a small student with the teacher's vocabulary;
* ``prune``: a student that keeps some of its teacher's layers;
* ``adapters``: a student that trains small matrices beside frozen ones (LoRA), and is
  its own teacher with these off;
* ``vocabularies``: whether two models speak of the same tokens;
* ``heads``: hidden states and output head apart, tried out before they are trusted;
* ``limits``: what a model can read: ids, positions, device;
* ``generation``: a batch of answers;
* ``rounding``: a teacher in 8 or 4 bits, and a student that learns to bear it;
* ``remembering``: a frozen teacher that computes every row once;
* ``base``: name, size, hash and mode of any model.

Used from notebook 00 on; pruning is taught in notebook 02, adapters in notebook 09.
"""

from distill_helpers.models.adapters import (
    AdaptersOff,
    adapters_off,
    add_adapters,
    merge_adapters,
)
from distill_helpers.models.base import (
    Loaded,
    ModelError,
    checkpoint_activations,
    eval_mode,
    parameter_count,
    public_name,
    weights_hash,
)
from distill_helpers.models.build import build_student, student_config
from distill_helpers.models.generation import (
    Generation,
    closing_tokens,
    end_tokens,
    generate_batch,
    model_ends,
)
from distill_helpers.models.heads import (
    HeadReader,
    check_causal,
    check_head,
    isolates_examples,
    probed_places,
    why_not_plain,
)
from distill_helpers.models.limits import (
    Limits,
    Readers,
    check_ids,
    check_length,
    input_rows,
    is_dispatched,
    output_width,
    reading_device,
    tabled_positions,
    text_config,
    unwrapped,
)
from distill_helpers.models.load import attention_for, load_model
from distill_helpers.models.prune import config_of_kept, prune_layers
from distill_helpers.models.remembering import RememberingTeacher
from distill_helpers.models.rounding import (
    bake,
    bits_of,
    fake_round,
    is_fake_rounded,
    refuse_rounded,
    round_groups,
    rounded_bytes,
)
from distill_helpers.models.vocabularies import (
    shared_vocabulary,
    shared_vocabulary_hash,
    vocabulary_size,
)

__all__ = [
    "AdaptersOff",
    "Generation",
    "HeadReader",
    "Limits",
    "Loaded",
    "ModelError",
    "Readers",
    "RememberingTeacher",
    "adapters_off",
    "add_adapters",
    "attention_for",
    "bake",
    "bits_of",
    "build_student",
    "check_causal",
    "check_head",
    "check_ids",
    "check_length",
    "checkpoint_activations",
    "closing_tokens",
    "config_of_kept",
    "end_tokens",
    "eval_mode",
    "fake_round",
    "generate_batch",
    "input_rows",
    "is_dispatched",
    "is_fake_rounded",
    "isolates_examples",
    "load_model",
    "merge_adapters",
    "model_ends",
    "output_width",
    "parameter_count",
    "probed_places",
    "prune_layers",
    "public_name",
    "reading_device",
    "refuse_rounded",
    "round_groups",
    "rounded_bytes",
    "shared_vocabulary",
    "shared_vocabulary_hash",
    "student_config",
    "tabled_positions",
    "text_config",
    "unwrapped",
    "vocabulary_size",
    "weights_hash",
    "why_not_plain",
]
