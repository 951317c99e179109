"""A stand-in for Mapillary on this machine: nothing that is sent to it leaves the machine.

Tests use it in their own process and look afterwards at what arrived:

    with Sandbox() as sandbox:
        run_uploader(env=os.environ | sandbox.environment())
    assert [photo.md5 for photo in sandbox.clusters[0].photos] == expected

People use it from the command line; it starts a command that then talks to the sandbox instead of Mapillary:

    python tests/sandbox.py --delay 100 python mapillary_uploader.py demo photos/
    python tests/sandbox.py --serve

It speaks the part of Mapillary's API v4 that an uploader needs, over real sockets, on 127.0.0.1 only. The Graph API is
below /graph, the upload service below /upload; a `Fault` makes either of them misbehave. A request takes this way:
`Sandbox._serve` (one thread a connection) reads its head with `Wire`, notes it as a `Request`, picks the `Fault` if
there is one, and lets a handler of `Sandbox` turn the `Call` into an `Answer`. Large bodies are hashed as they arrive
and never copied, so that the sandbox isn't the slow part when it is used for measuring.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.client import responses
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qsl, urlencode, urlsplit

JSON = dict[str, Any]

RECEIVE_BUFFER = 1 << 18  # bytes; larger ones were no faster
HEAD_KEPT = 1 << 18  # bytes of a photo kept until it is complete, to find its EXIF in
TICK = 0.02  # seconds; a limited bandwidth is handed out in portions of this length
PATIENCE = 2.0  # seconds spent on reading the rest of a request that was answered early
FOREVER = 3600.0  # seconds; longer than any test
HARD_CLOSE = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


# ---- what tests configure and look at ----


@dataclass(frozen=True)
class Account:
    """Somebody who may sign in and upload."""

    id: str = "1001"
    username: str = "demo"
    token: str = "MLY|sandbox|demo-token"
    email: str = "demo@example.com"
    password: str = "sandbox-password"


@dataclass
class Fault:
    """Something that goes wrong with certain requests. Of all faults that match and have uses left the first counts.

    `match` is a regular expression searched for in "METHOD /path", the path without /graph or /upload:
    "POST /mly_tools_", "POST /finish_upload". Unless `processed` is set, a request that gets a faulty answer, or hangs,
    has no effect. A request counts for `after` and `times` of every fault up to the one that hits it.
    """

    match: str
    times: int | None = 1  # None: always
    after: int = 0  # matching requests that are let through first
    status: int | None = None
    body: bytes | JSON | None = None
    headers: dict[str, str] = field(default_factory=dict)
    processed: bool = False  # the request takes effect in spite of the faulty answer
    delay: float = 0.0  # seconds before the answer
    late: bool = False  # the request takes effect after `delay` instead of before
    lost: bool = False  # the request takes effect, then the connection is closed without an answer
    hang: float | None = None  # read the request, answer nothing, close after so many seconds
    unread: bool = False  # never read the body; close after `hang` seconds, or never
    drop_after: int | None = None  # reset the connection when so many bytes of the body were taken in
    read_rate: float | None = None  # bytes/s at which the body is read
    answer_offset: int | None = None  # what GET of a session key claims to have
    forget: bool = False  # first set the stored upload back to nothing
    seen: int = 0  # matching requests so far

    def applies_to(self, route: str) -> bool:
        """Whether this request is hit; counts it."""
        if not re.search(self.match, route):
            return False
        self.seen += 1
        return self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)

    @property
    def takes_effect(self) -> bool:
        replaced = self.status is not None or self.body is not None or self.hang is not None
        return self.processed or self.lost or not replaced

    def answer(self, regular: Answer) -> Answer:
        """The answer to give in place of the regular one."""
        if self.status is None and self.body is None:
            return regular
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body or {}).encode()
        return Answer(self.status or 200, body, self.headers)


NO_FAULT = Fault("")


@dataclass
class Request:
    """One request as it arrived. Times are of time.monotonic(); `status` stays 0 where no answer was given."""

    method: str
    path: str  # without /graph or /upload
    service: str  # "graph", "upload", or "" for paths outside of both
    query: dict[str, str]
    headers: dict[str, str]  # keys in lower case
    started: float
    ended: float = math.inf  # while it is under way
    status: int = 0
    body_size: int = 0  # bytes of the body that were received
    body: bytes = b""  # only of requests to the Graph API

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Upload:
    """What has arrived for a session key of one account."""

    key: str
    owner: Account
    traffic: list[Request] = field(repr=False)  # all of the sandbox
    data: bytearray = field(default_factory=bytearray, repr=False)  # all bytes if Sandbox.keep, else only the first
    size: int = 0
    handle: str | None = None  # once complete
    manifest: JSON | None = None
    tags: dict[int, str] = field(default_factory=dict)
    is_pano: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    writer: object = None  # the call that may append: a newer one displaces an older one
    digest: Any = field(default_factory=hashlib.md5, repr=False)

    @property
    def md5(self) -> str:
        return str(self.digest.hexdigest())

    @property
    def posts(self) -> int:
        """How many POSTs there were, whatever became of them."""
        return len(self._posts())

    @property
    def received(self) -> int:
        """Bytes received in all POSTs, those that were thrown away included."""
        return sum(request.body_size for request in self._posts())

    def _posts(self) -> list[Request]:
        return [request for request in self.traffic if request.route == f"POST /{self.key}"]

    def append(self, block: memoryview, writer: object, sandbox: Sandbox) -> bool:
        """Takes a block in; False if another call has taken over."""
        with self.lock:
            if self.writer is not writer:
                return False
            if sandbox.hashing:
                self.digest.update(block)
            if sandbox.keep or self.size < HEAD_KEPT:
                self.data += block
            self.size += len(block)
            return True

    def forget(self) -> None:
        with self.lock:
            self.data, self.size, self.handle, self.manifest = bytearray(), 0, None, None
            self.digest, self.writer = hashlib.md5(), None

    def complete(self, keep: bool) -> str:
        """Reads what publishing needs to know, and gives the handle; always the same for an account and key."""
        head = bytes(self.data[:HEAD_KEPT])
        if self.handle is None:
            self.tags, self.is_pano = exif_strings(head), b"equirectangular" in head
            self.manifest = parsed_object(self.data if keep else head)
            self.data = self.data if keep else bytearray()
            self.handle = "h:" + hashlib.sha256(f"{self.owner.id}/{self.key}".encode()).hexdigest()[:40]
        return self.handle


@dataclass(frozen=True)
class Published:
    """A published photo."""

    image_id: str
    sequence_id: str
    session_key: str
    size: int
    md5: str
    description: JSON
    make: str | None
    model: str | None
    is_pano: bool
    published_at: float  # time.time()


@dataclass(frozen=True)
class Cluster:
    """What one call of finish_upload published."""

    cluster_id: str
    user_id: str
    username: str
    organization_id: str | None
    manifest_handle: str
    photos: tuple[Published, ...]


# ---- HTTP ----


class Dropped(Exception):
    """The connection ends without an answer."""


class Reset(Dropped):
    """The same, abruptly."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(payload: JSON, status: int = 200) -> Answer:
        return Answer(status, json.dumps(payload).encode())

    def encoded(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}"]
        headers = {"Content-Type": "application/json", "Content-Length": str(len(self.body))} | self.headers
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + self.body


