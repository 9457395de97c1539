"""Small models and datasets under the names that the hub has them by.

In a folder that holds them, ``from_pretrained("Qwen/Qwen2.5-0.5B")`` reads the folder
of that name: the code that reaches for the hub runs as it is. Vocabularies, special
tokens and templates are like those of the originals, where they differ most; layers
and widths are not. :func:`use_small_gpu` lets the ``gpu`` profile run anywhere.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from distill_helpers import machine, models
from distill_helpers.data import pack_examples
from distill_helpers.labels import learn_answers, own_labels
from distill_helpers.models import load
from distill_helpers.planning import ARCHITECTURES
from distill_helpers.tasks import teachers, word_problems
from distill_helpers.tasks.glosses import splits
from distill_helpers.tasks.prose import austen
from distill_helpers.trainers import HardLabelTrainer, training_arguments

END, START, TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}" + START + "system\nYou help." + TURN
    + "\n{% endif %}{% for message in messages %}" + START + "{{ message['role'] }}\n"
    "{{ message['content'] }}" + TURN + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)  # fmt: skip
QWEN_TOKENS = 2000
# Heads have more rows than their tokenizers have tokens, and not always equally many;
# larger models often have a head of their own. Rows, and whether the head is tied:
HEADS = {
    "HuggingFaceTB/SmolLM2-135M": (49_152, True),
    "HuggingFaceTB/SmolLM2-360M": (49_280, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (49_152, False),
    "Qwen/Qwen2.5-0.5B": (2048, True),
    "Qwen/Qwen2.5-0.5B-Instruct": (2048, True),
    "Qwen/Qwen2.5-1.5B-Instruct": (2112, False),
}
KIND = '{"kind": "artifact"}'


def write_hub(folder):
    """Write all that the ``gpu`` paths of the lessons read."""
    source = teachers.prepare_packaged_teacher()
    for name in ("SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B-Instruct"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
        if not name.endswith("Instruct"):
            tokenizer.eos_token = tokenizer.bos_token = END
            tokenizer.pad_token = None
            tokenizer.chat_template = None
        _write(folder, f"HuggingFaceTB/{name}", tokenizer)
    backend = _qwen_backend()
    for name in ("Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct"):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=TURN if name.endswith("Instruct") else END,
            pad_token=END,
            chat_template=CHATML,
        )
        _write(folder, f"Qwen/{name}", tokenizer)
    result = _teach(folder / "Qwen" / "Qwen2.5-1.5B-Instruct")
    _write_rows(folder / "openai" / "gsm8k", "main", _gsm8k(result))
    stories = [{"text": text} for text in austen("validation")["text"]]
    _write_rows(folder / "roneneldan" / "TinyStories", "default", {"train": stories})


def _write(folder, name, tokenizer):
    # One that was tuned has the shape of its base.
    base = name if name in ARCHITECTURES else name.removesuffix("-Instruct")
    kind, shape = ARCHITECTURES[base]
    rows, tied = HEADS[name]
    small = {
        **shape,
        "hidden_size": 8 * shape["num_attention_heads"],
        "intermediate_size": 16 * shape["num_attention_heads"],
        "num_hidden_layers": 2,
        "vocab_size": rows,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(kind, **small, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


def _qwen_backend():
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [gloss.instruction for gloss in splits().labelled]
    texts += [p.prompt + p.answer for p in word_problems.problems(400, seed=0)]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=QWEN_TOKENS - 3,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True) for token in (END, START, TURN)]
    )
    return backend


def _teach(folder):
    """Let the chat teacher answer every gloss and every word problem alike.

    It is right in some: the filters of the lessons keep and drop. Returns its number.
    """
    drawn = word_problems.problems(400, seed=4)
    result = Counter(p.result for p in drawn).most_common(1)[0][0]
    asked = [gloss.instruction for gloss in splits().labelled[:40]]
    answers = [KIND] * len(asked)
    asked += [p.prompt for p in drawn[:40]]
    answers += [f"#### {result}"] * 40
    teacher = models.load_model(folder)
    rows = learn_answers(own_labels(asked, answers), teacher.tokenizer)
    HardLabelTrainer(
        teacher.model,
        args=training_arguments(
            machine.get_profile("smoke"),
            steps=60,
            learning_rate=1e-2,
            batch_size=8,
            disable_tqdm=True,
        ),
        train_dataset=pack_examples(rows, 512),
        tokenizer=teacher.tokenizer,
    ).train()
    teacher.model.save_pretrained(folder)
    return result


def _gsm8k(result):
    """Problems in GSM8K's form; the teacher's number is right for those to learn."""
    drawn = word_problems.problems(2000, seed=5)

    def rows(chosen):
        return [
            {
                "question": p.question,
                "answer": f"{p.steps} <<1+1=2>>\n#### {p.result}",
            }
            for p in chosen
        ]

    solved = [p for p in drawn if p.result == result]
    return {"train": rows(solved), "test": rows(drawn[:20])}


def _write_rows(folder, name, splits):
    """A repository of a dataset, as the hub holds it."""
    folder.mkdir(parents=True)
    files = []
    for split, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        files.append({"split": split, "path": f"{split}.jsonl"})
    # YAML reads JSON.
    card = {"configs": [{"config_name": name, "data_files": files}]}
    (folder / "README.md").write_text(
        f"---\n{json.dumps(card)}\n---\n", encoding="utf-8"
    )


def use_small_gpu():
    """In this process, ``gpu`` has few rows, and needs none.

    Counts are those of ``smoke``; models, datasets, files and settings are ``gpu``'s.
    Attention is a T4's. Its fp16 needs CUDA; without, it is bf16 as on Ampere, or fp32
    on a processor that would take minutes for a step in bf16.
    """
    load.has_flash_attention = lambda _: False
    cuda = torch.cuda.is_available()
    half = torch.bfloat16 if cuda or machine.cpu_bf16_pays() else None
    small = replace(
        machine.get_profile("gpu", planned=True),
        device="cuda" if cuda else "cpu",
        teacher_dtype=half or torch.float32,
        autocast_dtype=half,
    )
    get_profile = machine.get_profile

    def get_small(name="auto", **options):
        found = name in ("auto", "gpu") and not options.get("planned")
        return small if found else get_profile(name, **options)

    def pick(_, *, smoke, cpu, gpu):
        # A float is a rate, not a count.
        if isinstance(gpu, int) and isinstance(smoke, int):
            return min(smoke, gpu)
        if isinstance(gpu, dict) and isinstance(smoke, dict) and gpu:
            given = {name: smoke.get(name, one) for name, one in gpu.items()}
            return {
                name: pick(_, smoke=given[name], cpu=None, gpu=one)
                for name, one in gpu.items()
            }
        whole = gpu is None or gpu == {}
        return smoke if whole else gpu

    machine.get_profile = get_small
    machine.Profile.pick = pick


if __name__ == "__main__":
    import sys

    write_hub(Path(sys.argv[1]))
