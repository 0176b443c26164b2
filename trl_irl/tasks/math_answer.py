"""
Mathematical equality of answers by Hugging Face's math-verify, in a process of its own: its own time-outs are signals,
which Python delivers to the main thread only, and without them an answer such as 9**9**9**9 would never end.
"""

import contextlib
import json
import select
import subprocess
import sys
import threading


class MathVerifier:
    """
    Judges answers, from any thread. Use it as a context manager, or call [`MathVerifier.close`].

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds for one answer.

    Attributes:
        failures (`int`): answers that could not be judged in that time, or at which the judging process died. They
            count as wrong.

    Raises:
        `ImportError`: math-verify is not installed.
    """

    def __init__(self, timeout: float = 5.0):
        import math_verify  # noqa: F401  (an error now, rather than in the other process)

        self.timeout = timeout
        self.failures = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._known: dict[tuple[str, str], bool] = {}  # samples of a prompt often give the same answer

    def is_equal(self, prediction: str, reference: str) -> bool:
        """
        Whether the last mathematical expression of `prediction` (what is in `\\boxed{}`, if anything) equals that of
        `reference`: 1/2, 0.5 and `\\frac{1}{2}` are one. False for a prediction without any.
        """
        with self._lock:
            equal = self._known.get((prediction, reference))
            if equal is None:
                equal = self._judge(prediction, reference)
                if equal is None:  # another time it may be judged: not kept
                    self.failures += 1
                    return False
                self._known[prediction, reference] = equal
            return equal

    def _judge(self, prediction: str, reference: str) -> bool | None:
        process = self._running()
        try:
            process.stdin.write(json.dumps([prediction, reference]).encode() + b"\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], self.timeout)[0]:
                answer = process.stdout.readline()
                if answer:
                    return json.loads(answer)
        except BrokenPipeError:
            pass
        self._end()
        return None

    def _running(self) -> subprocess.Popen:
        if self._process is None:
            command = [sys.executable, "-c", "from trl_irl.tasks.math_answer import serve; serve()"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, **pipes)
            self._process.stdout.readline()  # its imports are done: they are not on the first answer's time
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(BrokenPipeError):  # a question that it died before reading is flushed again
                self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        """End the judging process; a further question starts a new one."""
        with self._lock:
            self._end()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def serve() -> None:
    """The judging process: a line of JSON with prediction and reference in, a line with true or false out."""
    from math_verify import parse, verify

    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        prediction, reference = json.loads(line)
        gold = parse(reference, parsing_timeout=None)
        equal = verify(gold, parse(prediction, parsing_timeout=None), timeout_seconds=None)
        print(json.dumps(bool(equal)), file=answers, flush=True)
