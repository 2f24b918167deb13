"""The page in headless Chromium, where one is installed: what people do with it, by mouse and keyboard."""

import io
import socket
import threading

import chromium
import pytest
from gallery_stub import Stub, folder, jpeg, picture
from PIL import Image

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
from reid_jax.serve import app as app_module  # noqa: E402
from reid_jax.serve.gallery import Gallery  # noqa: E402

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="no Chromium is installed")
TOKEN = "a-token-of-some-length"


@pytest.fixture
def served(tmp_path):
    """(address of the page, its gallery, folder of the pictures); persons have names that are markup."""
    paths, cameras, persons = folder(tmp_path / "pictures")
    names = [f"<img src=x onerror=alert(1)>{p}" if p == "person02" else p for p in persons]
    with Gallery(tmp_path / "g.sqlite", Stub()) as gallery, socket.socket() as place:
        gallery.add(paths, camera=cameras, person=names, time=[1.78e9 + i for i in range(18)])
        place.bind(("127.0.0.1", 0))
        app = app_module.create(gallery, root=tmp_path / "pictures", token=TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        yield f"http://127.0.0.1:{place.getsockname()[1]}/", gallery, tmp_path / "pictures"
        server.should_exit = True
        thread.join()


def ids(browser):
    """Entries that are shown, in order."""
    return browser.run("[...document.querySelectorAll('#hits li')].map(i => +i.dataset.id)")


def answer(browser, button, text=None):
    """Answers the dialog."""
    browser.until("document.getElementById('dialog').open")
    if text is not None:
        browser.run(f"document.getElementById('answer').value = {text!r}")
    browser.run(f"document.querySelector('#dialog button[value={button}]').click()")


def slide(browser, place):
    """Moves the slider."""
    browser.run(
        f"document.getElementById('rate').value = {place};"
        "document.getElementById('rate').dispatchEvent(new Event('input'))"
    )


def test_page(served, tmp_path):
    address, gallery, pictures = served
    with chromium.Browser() as browser:
        browser.open(address)
        browser.until("!document.getElementById('login').hidden")
        browser.said.clear()  # of the first refusal
        browser.run(f"document.getElementById('token').value = '{TOKEN}'")
        browser.run("document.querySelector('#login button').click()")
        browser.until("!document.getElementById('main').hidden")
        assert "18 pictures, 6 named persons, 3 cameras" in browser.run("document.body.innerText")

        # a picture: strips with names, greyed below the bar, which the slider moves without a search
        browser.files("#files", pictures / "yard" / "person02_0.png")
        browser.until("document.querySelectorAll('#hits li').length == 18")
        first = [h.id for h in gallery.search(pictures / "yard" / "person02_0.png", k=18)]
        assert ids(browser) == first
        browser.until("document.querySelector('#hits img').naturalWidth > 0")
        fits = "[...document.querySelectorAll('.pic')].every(p => p.scrollHeight <= p.clientHeight)"
        assert browser.run(fits)  # a person is seen from head to foot
        greyed = "document.querySelectorAll('#hits li.unknown').length"
        some, asked = browser.run(greyed), len(browser.asked)
        assert 0 < some < 18
        for place, least in ((0, -2), (1, 0.2), (3, 0.9)):
            slide(browser, place)
            wanted = sum(h.score < least for h in gallery.search(pictures / "yard" / "person02_0.png", k=18))
            assert browser.run(greyed) == wanted
            said = browser.run("document.getElementById('status').textContent")
            assert said == (f"18 hits, {18 - wanted} above the bar." if wanted else "18 hits.")
        assert not any("/api/search" in url for url in browser.asked[asked:])
        assert browser.run("document.querySelector('#hits .who').textContent").startswith("<img")

        # cameras: only this, then not this; the search follows
        browser.run("document.querySelector('#cameras button').click()")
        browser.until("document.querySelectorAll('#hits li').length == 6")
        browser.run("document.querySelector('#cameras button').click()")
        browser.until("document.querySelectorAll('#hits li').length == 12")
        browser.run("document.querySelector('#cameras button').click()")
        browser.until("document.querySelectorAll('#hits li').length == 18")

        # from and to, in the browser's own time
        local = "new Date(1000 * (1780000006 - 60 * new Date(1.78e12).getTimezoneOffset())).toISOString()"
        browser.run(f"document.getElementById('until').value = {local}.slice(0, 19)")
        browser.run("document.getElementById('until').dispatchEvent(new Event('change'))")
        browser.until("document.querySelectorAll('#hits li').length == 7")
        assert browser.run("document.getElementById('active').textContent") == "(1)"
        browser.run("document.getElementById('until').value = ''; filtered()")
        browser.until("document.querySelectorAll('#hits li').length == 18")

        # a filter on a camera whose last picture goes meanwhile is gone too; the slider stays where it was
        lone = gallery.add(pictures / "door" / "person01_0.png", camera="attic")
        browser.run("begin()")
        browser.until("document.querySelectorAll('#cameras button').length == 4")
        slide(browser, 1)
        browser.run("document.querySelector('#cameras button').click()")
        browser.until("document.querySelectorAll('#hits li').length == 1")
        browser.until("document.querySelector('#hits img').naturalWidth > 0")
        gallery.remove(ids=lone)
        browser.run("begin().then(again)")
        browser.until("document.querySelectorAll('#hits li').length == 18")
        assert browser.run("document.getElementById('rate').value") == "1"
        slide(browser, 3)

        # the keyboard: to the next hit, search for it, and back
        browser.run("document.querySelector('#hits .pic').focus()")
        browser.key("ArrowRight")
        browser.key("Enter")
        browser.until("document.querySelectorAll('#hits li').length == 17")
        assert ids(browser) == [h.id for h in gallery.search(first[1], k=17)]
        browser.key("ArrowLeft", modifiers=1)
        browser.until("document.querySelectorAll('#hits li').length == 18")
        assert ids(browser) == first and browser.run("document.getElementById('back').disabled")

        # names, and deletion, which asks first
        browser.run("document.querySelector('#hits .label').click()")
        answer(browser, "yes", "Zoë")
        browser.until("document.getElementById('status').textContent == 'Named Zoë.'")
        assert gallery.rows().counts("person")["Zoë"] == 1
        browser.run("document.querySelector('#hits .delete').click()")
        answer(browser, "cancel")
        browser.run("document.querySelector('#hits .delete').click()")
        answer(browser, "yes")
        browser.until("document.getElementById('status').textContent.includes('1 entry deleted')")
        assert len(gallery) == 17 and first[0] not in ids(browser)

        # a table, in which no cell is a formula
        browser.run("""state.hits[0].person = '=1+"a",b'""")
        browser.run("real = URL.createObjectURL; URL.createObjectURL = blob => real(window.saved = blob)")
        browser.run("document.getElementById('csv').click()")
        lines = browser.run("saved.text()").split("\r\n")
        assert lines[0] == "id,score,unknown,person,camera,time,tracklet,source" and len(lines) == 19
        assert lines[1].split(",", 3)[3].startswith(""""'=1+""a"",b",""")

        # pictures that are dragged onto the page, anywhere, and one out of the clipboard
        pasted, dragged = pictures / "yard" / "person03_0.png", pictures / "door" / "person01_0.png"
        browser.drop(400, 400, dragged, let_go=False)
        browser.until("document.getElementById('drop').classList.contains('over')")
        browser.drop(400, 400, dragged)
        browser.until("document.querySelector('#hits .who').textContent == 'person01'")
        assert not browser.run("document.getElementById('drop').classList.contains('over')")
        assert ids(browser) == [h.id for h in gallery.search(dragged, k=17)]
        contents = io.BytesIO()
        Image.open(pasted).save(contents, "PNG")
        browser.paste(contents.getvalue(), address.rstrip("/"))
        browser.until("document.querySelector('#hits .who').textContent == 'person03'")
        assert ids(browser) == [h.id for h in gallery.search(pasted, k=17)]
        (tmp_path / "words.txt").write_text("no picture")
        browser.drop(400, 400, tmp_path / "words.txt")
        browser.until("document.getElementById('status').textContent == 'That is no picture.'")
        assert browser.run("location.pathname") == "/"  # a file that is dropped is not opened

        # several pictures, and what is none
        (tmp_path / "one.png").write_bytes(jpeg(picture(4)))
        browser.files("#files", tmp_path / "one.png", pictures / "hall" / "person04_0.png")
        browser.until("document.querySelectorAll('#previews img').length == 2")
        browser.until("document.querySelector('#hits .who').textContent == 'person04'")
        (tmp_path / "broken.png").write_bytes(b"no picture")
        browser.files("#files", tmp_path / "broken.png")
        browser.until("document.getElementById('status').className == 'bad'")
        assert "no picture that can be read" in browser.run("document.getElementById('status').textContent")

        # a phone at night
        browser.resize(390, 844, phone=True, dark=True)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(18, 22, 29)"

        assert all(url.startswith((address, "blob:", "data:")) for url in browser.asked), browser.asked
        assert [text for text in browser.said if "400" not in text and "401" not in text] == []