class Refusal(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, payload: JSON) -> None:
        super().__init__(payload)
        self.answer = Answer.of(payload, status)


def graph_error(message: str, **more: object) -> JSON:
    return {"error": {"message": message, "type": "OAuthException", "code": 100} | more}


def upload_error(kind: str, message: str, retriable: bool = False) -> JSON:
    return {"debug_info": {"retriable": retriable, "type": kind, "message": message}}


def require(condition: object, message: str) -> None:
    if not condition:
        raise Refusal(400, graph_error(message))


class Throttle:
    """Hands out a bandwidth to everybody who shares it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._booked_until = 0.0

    def take(self, size: int, rate: float) -> None:
        """Returns when `size` bytes may have passed at `rate` bytes/s."""
        with self._lock:
            # Oversleeping is made good in the next moments: without this the rate is never reached.
            start = max(self._booked_until, time.monotonic() - 2 * TICK)
            self._booked_until = start + size / rate
            pause = self._booked_until - time.monotonic()
        if pause > 0:
            time.sleep(pause)


class Wire:
    """One connection: a small HTTP/1.1 parser that hands out bodies as views into its receive buffer."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def head(self) -> Request:
        """The next request up to its body. Raises ValueError if it isn't HTTP."""
        method, target, _ = self._line().decode("latin-1").split(" ")
        started = time.monotonic()
        headers: dict[str, str] = {}
        while line := self._line().decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        url = urlsplit(target)
        found = re.match(r"/(graph|upload)(?=/)", url.path)
        service, path = (found[1], url.path[found.end() :]) if found else ("", url.path)
        return Request(method, path, service, dict(parse_qsl(url.query)), headers, started)

    def body(self, headers: dict[str, str]) -> Iterator[memoryview]:
        """The blocks of a request's body. Each is valid until the next one is asked for."""
        if headers.get("expect", "").lower() == "100-continue":
            self.peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() != "chunked":
            yield from self._take(int(headers.get("content-length", "0")))
            return
        while size := int(self._line().split(b";")[0], 16):
            yield from self._take(size)
            self._line()
        while self._line():  # trailers
            pass

    def _line(self) -> bytes:
        while (stop := self._buffer.find(b"\n", self._start, self._end)) < 0:
            self._fill()
        line = bytes(self._view[self._start : stop])
        self._start = stop + 1
        return line.rstrip(b"\r")

    def _take(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            if self._start == self._end:
                self._fill()
            block = self._view[self._start : min(self._end, self._start + size)]
            self._start += len(block)
            size -= len(block)
            yield block

    def _fill(self) -> None:
        if self._end == len(self._buffer) or self._start == self._end:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        size = self.peer.recv_into(self._view[self._end :])
        if not size:
            raise Dropped("closed by the client, or a line as long as the buffer")
        self._end += size


class Call:
    """A request being handled."""

    def __init__(self, request: Request, fault: Fault, wire: Wire, pace: Callable[[int], None], portion: int) -> None:
        self.request, self.fault, self.wire = request, fault, wire
        self.complete = False  # the body was read to its end
        self._source = wire.body(request.headers)
        self._pace, self._portion = pace, portion

    def blocks(self) -> Iterator[memoryview]:
        """What hasn't been read of the body yet, at the speed that is allowed, and up to where the fault strikes."""
        limit = self.fault.drop_after
        for block in self._source:
            for start in range(0, len(block), self._portion):
                piece = block[start : start + self._portion]
                if limit is not None:
                    piece = piece[: limit - self.request.body_size]
                self._pace(len(piece))
                self.request.body_size += len(piece)
                yield piece
                if self.request.body_size == limit:
                    raise Reset
        self.complete = True

    def body(self) -> bytes:
        self.request.body = b"".join(bytes(block) for block in self.blocks())
        return self.request.body

    def form(self) -> JSON:
        """The fields of a JSON or form body."""
        body = self.body()
        if "urlencoded" in self.request.headers.get("content-type", ""):
            return dict(parse_qsl(body.decode()))
        fields = parsed_object(body)
        require(fields is not None, "The body is not a JSON object")
        return fields or {}

    def discard(self, seconds: float = FOREVER) -> None:
        """Reads the rest of the body, as long as that doesn't take too long."""
        deadline = time.monotonic() + seconds
        self.wire.peer.settimeout(seconds)
        for _ in self.blocks():
            if time.monotonic() > deadline:
                return
        self.wire.peer.settimeout(None)

    def token(self) -> str:
        scheme, _, token = self.request.headers.get("authorization", "").partition(" ")
        return token if scheme == "OAuth" else ""


# ---- the server ----


@final
class Sandbox:
    """The stand-in. Settings may be changed while it runs; `stop` and `start` again keep port and contents."""

    def __init__(self, *, port: int = 0, delay: float = 0.0, bandwidth: float | None = None,
                 live_after: float = 0.0, keep: bool = True, hashing: bool = True,
                 verbose: bool = False) -> None:  # fmt: skip
        self.delay = delay  # seconds, a round trip: waited before every answer
        self.bandwidth = bandwidth  # bytes/s that all connections share
        self.live_after = live_after  # seconds from publishing to appearing in GET /images
        self.keep = keep  # keep all bytes; without it memory doesn't grow with the photos
        self.hashing = hashing  # take the md5 of what arrives, and refuse what isn't what its key says
        self.verbose = verbose  # a line on stderr for each request
        self.accounts = [Account()]
        self.organizations: dict[str, JSON] = {
            "2002": {"slug": "sandbox-org", "name": "Sandbox Organization", "description": "For trying things out"}
        }
        self.client_tokens: set[str] = set()  # accepted by /login besides any that starts with MLY|
        self.client_id, self.client_secret = "4242", "sandbox-secret"  # of an OAuth application
        self.deny = False  # the user says no to the OAuth application
        self.token_lifetime = 3600  # seconds
        self.page_size = 1000
        self.hidden: set[str] = set()  # session keys of photos that never appear
        self.extra_images: list[JSON] = []  # more results for GET /images
        self.drop_fields: set[str] = set()  # fields that images lack
        self.forgetful = False  # a second finish_upload of a manifest publishes it a second time
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.clusters: list[Cluster] = []
        self.finish_calls: list[str] = []  # the manifest handle of every finish_upload that was processed
        self.corrupt: list[str] = []  # session keys whose bytes didn't have the md5 that the key says
        self._uploads: dict[tuple[str, str], Upload] = {}
        self._codes: dict[str, str] = {}  # OAuth code → redirect_uri
        self._issued: dict[str, float] = {}  # token of the first account → end of its life
        self._lock = threading.RLock()
        self._line = Throttle()
        self._closing = threading.Event()
        self._peers: set[socket.socket] = set()
        self._port = port

    # -- life --

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._closing.clear()
        self._listener = socket.socket()
        if os.name != "nt":  # there it would let two sandboxes share a port
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._listener.listen(128)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Stops listening and breaks all connections."""
        self._closing.set()
        with self._lock:
            for end in [self._listener, *self._peers]:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def reset(self) -> None:
        """Forgets what clients have done. Settings and faults stay."""
        with self._lock:
            for record in (self.requests, self.clusters, self.finish_calls, self.corrupt):
                record.clear()
            for memory in (self._uploads, self._codes, self._issued):
                memory.clear()

    def forget_uploads(self) -> None:
        """Lets all uploads and handles expire; what is published stays."""
        with self._lock:
            self._uploads.clear()

    def clear_faults(self) -> None:
        self.faults.clear()

    # -- looking at it --

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """The variables that make an uploader use this sandbox as the first account."""
        return {
            "MAPILLARY_GRAPH_API_ENDPOINT": f"{self.url}/graph",
            "MAPILLARY_UPLOAD_ENDPOINT": f"{self.url}/upload",
            "MAPILLARY_ACCESS_TOKEN": self.accounts[0].token,
        }

    @property
    def uploads(self) -> dict[str, Upload]:
        """By session key. Where two accounts have used the same key, the later one's."""
        with self._lock:
            return {key: upload for (_, key), upload in self._uploads.items()}

    @property
    def max_in_flight(self) -> int:
        """The most uploads that were under way at once."""
        posts = [r for r in list(self.requests) if r.service == "upload" and r.method == "POST"]
        changes = sorted([(r.started, 1) for r in posts] + [(r.ended, -1) for r in posts])
        running = most = 0
        for _, change in changes:
            running += change
            most = max(most, running)
        return most

    def stats(self) -> JSON:
        with self._lock:
            return {
                "requests": len(self.requests),
                "bytes_received": sum(request.body_size for request in self.requests),
                "uploads": sum(upload.handle is not None for upload in self._uploads.values()),
                "md5s": len({upload.md5 for upload in self._uploads.values() if upload.handle}),
                "clusters": len(self.clusters),
                "photos": sum(len(cluster.photos) for cluster in self.clusters),
                "corrupt": len(self.corrupt),
                "max_in_flight": self.max_in_flight,
            }

    # -- connections --

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        """Answers the requests of one connection until either side ends it."""
        with self._lock:
            self._peers.add(peer)
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(peer)
            while not self._closing.is_set() and self._exchange(wire):
                pass
        except Reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD_CLOSE)
        except (Dropped, OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._peers.discard(peer)
                peer.close()

    def _exchange(self, wire: Wire) -> bool:
        """Answers one request; False if the connection can't be used for another."""
        request = wire.head()
        call = self._call(request, wire)
        try:
            answer = self._respond(call)
            request.status, request.ended = answer.status, time.monotonic()
            wire.peer.sendall(answer.encoded())
        finally:
            request.ended = min(request.ended, time.monotonic())
            self._log(request)
        if not call.complete:
            call.discard(PATIENCE)
        return call.complete and request.headers.get("connection", "").lower() != "close"

    def _call(self, request: Request, wire: Wire) -> Call:
        """Notes the request and picks its fault."""
        with self._lock:
            if not request.path.startswith("/sandbox/"):
                self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.applies_to(request.route)), NO_FAULT)
        own, bandwidth, rate = Throttle(), self.bandwidth, fault.read_rate
        if bandwidth or rate or fault.unread:  # else the system takes in megabytes that nobody has read
            wire.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)

        def pace(size: int) -> None:
            for throttle, limit in ((self._line, bandwidth), (own, rate)):
                if limit:
                    throttle.take(size, limit)

        portion = min(int(limit * TICK) + 1 if limit else RECEIVE_BUFFER for limit in (bandwidth, rate))
        return Call(request, fault, wire, pace, portion)

    def _respond(self, call: Call) -> Answer:
        """The answer to a request, with everything that its fault does to it."""
        fault = call.fault
        if fault.drop_after == 0:
            raise Reset
        if fault.unread:
            self._hang(call, fault.hang or FOREVER)
        if fault.late:
            self._closing.wait(fault.delay)
        answer = self._handle(call) if fault.takes_effect else Answer.of({})
        if not fault.takes_effect or fault.lost or fault.hang is not None:
            call.discard()
        if fault.lost:
            raise Dropped
        if fault.hang is not None:
            self._hang(call, fault.hang)
        self._closing.wait(self.delay + (0 if fault.late else fault.delay))
        return fault.answer(answer)

    def _hang(self, call: Call, seconds: float) -> None:
        call.request.ended = time.monotonic()  # it no longer counts as under way: the client will give it up
        self._closing.wait(seconds)
        raise Dropped

    def _log(self, request: Request) -> None:
        if self.verbose:
            seconds = request.ended - request.started
            status = request.status or "no answer"
            # In one piece: print() would let other threads' lines in before the line's end.
            sys.stderr.write(f"sandbox: {request.route} {status}, {request.body_size} B, {seconds:.3f} s\n")

    # -- handlers --

    def _handle(self, call: Call) -> Answer:
        try:
            if call.request.service == "upload":
                return self._upload(call)
            answer = self._graph(call)
            call.discard()
            return answer
        except Refusal as refusal:
            return refusal.answer
        except ValueError as error:  # numbers that are none
            return Answer.of(graph_error(str(error)), 400)

    def _graph(self, call: Call) -> Answer:
        handlers = {
            "POST /login": self._login,
            "POST /logging": lambda call: Answer.of({"success": True}),
            "GET /connect": self._connect,
            "POST /token": self._token,
            "GET /me": lambda call: self._node(call, self._account(call).id),
            "POST /finish_upload": self._finish_upload,
            "GET /images": self._images,
            "GET /image_ids": self._image_ids,
            "GET /sandbox/stats": lambda call: Answer.of(self.stats()),
            "POST /sandbox/reset": self._reset,
        }
        if handler := handlers.get(call.request.route):
            return handler(call)
        if found := re.fullmatch(r"GET /(\d+)", call.request.route):
            return self._node(call, found[1])
        raise Refusal(404, graph_error(f"Unknown path {call.request.path}"))

    def _reset(self, _: Call) -> Answer:
        self.reset()
        return Answer.of({"success": True})

    def _account(self, call: Call) -> Account:
        """Whose token the request carries. Raises Refusal as the service asked would."""
        account = self._owner(call.token())
        if account:
            return account
        message = "Invalid OAuth access token" if call.token() else "An access token is required"
        if call.request.service == "upload":
            raise Refusal(401, upload_error("NotAuthorizedError", message))
        raise Refusal(401, graph_error(message, code=190))

    def _owner(self, token: str) -> Account | None:
        if self._issued.get(token, 0.0) > time.time():
            return self.accounts[0]
        return next((account for account in self.accounts if account.token == token), None)

    def _login(self, call: Call) -> Answer:
        form = call.form()
        if not (call.token().startswith("MLY|") or call.token() in self.client_tokens):
            raise Refusal(401, graph_error("Invalid client token", code=190))
        for account in self.accounts:
            if (account.email, account.password) == (form.get("email"), form.get("password")):
                return Answer.of({"access_token": account.token, "user_id": account.id})
        title, advice = "Incorrect Login", "The email or password you entered is incorrect"
        more = {"error_subcode": 1348028, "error_user_title": title, "error_user_msg": advice}
        raise Refusal(400, graph_error("Invalid parameter", **more))

    def _connect(self, call: Call) -> Answer:
        """The page where a user allows an application to act for them; the user is quick here."""
        query = call.request.query
        require(query.get("client_id") == self.client_id, "Unknown client_id")
        require(query.get("response_type") == "code" and query.get("redirect_uri"), "Invalid request")
        code = secrets.token_hex(16)
        result = {"error": "user_denied"} if self.deny else {"code": code}
        if not self.deny:
            self._codes[code] = query["redirect_uri"]
        result |= {"state": query["state"]} if "state" in query else {}
        separator = "&" if "?" in query["redirect_uri"] else "?"
        return Answer(302, b"", {"Location": query["redirect_uri"] + separator + urlencode(result)})

    def _token(self, call: Call) -> Answer:
        form = call.form()
        if call.token() != self.client_secret or str(form.get("client_id", self.client_id)) != self.client_id:
            raise Refusal(401, graph_error("Invalid client secret", code=190))
        if form.get("grant_type") == "authorization_code":
            address = self._codes.pop(str(form.get("code")), None)
            require(address and address == form.get("redirect_uri", address), "Invalid code")
        else:
            require(form.get("grant_type") == "refresh_token", "Invalid grant_type")
            require(self._owner(str(form.get("refresh_token"))), "Invalid refresh_token")
        token = f"MLY|{self.client_id}|{secrets.token_hex(16)}"
        self._issued[token] = time.time() + self.token_lifetime
        return Answer.of({"access_token": token, "expires_in": self.token_lifetime, "token_type": "bearer"})

    def _node(self, call: Call, node_id: str) -> Answer:
        """A user or an organization."""
        self._account(call)
        nodes = {account.id: {"username": account.username} for account in self.accounts} | self.organizations
        if node_id not in nodes:
            raise Refusal(400, graph_error(f"Object with ID '{node_id}' does not exist"))
        return Answer.of(picked({"id": node_id, **nodes[node_id]}, call.request.query.get("fields", "id")))

    # -- upload service --

    def _upload(self, call: Call) -> Answer:
        account, key = self._account(call), call.request.path[1:]
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise Refusal(400, upload_error("InvalidSessionKeyError", f"Not a session key: {key}"))
        with self._lock:
            upload = self._uploads.get((account.id, key)) or Upload(key, account, self.requests)
            if call.request.method == "POST":
                self._uploads[account.id, key] = upload
        if call.fault.forget:
            upload.forget()
        if call.request.method == "POST":
            return Answer.of({"h": self._receive(call, upload)})
        if call.request.method != "GET":
            raise Refusal(405, upload_error("MethodNotAllowedError", call.request.method))
        claimed = call.fault.answer_offset
        call.discard()
        return Answer.of({"offset": upload.size if claimed is None else claimed})

    def _receive(self, call: Call, upload: Upload) -> str:
        """Appends a body to an upload and gives the handle."""
        headers = call.request.headers
        if headers.get("x-entity-name") != upload.key or not headers.get("offset", "").isdecimal():
            raise Refusal(400, upload_error("InvalidHeaderError", "X-Entity-Name and Offset are required"))
        with upload.lock:
            if int(headers["offset"]) != upload.size:
                message = f"Offset {headers['offset']} is not {upload.size}"
                raise Refusal(412, upload_error("OffsetInvalidError", message, retriable=True))
            upload.writer = call
        for block in call.blocks():
            if not upload.append(block, call, self):
                raise Reset
        with upload.lock:
            promised = re.fullmatch(r"mly_tools_([0-9a-f]{32})\.(jpg|json)", upload.key)
            if self.hashing and promised and promised[1] != upload.md5:
                self.corrupt.append(upload.key)
                raise Refusal(400, upload_error("ChecksumError", f"The md5 is {upload.md5}"))
            return upload.complete(self.keep)

    # -- publishing --

    def _finish_upload(self, call: Call) -> Answer:
        account, form = self._account(call), call.form()
        handle = str(form.get("file_handle"))
        organization = str(form["organization_id"]) if form.get("organization_id") else None
        require(form.get("file_type") == "mly_bundle_manifest", "Unknown file_type")
        require(organization is None or organization in self.organizations, "Unknown organization")
        with self._lock:
            known = [c for c in self.clusters if (c.manifest_handle, c.user_id) == (handle, account.id)]
            if not known or self.forgetful:
                photos = self._contents(account, handle)
                known = [self._publish(account, organization, handle, photos)]
            self.finish_calls.append(handle)
        return Answer.of({"cluster_id": known[0].cluster_id})

    def _contents(self, account: Account, handle: str) -> list[Upload]:
        """The photos that an uploaded manifest lists."""
        own = {str(upload.handle): upload for upload in self._uploads.values() if upload.owner.id == account.id}
        manifest = (own[handle].manifest if handle in own else None) or {}
        require(manifest, "file_handle is not a manifest")
        require(manifest.get("version") == "1" and manifest.get("upload_type") == "images", "Unknown kind of manifest")
        require(isinstance(manifest.get("image_handles"), list), "The manifest has no image_handles")
        photos = [own.get(str(item)) for item in manifest["image_handles"]]
        known = [photo for photo in photos if photo and not photo.manifest]
        require(known, "The manifest lists no images")
        require(len(known) == len(photos), "The manifest lists unknown image handles")
        return known

    def _publish(self, account: Account, organization: str | None, handle: str, uploads: list[Upload]) -> Cluster:
        number = len(self.clusters) + 1
        names: dict[str, str] = {}  # a sequence id for each MAPSequenceUUID
        photos = []
        for place, upload in enumerate(uploads):
            description = parsed_object(upload.tags.get(0x010E, "").encode()) or {}
            own_name = str(description.get("MAPSequenceUUID", ""))
            sequence = names.setdefault(own_name, f"sequence-{number}-{len(names) + 1}")
            make, model = upload.tags.get(0x010F), upload.tags.get(0x0110)
            photos.append(Published(
                f"{70_000_000 + number * 10_000 + place}", sequence, upload.key, upload.size, upload.md5, description,
                description.get("MAPDeviceMake", make), description.get("MAPDeviceModel", model), upload.is_pano,
                time.time(),
            ))  # fmt: skip
        cluster_id = str(555_000_000_000_000 + number)
        cluster = Cluster(cluster_id, account.id, account.username, organization, handle, tuple(photos))
        self.clusters.append(cluster)
        return cluster

    # -- reading back --

    def _images(self, call: Call) -> Answer:
        self._account(call)
        query = dict(call.request.query)
        with self._lock:
            found = [image for image in self._live() if matches(image, query)]
        start = int(query.get("after", "0"))
        stop = start + min(int(query.get("limit", str(self.page_size))), self.page_size)
        fields = ",".join(set(query.get("fields", "id").split(",")) - self.drop_fields)
        page: JSON = {"data": [picked(image, fields) for image in found[start:stop]]}
        if stop < len(found):
            page["paging"] = {"next": f"{self.url}/graph/images?{urlencode(query | {'after': str(stop)})}"}
        return Answer.of(page)

    def _image_ids(self, call: Call) -> Answer:
        self._account(call)
        wanted = call.request.query.get("sequence_id")
        with self._lock:
            found = [image for image in self._live() if image.get("sequence") == wanted]
        return Answer.of({"data": [{"id": image["id"]} for image in found]})

    def _live(self) -> list[JSON]:
        now = time.time()
        return [
            image_of(photo, cluster)
            for cluster in self.clusters
            for photo in cluster.photos
            if photo.published_at + self.live_after <= now and photo.session_key not in self.hidden
        ] + self.extra_images


