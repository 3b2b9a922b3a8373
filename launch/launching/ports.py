"""Ports at which the processes of a job can meet: `python -m camelid.launch.launching.ports 12` prints one for 12."""

import itertools
import socket
import sys

FIRST, COUNT = 61440, 4096
"""The range in which JAX chooses a port too: beyond the ports that Linux gives to outgoing connections."""


def free_port(job: int) -> int:
    """A port of this machine on which nothing listens. Jobs with other numbers try other ports first.

    Raises OSError if all of the range are taken.
    """
    for port in itertools.islice(itertools.count(job), COUNT):
        port = FIRST + port % COUNT
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {FIRST} to {FIRST + COUNT - 1} is free")


if __name__ == "__main__":
    print(free_port(int(sys.argv[1])))
