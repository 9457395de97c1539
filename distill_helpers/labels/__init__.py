"""What a teacher gives, on disk: its words, and its distributions.

Both are written so that a kill loses nothing, found again by the hash of what was
asked, and refused where they belong to something else.

A teacher's **words** (hard labels; notebooks 04 and 05) are asked for prompt by prompt:

* ``ask``: :func:`~distill_helpers.labels.ask.write_labels` asks for what is missing,
  :func:`~distill_helpers.labels.ask.plan_labels` estimates it; ``budget`` says how far
  the money reaches, ``store`` keeps the file of answers and reads it;
* ``teachers``: what a teacher is, requests, answers, failures, and a model in this
  process; ``api`` and ``api_content``: a server that speaks OpenAI's protocol;
* ``messages`` and ``templates``: what is asked, and how a chat template writes it;
* ``filters``: which answers to keep; ``rows``: what a student learns of them.

A teacher's **distributions** (soft labels; notebook 03) are read token by token:

* ``schemes``: what is kept of a distribution, and what comes back;
* ``cache_writer``: :func:`~distill_helpers.labels.cache_writer.write_cache`;
  ``cache_rows`` lets the teacher read rows, ``cache_files`` keeps header and shards;
* ``cache``: :class:`~distill_helpers.labels.cache.SoftLabelCache`, opened and checked.

``files`` has the lock and the safe replacing of a file that both need.
"""
