"""A reader of a page: a browser's window, what it complained of, and what it asked for."""

from pathlib import Path

# What a hostile text would do, if it were run.
MARK = 'document.documentElement.setAttribute("data-hostile","ran")'
SCRIPT = f"</script><script>{MARK}</script>"


class Reader:
    """A browser's window on a report, and what it complained of or asked for."""

    def __init__(self, browser, file, width=1280, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.file, self.complaints, self.requests = file, [], []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def visit(self, place):
        self.page.evaluate("place => { location.hash = place }", place)
        self.page.wait_for_function("place => document.getElementById(place).checkVisibility()", arg=place)

    def figure(self, place):
        """A figure that has been drawn."""
        self.visit(place)
        self.drawn(place)
        return self.by_id(place)

    def drawn(self, place):
        """Waits for a figure to be drawn."""
        state = "document.getElementById(place).querySelector('.plot').dataset.state"
        self.page.wait_for_function(f"place => ['drawn', 'failed'].includes({state})", arg=place)
        assert self.by_id(place).locator(".plot").get_attribute("data-state") == "drawn"

    def choose(self, population):
        """Chooses it for all figures."""
        self.page.locator(f'#populations input[value="{population}"]').check()

    def draw_all(self):
        """Draws every figure of the page that is shown."""
        self.page.evaluate(
            "Promise.all([...document.querySelectorAll('.page:not([hidden]) .plot')].map((box) => drawFigure(box)))"
        )

    def by_id(self, place):
        return self.page.locator(f'[id="{place}"]')

    def download(self, button):
        """What a click saves; on a busy machine a figure that is drawn meanwhile can swallow one, so up to three."""
        from playwright.sync_api import TimeoutError  # missing where no browser is wanted

        for left in (2, 1, 0):
            try:
                with self.page.expect_download(timeout=10_000) as info:
                    button.click()
                break
            except TimeoutError:
                if not left:
                    raise
        return info.value.suggested_filename, Path(info.value.path()).read_bytes()
