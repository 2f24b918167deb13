"""The page's JSON interface, in process: answers, refusals and what is kept from strangers."""

import base64
import json
import threading
import time

import numpy as np
import pytest
from gallery_stub import Stub, folder, jpeg, picture

pytest.importorskip("starlette")
from starlette.testclient import TestClient  # noqa: E402

from reid_jax.errors import ConfigError  # noqa: E402
from reid_jax.serve import app as app_module  # noqa: E402
from reid_jax.serve.gallery import Gallery  # noqa: E402

HERE = "http://127.0.0.1:8000"
JSON = {"content-type": "application/json"}
TOKEN = "a-token-of-some-length"


def made(root):
    """A gallery of pictures below root/pictures."""
    paths, cameras, persons = folder(root / "pictures")
    gallery = Gallery(root / "g.sqlite", Stub(), log_searches=True)
    gallery.add(paths, camera=cameras, person=persons, time=[float(i) for i in range(18)])
    return gallery


@pytest.fixture
def gallery(tmp_path):
    with made(tmp_path) as gallery:
        yield gallery


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """A client of a page for what changes nothing."""
    with made(tmp_path_factory.mktemp("unchanged")) as gallery:
        yield TestClient(app_module.create(gallery), HERE)


@pytest.fixture
def client(gallery, tmp_path):
    with TestClient(app_module.create(gallery, root=tmp_path / "pictures"), HERE) as client:
        yield client


def test_search(client, gallery):
    found = client.post("/api/search", params={"k": 3, "fpir": 0.1}, content=jpeg(picture(2))).json()["hits"]
    assert [h["person"] for h in found] == ["person02"] * 3
    first = {h["camera"]: h for h in found}["yard"]
    assert first["source"] == "yard/person02_0.png" and first["time"] == "1970-01-01T00:00:08Z"
    options = {
        "camera": ["door", "hall"],
        "not_camera": "hall",
        "since": "1970-01-01T00:00:01Z",
        "group": "person",
    }
    found = client.post("/api/search", params=options, content=jpeg(picture(2))).json()["hits"]
    assert {h["camera"] for h in found} == {"door"} and len(found) == 5
    several = {"pictures": [base64.b64encode(jpeg(picture(p))).decode() for p in (0, 1)]}
    both = client.post("/api/search?k=6", json=several).json()["hits"]
    assert [h.id for h in gallery.search([picture(0), picture(1)], k=6)] == [h["id"] for h in both]
    assert [h["id"] for h in client.get("/api/similar/3?k=2").json()["hits"]] == [
        h.id for h in gallery.search(3, 2)
    ]
    row = client.post("/api/embed", content=jpeg(picture(2))).json()["features"]
    np.testing.assert_allclose(row, Stub()([picture(2)]), atol=1e-6)
    logged = gallery.history()
    assert [r["action"] for r in logged].count("search") == 6 and logged[1]["actor"] == "page, testclient"


def test_what_there_is(client):
    about = client.get("/api/cameras").json()
    assert (
        about["cameras"] == {"door": 6, "hall": 6, "yard": 6}
        and about["entries"] == 18
        and about["persons"] == 6
    )
    assert about["rates"][0] == {"rate": 0.5, "similarity": 0.2, "hits": 0.9} and about["pictures"]
    assert client.get("/api/health").json() == {"ok": True}
    for name, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        page = client.get(f"/{name}")
        assert page.headers["content-type"].startswith(kind) and page.headers["cache-control"] == "no-store"
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "http://" not in page.text and "https://" not in page.text and "innerHTML" not in page.text
    assert "<script>" not in client.get("/").text and " style=" not in client.get("/").text


def test_changes(client, gallery):
    assert client.post("/api/label", json={"ids": [1, 2], "person": "a/b ö"}).json() == {"entries": 2}
    assert client.post("/api/label", json={"ids": [2], "person": None}).json() == {"entries": 1}
    gone = client.delete("/api/person/a%2Fb%20%C3%B6").json()
    assert gone["entries"] == 1 and "backups" in gone["note"]
    assert client.delete("/api/person/nobody").status_code == 404
    assert client.delete("/api/entry/2").json()["entries"] == 1 and len(gallery) == 16


def test_pictures(client, gallery, tmp_path):
    shown = client.get("/api/picture/1")
    assert shown.headers["content-type"] == "image/jpeg" and shown.content.startswith(b"\xff\xd8")
    (tmp_path / "secret.png").write_bytes(jpeg(picture(0)))
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "pictures" / "no.png").write_bytes(b"no picture")
    outside = [str(tmp_path / "secret.png"), "../secret.png", "link.png", "no.png", "absent.png", "."]
    ids = gallery.add([picture(0)] * 6, source=outside)
    for key in (*ids, 999):
        assert client.get(f"/api/picture/{key}").status_code == 404
    named = {h["source"] for h in client.get("/api/similar/1?k=7").json()["hits"]}
    assert "secret.png" in named and not any("/" in n for n in named - {"yard/person00_0.png"})
    inside = gallery.add(picture(0), source="door/person00_0.png", box=[0, 0, 4, 4])
    assert client.get(f"/api/picture/{inside[0]}").status_code == 200


