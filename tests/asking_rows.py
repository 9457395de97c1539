"""Let a server read rows, in a process to be killed: ``asking_rows.py URL PATH``."""

import sys

from tiny_models import byte_level_bpe, ragged_rows
from vllm_server import MODEL

from distill_helpers.labels import ServedTeacher, write_cache

ROWS, K = 60, 8
OPTIONS = {"concurrency": 3, "max_retries": 0}


def asked_teacher(url):
    tokenizer = byte_level_bpe()
    rows = ragged_rows(ROWS, len(tokenizer), shortest=8, longest=16)
    return ServedTeacher(MODEL, url, tokenizer=tokenizer, **OPTIONS), rows


if __name__ == "__main__":
    teacher, rows = asked_teacher(sys.argv[1])
    write_cache(
        teacher,
        rows,
        sys.argv[2],
        tokenizer=teacher.tokenizer,
        scheme="tail_bucket",
        top_k=K,
        shard_bytes=1,
        progress=False,
    )
