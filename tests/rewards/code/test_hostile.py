"""Completions that attack: none may be rewarded, none may outlive its limits, none may reach the machine."""

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

TEST = ["assert f(2) == 4217"]
RIGHT = "def f(x):\n    return 4217"

FORGERIES = {
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "hard exit within": "import os\ndef f(x): os._exit(0)",
    "exit within": "def f(x): raise SystemExit(0)",
    "prints a verdict": "print('1')\nprint('1' * 100, flush=True)\ndef f(x): print('1', flush=True)",
    "writes a verdict everywhere": (
        "import os\nfor fd in range(64):\n try: os.write(fd, b'1' * 50)\n except OSError: pass\ndef f(x): return 1"
    ),
    "says ready and answers ahead": (
        'import os, sys\nreply = b\'{"dict": [["value", {"object": 0}]]}\'\n'
        "os.write(int(sys.argv[-1]), b'ready\\n' + (reply + b'\\n') * 9)"
    ),
    "equal to everything": "class E:\n def __eq__(self, o): return True\n __hash__ = None\ndef f(x): return E()",
    "an int equal to everything": "class E(int):\n def __eq__(self, o): return True\ndef f(x): return E(1)",
    "a list equal to everything": "class E(list):\n def __eq__(self, o): return True\ndef f(x): return E()",
    "replaces built-ins": (
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.exec = lambda *a, **k: None\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.int = str\ndef f(x): return 1"
    ),
    "swallows the assert": "import sys\nsys.excepthook = lambda *a: None\ndef f(x): raise AssertionError",
    "looks through the frames": (
        "import sys\ndef f(x):\n frame = sys._getframe()\n while frame:\n"
        "  for value in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
        "   if 'assert' in str(value): return int(str(value).split('== ')[1].split(chr(39))[0])\n  frame = frame.f_back"
    ),
    "rewrites the harness": (
        "import sys\nfor name, m in list(sys.modules.items()):\n if 'stablerank' in name:\n  for k in list(vars(m)):\n"
        "   if callable(vars(m)[k]): setattr(m, k, lambda *a, **k: b'1')\ndef f(x): return 1"
    ),
    "returns an endless text": "def f(x): return 'x' * 10**9",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "nested reply": "def f(x):\n a = []\n for _ in range(10**5): a = [a]\n return a",
    "syntax": "def f(x:",
    "null byte": "x = 'a\x00b'",
    "half a surrogate": "x = '\ud800'\ndef f(x): return 1",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
}


def test_a_success_cannot_be_forged(rewards):
    values = rewards([*FORGERIES.values(), RIGHT], [TEST] * (len(FORGERIES) + 1))
    assert dict(zip([*FORGERIES, "right"], values, strict=True)) == {**dict.fromkeys(FORGERIES, 0.0), "right": 1.0}


def test_code_that_ends_before_its_tests_passes_none(rewards):
    codes = ["import os\nos._exit(0)", "raise SystemExit(0)", "1/0", "x = 1"]
    assert rewards(codes, [["assert True"]] * 4) == [0.0, 0.0, 0.0, 1.0]


def test_built_ins_and_modules_of_the_test_are_its_own(rewards):
    tests = ["assert abs(f(1) - 7) < 1e-6", "assert math.isclose(f(1), 7)", "assert sorted(f(2)) == [1, 2]"]
    code = (
        "class math:\n isclose = staticmethod(lambda *a: True)\n"
        "def abs(x): return 0\ndef sorted(x): return [1, 2]\ndef f(x): return 3"
    )
    assert rewards([code], [tests], score="share") == [0.0]


def test_a_program_cannot_pass_without_the_right_output(rewards):
    tests = [{"input": "3\n", "output": "4217\n"}]
    codes = [
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "print('1')\nprint('passed')",
        "print(4217)\n1/0",
        "print(4217)",
    ]
    assert rewards(codes, [tests] * 5) == [0.0, 0.0, 0.0, 0.0, 1.0]


GREEDY = {
    "endless loop": "while True: pass",
    "endless sleep": "import time\ntime.sleep(1000)",
    "endless big integer": "x = 9 ** 9 ** 9",
    "threads that go on": (
        "import threading\ndef spin():\n while True: pass\nfor _ in range(4): threading.Thread(target=spin).start()"
    ),
    "deaf to signals": (
        "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n except Exception: pass\n"
        "while True: pass"
    ),
}


