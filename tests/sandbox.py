"""A stand-in for Mapillary on this machine: nothing that is sent to it leaves the machine.

Tests use it in their own process and look afterwards at what arrived:

    with Sandbox() as sandbox:
        run_uploader(env=os.environ | sandbox.environment())
    assert [photo.md5 for photo in sandbox.published] == expected and sandbox.published_twice == []

People use it from the command line; it starts a command that then talks to the sandbox instead of Mapillary:

    python tests/sandbox.py --delay 100 python mapillary_uploader.py -d photos/ -u demo
    python tests/sandbox.py --serve

It speaks the part of Mapillary's API v4 that an uploader needs, over real sockets, on 127.0.0.1 only: the Graph API is
below /graph, the upload service below /upload; a `Fault` makes either misbehave. A `Connection` (one thread each) notes
a `Request`, picks its `Fault` if there is one, and has the `Sandbox` turn it into an `Answer`. Large bodies are hashed
as they arrive and not kept, so that the sandbox isn't the slow part when it is used for measuring.
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
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from http.client import responses
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import factory

JSON = dict[str, Any]

BLOCK = 1 << 18  # bytes of a body read at once; more were no faster
HEAD_KEPT = 1 << 18  # bytes of a photo kept until it is complete, to find its EXIF in
TICK = 0.02  # seconds; a limited bandwidth is handed out in portions of this length
PATIENCE = 2.0  # seconds spent on reading the rest of a request that was answered early
FOREVER = 3600.0  # seconds; longer than any test
MOST_IMAGES = 2000  # that a search may ask for
HARD_CLOSE = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST
ORGANIZATION = {"slug": "sandbox-org", "name": "Sandbox Organization", "description": "For trying things out"}
UNASKED = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


# ---- what tests configure and look at ----


@dataclass(frozen=True)
class Account:
    """Somebody who may sign in and upload. Another with the same id in its place: the account was renamed."""

    id: str = "1001"
    username: str = "demo"
    token: str = "MLY|sandbox|demo-token"
    email: str = "demo@example.com"
    password: str = "sandbox-password"


@dataclass
class Request:
    """One request as it arrived. Times are of time.monotonic(); `status` stays 0 where no answer was given."""

    method: str
    path: str  # without /graph or /upload
    service: str  # "graph", "upload", or "" for paths outside of both
    query: dict[str, str]
    headers: dict[str, str]  # keys in lower case
    started: float = field(default_factory=time.monotonic)
    ended: float = math.inf  # while it is under way
    status: int = 0
    body_size: int = 0  # bytes of the body that were received
    body: bytes = b""  # only of requests to the Graph API

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def target(self) -> str:
        """The route with its query, decoded: "GET /images?fields=id,captured_at&limit=250"."""
        return f"{self.route}?{'&'.join(f'{name}={value}' for name, value in self.query.items())}".rstrip("?")


@dataclass
class Fault:
    """Something that goes wrong with certain requests. Of all faults that match and have uses left the first counts.

    `match` is a regular expression searched for in `Request.target` ("POST /mly_tools_", "GET /images.*limit=1000"), or
    a function of the request. Unless `processed` is set, a request that gets a faulty answer, or hangs, has no effect.
    A request counts for `after` and `times` of every fault up to the one that hits it.
    """

    match: str | Callable[[Request], bool]
    times: int | None = 1  # None: always
    after: int = 0  # matching requests that are let through first
    status: int | None = None
    body: bytes | JSON | None = None  # bytes are sent as they are: HTML, JSON cut off
    headers: dict[str, str] = field(default_factory=dict)  # "Connection: close" is also done
    processed: bool = False  # the request takes effect in spite of the faulty answer
    delay: float = 0.0  # seconds before the answer
    drip: float = 0.0  # seconds before each byte of the answer, head and body
    lost: bool = False  # the request takes effect, then the connection is closed without an answer
    hang: float | None = None  # read the request, answer nothing, close after so many seconds
    unread: bool = False  # never read the body; close after `hang` seconds, or never
    drop_after: int | None = None  # reset the connection when so many bytes of the body were taken in
    read_rate: float | None = None  # bytes/s at which the body is read
    answer_offset: int | None = None  # what GET of a session key claims to have
    forget: bool = False  # first set the stored upload back to nothing
    seen: int = 0  # matching requests so far

    def hits(self, request: Request) -> bool:
        """Whether this request is hit; counts it."""
        found = re.search(self.match, request.target) if isinstance(self.match, str) else self.match(request)
        self.seen += bool(found)
        return bool(found) and self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)

    @property
    def replaces(self) -> bool:
        return self.status is not None or self.body is not None

    @property
    def takes_effect(self) -> bool:
        return self.processed or self.lost or not (self.replaces or self.hang is not None)


NO_FAULT = Fault("")


@dataclass
class Upload:
    """What has arrived for a session key of one account."""

    key: str
    owner: Account
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.data, self.size, self.digest = bytearray(), 0, hashlib.md5()  # data: if not Sandbox.keep, only the first
        self.handle: str | None = None  # once complete, like what follows
        self.manifest: JSON | None = None
        self.description: JSON = {}
        self.camera: JSON = {}
        self.writer: Request | None = None  # who may append: a newer one displaces an older one

    @property
    def md5(self) -> str:
        return self.digest.hexdigest()

    def append(self, block: bytes, writer: Request, sandbox: Sandbox) -> None:
        """Takes a block in. Raises Reset if another request has taken over."""
        with self.lock:
            if self.writer is not writer:
                raise Reset
            if sandbox.hashing:
                self.digest.update(block)
            if sandbox.keep or self.size < HEAD_KEPT:
                self.data += block
            self.size += len(block)

    def complete(self, keep: bool) -> str:
        """Reads what publishing needs to know, and gives the handle; always the same for an account and key."""
        if self.handle is None:
            head = bytes(self.data[:HEAD_KEPT])
            tags, self.manifest = factory.texts_of(head), parsed_object(head)
            self.description = parsed_object(tags.get(0x010E, "")) or {}
            self.camera = {"make": tags.get(0x010F), "model": tags.get(0x0110)}
            self.data = self.data if keep else bytearray()
            self.handle = "h:" + hashlib.sha256(f"{self.owner.id}/{self.key}".encode()).hexdigest()[:40]
        return self.handle


@dataclass(frozen=True)
class Published:
    image_id: str
    sequence_id: str
    session_key: str
    size: int
    md5: str
    data: bytearray  # all bytes if Sandbox.keep, else none
    description: JSON
    camera: JSON  # make and model as EXIF has them
    published_at: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        return str(self.description.get("MAPFilename"))


@dataclass(frozen=True)
class Cluster:
    """What one call of finish_upload published."""

    cluster_id: str
    user_id: str
    username: str
    organization_id: str | None
    photos: tuple[Published, ...]


# ---- HTTP ----


class Dropped(Exception):
    """The connection ends without an answer."""


class Reset(Dropped):
    """The same, abruptly."""


@dataclass(eq=False)
class Answer(Exception):
    """What a handler gives back, or raises where it refuses."""

    body: bytes | JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | self.headers
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}", *map(": ".join, headers.items())]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body


def graph_error(message: str, **more: object) -> JSON:
    return {"error": {"message": message, "type": "OAuthException", "code": 100} | more}


def upload_error(kind: str, message: str, retriable: bool = False) -> JSON:
    return {"debug_info": {"retriable": retriable, "type": kind, "message": message}}


def require(condition: object, message: str) -> None:
    if not condition:
        raise Answer(graph_error(message), 400)


class Listener(ThreadingTCPServer):
    allow_reuse_address = os.name != "nt"  # there it would let two sandboxes share a port
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # at once: a FIN first would spoil a reset


class Throttle:
    """Hands out a bandwidth, in bytes/s, to everybody who shares it."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate, self._lock, self._booked_until = rate, threading.Lock(), 0.0

    def take(self, size: int) -> None:
        """Returns when `size` bytes may have passed."""
        with self._lock:
            # Oversleeping is made good in the next moments: without this the rate is never reached.
            start = max(self._booked_until, time.monotonic() - 2 * TICK)
            self._booked_until = start + size / (self.rate or math.inf)
            pause = self._booked_until - time.monotonic()
        time.sleep(max(0.0, pause))


