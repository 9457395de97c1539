"""Write data/MANIFEST.json: licence, origin and sha256 of every bundled file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "data"

AUSTEN = {
    "licence": (
        "public domain (text); MIT, Julia Silge (preparation), see LICENSE.janeaustenr"
    ),
    "origin": "Debian package r-cran-janeaustenr 1.0.0-1, headers removed",
}
WORDNET = {
    "licence": "WordNet 3.0 licence, see LICENSE.wordnet",
    "origin": (
        "Debian package wordnet-base 3.0-37, data.noun: glosses of 25-160 "
        "characters in 12 supersenses, at most 1,000 each, seed 0"
    ),
}
OURS = {"licence": "Apache-2.0", "origin": "tools/make_tiny_teachers.py"}
SUMS = {
    "licence": "Apache-2.0",
    "origin": "distill_helpers.tasks.three_sums.make_frozen_test(), seed there",
}
WORDS = {
    "licence": "Apache-2.0",
    "origin": "distill_helpers.tasks.word_problems.make_frozen_test(), seed there",
}
LABELS = {
    "licence": (
        "prompts: WordNet 3.0 licence, see LICENSE.wordnet; answers: Apache-2.0"
    ),
    "origin": "tools/label_glosses.py: SmolLM2-135M-Instruct, trained on 600 glosses",
}

ABOUT = {"licence": "Apache-2.0", "origin": "written for the course"}
LICENCES = {
    "LICENSE.janeaustenr": {
        "licence": "MIT, this is its text",
        "origin": "Debian package r-cran-janeaustenr 1.0.0-1, file copyright",
    },
    "LICENSE.wordnet": {
        "licence": "WordNet 3.0 licence, this is its text",
        "origin": "Debian package wordnet-base 3.0-37, file copyright",
    },
}


def facts(name: str) -> dict[str, str]:
    if name in LICENCES:
        return LICENCES[name]
    if name == "README.md":
        return ABOUT
    if name.startswith("austen/"):
        return AUSTEN
    if "wordnet" in name:
        return WORDNET
    if name.startswith("three_sums"):
        return SUMS
    if name.startswith("word_problems"):
        return WORDS
    if name.startswith("gloss_labels"):
        return LABELS
    return OURS


def main() -> None:
    files = {}
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.name.startswith("."):
            continue
        if path.is_file() and name != "MANIFEST.json":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files[name] = {**facts(name), "sha256": digest}
    text = json.dumps({"files": files}, indent=2, ensure_ascii=False) + "\n"
    (ROOT / "MANIFEST.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
