"""`trace serve` in a real browser: a store of a thousand traces, and the pictures of docs/tracing.md."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_telemetry.span import Site as Traced
from kata_traces.store.writer import StoreWriter
from kata_traces.views import jaeger
from kata_traces.views.serve.index import Index
from kata_traces.views.serve.server import Server, serving
from support.browser import Browser, installed, open_browser
from support.odd_traces import HOSTILE, trace_of
from support.traces import container_start, fill, write_store

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="needs Debian's packages chromium and chromium-driver"),
]

DOWN, ESCAPE, ENTER = "\ue015", "\ue00c", "\ue007"
DOCS = Path(__file__).parents[2] / "docs"
ROWS = "document.querySelectorAll('#rows tr').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def leave(browser: Browser) -> Iterator[None]:
    """No page of a test asks the next test's server: a live one would come back to a port that is taken anew."""
    yield
    browser.command("url", url="about:blank")
    browser.errors()


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("store")
    fill(directory, 1000)
    with serving(Server(Index(directory))) as server:
        while server.index.all()[1]:
            server.index.settled.wait(5)
        yield server


class Pages:
    """A browser in front of a server; a test that uses it fails if the console said anything."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self.browser = browser
        self.server = server

    def open(self, path: str = "", width: int = 1440, height: int = 900, *, whole: bool = True) -> None:
        self.browser.resize(width, height)
        self.browser.command("url", url=self.server.url)
        if path:
            self.browser.command("url", url=f"http://127.0.0.1:{self.server.server_port}{path}")
            self.browser.until("document.documentElement.dataset.ready && document.documentElement.dataset.drawn")
            return
        self.browser.until("document.documentElement.dataset.answered")
        if whole:
            self.browser.until("document.documentElement.dataset.unread === '0'")

    def search(self, text: str) -> float:
        """Type it; ms from the asking to all rows being there."""
        self.browser.run("delete document.documentElement.dataset.query")
        self.browser.write("#search", text)
        if not text:
            self.browser.run("document.getElementById('search').dispatchEvent(new Event('input'))")
        return float(
            self.browser.until(
                "document.documentElement.dataset.query === arguments[0] && document.documentElement.dataset.answered",
                text,
            )
        )

    def count(self) -> str:
        return str(self.browser.run("return document.getElementById('count').textContent"))


@pytest.fixture
def pages(browser: Browser, thousand: Server, artifacts: Path) -> Iterator[Pages]:
    yield Pages(browser, thousand)
    browser.screenshot(artifacts / "site.png")
    assert browser.errors() == []


def test_a_thousand_traces_are_searched_in_time(pages: Pages) -> None:
    pages.open()
    assert pages.count() == "1,000 of 1,000 traces"
    took = {}
    for query, found in (("kernel>3s", 20), ("state:failed", 25), ("pod:shop/web", 334), ("imports", 1000)):
        took[query] = min(pages.search(query) for _ in range(8))
        assert pages.count() == f"{found:,} of 1,000 traces"
    print(took)
    assert max(took.values()) < 200, took
    # However many are found, only some are in the page.
    assert pages.browser.run(f"return {ROWS}") == 60
    pages.browser.run("document.getElementById('more').click()")
    assert pages.browser.run(f"return {ROWS}") == 120


def test_a_column_sorts_both_ways(pages: Pages) -> None:
    pages.open()
    heads = pages.browser.run("return [...document.querySelectorAll('#heads th')].map((head) => head.textContent)")
    number = heads.index("Whole")
    column = f"[...document.querySelectorAll('#rows tr')].map((row) => parseFloat(row.cells[{number}].textContent))"
    head = f"#heads th:nth-child({number + 1})"
    for way, most in (("descending", True), ("ascending", False)):
        pages.browser.click(f"{head} button")
        pages.browser.until(f"document.querySelector('{head}').getAttribute('aria-sort') === '{way}'")
        took = pages.browser.run(f"return {column}")
        assert took == sorted(took, reverse=most)
        assert len(set(took)) > 1
    # A text begins with A.
    pages.browser.click("#heads th:nth-child(2) button")
    assert pages.browser.run("return document.querySelector('#heads th:nth-child(2)').ariaSort") == "ascending"


def test_the_keyboard_is_enough(pages: Pages) -> None:
    pages.open()
    keys = pages.browser.keys
    keys("/kernel>3s")
    pages.browser.until("document.documentElement.dataset.query === 'kernel>3s'")
    pages.browser.until(f"{ROWS} === 20")
    keys(DOWN + DOWN)
    pages.browser.until("document.querySelectorAll('#rows tr')[1].getAttribute('aria-selected') === 'true'")
    keys("a" + DOWN + "b" + DOWN + "b" + "x")
    pages.browser.until("!document.getElementById('compared').hidden")
    text = str(pages.browser.run("return document.getElementById('compared').textContent"))
    assert "A against B" in text
    assert "boot.kernel" in text
    keys(ESCAPE)
    pages.browser.until("document.getElementById('compared').hidden")
    keys("?")
    pages.browser.until("document.getElementById('keys').open")
    keys(ESCAPE)
    pages.browser.until("!document.getElementById('keys').open")
    keys(ENTER)
    pages.browser.until("document.documentElement.dataset.drawn")
    assert pages.browser.run("return document.getElementById('back').hidden") is False


def test_outliers_lead_to_their_trace(pages: Pages) -> None:
    pages.open()
    pages.browser.run(
        "const s = document.getElementById('stage'); s.value = 'kernel'; s.dispatchEvent(new Event('change'))"
    )
    outliers = "document.querySelectorAll('#chart a.out')"
    pages.browser.until(f"{outliers}.length === 20")
    target = pages.browser.run(f"return {outliers}[0].getAttribute('href')")
    pages.open(target)
    legend = pages.browser.run("return document.getElementById('legend').textContent")
    assert float(legend.partition("kernel")[2].partition(" s")[0]) > 3


def test_a_link_brings_back_the_view(pages: Pages) -> None:
    pages.open()
    pages.search("kernel>3s")
    ids = pages.browser.run("return [...document.querySelectorAll('#rows .id')].map((e) => e.title)")
    pages.open(f"/trace/{ids[0]}#q=crun&tab=flame")
    pages.browser.until("!document.getElementById('view-flame').hidden")
    assert pages.browser.run("return document.getElementById('search').value") == "crun"
    assert pages.browser.run("return document.querySelectorAll('.flame button').length") > 10
    pages.browser.run("document.querySelectorAll('.flame button')[1].focus()")
    pages.browser.keys(ENTER)
    pages.browser.until("document.querySelector('.flame button.focus').textContent === 'create'")


def test_a_file_is_dropped(pages: Pages) -> None:
    pages.open()
    content = json.dumps(jaeger.to_jaeger(trace_of(container_start(error="no such file"))))
    pages.browser.run(
        "const data = new DataTransfer(); data.items.add(new File([arguments[0]], 'x.json'));"
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }));",
        content,
    )
    pages.browser.until("document.documentElement.dataset.drawn && location.pathname.startsWith('/trace/file-')")
    assert "no such file" in pages.browser.run("return document.getElementById('failure').textContent")
    pages.open()
    pages.browser.run(
        "const data = new DataTransfer(); data.items.add(new File(['hello'], 'x'));"
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }));"
    )
    pages.browser.until("!document.getElementById('problem').hidden")
    # The console says which request was refused; that is what this test is about.
    assert all("/api/drop" in error for error in pages.browser.errors())


def test_a_live_sandbox_grows(browser: Browser, tmp_path: Path) -> None:
    site = Traced(package="test", subsystem="unit")
    with serving(Server(Index(tmp_path))) as server, StoreWriter.open(tmp_path, "live", name="web") as writer:
        pages = Pages(browser, server)
        with site.root(writer.tracer("kata", source="runtime"), "rootSpan"):
            with site.span("first"):
                pass
            writer.flush(5)
            pages.open("/trace/live")
            names = "[...document.querySelectorAll('.row .text')].map((e) => e.textContent)"
            browser.until(f"{names}.includes('first')")
            browser.run("document.querySelectorAll('.row')[1].click()")
            with site.span("second"):
                pass
            writer.flush(5)
            browser.until(f"{names}.includes('second')")
            # What was chosen still is.
            assert browser.run("return document.querySelector('#details h2').textContent") == "first"
        writer.close(5, outcome="exit 0")
        browser.until("document.querySelector('.pill').textContent === 'exit 0'")
    assert browser.errors() == []


def test_hostile_texts_are_texts(browser: Browser, tmp_path: Path) -> None:
    for number, text in enumerate(HOSTILE):
        write_store(tmp_path, sandbox_id=f"s{number}", name=text, command=text, failure=text, outcome=text)
    with serving(Server(Index(tmp_path))) as server:
        pages = Pages(browser, server)
        pages.open()
        assert browser.run(f"return {ROWS}") == len(HOSTILE)
        assert browser.run("return document.title") == "Traces of Kata Containers"
        assert browser.run("return document.querySelectorAll('img, iframe, object, embed').length") == 0
        assert browser.run("return document.scripts.length") == 1
    assert browser.errors() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1920])
def test_it_fits(pages: Pages, theme: str, width: int) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    pages.browser.devtools("Emulation.setEmulatedMedia", features=features)
    pages.open(width=width)
    assert pages.browser.run("return document.documentElement.scrollWidth") <= width
    background = pages.browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) < 200) == (theme == "dark")
    pages.browser.devtools("Emulation.setEmulatedMedia", features=[])


def test_pictures_for_the_docs(pages: Pages, tmp_path: Path) -> None:
    """KATA_DOCS_PICTURES=1 writes them into docs/; without it they are only made."""
    target = DOCS if os.environ.get("KATA_DOCS_PICTURES") else tmp_path

    def picture(name: str, **media: Any) -> None:
        pages.browser.settle()
        pages.browser.screenshot(target / name)
        assert (target / name).stat().st_size > 20_000

    pages.open(width=1400, height=900)
    picture("traces.png")
    pages.search("kernel>3s")
    slow = pages.browser.run("return [...document.querySelectorAll('#rows .id')].map((e) => e.title)")
    pages.search("")
    usual = pages.browser.run("return [...document.querySelectorAll('#rows .id')].map((e) => e.title)")
    pages.browser.command(
        "url",
        url=f"http://127.0.0.1:{pages.server.server_port}/#q=kernel%3E1s&a={','.join(usual[:5])}&b={','.join(slow[:5])}",
    )
    pages.browser.command("refresh")
    pages.browser.until("document.querySelector('#compared td')")
    pages.browser.run("document.getElementById('compared').scrollIntoView()")
    picture("compare.png")
    pages.open(f"/trace/{slow[0]}", width=1400, height=900)
    picture("trace.png")
    pages.browser.click("#tab-flame")
    picture("flame.png")