class Connection(BaseHTTPRequestHandler):
    """A connection, and the request on it that is being answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, sandbox: Sandbox, *accepted: Any) -> None:
        self.sandbox = sandbox
        super().__init__(*accepted)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        """Answers requests until either side ends the connection."""
        try:
            self.sandbox.peers.add(self.connection)
            super().handle()
        except Reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD_CLOSE)
        except (Dropped, OSError, ValueError):
            pass
        finally:
            self.sandbox.peers.discard(self.connection)

    def do_GET(self) -> None:
        self.asked, self.fault, limits = self.sandbox.note(self)
        self.complete = False  # the body was read to its end
        self.blocks = self._blocks(limits)  # what hasn't been read of the body yet
        try:
            answer = self._answer()
            self.asked.status, self.asked.ended = answer.status, time.monotonic()
            data, step = answer.encoded(), 1 if self.fault.drip else sys.maxsize
            for start in range(0, len(data), step):
                self.sandbox.closing.wait(self.fault.drip)
                self.wfile.write(data[start : start + step])
        finally:
            self.asked.ended = min(self.asked.ended, time.monotonic())
        if not self.complete:
            self.discard(PATIENCE)
        ends = not self.complete or answer.headers.get("Connection") == "close"
        self.close_connection |= ends or self.sandbox.closing.is_set()
        if self.sandbox.idle is not None and not select.select([self.connection], [], [], self.sandbox.idle)[0]:
            self.wfile.write(UNASKED)
            self.close_connection = True

    do_POST = do_GET

    def _answer(self) -> Answer:
        """The answer to a request, with everything that its fault does to it."""
        fault = self.fault
        if fault.drop_after == 0:
            raise Reset
        if fault.unread:
            self._hang(fault.hang or FOREVER)
        answer = self.sandbox.handle(self) if fault.takes_effect else Answer({})
        if not fault.takes_effect or fault.lost or fault.hang is not None:
            self.discard()
        if fault.lost:
            raise Dropped
        if fault.hang is not None:
            self._hang(fault.hang)
        self.sandbox.closing.wait(self.sandbox.delay + fault.delay)
        if fault.replaces:
            return Answer({} if fault.body is None else fault.body, fault.status or 200, fault.headers)
        return answer

    def _hang(self, seconds: float) -> None:
        self.asked.ended = time.monotonic()  # it no longer counts as under way: the client will give it up
        self.sandbox.closing.wait(seconds)
        raise Dropped

    def _blocks(self, limits: list[Throttle]) -> Iterator[bytes]:
        """The body, at the speed that is allowed, and up to where the fault strikes."""
        headers = self.asked.headers
        limit = math.inf if self.fault.drop_after is None else self.fault.drop_after
        portion = min((int(throttle.rate * TICK) + 1 for throttle in limits if throttle.rate), default=BLOCK)
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        left = 0 if chunked else int(headers.get("content-length", "0"))
        while left or chunked and (left := int(self.rfile.readline(99).split(b";")[0], 16)):
            block = self.rfile.read1(int(min(left, portion, limit - self.asked.body_size)))
            if not block:
                raise Dropped("closed by the client")
            for throttle in limits:
                throttle.take(len(block))
            self.asked.body_size += len(block)
            left -= len(block)
            yield block
            if self.asked.body_size == limit:
                raise Reset
            if chunked and not left:
                self.rfile.readline(99)
        if chunked:
            self.rfile.readline(99)
        self.complete = True

    def discard(self, seconds: float = FOREVER) -> None:
        """Reads the rest of the body, as long as that doesn't take too long."""
        deadline = time.monotonic() + seconds
        self.connection.settimeout(seconds)
        for _ in self.blocks:
            if time.monotonic() > deadline:
                return
        self.connection.settimeout(None)

    def form(self) -> JSON:
        """The fields of a JSON body."""
        self.asked.body = b"".join(self.blocks)
        fields = parsed_object(self.asked.body)
        require(fields is not None, "The body is not a JSON object")
        return fields or {}

    def token(self) -> str:
        scheme, _, token = self.asked.headers.get("authorization", "").partition(" ")
        return token if scheme == "OAuth" else ""