def image_of(photo: Published, cluster: Cluster) -> JSON:
    """A photo as GET /images knows it."""
    said = photo.description
    image: JSON = {
        "id": photo.image_id, "sequence": photo.sequence_id, "is_pano": photo.is_pano, "make": photo.make,
        "model": photo.model, "organization_id": cluster.organization_id, "captured_at": epoch_ms(said),
        "compass_angle": (said.get("MAPCompassHeading") or {}).get("TrueHeading"),
        "creator": {"id": cluster.user_id, "username": cluster.username},
    }  # fmt: skip
    if "MAPLatitude" in said and "MAPLongitude" in said:
        place = [said["MAPLongitude"], said["MAPLatitude"]]
        image["geometry"] = {"type": "Point", "coordinates": place}
        # Some metres off, as Mapillary's is: nobody should take it for the photo's own position.
        image["computed_geometry"] = {"type": "Point", "coordinates": [place[0], place[1] + 0.0001]}
    return {name: value for name, value in image.items() if value is not None}


def matches(image: JSON, query: dict[str, str]) -> bool:
    """Whether an image passes the filters of a search. Raises Refusal if they can't be understood."""
    taken = image.get("captured_at", math.nan)  # which is within no limits
    creator = image.get("creator") or {}
    return (
        query.get("creator_username", creator.get("username")) == creator.get("username")
        and query.get("organization_id", image.get("organization_id")) == image.get("organization_id")
        and ("start_captured_at" not in query or taken >= query_ms(query["start_captured_at"]))
        and ("end_captured_at" not in query or taken <= query_ms(query["end_captured_at"]))
    )


