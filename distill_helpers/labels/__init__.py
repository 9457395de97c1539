"""What a teacher gives, on disk: its words, and its distributions.

Both are written so that a kill loses nothing, found again by the hash of what was
asked, and refused where they belong to something else.

A teacher's **words** (hard labels; notebooks 05 and 06) are asked for prompt by prompt:

* ``ask``: :func:`~distill_helpers.labels.ask.write_labels` asks for what is missing,
  :func:`~distill_helpers.labels.ask.plan_labels` estimates it; ``budget`` says how far
  the money reaches, ``store`` keeps the file of answers and reads it;
* ``teachers``: what a teacher is, requests, answers, failures, and a model in this
  process; ``api`` and ``api_content``: a server that speaks OpenAI's protocol;
* ``messages`` and ``templates``: what is asked, and how a chat template writes it;
* ``filters``: which answers to keep; ``rows``: what a student learns of them;
  ``conversations``: what it learns of conversations of several turns;
* ``choices``: a teacher's choice at every token of a text that exists.

A teacher's **distributions** (soft labels; notebook 04) are read token by token:

* ``schemes``: what is kept of a distribution, and what comes back;
* ``cache_writer``: :func:`~distill_helpers.labels.cache_writer.write_cache`;
  ``cache_rows`` lets the teacher read rows, ``cache_files`` keeps header and shards;
* ``cache_parts``: what several processes write becomes one cache:
  :func:`~distill_helpers.labels.cache_parts.merge_cache`;
* ``cache``: :class:`~distill_helpers.labels.cache.SoftLabelCache`, opened and checked;
* ``served``: a teacher behind a server that tells logprobs, on its own answers or on
  rows; ``served_tokens`` finds the ids of what it names, ``served_cache`` lets it fill
  a cache.

``files`` has the lock and the safe replacing of a file that both need.
"""

from distill_helpers.labels.api import ApiTeacher, find_api_key
from distill_helpers.labels.ask import LabelPlan, plan_labels, write_labels
from distill_helpers.labels.cache import SoftLabelCache, Verification
from distill_helpers.labels.cache_files import CacheError
from distill_helpers.labels.cache_parts import merge_cache
from distill_helpers.labels.cache_rows import row_key
from distill_helpers.labels.cache_writer import write_cache
from distill_helpers.labels.choices import relabel
from distill_helpers.labels.conversations import (
    learn_conversations,
    read_conversations,
)
from distill_helpers.labels.filters import (
    ENDED,
    Filtered,
    contaminated,
    duplicate,
    empty,
    filter_labels,
    near_duplicate,
    refused,
    truncated,
    wrong,
)
from distill_helpers.labels.messages import Message, Prompt
from distill_helpers.labels.rows import learn_answers, own_labels
from distill_helpers.labels.schemes import SCHEMES, Scheme, scheme_for
from distill_helpers.labels.served import ServedTeacher, served_rows
from distill_helpers.labels.store import read_labels
from distill_helpers.labels.teachers import (
    Action,
    Answer,
    Failure,
    LabelError,
    LocalTeacher,
    Request,
    Teacher,
)
from distill_helpers.labels.templates import prompt_ids, prompt_text

__all__ = [
    "ENDED",
    "SCHEMES",
    "Action",
    "Answer",
    "ApiTeacher",
    "CacheError",
    "Failure",
    "Filtered",
    "LabelError",
    "LabelPlan",
    "LocalTeacher",
    "Message",
    "Prompt",
    "Request",
    "Scheme",
    "ServedTeacher",
    "SoftLabelCache",
    "Teacher",
    "Verification",
    "contaminated",
    "duplicate",
    "empty",
    "filter_labels",
    "find_api_key",
    "learn_answers",
    "learn_conversations",
    "merge_cache",
    "near_duplicate",
    "own_labels",
    "plan_labels",
    "prompt_ids",
    "prompt_text",
    "read_conversations",
    "read_labels",
    "refused",
    "relabel",
    "row_key",
    "scheme_for",
    "served_rows",
    "truncated",
    "write_cache",
    "write_labels",
    "wrong",
]
