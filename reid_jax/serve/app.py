"""The search page of a gallery and its JSON interface: a Starlette application.

GET  /                    the page            GET    /api/health        is it there
POST /api/search          picture(s) -> hits  GET    /api/cameras       what one can filter by
GET  /api/similar/ID      an entry -> hits    GET    /api/picture/ID    an entry's picture, from below `root`
POST /api/embed           picture(s) -> rows  POST   /api/label         {"ids": [...], "person": NAME or null}
POST /api/session         {"token": ...}      DELETE /api/person/NAME, /api/entry/ID

A body is one picture's bytes, or JSON {"pictures": [base64, ...]}. All work on the gallery goes through one
queue. Nothing is asked of other hosts, and nothing is kept by browsers.
"""

import asyncio
import base64
import binascii
import hmac
import io
import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from reid_jax.data import decode
from reid_jax.errors import ConfigError, DataError, PictureError, ReidError
from reid_jax.serve import arguments

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ConfigError(f"the page needs Starlette ({error}): pip install 'reid_jax[web]'") from error

log = logging.getLogger("reid_jax")
PAGE = Path(__file__).parent / "page"
TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
MOST_BYTES = 10 << 20  # of a body
MOST_WAITING = 32  # requests in the queue
MOST_HITS = 500
COOKIE = "reid_jax"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_LISTS = ("camera", "not_camera", "person")
_THUMBNAIL = (320, 480)  # pixels of an entry's picture, at most
_MOST_FILE = 64 << 20  # bytes of an entry's file


def create(gallery, *, root=None, token="", any_host=False):
    """The application of a Gallery.

    root: folder below which pictures are shown (None: none). token: what a caller has to know ("": nothing).
    any_host: whether it may be called by another name than the loopback's, which needs a token.
    """
    if any_host and not token:
        raise ConfigError("a page that other machines can reach needs a token")
    if token and not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token):
        raise ConfigError("the token must be of 16 letters, digits, - and _ at least")
    service = Service(gallery, root)
    app = Starlette(routes=service.routes(), exception_handlers=dict.fromkeys(_HANDLED, _told))
    app.state.service = service
    return Guard(app, token, any_host)


