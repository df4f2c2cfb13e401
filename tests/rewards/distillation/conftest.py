import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.zoo.resolve import resolve

PROMPTS = ("(3+4)*2-5=?\n", "7-2=?\n", "9*9+1-3*2=?\n", "1+1=?\n")
COMPLETIONS = ("3+4=7\n7*2=14\n14-5=9\n\\boxed{9}<eos>", "7-2=5\n\\boxed{5}<eos>", "", "no idea")


def _plain_logprobs(model, prompt, completion, temperature=1.0):
    """One sequence at a time, the whole vocabulary, softmax in fp64: the oracle."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double() / temperature
    after = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return after.gather(1, torch.tensor(completion, dtype=torch.long)[:, None])[:, 0]


@pytest.fixture(scope="session")
def plain_logprobs():
    return _plain_logprobs


@pytest.fixture(scope="session")
def zoo_tokenizer():
    return AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))


@pytest.fixture
def zoo_teacher():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-teacher"), dtype=torch.float32).eval()


@pytest.fixture
def zoo_student():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"), dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def sequences(zoo_tokenizer):
    """Prompt ids, completion ids and T; ragged, one completion empty."""
    prompts, completions = zoo_tokenizer(list(PROMPTS)).input_ids, zoo_tokenizer(list(COMPLETIONS)).input_ids
    return prompts, completions, max(map(len, completions))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.questions.append((self.path, question))
        answer = self.server.answer(question)
        if isinstance(answer, Exception):
            return self.connection.close()
        status, body, *pause = answer
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        for start in range(0, len(body), 7) if pause else ():
            self.wfile.write(body[start : start + 7])
            self.wfile.flush()
            time.sleep(*pause)
        if not pause:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    """The teacher behind the protocol of vLLM, and of OpenAI's completions; ``answer`` may be replaced."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, model):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.questions, self.answer, self.lock = model, [], self.well, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def well(self, question):
        return 200, json.dumps({"choices": [self.choice(question)]}).encode()

    def choice(self, question):
        ids = question["prompt"]
        with self.lock:
            logprobs = _plain_logprobs(self.model, ids[:1], ids[1:]).tolist()
        if question.get("echo"):
            return {"logprobs": {"token_logprobs": [None, *logprobs, -0.5]}}
        entries = [{str(token): {"logprob": value, "rank": 1}} for token, value in zip(ids[1:], logprobs, strict=True)]
        return {"prompt_logprobs": [None, *({"999": {"logprob": -0.1, "rank": 1}, **entry} for entry in entries)]}

    def handle_error(self, *_):
        """A client that hung up is no news."""


@pytest.fixture
def server(zoo_teacher):
    with _Server(zoo_teacher) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
