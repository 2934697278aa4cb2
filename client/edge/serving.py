"""``fedspact serve``: the service's process: its door (TLS, token), its model, its figures, its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from client.anonymize.model import Model, open_model
from client.anonymize.stream import Precision, StreamAnonymizer
from client.edge import anonymizer_pb2
from client.edge.anonymizer_pb2_grpc import add_AnonymizerServicer_to_server
from client.edge.batcher import Batcher
from client.edge.figures import Figures
from client.edge.service import Limits, Service, TokenGate
from spact_models.errors import UserError
from spact_models.seeds import pick_device

LOG = logging.getLogger("fedspact.edge")
NAME: str = anonymizer_pb2.DESCRIPTOR.services_by_name["Anonymizer"].full_name
LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Door:
    """Where the service listens, and who may come in."""

    host: str
    port: int  # 0: any free one
    certificate: bytes | None = None  # PEM; None: plain text
    key: bytes | None = None
    client_ca: bytes | None = None  # callers must show a certificate of this CA
    token: str | None = None

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS as asked for; None: plain text."""
        if self.certificate is None:
            return None
        pairs = [(self.key, self.certificate)]
        return grpc.ssl_server_credentials(pairs, self.client_ca, require_client_auth=self.client_ca is not None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact serve``."""
    limits = Limits()
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="RUN|FILE", help="a run folder, or an anonymizer's file")
    add("--signed-only", action="store_true", help="refuse a model that no trusted key has signed")
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=50061, help="(%(default)s)")
    add("--tls-cert", type=Path, metavar="PEM", help="the server's certificate")
    add("--tls-key", type=Path, metavar="PEM", help="its key")
    add("--client-ca", type=Path, metavar="PEM", help="callers must show a certificate of this CA")
    add("--token-file", type=Path, metavar="FILE", help="callers must send the token that stands in it")
    add("--insecure", action="store_true", help="plain text, or no token, beyond this machine")
    add("--max-streams", type=int, default=limits.streams, help="more are turned away (%(default)s)")
    add("--frames-ahead", type=int, default=limits.frames_ahead, help="held of one stream (%(default)s)")
    add("--max-pixels", type=int, default=limits.max_pixels, help="of one frame (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="(%(default)s)")
    add("--metrics-port", type=int, metavar="PORT", help="Prometheus figures, at --host (default: none)")
    add("--grace", type=float, default=10.0, metavar="SECONDS", help="for frames taken, when stopped (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; SIGHUP opens the model again."""
    logging.getLogger("fedspact.edge").setLevel(logging.INFO)
    door, limits = read_door(args), read_limits(args)
    model = open_model(args.model, args.signed_only)
    anonymizer = _at_work(model, args)
    figures = Figures()
    if args.metrics_port is not None:
        print(f"figures: http://{args.host}:{figures.publish(args.host, args.metrics_port)}/metrics", flush=True)

    def again() -> tuple[StreamAnonymizer, str]:
        other = open_model(args.model, args.signed_only)
        if other.note:
            LOG.warning(other.note)
        return _at_work(other, args), other.sha256

    def ready(port: int) -> None:
        lock = "TLS" if door.certificate else "plain text"
        if model.note:
            print(model.note, file=sys.stderr, flush=True)
        print(f"serving {model.path} ({model.sha256[:12]}) at {args.host}:{port}, {lock}", flush=True)

    taken, answered = asyncio.run(serve(anonymizer, model.sha256, door, limits, figures, again, ready, args.grace))
    print(f"stopped: {taken} frames taken, {answered} answered", flush=True)
    return 0


def _at_work(model: Model, args: argparse.Namespace) -> StreamAnonymizer:
    precision: Precision = args.precision
    return StreamAnonymizer(model.anonymizer, pick_device(args.device), precision)


async def serve(
    anonymizer: StreamAnonymizer,
    model_sha256: str,
    door: Door,
    limits: Limits,
    figures: Figures,
    reopen: Callable[[], tuple[StreamAnonymizer, str]],
    on_ready: Callable[[int], object],
    grace_seconds: float,
) -> tuple[int, int]:
    """The service's whole life; returns how many frames it took and how many it answered.

    Args:
        reopen: called in a thread on SIGHUP; what it raises is logged, and the running model stays.
        on_ready: told the port once callers are let in.
        grace_seconds: after SIGTERM or SIGINT, for the frames taken; what is not answered by then is cut off.

    Raises:
        UserError: the port cannot be had.
    """
    batcher = Batcher(anonymizer, model_sha256, figures.saw)
    figures.runs(model_sha256)
    service = Service(batcher, limits, figures)
    server = grpc.aio.server(
        interceptors=[TokenGate(door.token)] if door.token else [],
        options=[
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_send_message_length", limits.message_bytes),
            ("grpc.so_reuseport", 0),  # a second server at the same port is a mistake, not a helper
        ],
    )
    add_AnonymizerServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = _listen(server, door)
    work = asyncio.create_task(batcher.work())
    stop = asyncio.Event()
    with _signals(stop, lambda: asyncio.ensure_future(_swap(batcher, figures, reopen))):
        await server.start()
        for name in ("", NAME):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        on_ready(port)
        await asyncio.wait({asyncio.create_task(stop.wait()), work}, return_when=asyncio.FIRST_COMPLETED)
        await healthy.enter_graceful_shutdown()  # who balances load sends nobody here any more
        service.stopping.set()
        await server.stop(grace_seconds)
    failed = work.done()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work  # an error in the batcher is the service's error
    assert not failed
    return service.taken, service.answered


async def _swap(batcher: Batcher, figures: Figures, reopen: Callable[[], tuple[StreamAnonymizer, str]]) -> None:
    try:
        anonymizer, sha256 = await asyncio.to_thread(reopen)
    except Exception as error:
        LOG.error("the model was not taken, %s goes on: %s", batcher.model_sha256[:12], error)
        return
    batcher.swap(anonymizer, sha256)
    figures.swaps.inc()
    figures.runs(sha256)
    LOG.info("model %s from the next frames on", sha256[:12])


def _listen(server: grpc.aio.Server, door: Door) -> int:
    _check_free(door)
    host = f"[{door.host}]" if ":" in door.host else door.host
    address, credentials = f"{host}:{door.port}", door.credentials()
    try:
        port = (
            server.add_secure_port(address, credentials)
            if credentials is not None
            else server.add_insecure_port(address)
        )
    except RuntimeError as error:
        raise UserError(
            f"--host {door.host} --port {door.port}: cannot listen there ({error}); choose another"
        ) from None
    if not port:
        raise UserError(f"--host {door.host} --port {door.port}: cannot listen there; choose another")
    return int(port)


def _check_free(door: Door) -> None:
    """gRPC would say it in its own log, and name no reason.

    Raises:
        UserError: the address cannot be listened at, or its port is in use.
    """
    try:
        family = socket.getaddrinfo(door.host, door.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((door.host, door.port), family=family).close()
    except OSError as error:
        used = error.errno == errno.EADDRINUSE
        reason = f"port {door.port} is in use" if used else f"cannot listen there ({error.strerror})"
        raise UserError(f"--host {door.host} --port {door.port}: {reason}; choose another") from None


@contextlib.contextmanager
def _signals(stop: asyncio.Event, swap: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    wanted: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGTERM: stop.set,
        signal.SIGINT: stop.set,
        signal.SIGHUP: swap,
    }
    for number, action in wanted.items():
        loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


def read_door(args: argparse.Namespace) -> Door:
    """The door as the flags say.

    Raises:
        UserError: a file that cannot be read, a half of a pair, a weak token, or an open door to the network.
    """
    if (args.tls_cert is None) != (args.tls_key is None):
        raise UserError("--tls-cert and --tls-key go together: the certificate, and its key")
    if args.client_ca is not None and args.tls_cert is None:
        raise UserError("--client-ca: needs --tls-cert and --tls-key; callers' certificates are part of TLS")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: must be from 0 to 65535 (0 = any free one)")
    token = None if args.token_file is None else read_token(args.token_file)
    if not _here(args.host) and not args.insecure and (args.tls_cert is None or token is None):
        raise UserError(
            f"--host {args.host}: raw frames would cross the network; give --tls-cert, --tls-key and --token-file "
            "(or --insecure, if something else protects that way)"
        )
    return Door(
        host=args.host,
        port=args.port,
        certificate=None if args.tls_cert is None else _read("--tls-cert", args.tls_cert),
        key=None if args.tls_key is None else _read("--tls-key", args.tls_key),
        client_ca=None if args.client_ca is None else _read("--client-ca", args.client_ca),
        token=token,
    )


def read_token(path: Path) -> str:
    """The token that stands in a file.

    Raises:
        UserError: it cannot be read, or is short enough to be guessed.
    """
    token = _read("--token-file", path).decode("ascii", "replace").strip()
    if len(token) < LEAST_TOKEN:
        raise UserError(
            f"--token-file {path}: the token has {len(token)} characters, must have at least {LEAST_TOKEN}; make one "
            "with `openssl rand -hex 32`"
        )
    return token


def read_limits(args: argparse.Namespace) -> Limits:
    """The limits as the flags say.

    Raises:
        UserError: one below 1.
    """
    for flag in ("max_streams", "frames_ahead", "max_pixels"):
        if (value := getattr(args, flag)) < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least 1")
    if args.grace < 0:
        raise UserError(f"--grace {args.grace:g}: must be at least 0 seconds")
    return Limits(args.max_streams, args.frames_ahead, args.max_pixels)


def _here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from None