# ---- the server ----


@dataclass(eq=False, kw_only=True)
class Sandbox:
    """The stand-in. Settings may be changed while it runs; `stop` and `start` again keep port and contents."""

    port: int = 0  # 0: any that is free
    delay: float = 0.0  # seconds, a round trip: waited before every answer
    bandwidth: float | None = None  # bytes/s that all connections share
    keep: bool = True  # keep all bytes; without it memory doesn't grow with the photos
    hashing: bool = True  # take the md5 of what arrives, and refuse what isn't what its key says
    idle: float | None = None  # seconds after which a connection without a request gets an unasked 408 and is closed
    retakes: bool = False  # offset 0 of a complete session takes the bytes again; else 412, as for any wrong offset
    live_after: float = 0.0  # seconds from publishing to appearing in GET /images
    hidden: set[str] = field(default_factory=set)  # session keys of photos that never appear
    extra_images: list[JSON] = field(default_factory=list)  # more results for GET /images; `show` makes them
    page_size: int = 1000  # images in a page at most
    accounts: list[Account] = field(default_factory=lambda: [Account()])
    organizations: dict[str, JSON] = field(default_factory=lambda: {"2002": dict(ORGANIZATION)})  # by id
    client_id: str = "4242"  # of an OAuth application, like its secret
    client_secret: str = "sandbox-secret"
    deny: bool = False  # the user says no to the OAuth application
    token_lifetime: int = 3600  # seconds
    faults: list[Fault] = field(default_factory=list)

    requests: list[Request] = field(default_factory=list, init=False)
    clusters: list[Cluster] = field(default_factory=list, init=False)
    finish_calls: list[str] = field(default_factory=list, init=False)  # manifest handles, of all that were processed
    corrupt: list[str] = field(default_factory=list, init=False)  # keys whose bytes hadn't the md5 that the key says

    def __post_init__(self) -> None:
        self._uploads: dict[tuple[str, str], Upload] = {}
        self._codes: dict[str, str] = {}  # OAuth code → redirect_uri
        self._issued: dict[str, float] = {}  # token of the first account → end of its life
        self._lock, self._line, self.closing = threading.RLock(), Throttle(), threading.Event()
        self.peers: set[socket.socket] = set()

    # -- life --

    def start(self) -> Sandbox:
        self.closing.clear()
        self._listener = Listener(("127.0.0.1", self.port), partial(Connection, self))
        self.port = self._listener.socket.getsockname()[1]
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return self

    def stop(self, *_: object) -> None:
        """Stops listening and breaks all connections."""
        self.closing.set()
        for end in [self._listener.socket, *self.peers]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.shutdown()
        self._listener.server_close()

    __enter__, __exit__ = start, stop

    def reset(self) -> dict[str, int]:
        """Forgets what clients have done, and tells how much was published. Settings and faults stay."""
        with self._lock:
            counts = {"photos": len(self.published)}
            for name in ("_uploads", "_codes", "_issued", "requests", "clusters", "finish_calls", "corrupt"):
                getattr(self, name).clear()
        return counts

    def forget_uploads(self, match: str = "") -> None:
        """Lets uploads and handles expire whose key matches, now; what is published stays."""
        with self._lock:
            for account, key in [name for name in self._uploads if re.search(match, name[1])]:
                del self._uploads[account, key]

    def clear_faults(self) -> None:
        self.faults.clear()

    # -- looking at it --

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
    def published(self) -> list[Published]:
        return [photo for cluster in list(self.clusters) for photo in cluster.photos]

    @property
    def published_twice(self) -> list[str]:
        """Names of photos that share their picture, or name and capture time, with one that was published before."""
        seen: set[object] = set()
        twice = []
        for photo in self.published:
            marks: set[object] = {(photo.name, photo.description.get("MAPCaptureTime"))}
            if data := bytes(photo.data):  # tagging, renaming and copying don't change what begins at the first scan
                marks.add(data[next(part.offset for part in factory.segments(data) if part.marker == 0xDA) :])
            twice += [photo.name] if marks & seen else []
            seen |= marks
        return twice

    def posts(self, ending: str = "") -> list[Request]:
        """The POSTs to the upload service, whatever became of them: all, or those to keys with that ending."""
        posts = [r for r in list(self.requests) if (r.service, r.method) == ("upload", "POST")]
        return [request for request in posts if request.path.endswith(ending)]

    @property
    def max_in_flight(self) -> int:
        """The most uploads that were under way at once."""
        changes = sorted((moment, change) for r in self.posts() for moment, change in ((r.started, 1), (r.ended, -1)))
        return max(accumulate(change for _, change in changes), default=0)

    def show(self, description: JSON, **changes: object) -> JSON:
        """Lets GET /images find one more image, made from a photo's description: the first account's, of another upload.

        `changes` sets the image's fields (id="7", creator={…}, captured_at=…); None takes one away.
        """
        creator = {"id": self.accounts[0].id, "username": self.accounts[0].username}
        known = {"id": str(90_000_000 + len(self.extra_images)), "sequence": "another", "creator": creator}
        self.extra_images.append(image_of(description, **known | changes))
        return self.extra_images[-1]

    # -- requests --

    def note(self, line: Connection) -> tuple[Request, Fault, list[Throttle]]:
        """Takes a request down, and picks its fault and what limits its speed."""
        url, headers = urlsplit(line.path), {name.lower(): value for name, value in line.headers.items()}
        found = re.match(r"/(graph|upload)(?=/)", url.path)
        service, path = (found[1], url.path[found.end() :]) if found else ("", url.path)
        request = Request(line.command, path, service, dict(parse_qsl(url.query)), headers)
        with self._lock:
            self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.hits(request)), NO_FAULT)
        self._line.rate = self.bandwidth
        limits = [throttle for throttle in (self._line, Throttle(fault.read_rate)) if throttle.rate]
        if limits or fault.unread:  # else the system takes in megabytes that nobody has read
            line.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        return request, fault, limits

    def handle(self, call: Connection) -> Answer:
        try:
            if call.asked.service == "upload":
                return self._upload(call)
            answer = self._graph(call)
            call.discard()
            return answer
        except Answer as refusal:
            return refusal
        except ValueError as error:  # numbers that are none
            return Answer(graph_error(str(error)), 400)

    def _graph(self, call: Connection) -> Answer:
        handlers: dict[str, Callable[[Connection], Answer]] = {
            "POST /login": self._login,
            "POST /logging": lambda _: Answer({"success": True}),
            "GET /connect": self._connect,
            "POST /token": self._token,
            "GET /me": lambda call: self._node(call, self._account(call).id),
            "POST /finish_upload": self._finish_upload,
            "GET /images": self._images,
            "POST /sandbox/reset": lambda _: Answer(dict(self.reset())),
        }
        if handler := handlers.get(call.asked.route):
            return handler(call)
        if found := re.fullmatch(r"GET /(\d+)", call.asked.route):
            return self._node(call, found[1])
        raise Answer(graph_error(f"Unknown path {call.asked.path}"), 404)

    def _account(self, call: Connection) -> Account:
        """Whose token the request carries. Raises Answer as the service asked would."""
        if account := self._owner(call.token()):
            return account
        message = "Invalid OAuth access token" if call.token() else "An access token is required"
        if call.asked.service == "upload":
            raise Answer(upload_error("NotAuthorizedError", message), 401)
        raise Answer(graph_error(message, code=190), 401)

    def _owner(self, token: str) -> Account | None:
        if self._issued.get(token, 0.0) > time.time():
            return self.accounts[0]
        return next((account for account in self.accounts if account.token == token), None)

    def _login(self, call: Connection) -> Answer:
        form = call.form()
        if not call.token().startswith("MLY|"):
            raise Answer(graph_error("Invalid client token", code=190), 401)
        for account in self.accounts:
            if (account.email, account.password) == (form.get("email"), form.get("password")):
                return Answer({"access_token": account.token, "user_id": account.id})
        title, advice = "Incorrect Login", "The email or password you entered is incorrect"
        more = {"error_subcode": 1348028, "error_user_title": title, "error_user_msg": advice}
        raise Answer(graph_error("Invalid parameter", **more), 400)

    def _connect(self, call: Connection) -> Answer:
        """The page where a user allows an application to act for them; the user is quick here."""
        query = call.asked.query
        require(query.get("client_id") == self.client_id, "Unknown client_id")
        require(query.get("response_type") == "code" and query.get("redirect_uri"), "Invalid request")
        code, address = secrets.token_hex(16), query["redirect_uri"]
        self._codes[code] = address
        result = {"error": "user_denied"} if self.deny else {"code": code}
        result |= {"state": query["state"]} if "state" in query else {}
        return Answer(b"", 302, {"Location": f"{address}{'&' if '?' in address else '?'}{urlencode(result)}"})

    def _token(self, call: Connection) -> Answer:
        form = call.form()
        if call.token() != self.client_secret or str(form.get("client_id", self.client_id)) != self.client_id:
            raise Answer(graph_error("Invalid client secret", code=190), 401)
        if form.get("grant_type") == "authorization_code":
            address = self._codes.pop(str(form.get("code")), None)
            require(address and address == form.get("redirect_uri", address), "Invalid code")
        else:
            require(form.get("grant_type") == "refresh_token", "Invalid grant_type")
            require(self._owner(str(form.get("refresh_token"))), "Invalid refresh_token")
        token = f"MLY|{self.client_id}|{secrets.token_hex(16)}"
        self._issued[token] = time.time() + self.token_lifetime
        return Answer({"access_token": token, "expires_in": self.token_lifetime, "token_type": "bearer"})

    def _node(self, call: Connection, node_id: str) -> Answer:
        self._account(call)
        nodes = {account.id: {"username": account.username} for account in self.accounts} | self.organizations
        require(node_id in nodes, f"Object with ID '{node_id}' does not exist")
        return Answer(picked({"id": node_id, **nodes[node_id]}, call.asked.query.get("fields", "id")))

    # -- upload service --

    def _upload(self, call: Connection) -> Answer:
        account, key, method = self._account(call), call.asked.path[1:], call.asked.method
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise Answer(upload_error("InvalidSessionKeyError", f"Not a session key: {key}"), 400)
        with self._lock:
            upload = self._uploads.get((account.id, key)) or Upload(key, account)
            if method == "POST":
                self._uploads[account.id, key] = upload
        if call.fault.forget:
            with upload.lock:
                upload.forget()
        if method == "POST":
            return Answer({"h": self._receive(call, upload)})
        call.discard()
        return Answer({"offset": upload.size if call.fault.answer_offset is None else call.fault.answer_offset})

    def _receive(self, call: Connection, upload: Upload) -> str:
        """Appends a body to an upload and gives the handle."""
        headers = call.asked.headers
        if headers.get("x-entity-name") != upload.key or not headers.get("offset", "").isdecimal():
            raise Answer(upload_error("InvalidHeaderError", "X-Entity-Name and Offset are required"), 400)
        with upload.lock:
            offset = int(headers["offset"])
            if offset == 0 and upload.handle and self.retakes:
                upload.forget()
            if offset != upload.size:
                raise Answer(upload_error("OffsetInvalidError", f"{offset} is not {upload.size}", retriable=True), 412)
            upload.writer = call.asked
        for block in call.blocks:
            upload.append(block, call.asked, self)
        with upload.lock:
            promised = re.fullmatch(r"mly_tools_([0-9a-f]{32})\.(jpg|json)", upload.key)
            if self.hashing and promised and promised[1] != upload.md5:
                self.corrupt.append(upload.key)
                raise Answer(upload_error("ChecksumError", f"The md5 is {upload.md5}"), 400)
            return upload.complete(self.keep)

    # -- publishing --

    def _finish_upload(self, call: Connection) -> Answer:
        account, form = self._account(call), call.form()
        handle = str(form.get("file_handle"))
        organization = str(form["organization_id"]) if form.get("organization_id") else None
        require(form.get("file_type") == "mly_bundle_manifest", "Unknown file_type")
        require(organization is None or organization in self.organizations, "Unknown organization")
        with self._lock:
            cluster = self._publish(account, organization, self._contents(account, handle))
            self.finish_calls.append(handle)
        return Answer({"cluster_id": cluster.cluster_id})

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

    def _publish(self, account: Account, organization: str | None, uploads: list[Upload]) -> Cluster:
        number = len(self.clusters) + 1
        names: dict[str, str] = {}  # a sequence id for each MAPSequenceUUID
        photos = []
        for place, upload in enumerate(uploads, 70_000_000 + number * 10_000):
            uuid = str(upload.description.get("MAPSequenceUUID", ""))
            sequence = names.setdefault(uuid, f"sequence-{number}-{len(names) + 1}")
            content = (upload.size, upload.md5, upload.data, upload.description, upload.camera)
            photos.append(Published(str(place), sequence, upload.key, *content))
        cluster = Cluster(str(555_000_000_000_000 + number), account.id, account.username, organization, tuple(photos))
        self.clusters.append(cluster)
        return cluster

    # -- reading back --

    def _images(self, call: Connection) -> Answer:
        self._account(call)
        query = dict(call.asked.query)
        limit = int(query.get("limit", self.page_size))
        require(0 < limit <= MOST_IMAGES, f"limit must be from 1 to {MOST_IMAGES}")
        with self._lock:
            found = [image for image in self._live() if matches(image, query)]
        start = int(query.get("after", "0"))
        stop = start + min(limit, self.page_size)
        page: JSON = {"data": [picked(image, query.get("fields", "id")) for image in found[start:stop]]}
        if stop < len(found):
            page["paging"] = {"next": f"{self.url}/graph/images?{urlencode(query | {'after': str(stop)})}"}
        return Answer(page)

    def _live(self) -> list[JSON]:
        """The images that can be found now, by the names that their creators have now."""
        images = [
            image_of(
                photo.camera | photo.description,
                **{"id": photo.image_id, "sequence": photo.sequence_id, "organization_id": cluster.organization_id},
                creator={"id": cluster.user_id, "username": cluster.username},
            )
            for cluster in self.clusters
            for photo in cluster.photos
            if photo.published_at + self.live_after <= time.time() and photo.session_key not in self.hidden
        ]
        images += map(dict, self.extra_images)
        names: JSON = {account.id: {"username": account.username} for account in self.accounts}
        for image in images:
            if creator := image.get("creator"):
                image["creator"] = creator | names.get(creator.get("id"), {})
        return images


