"""Ask a server for labels, in a process that gets killed: ``labelling.py URL PATH``."""

import signal
import sys

from api_server import KEY, MODEL

from distill_helpers.labels import ApiTeacher, write_labels

PROMPTS = [f"question {number}" for number in range(120)]
CONCURRENCY = 4


def ask(url, path, **options):
    teacher = ApiTeacher(MODEL, url, api_key=KEY)
    return write_labels(
        teacher, PROMPTS, path, concurrency=CONCURRENCY, progress=False, **options
    )


if __name__ == "__main__":
    # A parent in the background may have told its children to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ask(*sys.argv[1:])
