"""The screen of `trace top`, by textual."""

import contextlib
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.geometry import Region, Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Static

from kata_traces.read.analysis import split
from kata_traces.read.cells import columns, crop, crop_left, printable
from kata_traces.read.failure import failure_of
from kata_traces.read.lookup import Source
from kata_traces.read.stages import Lane
from kata_traces.read.trace import TraceSpan
from kata_traces.read.units import attribute, duration, percent
from kata_traces.store.errors import StoreError
from kata_traces.views.top.rows import Rows

__all__ = ["Top"]

COLOURS = {
    Lane.RUNTIME: "#7aa5f5",
    Lane.QEMU: "#cf8fe8",
    Lane.KERNEL: "#e3b34c",
    Lane.AGENT: "#5fc796",
    Lane.CONTAINER: "#54c3d1",
}
# How a live sandbox's trace is read again after a change: not more often than this (s), however fast it grows.
CALM = 0.25
KEYS = """\
↑ ↓ PgUp PgDn Home End   move            ← →      fold, or up; unfold, or down
Enter                    details         [ ]      fold, unfold all
/ n N                    search, next, previous match
+ - 0 f                  zoom in, out, all, to the span       < >  earlier, later
c e                      only the critical path, only errors
Tab Shift+Tab            next, previous span on the critical path
r q                      read again, quit"""


