"""Refuses every connection that leaves this machine.

``tests/conftest.py`` calls it for the tests; ``sitecustomize.py`` beside it for kernels
and other child processes, which have this folder on their PYTHONPATH.
"""

import ipaddress
import socket


class OutsideConnectionError(RuntimeError):
    """Something tried to reach the network."""


def _check(host: object) -> None:
    if host in (None, "", b"", "localhost", b"localhost"):
        return
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        address = None
    if address is None or not (address.is_loopback or address.is_unspecified):
        raise OutsideConnectionError(f"tests stay offline, but this asked for {text}")


def install() -> None:
    """Put the guard in front of the ways out of this process. Once is enough."""
    if hasattr(socket, "_distill_loopback_only"):
        return
    socket._distill_loopback_only = True  # type: ignore[attr-defined]
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return connect(self, address)

    def guarded_connect_ex(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return connect_ex(self, address)

    def guarded_getaddrinfo(host, *args, **kwargs):
        _check(host)
        return getaddrinfo(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded_connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = guarded_getaddrinfo