def query_ms(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise Refusal(400, graph_error(f"Not a time: {text}")) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1000


def epoch_ms(description: JSON) -> int | None:
    """MAPCaptureTime in ms since 1970, if it is there and right."""
    try:
        moment = datetime.strptime(str(description.get("MAPCaptureTime")), "%Y_%m_%d_%H_%M_%S_%f")
    except ValueError:
        return None
    return round(moment.replace(tzinfo=timezone.utc).timestamp() * 1000)


def picked(node: JSON, fields: str) -> JSON:
    """The fields asked for of those that there are, and always the id."""
    return {name: value for name, value in node.items() if name == "id" or name in fields.split(",")}


def parsed_object(data: bytes | bytearray) -> JSON | None:
    """A JSON object, or None if it is something else."""
    if data[:1] != b"{":
        return None
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def exif_strings(photo: bytes) -> dict[int, str]:
    """The text tags of a JPEG's main EXIF directory by number; {} if it can't be read.

    Written without a look at the uploader, so that the two don't share a mistake.
    """
    try:
        tiff = next((body[6:] for body in app1_segments(photo) if body.startswith(b"Exif\0\0")), b"")
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        start: int = struct.unpack_from(order + "I", tiff, 4)[0]
        count: int = struct.unpack_from(order + "H", tiff, start)[0]
        tags = {}
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length, where = struct.unpack_from(order + "HHII", tiff, place)
            if kind == 2:
                where = where if length > 4 else place + 8
                tags[int(tag)] = tiff[where : where + length].split(b"\0")[0].decode("utf-8", "replace")
        return tags
    except (struct.error, KeyError, IndexError):
        return {}


def app1_segments(photo: bytes) -> Iterator[bytes]:
    position = 2
    while photo[position] == 0xFF and photo[position + 1] != 0xDA:  # up to the picture itself
        length: int = struct.unpack_from(">H", photo, position + 2)[0]
        if photo[position + 1] == 0xE1:
            yield photo[position + 4 : position + 2 + length]
        position += 2 + length


# ---- command line ----


def summary(sandbox: Sandbox) -> list[str]:
    """What was published, for people."""
    lines = []
    for cluster in sandbox.clusters:
        organization = sandbox.organizations.get(cluster.organization_id or "", {}).get("slug", "no organization")
        lines.append(f"cluster {cluster.cluster_id} of {cluster.username}, {organization}:")
        for sequence, count in Counter(photo.sequence_id for photo in cluster.photos).items():
            times = [epoch_ms(photo.description) for photo in cluster.photos if photo.sequence_id == sequence]
            known = [datetime.fromtimestamp(ms / 1000, timezone.utc) for ms in times if ms is not None]
            span = f"{min(known):%Y-%m-%d %H:%M:%S} to {max(known):%Y-%m-%d %H:%M:%S} UTC" if known else "times unknown"
            lines.append(f"  {sequence}: {count} photos, {span}")
    published = {photo.session_key for cluster in sandbox.clusters for photo in cluster.photos}
    waiting = [key for key, upload in sandbox.uploads.items() if not upload.manifest and key not in published]
    lines.append(f"{len(sandbox.clusters)} clusters; {len(waiting)} photos uploaded (or begun) but not published")
    return lines


def arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The sandbox's own options, and the command: everything from the first word on that is no option."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], usage="%(prog)s [option ...] COMMAND ...",
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip of a request")
    parser.add_argument("--bandwidth", type=float, metavar="MB", help="MB/s for all connections together")
    parser.add_argument("--live-after", type=float, default=0.0, metavar="S", help="publishing to appearing")
    parser.add_argument("--port", type=int, default=0, metavar="P", help="default: any that is free")
    parser.add_argument("--stats", type=Path, metavar="FILE", help="write counts there at the end, as JSON")
    parser.add_argument("--unhashed", action="store_true", help="for measuring: take all bytes for the right ones")
    parser.add_argument("--verbose", action="store_true", help="a line for each request")
    parser.add_argument("--serve", action="store_true", help="no COMMAND: print the variables, run until Ctrl-C")
    flags = {"--verbose", "--unhashed", "--serve", "--help", "-h"}
    end = 0
    while end < len(words) and words[end].startswith("-") and words[end] != "--":
        end += 1 if words[end] in flags or "=" in words[end] else 2
    options, command = parser.parse_args(words[:end]), words[end:]
    command = command[1:] if command[:1] == ["--"] else command
    if options.serve == bool(command):
        parser.error("give either --serve or a COMMAND")
    return options, command


def serve(sandbox: Sandbox) -> int:
    for name, value in sandbox.environment().items():
        print(f"export {name}={shlex.quote(value)}", flush=True)
    user = sandbox.accounts[0]
    print(f"sandbox: {user.username} signs in with {user.email} and {user.password}", file=sys.stderr)
    print(f"sandbox: OAuth application {sandbox.client_id}, its secret {sandbox.client_secret}", file=sys.stderr)
    while True:
        time.sleep(FOREVER)


def run(command: list[str], sandbox: Sandbox) -> int:
    """Runs a command against the sandbox and gives its exit code."""
    process = subprocess.Popen(command, env=os.environ | sandbox.environment())
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the command has got it too, and decides
                code = process.wait()
                return code if code >= 0 else 128 - code
    finally:
        if process.poll() is None:
            process.terminate()


def main(words: list[str]) -> int:
    options, command = arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if options.serve else 128 + signal.SIGTERM))
    bandwidth = options.bandwidth and options.bandwidth * 1e6
    sandbox = Sandbox(port=options.port, delay=options.delay / 1000, bandwidth=bandwidth, keep=False,
                      hashing=not options.unhashed, live_after=options.live_after, verbose=options.verbose)  # fmt: skip
    with sandbox:
        try:
            return serve(sandbox) if options.serve else run(command, sandbox)
        except KeyboardInterrupt:
            return 0
        except OSError as error:
            print(f"sandbox: {command[0]} can't be run: {error.strerror}", file=sys.stderr)
            return 127
        finally:
            print(*(f"sandbox: {line}" for line in summary(sandbox)), sep="\n", file=sys.stderr)
            if options.stats:
                options.stats.write_text(json.dumps(sandbox.stats()) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