@pytest.mark.parametrize(
    "status, message, call",
    [
        (400, "no picture that can be read", lambda c: c.post("/api/search", content=b"text")),
        (400, "no picture that can be read", lambda c: c.post("/api/search", content=jpeg(picture(0))[:20])),
        (400, "cannot be read", lambda c: c.post("/api/search", content=jpeg(picture(0))[:70])),
        (413, "10 MB", lambda c: c.post("/api/search", content=bytes((10 << 20) + 1))),
        (400, "there is no option kk", lambda c: c.get("/api/similar/1?kk=1")),
        (400, "k is 'x'", lambda c: c.get("/api/similar/1?k=x")),
        (400, "k is 0", lambda c: c.get("/api/similar/1?k=0")),
        (400, "500 at most", lambda c: c.get("/api/similar/1?k=501")),
        (400, "there are: door, hall, yard", lambda c: c.get("/api/similar/1?camera=attic")),
        (400, "without a zone", lambda c: c.get("/api/similar/1?since=2026-01-01")),
        (400, "measured are", lambda c: c.get("/api/similar/1?fpir=0.3")),
        (400, "no entry 99", lambda c: c.get("/api/similar/99")),
        (400, "no JSON", lambda c: c.post("/api/label", content=b"[")),
        (400, "a label has ids and person", lambda c: c.post("/api/label", json={"id": 1})),
        (400, "ids are", lambda c: c.post("/api/label", json={"ids": ["x"], "person": "y"})),
        (400, "base64", lambda c: c.post("/api/search", json={"pictures": ["%"]})),
        (400, "must be a picture, or JSON", lambda c: c.post("/api/search", json={"pictures": []})),
        (404, "", lambda c: c.get("/api/nothing")),
        (405, "", lambda c: c.get("/api/search")),
    ],
)
def test_bad_requests(unchanged, status, message, call):
    answer = call(unchanged)
    assert answer.status_code == status and message in answer.json()["error"]


def test_too_many_pixels(client, monkeypatch):
    monkeypatch.setattr(app_module.decode, "MOST_PIXELS", 100)
    answer = client.post("/api/search", content=jpeg(picture(0)))
    assert answer.status_code == 400 and "8 x 16 pixels" in answer.json()["error"]


def test_other_hosts_and_origins(client):
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert client.get("/api/cameras", headers={"host": host}).status_code == 403
    assert client.get("/api/cameras", headers={"host": "localhost:8000"}).status_code == 200
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.delete("/api/entry/1", headers=headers).status_code == 403
    assert client.delete("/api/entry/1", headers={"origin": HERE}).status_code == 200


def test_token(gallery):
    with pytest.raises(ConfigError, match="needs a token"):
        app_module.create(gallery, any_host=True)
    with pytest.raises(ConfigError, match="16"):
        app_module.create(gallery, any_host=True, token="short")
    app = app_module.create(gallery, token=TOKEN, any_host=True)
    with TestClient(app, "http://gallery.example") as client:
        assert client.get("/api/health").status_code == client.get("/").status_code == 200
        for path in ("/api/cameras", "/api/picture/1", "/api/similar/1"):
            assert client.get(path).status_code == 401
        wrong = {"authorization": "Bearer " + TOKEN[:-1]}
        assert client.get("/api/cameras", headers=wrong).status_code == 401
        assert client.get("/api/cameras", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.post("/api/session", json={"token": "é"}).status_code == 401
        assert client.get("/api/cameras").status_code == 401
        answer = client.post("/api/session", json={"token": TOKEN})
        assert (
            "HttpOnly" in answer.headers["set-cookie"] and "SameSite=strict" in answer.headers["set-cookie"]
        )
        assert client.get("/api/cameras").status_code == 200


def test_a_full_queue_says_so(client, gallery, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_WAITING", 2)
    let_go, answers = threading.Event(), []
    real = gallery.search
    monkeypatch.setattr(gallery, "search", lambda *a, **o: (let_go.wait(20), real(*a, **o))[1])
    service = client.app.app.state.service

    def ask():
        answers.append(client.get("/api/similar/1").status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while service.waiting < 2:
        time.sleep(0.01)
    late = client.get("/api/similar/1")
    assert late.status_code == 429 and late.headers["retry-after"] == "1"
    let_go.set()
    for thread in threads:
        thread.join()
    assert answers == [200, 200] and client.get("/api/similar/1").status_code == 200


JUNK = (
    None,
    True,
    -1,
    2**70,
    1e300,
    "",
    "x" * 5000,
    "\0",
    "../..",
    "\ud800",
    [],
    {},
    [[]],
    {"": None},
    [2**70],
)


@pytest.mark.parametrize("count", [12, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_requests_are_refused(client, gallery, count):
    """Damaged pictures, junk in JSON, options and paths: a message, never a failure."""
    rng, whole = np.random.default_rng(0), jpeg(picture(0), "JPEG")
    names = ["k", "camera", "since", "fpir", "group", "expand", "rerank"]
    for _ in range(count):
        body = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            body[at] = rng.integers(256)
        odd, other = (JUNK[i] for i in rng.integers(0, len(JUNK), 2))
        text = str(odd).encode("utf-8", "replace").decode()[:200]
        answers = [
            client.post("/api/search", content=bytes(body[: rng.integers(len(body)) + 1])),
            client.post("/api/search", content=json.dumps({"pictures": odd}), headers=JSON),
            client.post("/api/label", content=json.dumps({"ids": odd, "person": other}), headers=JSON),
            client.post("/api/label", content=json.dumps(odd), headers=JSON),
            client.get("/api/similar/1", params={names[rng.integers(len(names))]: text}),
            client.get(f"/api/similar/{2 ** int(rng.integers(100))}"),
            client.get(f"/api/picture/{2 ** int(rng.integers(100))}"),
            client.delete(f"/api/entry/{2 ** int(rng.integers(40, 100))}"),
        ]
        assert all(a.status_code < 500 for a in answers), [a.text for a in answers]
    assert len(gallery) == 18 and gallery.verify() == []
