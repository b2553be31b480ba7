"""The page of a trace in a real browser: people look at it, so it is looked at here."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_traces.views import html
from support.browser import Browser, installed, open_browser
from support.odd_traces import HOSTILE, hostile, large, trace_of
from support.traces import BEGIN, MS, Maker, container_start

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="needs Debian's packages chromium and chromium-driver"),
]

# WebDriver's codes for keys (https://www.w3.org/TR/webdriver2/#keyboard-actions).
DOWN, LEFT, RIGHT, ESCAPE, ENTER, END = "\ue015", "\ue012", "\ue014", "\ue00c", "\ue007", "\ue010"
# What is drawn: from, to (ns) and the number of rows.
DRAWN = "document.documentElement.dataset.drawn.split(' ').map(Number)"
ROWS = "document.querySelectorAll('.row').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


class Page:
    """A page of a trace; a test that uses it fails if the console said anything."""

    def __init__(self, browser: Browser, directory: Path) -> None:
        self.browser = browser
        self._numbers = itertools.count()
        self._directory = directory

    def show(self, make: Maker, width: int = 1440, height: int = 900, **meta: Any) -> None:
        file = self._directory / f"{next(self._numbers)}.html"
        file.write_text(html.render(trace_of(make, **meta)), "utf-8", "backslashreplace")
        self.browser.open(file, width, height)
        self.browser.until("document.documentElement.dataset.ready && document.documentElement.dataset.drawn")

    def names(self) -> list[str]:
        """Of the rows that are in the page, from top to bottom."""
        return list(
            self.browser.run(
                "return [...document.querySelectorAll('.row')]"
                ".sort((a, b) => a.getAttribute('aria-rowindex') - b.getAttribute('aria-rowindex'))"
                ".map((row) => row.querySelector('.text').textContent.toWellFormed())"
            )
        )

    def drawn(self, condition: str, *arguments: Any) -> list[float]:
        """Wait until what is drawn is so; `from`, `to` and `rows` are its parts."""
        script = f"(() => {{ const [from, to, rows] = {DRAWN}; return ({condition}) && [from, to, rows]; }})()"
        return list(self.browser.until(script, *arguments))

    def search(self, text: str) -> None:
        self.browser.run(
            "const box = document.getElementById('search'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('input'));",
            text,
        )
        self.browser.settle()

    def text(self, selector: str) -> str:
        return str(self.browser.run("return document.querySelector(arguments[0]).textContent", selector))

    def middle(self, selector: str, share: float) -> tuple[int, int]:
        """A point of an element, at a share of its width."""
        box = self.browser.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height]",
            selector,
        )
        return round(box[0] + box[2] * share), round(box[1] + box[3] / 2)


@pytest.fixture
def page(browser: Browser, tmp_path: Path, artifacts: Path) -> Iterator[Page]:
    page = Page(browser, tmp_path)
    yield page
    # Kept if the test fails.
    browser.screenshot(artifacts / "page.png")
    assert browser.errors() == []


@pytest.mark.parametrize("count", [50, 20_000])
def test_it_renders_zooms_and_filters(page: Page, count: int) -> None:
    make = container_start()
    del make.spans[50:]
    page.show(make if count == 50 else large(count), name="web", outcome="exit 7")
    begin, end, rows = page.drawn("rows")
    assert rows == count
    assert page.names()[0] == "rootSpan"
    # However many spans there are, only those that are seen are in the page.
    assert page.browser.run(f"return {ROWS}") < 60
    page.browser.run("document.getElementById('scroller').scrollTop = 1e9")
    page.browser.until(
        f"[...document.querySelectorAll('.row')].some((row) => row.getAttribute('aria-rowindex') == {count})"
    )

    page.browser.click("#zoom-in")
    nearer, _, _ = page.drawn("from > 0 || to < arguments[0]", end)
    assert nearer > begin
    left, right = page.middle("#ticks", 0.5), page.middle("#ticks", 0.75)
    page.browser.drag((left[0], left[1] + 60), (right[0], right[1] + 60))
    page.drawn("to - from < arguments[0]", end * 0.2)
    page.browser.click("#zoom-all")
    page.drawn("from === 0 && to === arguments[0]", end)
    # The same in the overview, which also scrolls to what begins there.
    left, right = page.middle("#overview-canvas", 0.6), page.middle("#overview-canvas", 0.7)
    page.browser.drag(left, right)
    page.drawn("from > 0 && to < arguments[0]", end)
    page.browser.until("document.getElementById('scroller').scrollTop > 0")
    page.browser.click("#zoom-all")
    page.drawn("from === 0 && to === arguments[0]", end)

    page.search("boot.kernel")
    assert page.drawn("rows < arguments[0]", count)[2] < 20
    assert "boot.kernel" in page.names()
    assert page.text("#count").startswith("1 of ")
    page.search("no such span anywhere")
    page.drawn("rows === 0")
    page.browser.click("#clear")
    page.drawn("rows === arguments[0]", count)


def test_filters(page: Page) -> None:
    page.show(container_start(error="no such file"))
    everything = page.drawn("rows")[2]

    def shown(text: str) -> list[str]:
        page.search(text)
        script = "return [...document.querySelectorAll('.row:not(.context) .text')].map((name) => name.textContent)"
        return sorted(page.browser.run(script))

    assert shown("module=module7") == ["load_kernel_module"]
    assert shown("lane:kernel >1s") == ["boot.kernel"]
    assert shown("stage:firmware") == ["boot.firmware"]
    assert shown("name:setup -namespace=ipc") == ["setup", "setup_shared_namespaces"]
    assert shown('"Linux version"') == ["boot.kernel"]
    assert shown("is:error lane:container") == ["crun create"]
    page.search("")
    page.browser.click("#only-errors")
    assert page.drawn("rows < arguments[0]", everything)[2] == 5
    page.browser.click("#only-errors")
    page.browser.write("#min", "1s")
    page.drawn("rows < 10")
    page.browser.write("#min", "soon")
    assert page.browser.run("return document.getElementById('min').getAttribute('aria-invalid')") == "true"
    page.browser.run(
        "const s = document.getElementById('service'); s.value = 'kata-agent'; s.dispatchEvent(new Event('change'))"
    )
    page.browser.until("document.getElementById('count').textContent.includes(' of ')")
    assert page.browser.run("return [...document.querySelectorAll('.row:not(.context)')].length") > 5


def test_details_show_everything_about_a_span(page: Page) -> None:
    make = container_start(error="no such file")
    crun = next(entry["span"] for entry in make.spans if entry["span"]["name"] == "crun create")
    attributes = [
        {"key": key, "value": {"stringValue": text}} for key, text in (("level", "warning"), ("msg", "slow disk"))
    ]
    crun["events"] = [
        {"name": "log", "timeUnixNano": str(BEGIN + 2600 * MS), "attributes": attributes},
        {"name": "forked", "timeUnixNano": str(BEGIN + 2650 * MS), "attributes": []},
    ]
    page.show(make)
    page.search("lane:container")
    page.browser.until("document.querySelector('.row:not(.context)')")
    page.browser.click(".row:not(.context) .text")
    page.browser.until("!document.getElementById('details').hidden")
    content = page.text("#details")
    for part in (
        "crun create",
        "no such file",
        "123 ms",
        "container_id",
        "c1",
        "forked",
        "+77.0 ms",
        "slow disk",
        "warning",
    ):
        assert part in content
    assert page.browser.run("return location.hash") == f"#span={crun['spanId']}"
    page.browser.keys(ESCAPE)
    page.browser.until("document.getElementById('details').hidden")


def test_raw_and_corrected_guest_time(page: Page) -> None:
    make = container_start()
    sync = next(entry["span"] for entry in make.spans if entry["span"]["name"] == "clockSync")
    reading = {"offset_ns": BEGIN + 400 * MS, "bound_ns": 210_000, "wall_error_ns": -300 * MS}
    sync["attributes"] += [{"key": key, "value": {"intValue": str(value)}} for key, value in reading.items()]
    page.show(make)
    page.search("name:imports")
    page.browser.until("document.querySelector('.row:not(.context)')")
    page.browser.click("#raw")
    page.browser.until("document.querySelectorAll('.ghost').length === 1")
    page.browser.click(".row:not(.context) .text")
    page.browser.until("!document.getElementById('details').hidden")
    content = page.text("#details")
    # 1941 ms after the beginning, and the guest's clock began 400 ms after it.
    assert "1541000000 ns" in content
    assert "±210 µs" in content
    assert "300 ms too early" in content
    page.browser.click("#tab-clock")
    clock = page.text("#view-clock")
    assert f"{BEGIN + 400 * MS} ns" in clock
    assert "±210 µs" in clock


def test_the_keyboard_is_enough(page: Page) -> None:
    page.show(container_start())
    _, end, everything = page.drawn("rows")
    selected = "(document.querySelector('[aria-selected=true] .text') || {}).textContent"
    page.browser.keys(DOWN)
    page.browser.until(f"{selected} === 'rootSpan'")
    page.browser.keys(DOWN + DOWN)
    page.browser.until(f"{selected} === 'create'")
    page.browser.keys(DOWN + DOWN + DOWN)
    page.browser.until(f"{selected} === 'startVirtiofsd'")
    page.browser.keys("f")
    page.drawn("to < arguments[0]", end)
    page.browser.keys(LEFT)
    page.drawn("rows < arguments[0]", everything)
    page.browser.keys(RIGHT)
    page.drawn("rows === arguments[0]", everything)
    page.browser.keys("0")
    page.drawn("to === arguments[0]", end)
    page.browser.keys("/" + "crun")
    page.browser.until("document.getElementById('search').value === 'crun'")
    page.drawn("rows < 20")
    page.browser.keys(ESCAPE)
    page.drawn("rows === arguments[0]", everything)
    page.browser.run("document.activeElement.blur()")
    page.browser.keys("?")
    page.browser.until("document.getElementById('keys').open")
    page.browser.keys(ESCAPE)
    page.browser.until("!document.getElementById('keys').open")
    page.browser.keys(END)
    page.browser.until(f"{selected} === 'process' || {selected} === 'Cleanup'")


def test_the_tables(page: Page) -> None:
    page.show(container_start())
    page.browser.click("#tab-slowest")
    first = "document.querySelector('#view-slowest tbody .text').textContent"
    page.browser.until(f"{first} === 'boot.kernel'")
    # What only waited for others is not in full colour.
    bars = page.browser.run(
        "return Object.fromEntries([...document.querySelectorAll('#view-slowest tbody tr')].map((row) => ["
        "row.querySelector('.text').textContent,"
        "['.amount:not(.shade)', '.shade'].map((s) => !!row.querySelector(s))]))"
    )
    assert bars["boot.kernel"] == [True, False]
    assert bars["startVsockBackend"] == [False, True]
    page.browser.click("#view-slowest thead button")
    page.browser.run(
        "[...document.querySelectorAll('#view-slowest thead button')].find((b) => b.textContent === 'Duration').click()"
    )
    page.browser.until(f"{first} === 'rootSpan'")
    # Once more turns it round.
    page.browser.click("#view-slowest thead [aria-sort=descending] button")
    page.browser.until(f"{first} !== 'rootSpan' && document.querySelector('#view-slowest [aria-sort=ascending]')")
    page.browser.run(
        "[...document.querySelectorAll('.page-head button')].find((b) => b.textContent === 'By name').click()"
    )
    page.browser.until("document.querySelector('#view-slowest h2').textContent === 'Slowest names'")
    page.browser.click("#tab-stages")
    stages = page.text("#view-stages")
    for part in ("kernel", "1.25 s", "unaccounted", "Critical path", "crun create"):
        assert part in stages
    page.browser.click("#view-stages .numbered button")
    page.browser.until("document.querySelector('#details h2').textContent === 'boot.kernel'")
    assert page.browser.run("return document.getElementById('view-waterfall').hidden") is False


def test_all_events_by_their_time(page: Page) -> None:
    make = container_start()
    log = {"level": "warning", "msg": "the disk is slow", "disk": "vda"}
    make.add("late", 2000, 2001, f"{1:016x}", agent=True, events=((2000.5, "log", log),))
    page.show(make)
    page.browser.click("#tab-events")
    # The toolbar is one row.
    top = "document.querySelector(arguments[0]).getBoundingClientRect().top"
    first, last = (page.browser.run(f"return {top}", part) for part in (".tabs", "#zoom-all"))
    assert abs(first - last) < 10
    rows = (
        "[...document.querySelectorAll('#view-events tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    told = page.browser.run(f"return {rows}")
    assert [row[:2] for row in told] == [
        ["410 ms", "boot.kernel"],
        ["1.32 s", "boot.kernel"],
        ["1.65 s", "boot.kernel"],
        ["2.00 s", "late"],
        ["2.84 s", "process"],
    ]
    assert told[3][2] == "the disk is slow warning disk=vda"
    assert told[4][2] == "exited status=7"
    # The search holds here, too, and a row leads to its span.
    page.search("late")
    assert [row[1] for row in page.browser.run(f"return {rows}")] == ["late"]
    page.browser.click("#view-events tbody button")
    page.browser.until("document.querySelector('#details h2').textContent === 'late'")
    assert page.browser.run("return document.getElementById('view-waterfall').hidden") is False


def test_without_events_there_is_no_tab_of_them(page: Page) -> None:
    make = Maker()
    make.add("startVM", 0, 50, make.add("rootSpan", 0, 100))
    page.show(make)
    assert page.browser.run("return document.getElementById('tab-events').hidden") is True
    page.browser.run("document.getElementById('tab-flame').focus(); document.getElementById('tab-flame').click()")
    page.browser.keys(RIGHT)
    assert page.browser.run("return document.activeElement.id") == "tab-clock"


def test_more_events_than_a_page_has_room_for(page: Page) -> None:
    make = container_start()
    root = f"{1:016x}"
    for number in range(20):
        make.add("busy", number, number + 1, root, events=tuple((number + n / 100, f"e{n}", {}) for n in range(100)))
    page.show(make)
    page.browser.click("#tab-events")
    assert page.text("#view-events h2") == "2,004 events"
    assert page.browser.run("return document.querySelectorAll('#view-events tbody tr').length") == 500
    assert "1,504 later ones" in page.text("#view-events")


def test_a_hostile_trace_is_text(page: Page) -> None:
    page.show(hostile(), name=HOSTILE[0], command=HOSTILE[2], outcome=HOSTILE[1])
    names = page.names()
    for text in HOSTILE:
        if text.isprintable():
            assert text in names
    for tab in ("slowest", "stages", "events", "clock", "waterfall"):
        page.browser.click(f"#tab-{tab}")
    for index in range(1, 1 + 2 * len(HOSTILE)):
        page.browser.run(f"document.querySelector('#row-{index}').click()")
        page.browser.until("!document.getElementById('details').hidden")
    assert "owned" in page.browser.run("return document.title")  # as text, in what the page is called
    assert page.browser.run("return document.title").startswith("Trace of ")
    assert page.browser.run("return document.querySelectorAll('img, iframe, object, embed').length") == 0
    assert page.browser.run("return document.scripts.length") == 2


def test_odd_traces(page: Page) -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 0)
    make.add("early", -20, 10, root)
    make.add("backwards", 9, 7, root)
    make.add("lost", 3, 4, "00000000000000ff")
    del make.spans[0]["span"]["endTimeUnixNano"]
    page.show(make, lost={"queue full": 3})
    assert "not in this trace: 3 queue full" in page.text("#remarks")
    assert "orphan" in page.browser.run("return document.getElementById('rows').textContent")
    alone = Maker()
    alone.add("alone", 0, 0)
    page.show(alone)
    assert page.names() == ["alone"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1920])
def test_it_fits_and_can_be_read(page: Page, theme: str, width: int) -> None:
    """No sideways scrolling, and text that stands out from what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1)."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    page.browser.devtools("Emulation.setEmulatedMedia", features=features)
    page.show(container_start(error="no such file"), width=width, outcome="error")
    assert page.browser.run("return document.documentElement.scrollWidth") <= width
    ratio = page.browser.run(
        """
        const light = (text) => {
            const unit = text.startsWith("color(") ? 1 : 255;
            const [r, g, b] = text.match(/[\\d.]+/g).map((v) => Number(v) / unit)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const probe = document.body.appendChild(document.createElement("p"));
        const of = (name) => { probe.style.color = `var(${name})`; return light(getComputedStyle(probe).color); };
        const pairs = [["--ink-1", "--bg"], ["--ink-2", "--bg"], ["--ink-2", "--surface"], ["--ink-2", "--raised"],
            ["--bad", "--bad-bg"], ["--bad", "--surface"], ["--accent", "--accent-bg"]];
        const found = pairs.map(([a, b]) => contrast(of(a), of(b)));
        for (let stage = 0; stage < 12; stage++) {
            const back = of(`--stage-${stage}`);
            found.push(Math.max(contrast(of("--pale"), back), contrast(of("--deep"), back)));
        }
        for (const label of document.querySelectorAll("#lane-labels button")) {
            found.push(contrast(light(getComputedStyle(label).color), of("--surface")));
        }
        return found;
        """
    )
    assert min(ratio) >= 4.5, ratio
    page.browser.devtools("Emulation.setEmulatedMedia", features=[])


