"""A Python that starts at once: its processes are forked from one that has imported PyTorch.

    python fork_server.py FOLDER

makes FOLDER/python, which is called as Python is. What it is called with, its environment and its
files go to this process, which forks; it waits for the fork, passes signals on, and ends as the
fork does. The fork takes FOLDER/python for its own interpreter, so that what it starts is forked
too. All ends when this process's standard input does.

What is imported beforehand are packages of others alone: the modules under test are imported by
each process itself.
"""

import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

PRELOADED = (
    "datasets",
    "datasets.io.generator",
    "pandas",
    "pyarrow.dataset",
    "safetensors.torch",
    "tokenizers",
    "torch._dynamo.backends.inductor",
    "torch._inductor.compile_fx",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.run",
    "torch.distributed.tensor",
    "torch.distributed.tensor.experimental._context_parallel._attention",
    "torch.export._trace",
    "torch.nn.attention.varlen",
    "torch.utils.tensorboard",
    "torchdata.stateful_dataloader",
    "triton",
    "typeguard",
    "tyro",
    "wandb",
)
CLIENT = """\
#!{python} -IS
import json, os, signal, socket, struct, sys

passed = [getattr(signal, f"SIG{{n}}") for n in "TERM INT HUP QUIT USR1 USR2".split()]
signal.pthread_sigmask(signal.SIG_BLOCK, passed)
ignored = [int(n) for n in passed if signal.getsignal(n) == signal.SIG_IGN]
call = json.dumps([sys.argv, os.getcwd(), dict(os.environ), ignored, os.getpid()]).encode()
files = [int(name) for name in os.listdir("/proc/self/fd")]
files = [n for n in files if os.path.exists(f"/proc/self/fd/{{n}}")]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [struct.pack("<QQ", len(call), len(files))], files)
server.sendall(struct.pack(f"<{{len(files)}}Q", *files) + call)
fork = struct.unpack("<q", server.recv(8, socket.MSG_WAITALL))[0]
for number in passed:
    signal.signal(number, lambda number, frame: os.kill(fork, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
status = server.recv(8, socket.MSG_WAITALL)
code = os.waitstatus_to_exitcode(struct.unpack("<q", status)[0]) if status else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""
MOST_FILES = 200


def main(folder: Path) -> None:
    # "datasets" reads these when it is imported, and never again.
    os.environ |= {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1"}
    for module in PRELOADED:
        importlib.import_module(module)
    # For the place of a log's line torchrun inspects its whole stack, and with it all modules.
    dynamic_rendezvous = importlib.import_module(
        "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
    )
    dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name
    inspect.getmodule(main.__code__)  # fills inspect's table of the modules' files
    # What is here stays: no fork is to go through it for garbage.
    gc.collect()
    gc.freeze()
    address = str(folder / "socket")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    client = folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)  # now others may call it

    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    waiting = selectors.DefaultSelector()
    for file in (sys.stdin, listening, woken):
        waiting.register(file, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                for fork in clients:
                    os.kill(fork, signal.SIGKILL)
                os._exit(0)  # to take PyTorch down properly takes seconds
            if key.fileobj is listening:
                connection, _ = listening.accept()
                call = _received(connection)
                fork = os.fork()
                if fork == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    waiting.close()
                    for own in (*clients.values(), connection, listening):
                        own.close()
                    os.close(woken), os.close(wakes)
                    _become(str(client), *call)
                for file in call[-1].values():
                    os.close(file)
                with contextlib.suppress(OSError):  # killed meanwhile, which is noticed below
                    connection.sendall(struct.pack("<q", fork))
                clients[fork] = connection
                waiting.register(connection, selectors.EVENT_READ, fork)
            elif key.fileobj == woken:
                os.read(woken, 4096)
                for fork, connection in list(clients.items()):
                    ended, status = os.waitpid(fork, os.WNOHANG)
                    if ended:
                        with contextlib.suppress(OSError):
                            connection.sendall(struct.pack("<q", status))
                        with contextlib.suppress(KeyError):
                            waiting.unregister(connection)
                        connection.close()
                        del clients[fork]
            elif key.data in clients:
                # The client was killed.
                waiting.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def _received(connection: socket.socket) -> tuple[Any, ...]:
    """Arguments, folder, environment, ignored signals, client, open files by their numbers."""
    head, files, _, _ = socket.recv_fds(connection, 16, MOST_FILES)
    length, count = struct.unpack("<QQ", head)
    numbers = struct.unpack(f"<{count}Q", connection.recv(8 * count, socket.MSG_WAITALL))
    call = json.loads(connection.recv(length, socket.MSG_WAITALL))
    return (*call, dict(zip(numbers, files, strict=True)))


def _become(
    client: str,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    ignored: list[int],
    called: int,
    files: dict[int, int],
) -> None:
    """In the fork: be the Python that was called. Does not return."""
    import fcntl

    import torch

    os.setsid()
    # Out of the way of the numbers that they are to have.
    above = {n: fcntl.fcntl(file, fcntl.F_DUPFD, 500) for n, file in files.items()}
    for file in files.values():
        os.close(file)
    for number, file in above.items():
        os.dup2(file, number)
        os.close(file)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN if signal.SIGINT in ignored else _interrupted)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.executable = client
    # Whose child the client is: a process that signals its launcher, or looks after it, means that
    # one. What is forked from here, such as a loader's worker, watches for the end of its true
    # parent.
    of_a_child, here = os.getppid, os.getpid()
    os.getppid = lambda: _parent_of(called) if os.getpid() == here else of_a_child()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    code = 0
    try:
        _run(arguments[1:])
    except SystemExit as exit_:
        if exit_.code is not None and not isinstance(exit_.code, int):
            print(exit_.code, file=sys.stderr)
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def _parent_of(pid: int) -> int:
    """Of a process that ended just now, 1."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 1
    return int(stat.rpartition(")")[2].split()[1])


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> None:
    """As Python's command line does: options, and -m, -c or a script."""
    while arguments[0] in ("-u", "-E"):
        if arguments.pop(0) == "-u":
            sys.stdout.reconfigure(write_through=True)
    kind, *rest = arguments
    base = [path for path in sys.path if path not in ("", os.path.dirname(__file__))]
    ours = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if kind == "-m":
        sys.argv = rest
        sys.path[:] = [os.getcwd(), *ours, *base]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[:] = ["", *ours, *base]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[:] = [os.path.dirname(os.path.abspath(kind)), *ours, *base]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
