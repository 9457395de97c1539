"""A real HTTP server on loopback that speaks the OpenAI protocol, and misbehaves.

Tests start one in their own process and read from it what reached it.
"""

import json
import random
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-test-0123456789"
MODEL = "parrot"


def completion(text, finish_reason="stop", prompt_tokens=7):
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": text},
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(text.split()),
            "total_tokens": prompt_tokens + len(text.split()),
        },
    }


def saying(finish_reason="stop", **message):
    """A completion whose message has these fields."""
    reply = completion("", finish_reason)
    reply["choices"][0]["message"] = {"role": "assistant", **message}
    return reply


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        if self.headers["Authorization"] != f"Bearer {KEY}":
            wrong = self.headers["Authorization"]
            return self.reply(401, {"error": {"message": f"wrong key: {wrong}"}})
        if body["model"] != MODEL:
            return self.reply(404, {"error": {"message": "no such model"}})
        with self.server.lock:
            fault = self.server.next_fault()
        if isinstance(fault, dict):
            return self.reply(200, saying(**fault))
        if isinstance(fault, tuple):
            return self.busy_until(*fault)
        if isinstance(fault, int):
            self.bill()
            return self.reply(fault, {"error": {"message": "gave up waiting"}})
        if fault is not None:
            return getattr(self, fault)(body)
        return self.answer(body)

    def answer(self, body, finish_reason="stop"):
        prompt = body["messages"][-1]["content"]
        if self.server.pause:
            time.sleep(self.server.pause)
        with self.server.lock:
            self.server.answered[str(prompt)] += 1
            self.server.billed += 7 + 2
        self.reply(200, completion(f"echo {prompt}", finish_reason))

    def reply(self, status, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    # Faults. "retry-after-ms" keeps the client's pauses short where they are not the
    # point.

    def busy(self, _):
        self.reply(429, {"error": {"message": "slow down"}}, Retry_After="1")

    def busy_until(self, seconds, clock, zone="GMT"):
        """A date as ``Retry-After``, by a clock that is ``clock`` seconds ahead.

        Without a clock (``None``) the server tells no time.
        """
        self.clock = clock
        later = formatdate(time.time() + seconds + (clock or 0), usegmt=True)
        error = {"error": {"message": "slow down"}}
        self.reply(429, error, Retry_After=later.replace("GMT", zone))

    clock = 0

    def date_time_string(self, timestamp=None):
        if self.clock is None:
            return "some day"
        return super().date_time_string((timestamp or time.time()) + self.clock)

    def busy_briefly(self, _):
        self.reply(429, {"error": {"message": "slow"}}, retry_after_ms="5")

    def broken(self, _):
        self.reply(500, {"error": {"message": "oops"}}, retry_after_ms="5")

    def away(self, _):
        self.reply(503, {"error": {"message": "later"}}, retry_after_ms="5")

    def hang(self, _):
        self.bill()
        self.server.release.wait(20)
        self.close_connection = True

    def bill(self):
        """As for an answer as long as was allowed."""
        with self.server.lock:
            self.server.billed += 7 + self.server.seen[-1]["max_tokens"]

    def cut(self, body):
        self.bill()
        data = json.dumps(completion("never whole")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def malformed(self, _):
        self.bill()
        self.reply(200, b'{"choices": [{"mess')

    def odd_numbers(self, _):
        self.bill()
        self.reply(200, completion("x") | {"choices": {"0": 1}, "created": "9" * 5000})

    def half_a_letter(self, _):
        self.bill()
        self.reply(200, b'{"choices": "\xc3')

    def no_choice(self, _):
        self.bill()
        self.reply(200, completion("x") | {"choices": []})

    def too_long(self, body):
        self.answer(body, finish_reason="length")

    def refuse(self, _):
        words = f"too many tokens for {self.headers['Authorization']}"
        self.reply(400, {"error": {"message": words}})

    def used_up(self, _):
        error = {"message": "quota gone", "code": "insufficient_quota"}
        self.reply(429, {"error": error})

    def no_usage(self, _):
        self.reply(200, completion("quiet") | {"usage": None})

    def no_content(self, _):
        reply = completion("x", "content_filter")
        reply["choices"][0]["message"]["content"] = None
        self.reply(200, reply)

    def ended_otherwise(self, body):
        self.answer(body, finish_reason="eos_token")

    def half_an_emoji(self, _):
        self.reply(200, completion("cut \ud83d", "length"))

    def log_message(self, *_):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass  # clients that hang up, or are killed, are part of the tests


@contextmanager
def running(server):
    """A server at its ``base_url``, until the block ends."""
    server.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(faults=(), *, failing=0.0, kinds=(), pause=0.0, seed=0):
    """A server with ``base_url``, ``seen`` (bodies) and ``answered`` (by prompt).

    ``faults`` are given to the first requests in turn; after that a share ``failing``
    of requests gets one of ``kinds``. A fault that is a number is the status of a
    gateway that gave up on a model which was at work, and is billed; a dictionary is
    an answer's message (see ``saying``), and a pair what ``busy_until`` wants.
    """
    server = QuietServer(("127.0.0.1", 0), _Handler)
    server.seen, server.answered, server.billed = [], Counter(), 0
    server.lock, server.release = threading.Lock(), threading.Event()
    server.pause = pause
    planned, chance = list(faults), random.Random(seed)

    def next_fault():
        if planned:
            return planned.pop(0)
        return chance.choice(kinds) if chance.random() < failing else None

    server.next_fault = next_fault
    with running(server):
        try:
            yield server
        finally:
            server.release.set()