def test_why_it_failed_is_told_at_once(page: Page) -> None:
    page.show(container_start(error="no such file\nand more"), outcome="error")
    # Whole, as the terminal had it, and then where it began.
    assert (
        page.text("#failure")
        .replace("file", "file, ", 1)
        .startswith("no such file, and moreIt was seen first in crun create (")
    )
    page.browser.click("#failure button")
    page.browser.until("document.querySelector('.row[aria-selected=true] .text')?.textContent === 'crun create'")
    page.show(container_start())
    assert page.browser.run("return document.getElementById('failure').hidden")


def test_the_grid_is_as_high_as_the_rows_before_anybody_draws(page: Page) -> None:
    page.show(container_start())
    # In the frame of a change of size nothing has been drawn again yet: a screenshot shows just that.
    below = page.browser.run(
        "document.querySelector('.main').style.cssText = 'flex: none; height: 500px';"
        "const [line, box] = ['#grid i', '#scroller'].map((s) => document.querySelector(s).getBoundingClientRect());"
        "return [box.top - line.top, box.bottom - line.bottom, box.height]"
    )
    assert abs(below[0]) <= 1
    assert abs(below[1]) <= 1
    assert below[2] > 300


@pytest.mark.parametrize("count", [1, 50, 20_000])
def test_flame_graph_and_icicle(page: Page, count: int) -> None:
    """The tree of self time, however many spans: zoomed by the keyboard, turned round, and back to a search."""
    make = container_start() if count < 20_000 else large(count)
    del make.spans[count:]
    page.show(make)
    page.browser.click("#tab-flame")
    nodes = "[...document.querySelectorAll('.flame button')]"
    page.browser.until(f"{nodes}.length > 0 && {nodes}[0].textContent === 'rootSpan'")
    assert page.browser.run(f"return {nodes}.length") <= 4000
    if count == 1:
        return
    tops = page.browser.run(f"return {nodes}.slice(0, 2).map((n) => parseFloat(n.style.top))")
    assert tops[0] < tops[1]
    page.browser.run(f"{nodes}[1].focus()")
    page.browser.keys(ENTER)
    page.browser.until("document.querySelector('.flame .focus').textContent === 'create'")
    page.browser.run(
        "[...document.querySelectorAll('.page-head button')].find((b) => b.textContent === 'Flame').click()"
    )
    page.browser.until(f"parseFloat({nodes}[0].style.top) > parseFloat({nodes}[1].style.top)")
    page.browser.run(f"{nodes}[1].focus()")
    page.browser.keys("s")
    page.browser.until("document.getElementById('search').value === 'name:\"create\"'")