def image_of(description: JSON, **known: object) -> JSON:
    """A photo as GET /images knows it, where what is None is absent; `known` is what its description doesn't tell."""
    image: JSON = {"captured_at": epoch_ms(description), "is_pano": True}
    image["compass_angle"] = (description.get("MAPCompassHeading") or {}).get("TrueHeading")
    image |= {name: description.get(f"MAPDevice{name.title()}", description.get(name)) for name in ("make", "model")}
    if "MAPLatitude" in description and "MAPLongitude" in description:
        longitude, latitude = description["MAPLongitude"], description["MAPLatitude"]
        image["geometry"] = {"type": "Point", "coordinates": [longitude, latitude]}
        # Some metres off, as Mapillary's is: nobody should take it for the photo's own position.
        image["computed_geometry"] = {"type": "Point", "coordinates": [longitude, latitude + 0.0001]}
    return {name: value for name, value in (image | known).items() if value is not None}


def matches(image: JSON, query: dict[str, str]) -> bool:
    """Whether an image passes the filters of a search. Raises Answer if they can't be understood."""
    taken = image.get("captured_at", math.nan)  # which is within no limits
    creator = image.get("creator") or {}
    return (
        query.get("creator_username", creator.get("username")) == creator.get("username")
        and query.get("organization_id", image.get("organization_id")) == image.get("organization_id")
        and ("start_captured_at" not in query or taken >= query_ms(query["start_captured_at"]))
        and ("end_captured_at" not in query or taken <= query_ms(query["end_captured_at"]))
    )