class Waterfall(ScrollView, can_focus=True, inherit_bindings=False):
    """The rows: a line each, drawn only where they are seen."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(id="waterfall")
        self.rows = rows

    def on_mount(self) -> None:
        """The first layout."""
        self.refit()

    def on_resize(self) -> None:
        """The bars are as wide as there is room."""
        self.refit()
        self.call_after_refresh(self.refit)

    def refit(self) -> None:
        """After any change of the rows: their number, and the cursor in sight."""
        self.virtual_size = Size(self.size.width, len(self.rows.rows))
        self.scroll_to_region(Region(0, self.rows.at, 1, 1), animate=False, force=True)
        self.refresh()
        self.app.query_one("#axis", Static).update(self.axis())

    @property
    def name_width(self) -> int:
        """Columns of the names with their tree."""
        return max(min(self.size.width * 2 // 5, 56), 20)

    @property
    def bar_width(self) -> int:
        """Columns of the bars."""
        return max(self.size.width - self.name_width - 13, 10)

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        index = y + self.scroll_offset.y
        if not 0 <= index < len(self.rows.rows):
            return Strip.blank(self.size.width)
        return self._row(self.rows.rows[index], chosen=index == self.rows.at)

    def axis(self) -> str:
        """The line of times above the bars."""
        rows, width = self.rows, self.bar_width
        begin, length = rows.begin - rows.trace.root.start, rows.end - rows.begin
        cells = [" "] * width
        for part in range(0, width - 8, max(width // 6, 12)):
            label = f"╷{duration(begin + length * part // width, tick=True)}"
            cells[part : part + len(label)] = label
        return " " * self.name_width + "   duration " + "".join(cells[:width])

    def _row(self, span: TraceSpan, *, chosen: bool) -> Strip:
        rows = self.rows
        colour = COLOURS[span.lane]
        waited = rows.waited(span)
        notable = waited > rows.trace.duration // 200
        mark = "▸" if span.span_id in rows.folded else "▾" if span.children else "·"
        indent = " " * min(span.depth, 14)
        room = self.name_width - len(indent) - 3
        name = crop_left(printable(span.name), room)
        back = "#2c3a52" if chosen else None
        red = "#ff8a80" if span.failed else None
        text = Style(bold=notable, bgcolor=back, color=red, dim=not (notable or span.failed))
        if rows.matches(span):
            text += Style(reverse=True)
        took = duration(span.duration) + ("+" if span.open else "")
        pad = " " * max(room - columns(name), 0)
        plain = Style(bgcolor=back)
        return Strip(
            [
                Segment(f"{indent}{mark} ", Style(color=colour, bgcolor=back)),
                Segment(name, text),
                Segment(f"{pad} {took:>11} ", plain + Style(bold=notable)),
                *self._bar(span, colour, back),
            ]
        ).adjust_cell_length(self.size.width, plain)

    def _bar(self, span: TraceSpan, colour: str, back: str | None) -> list[Segment]:
        rows, width = self.rows, self.bar_width
        length = max(rows.end - rows.begin, 1)

        def column(moment: int) -> int:
            return (moment - rows.begin) * width // length

        first, last = column(span.start), max(column(span.end), column(span.start) + 1)
        if last <= 0 or first >= width:
            arrow = "←" if last <= 0 else "→"
            text = arrow + " " * (width - 1) if last <= 0 else " " * (width - 1) + arrow
            return [Segment(text, Style(color=colour, dim=True, bgcolor=back))]
        cells = [" "] * width
        for at in range(max(first, 0), min(last, width)):
            cells[at] = "░"
        for start, end in rows.critical.get(span.span_id, ()):
            begin = column(start)
            for at in range(max(begin, 0), min(max(column(end), begin + (end - start) * width // length), width)):
                cells[at] = "█"
        if "█" not in cells and last - first <= 1:
            cells[max(first, 0)] = "▏"
        return [Segment("".join(cells), Style(color="#ff8a80" if span.failed else colour, bgcolor=back))]


class Top(App[None]):
    """The whole screen. `source` is read again when its store changes."""

    CSS = """
    Screen { layout: vertical; }
    #head { height: auto; padding: 0 1; background: $surface; }
    #failure { height: auto; max-height: 8; padding: 0 1; color: $text-error; background: $error-muted; display: none; }
    #axis { height: 1; color: $text-muted; }
    #body { height: 1fr; }
    #waterfall { width: 1fr; }
    #details { width: 44; padding: 0 1; border-left: solid $primary; display: none; }
    #details.open { display: block; }
    #search { display: none; height: 1; padding: 0 1; background: $panel; }
    #keys { display: none; height: auto; padding: 0 1; background: $panel; }
    #keys.open { display: block; }
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "kata-runtime trace top"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-1000000)", show=False),
        Binding("end,G", "move(1000000)", show=False),
        Binding("left,h", "fold(True)", "fold", key_display="←"),
        Binding("right,l", "fold(False)", "unfold", key_display="→"),
        Binding("left_square_bracket", "fold_all(True)", show=False),
        Binding("right_square_bracket", "fold_all(False)", show=False),
        Binding("enter", "details", "details"),
        Binding("slash", "search", "search"),
        Binding("n", "again(1)", show=False),
        Binding("N", "again(-1)", show=False),
        Binding("plus,equals_sign", "zoom(0.5)", "zoom in"),
        Binding("minus", "zoom(2.0)", "out"),
        Binding("0", "zoom_all", "all"),
        Binding("f", "zoom_to", "to span"),
        Binding("less_than_sign,comma", "pan(-0.25)", show=False),
        Binding("greater_than_sign,full_stop", "pan(0.25)", show=False),
        Binding("c", "critical", "critical"),
        Binding("e", "errors", "errors"),
        Binding("tab", "next_critical(1)", show=False, priority=True),
        Binding("shift+tab", "next_critical(-1)", show=False, priority=True),
        Binding("r", "reload", show=False),
        Binding("question_mark", "keys", "keys"),
        Binding("escape", "close", show=False),
        Binding("q", "quit", "quit"),
    ]
    note: reactive[str] = reactive("")

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.rows = Rows(source.load())
        self.typed: str | None = None

    def compose(self) -> ComposeResult:
        """The widgets, from top to bottom."""
        yield Static(id="head", markup=False)
        yield Static(id="failure", markup=False)
        yield Static(id="axis", markup=False)
        with Horizontal(id="body"):
            yield Waterfall(self.rows)
            with VerticalScroll(id="details", can_focus=False):
                yield Static(id="about", markup=False)
        yield Static(KEYS, id="keys", markup=False)
        yield Static(id="search", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin with the keys on the rows, and follow what still grows."""
        self.waterfall.focus()
        self.show()
        if self.rows.trace.live:
            self.follow()

    @property
    def waterfall(self) -> Waterfall:
        """The rows' widget."""
        return self.query_one(Waterfall)

    @work(exclusive=True)
    async def follow(self) -> None:
        """Read the trace again when its store changes, until the sandbox has ended."""
        import asyncio

        from asyncinotify import Inotify, Mask

        assert self.source.store is not None
        directory: Path = self.source.store.directory
        with Inotify() as inotify:
            inotify.add_watch(directory, Mask.MODIFY | Mask.MOVED_TO | Mask.CREATE | Mask.ATTRIB)
            async for _event in inotify:
                self.action_reload()
                if not self.rows.trace.live:
                    return
                await asyncio.sleep(CALM)  # what changed meanwhile is in the queue, and read at once

    def show(self) -> None:
        """Draw all of it anew."""
        trace = self.rows.trace
        parts = split(trace)
        state = "running" if trace.live else trace.meta.outcome or "ended"
        meta = trace.meta
        who = printable(" · ".join(filter(None, (meta.sandbox_id or trace.trace_id, meta.name, meta.command))))
        stages = "  ".join(f"{stage} {duration(took)}" for stage, took in parts.stages.items())
        shown = f"{len(self.rows.rows)} of {len(trace.spans)} spans"
        shown += " · only the critical path" if self.rows.only_critical else ""
        shown += " · only errors" if self.rows.only_failed else ""
        head = f"{who} · {state} · {duration(trace.duration)}{'+' if trace.live else ''} · {shown}"
        if self.note:
            head += f" · {self.note}"
        room = max(self.size.width - 2, 20)
        self.query_one("#head", Static).update(f"{crop(head, room)}\n{crop(stages, room)}")
        failed = failure_of(trace)
        box = self.query_one("#failure", Static)
        box.display = failed is not None
        if failed is not None:
            box.update("\n".join(failed.lines()))
        self.query_one("#about", Static).update(self._about(self.rows.chosen))
        self.waterfall.refit()

    def _about(self, span: TraceSpan) -> str:
        whole = max(self.rows.trace.root.duration, 1)
        lines = [printable(span.name), f"{span.lane.value} · {printable(span.service)}", ""]
        lines += [f"duration  {duration(span.duration)}{'+' if span.open else ''} ({percent(span.duration, whole)})"]
        lines += [f"self      {duration(span.self_time)}", f"waited    {duration(self.rows.waited(span))}"]
        lines += [f"start     {duration(span.start - self.rows.trace.root.start)}"]
        if span.rule.stage:
            lines.append(f"stage     {span.rule.stage.value}")
        if span.failed:
            lines += ["", *(printable(line) for line in (span.message or "failed").splitlines()[:30])]
        lines += ["", *(f"{printable(k)} = {printable(attribute(k, v))}" for k, v in span.attributes.items())]
        for event in span.events[:50]:
            lines += ["", f"+{duration(event.time - span.start)} {printable(event.name)}"]
            lines += [f"  {printable(str(k))} = {printable(attribute(str(k), v))}" for k, v in event.attributes.items()]
        return "\n".join(line[:2000] for line in lines)

    def action_move(self, by: int) -> None:
        """The cursor."""
        self.rows.move(by)
        self.show()

    def action_page(self, by: int) -> None:
        """The cursor, by a screen."""
        self.action_move(by * max(self.waterfall.size.height - 2, 1))

    def action_fold(self, shut: bool) -> None:
        """See Rows.fold."""
        self.rows.fold(shut=shut)
        self.show()

    def action_fold_all(self, shut: bool) -> None:
        """See Rows.fold_all."""
        self.rows.fold_all(shut=shut)
        self.show()

    def action_zoom(self, factor: float) -> None:
        """Around the chosen span, if it is looked at."""
        middle = (self.rows.chosen.start + self.rows.chosen.end) // 2
        self.rows.zoom(factor, middle if self.rows.begin < middle < self.rows.end else None)
        self.show()

    def action_zoom_all(self) -> None:
        """The whole trace."""
        self.rows.zoom_all()
        self.show()

    def action_zoom_to(self) -> None:
        """The chosen span."""
        self.rows.zoom_to(self.rows.chosen)
        self.show()

    def action_pan(self, share: float) -> None:
        """Earlier or later."""
        self.rows.pan(share)
        self.show()

    def action_critical(self) -> None:
        """Only the critical path, or everything again."""
        self.rows.filter(critical=not self.rows.only_critical)
        self.show()

    def action_errors(self) -> None:
        """Only what failed, or everything again."""
        self.rows.filter(failed=not self.rows.only_failed)
        self.show()

    def action_next_critical(self, step: int) -> None:
        """Along the critical path."""
        self.rows.next_critical(step)
        self.show()

    def action_details(self) -> None:
        """Open or close the details."""
        self.query_one("#details").toggle_class("open")

    def action_keys(self) -> None:
        """Open or close the list of keys."""
        self.query_one("#keys").toggle_class("open")

    def action_search(self) -> None:
        """Ask what to search for.

        Not by textual's Input, which has the focus only after a refresh: what is typed until then would be keys.
        """
        self._type("")

    def _type(self, text: str | None) -> None:
        """The line that is being typed; None closes it."""
        self.typed = text
        line = self.query_one("#search", Static)
        line.display = text is not None
        line.update(f"/{text}▏  name, attribute, message; Enter searches, Esc leaves")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While something is typed, keys are letters."""
        return self.typed is None

    def on_key(self, event: events.Key) -> None:
        """Letters of what is searched for."""
        if self.typed is None:
            return
        event.stop()
        event.prevent_default()  # else the same key would be looked up among the bindings after that
        if event.key == "escape":
            self._type(None)
        elif event.key == "backspace":
            self._type(self.typed[:-1])
        elif event.key == "enter":
            text = self.typed
            self._type(None)
            self.note = "" if self.rows.search(text) else f"nothing has {text!r}"
            self.show()
        elif event.is_printable and event.character:
            self._type(self.typed + event.character)

    def on_paste(self, event: events.Paste) -> None:
        """The same, in one go."""
        if self.typed is not None:
            self._type(self.typed + "".join(c for c in event.text if c.isprintable())[:200])

    def action_again(self, step: int) -> None:
        """The next match."""
        self.note = "" if self.rows.search(self.rows.query, step=step) else "no other match"
        self.show()

    def action_close(self) -> None:
        """What is open over the rows; then what was searched for."""
        opened = [w for w in (self.query_one("#keys"), self.query_one("#details")) if w.has_class("open")]
        for widget in opened[:1]:
            widget.remove_class("open")
        if not opened:
            self.rows.query = self.note = ""
        self.waterfall.focus()
        self.show()

    def action_reload(self) -> None:
        """Read it again."""
        with contextlib.suppress(StoreError):
            self.rows.replace(self.source.load())
            self.show()