def test_advice_is_told_beside_the_failure(page: Page) -> None:
    make = container_start()
    make.spans[0]["span"]["attributes"].append({"key": "kata.vm.accelerator", "value": {"stringValue": "tcg"}})
    page.show(make)
    assert page.text("#advice").startswith("QEMU emulates the guest's processor")
    # A line, until somebody asks for the rest: the picture is what the page is for.
    height = "document.querySelector('#advice p').getBoundingClientRect().height"
    page.browser.resize(700, 900)
    one = page.browser.run(f"return {height}")
    page.browser.click("#advice button")
    assert page.browser.run(f"return {height}") > 1.5 * one
    assert page.browser.run("return document.querySelector('#advice button').ariaExpanded") == "true"
    page.browser.click("#advice button")
    assert page.browser.run(f"return {height}") == one
    page.browser.resize(1440, 900)
    # What does not matter is not on the critical path that is shown.
    page.browser.click("#only-critical")
    page.browser.until("document.getElementById('count').textContent.includes(' of ')")
    assert int(page.text("#count").partition(" ")[0]) < 30


def test_a_link_brings_back_the_view(page: Page) -> None:
    page.show(container_start())
    page.search("crun")
    page.browser.click("#zoom-in")
    page.browser.click("#tab-stages")
    page.browser.click("#link")
    page.browser.until("document.getElementById('link').textContent !== 'Link'")
    address = page.browser.run("return location.href")
    assert "q=crun" in address
    assert "tab=stages" in address
    assert "at=" in address
