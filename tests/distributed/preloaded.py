"""
A Python that has imported everything: most of the time of a run with a tiny model on several processes is imports, of
the launcher and of every rank. A server imports once and forks for each process that is asked for. `python_of_tests`
is the executable to start instead of `python`: torch's launcher starts its ranks with what PYTHON_EXEC names.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]
MODULES = (
    *("accelerate.commands.launch", "torch.distributed.run", "trl.trainer.sft_trainer", "trl.trainer.rloo_trainer"),
    *("peft", "trl_irl.trainer.gail.trainer", "trl_irl.trainer.irl.trainer", "trl_irl.trainer.online_irl.trainer"),
    *("trl_irl.commands.irl", "transformers.models.llama.modeling_llama"),
)
CLIENT = """#!{python} -ESs
import array, json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
words = [word for word in sys.argv[1:] if word != "-u"]
told = json.dumps([words, dict(os.environ), os.getcwd()]).encode()
connection.sendmsg(
    [len(told).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
)
connection.sendall(told)
process = int.from_bytes(connection.recv(8), "big")
for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, lambda signum, frame: os.kill(process, signum))
status = int.from_bytes(connection.recv(8) or bytes([0] * 7 + [1]), "big", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def python_of_tests() -> str:
    """Start the server, once a test process and only where it is asked for; it ends with its standard input."""
    folder = tempfile.mkdtemp()
    address, client = f"{folder}/socket", Path(folder, "python")
    client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    client.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-m", "tests.distributed.preloaded", address]
    with open(f"{folder}/log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    atexit.register(server.kill)
    while not os.path.exists(address):
        assert server.poll() is None, Path(folder, "log").read_text(encoding="utf-8")
        time.sleep(0.05)
    try:
        subprocess.run([client, "-m", "platform"], check=True, capture_output=True)
    except PermissionError:  # nothing may be executed where temporary files lie
        server.kill()
        return sys.executable
    return str(client)


def serve(address: str) -> list[str]:
    """Fork for each client, until nobody wants it any more; returns in what was forked, as what was asked for."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".new")
    listening.listen()
    os.rename(address + ".new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return _become(connection)
        connection.close()


def _become(connection: socket.socket) -> list[str]:
    """In the child of the server, which stays to tell the client how its own child ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    told = b""
    while len(told) < int.from_bytes(size, "big"):
        told += connection.recv(1 << 20)
    words, environment, folder = json.loads(told)
    process = os.fork()
    if process:
        _watch(process, connection)
    connection.close()
    for own, given in enumerate(descriptors):
        os.dup2(given, own)
        os.close(given)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # Anew: what they were opened on may have been of another kind.
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", 1, encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    return words


def _watch(process: int, connection: socket.socket) -> None:
    """Until it ends, or the client is killed: then it is too, with all that it has started."""
    connection.sendall(process.to_bytes(8, "big"))
    while True:
        gone, _, _ = select.select([connection], [], [], 0.02)
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):
                connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
            os._exit(0)
        if gone:
            import psutil

            for one in [*psutil.Process(process).children(recursive=True), psutil.Process(process)]:
                one.kill()
            os._exit(0)


def _status_of(words: list[str]) -> int:
    """Run a module or a script as Python does."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _leave(status: int) -> None:
    """As at the end of a Python, but for the seconds that it takes to undo all imports."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in MODULES:
        __import__(name)
    with contextlib.suppress(ImportError):
        __import__("deepspeed")
    gc.freeze()  # what is collected is written to, and so copied
    _leave(_status_of(serve(sys.argv[1])))
