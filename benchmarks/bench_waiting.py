"""A training step beside others on two cores, with and without patient threads.

OpenMP's threads wait for work by spinning. Alone on its cores a program gains from
that; beside another it takes away what the other could use. ``OMP_WAIT_POLICY=passive``
lets them sleep, after a moment of spinning (``GOMP_SPINCOUNT``). One job or three train
the pruned SmolLM2 of notebook 02 on 2 × 128 tokens a step; one of them is timed. Both
policies and all numbers of jobs take turns in every round, and the ratios are taken
round by round.

``make bench ONLY=waiting``, or ``bench_waiting.py [ROUNDS [STEPS]]`` for a look.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import on_cores, ratios

CORES, ROWS, LENGTH = 2, 2, 128
VARIABLE = "OMP_WAIT_POLICY"
POLICIES = ("default", "passive")
OTHERS = (0, 1, 2)
ROUNDS, STEPS = 4, 5
BUSY, PAUSE = "0", ""  # instead of a number of steps: until the pause


# The parent: who works when ---------------------------------------------------------


class _Job:
    """A process that trains when it is told to."""

    def __init__(self, policy: str) -> None:
        # The thread count and the rest are what a learner has.
        environment = {**os.environ}
        for name in (VARIABLE, "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "KMP_BLOCKTIME"):
            environment.pop(name, None)
        if policy != "default":
            environment |= {VARIABLE: policy, "GOMP_SPINCOUNT": "10000"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "train"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)

    def hear(self) -> list[float]:
        """The seconds of its steps, when it has made them."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("["):  # else a library has something to say
                seconds: list[float] = json.loads(line)
                return seconds
        raise RuntimeError(f"a job ended with status {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def run(
    rounds: int = ROUNDS, steps: int = STEPS, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Medians over the rounds, each of a round's median step."""
    seconds: dict[tuple[str, int], list[float]] = {
        (policy, others): [] for policy in POLICIES for others in OTHERS
    }
    with on_cores(CORES):
        for number in range(rounds):
            # Neither policy is always the first.
            for policy in POLICIES[:: 1 if number % 2 == 0 else -1]:
                for others, step in _round(policy, steps).items():
                    seconds[policy, others].append(step)
                    say(f"{policy:8} beside {others}: {step:.3f} s a step")
    rows = []
    for others in OTHERS:
        found = ratios(seconds["passive", others], seconds["default", others])
        row = {"others": others, "rounds": rounds}
        row |= {p: statistics.median(seconds[p, others]) for p in POLICIES}
        row |= {"ratio": statistics.median(found)}
        rows.append(row | {"least": min(found), "most": max(found)})
        say(json.dumps(rows[-1]))
    return rows


def _round(policy: str, steps: int) -> dict[int, float]:
    """A step's median seconds, for each number of other jobs."""
    jobs = [_Job(policy) for _ in range(1 + max(OTHERS))]
    found = {}
    try:
        for job in jobs:
            job.hear()  # has loaded, and made a step to warm up
        for others in OTHERS:
            company = jobs[1 : 1 + others]
            for job in company:
                job.tell(BUSY)
            jobs[0].tell(str(steps))
            found[others] = statistics.median(jobs[0].hear())
            for job in company:
                job.tell(PAUSE)
            for job in company:
                job.hear()
    finally:
        for job in jobs:
            job.end()
    return found


# A job ------------------------------------------------------------------------------


def _train() -> None:
    from transformers import TrainerCallback

    from distill_helpers.data import pack
    from distill_helpers.machine import get_profile
    from distill_helpers.studies import real_pair
    from distill_helpers.tasks.prose import austen
    from distill_helpers.tasks.teachers import load_teacher
    from distill_helpers.trainers import SoftLabelTrainer, training_arguments

    # Without a buffer, so that `select` knows of every command.
    commands = open(0, "rb", buffering=0)  # noqa: SIM115

    class Conducted(TrainerCallback):
        """Makes as many steps as the parent asks for, and says how long they took."""

        def __init__(self) -> None:
            self.wanted, self.took = "1", list[float]()
            self.since = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.took.append(time.perf_counter() - self.since)
            told = self.wanted == BUSY and select.select([commands], [], [], 0)[0]
            if told or str(len(self.took)) == self.wanted:
                print(json.dumps(self.took), flush=True)
                self.wanted, self.took = PAUSE, []
                while self.wanted == PAUSE:
                    self.wanted = self._command()
            self.since = time.perf_counter()

        def _command(self) -> str:
            line = commands.readline()
            if not line:
                raise SystemExit  # the parent is gone
            return line.decode().strip()

    profile = get_profile("cpu")
    teacher = load_teacher(profile)
    # A few pages are enough: they are read again and again.
    rows = pack(austen("train")[:100]["text"], teacher.tokenizer, LENGTH)
    pair = real_pair.RealPair(teacher, rows, rows, rows)
    SoftLabelTrainer(
        real_pair.start_student(pair, profile),
        teacher=teacher.model,
        teacher_tokenizer=teacher.tokenizer,
        tokenizer=teacher.tokenizer,
        train_dataset=rows,
        args=training_arguments(
            profile,
            steps=100_000,
            learning_rate=1e-5,
            batch_size=ROWS,
            disable_tqdm=True,
        ),
        callbacks=[Conducted()],
    ).train()


if __name__ == "__main__":
    if sys.argv[1:] == ["train"]:
        _train()
    else:
        run(*map(int, sys.argv[1:]), say=partial(print, flush=True))