def query_ms(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000


def epoch_ms(description: JSON) -> int | None:
    """MAPCaptureTime in ms since 1970, if it is there and right."""
    with contextlib.suppress(ValueError):
        moment = datetime.strptime(f"{description.get('MAPCaptureTime')}Z", "%Y_%m_%d_%H_%M_%S_%f%z")
        return round(moment.timestamp() * 1000)
    return None


def picked(node: JSON, fields: str) -> JSON:
    """The fields asked for of those that there are, and always the id."""
    return {name: value for name, value in node.items() if name == "id" or name in fields.split(",")}


def parsed_object(text: bytes | str) -> JSON | None:
    """A JSON object, or None if it is something else."""
    with contextlib.suppress(ValueError):
        return value if isinstance(value := json.loads(text), dict) else None
    return None


# ---- command line ----


def summary(sandbox: Sandbox) -> list[str]:
    lines = []
    for cluster in sandbox.clusters:
        known = sorted(ms for photo in cluster.photos if (ms := epoch_ms(photo.description)) is not None)
        times = [f"{datetime.fromtimestamp(ms / 1000, timezone.utc):%Y-%m-%d %H:%M:%S}" for ms in known]
        span = f"{times[0]} to {times[-1]} UTC" if times else "times unknown"
        of = sandbox.organizations.get(cluster.organization_id or "", {}).get("slug", "no organization")
        lines.append(f"cluster {cluster.cluster_id} of {cluster.username}, {of}: {len(cluster.photos)} photos, {span}")
    published = {photo.session_key for photo in sandbox.published}
    waiting = [key for key, upload in sandbox.uploads.items() if not upload.manifest and key not in published]
    return [*lines, f"{len(sandbox.clusters)} clusters; {len(waiting)} photos uploaded (or begun) but not published"]


def serve(sandbox: Sandbox) -> int:
    for name, value in sandbox.environment().items():
        print(f"export {name}={shlex.quote(value)}", flush=True)
    user = sandbox.accounts[0]
    print(f"sandbox: {user.username} signs in with {user.email} and {user.password}", file=sys.stderr)
    print(f"sandbox: OAuth application {sandbox.client_id}, its secret {sandbox.client_secret}", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(FOREVER)
    return 0


def run(command: list[str], sandbox: Sandbox) -> int:
    """Runs a command against the sandbox and gives its exit code."""
    try:
        process = subprocess.Popen(command, env=os.environ | sandbox.environment())
    except OSError as error:
        print(f"sandbox: {command[0]} can't be run: {error.strerror}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGINT, lambda *_: None)  # the command has got it too, and decides
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    return code if code >= 0 else 128 - code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip of a request")
    parser.add_argument("--bandwidth", type=float, default=0.0, metavar="MB", help="MB/s for all connections together")
    parser.add_argument("--live-after", type=float, default=0.0, metavar="S", help="publishing to appearing")
    parser.add_argument("--unhashed", action="store_true", help="for measuring: take all bytes for the right ones")
    parser.add_argument("--serve", action="store_true", help="no COMMAND: print the variables, run until Ctrl-C")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="run against the sandbox")
    options = parser.parse_args()
    if options.serve == bool(options.command):
        parser.error("give either --serve or a COMMAND")
    line = {"delay": options.delay / 1000, "bandwidth": options.bandwidth * 1e6}
    with Sandbox(keep=False, hashing=not options.unhashed, live_after=options.live_after, **line) as sandbox:
        code = serve(sandbox) if options.serve else run(options.command, sandbox)
        print(*(f"sandbox: {line}" for line in summary(sandbox)), sep="\n", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
