"The documentation site as a reader's browser shows it: front page, sidebar, and every page that the sidebar leads to."

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "_docs"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,1000"
).split()
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"  # fonts and formulas come from the web: not in a test


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    "The built site, served on a free port"
    if not (DOCS / "index.html").exists():
        pytest.skip("no built site in _docs: call `make docs` first")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(DOCS)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "Headless Chromium"
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are needed (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, OFFLINE, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


def heading(browser):
    return browser.find_element("css selector", "main h1").text


def test_every_page_of_the_sidebar_opens(address, browser):
    browser.get(f"{address}/index.html")
    assert "ddrobust_nb" in browser.title and heading(browser)
    links = {
        a.get_attribute("href"): a.get_attribute("textContent").strip()
        for a in browser.find_elements("css selector", "#quarto-sidebar a[href]")
    }
    pages = {href: text for href, text in links.items() if href.split("#")[0].endswith(".html")}
    assert len(pages) >= 3, f"the sidebar lists only {sorted(links)}"
    for href, text in pages.items():
        browser.get(href)
        assert text and heading(browser), f"{href} opens without a heading"
        active = browser.find_elements("css selector", "#quarto-sidebar a.active")
        assert [a.get_attribute("href") for a in active] == [href], f"the sidebar of {href} does not mark it"


def test_a_definition_shows_its_table(address, browser):
    browser.get(f"{address}/foundations/core.html#check_int")
    section = browser.find_element("id", "check_int")
    assert section.is_displayed()
    texts = [cell.text for cell in browser.find_elements("css selector", "table td")]
    assert "Smallest value accepted" in texts
