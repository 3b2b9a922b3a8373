"""The process that runs one program of a model: started by `code_execution.py`, never imported.

Only the standard library is used, because this file runs as a script. It reads a request as JSON from standard input,
locks itself in for good, runs the program, and writes one line of JSON. The lock is made of four parts, and needs no
privileges:

- limits (setrlimit) on processor seconds, address space, file size and core dumps;
- seccomp: the kernel refuses every system call that is not in CALLS. There are no new processes (threads are allowed),
  no sockets, no signals to other processes, no file opened for writing, nothing deleted or renamed;
- Landlock, where the kernel has it (5.13): files outside Python's own folders cannot be read;
- an empty environment and an empty working directory, which come from the caller.
"""

import contextlib
import ctypes
import errno
import json
import math
import os
import platform
import resource
import sys
import types

CALLS = {  # name: number on x86_64, number on aarch64 (None: there is none)
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "ioctl": (16, 29),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "getcpu": (309, 168),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "arch_prctl": (158, None),
}
"""System calls that the program may make, as numbered in Linux's unistd.h."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Place in CALLS and AUDIT_ARCH of each machine."""

STARTED = b"started\n"
"""Is written before the program begins; the time of the interpreter's start is not the program's."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
CLONE_THREAD = 0x10000

# Classic BPF (linux/filter.h, linux/seccomp.h)
LOAD, IS, HAS, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction)))


class Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr of the first version: the kinds of access that are refused unless a rule allows."""

    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def limit(seconds: float, memory: int) -> None:
    """Sets the limits: processor seconds, bytes of address space, no files, no core dumps."""
    for what, most in (
        (resource.RLIMIT_CPU, math.ceil(seconds)),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (most, most))


def refuse_calls(libc: ctypes.CDLL) -> None:
    """Installs the seccomp filter. Raises OSError where the kernel or the machine has none."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    column, architecture = MACHINES[platform.machine()]

    def number(x86_64: int | None, aarch64: int | None) -> int | None:
        return (x86_64, aarch64)[column]

    def when(call: int | None, argument: int, code: int, value: int, then: int, otherwise: int) -> list[tuple]:
        """A call whose argument, as its lower 32 bits, decides."""
        if call is None:
            return []
        test = [(LOAD, 0, 0, 16 + 8 * argument), (code, 0, 1, value), (RETURN, 0, 0, then), (RETURN, 0, 0, otherwise)]
        return [(IS, 0, len(test), call), *test]

    refuse = REFUSE | errno.EPERM
    code = [(LOAD, 0, 0, 4), (IS, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for call in (number(*each) for each in CALLS.values()):
        if call is not None:
            code += [(IS, 0, 1, call), (RETURN, 0, 0, ALLOW)]
    code += when(number(2, None), 1, HAS, WRITING, refuse, ALLOW)  # open
    code += when(number(257, 56), 2, HAS, WRITING, refuse, ALLOW)  # openat
    code += when(number(56, 220), 0, HAS, CLONE_THREAD, ALLOW, refuse)  # clone
    code += when(number(234, 131), 0, IS, os.getpid(), ALLOW, refuse)  # tgkill, of which abort() is made
    code += [(IS, 0, 1, 435), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]  # clone3: glibc then takes clone
    code += [(RETURN, 0, 0, refuse)]
    filters = (Instruction * len(code))(*(Instruction(*each) for each in code))
    program = Program(len(code), filters)
    if libc.prctl(22, 2, ctypes.byref(program), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the kernel has no seccomp filters")


def readable() -> list[str]:
    """The files and folders that a Python program needs: the interpreter, its packages and the system's libraries."""
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    system += ["/dev/null", "/dev/zero", "/dev/urandom", os.getcwd()]
    own = [os.path.join(each, "lib") for each in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}]
    return [each for each in {*system, *own, *sys.path} if each and os.path.exists(each)]


def hide_files(libc: ctypes.CDLL) -> None:
    """Allows reading only beneath `readable()`, where the kernel has Landlock."""
    read_file, read_dir = 4, 8
    everything = (1 << 13) - 1  # the accesses of Landlock's first version
    rules = Ruleset(everything)
    ruleset = libc.syscall(444, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    if ruleset < 0:
        return
    for path in readable():
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = read_file | (read_dir if os.path.isdir(path) else 0)
        rule = PathBeneath(allowed, opened)
        if libc.syscall(445, ruleset, 1, ctypes.byref(rule), 0):
            raise OSError(ctypes.get_errno(), f"Landlock takes no rule for {path}")
        os.close(opened)
    if libc.syscall(446, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock refuses")
    os.close(ruleset)


def run(program: str) -> str | None:
    """Runs a program as a module. Returns None if it comes to its end, else the error."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: the tests at the end of the program did not run
        said = ""
        with contextlib.suppress(BaseException):
            said = str(error)[:200]
        return f"{type(error).__name__}: {said}" if said else type(error).__name__
    return None


def main() -> None:
    asked = json.load(sys.stdin)
    answer, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    token = asked["token"]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        limit(asked["seconds"], asked["memory"])
        if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
            raise OSError(ctypes.get_errno(), "the kernel refuses no_new_privs")
        hide_files(libc)
        refuse_calls(libc)
    except (OSError, ValueError) as error:
        os.write(answer, STARTED + json.dumps({"token": token, "refused": str(error)}).encode())
        os._exit(1)
    os.write(answer, STARTED)
    error = run(asked["program"])
    os.write(answer, json.dumps({"token": token, "error": error}).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