def test_time_is_bounded(deposit):
    started = time.monotonic()
    scored = deposit([f"{code}\ndef f(x): return 1" for code in GREEDY.values()], [TEST] * len(GREEDY))
    assert time.monotonic() - started < 40
    assert scored.trajectory_rewards_N.tolist() == [0.0] * len(GREEDY) and scored.notes["cut_off"] == len(GREEDY)


def test_memory_is_bounded(rewards):
    tests = [{"input": "", "output": "MemoryError"}]
    code = "try:\n    x = bytearray(10 << 30)\n    print('got it')\nexcept MemoryError:\n    print('MemoryError')"
    assert rewards([code, "x = [0]\nwhile True: x = x * 2"], [tests, tests]) == [1.0, 0.0]


def test_output_is_bounded(rewards):
    tests = [{"input": "", "output": "x"}]
    started = time.monotonic()
    assert rewards(["import os\nwhile True: os.write(1, b'x' * 65536)"], [tests]) == [0.0]
    assert time.monotonic() - started < 20


def attempt(code):
    """A program that prints what refused its attempt."""
    body = "\n".join(f"    {line}" for line in code.split("\n"))
    return (
        f"import os, sys, socket, signal, ctypes\ntry:\n{body}\n    print('done')\n"
        "except (PermissionError, BlockingIOError):\n    print('refused')\n"
        "except ValueError as e:\n    print('refused' if 'not allowed to raise maximum limit' in str(e) else e)"
    )


REFUSED = {
    "fork": "os.fork()",
    "fork bomb": "while True: os.fork()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a subprocess": "import subprocess\nsubprocess.run(['/bin/true'])",
    "a shell": "import posix\nposix.posix_spawn('/bin/true', ['true'], {})",
    "internet": "socket.socket(socket.AF_INET)",
    "internet 6": "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a datagram pair": "socket.socketpair(type=socket.SOCK_DGRAM)",
    "raw": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "kill the parent": "os.kill(os.getppid(), signal.SIGTERM)",
    "kill all": "os.kill(-1, signal.SIGKILL)",
    "kill the group of the parent": "os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)",
    "limits of the parent": "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "own limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))",
    "nice the parent": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "environment of the parent": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "memory of the parent": "open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "secrets": "open('/etc/passwd').read()",
    "home": "os.listdir(os.path.expanduser('~'))",
    "the library that judges": "open(sys.modules['stablerank'].__file__).read()",
    "write here": "open('x', 'w')",
    "write there": "open('/tmp/stablerank-hostile', 'w')",
    "a folder": "os.mkdir('x')",
    "mode": "os.chmod('.', 0)",
    "own folder": "os.rmdir(os.getcwd())",
    "shared memory": "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=10)",
    "memory file": "os.memfd_create('x')",
}


def test_the_machine_is_out_of_reach(rewards):
    values = rewards(
        [attempt(code) for code in REFUSED.values()], [[{"input": "", "output": "refused"}]] * len(REFUSED)
    )
    assert dict(zip(REFUSED, values, strict=True)) == dict.fromkeys(REFUSED, 1.0)


def test_what_a_program_is_left_with(rewards):
    code = (
        "import os, sys, threading, random, zoneinfo, sqlite3, decimal\n"
        "print(os.listdir('/usr/lib') != [], sys.flags.no_site, [k for k in os.environ if 'SECRET' in k], "
        "sorted(set(os.environ)))"
    )
    os.environ["STABLERANK_SECRET"] = "x"
    environment = ["HF_HUB_DISABLE_TELEMETRY", "LC_CTYPE", "PYTHONHASHSEED"]
    assert rewards([code], [[{"input": "", "output": f"True 1 [] {environment}"}]]) == [1.0]
    del os.environ["STABLERANK_SECRET"]


def test_no_word_of_the_code_reaches_a_listening_server(rewards):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1).send(b'x')"
        rewards([code], [[{"input": "", "output": ""}]])
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_is_left_behind(rewards):
    before = set(os.listdir(tempfile.gettempdir()))
    running = _children()
    rewards(["while True: pass", RIGHT, "x = 1"], [TEST] * 3)
    left = {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("stablerank-")}
    assert not left and _children() <= running


def _children():
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
