"""Answers on disk: shared by processes, safe from kills, clear about what cannot be used."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from rewardjax.services import Answer
from rewardjax.services.cache import AnswerCache, request_key


def test_a_key_is_a_function_of_the_whole_request():
    messages = [{"role": "user", "content": "a"}]
    key = request_key("m", messages, {"temperature": 0.0, "n": 1})
    assert key == request_key("m", messages, {"n": 1, "temperature": 0.0})
    others = {
        request_key("n", messages, {"temperature": 0.0, "n": 1}),
        request_key("m", messages * 2, {"temperature": 0.0, "n": 1}),
        request_key("m", messages, {"temperature": 0.1, "n": 1}),
        request_key("m", messages, {}),
    }
    assert len(others | {key}) == 5


WRITER = """
import sys
from pathlib import Path
from rewardjax.services.cache import AnswerCache
from rewardjax.services.endpoint import Answer
cache = AnswerCache(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    kept = cache.put(str(i), Answer(sys.argv[2]))
    print(i, kept.text, flush=True)
"""


def writer(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_share_a_cache_and_the_first_answer_stands(tmp_path):
    path = tmp_path / "answers.sqlite"
    both = [writer(path, name, 100) for name in ("one", "two")]
    told = [
        dict(line.split() for line in process.communicate()[0].splitlines()) for process in both
    ]
    cache = AnswerCache(path)
    stored = {str(i): cache.get(str(i)).text for i in range(100)}
    assert told == [stored, stored]
    assert len(cache) == 100
    cache.close()


def test_a_killed_process_loses_no_answer(tmp_path):
    path = tmp_path / "answers.sqlite"
    process = writer(path, "it", 10**9)
    told = [process.stdout.readline().split()[0] for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    cache = AnswerCache(path)
    assert all(cache.get(key) == Answer("it") for key in told)
    cache.close()


def test_a_file_that_is_no_cache(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a shopping list, and more than a few words of it" * 50)
    with pytest.raises(ValueError, match=r"notes\.txt: expected a cache of answers, found"):
        AnswerCache(path)
    with pytest.raises(OSError, match="unable to open") as refused:
        AnswerCache(tmp_path)
    assert refused.value.filename == str(tmp_path)


def test_a_full_disk_is_named(tmp_path):
    cache = AnswerCache(tmp_path / "small.sqlite")
    cache._connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(OSError, match="full") as full:
        cache.put("key", Answer("x" * 100_000))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(cache.path))
    cache.close()