class Guard:
    """Refuses strangers: other hosts' names, pages of other origins, callers without the token."""

    def __init__(self, app, token, any_host):
        self.app, self.token, self.any_host = app, token, any_host

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        why = self._refusal(scope)
        app = JSONResponse({"error": why[1]}, why[0]) if why else self.app
        await app(scope, receive, with_headers)

    def _refusal(self, scope):
        """(status, why) or None."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if not self.any_host and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return 403, "this page is for this machine only"  # a foreign name that points here
        if scope["method"] not in ("GET", "HEAD") and not _same_origin(headers, host):
            return 403, "changes are taken from this page only"
        path = scope["path"]
        if self.token and path.startswith("/api/") and path not in ("/api/health", "/api/session"):
            if not self._knows(headers):
                return 401, "a token is needed"
        if path == "/api/session":
            scope["reid_jax.token"] = self.token
        return None

    def _knows(self, headers):
        given = headers.get("authorization", "").removeprefix("Bearer ")
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        return any(same_secret(g, self.token) for g in (given, cookies.get(COOKIE, "")))


def same_secret(given, wanted):
    """Whether two texts are equal, in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _same_origin(headers, host):
    """Whether a request comes from the page itself or from no browser."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or (origin != "null" and urlsplit(origin).netloc == host)


class Service:
    """What the routes do, with one gallery."""

    def __init__(self, gallery, root=None):
        self.gallery, self.waiting = gallery, 0
        self.root = None if root is None else os.path.realpath(root)
        self.queue = ThreadPoolExecutor(1, "gallery")
        self.pictures = ThreadPoolExecutor(2, "pictures")

    def routes(self):
        """All routes."""
        pages = [Route("/" if n == "index.html" else f"/{n}", _page(n)) for n in TYPES]
        return pages + [
            Route("/favicon.ico", lambda _: Response(status_code=204)),
            Route("/api/health", self.health),
            Route("/api/session", self.session, methods=["POST"]),
            Route("/api/cameras", self.cameras),
            Route("/api/search", self.search, methods=["POST"]),
            Route("/api/embed", self.embed, methods=["POST"]),
            Route("/api/similar/{key:int}", self.similar),
            Route("/api/picture/{key:int}", self.picture),
            Route("/api/label", self.label, methods=["POST"]),
            Route("/api/person/{name:path}", self.remove_person, methods=["DELETE"]),
            Route("/api/entry/{key:int}", self.remove_entry, methods=["DELETE"]),
        ]

    async def _queued(self, request, work):
        """The result of work(gallery) in the queue's thread; 429 where too many wait."""
        if self.waiting >= MOST_WAITING:
            raise HTTPException(429, "too many requests are waiting; try again", {"Retry-After": "1"})
        self.waiting += 1
        actor = f"page, {request.client.host if request.client else 'unknown'}"

        def run():
            self.gallery.actor = actor
            return work(self.gallery)

        try:
            return await asyncio.get_running_loop().run_in_executor(self.queue, run)
        finally:
            self.waiting -= 1

    async def health(self, request):
        """That it is there; nothing about the gallery."""
        return JSONResponse({"ok": True})

    async def session(self, request):
        """Puts the token into a cookie that scripts cannot read."""
        wanted = request.scope.get("reid_jax.token", "")
        given = (await _json(request)).get("token")
        if not isinstance(given, str) or (wanted and not same_secret(given, wanted)):
            raise HTTPException(401, "this is not the token")
        response = JSONResponse({"ok": True})
        response.set_cookie(
            COOKIE, wanted, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return response

    async def cameras(self, request):
        """What one can filter by, and how much there is."""

        def look(gallery):
            rows = gallery.rows()
            rates = sorted(gallery.thresholds().get("fpir", []), reverse=True)
            about = {"entries": len(rows), "persons": len(rows.counts("person")), "dim": gallery.dim}
            about |= {"model": gallery.model[:12], "pictures": self.root is not None}
            about["rates"] = [{"rate": r, "similarity": s, "hits": h} for r, s, h, *_ in rates]
            return about | {"cameras": rows.counts("camera"), "most": MOST_HITS}

        return JSONResponse(await self._queued(request, look))

    async def search(self, request):
        """Hits of the pictures in the body."""
        options, query = _options(request), await _pictures(request)
        hits = await self._queued(request, lambda g: g.search(query, **options))
        return self._listed(hits)

    async def similar(self, request):
        """Hits of an entry, without itself."""
        options, key = _options(request), request.path_params["key"]
        return self._listed(await self._queued(request, lambda g: g.search(key, **options)))

    async def embed(self, request):
        """Features of the pictures in the body."""
        pictures = await _pictures(request)
        features = await self._queued(request, lambda g: g.embedder(pictures).tolist())
        return JSONResponse({"features": features})

    async def label(self, request):
        """Gives entries a name."""
        given = await _json(request)
        if unknown := given.keys() - {"ids", "person"}:
            raise HTTPException(400, f"a label has ids and person, not {', '.join(sorted(unknown))}")
        ids, person = given.get("ids", []), given.get("person")
        if not isinstance(ids, list):
            raise HTTPException(400, "ids must be a list")
        return JSONResponse({"entries": await self._queued(request, lambda g: g.label(ids, person or None))})

    async def remove_person(self, request):
        """Deletes all entries of a person."""
        name = request.path_params["name"]
        return await self._removed(request, lambda g: g.remove(person=name))

    async def remove_entry(self, request):
        """Deletes an entry."""
        key = request.path_params["key"]
        return await self._removed(request, lambda g: g.remove(ids=[key]))

    async def _removed(self, request, work):
        from reid_jax.serve.gallery import NOT_REACHED

        count = await self._queued(request, work)
        if not count:
            raise HTTPException(404, "there is no such entry")
        return JSONResponse({"entries": count, "note": NOT_REACHED})

    async def picture(self, request):
        """An entry's picture as a small JPEG; 404 where there is none below the root."""
        key = request.path_params["key"]
        try:
            jpeg = await asyncio.get_running_loop().run_in_executor(self.pictures, self.thumbnail, key)
        except Exception as error:  # damaged files fail in many ways
            raise HTTPException(404, "there is no picture") from error
        return Response(jpeg, media_type="image/jpeg")

    def thumbnail(self, key):
        """JPEG bytes of an entry's picture."""
        source, box = self.gallery.source(key)
        path = self._below_root(source)
        if path is None or os.path.getsize(path) > _MOST_FILE:
            raise DataError(f"entry {key} has no picture to show")
        with open(path, "rb") as file:
            image = decode.picture(checked(file.read()))
        if box:
            image = image.crop(tuple(round(x) for x in box))
        image.thumbnail(_THUMBNAIL, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=88)
        return out.getvalue()

    def _below_root(self, source):
        """The file of a source, or None where it is not below the root."""
        if self.root is None or source is None:
            return None
        for name in (source, arguments.unescaped(source)):
            path = os.path.realpath(os.path.join(self.root, name))
            if os.path.commonpath([path, self.root]) == self.root and os.path.isfile(path):
                return path
        return None

    def _listed(self, hits):
        return JSONResponse({"hits": [self._hit(h) for h in hits]})

    def _hit(self, hit):
        """A hit for JSON; of its source what lies below the root, else the file's name."""
        source = hit.source
        if source is not None:
            path = self._below_root(source)
            below = os.path.relpath(path, self.root) if path else os.path.basename(source)
            source = arguments.name("source", below)
        time = hit.time.isoformat().replace("+00:00", "Z") if hit.time else None
        return {
            "id": hit.id, "score": round(hit.score, 6), "unknown": hit.unknown, "person": hit.person,
            "camera": hit.camera, "time": time, "tracklet": hit.tracklet, "source": source,
        }  # fmt: skip


# ---- of requests
def _page(name):
    contents = (PAGE / name).read_bytes()

    async def give(request):
        return Response(contents, media_type=TYPES[name])

    return give


def _options(request):
    """Arguments of Gallery.search from a query string; HTTPException 400 for what is none."""
    given, options = request.query_params, {}
    known = {"k": int, "expand": int, "fpir": float, "rerank": _yes, "since": str, "until": str, "group": str}
    for name in given:
        try:
            options[name] = given.getlist(name) if name in _LISTS else known[name](given[name])
        except KeyError as error:
            raise HTTPException(
                400, f"there is no option {name}; there are {', '.join([*known, *_LISTS])}"
            ) from error
        except ValueError as error:
            raise HTTPException(400, f"{name} is {given[name]!r}, which cannot be read") from error
    if max(options.get("k", 1), options.get("expand", 1)) > MOST_HITS:
        raise HTTPException(400, f"k and expand may be {MOST_HITS} at most")
    return options


def _yes(text):
    return {"1": True, "true": True, "0": False, "false": False, "": False}[text.lower()]


async def _body(request):
    """The body; HTTPException 413 where it is too large, before it is read."""
    contents = bytearray()
    async for part in request.stream():
        contents += part
        if len(contents) > MOST_BYTES:
            raise HTTPException(413, f"a request may have {MOST_BYTES >> 20} MB at most")
    return bytes(contents)


async def _json(request):
    """The body as a dict."""
    try:
        body = json.loads(await _body(request))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return body


async def _pictures(request):
    """The pictures of a body: a list of bytes, each of a size that may be decoded."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return [checked(await _body(request))]
    given = (await _json(request)).get("pictures")
    if not isinstance(given, list) or not given or not all(isinstance(p, str) for p in given):
        raise HTTPException(400, 'the body must be a picture, or JSON {"pictures": [base64, ...]}')
    try:
        return [checked(base64.b64decode(p, validate=True)) for p in given]
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"a picture is no base64: {error}") from error


def checked(contents):
    """The bytes of a picture; PictureError where they are none, or claim too many pixels."""
    try:
        with Image.open(io.BytesIO(contents)) as image:
            width, height = image.size
    except Exception as error:  # PIL's readers fail in many ways
        raise PictureError("this is no picture that can be read (JPEG, PNG, WebP, BMP, TIFF)") from error
    if width * height > decode.MOST_PIXELS:
        raise PictureError(f"the picture has {width} x {height} pixels; make it smaller")
    return contents


async def _told(request, error):
    """What went wrong, as JSON."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ReidError):
        return JSONResponse({"error": str(error)}, 400)
    log.exception("the page failed", exc_info=error)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)


_HANDLED = (HTTPException, ReidError, Exception)
