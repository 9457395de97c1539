"""A real HTTP server on loopback that answers in vLLM's wire format.

It imitates vLLM's OpenAI-compatible server, which does not install in the tests'
environment, as its protocol and serving code (0.2x and 0.3x) write responses:

* ``/v1/completions`` with a prompt of token ids and ``prompt_logprobs=k``: for the
  first token ``null``, for each other a dictionary from id to ``logprob``, ``rank`` and
  ``decoded_token``, the row's own token first and the k likeliest after it;
* ``/v1/chat/completions`` with ``logprobs`` and ``top_logprobs``: the drawn token first
  among at most k; ``return_tokens_as_token_ids`` writes ``token_id:N`` for a token;
* ``return_token_ids``: ``prompt_token_ids`` and ``token_ids``;
* no more than ``max_logprobs`` of either, and 400 beyond.

The numbers are those of a real transformers model. ``dialect="texts"`` answers as
servers do that tell no ids and refuse parameters of vLLM's; ``dialect="bare"`` ignores
whatever asks for logprobs. What reached the server can be read from it.
"""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import torch
from api_server import QuietServer, running

MODEL = "served"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            self.server.left -= 1
            if self.server.left < 0:  # the connection is lost, whatever was done
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, content = self.answer(body)
        self.reply(status, content)

    def answer(self, body):
        strange = {"return_token_ids", "return_tokens_as_token_ids"} & body.keys()
        asked = max(body.get("prompt_logprobs", 0), body.get("top_logprobs", 0))
        most = self.server.max_logprobs
        if self.server.dialect == "texts" and strange:
            words = f"Unrecognized request argument supplied: {min(strange)}"
            return 400, {"error": {"message": words}}
        if asked > most:
            kind = "prompt" if "prompt" in body else "sample"
            words = f"Requested {kind} logprobs of {asked}, which is greater than max "
            return 400, {"error": {"message": f"{words}allowed: {most}"}}
        chat = self.path.endswith("/chat/completions")
        reply = self.chat(body) if chat else self.completion(body)
        return 200, {"id": "1", "created": 0, "model": MODEL} | reply

    def logprobs_of(self, ids):
        with torch.no_grad():
            logits = self.server.model(input_ids=torch.tensor([ids])).logits[0]
        return logits.double().log_softmax(-1)[:, : len(self.server.tokenizer)]

    def completion(self, body):
        ids, k = body["prompt"], body.get("prompt_logprobs")
        told = None
        if k is not None and self.server.dialect == "vllm":
            every = self.logprobs_of(ids)[:-1]
            told = [None, *map(self.entry, every, ids[1:], [k] * len(every))]
        return {
            "object": "text_completion",
            "choices": [
                {
                    "index": 0,
                    "text": "x",
                    "logprobs": None,
                    "finish_reason": "length",
                    "stop_reason": None,
                    "prompt_logprobs": told,
                    "prompt_token_ids": ids if body.get("return_token_ids") else None,
                }
            ],
            "usage": self.usage(len(ids), 1),
        }

    def entry(self, logprobs, own, k):
        ranks = logprobs.argsort(descending=True).tolist()
        chosen = dict.fromkeys([own, *ranks[: min(k, self.server.gives)]])
        return {
            str(index): {
                "logprob": max(logprobs[index].item(), -9999.0),
                "rank": ranks.index(index) + 1,
                "decoded_token": self.server.tokenizer.decode([index]),
            }
            for index in chosen
        }

    def chat(self, body):
        tokenizer = self.server.tokenizer
        prompt = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=False
        )
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        ids, every = list(prompt), []
        while len(every) < body["max_tokens"]:
            logprobs = self.logprobs_of(ids)[-1]
            if body["temperature"]:
                p = (logprobs / body["temperature"]).softmax(-1)
                chosen = torch.multinomial(p, 1, generator=generator).item()
            else:
                chosen = logprobs.argmax().item()
            ids.append(chosen)
            every.append(logprobs)
            if chosen == tokenizer.eos_token_id:
                break
        answer = ids[len(prompt) :]
        ended = answer[-1] == tokenizer.eos_token_id
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": tokenizer.decode(answer, skip_special_tokens=True),
            },
            "finish_reason": "stop" if ended else "length",
            "logprobs": None,
        }
        found = {"object": "chat.completion", "choices": [choice]}
        if body.get("logprobs") and self.server.dialect != "bare":
            content = [
                self.named(body, logprobs, index, body["top_logprobs"])
                for logprobs, index in zip(every, answer, strict=True)
            ]
            choice["logprobs"] = {"content": content}
        if body.get("return_token_ids") and self.server.dialect == "vllm":
            choice["token_ids"] = answer
            found["prompt_token_ids"] = prompt
        return found | {"usage": self.usage(len(prompt), len(answer))}

    def named(self, body, logprobs, chosen, k):
        ranks = logprobs.argsort(descending=True).tolist()
        several = list(dict.fromkeys([chosen, *ranks]))[: min(k, self.server.gives)]
        return self.token(body, logprobs, chosen) | {
            "top_logprobs": [self.token(body, logprobs, index) for index in several]
        }

    def token(self, body, logprobs, index):
        text = self.server.tokenizer.decode([index])
        if body.get("return_tokens_as_token_ids"):
            text = f"token_id:{index}"
        return {
            "token": text,
            "logprob": max(logprobs[index].item(), -9999.0),
            "bytes": list(text.encode()),
        }

    def usage(self, prompt, completion):
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving_model(
    model, tokenizer, *, dialect="vllm", max_logprobs=20, gives=10**9, left=10**9
):
    """A server with ``base_url`` and ``seen`` (bodies).

    ``gives`` is the most that it gives without a word; ``left`` says after how many
    requests connections are cut.
    """
    server = QuietServer(("127.0.0.1", 0), _Handler)
    server.model, server.tokenizer, server.dialect = model, tokenizer, dialect
    server.max_logprobs, server.gives, server.left = max_logprobs, gives, left
    server.seen, server.lock = [], threading.Lock()
    with running(server):
        yield server
